//! A running node: listens, admits, and serves each peer what it was granted.
//!
//! Called by `slashn up` inside its runtime. A connection is one task: TLS handshake, the peer's key against
//! `authorized_keys` of this moment, then either 9P or, when it begins with `serve `, a caller's tree for one of its
//! sessions. One who comes with a grant shows that first, and has what it says until its time is over. A peer's session
//! outlives its connection for a while. When the lists change, connections and sessions that are no longer allowed what
//! they have are ended.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
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
use tokio::time::timeout;

use crate::authorized::{Authorized, Granted};
use crate::error::{At, Result};
use crate::grant;
use crate::keys::Key;
use crate::pool;
use crate::watch::Watch;

/// Handshakes under way at once. One more ends the oldest: whoever means it is done within a few round trips, whoever
/// holds a connection open without a word is not.
const HANDSHAKES: usize = 256;
/// Connections at once.
const CONNECTIONS: usize = 4096;
/// How long a connection may take to say what it is.
const FIRST_BYTES: Duration = Duration::from_secs(10);
/// The same of one that is to stand ready.
const STANDS_READY: Duration = Duration::from_secs(900);

/// How long peers may take to write what they held back, when the node ends.
const WRITTEN: Duration = Duration::from_secs(2);

/// What sessions may cost, and how long leases of the disk trees of this process last in them.
pub(crate) fn session_limits() -> SessionLimits {
    SessionLimits { lease: fileserver::Leases::of_process().release(), ..SessionLimits::default() }
}

