//! The client: what a remote tree does, how many round trips it takes, what cancelling sends, and servers that mean
//! harm.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cancelled;
mod fake;
mod hostile;
mod leases;
mod legacy;
mod served;

#[path = "../protocol/ram.rs"]
#[allow(dead_code, reason = "shared with the tests of the server, which use all of it")]
mod ram;
