//! A tree with a single writer, whose files the kernel opens and closes by itself.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use super::*;

/// A folder of this machine, and a mount that alone changes it.
fn single() -> (TempDir, Client, Shown) {
    let folder = tempfile::tempdir().unwrap();
    let tree = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let (client, shown) = Shown::counted_with(tree, Options { single_writer: true, ..Options::default() });
    (folder, client, shown)
}

fn edit(shown: &Shown) -> File {
    OpenOptions::new().read(true).write(true).open(shown.path("f")).unwrap()
}

#[test]
fn what_is_written_is_there_when_write_returns() {
    let (folder, _, shown) = single();
    let mut file = File::create(shown.path("f")).unwrap();
    file.write_all(b"one").unwrap();
    assert_eq!(fs::read(folder.path().join("f")).unwrap(), b"one");
    let mut more = OpenOptions::new().append(true).open(shown.path("f")).unwrap();
    more.write_all(b" two").unwrap();
    assert_eq!(fs::read(folder.path().join("f")).unwrap(), b"one two");
    assert_eq!(fs::read(shown.path("f")).unwrap(), b"one two");
}

#[test]
fn an_open_truncates() {
    let (folder, _, shown) = single();
    fs::write(shown.path("f"), "something long").unwrap();
    fs::write(shown.path("f"), "short").unwrap();
    assert_eq!(fs::read(folder.path().join("f")).unwrap(), b"short");
    drop(File::create(shown.path("f")).unwrap());
    assert_eq!(fs::metadata(folder.path().join("f")).unwrap().len(), 0);
    assert_eq!(fs::read(shown.path("f")).unwrap(), b"");
}

#[test]
fn a_file_that_lost_its_name_is_read_and_written_on() {
    let (folder, _, shown) = single();
    for replaces in [false, true] {
        fs::write(folder.path().join("f"), vec![b'x'; 1 << 20]).unwrap();
        let file = edit(&shown);
        if replaces {
            fs::write(shown.path("g"), "another").unwrap();
            fs::rename(shown.path("g"), shown.path("f")).unwrap();
        } else {
            fs::remove_file(shown.path("f")).unwrap();
        }
        let mut bytes = [0; 100];
        file.read_exact_at(&mut bytes, 700_000).unwrap();
        assert_eq!(bytes, [b'x'; 100]);
        file.write_all_at(b"yy", 900_000).unwrap();
        file.sync_all().unwrap();
        file.read_exact_at(&mut bytes, 899_999).unwrap();
        assert_eq!(&bytes[..4], b"xyyx");
    }
    assert_eq!(fs::read(shown.path("f")).unwrap(), b"another");
}

#[test]
fn a_file_that_may_not_be_written_is_written_by_whoever_made_it() {
    let (folder, _, shown) = single();
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(shown.path("f")).unwrap();
    file.write_all(b"once").unwrap();
    assert_eq!(fs::read(folder.path().join("f")).unwrap(), b"once");
    let again = OpenOptions::new().write(true).create_new(true).open(shown.path("f"));
    assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
}

/// How many descriptors of this process are files in `folder`.
fn descriptors(folder: &Path) -> usize {
    let all = fs::read_dir("/proc/self/fd").unwrap();
    let of_folder = |path: PathBuf| path.starts_with(folder);
    all.filter(|fd| fs::read_link(fd.as_ref().unwrap().path()).is_ok_and(of_folder)).count()
}

#[test]
fn what_is_not_asked_for_is_closed_and_opened_again() {
    let (folder, client, shown) = single();
    let before = descriptors(folder.path());
    fs::write(shown.path("f"), "one").unwrap();
    let mut file = edit(&shown);
    assert!(descriptors(folder.path()) > before);
    until("the file is closed", || descriptors(folder.path()) == before);
    assert_eq!(fs::read(shown.path("f")).unwrap(), b"one");
    let asked = client.counts().requests;
    let mut bytes = [0; 3];
    file.read_exact(&mut bytes).unwrap();
    assert_eq!((&bytes, client.counts().requests), (b"one", asked), "the kernel has it");
    file.write_all(b" two").unwrap();
    assert_eq!(fs::read(folder.path().join("f")).unwrap(), b"one two");
}

#[test]
fn locks_exclude_each_other_and_end_with_the_file() {
    let (_folder, _, shown) = single();
    fs::write(shown.path("f"), "").unwrap();
    let (one, two) = (edit(&shown), edit(&shown));
    one.lock().unwrap();
    assert!(matches!(two.try_lock(), Err(TryLockError::WouldBlock)));
    drop(one);
    two.try_lock().unwrap();
}
