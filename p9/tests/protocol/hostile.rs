//! Peers that break the protocol or ask too much: each is told, and loses nothing but its own connection.
//!
//! The clock is paused: it goes on by itself when nothing else can happen, so that a slow peer costs no time.

use std::sync::Arc;
use std::time::Duration;

use p9::Errno;
use p9::server::{Error, Limits, Pool, PoolLimits};
use p9::wire::R;

use crate::peer::{Peer, encode};
use crate::ram::Ram;

/// The errno and tag of a refusal.
fn told(frame: Option<Vec<u8>>) -> (i32, u16) {
    let frame = frame.expect("a refusal");
    let Ok(Some(R::Lerror { ecode })) = R::decode(frame[4], &frame[7..]) else { panic!("no refusal: {frame:?}") };
    (ecode as i32, u16::from_le_bytes([frame[5], frame[6]]))
}

async fn attached() -> Peer {
    Peer::attached(Arc::new(Ram::root()), Limits::default()).await
}

#[tokio::test(start_paused = true)]
async fn a_frame_larger_than_agreed_is_refused_when_it_is_announced() {
    let mut peer = attached().await;
    peer.send(&8193_u32.to_le_bytes()).await;
    let (last, err) = peer.refusal().await;
    assert_eq!(told(last), (Errno::EMSGSIZE.code(), !0));
    assert!(matches!(err, Error::FrameSize { size: 8193, msize: 8192 }), "{err}");
}

