//! The order of what happens to a fid, what a flush promises, and that nobody waits for another.

use std::sync::Arc;

use bytes::Bytes;
use p9::server::Limits;
use p9::{Attr, Errno, FileKind, Handle, How, Node, NodeRef, Qid, Reply, Tree, Who};

use crate::peer::{Peer, encode};
use crate::ram::Ram;

#[tokio::test(start_paused = true)]
async fn a_blocked_read_stalls_nobody() {
    let root = Ram::root();
    root.pipe("pipe");
    root.file("f", "abc");
    let mut peer = Peer::attached(Arc::new(root), Limits::default()).await;
    peer.opens(1, "pipe", 2).await;
    for tag in 100..600 {
        peer.say(&format!("{tag} Tread fid=1 offset=0 count=9")).await;
    }
    peer.opens(2, "f", 0).await;
    peer.say("1 Tread fid=2 offset=1 count=9").await;
    peer.hears("1 Rread data=bc").await;
    peer.say("1 Twrite fid=1 offset=0 data=x").await;
    // One of them has it; which one is nobody's business.
    let replies = [peer.hear().await.unwrap(), peer.hear().await.unwrap()];
    assert!(replies.iter().any(|reply| reply[4] == 117) && replies.iter().any(|reply| reply[4] == 119));
}

#[tokio::test(start_paused = true)]
async fn a_flush_is_answered_only_when_nothing_can_happen_any_more() {
    let root = Ram::root();
    let stubborn = root.stubborn("s");
    let mut peer = Peer::attached(Arc::new(root), Limits::default()).await;
    peer.opens(1, "s", 1).await;
    peer.say("1 Twrite fid=1 offset=0 data=late").await;
    peer.say("2 Tflush oldtag=1").await;
    // It is under way elsewhere: the flush waits, and everybody else goes on.
    peer.hears_nothing().await;
    peer.say("3 Tgetattr fid=1 request_mask=0x7ff").await;
    peer.hears("3 Rgetattr").await;
    stubborn.release();
    peer.hears("1 Rwrite count=4").await;
    peer.hears("2 Rflush").await;
    assert_eq!(stubborn.contents(), "late");
}

#[tokio::test(start_paused = true)]
async fn a_flushed_write_that_has_not_begun_never_does() {
    let root = Ram::root();
    let (stubborn, file) = (root.stubborn("s"), root.file("f", "old"));
    let mut peer = Peer::attached(Arc::new(root), Limits::default()).await;
    peer.opens(1, "s", 1).await;
    peer.opens(2, "f", 1).await;
    peer.say("1 Twrite fid=1 offset=0 data=x").await;
    // A barrier, which waits for the write, and writes behind it.
    peer.say("2 Tfsync fid=1 datasync=0").await;
    peer.say("3 Twrite fid=1 offset=0 data=y").await;
    peer.say("4 Tflush oldtag=3").await;
    peer.hears("3 Rlerror ecode=4").await;
    peer.hears("4 Rflush").await;
    stubborn.release();
    peer.hears("1 Rwrite count=1").await;
    peer.hears("2 Rfsync").await;
    assert_eq!(stubborn.contents(), "x");
    assert_eq!(file.contents(), "old");
}

