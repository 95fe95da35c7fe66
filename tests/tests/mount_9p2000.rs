//! A mount of a tree that is reached over 9P2000, for programs that know nothing of it.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::process::{Command, Stdio};

use fileserver::{Disk, DiskOptions};
use p9::wire::Dialect;
use tests::grid::Grid;
use tests::machine::Done;

#[test]
fn programs_find_what_they_expect_in_a_mount_over_9p2000() {
    let dir = tempfile::tempdir().unwrap();
    let (export, at, program) = (dir.path().join("export"), dir.path().join("mnt"), dir.path().join("guest"));
    std::fs::create_dir(&export).unwrap();
    std::fs::create_dir(&at).unwrap();
    // What the Linux kernel's client is asked, too: tests/tests/v9fs.rs.
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/v9fs/guest.c");
    Command::new("gcc").arg("-o").arg(&program).arg(source).succeeds();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let tree = Disk::open(&export, DiskOptions::new([7; 32])).unwrap();
    let root = runtime.block_on(Grid::new().serve("a", tree).dialect(Dialect::Legacy).root("a")).unwrap();
    let shown = mount::mount(root, &at, mount::Options::default(), runtime.handle().clone()).unwrap();
    for case in [
        "create",
        "directories",
        "listing",
        "names",
        "renaming",
        "replacing",
        "attributes",
        "appending",
        "sparse",
        "unlinked",
        "mapped",
        "mapped-to-read",
    ] {
        // Named otherwise, it is not asked how many blocks a file has, which 9P2000 does not say.
        Command::new(&program).arg(case).args([&at, &at, &at.join(".")]).stdin(Stdio::null()).succeeds();
    }
    drop(shown);
    runtime.shutdown_background();
}
