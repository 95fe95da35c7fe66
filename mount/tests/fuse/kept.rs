//! Files that are opened again, or ahead, under a lease: what that saves, and that nobody sees what is old.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use super::*;

/// A folder on disk with `count` files of 4 KiB, of which it is the tree.
fn files(count: usize) -> (TempDir, TreeRef) {
    let folder = tempfile::tempdir().unwrap();
    (0..count).for_each(|n| fs::write(folder.path().join(name(n)), contents(n)).unwrap());
    let disk = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    (folder, disk)
}

fn name(n: usize) -> String {
    format!("f{n:04}")
}

fn contents(n: usize) -> Vec<u8> {
    format!("{n:04}").repeat(1024).into_bytes()
}

#[test]
fn files_opened_in_order_are_fetched_together() {
    const COUNT: usize = 500;
    let (_folder, tree) = files(COUNT);
    let (client, shown) = Shown::counted(tree);
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), COUNT);
    let before = client.counts();
    for n in 0..COUNT {
        assert_eq!(fs::read(shown.path(&name(n))).unwrap(), contents(n));
    }
    let after = client.counts();
    let (trips, bytes) = (after.round_trips - before.round_trips, after.received - before.received);
    // One for each file, sent many together; the first are asked for alone, and looked up.
    assert!(trips < COUNT as u64 * 5 / 4, "{trips} round trips");
    assert!(bytes < COUNT as u64 * 4096 * 5 / 4, "{bytes} bytes");
}

#[test]
fn a_file_of_a_directory_that_is_gone_through_costs_one_message_and_none_the_second_time() {
    const COUNT: usize = 500;
    let (_folder, tree) = files(COUNT);
    let (client, shown) = Shown::counted(tree);
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), COUNT);
    let mut before = client.counts().requests;
    for most in [COUNT * 5 / 4, COUNT / 10] {
        for n in 0..COUNT {
            assert_eq!(fs::read(shown.path(&name(n))).unwrap(), contents(n));
        }
        let asked = client.counts().requests - before;
        assert!(asked < most as u64, "{asked} messages");
        before += asked;
    }
}

#[test]
fn what_was_fetched_is_old_once_another_writes_whatever_it_is_called_by_then() {
    let (folder, tree) = files(40);
    let (shown, other) = (Shown::far(tree.clone()), Shown::far(tree));
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), 40);
    (0..10).for_each(|n| assert_eq!(fs::read(shown.path(&name(n))).unwrap(), contents(n)));
    let held: Vec<File> = (10..14).map(|n| File::open(shown.path(&name(n))).unwrap()).collect();
    fs::rename(shown.path(&name(10)), shown.path("mine")).unwrap();
    fs::rename(other.path(&name(11)), other.path("theirs")).unwrap();
    let write = |path: &Path| File::options().write(true).open(path).unwrap().write_all_at(b"new", 0).unwrap();
    write(&other.path("mine"));
    write(&other.path("theirs"));
    write(&other.path(&name(12)));
    write(&folder.path().join(name(13)));
    for (file, n) in held.iter().zip(10..) {
        until("what was written is seen", || {
            let mut start = [0; 3];
            file.read_exact_at(&mut start, 0).unwrap();
            start == *b"new"
        });
        assert_eq!(file.metadata().unwrap().len(), 4096, "{n}");
    }
    assert_eq!(fs::read(shown.path(&name(14))).unwrap(), contents(14));
}

#[test]
fn one_file_alone_is_all_that_is_fetched() {
    let (_folder, tree) = files(100);
    let (client, shown) = Shown::counted(tree);
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), 100);
    let before = client.counts().received;
    assert_eq!(fs::read(shown.path(&name(50))).unwrap(), contents(50));
    let bytes = client.counts().received - before;
    assert!(bytes < 2 * 4096, "{bytes} bytes");
}

#[test]
fn a_file_is_opened_and_read_again_without_asking() {
    let (_folder, tree) = files(1);
    let (client, shown) = Shown::counted(tree);
    fs::read(shown.path(&name(0))).unwrap();
    let before = client.counts().requests;
    for _ in 0..10 {
        assert_eq!(fs::read(shown.path(&name(0))).unwrap(), contents(0));
    }
    assert_eq!(client.counts().requests, before);
}

#[test]
fn where_there_are_few_leases_files_are_read_all_the_same() {
    let (folder, _) = files(300);
    let leases = fileserver::Leases::new(fileserver::LeaseOptions { most: 40, ..Default::default() });
    let tree = Disk::open(folder.path(), DiskOptions { leases, ..DiskOptions::new([7; 32]) }).unwrap();
    let (client, shown) = Shown::counted(tree);
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), 300);
    let before = client.counts();
    for n in 0..300 {
        assert_eq!(fs::read(shown.path(&name(n))).unwrap(), contents(n));
    }
    let bytes = client.counts().received - before.received;
    assert!(bytes < 2 * 300 * 4096, "{bytes} bytes");
}

