//! diod and its tools, which no one here wrote: our client with its server, and its clients with ours.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::process::{Command, Stdio};

use fileserver::{Disk, DiskOptions};

use p9::How;
use tests::contract;
use tests::diod::Diod;
use tests::listen::Listening;
use tests::machine::{Done, Machine, Text};
use tests::programs;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_of_diod_keeps_the_contract_of_reading() {
    let dir = tempfile::tempdir().unwrap();
    let export = dir.path().join("export");
    std::fs::create_dir_all(export.join("d/e")).unwrap();
    std::fs::write(export.join("f"), "contents of f").unwrap();
    std::fs::write(export.join("d/some"), vec![b'x'; 20_000]).unwrap();
    std::fs::write(export.join("d/e/empty"), "").unwrap();
    std::os::unix::fs::symlink("../f", export.join("d/link")).unwrap();
    let diod = Diod::serve(&export, dir.path());
    let root = diod.root().await;
    contract::reading(root.clone(), &[]).await;
    // More than diod says in one message.
    std::fs::write(export.join("d/long"), vec![b'x'; 300_000]).unwrap();
    let handle = contract::walk(&root, "d/long").await.unwrap().open(How::READ).await.unwrap();
    assert!(handle.seekable(), "diod gives no version to any file, and each has offsets all the same");
    assert_eq!(handle.read(0, 1 << 20).await.unwrap().len(), 300_000);
    assert_eq!(handle.read(299_990, 100).await.unwrap().len(), 10);
    handle.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_of_diod_keeps_the_contract_of_writing() {
    let dir = tempfile::tempdir().unwrap();
    let export = dir.path().join("export");
    std::fs::create_dir(&export).unwrap();
    let diod = Diod::serve(&export, dir.path());
    contract::writing_at_diod(diod.root().await).await;
}

#[test]
fn programs_find_what_they_expect_in_a_mount_of_diods_tree() {
    let dir = tempfile::tempdir().unwrap();
    let export = dir.path().join("export");
    std::fs::create_dir(&export).unwrap();
    let diod = Diod::serve(&export, dir.path());
    let cases = [
        "create",
        "directories",
        "listing",
        "names",
        "renaming",
        "replacing",
        "moving",
        "links",
        "symlinks",
        "attributes",
        "owners",
        "appending",
        "sparse",
        "mapped",
        "mapped-to-read",
        "statfs",
    ];
    programs::find(dir.path(), |runtime| runtime.block_on(diod.root()), true, &cases);
}

/// What one of diod's tools says, which ends well and complains of nothing.
fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).succeeds();
    assert_eq!(output.errors(), "", "{program} {args:?}");
    output.text()
}

#[test]
fn diods_tools_list_and_read_what_a_node_exports() {
    let mut machine = Machine::root();
    let socket = machine.at("plain.sock").display().to_string();
    machine.node_with("a", &["--plain", &format!("unix!{socket}")]);
    let files = machine.at("files-a");
    std::fs::write(files.join("one"), "first\n").unwrap();
    let long: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(files.join("long"), &long).unwrap();
    std::fs::create_dir(files.join("sub")).unwrap();

    let at = ["-s", socket.as_str(), "-a", "fs/files"];
    let listed = tool("diodls", &at);
    let mut names: Vec<&str> = listed.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["long", "one", "sub"]);
    let long_list = tool("diodls", &[&at[..], &["-l"]].concat());
    let line = long_list.lines().find(|line| line.ends_with(" one")).unwrap_or_else(|| panic!("{long_list}"));
    let fields: Vec<&str> = line.split_whitespace().collect();
    // The dot is ls's for a file without an ACL.
    assert_eq!(fields[..5], ["-rw-r--r--.", "1", "root", "root", "6"]);
    assert_eq!(tool("diodcat", &[&at[..], &["one"]].concat()), "first\n");
    let read = Command::new("diodcat").args(at).arg("long").succeeds();
    assert!(read.stdout == long, "12 MB are read whole");
}

#[test]
fn diodload_loads_our_server_with_many_threads() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("ctl")).unwrap();
    std::fs::write(dir.path().join("ctl/zero"), vec![0; 1 << 20]).unwrap();
    std::fs::write(dir.path().join("ctl/null"), "").unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let disk = Disk::open(dir.path(), DiskOptions::new([7; 32])).unwrap();
    let server = runtime.block_on(Listening::start(disk));
    let address = server.address().to_string();
    for load in [&[][..], &["--getattr"]] {
        let args = [&["-s", &address, "--runtime", "1", "--numthreads", "16"], load].concat();
        // It reports on stderr, its complaints too: the last line is the figure, and there is no other.
        let output = Command::new("diodload").args(&args).stdin(Stdio::null()).succeeds();
        let said = output.errors();
        assert_eq!(said.lines().count(), 1, "{said}");
        let rate = said.split_whitespace().find_map(|word| word.parse::<u64>().ok());
        assert!(rate.is_some_and(|rate| rate > 0), "some operations were done: {said}");
    }
    runtime.shutdown_background();
}
