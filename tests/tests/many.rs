//! Very much of everything in one mount: entries of a directory, and files that the kernel knows. What the mount's
//! process takes is printed, and bounded.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]
#![allow(clippy::print_stdout, reason = "what was measured is to be seen")]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tests::machine::{Done, Machine, Text};
use tests::mounted::{behind_a_link, once, script};

/// What the process that serves the mount takes and took at most, in MiB: of memory that is its own, and with the pages
/// of its program.
struct Memory {
    own: u64,
    all: u64,
    most: u64,
}

impl Memory {
    fn of(machine: &Machine) -> Self {
        let processes = machine.processes();
        let line = processes.iter().find(|line| line.contains("mount --foreground") || line.contains(" --foreground "));
        let pid = line.unwrap().split(' ').next().unwrap();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() >> 10
        };
        Self { own: field("RssAnon:"), all: field("VmRSS:"), most: field("VmHWM:") }
    }

    fn print(&self, when: &str) {
        println!("{when}: {} MiB, {} MiB with the program, at most {} MiB", self.own, self.all, self.most);
    }
}

/// Makes `count` empty files in a folder of this machine.
fn fill(folder: &Path, count: usize) {
    fs::create_dir_all(folder).unwrap();
    (0..count).for_each(|n| drop(fs::File::create_new(folder.join(format!("{n:06}"))).unwrap()));
}

#[test]
fn a_mount_that_nobody_uses_takes_little_memory() {
    let mut machine = Machine::root();
    let files = once(&mut machine);
    machine.run("ls", &[&files]);
    let idle = Memory::of(&machine);
    idle.print("idle");
    assert!(idle.own < 20, "{} MiB", idle.own);
}

#[test]
#[ignore = "it takes minutes: run by ./check --full"]
fn a_million_entries_are_listed_as_they_come_in_little_memory() {
    const COUNT: usize = 1_000_000;
    let mut machine = Machine::root();
    machine.small_disk("files-beta", 256 << 20, COUNT as u64 + 100);
    let files = once(&mut machine);
    // On the small disk, which is seen in the machine's mount namespace alone.
    let make = "mkdir \"$1\"; cd \"$1\"; seq -f %06.0f 0 $(($2 - 1)) | xargs touch";
    script(&machine, make).arg(machine.at("files-beta/many")).arg(COUNT.to_string()).succeeds();
    let before = Memory::of(&machine);
    before.print("before");
    let many = files.join("many");
    let count = |script_text: &str| {
        let began = Instant::now();
        let output = script(&machine, script_text).arg(&many).stdin(std::process::Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{}", output.errors());
        println!("{script_text}: {:?}", began.elapsed());
        output.text().trim().to_string()
    };
    assert_eq!(count("ls -f \"$1\" | grep -c '^[0-9]'"), COUNT.to_string());
    // Whoever wants the first alone does not wait for the last.
    assert_eq!(count("find \"$1\" -type f | head -n 1 | wc -l"), "1");
    let after = Memory::of(&machine);
    after.print("after");
    assert!(after.most < before.all + 200, "{} MiB", after.most);
}

/// `DIRS` folders of `FILES` files each, which the kernel knows by the time.
const DIRS: usize = 100;
const FILES: usize = 990;

/// Makes them, and has the kernel know each. Gives where they are.
fn known(machine: &mut Machine) -> PathBuf {
    (0..DIRS).for_each(|n| fill(&machine.at(&format!("files-beta/{n:02}")), FILES));
    let files = machine.mount().join("beta/fs/files");
    let seen = script(machine, "ls -lR \"$1\" | grep -c '^-'").arg(&files).output().unwrap().text();
    assert_eq!(seen.trim(), (DIRS * FILES).to_string());
    files
}

#[test]
#[ignore = "it takes minutes: run by ./check --full"]
fn a_hundred_thousand_files_that_are_known_take_little_memory_and_no_time_when_the_node_is_back() {
    let (mut machine, proxy, _runtime) = behind_a_link();
    let files = known(&mut machine);
    let memory = Memory::of(&machine);
    memory.print("100,000 files are known");
    assert!(memory.own < 64, "{} MiB", memory.own);
    machine.kill(&format!("--home {} up", machine.at("beta").display()));
    let before = proxy.carried();
    machine.up("beta", &proxy.to.to_string(), &[]);
    let began = Instant::now();
    machine.run("stat", &[files.join("42/000007")]);
    println!("the first operation took {:?}", began.elapsed());
    let carried = proxy.carried() - before;
    println!("for which {carried} bytes were sent and received");
    assert!(carried < 100_000, "{carried} bytes");
}
