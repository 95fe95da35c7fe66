//! Leases from a server, and the clock by which they end.
//!
//! A lease is held by a fid, its own or that of the open file that it came along with; giving the fid back gives it
//! back. A break is told by the task that reads, before it takes the next message off the stream: whoever has seen a
//! later answer has seen the break. What is kept may be used for [`LEASE`] from when the last request was sent that was
//! answered since: a server that hears nothing from us waits for so long, and then goes on without us. The clock goes
//! on while the machine sleeps.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::call::Answer;
use super::fid::Fid;
use super::node::{Message, Remote, plain};
use crate::session::LEASE;
use crate::tree::{Guard, Lease, LeaseKind, OnBreak};
use crate::wire::{R, T};
use crate::{Errno, Reply};

/// Tells the time since the machine was started.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Clock {
    /// A clock that is asked by `now`, for tests.
    pub fn new(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    fn now(&self) -> u64 {
        (self.0)().as_nanos() as u64
    }
}

impl Default for Clock {
    /// `CLOCK_BOOTTIME` of clock_gettime(2), which counts the time that the machine sleeps.
    fn default() -> Self {
        Self::new(|| {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
        })
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// The leases of one connection.
pub(super) struct Leases {
    clock: Clock,
    /// Whether a lease was ever asked for: before, nobody wants to know the time.
    used: AtomicBool,
    /// When the last request that was answered had been sent.
    heard: AtomicU64,
    /// How long a lease lasts from then on, in nanoseconds.
    lasts: AtomicU64,
    /// By fid, what a break rings.
    holders: Mutex<HashMap<u32, Arc<Bell>>>,
}

/// Tells of breaks whoever wants to know, and keeps the one that came before anybody did.
#[derive(Default)]
struct Bell(Mutex<Listener>);

#[derive(Default)]
struct Listener {
    on_break: Option<OnBreak>,
    /// Whether there ever was a break.
    rung: bool,
    missed: Option<LeaseKind>,
}

impl Bell {
    fn ring(&self, keep: LeaseKind) {
        let on_break = {
            let mut listener = self.0.lock();
            listener.rung = true;
            if listener.on_break.is_none() {
                listener.missed = Some(listener.missed.map_or(keep, |missed| missed.min(keep)));
            }
            listener.on_break.clone()
        };
        if let Some(on_break) = on_break {
            on_break(keep);
        }
    }

    fn tell(&self, on_break: OnBreak) {
        let missed = {
            let mut listener = self.0.lock();
            listener.on_break = Some(on_break.clone());
            listener.missed.take()
        };
        if let Some(keep) = missed {
            on_break(keep);
        }
    }
}

impl Leases {
    pub(super) fn new(clock: Clock) -> Self {
        let (used, heard) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { clock, used, heard, lasts: AtomicU64::new(LEASE.as_nanos() as u64), holders: Mutex::default() }
    }

    /// Leases last for `time`, the server says.
    pub(super) fn last(&self, time: Duration) {
        self.lasts.store(time.as_nanos() as u64, Ordering::SeqCst);
    }

    /// The time for a request that is about to be sent; 0 when nobody will ask.
    pub(super) fn stamp(&self) -> u64 {
        if self.used.load(Ordering::Relaxed) { self.clock.now() } else { 0 }
    }

    /// A request was answered that was sent at `stamp`.
    pub(super) fn heard(&self, stamp: u64) {
        if stamp != 0 {
            self.heard.fetch_max(stamp, Ordering::SeqCst);
        }
    }

    fn hold(&self) -> bool {
        let heard = self.heard.load(Ordering::SeqCst);
        heard != 0 && self.clock.now() < heard + self.lasts.load(Ordering::SeqCst)
    }

    /// The server wants the lease of `fid` back. There may be none any more.
    pub(super) fn broken(&self, fid: u32, keep: LeaseKind) {
        let holder = self.holders.lock().get(&fid).cloned();
        if let Some(bell) = holder {
            bell.ring(keep);
        }
    }

    /// The connection has ended, and all leases with it.
    pub(super) fn end(&self) {
        let holders = std::mem::take(&mut *self.holders.lock());
        holders.into_values().for_each(|bell| bell.ring(LeaseKind::None));
    }
}

/// A lease that was granted, or is being asked for.
struct Held {
    fid: Arc<Fid>,
    bell: Arc<Bell>,
    /// Whether the server has it.
    granted: AtomicBool,
}

/// Whether a lease that was granted is still held, whole.
pub(super) struct Watch {
    guard: Weak<dyn Guard>,
    bell: Arc<Bell>,
}

impl Watch {
    pub(super) fn holds(&self) -> bool {
        self.guard.upgrade().is_some_and(|guard| guard.holds()) && !self.is_broken()
    }

    /// Whether the server wanted some of it back: what came under it is old.
    pub(super) fn is_broken(&self) -> bool {
        self.bell.0.lock().rung
    }
}

/// A lease that is asked for along with other things of its fid.
pub(super) struct Asked {
    held: Held,
    want: LeaseKind,
}

impl Asked {
    /// Asks for a lease of `want` on `fid`, by the message that is given along.
    pub(super) fn new(fid: &Arc<Fid>, want: LeaseKind) -> (Self, Message<'static>) {
        let (leases, number, bell) = (&fid.link.wire.leases, fid.number(), Arc::<Bell>::default());
        leases.used.store(true, Ordering::Relaxed);
        // Before it is asked for: it may be broken before the answer is read here.
        leases.holders.lock().insert(number, bell.clone());
        let held = Held { fid: fid.clone(), bell, granted: AtomicBool::new(false) };
        (Self { held, want }, plain(T::Lease { fid: number, kind: want.to_wire() }))
    }

    /// See [`Asked::granted`]; and how to see whether all that was asked for is still held.
    pub(super) fn watched(self, answer: Result<Answer, Errno>) -> Result<Option<(Lease, Option<Watch>)>, Errno> {
        let (bell, want) = (self.held.bell.clone(), self.want);
        let lease = self.granted(answer)?;
        Ok(lease.map(|lease| {
            let watch = (lease.kind == want).then(|| Watch { guard: Arc::downgrade(&lease.guard), bell });
            (lease, watch)
        }))
    }

    /// The lease, as far as the server granted it by `answer`.
    pub(super) fn granted(self, answer: Result<Answer, Errno>) -> Result<Option<Lease>, Errno> {
        let answer = answer?;
        let kind = match answer.message() {
            Ok(R::Lease { kind }) => {
                LeaseKind::from_wire(kind).filter(|kind| *kind <= self.want).ok_or(Errno::EPROTO)?
            }
            // An older server.
            Err(Errno::EOPNOTSUPP) => LeaseKind::None,
            Err(errno) => return Err(errno),
            Ok(_) => return Err(Errno::EPROTO),
        };
        if kind == LeaseKind::None {
            return Ok(None);
        }
        self.held.granted.store(true, Ordering::SeqCst);
        Ok(Some(Lease { kind, guard: Arc::new(self.held) }))
    }
}

impl Guard for Held {
    fn holds(&self) -> bool {
        let wire = &self.fid.link.wire;
        !wire.is_closed() && wire.leases.hold()
    }

    fn keep(&self, kind: LeaseKind) {
        self.fid.link.wire.tell(&T::Lease { fid: self.fid.number(), kind: kind.to_wire() });
    }

    fn tell(&self, on_break: OnBreak) {
        self.bell.tell(on_break);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let gone = self.fid.link.wire.leases.holders.lock().remove(&self.fid.number());
        drop(gone);
        // The clunk of the fid, if that goes with this, gives it back as well; but it may have to queue, and somebody
        // waits.
        let clunked = Arc::strong_count(&self.fid) == 1 && !self.bell.0.lock().rung;
        if self.granted.load(Ordering::SeqCst) && !clunked {
            self.keep(LeaseKind::None);
        }
    }
}

impl Remote {
    pub(super) fn lease_soon(&self, want: LeaseKind, on_break: OnBreak) -> Reply<'_, Option<Lease>> {
        if want == LeaseKind::None || !self.fid.link.ordered {
            return Reply::ok(None);
        }
        Reply::later(self.lease_now(want, on_break))
    }

    async fn lease_now(&self, want: LeaseKind, on_break: OnBreak) -> Result<Option<Lease>, Errno> {
        let fid = self.fid.link.fid()?;
        let (asked, lease) = Asked::new(&fid, want);
        asked.held.bell.tell(on_break);
        let mut calls = self.walk_and(&[], &fid, &[lease]).await?.calls.ok_or(Errno::EPROTO)?;
        asked.granted(calls.next().await)
    }
}

/// What a server says without being asked, if `frame` is that.
pub(super) fn unasked(code: u8, body: &Bytes) -> Option<(u32, LeaseKind)> {
    match R::decode(code, body) {
        Ok(Some(R::Break { fid, keep })) => Some((fid, LeaseKind::from_wire(keep)?)),
        _ => None,
    }
}
