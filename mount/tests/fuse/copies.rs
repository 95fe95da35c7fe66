//! Copies within a tree that is elsewhere: its server makes them, and no byte of them comes here.

use std::fs::{self, File};
use std::os::fd::AsFd;

use super::*;

#[test]
fn copy_file_range_copies_at_the_server() {
    const SIZE: usize = 8 << 20;
    let folder = tempfile::tempdir().unwrap();
    let text: Vec<u8> = (0..SIZE).map(|n| (n / 511) as u8).collect();
    fs::write(folder.path().join("from"), &text).unwrap();
    let tree: TreeRef = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let (client, shown) = Shown::counted(tree);
    let (from, to) = (File::open(shown.path("from")).unwrap(), File::create(shown.path("to")).unwrap());
    let before = client.counts();
    let (mut at, mut to_at) = (0, 4096);
    while (at as usize) < SIZE {
        let left = SIZE - at as usize;
        let copied = rustix::fs::copy_file_range(from.as_fd(), Some(&mut at), to.as_fd(), Some(&mut to_at), left);
        assert_ne!(copied.unwrap(), 0);
    }
    let after = client.counts();
    let bytes = after.sent - before.sent + after.received - before.received;
    assert!(bytes < 16 << 10, "{bytes} bytes went over the wire");
    drop(to);
    let copied = fs::read(folder.path().join("to")).unwrap();
    assert!(copied[..4096].iter().all(|byte| *byte == 0) && copied[4096..] == text);
    assert!(fs::read(shown.path("to")).unwrap() == copied);
}
