//! Group `rcpu`: commands on a node, beside the same by ssh or here: their start, their streams, many at once, and all
//! of it over a slow link.
//!
//! Each part makes its own node, so that none is measured beside what another has left.

mod many;
mod slow;
mod streams;

use tests::machine::{Done, Machine};

use crate::peers::Sshd;
use crate::{Row, is_wanted, machine, median_ms};

/// How often a start is measured.
const TIMES: usize = 21;

pub(crate) fn run() -> Vec<Row> {
    [starts(), streams::run(), many::run(), slow::run()].into_iter().flatten().collect()
}

/// Our node and the peer. The sshd comes first: the machine sees to it that nothing is left behind.
struct Ends {
    sshd: Sshd,
    machine: Machine,
}

impl Ends {
    fn new() -> Self {
        let machine = machine(&["beta"]);
        Self { sshd: Sshd::start(&machine.at("sshd")), machine }
    }
}

/// A row of which less is better.
fn least(case: impl Into<String>, ours: f64, peer: (&'static str, f64), unit: &'static str) -> Row {
    Row { group: "rcpu", case: case.into(), ours, peer: Some(peer), unit, more_is_better: false }
}

fn starts() -> Vec<Row> {
    const COLD: &str = "rcpu NODE true, nothing running here";
    const WARM: &str = "rcpu NODE true, agent running";
    const MORE: &str = "the same, more than fork and exec here";
    if ![COLD, WARM, MORE].into_iter().any(is_wanted) {
        return Vec::new();
    }
    let ends = Ends::new();
    let Ends { sshd, machine } = &ends;
    let ssh = median_ms(TIMES, || {
        sshd.ssh(sshd.port).arg("true").succeeds();
    });
    let mut cold: Vec<f64> = (0..TIMES).map(|_| from_nothing(machine, "beta")).collect();
    cold.sort_by(f64::total_cmp);
    let warm = median_ms(TIMES, || {
        machine.rcpu(&["beta", "true"]).succeeds();
    });
    let local = median_ms(TIMES, || {
        machine.command("true").succeeds();
    });
    vec![
        least(COLD, cold[cold.len() / 2], ("ssh", ssh), "ms"),
        least(WARM, warm, ("ssh", ssh), "ms"),
        least(MORE, warm - local, ("promised", 10.0), "ms"),
    ]
}

/// One `rcpu NODE true` with no agent running, in milliseconds.
fn from_nothing(machine: &Machine, node: &str) -> f64 {
    let _ = machine.slashn(&["agent", "--stop"]).done();
    once(machine, node)
}

/// One `rcpu NODE true`, in milliseconds.
fn once(machine: &Machine, node: &str) -> f64 {
    median_ms(1, || {
        machine.rcpu(&[node, "true"]).succeeds();
    })
}
