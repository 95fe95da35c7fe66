//! pjdfstest, which asks of a file system what POSIX promises, on a mount for every user of a disk.
//!
//! Run by `./check --full`, which builds the program from the crate registry into target/tools. What is expected to
//! fail is in tests/pjdfstest/config.toml, each case with its reason; one that passes after all fails the run, too.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "it is a test: a failure here is the test's, and says what it leaves out"
)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use fileserver::{Disk, DiskOptions};
use mount::Options;
use p9::{TreeRef, Who};
use tests::grid::Grid;
use tests::machine::Text;
use tokio::runtime::Runtime;

/// What is not run, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("::erofs_", "it remounts: see tests/pjdfstest/config.toml"),
    ("link::link_count_max", "there is no limit to reach: FUSE knows none"),
];

#[test]
#[ignore = "it needs pjdfstest, and a while: run by ./check --full"]
fn a_mount_of_a_disk_for_every_user_keeps_posix() {
    keeps(|_, disk| disk);
}

#[test]
#[ignore = "it needs pjdfstest, and a while: run by ./check --full"]
fn a_mount_of_a_servers_disk_for_every_user_keeps_posix() {
    keeps(|runtime, disk| {
        let grid = Grid::new().serve("a", disk);
        Arc::new(runtime.block_on(grid.client("a")).unwrap())
    });
}

/// Runs it on what `way` makes of a tree on a disk.
fn keeps(way: impl FnOnce(&Runtime, TreeRef) -> TreeRef) {
    assert!(rustix::process::geteuid().is_root(), "this test becomes other users: run it as root");
    let dir = tempfile::tempdir().unwrap();
    let (disk, at) = (dir.path().join("disk"), dir.path().join("mnt"));
    std::fs::create_dir(&disk).unwrap();
    std::fs::create_dir(&at).unwrap();
    for open in [dir.path(), &disk] {
        std::fs::set_permissions(open, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    let runtime = Runtime::new().unwrap();
    let tree = way(&runtime, Disk::open(&disk, DiskOptions::new([7; 32])).unwrap());
    let root = runtime.block_on(async { tree.attach(&Who::owner(), b"").await }).unwrap();
    let options = Options { all_users: true, ..Options::default() };
    let shown = mount::mount(root, &at, options, runtime.handle().clone()).unwrap();

    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = here.join("../target/tools/bin/pjdfstest");
    assert!(program.exists(), "no {}: ./check --full builds it", program.display());
    let output = Command::new(program)
        .arg("--configuration-file")
        .arg(here.join("pjdfstest/config.toml"))
        .arg("--secondary-fs")
        .arg(dir.path())
        .arg("--path")
        .arg(&at)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    drop(shown);
    let said = output.text();
    assert!(output.status.success(), "{said}\n{}", output.errors());
    // It would be content with nothing to do, and says nothing of what it leaves out.
    let passed = said.lines().filter(|line| line.ends_with(" ok")).count();
    assert!(passed > 380, "only {passed} cases passed: {said}");
    for line in said.lines().filter(|line| line.trim_end().ends_with("skipped")) {
        let reason = LEFT_OUT.iter().find(|(name, _)| line.contains(name));
        println!("left out: {line}: {}", reason.unwrap_or_else(|| panic!("{line}, and no reason is known")).1);
    }
}
