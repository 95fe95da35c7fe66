//! What this machine has, too, is not fetched; and what is read is what the tree holds in any case.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

use mount::TwinOptions;
use rustix::fs::{CWD, FileType, mknodat};

use super::*;

/// What is compared at a time, and a file of a little more than one.
const PART: usize = 16 << 20;
const LARGE: usize = PART + 3_000_000;

/// A server's folder, and one of this machine.
struct Both {
    theirs: TempDir,
    mine: TempDir,
    tree: TreeRef,
}

impl Both {
    /// With the file `f` in a folder of each.
    fn with(theirs: &[u8], mine: &[u8]) -> Self {
        let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tree = Disk::open(folders.0.path(), DiskOptions::new([7; 32])).unwrap();
        let both = Self { theirs: folders.0, mine: folders.1, tree };
        for (folder, bytes) in [(&both.theirs, theirs), (&both.mine, mine)] {
            fs::create_dir(folder.path().join("lib")).unwrap();
            fs::write(folder.path().join("lib/f"), bytes).unwrap();
        }
        both
    }

    fn mount(&self) -> (Client, Shown) {
        let twins = Some(TwinOptions { dir: self.mine.path().into(), settled: Duration::ZERO });
        Shown::counted_with(self.tree.clone(), Options { twins, ..Options::default() })
    }

    /// Reads the file, which must be theirs, in a fresh mount. Gives how many bytes were received for that.
    fn received(&self) -> usize {
        let (client, shown) = self.mount();
        assert!(fs::read(shown.path("lib/f")).unwrap() == fs::read(self.theirs.path().join("lib/f")).unwrap());
        client.counts().received as usize
    }
}

fn bytes(size: usize) -> Vec<u8> {
    (0..size as u64).map(|n| ((n * n) >> 8) as u8).collect()
}

fn changed(at: usize) -> Vec<u8> {
    let mut bytes = bytes(LARGE);
    bytes[at] ^= 1;
    bytes
}

#[test]
fn what_both_have_is_not_fetched() {
    let both = Both::with(&bytes(LARGE), &bytes(LARGE));
    let received = both.received();
    assert!(received < 200_000, "{received} bytes");
}

#[test]
fn what_differs_is_fetched_and_only_that_part() {
    let (whole, first) = (bytes(LARGE), Both::with(&changed(PART - 1), &bytes(LARGE)).received());
    assert!(first > LARGE, "{first} bytes of the first part, and of the second that was not asked about");
    let last = Both::with(&changed(LARGE - 1), &whole).received();
    assert!(last > LARGE - PART && last < LARGE / 2, "{last} bytes of the last part");
    let shorter = Both::with(&whole, &whole[1..]).received();
    assert!(shorter > LARGE, "{shorter} bytes, which have another length");
}

#[test]
fn only_a_plain_file_that_everybody_may_read_is_looked_at() {
    let both = Both::with(&bytes(LARGE), &bytes(LARGE));
    let path = both.mine.path().join("lib/f");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    assert!(both.received() > LARGE, "others may not read it");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    assert!(both.received() < LARGE / 2);
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(&path, elsewhere.path().join("f")).unwrap();
    symlink(elsewhere.path().join("f"), &path).unwrap();
    assert!(both.received() > LARGE, "it is elsewhere");
    fs::remove_file(&path).unwrap();
    mknodat(CWD, &path, FileType::Fifo, 0o644.into(), 0).unwrap();
    assert!(both.received() > LARGE, "it is a pipe");
}

#[test]
fn what_is_changed_on_either_side_is_never_taken_for_the_same() {
    const AT: u64 = 5_000_000;
    let both = Both::with(&bytes(LARGE), &bytes(LARGE));
    let (_client, shown) = both.mount();
    let file = File::open(shown.path("lib/f")).unwrap();
    let read = |at: u64| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes
    };
    let was = |at: usize| bytes(LARGE)[at..at + 4].to_vec();
    assert_eq!(read(1_000_000), *was(1_000_000));
    // Mine, after it was found to be the same.
    File::options().write(true).open(both.mine.path().join("lib/f")).unwrap().write_all_at(b"mine", AT).unwrap();
    assert_eq!(read(AT), *was(AT as usize));
    // Theirs.
    let their = File::options().write(true).open(both.theirs.path().join("lib/f")).unwrap();
    their.write_all_at(b"news", 2 * AT).unwrap();
    until("the change is seen", || &read(2 * AT) == b"news");
}
