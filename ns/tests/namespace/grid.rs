//! The directory at /n: who is dialled, when, and who is not.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ns::{Grid, Names, Namespace};
use p9::{Errno, FileKind, NodeRef, Reply, Want};
use parking_lot::Mutex;

use crate::support::{self, Dead, Numbered, name, names, names_of, read, read_of, refused, walk};

/// Nodes by name: their roots, and how often each was reached.
#[derive(Default)]
struct Nodes {
    known: Mutex<BTreeMap<String, Result<NodeRef, Errno>>>,
    reached: AtomicUsize,
}

impl Nodes {
    fn set(&self, name: &str, root: Result<NodeRef, Errno>) {
        self.known.lock().insert(name.into(), root);
    }

    fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }
}

impl Names for Nodes {
    fn names(&self) -> Vec<String> {
        self.known.lock().keys().cloned().collect()
    }

    fn reach<'a>(&'a self, name: &'a str) -> Reply<'a, NodeRef> {
        self.reached.fetch_add(1, Ordering::SeqCst);
        self.known.lock().get(name).cloned().unwrap_or(Err(Errno::ENOENT)).into()
    }
}

/// `a` and `b`, which number their files alike, and `dead`, which cannot be reached.
fn three() -> (Arc<Nodes>, NodeRef) {
    let nodes = Arc::new(Nodes::default());
    nodes.set("a", Ok(Numbered::root(1)));
    nodes.set("b", Ok(Numbered::root(1)));
    nodes.set("dead", Err(Errno::EHOSTUNREACH));
    (nodes.clone(), Grid::new(nodes))
}

async fn entry(grid: &NodeRef, of: &str) -> Result<NodeRef, Errno> {
    Ok(grid.walk(&[name(of)], Want::ATTR).await?.reached()?.node)
}

#[tokio::test]
async fn listing_the_nodes_and_looking_at_one_dials_nobody() {
    let (nodes, grid) = three();
    let mut listed = names_of(&grid).await.unwrap();
    listed.sort();
    assert_eq!(listed, ["a", "b", "dead"]);
    for name in listed {
        let node = entry(&grid, &name).await.unwrap();
        let attr = node.attr().await.unwrap();
        assert_eq!((attr.qid, attr.qid.kind), (node.qid(), FileKind::Dir));
        assert_eq!(attr, node.attr().await.unwrap(), "it does not change for being looked at");
    }
    assert_eq!(nodes.reached(), 0);
}

#[tokio::test]
async fn a_node_is_reached_when_something_in_it_is_asked_for() {
    let (nodes, grid) = three();
    assert_eq!(names_of(&entry(&grid, "a").await.unwrap()).await.unwrap(), ["x", "y", "z"]);
    assert_eq!(read_of(&grid, "b/y").await.unwrap(), "y");
    assert_eq!(nodes.reached(), 2);
    let a = grid.walk(&[name("a"), name("x")], Want::ATTR).await.unwrap();
    let b = grid.walk(&[name("b"), name("x")], Want::ATTR).await.unwrap();
    assert_ne!(a.qids[1], b.qids[1], "files of two nodes are never the same");
}

#[tokio::test]
async fn a_name_that_is_not_known_is_missing_and_a_dead_node_costs_nobody_else() {
    let (nodes, grid) = three();
    assert_eq!(read_of(&grid, "nobody/x").await, Err(Errno::ENOENT));
    assert_eq!(nodes.reached(), 0);
    assert_eq!(read_of(&grid, "dead/x").await, Err(Errno::EHOSTUNREACH));
    assert_eq!(names_of(&entry(&grid, "dead").await.unwrap()).await, Err(Errno::EHOSTUNREACH));
    assert_eq!(read_of(&grid, "a/x").await.unwrap(), "x");
}

#[tokio::test]
async fn a_lost_node_is_reached_again_at_the_next_use() {
    let (nodes, grid) = three();
    let held = entry(&grid, "a").await.unwrap();
    let qid = held.qid();
    nodes.set("a", Err(Errno::EHOSTUNREACH));
    assert_eq!(read_of(&held, "x").await, Err(Errno::EHOSTUNREACH));
    nodes.set("a", Ok(Numbered::root(1)));
    assert_eq!(read_of(&held, "x").await.unwrap(), "x");
    assert_eq!(entry(&grid, "a").await.unwrap().qid(), qid, "it is the same directory");
}

/// A node whose connection turns out to be dead when it is used; reached again, it is there.
struct Roaming(AtomicUsize, Errno);

impl Names for Roaming {
    fn names(&self) -> Vec<String> {
        vec!["a".into()]
    }

    fn reach<'a>(&'a self, _name: &'a str) -> Reply<'a, NodeRef> {
        Reply::ok(if self.0.fetch_add(1, Ordering::SeqCst) == 0 { Dead::of(self.1) } else { Numbered::root(1) })
    }
}

#[tokio::test]
async fn a_connection_that_turns_out_to_be_dead_is_made_again_before_anyone_is_told() {
    let lost = [Errno::EHOSTUNREACH, Errno::ESTALE, Errno::ECONNRESET];
    for (path, errno) in ["a/x", "a"].into_iter().flat_map(|path| lost.map(|errno| (path, errno))) {
        let grid = Grid::new(Arc::new(Roaming(AtomicUsize::new(0), errno)));
        match path {
            "a" => assert_eq!(names_of(&entry(&grid, "a").await.unwrap()).await.unwrap(), ["x", "y", "z"]),
            path => assert_eq!(read_of(&grid, path).await.unwrap(), "x"),
        }
    }
}

#[tokio::test]
async fn the_grid_is_mounted_in_a_namespace_like_any_tree() {
    let (nodes, grid) = three();
    let ns = Namespace::new();
    ns.mount("#grid", "", grid, "/n", support::flags("")).await.unwrap();
    let mut listed = names(&ns, "/n").await;
    listed.sort();
    assert_eq!(listed, ["a", "b", "dead"]);
    assert_eq!(nodes.reached(), 0);
    ns.bind("/n/a", "/mnt/a", support::flags("")).await.unwrap();
    assert_eq!(nodes.reached(), 0, "a bind reaches nobody");
    assert_eq!(read(&ns, "/mnt/a/z").await.unwrap(), "z");
    assert_eq!(refused(&ns, "/n/a/nothing").await, Errno::ENOENT);
    let twice = (walk(&ns, "/n/a/x").await.unwrap().qid(), walk(&ns, "/mnt/a/x").await.unwrap().qid());
    assert_eq!(twice.0, twice.1);
}
