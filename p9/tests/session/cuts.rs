//! What a client sees of connections that are lost: nothing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use p9::client::{Client, Options, Resume};
use p9::server::{Limits, SessionLimits, Sessions};
use p9::wire::{NO_TAG, Str, T, VERSION_SLASHN};
use p9::{Errno, Handle, How, Name, NodeRef, Tree, Want, Who};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, WriteHalf};
use tokio::time::timeout;

use crate::net::{Net, PATIENCE};
use crate::ram::Ram;

fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

async fn open(root: &NodeRef, file: &str, how: How) -> Handle {
    root.open_at(&[name(file)], how, Want::default()).await.unwrap().handle
}

/// Appends the lines 0 to `count`, some one by one and some at once.
async fn append(log: &Handle, count: usize) {
    let mut next = 0;
    while next < count {
        let together: Vec<_> = (next..count.min(next + 1 + next % 3)).collect();
        next += together.len();
        let writes = together.iter().map(|line| log.write(0, Bytes::from(format!("{line}\n"))));
        for written in futures_util::future::join_all(writes).await {
            assert!(written.unwrap().count > 0);
        }
    }
}

/// All of a session's doings, of which none may be done twice or not at all.
async fn work(root: &NodeRef, count: usize) {
    let log = open(root, "log", How { append: true, ..How::WRITE }).await;
    append(&log, count).await;
    let text = root.open_at(&[name("log")], How::READ, Want { data: 1000, ..Want::ATTR }).await.unwrap();
    assert_eq!(text.first.unwrap(), lines(count).as_bytes());
    // Each of these fails when it is done twice.
    root.create(name("made"), p9::New { what: p9::What::Dir, mode: 0o755, owner: None }).await.unwrap();
    root.rename(name("made"), root, name("moved"), 0).await.unwrap();
    root.remove(name("moved"), true).await.unwrap();
    log.close().await.unwrap();
}

fn lines(count: usize) -> String {
    (0..count).map(|line| format!("{line}\n")).collect()
}

fn sorted(text: &[u8]) -> Vec<usize> {
    let mut lines: Vec<usize> = std::str::from_utf8(text).unwrap().lines().map(|line| line.parse().unwrap()).collect();
    lines.sort_unstable();
    lines
}

