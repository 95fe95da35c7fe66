//! The namespace as those who use it see it: its rules, its text, and the directory of nodes.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

mod build;
mod grid;
mod marks;
mod rules;
mod support;
