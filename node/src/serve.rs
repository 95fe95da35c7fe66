//! A running node: listens, admits, and serves each peer what it was granted.
//!
//! Called by `slashn up` inside its runtime. A connection is one task: TLS handshake, the peer's key against
//! `authorized_keys` of this moment, then either 9P or, when it begins with `serve `, a caller's tree for one of its
//! sessions. A peer's session outlives its connection for a while. When the lists change, connections and sessions that
//! are no longer allowed what they have are ended.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cpuserver::Cpu;
use dashmap::DashMap;
use p9::server::{Limits, SessionLimits, Sessions};
use p9::transport::tls::{self, Identity};
use p9::{Rights, TreeRef, Who, transport};
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::authorized::Authorized;
use crate::error::{At, Result};
use crate::watch::Watch;

/// Handshakes under way at once. One more ends the oldest: whoever means it is done within a few round trips, whoever
/// holds a connection open without a word is not.
const HANDSHAKES: usize = 256;
/// Connections at once.
const CONNECTIONS: usize = 4096;
/// How long a connection may take to say what it is.
const FIRST_BYTES: Duration = Duration::from_secs(10);

/// What sessions may cost, and how long leases of the disk trees of this process last in them.
pub(crate) fn session_limits() -> SessionLimits {
    SessionLimits { lease: fileserver::Leases::of_process().release(), ..SessionLimits::default() }
}

/// What all connections of a node share.
pub struct Node {
    authorized: Arc<Authorized>,
    tls: Arc<ServerConfig>,
    tree: TreeRef,
    cpu: Arc<Cpu>,
    live: DashMap<u64, Live>,
    sessions: Sessions,
    next: AtomicU64,
    greeting: Greeting,
}

/// One connection that was admitted.
struct Live {
    who: Arc<Who>,
    /// The SubjectPublicKeyInfo that it proved; empty for a local socket.
    spki: Vec<u8>,
    peer: String,
    task: AbortHandle,
}

impl Node {
    /// A node that is `me`, admits whom `authorized` has, and serves `tree`; `cpu` takes the callers' trees.
    pub fn new(me: &Identity, authorized: Arc<Authorized>, tree: TreeRef, cpu: Arc<Cpu>) -> Result<Arc<Self>> {
        let list = authorized.clone();
        let tls = tls::server_config(me, Arc::new(move |spki: &[u8]| list.granted(spki).is_some()));
        Ok(Arc::new(Self {
            authorized,
            tls: tls.at("up", "TLS")?,
            tree,
            cpu,
            live: DashMap::new(),
            sessions: Sessions::new(session_limits()),
            next: AtomicU64::new(1),
            greeting: Greeting::default(),
        }))
    }

    /// Accepts TLS connections on `listener` for ever.
    pub async fn listen(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(err) => {
                    // Out of descriptors, most likely: some connection has to end first.
                    tracing::warn!("accept: {err}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if self.live.len() >= CONNECTIONS {
                tracing::warn!("{peer}: refused: {CONNECTIONS} connections are open");
                continue;
            }
            let (node, greeted) = (self.clone(), self.greeting.next());
            let (start, started) = tokio::sync::oneshot::channel::<()>();
            let task = tokio::spawn(async move {
                if started.await.is_ok()
                    && let Err(err) = node.greet(stream, peer, greeted).await
                {
                    tracing::info!("{peer}: {err}");
                }
            });
            self.greeting.begin(greeted, task.abort_handle());
            let _ = start.send(());
        }
    }

    async fn greet(self: Arc<Self>, stream: TcpStream, peer: SocketAddr, number: u64) -> io::Result<()> {
        let shaken = async {
            transport::tune(&stream)?;
            tls::accept(stream, self.tls.clone()).await
        };
        let shaken = shaken.await;
        self.greeting.end(number);
        let (io, spki) = shaken?;
        // The key was looked up within the handshake, too; what counts is what it was granted.
        let granted = self.authorized.granted(&spki).ok_or_else(|| io::Error::other("its key was denied meanwhile"))?;
        let client = self.next.fetch_add(1, Ordering::Relaxed);
        self.run(io, Arc::new(granted.who(client)), spki, peer.to_string());
        Ok(())
    }

