//! fsx on a mount of a node's export: reads, writes, stores in mappings, truncations, holes and copies in any order,
//! each compared with what the file must hold by then. `./check` installs it; `./check --full` lets it run for longer.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::path::Path;
use std::process::Stdio;

use tests::machine::{Machine, Text};
use tests::mounted::once;

#[test]
fn a_file_holds_what_was_last_done_to_it() {
    exercises(7, 2000);
}

#[test]
#[ignore = "it takes minutes: run by ./check --full"]
fn a_file_holds_what_was_last_done_to_it_forty_thousand_times() {
    exercises(8, 40_000);
}

/// Runs it for `count` operations that `seed` determines.
fn exercises(seed: u64, count: u64) {
    let mut machine = Machine::root();
    let files = once(&mut machine);
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = here.join("../target/tools/bin/fsx");
    assert!(program.exists(), "no {}: ./check installs it", program.display());
    let mut command = machine.command(program);
    command.args(["-N", &count.to_string(), "-S", &seed.to_string()]);
    // Without a bound on the time: --full gives it a while.
    let output =
        command.arg("-P").arg(machine.at("work")).arg("-f").arg(here.join("fsx/fsx.toml")).arg(files.join("f"));
    let output = output.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "seed {seed}: {}\n{}", output.text(), output.errors());
}