/// What all connections of a node share.
pub struct Node {
    authorized: Arc<Authorized>,
    tls: Arc<ServerConfig>,
    /// The same for those who come with a grant for the node whose key this is.
    by_grant: Arc<ServerConfig>,
    fingerprint: String,
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
        let key = Key::from_spki(&me.spki).at("up", "the node's key")?;
        Ok(Arc::new(Self {
            authorized,
            tls: tls.at("up", "TLS")?,
            by_grant: tls::server_config_by_grant(me).at("up", "TLS")?,
            fingerprint: key.fingerprint(),
            tree,
            cpu,
            live: DashMap::new(),
            sessions: Sessions::new(session_limits()),
            next: AtomicU64::new(1),
            greeting: Greeting::default(),
        }))
    }

    /// Tells all peers that this node ends, and that it may be back within `back`. What they hold back they write first.
    pub async fn leave(&self, back: Duration) {
        let written = fileserver::Leases::of_process();
        if timeout(WRITTEN, written.written_back()).await.is_err() {
            tracing::warn!("peers did not write within {WRITTEN:?} what they held back");
        }
        self.sessions.leave(back).await;
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
            let (mut io, spki, by_grant) = tls::accept_either(stream, self.tls.clone(), self.by_grant.clone()).await?;
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "it shows no grant");
            let grant = match by_grant {
                true => Some(timeout(FIRST_BYTES, grant::read(&mut io)).await.map_err(late)??),
                false => None,
            };
            Ok::<_, io::Error>((io, spki, grant))
        };
        let shaken = shaken.await;
        self.greeting.end(number);
        let (io, spki, grant) = shaken?;
        // The key was looked up within the handshake, too; what counts is what it was granted.
        let granted = self.granted(&spki, grant.as_deref()).map_err(io::Error::other)?;
        let client = self.next.fetch_add(1, Ordering::Relaxed);
        let who = Who { grant: grant.map(Bytes::from), ..granted.0.who(client) };
        self.run_until(io, Arc::new(who), spki, peer.to_string(), granted.1);
        Ok(())
    }

    /// What the key with this SubjectPublicKeyInfo may reach now, by itself or by `grant`, and until when, in seconds
    /// since 1970. Errors: nothing, and why.
    fn granted(&self, spki: &[u8], grant: Option<&[u8]>) -> Result<(Granted, Option<u64>), String> {
        match grant {
            None => {
                let granted = self.authorized.granted(spki).ok_or("its key was denied meanwhile")?;
                Ok((granted, None))
            }
            Some(grant) => self.granted_by(grant, &Key::from_spki(spki)?.fingerprint()),
        }
    }

    /// The same of the key with the fingerprint `holder` by `grant`.
    fn granted_by(&self, grant: &[u8], holder: &str) -> Result<(Granted, Option<u64>), String> {
        let text = std::str::from_utf8(grant).map_err(|_| "the grant is no text")?;
        let by = |key: &Key| self.authorized.granted(key.spki());
        let checked = grant::check(text, holder, &self.fingerprint, &by);
        checked.map(|(granted, until)| (granted, Some(until))).map_err(|reason| format!("the grant: {reason}"))
    }

    /// Serves `io` in a task of its own, as `who`.
    pub fn run<S>(self: &Arc<Self>, io: S, who: Arc<Who>, spki: Vec<u8>, peer: String)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        self.run_until(io, who, spki, peer, None);
    }

    /// The same until a time, in seconds since 1970, if there is one.
    fn run_until<S>(self: &Arc<Self>, io: S, who: Arc<Who>, spki: Vec<u8>, peer: String, until: Option<u64>)
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
            if started.await.is_err() {
                return;
            }
            tokio::select! {
                ended = node.converse(io, user) => ended.unwrap_or_else(|err| tracing::info!("{said}: {err}")),
                () = over(until) => tracing::info!("{said}: the time of its grant is over"),
            }
        });
        self.live.insert(id, Live { who, spki, peer, task: task.abort_handle() });
        let _ = start.send(());
    }

    async fn converse<S>(&self, mut io: S, who: Arc<Who>) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut first, mut patience) = ([0; 4], FIRST_BYTES);
        loop {
            timeout(patience, io.read_exact(&mut first)).await??;
            if &first != pool::WAIT {
                break;
            }
            patience = STANDS_READY;
        }
        // As the size of a 9P frame this would be 1.9 GB.
        if &first != b"serv" || who.grant.is_some() {
            let io = Replayed { first, given: 0, io };
            let serving = self.sessions.serve(io, self.tree.clone(), who, Limits::default());
            return serving.await.map_err(io::Error::other);
        }
        let line = timeout(FIRST_BYTES, rest_of_line(&mut io)).await??;
        self.cpu.serve_back(&format!("serv{line}"), Box::new(io), &who).await.map_err(io::Error::other)
    }

    /// Ends the connections that the lists no longer allow, whenever those change. Returns when the home cannot be
    /// watched any more.
    pub async fn recheck(self: Arc<Self>, watch: Watch) -> io::Result<()> {
        loop {
            watch.changed().await?;
            for live in &self.live {
                // Who came by a local socket brought no key.
                let granted = self.granted(&live.spki, live.who.grant.as_deref()).map(|(granted, _)| granted.rights);
                if !live.spki.is_empty() && granted.as_ref() != Ok(&live.who.rights) {
                    tracing::info!("{}: no longer allowed", live.peer);
                    live.task.abort();
                    self.end_commands_of(&live.who);
                }
            }
            // And those that have no connection just now.
            let denied = self.sessions.end(|who| {
                let granted = match &who.grant {
                    None => self.authorized.granted_to(&who.key),
                    Some(grant) => self.granted_by(grant, &who.key).ok().map(|(granted, _)| granted),
                };
                !who.key.is_empty() && granted.map(|granted| granted.rights).as_ref() != Some(&who.rights)
            });
            denied.iter().for_each(|who| self.end_commands_of(who));
        }
    }

    /// Ends the commands of `who`; whoever came with a grant has none.
    fn end_commands_of(&self, who: &Who) {
        if who.grant.is_none() {
            self.cpu.end_sessions_of(who);
        }
    }

    /// One line for each connection: peer, user, key, rights.
    pub fn connections(&self) -> Vec<String> {
        let line = |live: &Live| {
            let rights = match live.who.rights {
                Rights::All => "all",
                Rights::Only(_) if live.who.grant.is_some() => "grant",
                Rights::Only(_) => "exports",
            };
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

/// Returns when the time `until`, in seconds since 1970, has come.
async fn over(until: Option<u64>) {
    let Some(until) = until else { return std::future::pending().await };
    // By the clock that a person sets: it is looked at again and again.
    while let Some(left) = until.checked_sub(grant::now()).filter(|left| *left > 0) {
        tokio::time::sleep(Duration::from_secs(left.min(60))).await;
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
