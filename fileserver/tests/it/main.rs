//! Trees of real files, used in place: no wire but in `fids`, `clients` and `sequences`, and no mount of theirs.
//!
//! `disk` is the plain directory, `model` the same against system calls, `mounts` what is mounted in it, `bounds` what
//! it costs, `locks` what local processes have to do with it, `races` those who try to get out of it, `ruled` one with
//! rules around it, `caller` the rules that protect a caller from a node, `exports` what a node shows to whom, `leases`
//! and `clients` what is kept without asking, `events` what is told of changes, `sequences` any
//! messages in any order.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking, and says aloud what it skips")]

mod bounds;
mod caller;
mod clients;
mod common;
mod disk;
mod events;
mod exports;
mod fids;
mod leases;
mod locks;
mod model;
mod mounts;
mod races;
mod ruled;
mod sequences;
