//! Groups `rcpu` and `wan`: the start of a command, beside ssh; and how often it waits on the network, one wait after
//! another, read off a link with a known round-trip time.

use std::net::SocketAddr;
use std::time::Duration;

use tests::link::Proxy;
use tests::machine::{Done, Machine};

use crate::peers::Sshd;
use crate::{Row, machine, median_ms};

const ROUND_TRIP_MS: u64 = 50;

pub(crate) fn run() -> Vec<Row> {
    let machine = machine(&["beta"]);
    let sshd = Sshd::start(&machine.at("sshd"));
    let ssh = median_ms(11, || {
        sshd.ssh(sshd.port).arg("true").succeeds();
    });
    let mut cold: Vec<f64> = (0..11).map(|_| from_nothing(&machine, "beta")).collect();
    cold.sort_by(f64::total_cmp);
    let warm = median_ms(11, || {
        machine.rcpu(&["beta", "true"]).succeeds();
    });
    let row = |case: &str, ours| Row {
        group: "rcpu",
        case: case.into(),
        ours,
        peer: Some(("ssh", ssh)),
        unit: "ms",
        more_is_better: false,
    };
    vec![row("rcpu NODE true, nothing running here", cold[cold.len() / 2]), row("rcpu NODE true, agent running", warm)]
}

/// One `rcpu NODE true` with no agent running, in milliseconds.
fn from_nothing(machine: &Machine, node: &str) -> f64 {
    let _ = machine.slashn(&["agent", "--stop"]).done();
    median_ms(1, || {
        machine.rcpu(&[node, "true"]).succeeds();
    })
}

/// Waits on the network, both directions counted, as (time at 50 ms round trip minus time at 0) / 50 ms.
pub(crate) fn wan() -> Vec<Row> {
    let mut machine = Machine::bare();
    let address: SocketAddr = machine.node("beta").parse().expect("the node's address");
    let sshd = Sshd::start(&machine.at("sshd"));
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let delay = Duration::from_millis(ROUND_TRIP_MS / 2);
    let far = runtime.block_on(Proxy::start(address, delay)).expect("a proxy");
    let far_sshd = ([127, 0, 0, 1], sshd.port).into();
    let far_sshd = runtime.block_on(Proxy::start(far_sshd, delay)).expect("a proxy");
    let key = std::fs::read_to_string(machine.at("me/known_nodes")).expect("the nodes I know");
    let known = key.replace(&address.to_string(), &far.address.to_string()).replace("beta", "far");
    std::fs::write(machine.at("me/known_nodes"), key + &known).expect("a second way to the node");

    let near_ms = (0..5).map(|_| from_nothing(&machine, "beta")).fold(f64::INFINITY, f64::min);
    let far_ms = (0..3).map(|_| from_nothing(&machine, "far")).fold(f64::INFINITY, f64::min);
    let near_ssh = median_ms(3, || {
        sshd.ssh(sshd.port).arg("true").succeeds();
    });
    let far_ssh = median_ms(3, || {
        sshd.ssh(far_sshd.address.port()).arg("true").succeeds();
    });
    let waits = |far: f64, near: f64| (far - near) / ROUND_TRIP_MS as f64;
    vec![Row {
        group: "wan",
        case: "true, dynamically linked, empty caches: waits".into(),
        ours: waits(far_ms, near_ms),
        peer: Some(("ssh", waits(far_ssh, near_ssh))),
        unit: "waits",
        more_is_better: false,
    }]
}
