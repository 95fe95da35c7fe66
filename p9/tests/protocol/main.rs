//! The server as its peers see it: conversations byte for byte, the order of things, and peers that mean harm.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod hostile;
mod leases;
mod legacy;
mod locks;
mod looks;
mod order;
mod peer;
mod ram;
mod stat;
mod transcripts;
mod turns;
