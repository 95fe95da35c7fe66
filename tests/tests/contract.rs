//! Every kind of tree keeps the contract, direct and again through client and server.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use fileserver::{Access, Disk, DiskOptions, Export, Exports, Ruled, Rules};
use ns::{Flags, Namespace};
use p9::layer::{self, FileLayer, Layer, LayeredFile};
use p9::wire::Dialect;
use p9::{Handle, NodeRef, Reply, TreeRef, Who, synth};
use tests::contract;
use tests::grid::Grid;
use tests::rough::Rough;

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
async fn locks_are_kept_between_clients_and_end_with_them() {
    let dir = tempfile::tempdir().unwrap();
    let tree = disk(dir.path(), false);
    contract::locks_of_clients(direct(&tree).await, direct(&tree).await).await;
    contract::locks_of_clients(through_the_wire(&tree).await, direct(&tree).await).await;
    contract::locks_of_clients(through_the_wire(&tree).await, through_the_wire(&tree).await).await;
    // Two trees of one directory, as of two processes.
    contract::locks_of_clients(direct(&tree).await, through_the_wire(&disk(dir.path(), false)).await).await;
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

/// A disk of which all may be changed but what is hidden.
fn ruled(path: &Path) -> TreeRef {
    Ruled::new(disk(path, false), Rules::new(Access::ReadWrite).rule("/hidden", Access::Absent))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_under_rules_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("hidden"), "").unwrap();
    for root in both(&ruled(dir.path())).await {
        contract::writing(root).await;
    }
    contract::writing_over_9p2000(over_9p2000(&ruled(dir.path())).await).await;
    sample(dir.path());
    for root in both(&ruled(dir.path())).await {
        contract::reading(root, &[]).await;
    }
    let read_only: TreeRef = Ruled::new(disk(dir.path(), false), Rules::new(Access::ReadOnly));
    for root in both(&read_only).await {
        contract::read_only(&root, "f").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_node_exports_keeps_the_contract() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let export = |name: &str, dir: &Path, read_only| Export { name: name.into(), path: dir.into(), read_only };
    let exports = vec![export("rw", one.path(), false), export("ro", other.path(), true)];
    let tree = Exports::open(exports, [7; 32]).unwrap().tree();
    for root in both(&tree).await {
        contract::writing(contract::walk(&root, "rw").await.unwrap()).await;
    }
    for dir in [&one, &other] {
        sample(dir.path());
    }
    for root in both(&tree).await {
        contract::reading(root.clone(), &[]).await;
        contract::read_only(&contract::walk(&root, "ro").await.unwrap(), "f").await;
    }
}

async fn over_9p2000(tree: &TreeRef) -> NodeRef {
    Grid::new().serve("a", tree.clone()).dialect(Dialect::Legacy).root("a").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_tree_keeps_over_9p2000_what_that_can_say() {
    let dir = tempfile::tempdir().unwrap();
    contract::writing_over_9p2000(over_9p2000(&disk(dir.path(), false)).await).await;
    sample(dir.path());
    contract::reading(over_9p2000(&disk(dir.path(), false)).await, &[]).await;
    contract::read_only(&over_9p2000(&disk(dir.path(), true)).await, "f").await;
    contract::reading(over_9p2000(&synthetic()).await, &[]).await;
    let over = tempfile::tempdir().unwrap();
    contract::reading(over_9p2000(&namespace(dir.path(), over.path()).await).await, &[]).await;
}

/// The clock is paused: what links wait for costs nothing.
#[tokio::test(start_paused = true)]
async fn over_links_that_reorder_stall_and_are_cut_trees_keep_the_contract() {
    let (dir, over) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(dir.path().join("d")).unwrap();
    let made = [disk(dir.path(), false), ruled(dir.path()), namespace(dir.path(), over.path()).await];
    for (number, tree) in made.iter().enumerate() {
        // Some of what is said is short enough for the first link to carry all of it.
        let mut cut = 0;
        for seed in 1..20 {
            let rough = Rough::new(tree.clone(), seed + 100 * number as u64);
            contract::writing(contract::walk(&rough.root().await.unwrap(), "d").await.unwrap()).await;
            cut += usize::from(rough.links() > 1);
            if cut > 0 {
                break;
            }
        }
        assert!(cut > 0, "links were cut");
    }
    sample(dir.path());
    for (seed, tree) in made.iter().chain([&synthetic()]).enumerate() {
        contract::reading(Rough::new(tree.clone(), 10 + seed as u64).root().await.unwrap(), &[]).await;
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

/// A namespace of a disk, with a synthetic tree deep in it and a union of two disks.
async fn namespace(root: &Path, over: &Path) -> TreeRef {
    let flags = |text: &str| Flags { before: text.contains('b'), create: text.contains('c'), ..Flags::default() };
    let namespace = Namespace::new();
    namespace.mount("disk", "", direct(&disk(root, false)).await, "/", flags("c")).await.unwrap();
    namespace.mount("synth", "", direct(&synthetic()).await, "/mnt/deep/synth", flags("")).await.unwrap();
    namespace.mount("over", "", direct(&disk(over, false)).await, "/d", flags("bc")).await.unwrap();
    Arc::new(namespace)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_keeps_the_contract_with_mounts_unions_and_synthetic_ways() {
    let (root, over) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(root.path());
    std::fs::write(over.path().join("upper"), "of the upper disk").unwrap();
    for root in both(&namespace(root.path(), over.path()).await).await {
        contract::reading(root.clone(), &[]).await;
        let names = contract::list(&contract::walk(&root, "d").await.unwrap(), 3).await.unwrap();
        let names: Vec<String> = names.keys().map(ToString::to_string).collect();
        assert_eq!(names, ["e", "link", "long", "upper"], "a union lists all its members");
        assert_eq!(contract::read(&root, "d/upper", 100).await.unwrap(), b"of the upper disk");
        assert_eq!(contract::read(&root, "mnt/deep/synth/f", 100).await.unwrap(), b"text\n");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespaces_root_and_unions_keep_the_contract_of_writing() {
    let (root, over) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(root.path().join("d")).unwrap();
    for tree in both(&namespace(root.path(), over.path()).await).await {
        contract::writing(contract::walk(&tree, "d").await.unwrap()).await;
        assert!(std::fs::read_dir(over.path()).unwrap().next().is_none(), "new files went to the first member");
    }
}

/// A layer over files and their bytes that changes nothing.
#[derive(Clone)]
struct PassOn;

impl Layer for PassOn {
    fn file(&self, below: Handle) -> Handle {
        LayeredFile::over(Self, below)
    }
}

impl FileLayer for PassOn {}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_changes_nothing_keeps_the_contract() {
    let (dir, over) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(dir.path());
    let trees = [disk(dir.path(), false), synthetic(), namespace(dir.path(), over.path()).await];
    for tree in trees {
        for root in both(&layer::tree(tree, PassOn)).await {
            contract::reading(root, &[]).await;
        }
    }
    for root in both(&layer::tree(disk(dir.path(), true), PassOn)).await {
        contract::read_only(&root, "f").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_layer_that_changes_nothing_keeps_the_contract_of_writing() {
    let dir = tempfile::tempdir().unwrap();
    // And a layer over a layer.
    let tree = layer::tree(layer::tree(disk(dir.path(), false), PassOn), PassOn);
    for root in both(&tree).await {
        contract::writing(root).await;
    }
}
