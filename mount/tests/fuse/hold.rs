//! Small files that are made, written and closed: how little is asked for that, and that nobody misses what is held
//! back.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;
use std::time::SystemTime;

use super::*;

/// An empty folder, the tree of it, and what shows it so that it counts what it asks.
fn shown() -> (TempDir, TreeRef, Client, Shown) {
    let folder = tempfile::tempdir().unwrap();
    let tree: TreeRef = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let (client, shown) = Shown::counted(tree.clone());
    (folder, tree, client, shown)
}

/// How many files are made where it is counted what that costs.
const COUNT: u64 = 100;

/// How many round trips it takes to `make` files `f0` and so on, which `are` then so.
fn trips(make: impl Fn(File), are: impl Fn(&Path)) -> u64 {
    let (folder, _tree, client, shown) = shown();
    // By then the directory is known, so that nobody asks for names that are not there.
    until("the directory was listed", || {
        let before = client.counts().requests;
        assert!(!shown.path("missing").exists());
        client.counts().requests == before
    });
    let before = client.counts().round_trips;
    for n in 0..COUNT {
        make(File::create_new(shown.path(&format!("f{n}"))).unwrap());
    }
    let asked = client.counts().round_trips - before;
    (0..COUNT).for_each(|n| are(&folder.path().join(format!("f{n}"))));
    asked
}

#[test]
fn a_small_file_is_made_written_and_closed_in_two_round_trips() {
    let make = |mut file: File| {
        file.write_all(b"some ").unwrap();
        file.write_all(b"text").unwrap();
    };
    let asked = trips(make, |path| assert_eq!(fs::read(path).unwrap(), b"some text"));
    assert!(asked <= 2 * COUNT + COUNT / 10, "{asked} round trips");
}

/// Gives `file` what an archive says of it.
fn like_an_archive(file: &File, mode: u32) {
    let meta = file.metadata().unwrap();
    file.set_times(FileTimes::new().set_modified(LONG_AGO).set_accessed(LONG_AGO)).unwrap();
    std::os::unix::fs::fchown(file, Some(meta.uid()), Some(meta.gid())).unwrap();
    file.set_permissions(Permissions::from_mode(mode)).unwrap();
}

const LONG_AGO: SystemTime = SystemTime::UNIX_EPOCH;

/// Permissions and modification time.
fn said(path: &Path) -> (u32, SystemTime) {
    let meta = path.metadata().unwrap();
    (meta.mode() & 0o7777, meta.modified().unwrap())
}

#[test]
fn what_an_archive_says_of_a_file_costs_one_more_round_trip() {
    let make = |mut file: File| {
        file.set_times(FileTimes::new().set_modified(LONG_AGO + Duration::from_secs(1))).unwrap();
        file.write_all(b"some text").unwrap();
        file.set_times(FileTimes::new().set_modified(LONG_AGO)).unwrap();
        file.set_permissions(PermissionsExt::from_mode(0o754)).unwrap();
    };
    let are =
        |path: &Path| assert_eq!((fs::read(path).unwrap(), said(path)), (b"some text".to_vec(), (0o754, LONG_AGO)));
    let asked = trips(make, are);
    assert!(asked <= 3 * COUNT + COUNT / 10, "{asked} round trips");
}

#[test]
fn what_is_set_of_a_new_file_is_seen_by_whoever_looks_in_the_order_in_which_it_was_done() {
    let (folder, tree, _client, shown) = shown();
    let other = Shown::far(tree);
    for n in 0..21 {
        let name = format!("f{n}");
        let (mine, there) = (shown.path(&name), folder.path().join(&name));
        let mut file = File::create_new(&mine).unwrap();
        file.write_all(b"text").unwrap();
        like_an_archive(&file, 0o754);
        match n % 7 {
            0 => assert_eq!(said(&mine), (0o754, LONG_AGO)),
            1 => assert_eq!(said(&other.path(&name)), (0o754, LONG_AGO)),
            2 => {
                let list = Command::new("ls").args(["-l", "--time-style=+%s"]).arg(&*shown).output().unwrap();
                let lines = String::from_utf8_lossy(&list.stdout).into_owned();
                let line = lines.lines().find(|line| line.ends_with(&format!(" {name}"))).unwrap();
                assert!(line.starts_with("-rwxr-xr--") && line.contains(" 4 0 "), "{line}");
            }
            // It moves, with what is held of it.
            3 => {
                fs::rename(&mine, shown.path("moved")).unwrap();
                fs::write(&mine, "another").unwrap();
                drop(file);
                assert_eq!(said(&folder.path().join("moved")), (0o754, LONG_AGO));
                assert_ne!(said(&there), (0o754, LONG_AGO));
                continue;
            }
            // A write makes it younger; what it may be stays.
            4 => {
                file.write_all(b" and more").unwrap();
                drop(file);
                let (mode, time) = said(&there);
                assert!(mode == 0o754 && time > LONG_AGO, "{time:?}");
                assert_eq!(fs::read(&there).unwrap(), b"text and more");
                continue;
            }
            5 => {
                file.sync_all().unwrap();
                assert_eq!(said(&there), (0o754, LONG_AGO));
            }
            // Nobody but the server's own processes sees what is held for a moment; and those not for long.
            _ => until("the server has it", || said(&there) == (0o754, LONG_AGO)),
        }
        drop(file);
        assert_eq!(said(&there), (0o754, LONG_AGO), "round {n}");
        assert_eq!(said(&mine), (0o754, LONG_AGO), "round {n}");
    }
}

