//! The CPU service of one node: its sessions, whose they are, and what they run with.
//!
//! Made once by the node, which puts [`Cpu::node_for`] at /cpu of each peer's tree and hands in the connections that
//! bring callers' trees ([`Cpu::serve_back`]). Nothing here listens; jobs run in tasks on the runtime that the node
//! gives.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use fileserver::{Disk, DiskOptions};
use p9::{Errno, NodeRef, TreeRef, Who};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::job;
use crate::launch::Launcher;
use crate::owner::Owner;
use crate::session::{self, CloneFile, Session};
use crate::travel::Travel;
use crate::tree;

/// What the service is made of.
pub struct CpuOptions {
    /// Starts the processes.
    pub launcher: Launcher,
    /// This node's name, which its exports are shown under in a job (`/n/NAME/fs`).
    pub node_name: String,
    /// Where the jobs' tasks run.
    pub runtime: Handle,
    /// The node's own trees, for namespace lines such as `mount '#fs' ...` (all exports) and `mount '#fs/NAME' ...`.
    pub own: Arc<dyn ns::Dialer>,
    /// Reaches what else their callers' namespaces name; without it such a name is `ENOENT`.
    pub travel: Option<Arc<dyn Travel>>,
    /// Where jobs' private /tmp directories are made.
    pub tmp: PathBuf,
    /// The environment of a command that was given none, `NAME=VALUE` each; by default a `PATH`.
    pub env: Vec<Vec<u8>>,
    /// Libraries of this node that are tied to its drivers, besides those that are known: paths, with `*` in the last
    /// part. Commands whose root is their caller's have them of the node.
    pub drivers: Vec<PathBuf>,
    /// Keys the qids of the node's own files in a job.
    pub qid_key: [u8; 32],
    /// Where jobs keep what they read of their callers' files, for the next one of the same caller.
    pub disk: Option<mount::DiskCache>,
    /// What peers may use.
    pub limits: CpuLimits,
}

/// What bounds one node's sessions.
#[derive(Clone, Debug)]
pub struct CpuLimits {
    /// Sessions of one peer.
    pub sessions: usize,
    /// Bytes held of each of a session's three streams.
    pub buffer: usize,
    /// How long `exec` waits for the connection that brings the caller's tree.
    pub caller: Duration,
    /// How long a detached command that has ended can still be asked what came of it.
    pub keep: Duration,
}

impl Default for CpuLimits {
    fn default() -> Self {
        Self { sessions: 1024, buffer: 1 << 20, caller: Duration::from_secs(10), keep: Duration::from_secs(600) }
    }
}

/// Names of sessions that are remembered when those are no more.
const OVER: usize = 1024;

/// A command that runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Running {
    /// The session that it runs in.
    pub session: u64,
    /// The first process of the job, as this machine numbers it. All others descend from it, or from its parent if the
    /// job has no pid namespace.
    pub init: i32,
    /// The job's namespace, as the text that rebuilds it.
    pub ns: String,
}

/// The CPU service of one node.
pub struct Cpu {
    pub(crate) options: CpuOptions,
    sessions: DashMap<u64, (Arc<Session>, NodeRef)>,
    /// The numbers of those whose names their callers chose.
    chosen: DashMap<String, u64>,
    /// Such names of sessions that are no more, the oldest first: who comes late for one is told so.
    over: Mutex<VecDeque<String>>,
    last: AtomicU64,
    faces: DashMap<Owner, NodeRef>,
    root: OnceLock<TreeRef>,
    hierarchies: OnceLock<job::Hierarchies>,
    drivers: OnceLock<job::Drivers>,
}

impl Cpu {
    /// A service without sessions. What a node that was killed has left of control groups is removed.
    pub fn new(options: CpuOptions) -> Arc<Self> {
        let cpu = Arc::new(Self {
            options,
            sessions: DashMap::new(),
            chosen: DashMap::new(),
            over: Mutex::default(),
            last: AtomicU64::new(0),
            faces: DashMap::new(),
            root: OnceLock::new(),
            hierarchies: OnceLock::new(),
            drivers: OnceLock::new(),
        });
        let new = cpu.clone();
        cpu.runtime().spawn_blocking(move || _ = (new.hierarchies(), new.drivers()));
        cpu
    }

