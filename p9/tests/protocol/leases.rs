//! Leases at the server: what is given back never waits, and a break goes out whatever else there is to say.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use p9::layer::Layer;
use p9::server::Limits;
use p9::tree::{Lease, LeaseKind, OnBreak};
use p9::{NodeRef, Reply};
use tokio::sync::Notify;

use crate::peer::Peer;
use crate::ram::Ram;

#[tokio::test(start_paused = true)]
async fn a_lease_is_given_back_before_what_its_fid_waits_for() {
    let ram = Ram::root();
    let pipe = ram.pipe("pipe");
    let mut peer = Peer::attached(Arc::new(ram), Limits::default()).await;
    for (give_back, kept) in [("5 Tlease fid=1 kind=1", 1), ("5 Tlease fid=1 kind=0", 0), ("5 Tclunk fid=1", 0)] {
        peer.opens(1, "pipe", 2).await;
        peer.say("3 Tlease fid=1 kind=3").await;
        peer.hears("3 Rlease kind=3").await;
        peer.say("4 Tread fid=1 offset=0 count=10").await;
        peer.say(give_back).await;
        if give_back.contains("Tlease") {
            peer.hears(&format!("5 Rlease kind={kept}")).await;
        }
        peer.hears_nothing().await;
        assert_eq!(pipe.leases(), kept, "{give_back}");
        if give_back.contains("Tlease") {
            peer.say("6 Tclunk fid=1").await;
        }
        peer.say("7 Tflush oldtag=4").await;
        peer.hears("4 Rlerror ecode=4").await;
        peer.hears("7 Rflush").await;
        peer.hears(if give_back.contains("Tlease") { "6 Rclunk" } else { "5 Rclunk" }).await;
        assert_eq!(pipe.leases(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_whose_fid_goes_before_it_is_granted_goes_with_it() {
    let ram = Ram::root();
    let f = ram.file("f", "text");
    let mut peer = Peer::attached(Arc::new(ram), Limits::default()).await;
    peer.say("1 Twalk fid=0 newfid=1 wnames=f").await;
    peer.say("2 Tlease fid=1 kind=2").await;
    peer.say("3 Tclunk fid=1").await;
    peer.hears("1 Rwalk").await;
    peer.hears("2 Rlease kind=2").await;
    peer.hears("3 Rclunk").await;
    assert_eq!(f.leases(), 0);
}

/// A tree that grants the first lease late: when it is told to.
#[derive(Clone, Default)]
struct Late {
    asked: Arc<AtomicBool>,
    go: Arc<Notify>,
}

impl Layer for Late {
    fn lease<'a>(&'a self, below: &'a NodeRef, want: LeaseKind, on_break: OnBreak) -> Reply<'a, Option<Lease>> {
        let first = !self.asked.swap(true, Ordering::SeqCst);
        Reply::later(async move {
            if first {
                self.go.notified().await;
            }
            below.lease(want, on_break).await
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_granted_late_is_not_that_of_a_fid_made_anew() {
    let (ram, late) = (Ram::root(), Late::default());
    let (f, g) = (ram.file("f", "text"), ram.file("g", "text"));
    let mut peer = Peer::attached(p9::layer::tree(Arc::new(ram), late.clone()), Limits::default()).await;
    peer.say("1 Twalk fid=0 newfid=1 wnames=f").await;
    peer.hears("1 Rwalk").await;
    peer.say("2 Tlease fid=1 kind=2").await;
    peer.say("3 Tclunk fid=1").await;
    peer.say("4 Twalk fid=0 newfid=1 wnames=g").await;
    peer.say("5 Tlease fid=1 kind=1").await;
    peer.hears("4 Rwalk").await;
    peer.hears("5 Rlease kind=1").await;
    late.go.notify_one();
    peer.hears("2 Rlease kind=2").await;
    peer.hears("3 Rclunk").await;
    assert_eq!((f.leases(), g.leases()), (0, 1));
    peer.say("6 Tclunk fid=1").await;
    peer.hears("6 Rclunk").await;
    assert_eq!((f.leases(), g.leases()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_clunk_that_waits_leaves_the_lease_of_a_fid_made_anew() {
    let ram = Ram::root();
    ram.pipe("pipe");
    let g = ram.file("g", "text");
    let mut peer = Peer::attached(Arc::new(ram), Limits::default()).await;
    peer.opens(1, "pipe", 2).await;
    peer.say("3 Tread fid=1 offset=0 count=10").await;
    peer.say("4 Tclunk fid=1").await;
    peer.say("5 Twalk fid=0 newfid=1 wnames=g").await;
    peer.say("6 Tlease fid=1 kind=1").await;
    peer.hears("5 Rwalk").await;
    peer.hears("6 Rlease kind=1").await;
    peer.say("7 Tflush oldtag=3").await;
    peer.hears("3 Rlerror ecode=4").await;
    peer.hears("7 Rflush").await;
    peer.hears("4 Rclunk").await;
    assert_eq!(g.leases(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_break_comes_before_later_answers_though_the_peer_reads_late() {
    let ram = Ram::root();
    let (f, text) = (ram.file("f", "text"), "x".repeat(4096));
    ram.file("large", &text);
    let mut peer = Peer::attached(Arc::new(ram), Limits::default()).await;
    peer.opens(2, "large", 0).await;
    peer.say("1 Twalk fid=0 newfid=1 wnames=f").await;
    peer.say("2 Tlease fid=1 kind=2").await;
    peer.hears("1 Rwalk").await;
    peer.hears("2 Rlease kind=2").await;
    // More answers than the stream and the queue before the writer have room for.
    const READS: u16 = 400;
    for tag in 10..10 + READS {
        peer.say(&format!("{tag} Tread fid=2 offset=0 count=4096")).await;
    }
    f.break_leases(LeaseKind::None);
    let after = 10 + READS;
    peer.say(&format!("{after} Tgetattr fid=1 request_mask=0x7ff")).await;
    let (mut broken, mut answered) = (None, None);
    for place in 0..READS + 2 {
        let frame = peer.hear().await.unwrap();
        match (frame[4], u16::from_le_bytes([frame[5], frame[6]])) {
            (219, tag) => {
                assert_eq!((tag, &frame[7..]), (u16::MAX, &[1, 0, 0, 0, 0][..]));
                broken = Some(place);
            }
            (25, tag) if tag == after => answered = Some(place),
            _ => {}
        }
    }
    assert!(broken.unwrap() < answered.unwrap());
}