    /// Serves `io` in a task of its own, as `who`.
    pub fn run<S>(self: &Arc<Self>, io: S, who: Arc<Who>, spki: Vec<u8>, peer: String)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (node, user) = (self.clone(), who.clone());
        // Starts only once it is listed, so that it cannot end before.
        let (start, started) = tokio::sync::oneshot::channel::<()>();
        let said = peer.clone();
        let task = tokio::spawn(async move {
            let _gone = Gone(node.clone(), id);
            if started.await.is_ok()
                && let Err(err) = node.converse(io, user).await
            {
                tracing::info!("{said}: {err}");
            }
        });
        self.live.insert(id, Live { who, spki, peer, task: task.abort_handle() });
        let _ = start.send(());
    }

    async fn converse<S>(&self, mut io: S, who: Arc<Who>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut first = [0; 4];
        tokio::time::timeout(FIRST_BYTES, io.read_exact(&mut first)).await??;
        // As the size of a 9P frame this would be 1.9 GB.
        if &first != b"serv" {
            let io = Replayed { first, given: 0, io };
            let serving = self.sessions.serve(io, self.tree.clone(), who, Limits::default());
            return serving.await.map_err(io::Error::other);
        }
        let line = tokio::time::timeout(FIRST_BYTES, rest_of_line(&mut io)).await??;
        self.cpu.serve_back(&format!("serv{line}"), Box::new(io), &who).await.map_err(io::Error::other)
    }

    /// Ends the connections that the lists no longer allow, whenever those change. Returns when the home cannot be
    /// watched any more.
    pub async fn recheck(self: Arc<Self>, watch: Watch) -> io::Result<()> {
        loop {
            watch.changed().await?;
            for live in &self.live {
                // Who came by a local socket brought no key.
                let granted = self.authorized.granted(&live.spki).map(|granted| granted.rights);
                if !live.spki.is_empty() && granted.as_ref() != Some(&live.who.rights) {
                    tracing::info!("{}: no longer allowed", live.peer);
                    live.task.abort();
                    self.cpu.end_sessions_of(&live.who);
                }
            }
            // And those that have no connection just now.
            let denied = self.sessions.end(|who| {
                let granted = self.authorized.granted_to(&who.key).map(|granted| granted.rights);
                !who.key.is_empty() && granted.as_ref() != Some(&who.rights)
            });
            denied.iter().for_each(|who| self.cpu.end_sessions_of(who));
        }
    }

    /// One line for each connection: peer, user, key, rights.
    pub fn connections(&self) -> Vec<String> {
        let line = |live: &Live| {
            let rights = if live.who.rights == Rights::All { "all" } else { "exports" };
            format!("{} {} {} {rights}", live.peer, live.who.user, live.who.key)
        };
        self.live.iter().map(|live| line(&live)).collect()
    }
}

/// The handshakes under way, the oldest first.
#[derive(Default)]
struct Greeting {
    next: AtomicU64,
    tasks: Mutex<BTreeMap<u64, AbortHandle>>,
}

impl Greeting {
    fn next(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// One more, which ends the oldest if there are too many.
    fn begin(&self, number: u64, task: AbortHandle) {
        let mut tasks = self.tasks.lock();
        tasks.insert(number, task);
        if tasks.len() > HANDSHAKES
            && let Some((_, oldest)) = tasks.pop_first()
        {
            oldest.abort();
        }
    }

    fn end(&self, number: u64) {
        self.tasks.lock().remove(&number);
    }
}

/// Takes a connection off the list when its task ends, however it ends.
struct Gone(Arc<Node>, u64);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.live.remove(&self.1);
    }
}

/// The rest of a line of at most 256 bytes. Byte by byte: what follows it is 9P.
async fn rest_of_line(io: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut line = Vec::new();
    while line.len() < 256 {
        match io.read_u8().await? {
            b'\n' => return String::from_utf8(line).map_err(io::Error::other),
            byte => line.push(byte),
        }
    }
    Err(io::Error::other("the first line is too long"))
}

/// A stream whose first four bytes were read already.
struct Replayed<S> {
    first: [u8; 4],
    given: usize,
    io: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Replayed<S> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>, buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        if self.given < self.first.len() {
            let rest = &self.first[self.given..];
            let count = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..count]);
            self.given += count;
            return std::task::Poll::Ready(Ok(()));
        }
        std::pin::Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Replayed<S> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>, buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>, bufs: &[io::IoSlice<'_>],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
