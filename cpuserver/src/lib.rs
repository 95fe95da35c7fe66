//! /cpu: sessions as files, and commands run in the caller's namespace.
//!
//! A node makes one [`Cpu`], shows [`Cpu::node_for`] as /cpu to each peer that may run commands, and hands it the
//! connections that bring callers' trees ([`Cpu::serve_back`]). A caller runs commands with [`Command`]. What
//! starts processes is [`launch`], a small helper process of one thread.

mod command;
mod connect;
mod cpu;
mod ctl;
mod flow;
mod inherited;
mod job;
mod owned;
mod owner;
mod session;
mod signals;
mod told;
mod travel;
mod tree;
mod wire;
mod words;

pub mod client;
pub mod launch;
pub mod serve_back;

pub use command::{Child, Command, Host, Output, Stdio};
pub use cpu::{Cpu, CpuLimits, CpuOptions, Running};
pub use owned::Owners;
pub use told::{Memory, gather};
pub use travel::{Travel, Trees};
