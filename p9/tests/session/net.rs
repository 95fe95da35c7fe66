//! A server with sessions, and links to it that break when the test says so.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use p9::client::{Client, Dial, Options, Resume};
use p9::server::{Limits, SessionLimits, Sessions};
use p9::transport::Io;
use p9::{NodeRef, Tree, TreeRef, Who};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::{Notify, watch};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// A server, and one of the two ways to it: that of all connections but those for bulk, or that. Clones are the same.
#[derive(Clone)]
pub(crate) struct Net {
    server: Arc<Server>,
    way: Arc<Way>,
    bulk: Arc<Way>,
}

struct Server {
    sessions: Sessions,
    tree: TreeRef,
    limits: Limits,
    who: Arc<Who>,
}

/// What `left` is set to by the connection of a number that is made again.
type Again = Box<dyn Fn(usize) -> [u64; 2] + Send + Sync>;

/// A way to the server.
struct Way {
    /// Bytes that may still pass, to the server and back, before the connection is cut.
    left: [AtomicU64; 2],
    /// Bytes that did.
    passed: [AtomicU64; 2],
    /// The type and the size of each frame that did, and how many pass the link now.
    frames: [Mutex<Vec<(u8, usize)>>; 2],
    /// Connections so far.
    dialled: AtomicUsize,
    /// Connections that there are.
    open: AtomicUsize,
    again: Again,
    down: watch::Sender<bool>,
    /// Whether nothing passes for now.
    held: watch::Sender<bool>,
    cut: Notify,
    /// The connections up to this number carry nothing any more.
    stalled: AtomicUsize,
}

impl Way {
    fn new(again: Again) -> Arc<Self> {
        Arc::new(Self {
            left: again(0).map(AtomicU64::new),
            passed: Default::default(),
            frames: Default::default(),
            dialled: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            again,
            down: watch::channel(false).0,
            held: watch::channel(false).0,
            cut: Notify::new(),
            stalled: AtomicUsize::new(0),
        })
    }

    async fn pump(&self, number: usize, way: usize, mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) {
        let (mut buf, mut seen) = ([0; 4096], Seen::default());
        while let Ok(got @ 1..) = from.read(&mut buf).await {
            if number < self.stalled.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let mut held = self.held.subscribe();
            held.wait_for(|held| !held).await.unwrap();
            let left = self.left[way].load(Ordering::SeqCst);
            let goes = left.min(got as u64);
            self.left[way].store(left - goes, Ordering::SeqCst);
            self.passed[way].fetch_add(goes, Ordering::SeqCst);
            self.frames[way].lock().extend(seen.sees(&buf[..goes as usize]));
            if to.write_all(&buf[..goes as usize]).await.is_err() || goes < got as u64 || goes == left {
                return;
            }
        }
    }
}

/// Tells frames in a stream of bytes.
#[derive(Default)]
struct Seen {
    head: Vec<u8>,
    /// What is still to come of a frame whose head was seen.
    rest: usize,
}

impl Seen {
    /// The type and the size of the frames that begin in `bytes`.
    fn sees(&mut self, mut bytes: &[u8]) -> Vec<(u8, usize)> {
        let mut frames = Vec::new();
        while !bytes.is_empty() {
            let body = self.rest.min(bytes.len());
            (bytes, self.rest) = (&bytes[body..], self.rest - body);
            while self.rest == 0
                && self.head.len() < 5
                && let [first, others @ ..] = bytes
            {
                self.head.push(*first);
                bytes = others;
            }
            if let [a, b, c, d, code] = self.head[..] {
                let size = u32::from_le_bytes([a, b, c, d]) as usize;
                frames.push((code, size));
                (self.head, self.rest) = (Vec::new(), size - 5);
            }
        }
        frames
    }
}

/// The key of a peer.
pub(crate) fn who(key: &str) -> Arc<Who> {
    Arc::new(Who { key: key.into(), ..Who::owner() })
}

impl Net {
    pub(crate) fn new(tree: impl Tree) -> Self {
        Self::with(tree, SessionLimits::default(), |_| [u64::MAX; 2])
    }

    /// `again` says how many bytes may pass on the connection of that number, to the server and back.
    pub(crate) fn with(
        tree: impl Tree, limits: SessionLimits, again: impl Fn(usize) -> [u64; 2] + Send + Sync + 'static,
    ) -> Self {
        Self::with_bulk(tree, limits, again, |_| [u64::MAX; 2])
    }

