//! Connections to nodes that stand ready for the next command, so that it waits for no handshake.
//!
//! Kept by the agent, for its own use and for every `rcpu` that asks ([`crate::pipe`]): each is used once. After the
//! first use of a node a few are dialled ahead; more of them while commands come faster than connections do; none for
//! one that has not been used for a while. A connection that stands ready has said `wait` to its node, which then waits
//! for its first words, and is watched by a task: one that ends, or whose node is known otherwise by then, is not used.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use p9::transport::Io;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};

use crate::dial::Dialer;
use crate::error::Result;
use crate::known::Node;

/// What a connection says that is to stand ready: as the size of a 9P frame it would be 1.9 GB.
pub const WAIT: &[u8; 4] = b"wait";

/// How many stand ready: for one command, and at most.
const READY: (usize, usize) = (2, 32);
/// How often it is looked whether there are too many, and after how long without use there are none.
const LOOK: Duration = Duration::from_secs(30);
const UNUSED: Duration = Duration::from_secs(300);

/// The connections of one agent. A clone is the same.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    dialer: Dialer,
    nodes: Mutex<HashMap<String, Spare>>,
}

/// Those to one node.
struct Spare {
    node: Node,
    ready: Vec<Ready>,
    dialling: usize,
    /// How many wait for one that is being dialled, and what wakes them.
    waiting: usize,
    dialled: Arc<Notify>,
    wanted: usize,
    used: Instant,
}

/// What there is for who wants a connection.
enum Next {
    Ready(Ready),
    /// One is being dialled.
    Soon(Arc<Notify>),
    None,
}

/// The way to a connection that stands ready: whoever sends there gets it, unless it has ended.
type Ready = oneshot::Sender<oneshot::Sender<Io>>;

impl Pool {
    /// None yet, dialled with `dialer`.
    pub fn new(dialer: Dialer) -> Self {
        Self(Arc::new(Inner { dialer, nodes: Mutex::default() }))
    }

    /// A connection to `node`, whose key has been proven, and on which nothing but [`WAIT`] was said. Errors: as for
    /// [`Dialer::connect`].
    pub async fn take(&self, node: &Node) -> Result<Io> {
        loop {
            match self.next(node) {
                Next::Ready(ready) => {
                    let (sender, receiver) = oneshot::channel();
                    if ready.send(sender).is_ok()
                        && let Ok(io) = receiver.await
                    {
                        self.fill(node);
                        return Ok(io);
                    }
                }
                Next::Soon(dialled) => {
                    dialled.notified().await;
                    self.of(node, |spare| spare.waiting = spare.waiting.saturating_sub(1));
                }
                Next::None => break,
            }
        }
        let io = self.0.dialer.connect(node).await?;
        self.fill(node);
        Ok(Box::new(io))
    }

    /// Has a connection to `node` dialled, which is about to be used, if none stands ready.
    pub fn prepare(&self, node: &Node) {
        let is_lent = self.0.dialer.is_lent();
        let is_needed = self.of(node, |spare| {
            let is_needed = !is_lent && spare.ready.len() + spare.dialling == 0;
            spare.dialling += usize::from(is_needed);
            is_needed
        });
        if is_needed {
            tokio::spawn(stand_ready(self.0.clone(), node.clone()));
        }
    }

    /// One that stands ready, or soon will. If none does, more are wanted from now on.
    fn next(&self, node: &Node) -> Next {
        self.of(node, |spare| {
            if let Some(ready) = spare.ready.pop() {
                return Next::Ready(ready);
            }
            spare.wanted = (spare.wanted * 2).clamp(READY.0, READY.1);
            if spare.dialling > spare.waiting {
                spare.waiting += 1;
                return Next::Soon(spare.dialled.clone());
            }
            Next::None
        })
    }

    fn of<T>(&self, node: &Node, look: impl FnOnce(&mut Spare) -> T) -> T {
        let mut nodes = self.0.nodes.lock();
        let (name, used) = (node.name.to_string(), Instant::now());
        let new = || {
            let (node, ready, dialled) = (node.clone(), Vec::new(), Arc::default());
            Spare { node, ready, dialling: 0, waiting: 0, dialled, wanted: 0, used }
        };
        let spare = nodes.entry(name).or_insert_with(|| {
            tokio::spawn(look_after(Arc::downgrade(&self.0), node.name.to_string()));
            new()
        });
        // It has another key or address by now.
        if spare.node.address != node.address || spare.node.key != node.key {
            *spare = new();
        }
        spare.used = used;
        look(spare)
    }

    /// Dials as many as are wanted.
    fn fill(&self, node: &Node) {
        // Each would be one of the caller's.
        if self.0.dialer.is_lent() {
            return;
        }
        let missing = {
            let mut nodes = self.0.nodes.lock();
            let Some(spare) = nodes.get_mut(node.name.as_str()) else { return };
            spare.ready.retain(|ready| !ready.is_closed());
            spare.wanted = spare.wanted.max(READY.0);
            let missing = spare.wanted.saturating_sub(spare.ready.len() + spare.dialling);
            spare.dialling += missing;
            missing
        };
        for _ in 0..missing {
            tokio::spawn(stand_ready(self.0.clone(), node.clone()));
        }
    }
}

/// Dials `node` once, and keeps the connection until it is taken or ends.
async fn stand_ready(inner: Arc<Inner>, node: Node) {
    let dialled = async {
        let mut io: Io = Box::new(inner.dialer.connect(&node).await.ok()?);
        io.write_all(WAIT).await.ok()?;
        io.flush().await.ok()?;
        Some(io)
    };
    let io = dialled.await;
    let (ready, asked) = oneshot::channel::<oneshot::Sender<Io>>();
    {
        let mut nodes = inner.nodes.lock();
        let Some(spare) = nodes.get_mut(node.name.as_str()) else { return };
        spare.dialling = spare.dialling.saturating_sub(1);
        if io.is_some() {
            spare.ready.push(ready);
        }
        spare.dialled.notify_one();
    }
    drop(inner);
    let Some(mut io) = io else { return };
    let mut byte = [0];
    tokio::select! {
        asked = asked => {
            if let Ok(sender) = asked {
                let _ = sender.send(io);
            }
        }
        // Nothing is to come: it has ended.
        _ = io.read(&mut byte) => {}
    }
}

/// Lets go of what stands ready for nothing.
async fn look_after(inner: Weak<Inner>, name: String) {
    loop {
        tokio::time::sleep(LOOK).await;
        let Some(inner) = inner.upgrade() else { return };
        let mut nodes = inner.nodes.lock();
        let Some(spare) = nodes.get_mut(&name) else { return };
        if spare.used.elapsed() >= UNUSED {
            nodes.remove(&name);
            return;
        }
        if spare.used.elapsed() >= LOOK {
            spare.wanted = READY.0;
        }
        let too_many = spare.ready.len().saturating_sub(spare.wanted);
        spare.ready.drain(..too_many);
    }
}