#[test]
fn what_takes_rights_away_is_asked_at_once() {
    let (folder, _tree, _client, shown) = shown();
    let mut file = File::create_new(shown.path("f")).unwrap();
    file.set_permissions(Permissions::from_mode(0o755)).unwrap();
    file.write_all(b"text").unwrap();
    file.set_permissions(Permissions::from_mode(0o600)).unwrap();
    // It is looked at only, for which nothing is written out.
    assert_eq!(folder.path().join("f").metadata().unwrap().mode() & 0o7777, 0o600);
}

#[test]
fn a_new_file_is_given_away_and_back() {
    assert!(rustix::process::geteuid().is_root(), "this test gives a file to another user: run it as root");
    let (folder, _tree, _client, shown) = shown();
    for (name, second) in [("owner", 0o644), ("setuid", 0o6755)] {
        let mut file = File::create_new(shown.path(name)).unwrap();
        file.write_all(b"text").unwrap();
        std::os::unix::fs::fchown(&file, Some(2), Some(1)).unwrap();
        file.set_permissions(Permissions::from_mode(second)).unwrap();
        file.set_times(FileTimes::new().set_modified(LONG_AGO)).unwrap();
        std::os::unix::fs::fchown(&file, Some(0), Some(0)).unwrap();
        drop(file);
        let meta = folder.path().join(name).metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (0, 0, second & 0o777), "{name}");
    }
}

#[test]
fn what_is_held_back_is_seen_by_whoever_looks() {
    held_back_is_seen(|path| File::create_new(path));
}

#[test]
fn what_is_held_back_of_a_file_that_was_there_is_seen_too() {
    held_back_is_seen(|path| {
        fs::write(path, "before, and longer than what follows")?;
        File::create(path)
    });
}

fn held_back_is_seen(open: impl Fn(&Path) -> std::io::Result<File>) {
    let (folder, tree, _client, shown) = shown();
    let other = Shown::far(tree);
    for n in 0..30 {
        let name = format!("f{n}");
        let mut file = open(&shown.path(&name)).unwrap();
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

#[test]
fn many_parts_of_a_file_are_under_way_and_each_is_where_it_belongs() {
    const PART: usize = 300_000;
    let (folder, tree, client, shown) = shown();
    let other = Shown::far(tree);
    let part = |n: usize| [n as u8; PART];
    let place = |n: usize| (n * PART) as u64;
    let path = shown.path("f");
    fs::write(&path, "old").unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let before = client.counts().requests;
    for n in 0..40 {
        file.write_all_at(&part(n), place(n)).unwrap();
        // Here and there something is asked about it, or written elsewhere in it, by who sees what was written so far.
        match n {
            10 => assert_eq!(file.metadata().unwrap().len(), place(11)),
            20 => file.write_all_at(&part(100), place(3)).unwrap(),
            25 => {
                let mut read = vec![0; PART];
                file.read_exact_at(&mut read, place(24)).unwrap();
                assert_eq!(read, part(24));
            }
            30 => assert_eq!(fs::read(other.path("f")).unwrap().len() as u64, place(31)),
            _ => {}
        }
    }
    assert!(client.counts().requests > before);
    drop(file);
    let text = fs::read(folder.path().join("f")).unwrap();
    assert_eq!(text.len() as u64, place(40));
    for (n, bytes) in text.chunks(PART).enumerate() {
        assert!(bytes == part(if n == 3 { 100 } else { n }), "part {n}");
    }
}

#[test]
fn two_who_write_to_different_places_of_a_file_both_get_on() {
    const PART: usize = 64 << 10;
    let (folder, _tree, _client, shown) = shown();
    let path = shown.path("f");
    let file = File::create_new(&path).unwrap();
    std::thread::scope(|threads| {
        for who in 0..2_usize {
            let file = &file;
            threads.spawn(move || {
                for n in 0..100 {
                    file.write_all_at(&[1 + who as u8; PART], ((who * 100 + n) * PART) as u64).unwrap();
                }
            });
        }
    });
    drop(file);
    let text = fs::read(folder.path().join("f")).unwrap();
    assert_eq!(text.len(), 200 * PART);
    assert!(text.chunks(100 * PART).zip(1..).all(|(bytes, who)| bytes.iter().all(|byte| *byte == who)));
}

#[test]
fn what_is_written_again_and_again_is_there_soon_after_the_last_time() {
    let (folder, _tree, _client, shown) = shown();
    let mut log = File::create_new(shown.path("log")).unwrap();
    for _ in 0..100 {
        log.write_all(b"a line\n").unwrap();
        // As a program writes that has something to do in between.
        std::thread::sleep(Duration::from_millis(20));
    }
    until("the server has it all", || folder.path().join("log").metadata().unwrap().len() == 700);
}

#[test]
fn what_was_written_outlives_the_mount() {
    let (folder, _tree, _client, mut shown) = shown();
    let (mut small, large) =
        (File::create_new(shown.path("small")).unwrap(), File::create_new(shown.path("large")).unwrap());
    small.write_all(b"text").unwrap();
    for n in 0..6 {
        large.write_all_at(&[n; 1 << 20], u64::from(n) << 20).unwrap();
    }
    shown.mount.take().unwrap().unmount().unwrap();
    // Looked at only, since to open it would ask for what is held.
    let length = |name: &str| folder.path().join(name).metadata().unwrap().len();
    assert_eq!((length("small"), length("large")), (4, 6 << 20));
    assert_eq!(fs::read(folder.path().join("small")).unwrap(), b"text");
    let text = fs::read(folder.path().join("large")).unwrap();
    assert!(text.len() == 6 << 20 && text.chunks(1 << 20).zip(0..).all(|(part, n)| part.iter().all(|byte| *byte == n)));
}
