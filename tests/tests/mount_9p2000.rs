//! A mount of a tree that is reached over 9P2000, for programs that know nothing of it.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use fileserver::{Disk, DiskOptions};
use p9::wire::Dialect;
use tests::grid::Grid;
use tests::programs;

#[test]
fn programs_find_what_they_expect_in_a_mount_over_9p2000() {
    let dir = tempfile::tempdir().unwrap();
    let export = dir.path().join("export");
    std::fs::create_dir(&export).unwrap();
    let tree = Disk::open(&export, DiskOptions::new([7; 32])).unwrap();
    let root = Grid::new().serve("a", tree).dialect(Dialect::Legacy);
    let cases = [
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
    ];
    // 9P2000 does not say how many blocks a file has.
    programs::find(dir.path(), |runtime| runtime.block_on(root.root("a")).unwrap(), false, &cases);
}
