//! Group `scale`: what a node costs that does nothing, and what each idle connection adds to it.

use std::fs;

use p9::client::{Client, Options};
use tests::machine::Machine;

use crate::Row;

const CONNECTIONS: usize = 200;

pub(crate) fn run() -> Vec<Row> {
    let mut machine = Machine::bare();
    machine.node("alpha");
    let idle = resident_kib(&machine);
    let home = ::node::home::Home::open(&machine.at("me")).expect("my home");
    let dialer = ::node::dial::Dialer::open(&home, None).expect("my key and the nodes I know");
    let alpha = dialer.find("alpha").expect("the node that was added");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let held: Vec<Client> = runtime.block_on(async {
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            let io = dialer.connect(&alpha).await.expect("a connection");
            held.push(Client::connect(io, Options::default()).await.expect("a version"));
        }
        held
    });
    let more = resident_kib(&machine) - idle;
    drop(held);
    vec![
        row("a node, idle: resident", idle / 1024.0, "MiB"),
        row("each of 200 idle connections adds", more / CONNECTIONS as f64, "KiB"),
    ]
}

/// The resident memory of the node and its launcher.
fn resident_kib(machine: &Machine) -> f64 {
    let of = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(0.0)
    };
    machine.processes().iter().filter_map(|process| process.split(' ').next()).map(of).sum()
}

fn row(case: &str, ours: f64, unit: &'static str) -> Row {
    Row { group: "scale", case: case.into(), ours, peer: None, unit, more_is_better: false }
}