    /// The directory /cpu as `who` sees it, with its own sessions alone; `None`, as if it were not there, for a peer
    /// that may not run commands.
    pub fn node_for(self: &Arc<Self>, who: &Who) -> Option<NodeRef> {
        let owner = Owner::from(who);
        let face = || self.faces.entry(owner.clone()).or_insert_with(|| tree::directory(self, owner.clone())).clone();
        who.rights.may_run().then(face)
    }

    /// How many sessions there are, and in how many of them a command runs.
    pub fn counts(&self) -> (usize, usize) {
        let running = |phase| matches!(phase, session::Phase::Starting | session::Phase::Running { .. });
        let sessions: Vec<_> = self.sessions.iter().map(|entry| entry.0.clone()).collect();
        (sessions.len(), sessions.iter().filter(|session| running(session.phase())).count())
    }

    /// The commands that run now.
    pub fn jobs(&self) -> Vec<Running> {
        let sessions: Vec<_> = self.sessions.iter().map(|entry| entry.0.clone()).collect();
        let running = |session: Arc<Session>| match session.phase() {
            session::Phase::Running { pid } => {
                Some(Running { session: session.id, init: pid, ns: job::text(&session) })
            }
            _ => None,
        };
        sessions.into_iter().filter_map(running).collect()
    }

    /// Ends every session of `who`, for a key that may not come in any more.
    pub fn end_sessions_of(&self, who: &Who) {
        let owner = Owner::from(who);
        self.faces.remove(&owner);
        let theirs: Vec<_> = self.sessions.iter().map(|entry| entry.0.clone()).filter(|s| s.owner == owner).collect();
        theirs.iter().for_each(|session| self.remove(session));
    }

    /// Ends every session: their processes are killed.
    pub fn end_all(&self) {
        let all: Vec<_> = self.sessions.iter().map(|entry| entry.0.clone()).collect();
        all.iter().for_each(|session| self.remove(session));
    }

    pub(crate) fn runtime(&self) -> &Handle {
        &self.options.runtime
    }

    /// Makes a session for `owner`, and holds it. Errors: `EMFILE` when it has as many as it may.
    pub(crate) fn open_clone(self: &Arc<Self>, owner: &Owner) -> Result<CloneFile, Errno> {
        let (session, _) = self.make(owner, random_hex()?)?;
        Ok(CloneFile::new(self, &session))
    }

    fn make(self: &Arc<Self>, owner: &Owner, nonce: String) -> Result<(Arc<Session>, NodeRef), Errno> {
        let theirs = self.sessions.iter().filter(|entry| entry.0.owner == *owner).count();
        if theirs >= self.options.limits.sessions {
            return Err(Errno::EMFILE);
        }
        let id = self.last.fetch_add(1, Ordering::SeqCst) + 1;
        let session = Session::new(id, owner.clone(), nonce, self.options.limits.buffer);
        let node = session::directory(self, &session);
        self.sessions.insert(id, (session.clone(), node.clone()));
        Ok((session, node))
    }

    /// `owner`'s session called `name`, and its directory: by its number; or by a name that its caller chose, which
    /// nobody else can guess, and by which it is made when it is first asked for. One of these that nobody holds in
    /// time is no more, and a name is used once. Errors: `ENOENT`; `EMFILE` when there are as many as may be.
    pub(crate) fn session(self: &Arc<Self>, name: &str, owner: &Owner) -> Result<(Arc<Session>, NodeRef), Errno> {
        let id = match chosen(name) {
            None => number(name).ok_or(Errno::ENOENT)?,
            Some(secret) => {
                // Locked until it is made, so that it is made once.
                let slot = self.chosen.entry(name.to_owned());
                if let Entry::Occupied(known) = slot {
                    *known.get()
                } else if self.over.lock().iter().any(|over| over == name) {
                    return Err(Errno::ENOENT);
                } else {
                    let (session, node) = self.make(owner, secret.to_owned())?;
                    slot.insert(session.id);
                    self.drop_unless_held(&session);
                    return Ok((session, node));
                }
            }
        };
        let session = self.sessions.get(&id).filter(|entry| entry.0.owner == *owner);
        session.map(|entry| entry.value().clone()).ok_or(Errno::ENOENT)
    }

