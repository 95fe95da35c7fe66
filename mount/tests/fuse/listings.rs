//! Directories that were listed answer for their names, under a lease: what that saves, and that nobody sees what is
//! old.
//!
//! The kernel keeps nothing here, so that each question reaches the mount.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::Duration;

use fileserver::{LeaseOptions, Leases};

use super::*;

const COUNT: usize = 300;

/// A folder with files and a directory, the tree of it, and what shows it so that it counts what it asks.
fn shown() -> (TempDir, TreeRef, Client, Shown) {
    shown_with(COUNT, nothing_kept())
}

fn shown_with(count: usize, options: Options) -> (TempDir, TreeRef, Client, Shown) {
    let folder = tempfile::tempdir().unwrap();
    (0..count).for_each(|n| fs::write(folder.path().join(name(n)), "x").unwrap());
    let tree: TreeRef = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let (client, shown) = Shown::counted_with(tree.clone(), options);
    (folder, tree, client, shown)
}

fn nothing_kept() -> Options {
    Options { ttl: Duration::ZERO, ..Options::default() }
}

fn name(n: usize) -> String {
    format!("f{n:04}")
}

/// Looks at each, and at as many names that are not there.
fn look(shown: &Shown) {
    for n in 0..COUNT {
        assert_eq!(shown.path(&name(n)).metadata().unwrap().len(), 1);
        assert!(!shown.path(&format!("missing{n}")).exists());
    }
}

#[test]
fn what_was_listed_is_not_asked_for() {
    let (_folder, _tree, client, shown) = shown();
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), COUNT);
    // What the program let go of is known once the kernel has told so.
    until("it was listed", || {
        let before = client.counts().requests;
        assert!(!shown.path("missing").exists());
        client.counts().requests == before
    });
    let before = client.counts().requests;
    look(&shown);
    // The root itself is asked about by the kernel.
    assert!(client.counts().requests - before < 2 * COUNT as u64 / 10, "{}", client.counts().requests - before);
}

#[test]
fn a_directory_in_which_names_are_looked_up_is_listed_once() {
    let (_folder, _tree, client, shown) = shown();
    let before = client.counts().requests;
    look(&shown);
    let asked = client.counts().requests - before;
    // Those that come while it is being listed are asked about each: of 600, a part.
    assert!(asked < COUNT as u64, "{asked} requests");
}

#[test]
fn what_another_mount_changes_is_seen_at_once() {
    let (_folder, tree, client, shown) = shown();
    let other = Shown::far(tree);
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), COUNT);
    for n in 0..50 {
        look_a_few(&shown);
        let (theirs, ours) = (other.path(&name(n)), shown.path(&name(n)));
        match n % 5 {
            0 => {
                fs::set_permissions(&theirs, fs::Permissions::from_mode(0o600)).unwrap();
                assert_eq!(ours.metadata().unwrap().mode() & 0o777, 0o600);
            }
            1 => {
                fs::write(&theirs, "longer").unwrap();
                assert_eq!(ours.metadata().unwrap().len(), 6);
            }
            2 => {
                fs::remove_file(&theirs).unwrap();
                assert!(!ours.exists());
            }
            3 => {
                fs::rename(&theirs, other.path(&format!("moved{n}"))).unwrap();
                assert!(!ours.exists() && shown.path(&format!("moved{n}")).exists());
            }
            _ => {
                fs::write(other.path(&format!("new{n}")), "new").unwrap();
                assert_eq!(fs::read_to_string(shown.path(&format!("new{n}"))).unwrap(), "new");
            }
        }
    }
    assert!(client.counts().requests > 0);
}

fn look_a_few(shown: &Shown) {
    (100..120).for_each(|n| assert!(shown.path(&name(n)).exists()));
    (0..5).for_each(|n| assert!(!shown.path(&format!("missing{n}")).exists()));
}

