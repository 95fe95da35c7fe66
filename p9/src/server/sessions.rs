//! The sessions of a server: which there are, whose they are, and how long one stays that has no connection.
//!
//! [`Sessions::serve`] is called by whoever accepted a connection, as [`super::serve`] is. A connection that begins
//! with Tsession is handed to the task of that session, new or waiting, and [`Sessions::serve`] returns when it has
//! ended there. What the peer has (fids, open files, requests under way) belongs to the session's task, and ends with
//! it: when the peer says so, when no connection has come for as long as the session may linger, when its key is
//! denied, and when the last clone of [`Sessions`] is dropped. Invariants: a session belongs to one key; one that its
//! peer has ended never begins again.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::TryFutureExt;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::Instrument;

use super::connection::{Context, Hello};
use super::lane::{Arrival, Lane, Reader, ToLane, Writer};
use super::requests::Requests;
use super::{Error, LAST_WORDS, Limits};
use crate::session::{BULK, Budget, LEASE};
use crate::wire::Dialect;
use crate::{Errno, TreeRef, Who};

/// Lanes of one session: the first, and more for bulk data.
const LANES: usize = 4;

/// Sessions that their peers have ended, of which the server knows that: a connection may still come for one.
const ENDED: usize = 1024;

/// What the sessions of a server may cost.
#[derive(Clone, Debug)]
pub struct SessionLimits {
    /// The longest that a session stays that has no connection.
    pub linger: Duration,
    /// How long what a client may cache under a lease is good for, counted from its last request that was answered: at
    /// most as long as the tree waits for the answer to a break.
    pub lease: Duration,
    /// Sessions at once.
    pub sessions: usize,
    /// Sessions of one key without a connection; beyond, the one goes that has been so the longest.
    pub lingering: usize,
    /// What all sessions together keep of replies that were not acknowledged, in bytes. Beyond, sessions without a
    /// connection end, and the others send one reply at a time.
    pub kept: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { linger: Duration::from_secs(600), lease: LEASE, sessions: 4096, lingering: 32, kept: 256 << 20 }
    }
}

/// The sessions of a server. Clones are the same sessions; they end with the last.
#[derive(Clone)]
pub struct Sessions(Arc<Owner>);

/// Ends all sessions when it is dropped.
struct Owner(Registry);

impl Drop for Owner {
    fn drop(&mut self) {
        let gone = std::mem::take(&mut *self.0.live.lock());
        drop(gone);
    }
}

/// What sessions share with their lanes.
#[derive(Clone)]
pub(super) struct Registry(Arc<Shared>);

impl std::ops::Deref for Registry {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.0
    }
}

pub(super) struct Shared {
    /// This run of the server: another number after each start.
    pub(super) boot: u64,
    pub(super) limits: SessionLimits,
    pub(super) budget: Arc<Budget>,
    live: Mutex<HashMap<[u8; 16], Live>>,
    /// Those that ended last by what their peers said, the oldest first. Locked with the others held, or alone.
    ended: Mutex<VecDeque<[u8; 16]>>,
    handed: AtomicU64,
    /// Bytes of bulk that went by first lanes so far, where all else has to wait for each message of it.
    pub(super) bulk: AtomicU64,
    pub(super) more_bulk: Notify,
    /// Told when one has ended.
    gone: Notify,
    /// Set once the server is about to end: how long it may be away.
    leaves: watch::Sender<Option<Duration>>,
}

/// A session as the registry knows it. Dropping it ends it.
struct Live {
    who: Arc<Who>,
    msize: u32,
    arrivals: mpsc::Sender<(u8, Arrival)>,
    links: Arc<Links>,
    task: AbortHandle,
}

