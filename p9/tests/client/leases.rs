//! Leases from a server: by whom they are broken, when they end by themselves, how they are given back.
//!
//! The clock by which they end is the test's own, and jumps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use p9::client::{Client, Clock, LEASE, Options};
use p9::server::{self, Limits};
use p9::tree::{Lease, LeaseKind};
use p9::wire::{NO_TAG, Qids, R};
use p9::{Name, NodeRef, Tree, Want, Who};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::fake::Fake;
use crate::ram::Ram;

/// A clock that stands still until it is set forward.
#[derive(Clone, Default)]
struct Hand(Arc<AtomicU64>);

impl Hand {
    fn clock(&self) -> Clock {
        let hand = self.0.clone();
        Clock::new(move || Duration::from_secs(1000) + Duration::from_millis(hand.load(Ordering::SeqCst)))
    }

    fn jump(&self, by: Duration) {
        self.0.fetch_add(by.as_millis() as u64, Ordering::SeqCst);
    }
}

/// The root of `ram` at a server of ours, and its file `f`.
async fn served(ram: &Ram, hand: &Hand) -> (Client, NodeRef, NodeRef) {
    let (near, far) = tokio::io::duplex(1 << 20);
    tokio::spawn(server::serve(far, Arc::new(ram.clone()), Arc::new(Who::owner()), Limits::default()));
    let client = Client::connect(near, Options { clock: hand.clock(), ..Options::default() }).await.unwrap();
    let root = client.attach(&Who::owner(), b"").await.unwrap();
    let file = root.walk(&[Name::new(b"f").unwrap()], Want::default()).await.unwrap().reached().unwrap().node;
    (client, root, file)
}

async fn hold(node: &NodeRef, kind: LeaseKind) -> (Option<Lease>, UnboundedReceiver<LeaseKind>) {
    let (sender, told) = unbounded_channel();
    let lease = node.lease(kind, Arc::new(move |keep| sender.send(keep).unwrap_or(()))).await.unwrap();
    (lease, told)
}

#[tokio::test]
async fn a_lease_is_one_round_trip_and_its_break_comes_before_later_answers() {
    let ram = Ram::root();
    let f = ram.file("f", "text");
    let (client, _root, file) = served(&ram, &Hand::default()).await;
    let before = client.counts().round_trips;
    let (lease, mut told) = hold(&file, LeaseKind::Read).await;
    assert_eq!(client.counts().round_trips, before + 1);
    let lease = lease.unwrap();
    assert!(lease.kind == LeaseKind::Read && lease.holds());
    f.break_leases(LeaseKind::Attr);
    file.attr().await.unwrap();
    assert_eq!(told.try_recv(), Ok(LeaseKind::Attr), "told before the answer");
    lease.keep(LeaseKind::Attr);
    f.break_leases(LeaseKind::None);
    file.attr().await.unwrap();
    assert_eq!(told.try_recv(), Ok(LeaseKind::None));
    drop(lease);
    file.attr().await.unwrap();
    assert_eq!(f.leases(), 0, "given back by its drop, before what came later was answered");
}

#[tokio::test]
async fn a_lease_ends_by_the_clock_and_lasts_again_once_the_server_was_heard() {
    let (ram, hand) = (Ram::root(), Hand::default());
    ram.file("f", "text");
    let (_client, _root, file) = served(&ram, &hand).await;
    let (lease, mut told) = hold(&file, LeaseKind::Attr).await;
    let lease = lease.unwrap();
    assert!(lease.holds());
    hand.jump(LEASE - Duration::from_millis(1));
    assert!(lease.holds());
    // The machine slept for a night.
    hand.jump(Duration::from_secs(8 * 3600));
    assert!(!lease.holds());
    file.attr().await.unwrap();
    assert!(lease.holds(), "it was not broken meanwhile");
    assert!(told.try_recv().is_err());
}

#[tokio::test]
async fn what_counts_is_when_the_request_was_sent() {
    let (ram, hand) = (Ram::root(), Hand::default());
    ram.file("f", "text");
    let pipe = ram.pipe("pipe");
    let (_client, root, file) = served(&ram, &hand).await;
    let (lease, _told) = hold(&file, LeaseKind::Attr).await;
    let names = [Name::new(b"pipe").unwrap()];
    let open = root.open_at(&names, p9::How::RDWR, Want::default()).await.unwrap().handle;
    let (read, ()) = tokio::join!(open.read(0, 10), async {
        // Whatever was under way when the machine went to sleep is answered when it wakes.
        while pipe.reads() == 0 {
            tokio::task::yield_now().await;
        }
        hand.jump(LEASE);
        assert!(!lease.as_ref().unwrap().holds());
        // Not by a request of this client: that would be a later one.
        p9::Node::open(&pipe, p9::How::WRITE).await.unwrap().write(0, "late".into()).await.unwrap();
    });
    assert_eq!(read.unwrap(), "late");
    assert!(!lease.unwrap().holds(), "the request that was answered is older than that");
}

#[tokio::test]
async fn a_lease_ends_with_the_connection() {
    let (near, far) = tokio::io::duplex(1 << 20);
    let ram = Ram::root();
    ram.file("f", "text");
    let serving = tokio::spawn(server::serve(far, Arc::new(ram.clone()), Arc::new(Who::owner()), Limits::default()));
    let client = Client::connect(near, Options::default()).await.unwrap();
    let root = client.attach(&Who::owner(), b"").await.unwrap();
    let (lease, mut told) = hold(&root, LeaseKind::Attr).await;
    assert!(lease.as_ref().unwrap().holds() && ram.leases() == 1);
    serving.abort();
    assert_eq!(told.recv().await, Some(LeaseKind::None));
    assert!(!lease.unwrap().holds());
    assert_eq!(ram.leases(), 0, "the server has freed it, too");
}

#[tokio::test]
async fn a_break_may_overtake_the_grant_and_a_stray_one_does_no_harm() {
    let (root, mut fake) = Fake::attached(true).await;
    let answer = async {
        let (walk, _) = fake.hears("Walk").await;
        let (lease, asked) = fake.hears("Lease").await;
        assert_eq!(asked, "Lease { fid: 1, kind: 2 }");
        fake.says(NO_TAG, R::Break { fid: 1, keep: 0 }).await;
        fake.says(NO_TAG, R::Break { fid: 77, keep: 0 }).await;
        fake.says(walk, R::Walk { qids: Qids::of(&[]) }).await;
        fake.says(lease, R::Lease { kind: 2 }).await;
    };
    let ((lease, mut told), ()) = tokio::join!(hold(&root, LeaseKind::Read), answer);
    assert_eq!(told.try_recv(), Ok(LeaseKind::None));
    drop(lease);
    // At once, and then with its fid.
    assert_eq!(fake.hears("Lease").await.1, "Lease { fid: 1, kind: 0 }");
    fake.hears("Clunk").await;
}

#[tokio::test]
async fn an_older_server_grants_no_lease() {
    let (root, mut fake) = Fake::attached(true).await;
    let answer = async {
        let (walk, _) = fake.hears("Walk").await;
        let (lease, _) = fake.hears("Lease").await;
        fake.says(walk, R::Walk { qids: Qids::of(&[]) }).await;
        fake.says(lease, R::Lerror { ecode: 95 }).await;
    };
    let ((lease, _told), ()) = tokio::join!(hold(&root, LeaseKind::Read), answer);
    assert!(lease.is_none());
    let (plain, mut fake) = Fake::attached(false).await;
    assert!(hold(&plain, LeaseKind::Read).await.0.is_none());
    fake.hears_nothing().await;
}
