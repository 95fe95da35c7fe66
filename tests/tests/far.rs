//! How often programs in a mount wait for a server that is far away, one wait after another.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fileserver::{Disk, DiskOptions};
use p9::client::{Client, Options};
use p9::server::{self, Limits};
use p9::{Tree, TreeRef, Who};
use tests::link;
use tokio::runtime::Runtime;

/// Longer than anything but the link takes.
const DELAY: Duration = Duration::from_millis(20);

/// A folder of a server that is far away, mounted.
struct Far {
    _served: tempfile::TempDir,
    at: tempfile::TempDir,
    mounted: Option<mount::Mount>,
    turns: Arc<AtomicU64>,
    _runtime: Runtime,
}

impl Far {
    /// What `fill` puts into the folder.
    fn of(fill: impl FnOnce(&Path)) -> Self {
        let (served, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fill(served.path());
        let runtime = Runtime::new().unwrap();
        let tree: TreeRef = Disk::open(served.path(), DiskOptions::new([7; 32])).unwrap();
        let (root, turns) = runtime.block_on(async {
            let (near, far, turns) = link::turns(DELAY);
            tokio::spawn(server::serve(far, tree, Arc::new(Who::owner()), Limits::default()));
            let client = Client::connect(near, Options::default()).await.unwrap();
            (client.attach(&Who::owner(), b"").await.unwrap(), turns)
        });
        let mounted = mount::mount(root, at.path(), mount::Options::default(), runtime.handle().clone()).unwrap();
        Self { _served: served, at, mounted: Some(mounted), turns, _runtime: runtime }
    }

    /// How often `script` waits.
    fn waits(&self, script: &str) -> u64 {
        let before = self.turns.load(Ordering::Relaxed);
        let done = Command::new("sh").args(["-c", script]).current_dir(self.at.path()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        self.turns.load(Ordering::Relaxed) - before
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        if let Some(mounted) = self.mounted.take() {
            mounted.unmount().unwrap();
        }
    }
}

/// `count` folders with `files` files each.
fn folders(count: u64, files: u64) -> impl FnOnce(&Path) {
    move |at| {
        for dir in 0..count {
            let dir = at.join(format!("{dir:03}"));
            fs::create_dir(&dir).unwrap();
            (0..files).for_each(|n| fs::write(dir.join(format!("{n:03}.c")), "text").unwrap());
        }
    }
}

#[test]
fn a_tree_is_listed_in_an_eighth_as_many_waits_as_it_has_folders() {
    const FOLDERS: u64 = 64;
    for script in ["ls -lR . >/dev/null", "find . -size +1M"] {
        let waits = Far::of(folders(FOLDERS, 8)).waits(script);
        assert!(waits <= FOLDERS / 8 + 10, "{script}: {waits} waits");
    }
}

#[test]
fn a_thousand_small_files_are_read_in_a_dozen_waits() {
    let waits = Far::of(folders(1, 1000)).waits("cat 000/* >/dev/null");
    assert!(waits <= 12, "{waits} waits");
}

#[test]
fn a_tree_is_archived_in_few_waits_for_each_folder() {
    const FOLDERS: u64 = 20;
    let waits = Far::of(folders(FOLDERS, 10)).waits("tar cf - . | cat >/dev/null");
    assert!(waits <= FOLDERS + 15, "{waits} waits");
}

#[test]
fn names_that_are_missing_are_looked_for_in_few_waits_for_each_folder() {
    const FOLDERS: u64 = 5;
    let look = "for d in 000 001 002 003 004; do for n in $(seq 100); do test -e $d/$n && exit 1; done; done; exit 0";
    let waits = Far::of(folders(FOLDERS, 10)).waits(look);
    assert!(waits <= 5 * FOLDERS, "{waits} waits");
}
