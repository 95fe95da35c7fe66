//! What the kernel was told under a directory's lease it is told to forget, whatever became of the listing meanwhile.
//!
//! The kernel keeps everything here for longer than anybody waits, so that what is not taken back is seen for ever.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};

use super::*;

const COUNT: usize = 300;
const FOREVER: Duration = Duration::from_secs(3600);

/// A folder with files of long names, so that a program that has read the first entries has not been told the last; and
/// two mounts of it.
fn two() -> (TempDir, Shown, Shown) {
    let folder = tempfile::tempdir().unwrap();
    (0..COUNT).for_each(|n| fs::write(folder.path().join(format!("{n:0200}")), "old").unwrap());
    let tree: TreeRef = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let shown = Shown::counted_with(tree.clone(), Options { ttl: FOREVER, ..Options::default() }).1;
    (folder, shown, Shown::far(tree))
}

/// The first names of `dir` as it is listed.
fn first(dir: &mut fs::ReadDir) -> Vec<String> {
    dir.take(5).map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Changes a file in each way, in `other`, and sees that `shown` knows of it.
fn changes(shown: &Shown, other: &Shown, names: &[String]) {
    let [made_private, removed, replaced, longer, ..] = names else { panic!("too few names") };
    fs::set_permissions(other.path(made_private), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(other.path(removed)).unwrap();
    fs::write(other.path("new"), "another").unwrap();
    fs::rename(other.path("new"), other.path(replaced)).unwrap();
    fs::write(other.path(longer), "much longer").unwrap();
    let mode = |name: &str| shown.path(name).metadata().map(|meta| meta.permissions().mode() & 0o777);
    until("its mode is seen", || mode(made_private).unwrap() == 0o600);
    until("it is gone", || !shown.path(removed).exists());
    until("the other one is seen", || fs::read_to_string(shown.path(replaced)).unwrap() == "another");
    until("its length is seen", || shown.path(longer).metadata().unwrap().len() == 11);
}

#[test]
fn what_another_changes_while_a_directory_is_listed_is_seen() {
    let (_folder, shown, other) = two();
    let mut listing = fs::read_dir(&*shown).unwrap();
    let told = first(&mut listing);
    // The kernel knows the first ones, and the mount the last ones already.
    let all: Vec<_> = (0..COUNT).map(|n| format!("{n:0200}")).collect();
    changes(&shown, &other, &told);
    let rest: Vec<_> = listing.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(rest.len() > COUNT / 2 && rest.iter().all(|name| all.contains(name)));
    changes(&shown, &other, &rest[rest.len() - 10..]);
}

#[test]
fn what_was_told_by_a_listing_that_another_has_replaced_is_taken_back() {
    let (_folder, shown, other) = two();
    let told = first(&mut fs::read_dir(&*shown).unwrap());
    // Opened, and nothing is read: what this lists is less.
    drop(fs::read_dir(&*shown).unwrap());
    changes(&shown, &other, &told);
}

#[test]
fn what_was_fetched_and_is_open_is_covered_when_its_listing_was_replaced() {
    let (_folder, shown, other) = two();
    let told = first(&mut fs::read_dir(&*shown).unwrap());
    let files: Vec<_> = told.iter().map(|name| fs::File::open(shown.path(name)).unwrap()).collect();
    let text = |file: &fs::File| {
        let mut text = [0; 3];
        file.read_exact_at(&mut text, 0).unwrap();
        text
    };
    assert!(files.iter().all(|file| text(file) == *b"old"));
    drop(fs::read_dir(&*shown).unwrap());
    for (name, file) in told.iter().zip(&files) {
        fs::File::options().write(true).open(other.path(name)).unwrap().write_all_at(b"new", 0).unwrap();
        until("it is read through the descriptor", || text(file) == *b"new");
    }
}
