//! The per-user agent: serves the caller's own files to the nodes that run commands for it.
//!
//! `rcpu` starts it when none answers on `run/agent`, and writes one line to its file `serve` for each command. The
//! agent dials the node, says `serve SESSION NONCE`, and from then on answers 9P on that connection: the caller dials
//! every connection, also the second for a command that reads or writes much, and the agent outlives the `rcpu` that
//! asked. What the node may reach was settled before it is served: rules by path, from the trust that the caller has in
//! that node, and what the command's namespace names ([`crate::lent`]). What it serves is what it sees, so there is one
//! for each mount namespace from which commands are run. It ends by itself after a while without work.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cpuserver::serve_back;
use dashmap::DashMap;
use fileserver::caller::{self, Caller, Expose, Trust};
use fileserver::{Disk, DiskOptions, Ruled, Rules};
use futures_util::future::{BoxFuture, join_all};
use p9::server::{Limits, Sessions};
use p9::transport::Io;
use p9::who::Only;
use p9::{Errno, Reply, TreeRef, Who, synth};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use crate::Context;
use crate::config::NodeName;
use crate::control::Other;
use crate::dial::{Dialer, LINGER, MOUNT_TIMEOUT};
use crate::error::{At, Result};
use crate::grid::Nodes;
use crate::known::Node;
use crate::lent::Lent;
use crate::pipe;
use crate::pool::Pool;
use crate::servers::Servers;
use crate::within;

/// The mount namespace that this process is in, as /proc tells it.
pub fn mount_namespace() -> String {
    let name = std::fs::read_link("/proc/self/ns/mnt").unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// What `rcpu` asks of the agent: one line of JSON, written to its file `serve`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Serve {
    /// The node that runs the command: a known name or an address.
    pub node: String,
    /// What the session there is called.
    pub session: String,
    /// What proves that this connection is meant for it.
    pub nonce: String,
    /// The caller's home and working directory.
    pub home: PathBytes,
    /// Where the command starts.
    pub cwd: PathBytes,
    /// Paths to show although the trust would hide them; true for those that may only be read.
    pub expose: Vec<(PathBytes, bool)>,
    /// Paths that the command is about to walk: the node is told of them together with the command.
    #[serde(default)]
    pub hints: Vec<PathBytes>,
    /// How long the caller may be away before the command is lost, in seconds.
    pub away: u64,
    /// The servers that the command's namespace names, each with what is attached to there.
    #[serde(default)]
    pub servers: Vec<(String, String)>,
    /// What is lent of other nodes besides: node, export, and true for what may only be read.
    #[serde(default)]
    pub exports: Vec<(String, String, bool)>,
}

/// A path in JSON: as text where it is text, else as its bytes.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(untagged)]
pub enum PathBytes {
    /// Most are.
    Text(String),
    /// Others have any bytes.
    Bytes(Vec<u8>),
}

impl From<&Path> for PathBytes {
    fn from(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Self::Text(text.to_string()),
            None => Self::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
    }
}

impl PathBytes {
    fn to_path(&self) -> PathBuf {
        match self {
            Self::Text(text) => text.into(),
            Self::Bytes(bytes) => OsStr::from_bytes(bytes).into(),
        }
    }
}

impl Serve {
    /// The rules that a node meets which is trusted as far as `level`. It does blocking I/O.
    /// `slashn_homes` are hidden from it.
    pub fn rules(&self, level: Trust, slashn_homes: Vec<PathBuf>) -> Rules {
        let expose = self.expose.iter().map(|(path, read_only)| Expose { path: path.to_path(), read_only: *read_only });
        caller::rules(&Caller {
            home: self.home.to_path(),
            cwd: self.cwd.to_path(),
            slashn_homes,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            level,
            expose: expose.collect(),
        })
    }
}

/// The agent: what it serves from, and how much it has to do.
pub struct Agent {
    dialer: Dialer,
    context: Context,
    disk: Arc<Disk>,
    servers: Servers,
    /// What nodes were told of files.
    told: cpuserver::Memory,
    /// Connections that stand ready.
    pool: Pool,
    serving: AtomicUsize,
    /// The sessions that it serves, and where they are.
    sessions: DashMap<String, Node>,
    changed: Notify,
    stop: Notify,
}

impl Agent {
    /// An agent that dials with `dialer` and hides the homes of `context`; `key` keys the qids of the caller's files. It
    /// is `within` a `slashn run`: then it shows what that shows, which waits for nothing that it serves.
    pub fn new(dialer: Dialer, context: Context, key: [u8; 32], within: bool) -> Result<Arc<Self>> {
        let enters_mounts = within || within::namespace().is_some();
        let options = DiskOptions { enters_mounts, ..DiskOptions::new(key) };
        let disk = Disk::open(Path::new("/"), options.clone()).at("serve", "/")?;
        let who = Who { user: context.user().into(), ..Who::owner() };
        let servers = Servers::new(Nodes::new(dialer.clone(), MOUNT_TIMEOUT), who, options);
        Ok(Arc::new(Self {
            pool: Pool::new(dialer.clone()),
            dialer,
            context,
            disk,
            servers,
            told: cpuserver::Memory::default(),
            serving: AtomicUsize::new(0),
            sessions: DashMap::new(),
            changed: Notify::new(),
            stop: Notify::new(),
        }))
    }

