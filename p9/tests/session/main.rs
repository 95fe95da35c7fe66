//! Sessions: what a client and a server of ours keep through connections that break, wherever they break.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod bounds;
mod bulk;
mod cuts;
mod leases;
mod net;

#[path = "../protocol/ram.rs"]
#[allow(dead_code, reason = "shared with the tests of the server, which use all of it")]
mod ram;