impl Drop for Live {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The connections of a session.
struct Links {
    count: AtomicUsize,
    /// Since when there is none.
    lingers: Mutex<Option<Instant>>,
    changed: Notify,
}

/// One connection of a session, for as long as it lives.
pub(super) struct Connected(Arc<Links>);

impl Connected {
    fn new(links: &Arc<Links>) -> Self {
        links.count.fetch_add(1, Ordering::SeqCst);
        *links.lingers.lock() = None;
        Self(links.clone())
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut lingers = self.0.lingers.lock();
        if self.0.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            *lingers = Some(Instant::now());
        }
        drop(lingers);
        self.0.changed.notify_one();
    }
}

/// The way to a session for a connection that belongs to it.
pub(super) struct Found {
    arrivals: mpsc::Sender<(u8, Arrival)>,
    links: Arc<Links>,
}

impl Sessions {
    /// No sessions yet.
    pub fn new(limits: SessionLimits) -> Self {
        let budget = Budget::new(limits.kept);
        Self(Arc::new(Owner(Registry(Arc::new(Shared {
            boot: random(),
            limits,
            budget,
            live: Mutex::default(),
            ended: Mutex::default(),
            handed: AtomicU64::new(0),
            bulk: AtomicU64::new(0),
            more_bulk: Notify::new(),
            gone: Notify::new(),
            leaves: watch::Sender::new(None),
        })))))
    }

    /// Serves `tree` on `stream`, as `who`, as [`super::serve`] does; a peer that wants a session gets one, or gets
    /// back to the one that it has. Dropping the future ends the connection, and all that it holds unless that belongs
    /// to a session.
    pub async fn serve<S>(&self, stream: S, tree: TreeRef, who: Arc<Who>, limits: Limits) -> Result<(), Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let span = super::span(&who);
        super::converse(stream, tree, who.numbered(), limits, Some(self))
            .inspect_err(|err| tracing::debug!("the connection ended: {err}"))
            .instrument(span)
            .await
    }

    /// Ends the sessions of the peers for which `gone` is true, with their connections; gives those peers.
    pub fn end(&self, gone: impl Fn(&Who) -> bool) -> Vec<Arc<Who>> {
        let ended: Vec<_> = self.0.0.live.lock().extract_if(|_, live| gone(&live.who)).collect();
        ended.into_iter().map(|(_, live)| live.who.clone()).collect()
    }

    /// Ends all of them, telling each peer that the server is about to end, and that it may be back within `back`:
    /// nobody need wait for it longer. Returns once they know, or do not listen.
    pub async fn leave(&self, back: Duration) {
        let shared = &self.0.0;
        shared.leaves.send_replace(Some(back));
        let told = async {
            loop {
                let mut gone = std::pin::pin!(shared.gone.notified());
                gone.as_mut().enable();
                let (all, without_connection) = self.count();
                if all == without_connection {
                    return;
                }
                gone.await;
            }
        };
        let _ = timeout(LAST_WORDS, told).await;
        self.end(|_| true);
    }

    /// How many there are, and how many of them have no connection.
    pub fn count(&self) -> (usize, usize) {
        let live = self.0.0.live.lock();
        (live.len(), live.values().filter(|live| live.links.lingers.lock().is_some()).count())
    }

    /// Connections that began a session or resumed one, so far.
    pub fn connections(&self) -> u64 {
        self.0.0.handed.load(Ordering::Relaxed)
    }

    /// Returns once `bytes` of bulk have gone by the first lanes of sessions: for who dials all connections, that of a
    /// lane for bulk, too.
    pub async fn carry_bulk(&self, bytes: u64) {
        let (shared, first) = (&self.0.0, self.0.0.bulk.load(Ordering::Relaxed));
        loop {
            let mut more = std::pin::pin!(shared.more_bulk.notified());
            more.as_mut().enable();
            if shared.bulk.load(Ordering::Relaxed) - first >= bytes {
                return;
            }
            more.await;
        }
    }

    /// What all of them keep of replies that were not acknowledged, in bytes.
    pub fn kept(&self) -> usize {
        self.0.0.budget.used()
    }

    /// The session that a connection of `who` asks for, begun if there is none. Errors: `EPERM` for another's, `EINVAL`
    /// for what cannot be meant, `ENOENT` for a further lane of no session and for one that its peer has ended,
    /// `EMFILE` for one session too many.
    pub(super) fn find(&self, hello: &Hello, tree: &TreeRef, who: &Arc<Who>, limits: &Limits) -> Result<Found, Errno> {
        let registry = &self.0.0;
        let handed = || registry.handed.fetch_add(1, Ordering::Relaxed);
        if usize::from(hello.lane) >= LANES {
            return Err(Errno::EINVAL);
        }
        let mut live = registry.live.lock();
        if let Some(live) = live.get(&hello.id) {
            if live.who.key != who.key || live.who.uid != who.uid || live.who.rights != who.rights {
                return Err(Errno::EPERM);
            }
            if live.msize != hello.msize {
                return Err(Errno::EINVAL);
            }
            handed();
            return Ok(Found { arrivals: live.arrivals.clone(), links: live.links.clone() });
        }
        // A connection that was made while the session was ended on another is wanted by nobody.
        if hello.lane != 0 || registry.ended.lock().contains(&hello.id) {
            return Err(Errno::ENOENT);
        }
        let gone = make_place(&mut live, &registry.limits, who)?;
        let Entry::Vacant(free) = live.entry(hello.id) else { return Err(Errno::EINVAL) };
        let who = Arc::new(Who { client: random(), ..(**who).clone() });
        let (arrivals, coming) = mpsc::channel(LANES);
        // Without a connection, until the one comes that is about to be handed to it.
        let lingers = Mutex::new(Some(Instant::now()));
        let links = Arc::new(Links { count: AtomicUsize::new(0), lingers, changed: Notify::new() });
        let first = Requests::new(limits, limits.pool.share(&who));
        // What is told without being asked for goes out on the first lane.
        let (spoken, push) = ((hello.msize, Dialect::Slashn), first.pushes());
        let context = Context::new(tree.clone(), who.clone(), spoken, limits, push);
        let session = Session {
            id: hello.id,
            context: Arc::new(context),
            first: Some(first),
            limits: limits.clone(),
            registry: registry.clone(),
            linger: hello.linger.min(registry.limits.linger),
            links: links.clone(),
        };
        let task = tokio::spawn(session.run(coming).in_current_span()).abort_handle();
        free.insert(Live { who, msize: hello.msize, arrivals: arrivals.clone(), links: links.clone(), task });
        drop(live);
        drop(gone);
        handed();
        Ok(Found { arrivals, links })
    }
}