#[test]
fn what_a_local_process_of_the_server_changes_is_seen() {
    let (folder, _tree, _client, shown) = shown();
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), COUNT);
    look_a_few(&shown);
    let run = |script: &str| {
        let done = Command::new("sh").args(["-c", script]).current_dir(folder.path()).status().unwrap();
        assert!(done.success());
    };
    run("chmod 600 f0100");
    until("the mode is seen", || shown.path("f0100").metadata().unwrap().mode() & 0o777 == 0o600);
    look_a_few(&shown);
    run("echo longer >f0101");
    until("the length is seen", || shown.path("f0101").metadata().unwrap().len() == 7);
    look_a_few(&shown);
    run("touch missing0");
    until("the new name is seen", || shown.path("missing0").exists());
    run("rm f0102; mv f0103 missing1");
    until("the names are seen", || !shown.path("f0102").exists() && shown.path("missing1").exists());
    assert!(!shown.path("f0103").exists());
}

#[test]
fn what_is_changed_here_is_seen_here() {
    let (_folder, _tree, _client, shown) = shown();
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), COUNT);
    look_a_few(&shown);
    for n in 0..50 {
        let path = shown.path(&name(n));
        assert!(path.exists());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o640);
        fs::write(&path, "written").unwrap();
        assert_eq!(path.metadata().unwrap().len(), 7);
        fs::hard_link(&path, shown.path("link")).unwrap();
        assert_eq!(path.metadata().unwrap().nlink(), 2);
        fs::remove_file(&path).unwrap();
        assert!(!path.exists());
        assert_eq!(shown.path("link").metadata().unwrap().nlink(), 1);
        fs::rename(shown.path("link"), &path).unwrap();
        assert!(path.exists() && !shown.path("link").exists());
        fs::create_dir(shown.path("d")).unwrap();
        fs::write(shown.path("d/inner"), "x").unwrap();
        assert!(shown.path("d/inner").exists());
        fs::remove_dir_all(shown.path("d")).unwrap();
        assert!(!shown.path("d").exists());
    }
    // A listing that began before a change ends after it.
    let mut listing = fs::read_dir(&*shown).unwrap();
    listing.next().unwrap().unwrap();
    fs::write(shown.path("made"), "x").unwrap();
    fs::remove_file(shown.path(&name(200))).unwrap();
    fs::write(shown.path(&name(201)), "longer").unwrap();
    assert!(listing.count() > 200);
    assert!(shown.path("made").exists() && !shown.path(&name(200)).exists());
    assert_eq!(shown.path(&name(201)).metadata().unwrap().len(), 6);
}

#[test]
fn what_another_is_writing_is_asked_for() {
    let (_folder, tree, _client, shown) = shown();
    let other = Shown::far(tree);
    let mut log = fs::File::options().append(true).open(other.path(&name(7))).unwrap();
    for round in 1..20 {
        let list = Command::new("ls").arg("-l").arg(&*shown).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&list.stdout).lines().count(), COUNT + 1);
        std::io::Write::write_all(&mut log, b"line\n").unwrap();
        assert_eq!(shown.path(&name(7)).metadata().unwrap().len(), 1 + 5 * round);
    }
}

#[test]
fn a_directory_that_is_being_read_holds_nobody_up() {
    let (_folder, tree, client, shown) = shown();
    let other = Shown::far(tree);
    let mut listing = fs::read_dir(&*shown).unwrap();
    listing.next().unwrap().unwrap();
    fs::write(other.path("made"), "x").unwrap();
    drop(listing);
    // Whoever keeps others waiting is granted nothing for a minute.
    look(&shown);
    let before = client.counts().requests;
    look(&shown);
    assert!(client.counts().requests - before < COUNT as u64 / 4, "{}", client.counts().requests - before);
    assert!(shown.path("made").exists());
}

#[test]
fn a_directorys_own_attributes_are_those_after_a_change_in_it() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("d")).unwrap();
    let shown = Shown::far(Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap());
    for n in 0..20 {
        assert_eq!(fs::read_dir(&*shown).unwrap().count(), 1);
        fs::create_dir(shown.path(&format!("d/{n}"))).unwrap();
        let (seen, real) = (shown.path("d").metadata().unwrap(), folder.path().join("d").metadata().unwrap());
        assert_eq!((seen.mtime_nsec(), seen.nlink()), (real.mtime_nsec(), real.nlink()), "round {n}");
    }
}

