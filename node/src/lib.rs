//! A node of the grid: who I am, whom I know, what I export, and the user's commands.
//!
//! The binaries `slashn` and `rcpu` (in `bin/`) parse what was typed, say what the environment holds, and call one
//! function of [`commands`]. Everything below reads neither the environment nor the command line.

pub mod agent;
pub mod alike;
pub mod authorized;
pub mod cache;
pub mod cli;
pub mod commands;
pub mod config;
pub mod context;
pub mod control;
pub mod daemon;
pub mod dial;
pub mod error;
pub mod files;
pub mod grant;
pub mod grid;
pub mod home;
pub mod homes;
pub mod keys;
pub mod known;
pub mod lent;
pub mod live;
pub mod namespace;
pub mod output;
pub mod pipe;
pub mod plan;
pub mod pool;
pub mod program;
pub mod root;
pub mod serve;
pub mod servers;
pub mod stat;
pub mod travel;
pub mod watch;
pub mod within;

pub use context::Context;
pub use error::{Error, Result};