impl Found {
    /// Hands a connection to the session; returns when it has ended there. Dropping the future cuts it.
    pub(super) async fn hand(self, hello: Hello, frames: Reader, writer: Writer) -> Result<(), Error> {
        let (_keep, cut) = oneshot::channel();
        let (done, ended) = oneshot::channel();
        let connected = Connected::new(&self.links);
        let arrival = Arrival { frames, writer, received: hello.received, tag: hello.tag, cut, done, connected };
        // A session that is gone by now has dropped the connection, and so has one that ends.
        let _ = self.arrivals.send((hello.lane, arrival)).await;
        drop(self);
        ended.await.unwrap_or(Ok(()))
    }
}

/// Makes room for one more session, of `who`; gives what has to go for it.
fn make_place(live: &mut HashMap<[u8; 16], Live>, limits: &SessionLimits, who: &Who) -> Result<Vec<Live>, Errno> {
    let mut gone = Vec::new();
    let own = live.values().filter(|live| live.who.key == who.key && live.links.lingers.lock().is_some()).count();
    if own >= limits.lingering {
        gone.extend(take_oldest(live, |live| live.who.key == who.key));
    }
    if live.len() >= limits.sessions {
        gone.push(take_oldest(live, |_| true).ok_or(Errno::EMFILE)?);
    }
    Ok(gone)
}

