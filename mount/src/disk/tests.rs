use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use p9::Qid;
use proptest::prelude::*;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;

const ROOM: u64 = 4 << 20;

fn options(dir: &Path) -> DiskOptions {
    DiskOptions { settled: Duration::ZERO, ..DiskOptions::new(dir.to_path_buf(), ROOM, [3; 32]) }
}

struct Kept {
    dir: TempDir,
    runtime: Runtime,
    cache: Option<DiskCache>,
}

/// What a mount has of it.
fn mounted(disk: Option<DiskCache>, runtime: &Runtime) -> Disk {
    Disk::new(&crate::Options { disk, ..crate::Options::default() }, runtime.handle().clone())
}

impl Kept {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let cache = Some(DiskCache::open(&options(dir.path())).unwrap());
        Self { dir, runtime, cache }
    }

    /// As the next process finds it.
    fn again(&mut self) {
        self.settle();
        self.cache = None;
        self.cache = Some(DiskCache::open(&options(self.dir.path())).unwrap());
    }

    fn settle(&self) {
        self.cache.as_ref().unwrap().settle();
    }

    fn of(&self, attr: &Attr) -> Contents {
        mounted(self.cache.clone(), &self.runtime).of(attr).unwrap()
    }

    fn keep(&self, attr: &Attr, bytes: &[u8]) {
        self.of(attr).keep(0, &Bytes::copy_from_slice(bytes));
        self.settle();
    }

    fn read(&self, attr: &Attr) -> Option<Bytes> {
        self.runtime.block_on(self.of(attr).whole())
    }

    fn files(&self, end: &str) -> Vec<PathBuf> {
        let all = fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = all.filter(|path| path.extension().unwrap() == end).collect();
        files.sort();
        files
    }

    /// What it takes on disk.
    fn taken(&self) -> u64 {
        self.files("data").iter().map(|path| fs::metadata(path).unwrap().size()).sum()
    }
}

fn attr(file: u64, size: usize) -> Attr {
    let qid = Qid { kind: FileKind::File, version: 5, path: file };
    Attr { qid, mode: libc::S_IFREG | 0o644, size: size as u64, ..Attr::default() }
}

fn bytes(seed: u64, size: usize) -> Vec<u8> {
    (0..size as u64).map(|n| (((n + seed * 31) * 0x9e37_79b9) >> 16) as u8).collect()
}

#[test]
fn what_is_kept_is_found_by_the_next_process_and_only_in_its_version() {
    let mut kept = Kept::new();
    for (file, size) in [(1, 100), (2, UNIT as usize), (3, 3 * UNIT as usize + 7)] {
        kept.keep(&attr(file, size), &bytes(file, size));
    }
    for _ in 0..3 {
        for (file, size) in [(1, 100), (2, UNIT as usize), (3, 3 * UNIT as usize + 7)] {
            let there = attr(file, size);
            assert_eq!(kept.read(&there).unwrap(), bytes(file, size));
            let later = Time { sec: 1, nsec: 0 };
            assert_eq!(kept.read(&Attr { ctime: later, ..there }), None);
            assert_eq!(kept.read(&Attr { mtime: later, ..there }), None);
            assert_eq!(kept.read(&Attr { size: there.size - 1, ..there }), None);
            assert_eq!(kept.read(&Attr { qid: Qid { version: 6, ..there.qid }, ..there }), None);
            assert_eq!(kept.read(&attr(file + 10, size)), None);
        }
        kept.again();
    }
    let other = DiskCache::open(&DiskOptions { key: [4; 32], ..options(kept.dir.path()) }).unwrap();
    assert_eq!(other.store.index.len(), 0, "another's key finds nothing");
}

#[test]
fn what_is_anothers_is_apart() {
    let mut kept = Kept::new();
    kept.keep(&attr(1, 100), &bytes(1, 100));
    kept.cache = Some(kept.cache.take().unwrap().apart(b"another"));
    assert_eq!(kept.read(&attr(1, 100)), None);
}

#[test]
fn what_is_the_same_in_two_files_is_kept_once() {
    let mut kept = Kept::new();
    let size = 2 * UNIT as usize;
    (0..20).for_each(|file| kept.keep(&attr(file, size), &bytes(9, size)));
    assert_eq!(kept.taken(), size as u64);
    kept.again();
    assert!((0..20).all(|file| kept.read(&attr(file, size)).unwrap() == bytes(9, size)));
}

