//! The lane of a session that carries bulk data, so that nothing small waits behind it.
//!
//! Lane 1 of the session, over a connection of its own (see `DIALECT.md`), run in a task of the link. It is opened once
//! some bulk was asked for, loses its connection when none has been for a while, and gets another when there is some
//! again. Until it stands, and where it cannot be had, bulk goes with all else. Fids are ordered within a lane alone: a
//! [`Use`] is with each message of bulk, and what must not come before its answer waits for that. What was asked on the
//! lane when its connection was lost waits until the lane has another, for as long as the session lasts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

use super::call::Calls;
use super::fid::Fid;
use super::link::{Link, Wire};
use super::resume::{Lost, PAUSES, Reader, Session, is_final, jittered};
use crate::Errno;
use crate::session::BULK;
use crate::wire::T;

/// Bytes of bulk that go with all else before the lane is opened.
const BEFORE: u64 = 1 << 20;
/// How long the lane keeps its connection when nothing is asked on it.
const IDLE: Duration = Duration::from_secs(30);
/// How long bulk goes with all else after the lane could not be opened, before that is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// The lane for bulk.
pub(super) struct Bulk {
    pub(super) wire: Arc<Wire>,
    session: Arc<Session>,
    /// Whether it has a connection.
    stands: AtomicBool,
    /// Bytes of bulk that were asked for while it had none.
    asked: AtomicU64,
    wanted: Notify,
}

impl Bulk {
    pub(super) fn new(wire: Arc<Wire>, session: Arc<Session>) -> Arc<Self> {
        let (stands, asked, wanted) = (AtomicBool::new(false), AtomicU64::new(0), Notify::new());
        Arc::new(Self { wire, session, stands, asked, wanted })
    }

    /// Whether `bytes` of bulk go this way. If not, it may be opened for those that follow.
    fn takes(&self, bytes: usize) -> bool {
        if self.stands.load(Ordering::SeqCst) {
            return true;
        }
        let bytes = bytes as u64;
        if self.asked.fetch_add(bytes, Ordering::Relaxed) + bytes >= BEFORE {
            self.wanted.notify_one();
        }
        false
    }

    /// Goes on until the session ends, whose first lane is `first`, or the server will have no such lane.
    pub(super) async fn run(self: Arc<Self>, first: Arc<Wire>, liveness: Duration) {
        let verdict = tokio::select! {
            () = first.closed() => first.verdict(),
            verdict = self.carry(liveness) => verdict,
        };
        self.stands.store(false, Ordering::SeqCst);
        self.wire.close(verdict);
    }

    /// Opens the lane whenever it is needed. It returns what ends it for good.
    async fn carry(&self, liveness: Duration) -> Errno {
        let mut begun = false;
        loop {
            self.needed().await;
            let mut frames = match self.reach(liveness, begun).await {
                Ok(Some(frames)) => frames,
                Ok(None) => {
                    sleep(AGAIN).await;
                    continue;
                }
                Err(verdict) => return verdict,
            };
            begun = true;
            self.asked.store(0, Ordering::Relaxed);
            self.stands.store(true, Ordering::SeqCst);
            let lost = tokio::select! {
                lost = self.wire.converse(&mut frames, liveness, Some(&self.session)) => lost,
                () = self.idle() => Lost::Connection("it was not used".into()),
            };
            self.stands.store(false, Ordering::SeqCst);
            self.wire.pen.lock().put_down();
            match lost {
                Lost::Connection(why) => tracing::debug!("the lane for bulk has no connection now: {why}"),
                Lost::Left(_) => return Errno::EHOSTUNREACH,
                Lost::Protocol(why) => {
                    tracing::warn!("the lane for bulk is given up: {why}");
                    return Errno::EHOSTUNREACH;
                }
            }
        }
    }

    /// Returns once there is enough to carry, or an answer is owed.
    async fn needed(&self) {
        while self.wire.under_way() == 0 {
            tokio::select! {
                () = self.wanted.notified() => return,
                // Perhaps something was put in while the connection was being lost.
                () = self.wire.filled.notified() => {}
            }
        }
    }

    /// Returns once nothing has been asked for a while.
    async fn idle(&self) {
        loop {
            let before = self.wire.requests();
            sleep(IDLE).await;
            if self.wire.under_way() == 0 && self.wire.requests() == before {
                return;
            }
        }
    }

    /// Opens the lane, or gets back to one that was `begun`; gives none if that is not to be had and nobody waits for
    /// it. Errors: it never will be.
    async fn reach(&self, liveness: Duration, begun: bool) -> Result<Option<Reader>, Errno> {
        let (lost, mut pause) = (Instant::now(), PAUSES.0);
        loop {
            // A server that has no sessions has no lanes.
            let granted = self.session.granted().and(self.session.resume.bulk.as_ref());
            let Some(dial) = granted else { return Err(Errno::EHOSTUNREACH) };
            match self.wire.attempt(dial, &self.session, liveness, begun).await {
                Ok(Some(frames)) => return Ok(Some(frames)),
                Ok(None) => return Err(Errno::ESTALE),
                Err(err) if is_final(&err, lost) => return Err(Errno::EHOSTUNREACH),
                Err(err) => tracing::debug!("the lane for bulk is not to be had: {err}"),
            }
            if self.wire.under_way() == 0 {
                return Ok(None);
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

impl Link {
    /// Sends messages that read or write `bytes` of `fid`, together: by the lane for bulk, if they are that.
    pub(super) async fn data(&self, fid: &Arc<Fid>, messages: &[(T<'_>, Bytes)], bytes: usize) -> Result<Calls, Errno> {
        if bytes <= BULK {
            return self.calls(messages).await;
        }
        if let Some(bulk) = self.bulk.as_ref().filter(|bulk| bulk.takes(bytes)) {
            match bulk.wire.calls(messages, Some(fid)).await {
                // Nothing of it went out.
                Err(_) if bulk.wire.is_closed() => {}
                sent => return sent,
            }
        }
        self.wire.calls(messages, Some(fid)).await
    }

    /// Whether there was a lane for bulk and now never will be: what was asked on it failed, whatever the server did.
    pub(super) fn has_lost_bulk(&self) -> bool {
        !self.wire.is_closed() && self.bulk.as_ref().is_some_and(|bulk| bulk.wire.is_closed())
    }
}

/// How many messages of bulk are under way on a fid.
#[derive(Default)]
pub(super) struct Uses {
    count: AtomicUsize,
    ended: Notify,
}

impl Uses {
    /// Returns once none is.
    pub(super) async fn end(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            if self.count.load(Ordering::SeqCst) == 0 {
                return;
            }
            ended.await;
        }
    }
}

/// One message of bulk under way: until the server has said that it has ended, the fid is not given back.
pub(super) struct Use(Arc<Fid>);

impl Use {
    pub(super) fn of(fid: &Arc<Fid>) -> Self {
        fid.uses.count.fetch_add(1, Ordering::SeqCst);
        Self(fid.clone())
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        if self.0.uses.count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.uses.ended.notify_waiters();
        }
    }
}
