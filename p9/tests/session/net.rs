//! A server with sessions, and links to it that break when the test says so.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use p9::client::{Client, Dial, Options, Resume};
use p9::server::{Limits, SessionLimits, Sessions};
use p9::transport::Io;
use p9::{NodeRef, Tree, TreeRef, Who};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf};
use tokio::sync::Notify;

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);

/// A server, and the way to it. Clones are the same.
#[derive(Clone)]
pub(crate) struct Net(Arc<Inner>);

struct Inner {
    sessions: Sessions,
    tree: TreeRef,
    limits: Limits,
    who: Arc<Who>,
    /// Bytes that may still pass, to the server and back, before the connection is cut.
    left: [AtomicU64; 2],
    /// Bytes that did.
    passed: [AtomicU64; 2],
    /// Connections so far.
    dialled: AtomicUsize,
    /// What `left` is set to by each connection that is made again.
    again: Box<dyn Fn(usize) -> [u64; 2] + Send + Sync>,
    down: tokio::sync::watch::Sender<bool>,
    cut: Notify,
    /// The connections up to this number carry nothing any more.
    stalled: AtomicUsize,
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
        let left = again(0);
        Self(Arc::new(Inner {
            sessions: Sessions::new(limits),
            tree: Arc::new(tree),
            limits: Limits::default(),
            who: who("SHA256:me"),
            left: left.map(AtomicU64::new),
            passed: Default::default(),
            dialled: AtomicUsize::new(0),
            again: Box::new(again),
            down: tokio::sync::watch::channel(false).0,
            cut: Notify::new(),
            stalled: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn sessions(&self) -> &Sessions {
        &self.0.sessions
    }

    /// Bytes that went to the server and back.
    pub(crate) fn passed(&self) -> [u64; 2] {
        [0, 1].map(|way| self.0.passed[way].load(Ordering::SeqCst))
    }

    /// Connections that were made.
    pub(crate) fn dialled(&self) -> usize {
        self.0.dialled.load(Ordering::SeqCst)
    }

    /// Cuts the connection after so many more bytes to the server and back.
    pub(crate) fn cut_after(&self, left: [u64; 2]) {
        for (way, left) in left.into_iter().enumerate() {
            self.0.left[way].store(left, Ordering::SeqCst);
        }
    }

    /// Cuts the connection that there is.
    pub(crate) fn cut(&self) {
        self.0.cut.notify_waiters();
    }

    /// The connection that there is carries nothing any more, and does not end.
    pub(crate) fn stall(&self) {
        self.0.stalled.store(self.dialled(), Ordering::SeqCst);
    }

    /// From now on no connection is made, or is again.
    pub(crate) fn down(&self, down: bool) {
        self.0.down.send_replace(down);
        if down {
            self.cut();
        }
    }

    /// A connection as the peer `who`.
    pub(crate) fn connect(&self, who: Arc<Who>) -> DuplexStream {
        let number = self.0.dialled.fetch_add(1, Ordering::SeqCst);
        if number > 0 {
            self.cut_after((self.0.again)(number));
        }
        let (near, to_server) = tokio::io::duplex(64 << 10);
        let (to_client, far) = tokio::io::duplex(64 << 10);
        let net = self.0.clone();
        tokio::spawn(async move {
            let serving = net.sessions.serve(far, net.tree.clone(), who, net.limits.clone());
            let _ = serving.await;
        });
        let net = self.clone();
        tokio::spawn(async move { net.carry(number, to_server, to_client).await });
        near
    }

    /// Carries bytes between the two until one ends or the connection is cut; then both end.
    async fn carry(&self, number: usize, to_server: DuplexStream, to_client: DuplexStream) {
        let cut = self.0.cut.notified();
        let ((from_client, to_client_side), (from_server, to_server_side)) =
            (tokio::io::split(to_server), tokio::io::split(to_client));
        tokio::select! {
            () = self.pump(number, 0, from_client, to_server_side) => {}
            () = self.pump(number, 1, from_server, to_client_side) => {}
            () = cut => {}
        }
    }

    async fn pump(&self, number: usize, way: usize, mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) {
        let mut buf = [0; 4096];
        while let Ok(got @ 1..) = from.read(&mut buf).await {
            if number < self.0.stalled.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let left = self.0.left[way].load(Ordering::SeqCst);
            let goes = left.min(got as u64);
            self.0.left[way].store(left - goes, Ordering::SeqCst);
            self.0.passed[way].fetch_add(goes, Ordering::SeqCst);
            if to.write_all(&buf[..goes as usize]).await.is_err() || goes < got as u64 || goes == left {
                return;
            }
        }
    }

    /// How the client dials, as the peer `who`.
    pub(crate) fn dial(&self, who: Arc<Who>) -> Dial {
        let net = self.clone();
        Arc::new(move || {
            let (net, who) = (net.clone(), who.clone());
            Box::pin(async move {
                let down = *net.0.down.borrow();
                if down { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Box::new(net.connect(who)) as Io) }
            })
        })
    }

    /// A client with a session, and its root. The session has been confirmed: an attach was answered.
    pub(crate) async fn client(&self) -> (Client, NodeRef) {
        let resume = Resume {
            dial: self.dial(self.0.who.clone()),
            linger: Duration::from_secs(60),
            patience: Duration::from_secs(50),
        };
        let client = Client::resuming(self.connect(self.0.who.clone()), Options::default(), resume).await.unwrap();
        let root = client.attach(&Who::owner(), b"").await.unwrap();
        (client, root)
    }
}
