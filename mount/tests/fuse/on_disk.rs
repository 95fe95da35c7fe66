//! What was read is found on disk by the next mount, and only what is still so.

use std::fs::{self, File, FileTimes};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};

use mount::{DiskCache, DiskOptions};

use super::*;

const COUNT: usize = 200;
const LARGE: usize = 3_000_000;

/// Files on a server, and where mounts of it keep what they read.
struct Served {
    folder: TempDir,
    tree: TreeRef,
    home: TempDir,
}

impl Served {
    fn new() -> Self {
        let (folder, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        (0..COUNT).for_each(|n| fs::write(folder.path().join(name(n)), small(n)).unwrap());
        fs::write(folder.path().join("large"), large()).unwrap();
        fs::DirBuilder::new().mode(0o700).create(home.path().join("cache")).unwrap();
        let tree = Disk::open(folder.path(), fileserver::DiskOptions::new([7; 32])).unwrap();
        Self { folder, tree, home }
    }

    /// What is kept, as a new process finds it.
    fn cache(&self) -> DiskCache {
        let options = DiskOptions::new(self.home.path().join("cache"), 64 << 20, [1; 32]);
        DiskCache::open(&DiskOptions { settled: Duration::ZERO, ..options }).unwrap()
    }

    fn mount(&self, disk: Option<DiskCache>) -> (Client, Shown) {
        Shown::counted_with(self.tree.clone(), Options { disk, ..Options::default() })
    }
}

fn name(n: usize) -> String {
    format!("f{n:03}")
}

fn small(n: usize) -> Vec<u8> {
    format!("{n:04}").repeat(1024).into_bytes()
}

fn large() -> Vec<u8> {
    (0..LARGE).map(|n| ((n * n) >> 8) as u8).collect()
}

fn read_all(shown: &Shown) {
    assert_eq!(fs::read_dir(&**shown).unwrap().count(), COUNT + 1);
    for n in 0..COUNT {
        assert_eq!(fs::read(shown.path(&name(n))).unwrap(), small(n));
    }
    assert_eq!(fs::read(shown.path("large")).unwrap(), large());
}

#[test]
fn what_was_read_is_not_fetched_again_by_the_next_mount() {
    const ALL: u64 = (COUNT * 4096 + LARGE) as u64;
    let served = Served::new();
    let asked = |disk: Option<DiskCache>| {
        let (client, shown) = served.mount(disk.clone());
        read_all(&shown);
        disk.iter().for_each(DiskCache::settle);
        client.counts()
    };
    for _ in 0..2 {
        assert!(asked(None).received > ALL, "it is off unless it is asked for");
    }
    assert!(asked(Some(served.cache())).received > ALL);
    let warm = asked(Some(served.cache()));
    assert!(warm.received < ALL / 20, "{} bytes", warm.received);
    assert!(warm.requests < COUNT as u64 / 2, "{} requests", warm.requests);
}

#[test]
fn files_that_are_opened_one_by_one_come_from_disk_and_so_do_programs() {
    let served = Served::new();
    let program = served.folder.path().join("program");
    fs::copy("/bin/bash", &program).unwrap();
    let length = fs::metadata(&program).unwrap().len();
    let mut received = Vec::new();
    for _ in 0..2 {
        let disk = served.cache();
        let (client, shown) = served.mount(Some(disk.clone()));
        let file = File::open(shown.path("large")).unwrap();
        let mut part = vec![0; 100_000];
        file.read_exact_at(&mut part, 1_000_000).unwrap();
        assert_eq!(part, large()[1_000_000..1_100_000]);
        let before = client.counts().received;
        let done = std::process::Command::new(shown.path("program")).args(["-c", ":"]).status().unwrap();
        assert!(done.success());
        assert_eq!(fs::read(shown.path("program")).unwrap(), fs::read("/bin/bash").unwrap());
        disk.settle();
        received.push(client.counts().received - before);
    }
    assert!(received[0] >= length && received[1] < length / 10, "{received:?} of {length} bytes");
}

/// Changes `path` so that neither its length nor its modification time tell of it.
fn change(path: &Path) {
    let before = fs::metadata(path).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(b"new!", 0).unwrap();
    file.set_times(FileTimes::new().set_modified(before.modified().unwrap())).unwrap();
    let after = fs::metadata(path).unwrap();
    assert_eq!((before.size(), before.mtime_nsec()), (after.size(), after.mtime_nsec()));
}

#[test]
fn what_has_changed_is_never_read_from_disk() {
    let served = Served::new();
    let (_, shown) = served.mount(Some(served.cache()));
    read_all(&shown);
    drop(shown);
    let disk = served.cache();
    change(&served.folder.path().join("large"));
    change(&served.folder.path().join(name(1)));
    // One that another takes the place of, with the same times.
    let replaced = served.folder.path().join(name(2));
    let times = fs::metadata(&replaced).unwrap().modified().unwrap();
    fs::write(served.folder.path().join("other"), small(3)).unwrap();
    fs::rename(served.folder.path().join("other"), &replaced).unwrap();
    File::open(&replaced).unwrap().set_times(FileTimes::new().set_modified(times)).unwrap();

    let (_, shown) = served.mount(Some(disk));
    let start = |path: PathBuf| fs::read(path).unwrap()[..4].to_vec();
    assert_eq!(start(shown.path("large")), b"new!");
    assert_eq!(start(shown.path(&name(1))), b"new!");
    assert_eq!(fs::read(shown.path(&name(2))).unwrap(), small(3));
}

#[test]
fn what_has_changed_since_it_was_opened_is_not_read_from_disk() {
    let served = Served::new();
    let (_, shown) = served.mount(Some(served.cache()));
    read_all(&shown);
    drop(shown);
    let (_, shown) = served.mount(Some(served.cache()));
    let open = File::open(shown.path(&name(5))).unwrap();
    let mut start = [0; 4];
    open.read_exact_at(&mut start, 0).unwrap();
    assert_eq!(&start, b"0005");
    change(&served.folder.path().join(name(5)));
    until("the change is seen", || {
        open.read_exact_at(&mut start, 0).unwrap();
        &start == b"new!"
    });
    // And what is written here.
    let mut file = File::options().write(true).open(shown.path(&name(6))).unwrap();
    file.write_all(b"mine").unwrap();
    drop(file);
    assert_eq!(fs::read(shown.path(&name(6))).unwrap()[..4], *b"mine");
}
