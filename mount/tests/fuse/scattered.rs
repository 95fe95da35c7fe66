//! Files that are read here and there: what is fetched around each read saves asking, and is never old.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{TryRecvError, channel};

use super::*;

const PAGE: usize = 4096;

/// A folder with a file of `pages` pages, `f`, each full of its number; and the tree of it.
fn file(pages: usize) -> (TempDir, TreeRef) {
    let folder = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..pages).flat_map(page).collect();
    fs::write(folder.path().join("f"), bytes).unwrap();
    let disk = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    (folder, disk)
}

fn page(n: usize) -> Vec<u8> {
    (n as u64).to_be_bytes().repeat(PAGE / 8)
}

/// The number that page `n` is full of.
fn read(file: &File, n: usize) -> usize {
    let mut bytes = [0; PAGE];
    file.read_exact_at(&mut bytes, (n * PAGE) as u64).unwrap();
    let (words, _) = bytes.as_chunks();
    assert!(words.iter().all(|word| *word == words[0]), "a page is of one time");
    u64::from_be_bytes(words[0]) as usize
}

/// Numbers below `most`, here and there.
fn scattered(most: usize) -> impl Iterator<Item = usize> {
    (1..u64::MAX).map(move |n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as usize % most)
}

#[test]
fn a_file_that_is_read_here_and_there_is_fetched_in_parts_and_none_of_it_twice() {
    const PAGES: usize = 4096;
    let (_folder, tree) = file(PAGES);
    let (client, shown) = Shown::counted(tree);
    let open = File::open(shown.path("f")).unwrap();
    let before = client.counts();
    for n in scattered(PAGES).take(2 * PAGES) {
        assert_eq!(read(&open, n), n);
    }
    let after = client.counts();
    let (asked, bytes) = (after.requests - before.requests, after.received - before.received);
    assert!(asked < PAGES as u64 / 4, "{asked} messages for {} reads", 2 * PAGES);
    assert!(bytes < (2 * PAGES * PAGE) as u64, "{bytes} bytes");
}

#[test]
fn a_few_reads_here_and_there_fetch_little() {
    const PAGES: usize = 16 << 10;
    let (_folder, tree) = file(PAGES);
    let (client, shown) = Shown::counted(tree);
    let open = File::open(shown.path("f")).unwrap();
    let before = client.counts().received;
    for n in [PAGES / 2, PAGES / 4, PAGES - 1] {
        assert_eq!(read(&open, n), n);
    }
    let bytes = client.counts().received - before;
    assert!(bytes < 100 << 10, "{bytes} bytes");
}

#[test]
fn what_was_fetched_around_a_read_is_old_once_it_is_changed_by_anybody() {
    const PAGES: usize = 2048;
    let (folder, tree) = file(PAGES);
    let (one, other) = (Shown::far(tree.clone()), Shown::far(tree));
    let mut places = scattered(PAGES);
    for round in 1..150 {
        let reader = File::open(one.path("f")).unwrap();
        places.by_ref().take(20).for_each(|n| _ = read(&reader, n));
        let (n, new) = (round * 37 % PAGES, PAGES * round);
        let write = |path: &Path| {
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(&page(new), (n * PAGE) as u64).unwrap();
        };
        match round % 3 {
            // Through the same mount, through another, by a process of the server.
            0 => write(&one.path("f")),
            1 => write(&other.path("f")),
            _ => write(&folder.path().join("f")),
        }
        until("what was written is seen by whoever has it open", || read(&reader, n) == new);
        let later = File::open(one.path("f")).unwrap();
        assert_eq!(read(&later, n), new, "round {round}");
        places.by_ref().take(20).for_each(|n| _ = read(&later, n));
        assert_eq!(read(&later, n), new, "round {round}, later");
    }
}

#[test]
fn what_was_fetched_around_a_read_does_not_undo_what_is_written_meanwhile() {
    const PAGES: usize = 1024;
    let (folder, tree) = file(PAGES);
    let shown = Shown::far(tree);
    let (path, (ends, ended)) = (shown.path("f"), channel::<()>());
    std::thread::scope(|threads| {
        // Dropped here, whatever happens.
        let _ends = ends;
        threads.spawn(move || {
            while ended.try_recv() == Err(TryRecvError::Empty) {
                let open = File::open(&path).unwrap();
                for n in scattered(PAGES).take(50) {
                    read(&open, n);
                }
            }
        });
        for round in 1..=20 {
            let open = File::options().read(true).write(true).open(shown.path("f")).unwrap();
            for n in (round..PAGES).step_by(20) {
                open.write_all_at(&page(n + round), (n * PAGE) as u64).unwrap();
                assert_eq!(read(&open, n), n + round, "what was written is there at once");
            }
        }
    });
    let disk = File::open(folder.path().join("f")).unwrap();
    for n in 1..PAGES {
        let round = (n - 1) % 20 + 1;
        assert_eq!(read(&disk, n), n + round, "page {n}");
    }
    fs::write(shown.path("f"), b"short").unwrap();
    assert_eq!(fs::read(folder.path().join("f")).unwrap(), b"short");
}

#[test]
fn many_who_read_one_file_here_and_there_at_once_all_get_on() {
    const PAGES: usize = 4096;
    let (_folder, tree) = file(PAGES);
    for _ in 0..5 {
        let shown = Shown::far(tree.clone());
        let path = shown.path("f");
        let (ended, ends) = channel();
        for who in 0..8 {
            let (path, ended) = (path.clone(), ended.clone());
            std::thread::spawn(move || {
                let open = File::open(path).unwrap();
                scattered(PAGES).skip(who * 7).take(400).for_each(|n| assert_eq!(read(&open, n), n));
                ended.send(()).unwrap();
            });
        }
        drop(ended);
        (0..8).for_each(|_| ends.recv_timeout(PATIENCE).expect("each gets what it reads"));
        // And whoever would change it does.
        File::options().write(true).open(&path).unwrap();
    }
}
