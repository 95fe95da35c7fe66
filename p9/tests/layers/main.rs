//! Layers: what they do not change is passed on, and what they change shows however a file is reached.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod in_steps;
mod nobody;
mod passed_on;
mod trace;

#[path = "../protocol/ram.rs"]
#[allow(dead_code, reason = "shared with the tests of the server, which use all of it")]
mod ram;

/// The name `text`.
fn name(text: &str) -> p9::Name<'_> {
    p9::Name::new(text.as_bytes()).unwrap()
}
