//! The caller's connections: the words that they begin with, and that nothing small goes where bulk does.

use std::path::Path;

use bytes::Bytes;
use fileserver::{Disk, DiskOptions};
use futures_util::future::join_all;
use p9::server::{Limits, SessionLimits, Sessions};
use p9::{Handle, How, Name, NodeRef, TreeRef, Want};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::*;
use crate::launch::Launcher;
use crate::session::CloneFile;
use crate::{CpuLimits, CpuOptions};

const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of one message of bulk.
const PIECE: usize = 100_000;
const PIECES: usize = 12;

#[test]
fn the_first_line_names_a_session_and_its_nonce() {
    let said_away = |kind, away| Some(Line { name: "17", nonce: "ab", kind, away });
    let said = |kind| said_away(kind, AWAY.0);
    assert_eq!(Line::parse(&line(17, "ab")), said(Kind::First));
    assert_eq!(Line::parse(&bulk_line(17, "ab")), said(Kind::Bulk));
    assert_eq!(Line::parse(&told_line(17, "ab", 300)), said(Kind::Told(300)));
    assert_eq!(Line::parse(&told_line(17, "ab", MOST + 1)), None);
    let soon = Duration::from_secs(5);
    assert_eq!(Line::parse(&away(&line(17, "ab"), soon)), said_away(Kind::First, soon));
    assert_eq!(Line::parse(&away(&told_line(17, "ab", 300), soon)), said_away(Kind::Told(300), soon));
    assert_eq!(Line::parse(&away(&line(17, "ab"), AWAY.1 * 2)), None);
    assert!(Cpu::is_serve_back(line(17, "ab").as_bytes()));
    let wrong = ["serve 17\n", "serve 1 a b\n", "serve 1 a bulk bulk\n", "serve 1  bulk\n", "serve 1 a away\n"];
    for wrong in wrong.into_iter().chain(["serve 1 \n", "served 1 a\n", ""]) {
        assert_eq!(Line::parse(wrong), None, "{wrong}");
    }
    assert_eq!(Line::parse(&line(1, &"a".repeat(LINE_MAX))), None);
}

struct NoTrees;

impl ns::Dialer for NoTrees {
    fn dial<'a>(&'a self, _server: &'a str, _spec: &'a str) -> p9::Reply<'a, NodeRef> {
        Errno::ENOENT.into()
    }
}

/// A service on which nothing is started.
fn cpu() -> Arc<Cpu> {
    Cpu::new(CpuOptions {
        launcher: Launcher::start_with(Path::new("/bin/cat"), &[] as &[&str]).unwrap(),
        node_name: "beta".into(),
        runtime: tokio::runtime::Handle::current(),
        own: Arc::new(NoTrees),
        travel: None,
        tmp: std::env::temp_dir(),
        env: Vec::new(),
        drivers: Vec::new(),
        qid_key: [7; 32],
        disk: None,
        limits: CpuLimits::default(),
    })
}

/// A link that counts the frames which it carries, and may hold them.
struct Link {
    /// The sizes of those to the node and back.
    frames: [Mutex<Vec<usize>>; 2],
    held: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
}

impl Link {
    /// The link, and its ends.
    fn new() -> (Arc<Self>, DuplexStream, DuplexStream) {
        let ((near, one), (other, far)) = (tokio::io::duplex(1 << 16), tokio::io::duplex(1 << 16));
        let (held, _) = watch::channel(false);
        let link = Arc::new(Self { frames: Default::default(), held, tasks: Mutex::default() });
        let ((from_near, to_near), (from_far, to_far)) = (tokio::io::split(one), tokio::io::split(other));
        let mut tasks = link.tasks.lock();
        tasks.spawn(link.clone().carries(0, from_near, to_far));
        tasks.spawn(link.clone().carries(1, from_far, to_near));
        drop(tasks);
        (link, near, far)
    }

    async fn carries(self: Arc<Self>, way: usize, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        let mut held = self.held.subscribe();
        while let Ok(size) = from.read_u32_le().await {
            self.frames[way].lock().push(size as usize);
            let mut frame = vec![0; size as usize];
            frame[..4].copy_from_slice(&size.to_le_bytes());
            from.read_exact(&mut frame[4..]).await.unwrap();
            held.wait_for(|held| !held).await.unwrap();
            if to.write_all(&frame).await.is_err() {
                return;
            }
        }
    }

    fn cut(&self) {
        self.tasks.lock().abort_all();
    }

    fn counts(&self) -> [usize; 2] {
        [0, 1].map(|way| self.frames[way].lock().len())
    }

    /// The sizes of the frames that came after there had been `before`, both ways.
    fn since(&self, before: [usize; 2]) -> Vec<usize> {
        [0, 1].into_iter().flat_map(|way| self.frames[way].lock()[before[way]..].to_vec()).collect()
    }
}

/// A caller who serves a directory with the files `large` and `other`, and the node's session.
struct Caller {
    _dir: tempfile::TempDir,
    tree: TreeRef,
    sessions: Sessions,
    cpu: Arc<Cpu>,
    session: Arc<Session>,
    _held: CloneFile,
    nonce: String,
}