#[test]
fn what_was_used_least_recently_goes_and_no_more_is_kept_than_was_allowed() {
    let mut kept = Kept::new();
    let size = UNIT as usize;
    kept.keep(&attr(0, size), &bytes(0, size));
    for file in 1..200 {
        kept.keep(&attr(file, size), &bytes(file, size));
        assert!(kept.read(&attr(0, size)).is_some(), "it is used all the time");
        assert!(kept.taken() <= ROOM);
    }
    assert!(kept.read(&attr(9, size)).is_none() && kept.read(&attr(199, size)).is_some());
    // Small ones count for more than their bytes.
    (2000..3000).for_each(|file| kept.keep(&attr(file, 10), &bytes(file, 10)));
    assert!(kept.cache.as_ref().unwrap().store.index.len() <= (ROOM / (16 << 10)) as usize);
    kept.again();
    assert!(kept.read(&attr(2999, 10)).is_some());
    // The next process may be allowed less.
    kept.cache = None;
    let less = DiskOptions { bytes: 1 << 20, ..options(kept.dir.path()) };
    kept.cache = Some(DiskCache::open(&less).unwrap());
    assert!(kept.taken() <= 1 << 20);
}

#[test]
fn one_file_does_not_push_out_all_others_and_what_changes_is_not_kept() {
    let kept = Kept::new();
    let disk = mounted(kept.cache.clone(), &kept.runtime);
    assert!(disk.of(&attr(1, ROOM as usize / 8)).is_some());
    assert!(disk.of(&attr(1, ROOM as usize / 8 + 1)).is_none());
    assert!(disk.of(&attr(1, 0)).is_none());
    let now = Time::now();
    let mut young = options(kept.dir.path());
    young.settled = Duration::from_secs(60);
    let disk = mounted(Some(DiskCache::open(&young).unwrap()), &kept.runtime);
    assert!(disk.of(&Attr { ctime: now, ..attr(1, 10) }).is_none());
    assert!(disk.of(&Attr { ctime: Time { sec: now.sec - 61, ..now }, ..attr(1, 10) }).is_some());
    let unversioned = Attr { qid: Qid { version: 0, ..attr(1, 10).qid }, ..attr(1, 10) };
    assert!(disk.of(&unversioned).is_none());
}

#[test]
fn a_directory_that_is_open_to_others_is_refused() {
    let kept = Kept::new();
    fs::set_permissions(kept.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(DiskCache::open(&options(kept.dir.path())).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn what_another_process_removes_is_missed_and_kept_anew() {
    let kept = Kept::new();
    kept.keep(&attr(1, 100), &bytes(1, 100));
    kept.files("data").iter().chain(&kept.files("index")).for_each(|path| fs::remove_file(path).unwrap());
    assert_eq!(kept.read(&attr(1, 100)), None);
    kept.keep(&attr(1, 100), &bytes(1, 100));
    assert_eq!(kept.read(&attr(1, 100)).unwrap(), bytes(1, 100));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is garbled, cut or lost: what is given out is what was kept.
    #[test]
    fn nothing_but_what_was_kept_is_given_out(
        harm in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6)
    ) {
        let mut kept = Kept::new();
        let sizes: Vec<usize> = (0..20).map(|file| 1 + file * 9_001 % 150_000).collect();
        for (file, size) in sizes.iter().enumerate() {
            kept.keep(&attr(file as u64, *size), &bytes(file as u64, *size));
        }
        for (in_index, at, byte, how) in harm {
            let Some(path) = kept.files(if in_index { "index" } else { "data" }).pop() else { break };
            let mut whole = fs::read(&path).unwrap();
            if whole.is_empty() {
                break;
            }
            let at = at.index(whole.len());
            match how {
                0 => whole[at] ^= byte | 1,
                1 => whole.truncate(at),
                _ => whole.extend_from_slice(&vec![byte; at % 1000]),
            }
            fs::write(&path, whole).unwrap();
        }
        for _ in 0..2 {
            for (file, size) in sizes.iter().enumerate() {
                let read = kept.read(&attr(file as u64, *size));
                prop_assert!(read.is_none_or(|read| read == bytes(file as u64, *size)));
            }
            kept.again();
        }
        kept.keep(&attr(100, 70_000), &bytes(100, 70_000));
        kept.again();
        prop_assert_eq!(kept.read(&attr(100, 70_000)).unwrap(), bytes(100, 70_000));
    }
}