    /// The files by which it is used: `soon` (a node that is about to be served), `serve`, `status`, `sees` (which
    /// mount namespace it is in) and `ctl` (which knows `stop`).
    pub fn tree(self: &Arc<Self>) -> TreeRef {
        let (soon, serve, status, stop) = (self.clone(), self.clone(), self.clone(), self.clone());
        synth::tree(synth::dir([
            ("soon", synth::ctl(move |line| soon.dial(line))),
            ("serve", synth::ctl(move |line| serve.clone().asked(line))),
            ("status", synth::file(move || Ok(format!("serving {}\n", status.serving.load(Ordering::SeqCst)).into()))),
            ("sees", synth::file(|| Ok(mount_namespace().into()))),
            (
                "ctl",
                synth::ctl(move |line| match &line[..] {
                    b"stop" => {
                        stop.stop.notify_one();
                        Reply::ok(())
                    }
                    _ => Errno::EINVAL.into(),
                }),
            ),
        ]))
    }

    /// Returns when it was told to stop, or has had nothing to do for `idle_time`.
    pub async fn ended(&self, idle_time: Duration) {
        loop {
            let changed = self.changed.notified();
            let idle = self.serving.load(Ordering::SeqCst) == 0;
            tokio::select! {
                () = self.stop.notified() => return,
                () = changed => {}
                () = tokio::time::sleep(idle_time), if idle => return,
            }
        }
    }

    /// Ends the commands that it serves, as far as their nodes answer in time: without their files they are nothing.
    pub async fn end_commands(&self) {
        let sessions: Vec<_> = self.sessions.iter().map(|entry| (entry.key().clone(), entry.value().clone())).collect();
        let ends = sessions.into_iter().map(async |(session, node)| {
            let (_client, root) = self.dialer.attach_at_once(&node, LINGER).await.ok()?;
            cpuserver::client::kill(root, session, libc::SIGKILL).await.ok()
        });
        _ = tokio::time::timeout(ENDING, join_all(ends)).await;
    }

    /// What is to be done with connections to its socket that are to be ones to nodes: see [`pipe`].
    pub fn pipes(self: &Arc<Self>) -> Other {
        let agent = self.clone();
        let serve = move |stream| {
            let agent = agent.clone();
            Box::pin(async move { pipe::serve(stream, &agent.dialer, &agent.pool).await }) as BoxFuture<'static, _>
        };
        Other { begin: *b"dial", serve: Arc::new(serve) }
    }

    /// Dials the node that `line` names, which is about to be served.
    fn dial(self: &Arc<Self>, line: Bytes) -> Reply<'static, ()> {
        let Ok(name) = String::from_utf8(line.to_vec()) else { return Errno::EINVAL.into() };
        let Ok(node) = self.dialer.find(&name) else { return Errno::ENOENT.into() };
        self.pool.prepare(&node);
        Reply::ok(())
    }

    async fn connect(&self, node: &Node) -> std::result::Result<Io, Errno> {
        self.pool.take(node).await.map_err(|err| {
            tracing::warn!("{err}");
            Errno::EHOSTUNREACH
        })
    }

    fn asked(self: Arc<Self>, line: Bytes) -> Reply<'static, ()> {
        let Ok(request) = serde_json::from_slice::<Serve>(&line) else { return Errno::EINVAL.into() };
        Reply::later(async move {
            let node = self.dialer.find(&request.node).map_err(|_| Errno::ENOENT)?;
            let away = Duration::from_secs(request.away);
            let words = serve_back::away(&serve_back::line(&request.session, &request.nonce), away);
            let bulk_words = serve_back::bulk_line(&request.session, &request.nonce);
            let (agent, trust, name) = (self.clone(), node.trust, node.name.clone());
            let (named, session) = (request.servers.clone(), format!("{name}/{}", request.session));
            let exposed = request.exports.iter().map(|(node, export, read_only)| {
                (node.clone(), Only { export: export.as_str().into(), read_only: *read_only })
            });
            let exposed = exposed.collect();
            let hints: Vec<_> = request.hints.iter().map(|path| path.to_path().into_os_string().into_vec()).collect();
            let (session_name, nonce) = (request.session.clone(), request.nonce.clone());
            let request_session = session_name.clone();
            let rules = p9::cancel::blocking(move || Ok(request.rules(trust, agent.context.homes()))).await?;
            let (who, dialer) = (self.dialer.who(&node), self.dialer.clone());
            let tree: TreeRef = Arc::new(Lent {
                files: Ruled::new(self.disk.clone(), rules),
                named,
                exposed,
                trust,
                holder: node.key.fingerprint(),
                session,
                servers: self.servers.clone(),
                dialer: dialer.clone(),
                grants: tokio::sync::Mutex::default(),
            });
            let telling = async {
                if hints.is_empty() {
                    return Ok(None);
                }
                let told =
                    cpuserver::gather(&tree.attach(&who, b"/").await?, &hints, node.name.as_str(), &self.told).await;
                let line = serve_back::away(&serve_back::told_line(session_name, &nonce, told.len()), away);
                Ok::<_, Errno>(Some([line.into_bytes(), told.into()].concat()))
            };
            let (io, told) = tokio::join!(self.connect(&node), telling);
            let (mut io, told) = (io?, told?);
            say(&mut io, told.as_deref().unwrap_or(words.as_bytes())).await?;
            let serving = Serving { tree, who, dialer, name, words, bulk_words };
            let busy = Busy::new(self, request_session, node);
            tokio::spawn(async move {
                Box::pin(serving.run(io)).await;
                drop(busy);
            });
            Ok(())
        })
    }
}

