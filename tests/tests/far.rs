//! How often programs in a mount wait for a server that is far away, one wait after another.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

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
    for files in [10, 40] {
        let waits = Far::of(folders(FOLDERS, files)).waits("tar cf - . | cat >/dev/null");
        assert!(waits <= FOLDERS + 15, "{waits} waits for {files} files in each");
    }
}

#[test]
fn names_that_are_missing_are_looked_for_in_few_waits_for_each_folder() {
    const FOLDERS: u64 = 5;
    let look = "for d in 000 001 002 003 004; do for n in $(seq 100); do test -e $d/$n && exit 1; done; done; exit 0";
    let waits = Far::of(folders(FOLDERS, 10)).waits(look);
    assert!(waits <= 5 * FOLDERS, "{waits} waits");
}

/// A folder of a server, mounted, that says nothing while the gate is shut.
struct Gated {
    served: tempfile::TempDir,
    at: tempfile::TempDir,
    mounted: Option<mount::Mount>,
    shut: tokio::sync::watch::Sender<bool>,
    said: Arc<AtomicU64>,
    _runtime: Runtime,
}

impl Gated {
    fn new() -> Self {
        let (served, at) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let runtime = Runtime::new().unwrap();
        let tree: TreeRef = Disk::open(served.path(), DiskOptions::new([7; 32])).unwrap();
        let (root, shut, said) = runtime.block_on(async {
            let (near, far, shut, said) = link::gated();
            tokio::spawn(server::serve(far, tree, Arc::new(Who::owner()), Limits::default()));
            let client = Client::connect(near, Options::default()).await.unwrap();
            (client.attach(&Who::owner(), b"").await.unwrap(), shut, said)
        });
        let mounted = mount::mount(root, at.path(), mount::Options::default(), runtime.handle().clone()).unwrap();
        Self { served, at, mounted: Some(mounted), shut, said, _runtime: runtime }
    }

    /// The file `f`, of which a MiB was written: what the kernel asks before the first write was answered.
    fn file(&self) -> fs::File {
        let mut file = fs::File::create(self.at.path().join("f")).unwrap();
        file.write_all(&vec![1; MIB]).unwrap();
        file.sync_all().unwrap();
        file
    }

    /// What the server has of it.
    fn text(&self) -> Vec<u8> {
        fs::read(self.served.path().join("f")).unwrap()
    }

    /// Whether, while nothing is answered, more than `bytes` are said soon.
    fn says(&self, bytes: usize, meanwhile: impl FnOnce()) -> bool {
        let before = self.said.load(Ordering::SeqCst);
        self.shut.send(true).unwrap();
        meanwhile();
        let limit = Instant::now() + Duration::from_secs(20);
        let says = || self.said.load(Ordering::SeqCst) - before >= bytes as u64;
        while !says() && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
        says()
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        _ = self.shut.send(false);
        if let Some(mounted) = self.mounted.take() {
            mounted.unmount().unwrap();
        }
    }
}

const MIB: usize = 1 << 20;

#[test]
fn a_large_file_is_written_many_parts_at_a_time() {
    for old in [false, true] {
        let far = Gated::new();
        if old {
            fs::write(far.served.path().join("f"), "old").unwrap();
        }
        let mut file = far.file();
        let mut writing = None;
        let says = far.says(5 * MIB, || {
            writing = Some(std::thread::spawn(move || (2..8).for_each(|n| file.write_all(&vec![n; MIB]).unwrap())));
        });
        far.shut.send(false).unwrap();
        writing.unwrap().join().unwrap();
        assert!(says, "{old}: the next part is not sent before the last is answered");
        let text = far.text();
        assert!(text.len() == 7 * MIB && text.chunks(MIB).zip(1..).all(|(part, n)| part.iter().all(|byte| *byte == n)));
    }
}

#[test]
fn writes_here_and_there_do_not_wait_for_each_other() {
    const COUNT: usize = 50;
    let far = Gated::new();
    let file = far.file();
    let place = |n: usize| (n * 7919 % COUNT * 10_000) as u64;
    let mut writing = None;
    let says = far.says((COUNT - 1) * 4096, || {
        writing = Some(std::thread::spawn(move || {
            (0..COUNT).for_each(|n| file.write_all_at(&[n as u8; 4096], place(n)).unwrap());
        }));
    });
    far.shut.send(false).unwrap();
    writing.unwrap().join().unwrap();
    assert!(says, "the next write is not sent before the last is answered");
    let text = far.text();
    assert!((0..COUNT).all(|n| text[place(n) as usize..][..4096] == [n as u8; 4096]));
}

#[test]
fn whoever_looks_at_a_file_and_gives_up_takes_nothing_of_what_another_wrote() {
    let far = Gated::new();
    let file = far.file();
    file.write_all_at(b"held", 0).unwrap();
    let mut look = None;
    let says = far.says(1, || look = Some(Command::new("stat").arg(far.at.path().join("f")).spawn().unwrap()));
    let mut look = look.unwrap();
    look.kill().unwrap();
    look.wait().unwrap();
    far.shut.send(false).unwrap();
    assert!(says, "what is held is written out for whoever looks");
    file.sync_all().unwrap();
    assert_eq!(far.text()[..4], *b"held");
}

#[test]
fn a_tree_whose_files_are_looked_at_and_then_read_costs_few_waits_for_each_folder() {
    const FOLDERS: u64 = 30;
    // As git does: each file is looked at first, folder by folder, and then read.
    let look = "for f in */*.c; do test -e $f; done; cat */*.c >/dev/null";
    let far = Far::of(folders(FOLDERS, 8));
    let waits = far.waits(look);
    assert!(waits <= 4 * FOLDERS, "{waits} waits");
}