#[test]
fn extended_attributes_that_are_not_there_are_not_asked_for() {
    let (folder, tree, client, shown) = shown();
    let other = Shown::far(tree);
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), COUNT);
    let value = |path: &Path| {
        let mut room = [0; 16];
        rustix::fs::getxattr(path, "user.colour", &mut room).map(|length| room[..length].to_vec())
    };
    look(&shown);
    let before = client.counts().requests;
    for n in 0..COUNT {
        assert_eq!(value(&shown.path(&name(n))), Err(rustix::io::Errno::NODATA));
    }
    assert!(client.counts().requests - before < COUNT as u64 / 4, "{}", client.counts().requests - before);
    // Whether files have labels is asked once, and not of each.
    let label = rustix::fs::getxattr(shown.path(&name(0)), "security.selinux", &mut [0; 16]);
    assert_eq!(label, Err(rustix::io::Errno::OPNOTSUPP));
    let set = |path: &Path, to: &str| {
        rustix::fs::setxattr(path, "user.colour", to.as_bytes(), rustix::fs::XattrFlags::empty())
    };
    set(&shown.path(&name(1)), "ours").unwrap();
    assert_eq!(value(&shown.path(&name(1))).unwrap(), b"ours");
    set(&other.path(&name(2)), "theirs").unwrap();
    assert_eq!(value(&shown.path(&name(2))).unwrap(), b"theirs");
    let script =
        format!("import os; os.setxattr('{}', 'user.colour', b'local')", folder.path().join(name(3)).display());
    assert!(Command::new("python3").args(["-c", &script]).status().unwrap().success());
    until("the local one is seen", || value(&shown.path(&name(3))) == Ok(b"local".to_vec()));
    // And so it is when the directory is listed anew.
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), COUNT);
    look(&shown);
    let values = [1, 2, 3].map(|n| value(&shown.path(&name(n))).unwrap());
    assert_eq!(values, [b"ours".to_vec(), b"theirs".to_vec(), b"local".to_vec()]);
}

#[test]
fn a_long_listing_asks_for_the_directory_alone() {
    let (_folder, tree, ..) = shown();
    let (client, shown) = Shown::counted(tree);
    let before = client.counts().requests;
    let list = Command::new("ls").arg("-l").arg(&*shown).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&list.stdout).lines().count(), COUNT + 1);
    let asked = client.counts().requests - before;
    assert!(asked < COUNT as u64 / 10, "{asked} requests");
}

/// A tree of `count` directories with two files each, and what shows it.
fn tree(count: usize) -> (TempDir, Client, Shown) {
    let folder = tempfile::tempdir().unwrap();
    for n in 0..count {
        let dir = folder.path().join(name(n));
        fs::create_dir(&dir).unwrap();
        (0..2).for_each(|n| fs::write(dir.join(name(n)), "text").unwrap());
    }
    let tree: TreeRef = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let (client, shown) = Shown::counted_with(tree, Options::default());
    (folder, client, shown)
}

#[test]
fn a_directory_is_opened_and_listed_in_one_round_trip() {
    let (_folder, client, shown) = tree(1);
    let only = shown.path(&name(0));
    assert!(only.exists());
    let before = client.counts().round_trips;
    assert_eq!(fs::read_dir(&only).unwrap().count(), 2);
    assert_eq!(client.counts().round_trips - before, 1);
}

#[test]
fn what_is_made_in_a_directory_that_was_opened_is_listed() {
    let (_folder, _client, shown) = tree(1);
    let only = shown.path(&name(0));
    let entries = fs::read_dir(&only).unwrap();
    fs::write(only.join("new"), "").unwrap();
    assert_eq!(entries.count(), 3, "it was made before the first was asked for");
}