/// How long ending the commands may take that it serves.
const ENDING: Duration = Duration::from_secs(2);
/// How long to wait, at first and at most, before a node is dialled again that was lost.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Connections in a row that lead to nothing, after which the node has no use for them.
const FRUITLESS: usize = 3;
/// Bytes of bulk after which there is a connection for that alone: more than it takes to start a small program.
const BULK: u64 = 8 << 20;
/// How long that may be at hand without being used.
const AT_HAND: Duration = Duration::from_secs(365 * 24 * 3600);

/// What one node's session is served.
struct Serving {
    tree: TreeRef,
    who: Arc<Who>,
    dialer: Dialer,
    name: NodeName,
    /// What a connection begins with, and one for bulk.
    words: String,
    bulk_words: String,
}

impl Serving {
    /// Serves on `io`, and on connections like it when that is lost, for as long as the node's session lasts.
    async fn run(self, io: Io) {
        let sessions = Sessions::new(crate::serve::session_limits());
        tokio::select! {
            () = self.first(&sessions, io) => {}
            () = self.bulk(&sessions) => {}
        }
    }

    /// Serves what brings the tree, which may be all that there is.
    async fn first(&self, sessions: &Sessions, io: Io) {
        let (mut next, mut pause, mut fruitless) = (Some(io), PAUSES.0, 0);
        loop {
            if let Some(io) = next.take() {
                let before = sessions.connections();
                if let Err(err) = sessions.serve(io, self.tree.clone(), self.who.clone(), Limits::default()).await {
                    tracing::info!("serving {} ended: {err}", self.name);
                }
                fruitless = if sessions.connections() == before { fruitless + 1 } else { 0 };
            }
            // It has ended, or lingered for as long as the node wanted it.
            if sessions.count().0 == 0 || fruitless == FRUITLESS {
                return;
            }
            tokio::time::sleep(pause).await;
            match self.again(&self.words).await {
                Ok(io) => (next, pause) = (Some(io), PAUSES.0),
                Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => return,
                Err(err) => {
                    tracing::info!("{} is not reached: {err}", self.name);
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
        }
    }

    /// Once there was bulk, has one more connection at hand for that, always: what is asked on it waits for the next
    /// when it is lost. It never returns.
    async fn bulk(&self, sessions: &Sessions) {
        sessions.carry_bulk(BULK).await;
        let (mut pause, mut fruitless, mut wanted) = (PAUSES.0, 0, false);
        // An older node wants none.
        while wanted || fruitless < FRUITLESS {
            match self.again(&self.bulk_words).await {
                Ok(io) => {
                    let before = sessions.connections();
                    let limits = Limits { version_time: AT_HAND, ..Limits::default() };
                    if let Err(err) = sessions.serve(io, self.tree.clone(), self.who.clone(), limits).await {
                        tracing::info!("serving bulk to {} ended: {err}", self.name);
                    }
                    let used = sessions.connections() > before;
                    wanted |= used;
                    (pause, fruitless) = if used { (PAUSES.0, 0) } else { ((pause * 2).min(PAUSES.1), fruitless + 1) };
                }
                Err(err) if matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => break,
                Err(err) => {
                    tracing::info!("{} is not reached for bulk: {err}", self.name);
                    pause = (pause * 2).min(PAUSES.1);
                }
            }
            tokio::time::sleep(pause).await;
        }
        std::future::pending().await
    }

    /// One more connection to the node, which begins with `words`.
    async fn again(&self, words: &str) -> io::Result<Io> {
        let mut io = self.dialer.connect_again(self.name.as_str()).await?;
        say(&mut io, words.as_bytes()).await?;
        Ok(io)
    }
}

async fn say(io: &mut (impl AsyncWrite + Unpin), words: &[u8]) -> io::Result<()> {
    io.write_all(words).await?;
    io.flush().await
}

/// Counts one session that is being served.
struct Busy(Arc<Agent>, String);

impl Busy {
    fn new(agent: Arc<Agent>, session: String, node: Node) -> Self {
        agent.serving.fetch_add(1, Ordering::SeqCst);
        agent.sessions.insert(session.clone(), node);
        agent.changed.notify_one();
        Self(agent, session)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.sessions.remove(&self.1);
        if self.0.serving.fetch_sub(1, Ordering::SeqCst) == 1 {
            // What is kept for speed would keep the user's file systems busy.
            self.0.disk.let_go();
        }
        self.0.changed.notify_one();
    }
}