impl Caller {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("large"), vec![b'x'; PIECES * PIECE]).unwrap();
        std::fs::write(dir.path().join("other"), "").unwrap();
        let tree = Disk::open(dir.path(), DiskOptions::new([1; 32])).unwrap();
        let (cpu, owner) = (cpu(), Owner::from(&Who::owner()));
        let held = cpu.open_clone(&owner).unwrap();
        let session = held.session.clone();
        let (sessions, nonce) = (Sessions::new(SessionLimits::default()), session.nonce());
        Self { _dir: dir, tree, sessions, cpu, session, _held: held, nonce }
    }

    /// Brings a connection that begins with `line`; the last says how that ends.
    fn brings(&self, line: String) -> (Arc<Link>, tokio::task::JoinHandle<Result<(), ServeBackError>>) {
        let (link, near, far) = Link::new();
        let (sessions, tree, cpu) = (self.sessions.clone(), self.tree.clone(), self.cpu.clone());
        tokio::spawn(async move { sessions.serve(near, tree, Arc::new(Who::owner()), Limits::default()).await });
        (link, tokio::spawn(async move { cpu.serve_back(&line, Box::new(far), &Who::owner()).await }))
    }

    fn line(&self) -> String {
        line(self.session.id, &self.nonce)
    }

    fn bulk_line(&self) -> String {
        bulk_line(self.session.id, &self.nonce)
    }
}

async fn open(root: &NodeRef, how: How) -> Handle {
    root.open_at(&[Name::new(b"large").unwrap()], how, Want::default()).await.unwrap().handle
}

/// Reads until bulk goes by `link`.
async fn warm(large: &Handle, link: &Link) {
    while !link.frames[0].lock().iter().any(|size| *size > PIECE) {
        large.read(0, PIECE as u32).await.unwrap();
    }
}

/// Reads all of it and writes it anew, in pieces, all at the same time.
async fn moves(large: &Handle) {
    let piece = Bytes::from(vec![b'x'; PIECE]);
    let at = |number: usize| (number * PIECE) as u64;
    let reads = join_all((0..PIECES).map(|number| large.read(at(number), PIECE as u32).into_future()));
    let writes = join_all((0..PIECES).map(|number| large.write(at(number), piece.clone()).into_future()));
    let (reads, writes) = tokio::join!(reads, writes);
    assert!(reads.into_iter().all(|read| read.unwrap() == piece));
    assert!(writes.into_iter().all(|written| written.unwrap().count as usize == PIECE));
}

#[tokio::test]
async fn nothing_that_a_command_asks_waits_behind_the_bulk_of_its_files() {
    let caller = Caller::new();
    let (first, _lasts) = caller.brings(caller.line());
    let root = timeout(PATIENCE, caller.session.caller()).await.unwrap().unwrap().1;
    let large = open(&root, How::RDWR).await;
    let there_is_bulk = caller.sessions.carry_bulk(1 << 20);
    let reads = async {
        loop {
            large.read(0, PIECE as u32).await.unwrap();
        }
    };
    tokio::select! {
        () = there_is_bulk => {}
        () = reads => {}
    }
    let (second, brought) = caller.brings(caller.bulk_line());
    brought.await.unwrap().unwrap();
    timeout(PATIENCE, warm(&large, &second)).await.expect("bulk goes by the second");
    let (before, bulk_before) = (first.counts(), second.counts());
    second.held.send_replace(true);
    let other = [Name::new(b"other").unwrap()];
    let stats = async {
        for _ in 0..200 {
            root.walk(&other, Want::ATTR).await.unwrap().reached().unwrap();
        }
        second.held.send_replace(false);
        first.since(before)
    };
    let ((), small) = timeout(PATIENCE, async { tokio::join!(moves(&large), stats) }).await.unwrap();
    assert!(small.len() >= 800, "{} frames of 200 walks with attributes", small.len());
    assert_eq!(small.iter().filter(|size| **size > 1000).count(), 0, "none of them is bulk, or waits for any");
    let bulk = second.since(bulk_before).into_iter().filter(|size| *size > PIECE).count();
    assert_eq!(bulk, 2 * PIECES, "all of that went the other way");
}

#[tokio::test]
async fn what_was_asked_of_bulk_goes_on_when_the_caller_brings_another_connection() {
    let caller = Caller::new();
    let (_first, _lasts) = caller.brings(caller.line());
    let root = timeout(PATIENCE, caller.session.caller()).await.unwrap().unwrap().1;
    let large = open(&root, How::RDWR).await;
    let (mut bulk, brought) = caller.brings(caller.bulk_line());
    brought.await.unwrap().unwrap();
    timeout(PATIENCE, warm(&large, &bulk)).await.expect("bulk goes by the second");
    for _ in 0..3 {
        bulk.held.send_replace(true);
        let again = async {
            let held = bulk.counts()[1];
            while bulk.counts()[1] == held {
                tokio::task::yield_now().await;
            }
            bulk.cut();
            caller.brings(caller.bulk_line())
        };
        let ((), (next, brought)) = timeout(PATIENCE, async { tokio::join!(moves(&large), again) }).await.unwrap();
        brought.await.unwrap().unwrap();
        assert!(next.since([0; 2]).iter().any(|size| *size > PIECE));
        bulk = next;
    }
}

#[tokio::test]
async fn a_connection_for_bulk_brings_no_tree_and_uses_no_nonce() {
    let caller = Caller::new();
    let (_, refused) = caller.brings(caller.bulk_line());
    assert!(matches!(refused.await.unwrap(), Err(ServeBackError::Refused(_))));
    let (_first, _lasts) = caller.brings(caller.line());
    timeout(PATIENCE, caller.session.caller()).await.unwrap().unwrap();
    let (_, refused) = caller.brings(bulk_line(caller.session.id, "another"));
    assert!(matches!(refused.await.unwrap(), Err(ServeBackError::Refused(_))));
}