    /// The same, and so does `bulk` for connections for bulk.
    pub(crate) fn with_bulk(
        tree: impl Tree, limits: SessionLimits, again: impl Fn(usize) -> [u64; 2] + Send + Sync + 'static,
        bulk: impl Fn(usize) -> [u64; 2] + Send + Sync + 'static,
    ) -> Self {
        let server = Server {
            sessions: Sessions::new(limits),
            tree: Arc::new(tree),
            limits: Limits::default(),
            who: who("SHA256:me"),
        };
        Self { server: Arc::new(server), way: Way::new(Box::new(again)), bulk: Way::new(Box::new(bulk)) }
    }

    /// The way for bulk.
    pub(crate) fn bulk(&self) -> Self {
        Self { way: self.bulk.clone(), ..self.clone() }
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.server.sessions
    }

    /// Bytes that went to the server and back.
    pub(crate) fn passed(&self) -> [u64; 2] {
        [0, 1].map(|way| self.way.passed[way].load(Ordering::SeqCst))
    }

    /// The type and size of the frames that went to the server and back.
    pub(crate) fn frames(&self) -> [Vec<(u8, usize)>; 2] {
        [0, 1].map(|way| self.way.frames[way].lock().clone())
    }

    /// Connections that were made.
    pub(crate) fn dialled(&self) -> usize {
        self.way.dialled.load(Ordering::SeqCst)
    }

    /// Connections that there are.
    pub(crate) fn open(&self) -> usize {
        self.way.open.load(Ordering::SeqCst)
    }

    /// Cuts the connection after so many more bytes to the server and back.
    pub(crate) fn cut_after(&self, left: [u64; 2]) {
        for (way, left) in left.into_iter().enumerate() {
            self.way.left[way].store(left, Ordering::SeqCst);
        }
    }

    /// Cuts the connection that there is.
    pub(crate) fn cut(&self) {
        self.way.cut.notify_waiters();
    }

    /// The connection that there is carries nothing any more, and does not end.
    pub(crate) fn stall(&self) {
        self.way.stalled.store(self.dialled(), Ordering::SeqCst);
    }

    /// Nothing passes until this is said again with false.
    pub(crate) fn hold(&self, held: bool) {
        self.way.held.send_replace(held);
    }

    /// From now on no connection is made, or is again.
    pub(crate) fn down(&self, down: bool) {
        self.way.down.send_replace(down);
        if down {
            self.cut();
        }
    }

    /// A connection as the peer `who`.
    pub(crate) fn connect(&self, who: Arc<Who>) -> DuplexStream {
        let number = self.way.dialled.fetch_add(1, Ordering::SeqCst);
        if number > 0 {
            self.cut_after((self.way.again)(number));
        }
        let (near, to_server) = tokio::io::duplex(64 << 10);
        let (to_client, far) = tokio::io::duplex(64 << 10);
        let server = self.server.clone();
        tokio::spawn(async move {
            let serving = server.sessions.serve(far, server.tree.clone(), who, server.limits.clone());
            let _ = serving.await;
        });
        let net = self.clone();
        tokio::spawn(async move {
            net.way.open.fetch_add(1, Ordering::SeqCst);
            net.carry(number, to_server, to_client).await;
            net.way.open.fetch_sub(1, Ordering::SeqCst);
        });
        near
    }

    /// Carries bytes between the two until one ends or the connection is cut; then both end.
    async fn carry(&self, number: usize, to_server: DuplexStream, to_client: DuplexStream) {
        let cut = self.way.cut.notified();
        let ((from_client, to_client_side), (from_server, to_server_side)) =
            (tokio::io::split(to_server), tokio::io::split(to_client));
        tokio::select! {
            () = self.way.pump(number, 0, from_client, to_server_side) => {}
            () = self.way.pump(number, 1, from_server, to_client_side) => {}
            () = cut => {}
        }
    }

    /// How the client dials, as the peer `who`.
    pub(crate) fn dial(&self, who: Arc<Who>) -> Dial {
        let net = self.clone();
        Arc::new(move || {
            let (net, who) = (net.clone(), who.clone());
            Box::pin(async move {
                let down = *net.way.down.borrow();
                if down { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Box::new(net.connect(who)) as Io) }
            })
        })
    }

    /// How a client gets back.
    pub(crate) fn resume(&self) -> Resume {
        let dial = |net: Self| net.dial(self.server.who.clone());
        Resume {
            dial: dial(self.clone()),
            linger: Duration::from_secs(60),
            patience: Duration::from_secs(50),
            bulk: Some(dial(self.bulk())),
        }
    }

    /// A client with a session, and its root. The session has been confirmed: an attach was answered.
    pub(crate) async fn client(&self) -> (Client, NodeRef) {
        let first = self.connect(self.server.who.clone());
        let client = Client::resuming(first, Options::default(), self.resume()).await.unwrap();
        let root = client.attach(&Who::owner(), b"").await.unwrap();
        (client, root)
    }
}
