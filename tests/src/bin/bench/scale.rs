//! Group `scale`: what a node costs that does nothing, and what each idle connection adds.

use std::fs;

use tests::machine::{Done, Machine, Text};

use crate::{Row, machine};

const CONNECTIONS: usize = 200;

pub(crate) fn run() -> Vec<Row> {
    let machine = machine(&["alpha"]);
    let idle = resident(&machine);
    let connections: Vec<_> = (0..CONNECTIONS).map(|_| machine.slashn(&["hold", "alpha"]).spawn()).collect();
    drop(connections);
    vec![row("a node, idle: resident", idle / 1024.0, "MiB")]
}
