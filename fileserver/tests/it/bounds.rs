//! Descriptors are bounded, however many nodes there are; and a node finds its file again, or says that it cannot.

use fileserver::{Disk, DiskOptions};
use p9::{Errno, How, NodeRef};
use tempfile::TempDir;

use crate::common::*;

/// A tree that keeps this many descriptors of files that are not open.
fn keeping(descriptors: usize) -> (TempDir, NodeRef) {
    let dir = tempfile::tempdir().unwrap();
    let root = Disk::open(dir.path(), DiskOptions { descriptors, ..DiskOptions::new([7; 32]) }).unwrap().root();
    (dir, root)
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[tokio::test]
async fn many_nodes_need_few_descriptors() {
    const FILES: usize = 10_000;
    let (dir, root) = keeping(64);
    for index in 0..FILES {
        std::fs::write(dir.path().join(format!("f{index}")), b"").unwrap();
    }
    let before = descriptors();
    let mut nodes = Vec::with_capacity(50_000);
    for index in 0..FILES {
        nodes.push(walk(&root, &format!("f{index}")).await.unwrap());
    }
    let called: Vec<_> = (0..FILES).map(|index| format!("f{index}")).collect();
    for index in FILES..50_000 {
        // Most fids of many clients are on a few files.
        nodes.push(walk(&root, &called[index % 50]).await.unwrap());
    }
    assert!(descriptors() < before + 1000, "{} descriptors", descriptors());
    // Each still is the file that it was.
    for node in nodes.iter().take(FILES).step_by(7) {
        assert_eq!(node.attr().await.unwrap().qid.path, node.qid().path);
    }
    let qids: std::collections::HashSet<_> = nodes.iter().map(|node| node.qid().path).collect();
    assert_eq!((nodes.len(), qids.len()), (50_000, FILES));
    assert!(descriptors() < before + 1000, "{} descriptors", descriptors());
}

#[tokio::test]
async fn a_node_finds_its_file_again_deep_down() {
    let (_dir, root) = keeping(0);
    let mut at = root.clone();
    for level in 0..60 {
        at = at.create(name(&format!("d{level}")), dir(0o755)).await.unwrap().node;
    }
    put(&at, "f", "deep").await.unwrap();
    let file = walk(&at, "f").await.unwrap();
    assert_eq!(file.open(How::READ).await.unwrap().read(0, 9).await.unwrap(), "deep");
}

#[tokio::test]
async fn a_node_follows_renames_that_the_tree_made() {
    let (_dir, root) = keeping(0);
    let a = root.create(name("a"), dir(0o755)).await.unwrap().node;
    let b = root.create(name("b"), dir(0o755)).await.unwrap().node;
    put(&a, "f", "one").await.unwrap();
    put(&b, "g", "two").await.unwrap();
    let (f, g) = (walk(&a, "f").await.unwrap(), walk(&b, "g").await.unwrap());
    a.rename(name("f"), &b, name("f"), 0).await.unwrap();
    b.rename(name("f"), &b, name("g"), libc::RENAME_EXCHANGE).await.unwrap();
    // With all that is in it.
    root.rename(name("b"), &a, name("c"), 0).await.unwrap();
    for (node, text) in [(&f, "one"), (&g, "two")] {
        assert_eq!(node.open(How::READ).await.unwrap().read(0, 9).await.unwrap(), text);
    }
    assert_eq!(cat(&root, "a/c/g").await.unwrap(), "one");
}

#[tokio::test]
async fn a_node_whose_file_was_replaced_is_stale() {
    let (dir, root) = keeping(0);
    put(&root, "f", "old").await.unwrap();
    put(&root, "gone", "").await.unwrap();
    let (node, gone) = (walk(&root, "f").await.unwrap(), walk(&root, "gone").await.unwrap());
    // Behind the tree's back.
    std::fs::remove_file(dir.path().join("gone")).unwrap();
    std::fs::remove_file(dir.path().join("f")).unwrap();
    std::fs::write(dir.path().join("f"), b"new").unwrap();
    assert_eq!(node.attr().await.err(), Some(Errno::ESTALE));
    assert_eq!(node.open(How::READ).await.err(), Some(Errno::ESTALE));
    assert_eq!(gone.attr().await.err(), Some(Errno::ESTALE));
    assert_eq!(cat(&root, "f").await.unwrap(), "new");
}

#[tokio::test]
async fn a_very_deep_tree_is_let_go_without_recursion() {
    let (_dir, root) = keeping(1024);
    let mut at = root.clone();
    for _ in 0..3000 {
        at = at.create(name("d"), dir(0o755)).await.unwrap().node;
    }
    drop(at);
    // Removed from below, since a path to the deepest is longer than the system allows.
    let mut way = vec![root.clone()];
    for _ in 0..3000 {
        let next = walk(&way[way.len() - 1], "d").await.unwrap();
        way.push(next);
    }
    way.pop();
    for dir in way.into_iter().rev() {
        dir.remove(name("d"), true).await.unwrap();
    }
}
