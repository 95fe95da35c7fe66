//! How often a command waits for a node that is far away, one wait after another: both directions, all connections.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use tests::machine::{Done, Machine};
use tests::mounted::moves;
use tests::steps::Stepped;
use tokio::runtime::Runtime;

#[test]
fn the_first_command_waits_six_times_at_most_and_another_twice() {
    let mut machine = Machine::root();
    let address = machine.node("far");
    let runtime = Runtime::new().unwrap();
    let link = runtime.block_on(Stepped::start(address.parse().unwrap())).unwrap();
    moves(&machine, &address, &link.address.to_string());
    let waits = || {
        // Connections for the next are dialled when one was used.
        link.settle();
        let before = link.steps();
        machine.rcpu(&["far", "true"]).succeeds();
        (link.steps() - before).div_ceil(2)
    };
    let first = waits();
    assert!((3..=6).contains(&first), "the first: {first}");
    // One that meets a slow moment counts what else goes on, too.
    let others: Vec<u64> = (0..3).map(|_| waits()).collect();
    assert!(others.iter().min() <= Some(&2), "the others: {others:?}");
}
