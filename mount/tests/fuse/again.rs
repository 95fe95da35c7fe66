//! What was done once is done again without asking, until somebody changes what it was about.

use std::fs;
use std::process::Command;

use super::*;

/// Does `what` until that asks the server nothing, several times, each when the kernel has forgotten what it was told.
fn until_it_asks_nothing(client: &Client, what: impl Fn()) {
    const FORGOTTEN: Duration = Duration::from_millis(25);
    until("nothing is asked any more", || {
        let before = client.counts().requests;
        for _ in 0..4 {
            std::thread::sleep(FORGOTTEN);
            what();
        }
        client.counts().requests == before
    });
}

/// A tree with a path of some length, of which the kernel remembers nothing.
fn deep() -> (TempDir, TreeRef, Client, Shown) {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("a/b/c")).unwrap();
    fs::write(folder.path().join("a/b/c/f"), "text").unwrap();
    let tree: TreeRef = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let (client, shown) =
        Shown::counted_with(tree.clone(), Options { ttl: Duration::from_millis(1), ..Options::default() });
    (folder, tree, client, shown)
}

#[test]
fn a_path_that_is_walked_again_is_not_asked_about() {
    let (folder, _tree, client, shown) = deep();
    let (file, dir) = (shown.path("a/b/c/f"), shown.path("a/b/c"));
    until_it_asks_nothing(&client, || {
        assert_eq!(fs::metadata(&file).unwrap().len(), 4);
        assert!(fs::metadata(&dir).unwrap().is_dir());
        assert!(!fs::exists(dir.join("missing")).unwrap());
    });
    let before = fs::metadata(&dir).unwrap().modified().unwrap();
    fs::write(folder.path().join("a/b/c/missing"), "").unwrap();
    until("the new name is seen, and that the directory has changed", || {
        fs::exists(dir.join("missing")).unwrap() && fs::metadata(&dir).unwrap().modified().unwrap() > before
    });
}

#[test]
fn a_path_whose_directories_another_client_moves_leads_elsewhere_at_once() {
    let (folder, tree, client, shown) = deep();
    let other = Shown::far(tree);
    fs::create_dir_all(folder.path().join("a/other/c")).unwrap();
    let file = shown.path("a/b/c/f");
    until_it_asks_nothing(&client, || assert!(fs::exists(&file).unwrap()));
    fs::rename(other.path("a/b"), other.path("a/moved")).unwrap();
    assert!(!fs::exists(&file).unwrap());
    assert!(fs::exists(shown.path("a/moved/c/f")).unwrap());
    fs::rename(other.path("a/other"), other.path("a/b")).unwrap();
    assert!(fs::exists(shown.path("a/b/c")).unwrap() && !fs::exists(&file).unwrap());
}

#[test]
fn a_program_that_is_run_again_is_not_asked_about() {
    let (folder, _tree, client, shown) = deep();
    fs::copy("/bin/true", folder.path().join("a/b/true")).unwrap();
    let program = shown.path("a/b/true");
    until_it_asks_nothing(&client, || assert!(Command::new(&program).status().unwrap().success()));
    fs::copy("/bin/false", folder.path().join("a/b/new")).unwrap();
    fs::rename(folder.path().join("a/b/new"), folder.path().join("a/b/true")).unwrap();
    until("the new one is run", || !Command::new(&program).status().unwrap().success());
}