/// More than tokio lets one task do at a time, in one go: what comes after must still take its place in the queue.
#[tokio::test(start_paused = true)]
async fn a_barrier_is_one_however_much_came_before_it() {
    for before in 100..200 {
        let root = Ram::root();
        let pipe = root.pipe("pipe");
        let mut peer = Peer::attached(Arc::new(root), Limits::default()).await;
        peer.opens(1, "pipe", 2).await;
        peer.say("1 Tread fid=1 offset=0 count=9").await;
        let mut all: Vec<u8> =
            (1000..1000 + before).flat_map(|tag| encode(&format!("{tag} Tgetattr fid=0 request_mask=0x7ff"))).collect();
        all.extend(encode("2 Tfsync fid=1 datasync=0"));
        all.extend(encode("3 Twrite fid=1 offset=0 data=x"));
        peer.send(&all).await;
        for tag in 1000..1000 + before {
            peer.hears(&format!("{tag} Rgetattr")).await;
        }
        peer.hears_nothing().await;
        assert_eq!(pipe.contents(), "");
        peer.say("4 Tflush oldtag=1").await;
        for reply in ["1 Rlerror ecode=4", "4 Rflush", "2 Rfsync", "3 Rwrite count=1"] {
            peer.hears(reply).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_great_many_fids_are_kept_and_freed() {
    const FIDS: u32 = 200_000;
    let root = Ram::root();
    let file = root.file("f", "");
    let holders = file.holders();
    let mut peer = Peer::attached(Arc::new(root.clone()), Limits::default()).await;
    for first in (1..=FIDS).step_by(100) {
        let walks: Vec<u8> = (first..first + 100)
            .flat_map(|fid| encode(&format!("{} Twalk fid=0 newfid={fid} wnames=f", fid % 100)))
            .collect();
        peer.send(&walks).await;
        for _ in 0..100 {
            assert_eq!(peer.hear().await.unwrap()[4], 111);
        }
    }
    assert!(holders() > FIDS as usize);
    peer.say("1 Twalk fid=0 newfid=50000 wnames=f").await;
    peer.hears("1 Rlerror ecode=9").await;
    peer.hangs_up().await.unwrap();
    // The directory's, and this test's own.
    assert_eq!(holders(), 2);
}

/// A file whose every use panics.
struct Broken;

impl Tree for Broken {
    fn attach<'a>(&'a self, _who: &'a Who, _aname: &'a [u8]) -> Reply<'a, NodeRef> {
        Reply::ok(Arc::new(Self))
    }
}

impl Node for Broken {
    fn qid(&self) -> Qid {
        Qid { kind: FileKind::Dir, version: 0, path: 1 }
    }

    fn attr(&self) -> Reply<'_, Attr> {
        panic!("a bug in a tree")
    }

    fn open(&self, _how: How) -> Reply<'_, Handle> {
        Reply::later(async {
            tokio::task::yield_now().await;
            panic!("a bug in a tree")
        })
    }

    fn read_link(&self) -> Reply<'_, Bytes> {
        Errno::EINVAL.into()
    }
}

#[tokio::test(start_paused = true)]
async fn a_tree_that_panics_fails_one_request() {
    let mut peer = Peer::attached(Arc::new(Broken), Limits::default()).await;
    peer.say("1 Tgetattr fid=0 request_mask=0x7ff").await;
    peer.hears("1 Rlerror ecode=5").await;
    peer.say("1 Tlopen fid=0 flags=0").await;
    peer.hears("1 Rlerror ecode=5").await;
    peer.say("1 Treadlink fid=0").await;
    peer.hears("1 Rlerror ecode=22").await;
}

/// Asks for bulk without reading it, then for attributes, and counts the bytes of bulk that come before those.
async fn bulk_before_attributes(session: bool) -> usize {
    let root = Ram::root();
    root.file("f", &"z".repeat(1 << 20));
    let mut peer = Peer::of(Arc::new(root), Limits::default());
    peer.say("65535 Tversion msize=1048600 version=9P2000.L.slashn").await;
    peer.hears("65535 Rversion").await;
    if session {
        peer.say("65535 Tsession id=bulk lane=0 linger=1000 received=0").await;
        peer.hears("65535 Rsession state=0").await;
    }
    peer.say("0 Tattach fid=0 afid=~ uname= aname=/ n_uname=~").await;
    peer.hears("0 Rattach").await;
    peer.opens(1, "f", 0).await;
    for tag in 10..22 {
        peer.say(&format!("{tag} Tread fid=1 offset=0 count=1048576")).await;
    }
    // All of them have been answered, as far as there is room.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    peer.say("1 Tgetattr fid=1 request_mask=0x7ff").await;
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    let mut bulk = 0;
    loop {
        match peer.hear().await.expect("a reply") {
            reply if reply[4] == 117 => bulk += reply.len(),
            // What a session says of itself.
            reply if reply[4] == 203 => {}
            reply => break assert_eq!(reply[4], 25),
        }
    }
    bulk
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_a_few_bytes_waits_for_no_bulk_but_the_message_that_is_being_written() {
    for session in [false, true] {
        let bulk = bulk_before_attributes(session).await;
        assert!(bulk <= (1 << 20) + 11, "in a session: {session}; behind {bulk} bytes");
    }
}