#[tokio::test(start_paused = true)]
async fn a_frame_too_small_to_be_one_is_refused() {
    for size in [0_u32, 6] {
        let mut peer = attached().await;
        peer.send(&[&size.to_le_bytes()[..], &[0; 16]].concat()).await;
        let (last, err) = peer.refusal().await;
        assert_eq!(told(last), (Errno::EMSGSIZE.code(), !0));
        assert!(matches!(err, Error::FrameSize { .. }), "{err}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_count_beyond_the_frame_is_refused() {
    let mut peer = attached().await;
    let mut frame = encode("5 Twrite fid=0 offset=0 data=abc");
    let count = frame.len() - 7;
    frame[count..count + 4].copy_from_slice(&4_u32.to_le_bytes());
    peer.send(&frame).await;
    let (last, err) = peer.refusal().await;
    assert_eq!(told(last), (Errno::EPROTO.code(), 5));
    assert!(matches!(err, Error::Malformed { code: 118, .. }), "{err}");
}

#[tokio::test(start_paused = true)]
async fn bytes_after_a_message_are_refused() {
    let mut peer = attached().await;
    let mut frame = encode("5 Tclunk fid=0");
    frame.push(0);
    frame[0] += 1;
    peer.send(&frame).await;
    let (last, err) = peer.refusal().await;
    assert_eq!(told(last), (Errno::EPROTO.code(), 5));
    assert!(matches!(err, Error::Malformed { .. }), "{err}");
}

#[tokio::test(start_paused = true)]
async fn more_names_than_a_walk_may_have_are_refused() {
    let mut peer = attached().await;
    peer.say("5 Twalk fid=0 newfid=1 wnames=a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a").await;
    let (last, _) = peer.refusal().await;
    assert_eq!(told(last), (Errno::EPROTO.code(), 5));
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_is_in_use_is_refused_for_requests_and_flushes() {
    for second in ["3 Tgetattr fid=0 request_mask=0x7ff", "3 Tflush oldtag=9", "3 Tauth afid=1 uname= aname= n_uname=~"]
    {
        let root = Ram::root();
        root.pipe("pipe");
        let mut peer = Peer::attached(Arc::new(root), Limits::default()).await;
        peer.say("1 Twalk fid=0 newfid=1 wnames=pipe").await;
        peer.say("2 Tlopen fid=1 flags=0").await;
        peer.hears("1 Rwalk").await;
        peer.hears("2 Rlopen").await;
        peer.say("3 Tread fid=1 offset=0 count=9").await;
        peer.say(second).await;
        let (last, err) = peer.refusal().await;
        assert_eq!(told(last), (Errno::EPROTO.code(), 3));
        assert!(matches!(err, Error::DuplicateTag(3)), "{err}");
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_does_not_begin_with_a_version_is_refused() {
    let mut peer = Peer::of(Arc::new(Ram::root()), Limits::default());
    peer.say("1 Tattach fid=0 afid=~ uname= aname= n_uname=~").await;
    let (last, err) = peer.refusal().await;
    assert_eq!(told(last), (Errno::EPROTO.code(), 1));
    assert!(matches!(err, Error::NoVersion(104)), "{err}");
}

#[tokio::test(start_paused = true)]
async fn an_msize_too_small_to_work_with_is_refused() {
    let mut peer = Peer::of(Arc::new(Ram::root()), Limits::default());
    peer.say("65535 Tversion msize=100 version=9P2000.L").await;
    let (_, err) = peer.refusal().await;
    assert!(matches!(err, Error::TooSmall(100)), "{err}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_nothing_is_waited_for_a_while_only() {
    let start = tokio::time::Instant::now();
    let (_, err) = Peer::of(Arc::new(Ram::root()), Limits::default()).refusal().await;
    assert!(matches!(err, Error::TooSlow(..)), "{err}");
    assert_eq!(start.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_byte_a_second_is_refused_and_an_idle_connection_is_not() {
    let mut peer = attached().await;
    tokio::time::sleep(Duration::from_secs(100_000)).await;
    peer.say("1 Tgetattr fid=0 request_mask=0x7ff").await;
    peer.hears("1 Rgetattr qid=d1").await;

    let name = "x".repeat(100);
    let frame = encode(&format!("1 Tmkdir dfid=0 name={name} mode=0o755 gid=0"));
    for byte in &frame[..40] {
        if peer.served.is_finished() {
            break;
        }
        peer.send(&[*byte]).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (last, err) = peer.refusal().await;
    assert_eq!(told(last), (Errno::ETIMEDOUT.code(), !0));
    assert!(matches!(err, Error::TooSlow(time, _) if time == Duration::from_secs(30)), "{err}");
}

#[tokio::test(start_paused = true)]
async fn a_large_frame_over_a_slow_link_is_taken() {
    let root = Ram::root();
    let file = root.file("f", "");
    let mut peer = Peer::of(Arc::new(root), Limits::default());
    peer.say("65535 Tversion msize=1048600 version=9P2000.L").await;
    peer.hears("65535 Rversion msize=1048600").await;
    peer.say("0 Tattach fid=0 afid=~ uname= aname=f n_uname=~").await;
    peer.hears("0 Rattach").await;
    peer.say("1 Tlopen fid=0 flags=1").await;
    peer.hears("1 Rlopen").await;
    let frame = encode(&format!("2 Twrite fid=0 offset=0 data={}", "y".repeat(1 << 20)));
    for part in frame.chunks(8 << 10) {
        peer.send(part).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    peer.hears("2 Rwrite count=1048576").await;
    assert_eq!(file.contents().len(), 1 << 20);
}

#[tokio::test(start_paused = true)]
async fn the_end_in_the_middle_of_a_frame_is_an_error() {
    let mut peer = attached().await;
    peer.send(&encode("1 Tclunk fid=0")[..9]).await;
    assert!(matches!(peer.hangs_up().await, Err(Error::Io(_))));
}

#[tokio::test(start_paused = true)]
async fn one_fid_too_many_is_refused_and_the_others_stay() {
    let limits = Limits { fids: 2, ..Limits::default() };
    let mut peer = Peer::attached(Arc::new(Ram::root()), limits).await;
    peer.say("1 Twalk fid=0 newfid=1 wnames=").await;
    peer.hears("1 Rwalk").await;
    peer.say("1 Twalk fid=0 newfid=2 wnames=").await;
    peer.hears("1 Rlerror ecode=24").await;
    peer.say("1 Tclunk fid=1").await;
    peer.hears("1 Rclunk").await;
    peer.say("1 Twalk fid=0 newfid=2 wnames=").await;
    peer.hears("1 Rwalk").await;
}

#[tokio::test(start_paused = true)]
async fn one_request_too_many_is_refused_but_flushes_and_clunks_are_not() {
    let root = Ram::root();
    root.pipe("pipe");
    let limits = Limits { in_flight: 4, ..Limits::default() };
    let mut peer = Peer::attached(Arc::new(root), limits).await;
    peer.say("1 Twalk fid=0 newfid=1 wnames=pipe").await;
    peer.say("2 Tlopen fid=1 flags=0").await;
    peer.say("3 Twalk fid=0 newfid=2 wnames=").await;
    peer.hears("1 Rwalk").await;
    peer.hears("2 Rlopen").await;
    peer.hears("3 Rwalk").await;
    for tag in 1..=4 {
        peer.say(&format!("{tag} Tread fid=1 offset=0 count=9")).await;
    }
    peer.say("5 Tgetattr fid=0 request_mask=0x7ff").await;
    peer.hears("5 Rlerror ecode=11").await;
    peer.say("5 Tclunk fid=2").await;
    peer.hears("5 Rclunk").await;
    peer.say("5 Tflush oldtag=1").await;
    peer.hears("1 Rlerror ecode=4").await;
    peer.hears("5 Rflush").await;
    peer.say("5 Tgetattr fid=0 request_mask=0x7ff").await;
    peer.hears("5 Rgetattr").await;
}

#[tokio::test(start_paused = true)]
async fn flushes_without_end_are_refused_and_their_chain_costs_no_stack() {
    let root = Ram::root();
    let stubborn = root.stubborn("f");
    let limits = Limits { in_flight: 1024, ..Limits::default() };
    let mut peer = Peer::attached(Arc::new(root), limits).await;
    peer.say("1 Twalk fid=0 newfid=1 wnames=f").await;
    peer.say("2 Tlopen fid=1 flags=1").await;
    peer.hears("1 Rwalk").await;
    peer.hears("2 Rlopen").await;
    peer.say("0 Twrite fid=1 offset=0 data=x").await;
    for tag in 1..4000 {
        peer.say(&format!("{tag} Tflush oldtag={}", tag - 1)).await;
    }
    peer.hears_nothing().await;
    stubborn.release();
    peer.hears("0 Rwrite count=1").await;
    for tag in 1..4000 {
        peer.hears(&format!("{tag} Rflush")).await;
    }

    peer.say("0 Twrite fid=1 offset=0 data=x").await;
    for tag in 1..=4096 {
        peer.say(&format!("{tag} Tflush oldtag=0")).await;
    }
    let (last, err) = peer.refusal().await;
    assert_eq!(told(last), (Errno::EMFILE.code(), 4096));
    assert!(matches!(err, Error::TooMany(4096)), "{err}");
}

#[tokio::test(start_paused = true)]
async fn whoever_reads_no_replies_costs_no_more_than_was_allowed() {
    let root = Ram::root();
    let file = root.file("f", &"z".repeat(1 << 20));
    let limits = Limits { bytes_in_flight: 8 << 20, ..Limits::default() };
    let mut peer = Peer::of(Arc::new(root), limits);
    peer.say("65535 Tversion msize=1048600 version=9P2000.L").await;
    peer.hears("65535 Rversion").await;
    peer.say("0 Tattach fid=0 afid=~ uname= aname=f n_uname=~").await;
    peer.hears("0 Rattach").await;
    peer.say("1 Tlopen fid=0 flags=0").await;
    peer.hears("1 Rlopen").await;
    for tag in 1..=40 {
        peer.say(&format!("{tag} Tread fid=0 offset=0 count=1048576")).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!((1..=8).contains(&file.reads()), "{} reads", file.reads());
    // Who reads them after all gets every one.
    for _ in 1..=40 {
        assert_eq!(peer.hear().await.expect("a reply").len(), (1 << 20) + 11);
    }
    assert_eq!(file.reads(), 40);
}

#[tokio::test(start_paused = true)]
async fn random_bytes_end_their_connection_alone() {
    let tree: Arc<Ram> = Arc::new(Ram::root());
    let mut bystander = Peer::attached(tree.clone(), Limits::default()).await;
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as u8
    };
    for _ in 0..500 {
        let peer = Peer::attached(tree.clone(), Limits::default()).await;
        // A frame that may be one, and whatever comes after it.
        let mut bytes: Vec<u8> = (0..200).map(|_| random() % 128).collect();
        bytes[1..4].fill(0);
        peer.sends_and_hangs_up(&bytes).await;
    }
    bystander.say("1 Tgetattr fid=0 request_mask=0x7ff").await;
    bystander.hears("1 Rgetattr qid=d1").await;
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_given_back_however_many_wait_for_it() {
    let root = Ram::root();
    root.file("f", "x");
    let limits = Limits { in_flight: 2, ..Limits::default() };
    let mut peer = Peer::attached(Arc::new(root), limits).await;
    peer.opens(1, "f", 2).await;
    let lock = |tag: u16, kind: u8, flags: u32, client: &str| {
        format!("{tag} Tlock fid=1 type={kind} flags={flags} start=0 length=0 proc_id=1 client_id={client}")
    };
    peer.say(&lock(3, 1, 0, "a")).await;
    peer.hears("3 Rlock status=0").await;
    for (tag, client) in [(4, "b"), (5, "c")] {
        peer.say(&lock(tag, 1, 1, client)).await;
    }
    peer.hears_nothing().await;
    peer.say("6 Tgetattr fid=1 request_mask=0x7ff").await;
    peer.hears("6 Rlerror ecode=11").await;
    peer.say(&lock(7, 2, 0, "a")).await;
    peer.hears("7 Rlock status=0").await;
    peer.hears("4 Rlock status=0").await;
}

#[tokio::test(start_paused = true)]
async fn a_vanished_client_frees_everything() {
    let root = Ram::root();
    let (file, pipe, stubborn) = (root.file("f", "x"), root.pipe("pipe"), root.stubborn("s"));
    let holders = [file.holders(), pipe.holders(), stubborn.holders()];
    let mut peer = Peer::attached(Arc::new(root.clone()), Limits::default()).await;
    for (fid, name) in [(1, "f"), (2, "pipe"), (3, "s")] {
        peer.say(&format!("1 Twalk fid=0 newfid={fid} wnames={name}")).await;
        peer.say(&format!("2 Tlopen fid={fid} flags=2")).await;
        peer.hears("1 Rwalk").await;
        peer.hears("2 Rlopen").await;
    }
    peer.say("1 Tread fid=2 offset=0 count=9").await;
    peer.say("2 Twrite fid=3 offset=0 data=x").await;
    peer.say("3 Tclunk fid=2").await;
    peer.hears_nothing().await;
    assert!(holders.iter().all(|holders| holders() > 2));
    peer.hangs_up().await.unwrap();
    // The directory's, and this test's own.
    assert_eq!(holders.map(|holders| holders()), [2, 2, 2]);
}

/// Limits by which all connections together have little.
fn scarce(pool: PoolLimits) -> Limits {
    Limits { pool: Pool::new(pool), ..Limits::default() }
}

/// A peer with frames of 1 MiB that has the file `f` open as fid 1.
async fn with_large_frames(tree: &Arc<Ram>, limits: &Limits) -> Peer {
    let mut peer = Peer::of(tree.clone(), limits.clone());
    peer.say("65535 Tversion msize=1048600 version=9P2000.L").await;
    peer.hears("65535 Rversion").await;
    peer.say("0 Tattach fid=0 afid=~ uname= aname= n_uname=~").await;
    peer.hears("0 Rattach").await;
    peer.opens(1, "f", 2).await;
    peer
}

#[tokio::test(start_paused = true)]
async fn requests_and_fids_are_bounded_over_all_connections_of_a_peer() {
    let root = Ram::root();
    root.pipe("pipe");
    let few = PoolLimits { requests: 8, fids: 8, ..PoolLimits::default() };
    let (tree, limits) = (Arc::new(root), scarce(few));
    let mut one = Peer::attached(tree.clone(), limits.clone()).await;
    let mut other = Peer::attached(tree.clone(), limits.clone()).await;
    one.opens(1, "pipe", 2).await;
    other.opens(1, "pipe", 2).await;
    other.say("1 Twalk fid=0 newfid=2 wnames=").await;
    other.hears("1 Rlerror ecode=24").await;
    for tag in [10, 11] {
        one.say(&format!("{tag} Tread fid=1 offset=0 count=9")).await;
        other.say(&format!("{tag} Tread fid=1 offset=0 count=9")).await;
    }
    one.hears_nothing().await;
    other.say("1 Tgetattr fid=0 request_mask=0x7ff").await;
    other.hears("1 Rlerror ecode=11").await;
    // All of it is free when one of them has gone.
    one.hangs_up().await.unwrap();
    other.say("1 Tgetattr fid=0 request_mask=0x7ff").await;
    other.hears("1 Rgetattr").await;
    other.say("1 Twalk fid=0 newfid=2 wnames=").await;
    other.hears("1 Rwalk").await;
}

#[tokio::test(start_paused = true)]
async fn bytes_are_bounded_over_all_connections_of_a_peer_and_what_is_small_goes_on() {
    let root = Ram::root();
    let file = root.file("f", &"z".repeat(1 << 20));
    let (tree, limits) = (Arc::new(root), scarce(PoolLimits { bytes: 4 << 20, ..PoolLimits::default() }));
    let mut one = with_large_frames(&tree, &limits).await;
    for tag in 1..=9 {
        one.say(&format!("{tag} Tread fid=1 offset=0 count=1048576")).await;
    }
    one.sleeps().await;
    assert_eq!(file.reads(), 2, "it reads no reply, and there is no room for a third");
    let mut other = with_large_frames(&tree, &limits).await;
    other.say("1 Tread fid=1 offset=0 count=1048576").await;
    // The beginning of a large frame, and of another: there is no room for a third.
    let large = encode(&format!("2 Twrite fid=1 offset=0 data={}", "y".repeat(1_000_000)));
    let mut begun = Vec::new();
    for _ in 0..2 {
        let mut peer = with_large_frames(&tree, &limits).await;
        peer.send(&large[..large.len() - 1]).await;
        begun.push(peer);
    }
    let mut third = with_large_frames(&tree, &limits).await;
    third.say("1 Tgetattr fid=1 request_mask=0x7ff").await;
    third.hears("1 Rgetattr").await;
    {
        let mut waits = std::pin::pin!(third.send(&large));
        assert!(tokio::time::timeout(Duration::from_secs(5), waits.as_mut()).await.is_err(), "it is not read");
        begun.pop();
        waits.await;
    }
    third.hears("2 Rwrite count=1000000").await;
    other.say("3 Tgetattr fid=1 request_mask=0x7ff").await;
    other.hears("3 Rgetattr").await;
    // It was being written to.
    let _ = one.hangs_up().await;
    assert_eq!(other.hear().await.expect("its reply")[4], 117);
}
