//! Locks at the server: whatever becomes of a request for one, nothing is held when its client has gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use p9::cancel::hold;
use p9::layer::Layer;
use p9::server::Limits;
use p9::tree::{Lock, LockKind};
use p9::{Errno, NodeRef, Reply};
use tokio::sync::{mpsc, oneshot};

use crate::peer::{PATIENCE, Peer};
use crate::ram::Ram;

/// Locks that are taken and dropped elsewhere, whoever still waits for that, and when the test says so.
#[derive(Clone)]
struct Elsewhere {
    asked: mpsc::UnboundedSender<Asked>,
    held: Arc<AtomicBool>,
}

/// A lock that is asked for, or given back.
struct Asked {
    kind: LockKind,
    go: oneshot::Sender<()>,
}

impl Layer for Elsewhere {
    fn lock<'a>(&'a self, _below: &'a NodeRef, Lock { kind, .. }: Lock, _wait: bool) -> Reply<'a, ()> {
        let (go, gone) = oneshot::channel();
        self.asked.send(Asked { kind, go }).unwrap();
        let held = self.held.clone();
        Reply::later(async move {
            let _hold = hold();
            // Given back at once, though it is answered later.
            if kind == LockKind::Unlock {
                held.store(false, Ordering::SeqCst);
            }
            let work = tokio::spawn(async move {
                gone.await.unwrap();
                if kind != LockKind::Unlock {
                    held.store(true, Ordering::SeqCst);
                }
            });
            work.await.map_err(|_| Errno::EIO)
        })
    }
}

/// A client with the file `f` as fid 1, and what it asks for.
struct Client {
    peer: Peer,
    asked: mpsc::UnboundedReceiver<Asked>,
    held: Arc<AtomicBool>,
}

const TAKE: &str = "Tlock fid=1 type=1 flags=0 start=0 length=0 proc_id=1 client_id=me";
const GIVE_BACK: &str = "Tlock fid=1 type=2 flags=0 start=0 length=0 proc_id=1 client_id=me";

impl Client {
    async fn new() -> Self {
        let (ram, (asks, asked), held) = (Ram::root(), mpsc::unbounded_channel(), Arc::new(AtomicBool::new(false)));
        ram.file("f", "text");
        let tree = p9::layer::tree(Arc::new(ram), Elsewhere { asked: asks, held: held.clone() });
        let mut peer = Peer::attached(tree, Limits::default()).await;
        peer.say("1 Twalk fid=0 newfid=1 wnames=f").await;
        peer.hears("1 Rwalk").await;
        Self { peer, asked, held }
    }

    async fn asked(&mut self, kind: LockKind) -> oneshot::Sender<()> {
        let asked = tokio::time::timeout(PATIENCE, self.asked.recv()).await.expect("a lock is asked for").unwrap();
        assert_eq!(asked.kind, kind);
        asked.go
    }

    /// Goes, and with it what it holds: `first` is done before anything else is asked for.
    async fn goes(mut self, first: Option<oneshot::Sender<()>>) {
        let Self { peer, asked, held } = &mut self;
        let peer = std::mem::replace(peer, Peer::of(Arc::new(Ram::root()), Limits::default()));
        peer.hangs_up().await.unwrap();
        if let Some(first) = first {
            // The clock is paused: time passes once nothing else can happen.
            assert!(tokio::time::timeout(Duration::from_secs(5), asked.recv()).await.is_err(), "it comes too soon");
            first.send(()).unwrap();
        }
        let held = held.clone();
        self.asked(LockKind::Unlock).await.send(()).unwrap();
        tokio::time::timeout(PATIENCE, async {
            while held.load(Ordering::SeqCst) {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("nothing is held");
    }
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_being_taken_while_its_client_goes_is_given_back() {
    let mut client = Client::new().await;
    client.peer.say(&format!("2 {TAKE}")).await;
    let taking = client.asked(LockKind::Write).await;
    client.goes(Some(taking)).await;
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_taken_after_its_owner_gave_all_back_ends_with_its_client() {
    let mut client = Client::new().await;
    client.peer.say(&format!("2 {TAKE}")).await;
    let taking = client.asked(LockKind::Write).await;
    client.peer.say(&format!("3 {GIVE_BACK}")).await;
    client.asked(LockKind::Unlock).await.send(()).unwrap();
    client.peer.hears("3 Rlock status=0").await;
    taking.send(()).unwrap();
    client.peer.hears("2 Rlock status=0").await;
    client.goes(None).await;
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_taken_while_its_owner_gives_all_back_ends_with_its_client() {
    let mut client = Client::new().await;
    client.peer.say(&format!("2 {TAKE}")).await;
    client.asked(LockKind::Write).await.send(()).unwrap();
    client.peer.hears("2 Rlock status=0").await;
    client.peer.say(&format!("3 {GIVE_BACK}")).await;
    let giving_back = client.asked(LockKind::Unlock).await;
    client.peer.say(&format!("4 {TAKE}")).await;
    client.asked(LockKind::Write).await.send(()).unwrap();
    client.peer.hears("4 Rlock status=0").await;
    giving_back.send(()).unwrap();
    client.peer.hears("3 Rlock status=0").await;
    client.goes(None).await;
}

#[tokio::test(start_paused = true)]
async fn a_flush_of_a_lock_is_answered_once_it_is_known_what_became_of_it() {
    let mut client = Client::new().await;
    client.peer.say(&format!("2 {TAKE}")).await;
    let taking = client.asked(LockKind::Write).await;
    client.peer.say("3 Tflush oldtag=2").await;
    client.peer.hears_nothing().await;
    taking.send(()).unwrap();
    client.peer.hears("2 Rlock status=0").await;
    client.peer.hears("3 Rflush").await;
    client.goes(None).await;
}
