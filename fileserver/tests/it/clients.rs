//! Leases over the wire: two clients, each with a connection of its own, and a disk behind one server.

use std::sync::Arc;

use fileserver::{Disk, DiskOptions, LeaseOptions, Leases};
use p9::cancel::Cancel;
use p9::client::{Client, Options};
use p9::server::{self, Limits};
use p9::tree::{Lease, LeaseKind};
use p9::{Errno, NodeRef, Tree, TreeRef, Who};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::common::{cat, dir, name, put, walk};

/// A served disk.
struct Served {
    _dir: TempDir,
    tree: TreeRef,
    leases: Arc<Leases>,
}

impl Served {
    fn new() -> Self {
        let (dir, leases) = (tempfile::tempdir().unwrap(), Leases::new(LeaseOptions::default()));
        let options = DiskOptions { leases: leases.clone(), ..DiskOptions::new([7; 32]) };
        Self { tree: Disk::open(dir.path(), options).unwrap(), _dir: dir, leases }
    }

    /// A client, and the root as it sees it. All are served as nobody in particular.
    async fn client(&self) -> (Client, NodeRef) {
        let (near, far) = tokio::io::duplex(1 << 16);
        tokio::spawn(server::serve(far, self.tree.clone(), Arc::new(Who::owner()), Limits::default()));
        let client = Client::connect(near, Options::default()).await.unwrap();
        let root = client.attach(&Who::owner(), b"").await.unwrap();
        (client, root)
    }
}

async fn hold(node: &NodeRef, kind: LeaseKind) -> (Lease, UnboundedReceiver<LeaseKind>) {
    let (sender, told) = unbounded_channel();
    let lease = node.lease(kind, Arc::new(move |keep| sender.send(keep).unwrap_or(()))).await.unwrap();
    (lease.unwrap(), told)
}

#[tokio::test]
async fn what_one_client_keeps_another_waits_for() {
    let served = Served::new();
    let ((_one, a), (_other, b)) = (served.client().await, served.client().await);
    let (lease, mut told) = hold(&a, LeaseKind::Attr).await;
    a.create(name("mine"), dir(0o755)).await.unwrap();
    assert!(told.try_recv().is_err() && lease.holds(), "own operations break nothing");
    let releases = async {
        assert_eq!(told.recv().await, Some(LeaseKind::None));
        assert!(walk(&a, "d").await.is_err(), "not before it is given back");
        drop(lease);
    };
    let (made, ()) = tokio::join!(b.create(name("d"), dir(0o755)), releases);
    made.unwrap();
    assert!(walk(&a, "d").await.is_ok());
}

#[tokio::test]
async fn changes_that_are_held_back_are_seen_by_who_opens_the_file() {
    let served = Served::new();
    let ((_one, a), (_other, b)) = (served.client().await, served.client().await);
    put(&a, "f", "old").await.unwrap();
    let made = a.create(name("f"), crate::common::file(0o644)).await.unwrap();
    let (lease, mut told) = hold(&made.node, LeaseKind::Write).await;
    assert_eq!(lease.kind, LeaseKind::Write);
    // Asked for first by the look at its attributes, then by its opening.
    let writes_back = async {
        let mut asked = Vec::new();
        while asked.last() != Some(&LeaseKind::Attr) {
            asked.push(told.recv().await.unwrap());
            made.handle.as_ref().unwrap().write(0, "new".into()).await.unwrap();
            lease.keep(*asked.last().unwrap());
        }
        asked
    };
    let (read, asked) = tokio::join!(cat(&b, "f"), writes_back);
    assert_eq!((read.unwrap(), asked), ("new".into(), vec![LeaseKind::Read, LeaseKind::Attr]));
}

#[tokio::test]
async fn a_client_that_goes_away_keeps_nobody_waiting() {
    let served = Served::new();
    let (_other, b) = served.client().await;
    let (near, far) = tokio::io::duplex(1 << 16);
    let serving = tokio::spawn(server::serve(far, served.tree.clone(), Arc::new(Who::owner()), Limits::default()));
    let one = Client::connect(near, Options::default()).await.unwrap();
    let a = one.attach(&Who::owner(), b"").await.unwrap();
    let (lease, mut told) = hold(&a, LeaseKind::Attr).await;
    let goes = async {
        told.recv().await;
        serving.abort();
    };
    let (made, ()) = tokio::join!(b.create(name("d"), dir(0o755)), goes);
    made.unwrap();
    assert!(!lease.holds() && served.leases.live() == 0);
}

#[tokio::test]
async fn an_operation_that_waits_for_a_lease_can_be_flushed() {
    let served = Served::new();
    let ((_one, a), (_other, b)) = (served.client().await, served.client().await);
    let (lease, mut told) = hold(&a, LeaseKind::Attr).await;
    let cancel = Cancel::default();
    let (answer, ()) = tokio::join!(cancel.run(async { b.create(name("d"), dir(0o755)).await.map(drop) }), async {
        told.recv().await;
        cancel.cancel();
    });
    assert_eq!(answer, Err(Errno::EINTR));
    drop(lease);
    assert_eq!(walk(&a, "d").await.err(), Some(Errno::ENOENT));
}
