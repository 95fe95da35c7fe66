//! Paths that a mount is told of beforehand are asked about together, and are then what they are.

use std::fs;
use std::io::ErrorKind::NotFound;
use std::os::unix::fs::symlink;

use p9::NameBuf;

use super::*;

fn path(text: &str) -> Vec<NameBuf> {
    text.split('/').map(|name| NameBuf::new(name).unwrap()).collect()
}

/// A tree, and a mount of it that was told of some of its paths and has heard of them.
fn told() -> (TempDir, TreeRef, Client, Shown) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("a/b/c")).unwrap();
    fs::write(folder.path().join("a/b/c/f"), "text").unwrap();
    fs::write(folder.path().join("a/b/other"), "").unwrap();
    symlink("b/c/f", folder.path().join("a/l")).unwrap();
    let tree: TreeRef = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let foretold = ["a/b/c/f", "a/l", "a/b/missing", "a/none/more"].map(path).to_vec();
    let (client, shown) = Shown::counted_with(tree.clone(), Options { foretold, ..Options::default() });
    assert!(fs::exists(shown.path("a")).unwrap());
    (folder, tree, client, shown)
}

#[test]
fn what_was_foretold_is_not_asked_about_again() {
    let (folder, _tree, client, shown) = told();
    let before = client.counts().requests;
    assert_eq!(fs::read(shown.path("a/b/c/f")).unwrap(), b"text");
    assert_eq!(fs::read_link(shown.path("a/l")).unwrap().to_str(), Some("b/c/f"));
    assert_eq!(fs::read(shown.path("a/l")).unwrap(), b"text");
    for missing in ["a/b/missing", "a/none", "a/none/more"] {
        assert!(!fs::exists(shown.path(missing)).unwrap(), "{missing}");
    }
    assert_eq!(client.counts().requests, before);
    assert!(fs::exists(shown.path("a/b/other")).unwrap(), "what was not foretold is there all the same");
    let listed = |at: &Path| fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    let (mut here, mut there) = (listed(&shown.path("a/b")), listed(&folder.path().join("a/b")));
    here.sort();
    there.sort();
    assert_eq!(here, there);
}

#[test]
fn what_was_foretold_is_old_once_anybody_has_changed_it() {
    let (folder, tree, _client, shown) = told();
    let other = Shown::far(tree);
    assert!(!fs::exists(shown.path("a/b/missing")).unwrap());
    fs::write(other.path("a/b/missing"), "made").unwrap();
    assert_eq!(fs::read(shown.path("a/b/missing")).unwrap(), b"made");
    fs::write(other.path("a/b/c/f"), "changed").unwrap();
    assert_eq!(fs::read(shown.path("a/b/c/f")).unwrap(), b"changed");
    fs::write(shown.path("a/b/c/f"), "mine").unwrap();
    assert_eq!(fs::read(shown.path("a/b/c/f")).unwrap(), b"mine");
    fs::remove_file(other.path("a/l")).unwrap();
    symlink("b/other", other.path("a/l")).unwrap();
    assert_eq!(fs::read_link(shown.path("a/l")).unwrap().to_str(), Some("b/other"));
    fs::rename(folder.path().join("a/b/c"), folder.path().join("a/b/d")).unwrap();
    until("the move is seen", || fs::metadata(shown.path("a/b/c/f")).is_err_and(|err| err.kind() == NotFound));
}