#[tokio::test(start_paused = true)]
async fn a_connection_may_be_cut_after_any_byte() {
    let ram = Ram::root();
    ram.file("log", "");
    let net = Net::new(ram);
    let (_client, root) = net.client().await;
    let before = net.passed();
    work(&root, 2).await;
    let all = net.passed();
    assert!(all[0] - before[0] > 200 && all[1] - before[1] > 200, "{all:?}");
    for way in 0..2 {
        for bytes in 1..all[way] - before[way] {
            let ram = Ram::root();
            let log = ram.file("log", "");
            let net = Net::new(ram);
            let (_client, root) = net.client().await;
            let mut left = [u64::MAX; 2];
            left[way] = bytes;
            net.cut_after(left);
            timeout(PATIENCE, work(&root, 2)).await.unwrap_or_else(|_| panic!("stuck: {bytes} bytes, way {way}"));
            assert_eq!(log.contents(), lines(2), "{bytes} bytes, way {way}");
            assert_eq!(net.dialled(), 2, "{bytes} bytes, way {way}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_append_is_there_once_and_in_order_through_a_link_that_is_cut_again_and_again() {
    for seed in 1..10_u64 {
        let ram = Ram::root();
        let log = ram.file("log", "");
        // Enough for the two sides to greet each other, mostly; often in the middle of what they send again.
        let budget = move |number: usize| {
            let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (number as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            x ^= x >> 29;
            [40 + x % 900, 40 + (x >> 20) % 900]
        };
        let net = Net::with(ram, SessionLimits::default(), move |number| match number {
            0 => [u64::MAX; 2],
            number => budget(number),
        });
        let (client, root) = net.client().await;
        net.cut_after(budget(0));
        timeout(PATIENCE, work(&root, 200)).await.expect("not stuck");
        assert_eq!(log.contents(), lines(200));
        assert!(net.dialled() > 5, "{}", net.dialled());
        assert!(!client.is_closed());
    }
}

#[tokio::test(start_paused = true)]
async fn many_at_once_are_done_once_each() {
    let ram = Ram::root();
    let log = ram.file("log", "");
    let net = Net::with(ram, SessionLimits::default(), |number| match number {
        0 => [u64::MAX; 2],
        number => [500 + 300 * (number as u64 % 7), 700],
    });
    let (_client, root) = net.client().await;
    net.cut_after([900, 900]);
    let handle = open(&root, "log", How { append: true, ..How::WRITE }).await;
    let writes = (0..400_usize).map(|line| handle.write(0, Bytes::from(format!("{line}\n"))));
    let written = timeout(PATIENCE, futures_util::future::join_all(writes)).await.unwrap();
    assert!(written.into_iter().all(|written| written.is_ok()));
    assert_eq!(sorted(&log.contents()), (0..400).collect::<Vec<_>>());
    assert!(net.dialled() > 3);
}

#[tokio::test(start_paused = true)]
async fn a_blocked_read_survives_a_cut_and_so_does_a_fid_that_is_held() {
    let ram = Ram::root();
    let held = ram.dir("held");
    held.file("inner", "deep down");
    let pipe = ram.pipe("pipe");
    let net = Net::new(ram);
    let (client, root) = net.client().await;
    let place = root.walk(&[name("held")], Want::default()).await.unwrap().reached().unwrap().node;
    let stream = open(&root, "pipe", How::RDWR).await;
    let reading = {
        tokio::spawn({
            let stream = stream.clone();
            async move { stream.read(0, 100).await }
        })
    };
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        net.cut();
    }
    net.down(true);
    let asked = tokio::spawn({
        let root = root.clone();
        async move { root.attr().await }
    });
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert!(!asked.is_finished() && !client.is_closed(), "what is asked meanwhile waits");
    net.down(false);
    asked.await.unwrap().unwrap();
    assert_eq!(stream.write(0, Bytes::from_static(b"ping")).await.unwrap().count, 4);
    assert_eq!(timeout(PATIENCE, reading).await.unwrap().unwrap().unwrap(), "ping");
    assert!(pipe.contents().is_empty());
    let inner = place.open_at(&[name("inner")], How::READ, Want { data: 100, ..Want::default() }).await.unwrap();
    assert_eq!(inner.first.unwrap(), "deep down");
    assert_eq!(net.sessions().count(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_silent_link_is_made_again() {
    let ram = Ram::root();
    let log = ram.file("log", "");
    let net = Net::new(ram);
    let (client, root) = net.client().await;
    // From here on nothing comes through, and nobody is told.
    net.stall();
    work(&root, 3).await;
    assert_eq!((log.contents(), net.dialled()), (lines(3).into(), 2));
    assert!(!client.is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_was_started_anew_ends_the_client_and_what_is_under_way_is_stale() {
    let ram = Ram::root();
    ram.pipe("pipe");
    let net = Net::new(ram.clone());
    let anew = Net::new(ram);
    let dial = {
        let (net, anew) = (net.clone(), anew.clone());
        move || {
            if net.dialled() == 0 {
                net.dial(crate::net::who("SHA256:me"))()
            } else {
                anew.dial(crate::net::who("SHA256:me"))()
            }
        }
    };
    let first = net.connect(crate::net::who("SHA256:me"));
    let resume = Resume { dial: Arc::new(dial), bulk: None, ..net.resume() };
    let client = Client::resuming(first, Options::default(), resume).await.unwrap();
    let root = client.attach(&Who::owner(), b"").await.unwrap();
    let stream = open(&root, "pipe", How::RDWR).await;
    let reading = tokio::spawn({
        let stream = stream.clone();
        async move { stream.read(0, 100).await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    net.cut();
    assert_eq!(timeout(PATIENCE, reading).await.unwrap().unwrap(), Err(Errno::ECONNRESET), "it may have been done");
    client.closed().await;
    assert_eq!(root.attr().await, Err(Errno::ESTALE));
    assert_eq!(anew.dialled(), 1);
    // What it began there to find out is gone again.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(anew.sessions().count(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_be_reached_ends_the_client_when_its_session_must_have_ended() {
    let ram = Ram::root();
    let file = ram.file("file", "");
    let holders = file.holders();
    drop(file);
    let net = Net::new(ram);
    let (client, root) = net.client().await;
    let _file = open(&root, "file", How::READ).await;
    let before = holders();
    assert!(before > 1, "a fid holds it");
    net.down(true);
    let (asked, late) = tokio::join!(timeout(PATIENCE, root.attr()), async {
        tokio::time::sleep(Duration::from_secs(51)).await;
        assert!(!client.is_closed());
        // After so long who asks is told at once.
        timeout(Duration::from_millis(1), root.attr()).await.expect("an answer")
    });
    assert_eq!(
        (asked.unwrap(), late),
        (Err(Errno::ECONNRESET), Err(Errno::EHOSTUNREACH)),
        "the first may have been done"
    );
    client.closed().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((net.sessions().count(), holders()), ((0, 0), 1), "the fids are free");
}

#[tokio::test(start_paused = true)]
async fn a_session_ends_with_its_client() {
    let net = Net::new(Ram::root());
    let (client, root) = net.client().await;
    assert_eq!(net.sessions().count(), (1, 0));
    drop((client, root));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(net.sessions().count(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_leaves_says_so_and_is_not_waited_for() {
    let (ram, back) = (Ram::root(), Duration::from_secs(3));
    ram.pipe("pipe");
    ram.file("file", "text");
    let net = Net::new(ram.clone());
    let (client, root) = net.client().await;
    let (pipe, file) = (open(&root, "pipe", How::READ).await, open(&root, "file", How::READ).await);
    let reads = async { pipe.read(0, 10).await };
    let leaves = async {
        // It is under way.
        file.read(0, 10).await.unwrap();
        net.sessions().leave(back).await;
    };
    let (read, ()) = timeout(PATIENCE, async { tokio::join!(reads, leaves) }).await.unwrap();
    assert_eq!(read.err(), Some(Errno::ECONNRESET), "it may have been done");
    client.closed().await;
    assert_eq!((client.left(), net.dialled(), net.sessions().count()), (Some(back), 1, (0, 0)));
    assert_eq!(file.read(0, 10).await.err(), Some(Errno::EHOSTUNREACH));
    // Who has no connection need not be told.
    let net = Net::new(ram);
    let (client, _root) = net.client().await;
    net.down(true);
    while net.sessions().count() != (1, 1) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    net.sessions().leave(back).await;
    assert_eq!((client.left(), net.sessions().count()), (None, (0, 0)));
}

/// What the server writes to: from some moment on nothing can be written, and the peer has just said farewell.
struct Broken {
    to: WriteHalf<DuplexStream>,
    last: WriteHalf<DuplexStream>,
    breaks: Arc<AtomicBool>,
}

impl AsyncWrite for Broken {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.breaks.load(Ordering::SeqCst) {
            return Pin::new(&mut self.to).poll_write(cx, bytes);
        }
        let said = Pin::new(&mut self.last).poll_write(cx, &p9::client::farewell());
        assert!(said.is_ready());
        Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.to).poll_shutdown(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn a_farewell_is_heard_where_nothing_can_be_written_any_more() {
    let mut hello = Vec::new();
    T::Version { msize: 8192, version: Str(VERSION_SLASHN) }.encode(NO_TAG, &mut hello);
    T::Session { id: [1; 16], lane: 0, linger: 600_000, received: 0 }.encode(NO_TAG, &mut hello);
    let begins = hello.len();
    T::Attach { fid: 1, afid: !0, uname: Str(b""), aname: Str(b""), n_uname: None }.encode(1, &mut hello);
    let sessions = Sessions::new(SessionLimits::default());
    let (mut requests, from_peer) = tokio::io::duplex(64 << 10);
    let (last, from_last) = tokio::io::duplex(64 << 10);
    let (to_peer, mut replies) = tokio::io::duplex(64 << 10);
    let breaks = Arc::new(AtomicBool::new(false));
    let writer = Broken { to: tokio::io::split(to_peer).1, last: tokio::io::split(last).1, breaks: breaks.clone() };
    // What is said last comes after all else.
    let reader = tokio::io::split(from_peer).0.take(hello.len() as u64).chain(from_last);
    let io = tokio::io::join(reader, writer);
    let served = sessions.clone();
    let serving = tokio::spawn(async move {
        let _ = served.serve(io, Arc::new(Ram::root()), Arc::new(Who::owner()), Limits::default()).await;
    });
    requests.write_all(&hello[..begins]).await.unwrap();
    while sessions.count().0 == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    replies.read_exact(&mut [0; 20]).await.unwrap();
    breaks.store(true, Ordering::SeqCst);
    requests.write_all(&hello[begins..]).await.unwrap();
    timeout(PATIENCE, serving).await.unwrap().unwrap();
    assert_eq!(sessions.count(), (0, 0), "it does not linger");
}
