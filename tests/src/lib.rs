//! The harness that tests and benchmarks share: grids in one process, grids of real binaries, slow links, and the
//! contract that every tree keeps.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "it is test code: a failure here is the test's")]

pub mod campaign;
pub mod canary;
pub mod contract;
pub mod conversation;
pub mod diod;
pub mod grid;
pub mod link;
pub mod listen;
pub mod machine;
pub mod model;
pub mod mounted;
pub mod parked;
pub mod programs;
pub mod rough;
pub mod said;
pub mod session;
pub mod steps;
