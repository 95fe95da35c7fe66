//! What a mount or a command has read is on this machine's disk for the next one, whatever ended the one before. What
//! is read are files that were there long before the test: young ones are not kept.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tests::link::Proxy;
use tests::machine::{Done, Machine, Text};
use tests::mounted::{behind_a_link, behind_a_link_with, script};
use tokio::runtime::Runtime;

/// Where Python has its modules.
fn library() -> PathBuf {
    let all = fs::read_dir("/usr/lib").unwrap().flatten().map(|entry| entry.path());
    all.filter(|path| path.join("json/decoder.py").exists()).max().expect("a Python 3 is installed")
}

/// A node that is reached through a link, and exports that library as `library`.
fn served() -> (Machine, Proxy, Runtime) {
    behind_a_link_with(&["--export", &format!("library={}:ro", library().display())])
}

/// Reads all modules below `root`; what is said is the same for the same contents.
const READ: &str = r#"cd "$1" && find . -name '*.py' | LC_ALL=C sort | head -400 | xargs -d '\n' cksum"#;

fn read(machine: &Machine, root: &Path) -> String {
    script(machine, READ).arg(root).succeeds().text()
}

#[test]
fn what_was_read_is_not_fetched_again_the_next_time() {
    let (mut machine, proxy, _runtime) = served();
    let contents = read(&machine, &library());
    let mut carried = |more: &[&str]| {
        let before = proxy.carried();
        let at = machine.mount_as("n", more);
        assert_eq!(read(&machine, &at.join("beta/fs/library")), contents);
        machine.slashn(&["unmount", at.to_str().unwrap()]).succeeds();
        proxy.carried() - before
    };
    let (off, cold, warm) = (carried(&["--disk-cache", "0"]), carried(&[]), carried(&[]));
    assert!(cold > off / 2 && warm < cold / 10, "{off}, {cold} and {warm} bytes");
    assert!(carried(&["--disk-cache", "0"]) > cold / 2);
}

#[test]
fn whenever_a_mount_is_killed_what_the_next_one_reads_is_what_there_is() {
    let (mut machine, _proxy, _runtime) = served();
    let contents = read(&machine, &library());
    for round in 0..8 {
        let at = machine.mount_as("n", &["--disk-cache", "4"]);
        let library = at.join("beta/fs/library");
        let mut reading =
            script(&machine, READ).arg(&library).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // Each time it is further: some has been read, and part of that is being written.
        let some = READ.replace("head -400", &format!("head -{}", 1 + round * 50));
        let read = script(&machine, &some).arg(&library).succeeds().text();
        assert!(contents.starts_with(&read) && !read.is_empty());
        machine.kill(&format!("--home {} mount", machine.at("me").display()));
        let _ = reading.wait();
    }
    let at = machine.mount_as("n", &["--disk-cache", "4"]);
    assert_eq!(read(&machine, &at.join("beta/fs/library")), contents);
    // What is there no longer makes room for something else.
    let lengths = fs::read_dir(machine.at("me/cache")).unwrap().filter_map(|entry| entry.unwrap().metadata().ok());
    let kept: u64 = lengths.map(|meta| meta.len()).sum();
    assert!((1..=5 << 20).contains(&kept), "{kept} bytes");
}

#[test]
fn the_second_command_of_the_day_starts_warm() {
    let (machine, proxy, _runtime) = behind_a_link();
    let run = || {
        let before = proxy.carried();
        // Each is too small for the node to look whether it has the same.
        let modules = machine.rcpu(&["beta", "sh", "-c", READ, "sh", library().to_str().unwrap()]).succeeds();
        assert_eq!(modules.text(), read(&machine, &library()));
        proxy.carried() - before
    };
    let cold = run();
    // Another day: both ends have been off.
    machine.slashn(&["agent", "--stop"]).succeeds();
    machine.slashn(&["--home", &machine.at("beta").display().to_string(), "down"]).succeeds();
    machine.up("beta", &proxy.to.to_string(), &[]);
    let warm = run();
    assert!(warm < cold / 4, "{cold} and then {warm} bytes");
}

#[test]
fn what_the_node_has_too_is_not_fetched() {
    let (machine, proxy, _runtime) = behind_a_link_with(&["--disk-cache", "0"]);
    let compiler = machine.run("gcc", &["-print-prog-name=cc1"]).text().trim().to_string();
    let size = fs::metadata(&compiler).unwrap().len();
    let run = |file: &str| {
        let before = proxy.carried();
        let sum = machine.rcpu(&["beta", "cksum", file]).succeeds().text();
        assert_eq!(sum, machine.run("cksum", &[file]).text());
        proxy.carried() - before
    };
    let copy = machine.at("work/copy").display().to_string();
    fs::copy(&compiler, &copy).unwrap();
    let (same, young) = (run(&compiler), run(&copy));
    assert!(young > size && same < size / 8, "{same} and {young} of {size} bytes");
}