#[test]
fn what_another_mount_writes_is_there_once_it_was_written() {
    let (_folder, tree) = files(1);
    let (one, other) = (Shown::far(tree.clone()), Shown::far(tree));
    let mut open = File::open(one.path(&name(0))).unwrap();
    for round in 0..200_usize {
        let mut text = String::new();
        open.rewind().unwrap();
        open.read_to_string(&mut text).unwrap();
        let new = round.to_string().repeat(1 + round % 7);
        fs::write(other.path(&name(0)), &new).unwrap();
        assert_eq!(fs::read_to_string(one.path(&name(0))).unwrap(), new, "round {round}");
        assert_eq!(one.path(&name(0)).metadata().unwrap().size(), new.len() as u64, "round {round}");
    }
}

#[test]
fn what_a_process_of_the_server_writes_is_seen() {
    let (folder, tree) = files(20);
    let shown = Shown::far(tree);
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), 20);
    // Some were read, and some were fetched ahead.
    (0..4).for_each(|n| assert_eq!(fs::read(shown.path(&name(n))).unwrap(), contents(n)));
    let open = File::open(shown.path(&name(1))).unwrap();
    for n in [1, 5] {
        File::options().write(true).open(folder.path().join(name(n))).unwrap().write_all(b"new").unwrap();
        until("the change is seen", || fs::read(shown.path(&name(n))).unwrap().starts_with(b"new"));
    }
    let mut start = [0; 4];
    until("it is seen by who has it open", || {
        open.read_exact_at(&mut start, 0).unwrap();
        start == *b"new1"
    });
}

#[test]
fn what_is_changed_here_is_what_is_read_here() {
    let (_folder, tree) = files(50);
    let (client, shown) = Shown::counted(tree);
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), 50);
    for n in 0..50 {
        assert_eq!(fs::read(shown.path(&name(n))).unwrap(), contents(n));
        // Ahead of the reader, and behind.
        for other in [n.saturating_sub(1), n + 1, n + 4] {
            if other < 50 {
                fs::write(shown.path(&name(other)), contents(other)).unwrap();
            }
        }
        fs::write(shown.path(&name(n)), b"read").unwrap();
        assert_eq!(fs::read(shown.path(&name(n))).unwrap(), b"read");
        fs::write(shown.path(&name(n)), contents(n)).unwrap();
    }
    // And moved.
    fs::rename(shown.path(&name(10)), shown.path(&name(12))).unwrap();
    for n in 0..50 {
        match fs::read(shown.path(&name(n))) {
            Err(err) => assert_eq!((n, err.kind()), (10, std::io::ErrorKind::NotFound)),
            Ok(read) => assert_eq!(read, contents(if n == 12 { 10 } else { n })),
        }
    }
    assert!(client.counts().requests > 0);
}

#[test]
fn a_file_that_was_fetched_ahead_is_removed_while_it_is_open() {
    let (folder, tree) = files(20);
    let shown = Shown::far(tree);
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), 20);
    (0..5).for_each(|n| assert_eq!(fs::read(shown.path(&name(n))).unwrap(), contents(n)));
    let (mine, theirs) = (File::open(shown.path(&name(5))).unwrap(), File::open(shown.path(&name(6))).unwrap());
    fs::remove_file(shown.path(&name(5))).unwrap();
    let gone = std::process::Command::new("rm").arg(folder.path().join(name(6))).status().unwrap();
    assert!(gone.success());
    until("it is gone", || !shown.path(&name(6)).exists());
    for (mut file, n) in [(mine, 5), (theirs, 6)] {
        let mut read = Vec::new();
        file.read_to_end(&mut read).unwrap();
        assert_eq!(read, contents(n));
        until("it has no name any more", || file.metadata().unwrap().nlink() == 0);
        if n == 5 {
            // What was removed here was opened before, and is asked and changed like any other.
            file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
            assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o640);
            file.lock().unwrap();
        }
    }
}

#[test]
fn what_is_kept_in_memory_is_no_more_than_was_allowed() {
    const COUNT: usize = 500;
    let (_folder, tree) = files(COUNT);
    let again = |cache| {
        let (client, shown) = Shown::counted_with(tree.clone(), Options { cache, ..Options::default() });
        let read_all = || (0..COUNT).for_each(|n| assert_eq!(fs::read(shown.path(&name(n))).unwrap(), contents(n)));
        assert_eq!(fs::read_dir(&*shown).unwrap().count(), COUNT);
        read_all();
        let before = client.counts().requests;
        read_all();
        client.counts().requests - before
    };
    let (little, much) = (again(1 << 20), again(256 << 20));
    assert!(little > COUNT as u64 / 4, "{little} messages where little is kept");
    assert!(much < COUNT as u64 / 10, "{much} messages where all is kept");
}
