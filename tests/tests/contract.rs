//! Every kind of tree keeps the contract, direct and again through client and server.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use fileserver::{Disk, DiskOptions};
use p9::{NodeRef, Reply, Tree, TreeRef, Who, synth};
use tests::contract;
use tests::grid::Grid;

fn disk(path: &Path, read_only: bool) -> TreeRef {
    Disk::open(path, DiskOptions { read_only, ..DiskOptions::new([7; 32]) }).unwrap()
}

fn sample(path: &Path) {
    std::fs::create_dir_all(path.join("d/e")).unwrap();
    std::fs::write(path.join("f"), "contents of f").unwrap();
    std::fs::write(path.join("d/long"), vec![b'x'; 100_000]).unwrap();
    std::fs::write(path.join("d/e/empty"), "").unwrap();
    std::os::unix::fs::symlink("../f", path.join("d/link")).unwrap();
}

fn synthetic() -> TreeRef {
    let file = || synth::file(|| Ok(Bytes::from_static(b"text\n")));
    synth::tree(synth::dir([
        ("f", file()),
        ("l", synth::link("f")),
        ("ctl", synth::ctl(|_| Reply::ok(()))),
        ("v", synth::value(|| Ok(Bytes::from_static(b"1\n")), |_| Ok(()))),
        ("d", synth::dir([("g", file())])),
    ]))
}

async fn direct(tree: &TreeRef) -> NodeRef {
    tree.attach(&Who::owner(), b"").await.unwrap()
}

async fn through_the_wire(tree: &TreeRef) -> NodeRef {
    Grid::new().serve("a", tree.clone()).root("a").await.unwrap()
}

/// Both ways to the same tree.
async fn both(tree: &TreeRef) -> [NodeRef; 2] {
    [direct(tree).await, through_the_wire(tree).await]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_tree_keeps_the_contract_of_reading() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    for root in both(&disk(dir.path(), false)).await {
        contract::reading(root, &[]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_tree_keeps_the_contract_of_writing() {
    let dir = tempfile::tempdir().unwrap();
    for root in both(&disk(dir.path(), false)).await {
        contract::writing(root).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_disk_tree_refuses_every_change() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    for root in both(&disk(dir.path(), true)).await {
        contract::read_only(&root, "f").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synthetic_tree_keeps_the_contract() {
    for root in both(&synthetic()).await {
        contract::reading(root.clone(), &[]).await;
        contract::read_only(&root, "f").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_wires_in_a_row_are_like_one() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let near = Grid::new().serve("far", disk(dir.path(), false)).client("far").await.unwrap();
    let root = through_the_wire(&(Arc::new(near) as TreeRef)).await;
    contract::reading(root.clone(), &[]).await;
    let made = p9::New { what: p9::What::Dir, mode: 0o755, owner: None };
    root.create(contract::name("empty"), made).await.unwrap();
    contract::writing(contract::walk(&root, "empty").await.unwrap()).await;
}