#[test]
fn a_directorys_own_attributes_are_those_after_anothers_change() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("d")).unwrap();
    let tree: TreeRef = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let (client, shown) = Shown::counted(tree.clone());
    let (other, ours) = (Shown::far(tree), shown.path("d"));
    let known = |links: usize| assert_eq!(fs::read_dir(&ours).unwrap().count(), links - 2);
    known(2);
    assert_eq!(ours.metadata().unwrap().nlink(), 2);
    let before = client.counts().requests;
    assert!(ours.metadata().is_ok());
    assert_eq!(client.counts().requests, before, "it was told when it was listed");
    fs::set_permissions(other.path("d"), fs::Permissions::from_mode(0o711)).unwrap();
    assert_eq!(ours.metadata().unwrap().mode() & 0o777, 0o711, "it is seen at once");
    for (n, links) in (2..8).enumerate() {
        known(links);
        let mode = 0o700 + n as u32 % 2;
        fs::set_permissions(other.path("d"), fs::Permissions::from_mode(mode)).unwrap();
        // A lease may not be had just after it was broken.
        until("it has the new mode", || ours.metadata().unwrap().mode() & 0o777 == mode);
        until("its links are known", || ours.metadata().unwrap().nlink() == links as u64);
        match n % 3 {
            0 => fs::create_dir(other.path("d").join(name(n))).unwrap(),
            1 => fs::create_dir(ours.join(name(n))).unwrap(),
            _ => fs::create_dir(folder.path().join("d").join(name(n))).unwrap(),
        }
        until("it has one more", || ours.metadata().unwrap().nlink() == links as u64 + 1);
    }
}

#[test]
fn what_another_makes_in_a_directory_that_was_opened_ahead_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    (0..30).for_each(|n| fs::create_dir_all(folder.path().join(name(n)).join("old")).unwrap());
    // Who does not give back in time is not waited for.
    let release = Duration::from_millis(100);
    let leases = Leases::new(LeaseOptions { release, ..LeaseOptions::default() });
    let options = DiskOptions { leases, ..DiskOptions::new([7; 32]) };
    let tree: TreeRef = Disk::open(folder.path(), options).unwrap();
    let (_client, shown) = Shown::counted(tree.clone());
    let other = Shown::far(tree);
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), 30);
    (0..3).for_each(|n| assert_eq!(fs::read_dir(shown.path(&name(n))).unwrap().count(), 1));
    for n in 4..12 {
        fs::create_dir(other.path(&name(n)).join("new")).unwrap();
        assert_eq!(fs::read_dir(shown.path(&name(n))).unwrap().count(), 2, "directory {n}");
    }
}

#[test]
fn what_is_changed_here_while_it_is_listed_is_told_as_it_is() {
    let (_folder, _tree, _client, shown) = shown_with(0, Options::default());
    let name = |n: usize| shown.path(&format!("{n:0200}"));
    for round in 0..3 {
        (0..300).for_each(|n| fs::write(name(n), "x").unwrap());
        fs::write(shown.path("over"), "longer").unwrap();
        let mut entries = fs::read_dir(&*shown).unwrap();
        let first = entries.next().unwrap().unwrap().path();
        // Some of these have not been listed yet.
        let changed: Vec<_> = (round * 20..round * 20 + 20).map(|n| n * 7 % 300).map(name).collect();
        let changed: Vec<_> = changed.into_iter().filter(|path| *path != first).collect();
        for (n, path) in changed.iter().enumerate() {
            match n % 3 {
                0 => fs::remove_file(path).unwrap(),
                1 => fs::write(path, "much longer").unwrap(),
                _ => {
                    fs::copy(shown.path("over"), shown.path("over2")).unwrap();
                    fs::rename(shown.path("over2"), path).unwrap();
                }
            }
        }
        entries.for_each(|entry| drop(entry.unwrap()));
        for (n, path) in changed.iter().enumerate() {
            match n % 3 {
                0 => assert!(!path.exists(), "{path:?}"),
                1 => assert_eq!(fs::read_to_string(path).unwrap(), "much longer"),
                _ => assert_eq!(
                    (path.metadata().unwrap().len(), fs::read_to_string(path).unwrap()),
                    (6, "longer".into())
                ),
            }
        }
    }
}
