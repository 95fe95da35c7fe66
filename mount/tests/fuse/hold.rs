//! Small files that are made, written and closed: how little is asked for that, and that nobody misses what is held back.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;

use super::*;

/// An empty folder, the tree of it, and what shows it so that it counts what it asks.
fn shown() -> (TempDir, TreeRef, Client, Shown) {
    let folder = tempfile::tempdir().unwrap();
    let tree: TreeRef = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let (client, shown) = Shown::counted(tree.clone());
    (folder, tree, client, shown)
}

#[test]
fn a_small_file_is_made_written_and_closed_in_two_round_trips() {
    const COUNT: u64 = 100;
    let (folder, _tree, client, shown) = shown();
    // By then the directory is known, so that nobody asks for names that are not there.
    until("the directory was listed", || {
        let before = client.counts().requests;
        assert!(!shown.path("missing").exists());
        client.counts().requests == before
    });
    let before = client.counts().round_trips;
    for n in 0..COUNT {
        let mut file = File::create_new(shown.path(&format!("f{n}"))).unwrap();
        file.write_all(b"some ").unwrap();
        file.write_all(b"text").unwrap();
    }
    let asked = client.counts().round_trips - before;
    assert!(asked <= 2 * COUNT + COUNT / 10, "{asked} round trips");
    for n in 0..COUNT {
        assert_eq!(fs::read(folder.path().join(format!("f{n}"))).unwrap(), b"some text");
    }
}

#[test]
fn what_is_held_back_is_seen_by_whoever_looks() {
    let (folder, tree, _client, shown) = shown();
    let other = Shown::far(tree);
    for n in 0..30 {
        let name = format!("f{n}");
        let mut file = File::create_new(shown.path(&name)).unwrap();
        file.write_all(b"first").unwrap();
        match n % 6 {
            0 => assert_eq!(fs::read(other.path(&name)).unwrap(), b"first"),
            1 => assert_eq!(other.path(&name).metadata().unwrap().len(), 5),
            2 => assert_eq!(fs::read(shown.path(&name)).unwrap(), b"first"),
            3 => assert_eq!(shown.path(&name).metadata().unwrap().len(), 5),
            4 => {
                // A process of the server, which the kernel has wait.
                let seen = Command::new("cat").arg(folder.path().join(&name)).output().unwrap();
                assert_eq!(seen.stdout, b"first");
            }
            _ => {
                let list = Command::new("ls").arg("-l").arg(&*shown).output().unwrap();
                assert!(String::from_utf8_lossy(&list.stdout).lines().any(|l| l.contains(" 5 ") && l.ends_with(&name)));
            }
        }
        file.write_all(b" second").unwrap();
        if n % 2 == 0 {
            assert_eq!(fs::read(other.path(&name)).unwrap(), b"first second");
        }
        file.write_all(b" third").unwrap();
        drop(file);
        assert_eq!(fs::read(other.path(&name)).unwrap(), b"first second third", "round {n}");
        assert_eq!(fs::read(folder.path().join(&name)).unwrap(), b"first second third");
    }
}

#[test]
fn what_stays_open_is_written_all_the_same() {
    let (folder, _tree, _client, shown) = shown();
    let mut file = File::create_new(shown.path("log")).unwrap();
    file.write_all(b"a line").unwrap();
    // It is looked at only, which breaks no lease.
    until("the server has it", || folder.path().join("log").metadata().unwrap().len() == 6);
}

#[test]
fn a_new_file_is_what_was_done_to_it_in_any_order() {
    let (folder, _tree, _client, shown) = shown();
    let path = shown.path("f");
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    file.write_all(&[b'a'; 3000]).unwrap();
    file.write_all_at(b"bb", 1000).unwrap();
    file.write_all_at(b"cc", 9000).unwrap();
    file.seek(std::io::SeekFrom::Start(0)).unwrap();
    let mut text = Vec::new();
    file.read_to_end(&mut text).unwrap();
    let mut expected = vec![b'a'; 3000];
    expected[1000..1002].copy_from_slice(b"bb");
    expected.resize(9000, 0);
    expected.extend(b"cc");
    assert_eq!(text, expected);
    file.set_len(2000).unwrap();
    file.write_all_at(b"d", 0).unwrap();
    file.sync_all().unwrap();
    expected.truncate(2000);
    expected[0] = b'd';
    assert_eq!(fs::read(folder.path().join("f")).unwrap(), expected);
    // More than is held at a time.
    file.write_all_at(&[b'e'; 200_000], 10).unwrap();
    file.write_all_at(b"f", 5).unwrap();
    fs::rename(&path, shown.path("g")).unwrap();
    fs::hard_link(shown.path("g"), shown.path("h")).unwrap();
    assert_eq!(shown.path("h").metadata().unwrap().nlink(), 2);
    fs::remove_file(shown.path("h")).unwrap();
    drop(file);
    let text = fs::read(folder.path().join("g")).unwrap();
    assert_eq!((text.len(), text[5], text[10], text[200_009]), (200_010, b'f', b'e', b'e'));
}