/// The session that has had no connection for the longest time, of those that are `meant`.
fn take_oldest(live: &mut HashMap<[u8; 16], Live>, meant: impl Fn(&Live) -> bool) -> Option<Live> {
    let lingering = live.iter().filter(|(_, live)| meant(live));
    let lingering = lingering.filter_map(|(id, live)| Some((live.links.lingers.lock().as_ref().copied()?, *id)));
    let (_, oldest) = lingering.min()?;
    live.remove(&oldest)
}

impl Registry {
    /// Returns once the server is about to end: how long it may be away.
    pub(super) async fn leaves(&self) -> Duration {
        let mut leaves = self.leaves.subscribe();
        let back = leaves.wait_for(Option::is_some).await.ok().and_then(|back| *back);
        match back {
            Some(back) => back,
            None => std::future::pending().await,
        }
    }

    /// Counts a message of `bytes` bytes that goes by a first lane, if it is bulk.
    pub(super) fn carries(&self, bytes: usize) {
        if bytes > BULK {
            self.bulk.fetch_add(bytes as u64, Ordering::Relaxed);
            self.more_bulk.notify_waiters();
        }
    }

    /// Takes a session off the list; one that its peer has `ended` is never begun again.
    fn remove(&self, id: &[u8; 16], ended: bool) -> Option<Live> {
        let mut live = self.live.lock();
        self.gone.notify_waiters();
        if ended {
            let mut known = self.ended.lock();
            if known.len() == ENDED {
                known.pop_front();
            }
            known.push_back(*id);
        }
        live.remove(id)
    }

    /// Ends a session without a connection, if all of them keep too much.
    pub(super) fn make_room(&self) {
        if self.budget.is_spent() {
            let gone = take_oldest(&mut self.live.lock(), |_| true);
            drop(gone);
        }
    }
}

/// What the task of a session has.
struct Session {
    id: [u8; 16],
    context: Arc<Context>,
    limits: Limits,
    registry: Registry,
    linger: Duration,
    links: Arc<Links>,
    /// Those of the first lane, until it begins.
    first: Option<Requests>,
}

impl Session {
    async fn run(mut self, mut arrivals: mpsc::Receiver<(u8, Arrival)>) {
        let mut lanes: [Option<ToLane>; LANES] = Default::default();
        let (mut tasks, mut ended) = (JoinSet::new(), false);
        loop {
            let until = self.links.lingers.lock().map(|since| since + self.linger);
            let lingered = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                arrival = arrivals.recv() => match arrival {
                    Some((lane, arrival)) => self.carry(&mut lanes, lane, arrival, &mut tasks).await,
                    None => break,
                },
                () = self.links.changed.notified() => {}
                // One that ends by itself ends the session.
                _ = tasks.join_next(), if !tasks.is_empty() => {
                    ended = true;
                    break;
                }
                () = lingered => {
                    tracing::debug!("the session ended: no connection for {:?}", self.linger);
                    break;
                }
            }
        }
        tasks.shutdown().await;
        self.context.fids.clear();
        let gone = self.registry.remove(&self.id, ended);
        drop(gone);
    }

    async fn carry(
        &mut self, lanes: &mut [Option<ToLane>; LANES], lane: u8, arrival: Arrival, tasks: &mut JoinSet<()>,
    ) {
        let Some(place) = lanes.get_mut(usize::from(lane)) else { return };
        let first = lane == 0;
        let lane = place.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(1);
            let lane = Lane {
                requests: if first { self.first.take() } else { None }
                    .unwrap_or_else(|| Requests::new(&self.limits, self.context.share.clone())),
                context: self.context.clone(),
                limits: self.limits.clone(),
                registry: self.registry.clone(),
                linger: self.linger,
                first,
            };
            tasks.spawn(lane.run(receiver).in_current_span());
            sender
        });
        // A lane takes what comes at once, unless it has just ended.
        let _ = lane.send(arrival).await;
    }
}

/// A number that nobody can guess.
fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|err| {
        tracing::error!("no random numbers: {err}");
        // Unique still, within this run.
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    })
}