    fn drop_unless_held(self: &Arc<Self>, session: &Arc<Session>) {
        let (cpu, session) = (Arc::downgrade(self), Arc::downgrade(session));
        let patience = self.options.limits.caller;
        self.runtime().spawn(async move {
            tokio::time::sleep(patience).await;
            if let (Some(cpu), Some(session)) = (cpu.upgrade(), session.upgrade())
                && !session.was_held()
            {
                cpu.remove(&session);
            }
        });
    }

    pub(crate) fn sessions_of(&self, owner: &Owner) -> Vec<(u64, NodeRef)> {
        let theirs = self.sessions.iter().filter(|entry| entry.0.owner == *owner);
        theirs.map(|entry| (*entry.key(), entry.1.clone())).collect()
    }

    /// The clone file of `session` was closed.
    pub(crate) fn released(self: &Arc<Self>, session: &Arc<Session>) {
        match session.release() {
            false => self.remove(session),
            true if matches!(session.phase(), session::Phase::Ended(_)) => self.finished(session),
            true => {}
        }
    }

    /// The command of `session` ended: if nobody holds the session, it is kept a while for those who ask.
    pub(crate) fn finished(self: &Arc<Self>, session: &Arc<Session>) {
        if session.is_released() {
            let (cpu, session) = (Arc::downgrade(self), session.clone());
            let keep = self.options.limits.keep;
            self.runtime().spawn(async move {
                tokio::select! {
                    () = tokio::time::sleep(keep) => {}
                    () = session.over() => {}
                }
                if let Some(cpu) = cpu.upgrade() {
                    cpu.remove(&session);
                }
            });
        }
    }

    fn remove(&self, session: &Arc<Session>) {
        self.sessions.remove(&session.id);
        self.chosen.retain(|name, id| {
            let lasts = *id != session.id;
            if !lasts {
                let mut over = self.over.lock();
                if over.len() == OVER {
                    over.pop_front();
                }
                over.push_back(name.clone());
            }
            lasts
        });
        session.end();
    }

    /// Where jobs' control groups can be made: looked for once. It does blocking I/O.
    pub(crate) fn hierarchies(&self) -> &job::Hierarchies {
        self.hierarchies.get_or_init(job::Hierarchies::of_this_process)
    }

    /// What is tied to this node's drivers: looked for once. It does blocking I/O.
    pub(crate) fn drivers(&self) -> &job::Drivers {
        self.drivers.get_or_init(|| job::Drivers::of_this_machine(&self.options.drivers))
    }

    /// This node's own root, as a tree: opened once.
    pub(crate) fn own_root(&self) -> Result<TreeRef, fileserver::Error> {
        if let Some(root) = self.root.get() {
            return Ok(root.clone());
        }
        let root = self.disk("/".as_ref())?;
        Ok(self.root.get_or_init(|| root).clone())
    }

    /// A directory of this node, read and write.
    pub(crate) fn disk(&self, path: &std::path::Path) -> Result<TreeRef, fileserver::Error> {
        Ok(Disk::open(path, DiskOptions::new(self.options.qid_key))?)
    }
}

/// The session that `name` numbers, if it is written the one way that a number is.
fn number(name: &str) -> Option<u64> {
    let id: u64 = name.parse().ok()?;
    (id.to_string() == name).then_some(id)
}

/// The secret in a name that a caller chose: `+` and what [`random_hex`] makes.
fn chosen(name: &str) -> Option<&str> {
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    name.strip_prefix('+').filter(|secret| secret.len() == 32 && secret.bytes().all(is_hex))
}

/// 128 random bits, in hexadecimal.
pub(crate) fn random_hex() -> Result<String, Errno> {
    let mut bits = [0; 16];
    getrandom::fill(&mut bits).map_err(|_| Errno::EIO)?;
    Ok(bits.iter().map(|byte| format!("{byte:02x}")).collect())
}
