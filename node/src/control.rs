//! How the commands reach what is already running here: 9P on a unix socket in the home's `run/`.
//!
//! A node, a mount and the agent each serve a small synthetic tree there (`status`, `ctl`, ...); `slashn status`,
//! `down`, `unmount`, `ns` and `rcpu` read and write its files. Only processes of the same user are let in, whatever
//! the socket's mode. A socket that nobody answers is left over from a daemon that was killed, and is replaced.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use p9::client::{self, Client};
use p9::server::{self, Limits};
use p9::{Errno, How, Name, NodeRef, Tree, TreeRef, Want, Who};
use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use crate::error::{At, Error, Result};

/// A socket that serves a tree to processes of this user. Dropping it ends its connections and removes the socket.
pub struct Control {
    path: PathBuf,
    accepting: tokio::task::JoinHandle<()>,
}

impl Control {
    /// Serves `tree` at `path`. Errors: another process answers there, or the socket cannot be made.
    pub fn serve(path: &Path, tree: TreeRef) -> Result<Self> {
        Self::serve_and(path, tree, None)
    }

    /// The same; a connection that begins with what no frame does, the word that `other` has, goes there.
    pub fn serve_and(path: &Path, tree: TreeRef, other: Option<Other>) -> Result<Self> {
        // Bound under another name first, so that whoever finds the socket can connect to it.
        let fresh = path.with_extension(format!("{}", std::process::id()));
        let _ = fs::remove_file(&fresh);
        let bound = UnixListener::bind(&fresh)
            .and_then(|listener| fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).map(|()| listener))
            .and_then(|listener| fs::rename(&fresh, path).map(|()| listener));
        let listener = bound.at("make the control socket", path.display())?;
        let accepting = tokio::spawn(accept(listener, tree, other));
        Ok(Self { path: path.to_path_buf(), accepting })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.accepting.abort();
        let _ = fs::remove_file(&self.path);
    }
}

/// The first bytes of connections that are not 9P, and what becomes of these.
#[derive(Clone)]
pub struct Other {
    /// What they begin with: four bytes.
    pub begin: [u8; 4],
    /// Has them to their end.
    pub serve: Arc<dyn Fn(UnixStream) -> BoxFuture<'static, io::Result<()>> + Send + Sync>,
}

/// What `stream` begins with, which stays to be read.
async fn first_bytes(stream: &UnixStream) -> io::Result<[u8; 4]> {
    let mut first = [0; 4];
    let peek = || {
        let (_, got) = rustix::net::recv(stream, &mut first, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
        if got == first.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    };
    stream.async_io(Interest::READABLE, peek).await.map(|()| first)
}

async fn accept(listener: UnixListener, tree: TreeRef, other: Option<Other>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: some connection has to end first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let ours = rustix::process::geteuid().as_raw();
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == ours || peer.uid() == 0 => {}
            peer => {
                tracing::debug!("refused a process of another user: {peer:?}");
                continue;
            }
        }
        let (tree, other) = (tree.clone(), other.clone());
        connections.spawn(async move {
            if let Some(other) = other
                && first_bytes(&stream).await.is_ok_and(|first| first == other.begin)
            {
                if let Err(err) = (other.serve)(stream).await {
                    tracing::debug!("a connection to a node ended: {err}");
                }
                return;
            }
            if let Err(err) = server::serve(stream, tree, Arc::new(Who::owner()), Limits::default()).await {
                tracing::debug!("a control connection ended: {err}");
            }
        });
    }
}

/// How long a daemon may be silent that owes an answer, and again before it is given up.
const LIVENESS: Duration = Duration::from_secs(3);

/// What serves at `path`, or `None` when nothing does. Errors: a daemon that is stopped or hangs does not answer.
pub async fn connect(path: &Path) -> Result<Option<NodeRef>> {
    let stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(err) => return Err(Error::new("connect", path.display(), err)),
    };
    let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
    let silent = || {
        let error = Error::new("connect", path.display(), "what listens there does not answer");
        match pid {
            Some(pid) => error.remedy(format!("kill -9 {pid}")),
            None => error,
        }
    };
    // One that ends just now does not answer, and is as good as gone.
    let options = client::Options { liveness: LIVENESS, ..client::Options::default() };
    let client = match Client::connect(stream, options).await {
        Ok(client) => client,
        Err(client::Error::Io(_)) => return Ok(None),
        Err(client::Error::Frame(server::Error::TooSlow(..))) => return Err(silent()),
        Err(err) => return Err(Error::new("connect", path.display(), err)),
    };
    match client.attach(&Who::owner(), b"").await {
        Ok(root) => Ok(Some(root)),
        Err(Errno::EHOSTUNREACH) => Ok(None),
        Err(errno) => Err(Error::new("attach", path.display(), errno)),
    }
}

/// The contents of the file at `path` below `root`.
pub async fn read(root: &NodeRef, path: &str) -> Result<Bytes, Errno> {
    let names = Name::split(path.as_bytes())?;
    let opened = root.open_at(&names, How::READ, Want::default()).await?;
    let mut all = Vec::new();
    loop {
        let piece = opened.handle.read(all.len() as u64, 1 << 16).await?;
        if piece.is_empty() {
            return Ok(all.into());
        }
        all.extend_from_slice(&piece);
    }
}

/// Writes `text` to the file at `path` below `root`, in one write.
pub async fn write(root: &NodeRef, path: &str, text: impl Into<Bytes>) -> Result<(), Errno> {
    let names = Name::split(path.as_bytes())?;
    let opened = root.open_at(&names, How::WRITE, Want::default()).await?;
    opened.handle.write(0, text.into()).await?;
    opened.handle.close().await
}
