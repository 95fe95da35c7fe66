//! Group `rcpu`: the start of a command, beside ssh.

use tests::machine::{Done, Machine};

use crate::peers::Sshd;
use crate::{Row, machine, median_ms};

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
pub(crate) fn from_nothing(machine: &Machine, node: &str) -> f64 {
    let _ = machine.slashn(&["agent", "--stop"]).done();
    median_ms(1, || {
        machine.rcpu(&[node, "true"]).succeeds();
    })
}
