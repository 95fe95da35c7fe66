//! Programs in two mounts of one export: two clients of a node, who work on the same files.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]
#![allow(clippy::print_stdout, reason = "what was measured is to be seen")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};

use tests::machine::{Done, Machine, Text};
use tests::mounted::{guest, once, python, twice};

#[test]
fn what_a_program_does_in_one_mount_another_finds_in_the_other() {
    let mut machine = Machine::root();
    let [one, other] = twice(&mut machine);
    let program = guest(&machine);
    let cases = "create directories listing names renaming replacing moving links symlinks attributes owners appending sparse \
                 unlinked mapped mapped-to-read statfs xattrs locks waiting-locks";
    for case in cases.split_whitespace() {
        // Each in a folder of its own, of which neither knows anything yet.
        let [here, there] = [&one, &other].map(|mount| mount.join(case));
        machine.run("mkdir", &[&here]);
        machine.command(&program).arg(case).args([&here, &there, &there]).succeeds();
    }
}

#[test]
fn what_is_appended_from_two_mounts_is_all_there() {
    let mut machine = Machine::root();
    let mounts = twice(&mut machine);
    const EACH: usize = 500;
    let writers: Vec<Child> = (0..4)
        .map(|n| {
            let mut command = python(&machine, "append");
            command.arg(mounts[n % 2].join("log")).args([&format!("w{n}"), &EACH.to_string()]);
            command.stderr(Stdio::inherit()).spawn().unwrap()
        })
        .collect();
    for mut writer in writers {
        assert!(writer.wait().unwrap().success());
    }
    let text = machine.run("cat", &[mounts[0].join("log")]).text();
    assert_eq!(text.len() as u64, std::fs::metadata(machine.at("files-beta/log")).unwrap().len(), "as long as it is");
    let mut next: HashMap<&str, usize> = HashMap::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [name, number, filling] = fields[..] else { panic!("a line that nobody wrote: {line:?}") };
        let next = next.entry(name).or_default();
        assert_eq!((number.parse(), filling.trim_matches('x')), (Ok(*next), ""), "of {name}");
        *next += 1;
    }
    assert_eq!((next.len(), next.values().sum::<usize>()), (4, 4 * EACH));
}

#[test]
fn a_file_is_handed_over_between_two_mounts() {
    hands_over(1..=3, 150);
}

#[test]
#[ignore = "it takes a while: run by ./check --full"]
fn a_file_is_handed_over_between_two_mounts_for_long() {
    hands_over(10..=13, 5_000);
}

fn hands_over(seeds: std::ops::RangeInclusive<u64>, count: u32) {
    let mut machine = Machine::root();
    let mounts = twice(&mut machine);
    for seed in seeds {
        python(&machine, "handover").args(&mounts).args([seed.to_string(), count.to_string()]).succeeds();
    }
}

#[test]
fn mounts_of_two_clients_with_keys_of_their_own_exclude_each_other_by_locks() {
    let mut machine = Machine::root();
    let one = once(&mut machine);
    let home = machine.somebody("other");
    let key = std::fs::read_to_string(machine.at("other/id_ed25519.pub")).unwrap();
    let beta = machine.at("beta").display().to_string();
    machine.slashn(&["--home", &beta, "allow", key.trim()]).succeeds();
    let at = machine.at("m");
    machine.run("mkdir", &[&at]);
    machine.slashn(&["--home", &home, "mount", &at.display().to_string()]).succeeds();
    python(&machine, "locks").arg(&one).arg(at.join("beta/fs/files")).succeeds();
    machine.slashn(&["--home", &home, "unmount", &at.display().to_string()]).succeeds();
}

#[test]
fn names_that_many_processes_move_at_once_are_all_there() {
    move_at_once(3, 8, 2);
}

#[test]
#[ignore = "it takes minutes: run by ./check --full"]
fn names_that_very_many_processes_of_one_mount_move_for_a_minute_are_all_there() {
    move_at_once(60, 64, 1);
}

/// In one mount, and then in two, if that many are wanted.
fn move_at_once(seconds: u32, processes: u32, most: usize) {
    let mut machine = Machine::root();
    let mounts = twice(&mut machine);
    for (name, mounts) in [("one", &mounts[..1]), ("two", &mounts[..])].into_iter().take(most) {
        machine.run("mkdir", &[machine.at("files-beta").join(name)]);
        let mut command = python(&machine, "renames");
        command.args([seconds, processes].map(|n| n.to_string())).args(mounts.iter().map(|mount| mount.join(name)));
        // Without a bound on the time, of which it is told how much to take.
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", output.errors());
        let calls: Vec<u64> = output.text().lines().map(|line| line.parse().unwrap()).collect();
        println!("{name} of 2 mounts: {} calls by {} processes", calls.iter().sum::<u64>(), calls.len());
    }
}

/// Somebody who moves money, in a process of its own.
struct Mover {
    process: Child,
    said: BufReader<ChildStdout>,
    name: &'static str,
    /// Movements that were done for certain.
    done: u64,
}

impl Mover {
    /// `name` has moved something `done` times.
    fn start(machine: &Machine, files: &Path, (name, done): (&'static str, u64)) -> Self {
        let mut command = python(machine, "ledger");
        command.arg(files.join("db")).arg(name).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = command.spawn().unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        Self { process, said, name, done }
    }

    /// Waits until it has moved something.
    fn moves(&mut self) {
        let mut line = String::new();
        if self.said.read_line(&mut line).unwrap() == 0 {
            panic!("{} has ended: {:?}", self.name, self.process.wait());
        }
        self.done = line.trim().parse().unwrap();
    }

    /// Kills it. Gives how often it has moved something for certain.
    fn killed(mut self) -> (&'static str, u64) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        for line in self.said.lines() {
            self.done = line.unwrap().parse().unwrap();
        }
        (self.name, self.done)
    }
}

/// Checks the database, where each of `done` must be counted.
fn is_whole(machine: &Machine, files: &Path, done: &[(&'static str, u64)]) {
    let said = python(machine, "ledger").arg(files.join("db")).arg("check").succeeds().text();
    for (name, least) in done {
        let line = said.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        let counted: u64 = line.map_or(0, |count| count.parse().unwrap());
        assert!((*least..=least + 1).contains(&counted), "{name}: {counted}, and {least} were done");
    }
}

#[test]
fn a_database_that_two_mounts_use_outlives_whoever_is_killed() {
    let mut machine = Machine::root();
    let mounts = twice(&mut machine);
    uses_a_database(&machine, &mounts, 4);
}

fn uses_a_database(machine: &Machine, mounts: &[PathBuf; 2], rounds: usize) {
    python(machine, "ledger").arg(mounts[0].join("db")).arg("make").succeeds();
    let mut one = Mover::start(machine, &mounts[0], ("one", 0));
    let mut other = Mover::start(machine, &mounts[1], ("other", 0));
    for round in 0..rounds {
        (0..3 + round % 3).for_each(|_| one.moves());
        other.moves();
        let killed = one.killed();
        // The other finds what it left, and goes on.
        other.moves();
        other.moves();
        is_whole(machine, &mounts[round % 2], &[killed]);
        one = Mover::start(machine, &mounts[round % 2], killed);
        std::mem::swap(&mut one, &mut other);
    }
    let done = [one.killed(), other.killed()];
    is_whole(machine, &mounts[0], &done);
    is_whole(machine, &mounts[1], &done);
}
