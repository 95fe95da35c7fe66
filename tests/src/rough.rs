//! A server behind links that delay, cut messages into pieces, stall, and are cut: a client's session goes on over the
//! next one. Each link has a pace of its own, so that what goes out on two of them comes in any order.
//!
//! Everything comes from one seed, and the time is tokio's, so that a test with a paused clock waits for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use p9::client::{self, Client, Dial, Options, Resume};
use p9::server::{Limits, SessionLimits, Sessions};
use p9::transport::Io;
use p9::{Errno, NodeRef, Tree, TreeRef, Who};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::time::sleep;

/// A server, and all links to it. Clones are the same.
#[derive(Clone)]
pub struct Rough(Arc<Inner>);

struct Inner {
    tree: TreeRef,
    sessions: Sessions,
    state: Mutex<u64>,
    links: AtomicUsize,
}

impl Rough {
    /// Serves `tree`.
    pub fn new(tree: TreeRef, seed: u64) -> Self {
        let sessions = Sessions::new(SessionLimits::default());
        Self(Arc::new(Inner { tree, sessions, state: Mutex::new(seed | 1), links: AtomicUsize::new(0) }))
    }

    /// A client with a session, which comes back whenever a link is cut.
    pub async fn client(&self) -> Result<Client, client::Error> {
        let rough = self.clone();
        let dial: Dial = Arc::new(move || {
            let rough = rough.clone();
            Box::pin(async move { Ok(Box::new(rough.connect()) as Io) })
        });
        let time = Duration::from_secs(600);
        let resume = Resume { bulk: Some(dial.clone()), dial, linger: time, patience: time };
        Client::resuming(self.connect(), Options::default(), resume).await
    }

    /// The root, through a client of its own.
    pub async fn root(&self) -> Result<NodeRef, Errno> {
        self.client().await.map_err(|_| Errno::EIO)?.attach(&Who::owner(), b"").await
    }

    /// How many links there were.
    pub fn links(&self) -> usize {
        self.0.links.load(Ordering::Relaxed)
    }

    /// A number below `most`: xorshift.
    fn below(&self, most: u64) -> u64 {
        let mut state = self.0.state.lock();
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 16) % most
    }

    fn connect(&self) -> DuplexStream {
        self.0.links.fetch_add(1, Ordering::Relaxed);
        let (near, to_server) = tokio::io::duplex(64 << 10);
        let (to_client, far) = tokio::io::duplex(64 << 10);
        let server = self.0.clone();
        tokio::spawn(async move {
            let who = Arc::new(Who { key: "SHA256:me".into(), ..Who::owner() });
            let _ = server.sessions.serve(far, server.tree.clone(), who, Limits::default()).await;
        });
        let rough = self.clone();
        tokio::spawn(async move {
            let ((from_client, to_client_too), (from_server, to_server_too)) =
                (tokio::io::split(to_server), tokio::io::split(to_client));
            let pace = [1, 4, 4, 40][rough.below(4) as usize];
            // Where either way ends, both do.
            tokio::select! {
                () = rough.carry(pace, from_client, to_server_too) => {}
                () = rough.carry(pace, from_server, to_client_too) => {}
            }
        });
        near
    }

    /// Carries bytes until the link is cut: each piece takes less than `pace` ms, or a long time.
    async fn carry(&self, pace: u64, mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) {
        // Of some of them all that is asked for gets through at once.
        let most = if self.below(4) == 0 { 4 << 20 } else { 60_000 };
        let mut left = 2_000 + self.below(most) as usize;
        while left > 0 {
            let most = if self.below(3) == 0 { 1 + self.below(40) } else { 1 << 16 };
            let mut piece = vec![0; left.min(most as usize)];
            let Ok(got @ 1..) = from.read(&mut piece).await else { return };
            let wait = if self.below(100) == 0 { 4_000 } else { self.below(pace) };
            sleep(Duration::from_millis(wait)).await;
            if to.write_all(&piece[..got]).await.is_err() {
                return;
            }
            left -= got;
        }
    }
}
