//! The connection behind a client: what those who call share with the task that reads and writes.
//!
//! Requests are put in the outbox under one lock, so that those of one pipeline stay together and in order; the writer
//! takes all that is there at a time. A caller with whom nobody else waits writes by itself: waking the writer on
//! another thread would cost more than the writing. What waits for which reply is in [`Waits`], what a session has to
//! send again in its [`Ledger`]. The link ends with its last user, with a reply that nobody waits for, and when its
//! connection is lost: unless it has a session, which another connection resumes (see [`super::resume`]).

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::AsyncWrite;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::{JoinSet, yield_now};

use super::bulk::{Bulk, Use};
use super::counted::Traffic;
use super::fid::Fid;
use super::lease::{self, Clock, Leases};
use super::resume::{Reader, Session};
use super::waits::{Ticket, Waits};
use super::{Counts, Options};
use crate::Errno;
use crate::frame::Frame;
use crate::session::{FAREWELL, Ledger};
use crate::wire::{Dialect, NO_TAG, R, T};
use crate::writer::{Outgoing, Pieces};

/// Requests that may wait for replies at once, those included that are being flushed. With their flushes and with
/// [`super::waits::CLUNKS`] it stays below what a server of ours takes.
pub(super) const CALLS: usize = 1984;
/// How long a message for whose answer nobody waits is held for others to go along with.
const UNHURRIED: Duration = Duration::from_millis(2);

/// Of these, locks that wait: however many there are, what gives one back must find room.
const PARKED: usize = CALLS / 4;

/// A connection, or a session of one after another.
pub(super) struct Link {
    pub(super) wire: Arc<Wire>,
    /// Where bulk goes, in a session of which that may be.
    pub(super) bulk: Option<Arc<Bulk>>,
    pub(super) msize: u32,
    /// Whether the server orders what is done to a fid, so that messages may be sent before the answer to those before.
    pub(super) ordered: bool,
    pub(super) dialect: Dialect,
    /// For locks that are waited for at the server.
    pub(super) parked: Semaphore,
    _tasks: Mutex<JoinSet<()>>,
}

/// What the task of a connection shares with those who call.
pub(super) struct Wire {
    /// Its lane of the session.
    pub(super) lane: u8,
    waits: Mutex<Waits>,
    pub(super) pen: Mutex<Pen>,
    /// The session's account; none where there is no session. Locked after the pen and before the waits.
    pub(super) ledger: Mutex<Option<Ledger>>,
    /// The server is to be told what came.
    tell: AtomicBool,
    /// There is something to write, or the link has ended.
    pub(super) filled: Notify,
    /// There is something to write that may wait for more.
    unhurried: Notify,
    /// Something came of which the server is to be told in time.
    pub(super) untold: Notify,
    ended: Notify,
    closed: AtomicBool,
    /// The answer to the question for a version is still to come: all else went out before.
    pub(super) assumed: AtomicBool,
    /// The connection is to be given up for another.
    pub(super) redial: Notify,
    /// The server has been away for longer than who asks now is to wait.
    away: AtomicBool,
    /// When the connection was lost, while there is none.
    pub(super) lost: Mutex<Option<std::time::Instant>>,
    /// The server has said that it ends, and for how long it may be away.
    pub(super) left: Mutex<Option<Duration>>,
    /// What a call meets once the link has ended: an errno's number.
    verdict: AtomicU64,
    /// The same of what had been sent by then, which may have been done.
    unproven: AtomicU64,
    /// The stream does not take what is to be written as fast as it comes.
    writing: AtomicBool,
    pub(super) calls: Arc<Semaphore>,
    pub(super) round_trips: AtomicU64,
    pub(super) traffic: Arc<Traffic>,
    pub(super) leases: Leases,
}

/// The side of the stream that is written to, and what it has not taken yet. Locked before all else.
#[derive(Default)]
pub(super) struct Pen {
    /// None while there is no connection.
    stream: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pieces: Pieces,
}

impl Pen {
    /// A pen for `stream`, on which `first` goes out before all else.
    pub(super) fn new(stream: Box<dyn AsyncWrite + Send + Unpin>, first: impl IntoIterator<Item = Outgoing>) -> Self {
        let mut pieces = Pieces::default();
        first.into_iter().for_each(|message| pieces.add(message));
        Self { stream: Some(stream), pieces }
    }

    /// The connection is gone, and what was not written with it.
    pub(super) fn put_down(&mut self) {
        *self = Self::default();
    }
}

impl Link {
    /// A link over the connection of `frames` and `pen`; in a session, if it has one. The version that it goes by is
    /// only `assumed`, if the answer to the question for it is still to come.
    pub(super) fn start(
        frames: Reader, pen: Pen, traffic: Arc<Traffic>, (msize, dialect, assumed): (u32, Dialect, bool),
        options: Options, session: Option<Session>,
    ) -> Arc<Self> {
        let session = session.map(Arc::new);
        let wire = Wire::new(0, pen, traffic, session.as_deref(), options.clock.clone());
        wire.assumed.store(assumed, Ordering::Relaxed);
        let mut tasks = JoinSet::new();
        tasks.spawn(wire.clone().run(frames, options.liveness, session.clone()));
        let bulk = session.filter(|session| session.resume.bulk.is_some()).map(|session| {
            let (pen, traffic) = (Pen::default(), Arc::default());
            let lane = Wire::new(1, pen, traffic, Some(&session), options.clock);
            let bulk = Bulk::new(lane, session);
            tasks.spawn(bulk.clone().run(wire.clone(), options.liveness));
            bulk
        });
        let (ordered, parked) = (dialect == Dialect::Slashn, Semaphore::new(PARKED));
        Arc::new(Self { wire, bulk, msize, ordered, dialect, parked, _tasks: Mutex::new(tasks) })
    }

    /// A fid number that is not in use, clunked when the last clone is dropped.
    pub(super) fn fid(self: &Arc<Self>) -> Result<Arc<Fid>, Errno> {
        let number = self.wire.waits.lock().new_fid().ok_or(Errno::EMFILE)?;
        Ok(Fid::new(self.clone(), number))
    }

    /// How many messages were sent that change what directories hold.
    pub(super) fn changes(&self) -> u64 {
        self.wire.waits.lock().changes
    }

    pub(super) fn counts(&self) -> Counts {
        let bulk = self.bulk.as_ref().map(|bulk| bulk.wire.counts()).unwrap_or_default();
        let first = self.wire.counts();
        Counts {
            requests: first.requests + bulk.requests,
            round_trips: first.round_trips + bulk.round_trips,
            sent: first.sent + bulk.sent,
            received: first.received + bulk.received,
        }
    }

    /// Gives up the connections that there are, as if they were lost.
    pub(super) fn redial(&self) {
        self.wire.redial.notify_waiters();
        self.redial_bulk();
    }

    /// The same of that for bulk.
    pub(super) fn redial_bulk(&self) {
        if let Some(bulk) = &self.bulk {
            bulk.wire.redial.notify_waiters();
        }
    }
}

impl Drop for Link {
    /// A session ends with its last user, as far as the server can be told without waiting.
    fn drop(&mut self) {
        if self.wire.ledger.lock().is_none() {
            return;
        }
        let Some(mut pen) = self.wire.pen.try_lock() else { return };
        if let Pen { stream: Some(stream), pieces } = &mut *pen {
            pieces.add(one_way(&T::Ack { received: FAREWELL }));
            let _ = pieces.poll_write(Pin::new(stream), &mut Context::from_waker(Waker::noop()));
        }
        pen.put_down();
    }
}

/// A message of the link's own, which is not counted.
pub(super) fn one_way(message: &T<'_>) -> Outgoing {
    let mut head = Vec::with_capacity(64);
    tracing::trace!(target: "p9::trace", "client -> {message:?}");
    message.encode(NO_TAG, &mut head);
    Outgoing::new(head, Bytes::new())
}

impl Wire {
    fn new(lane: u8, pen: Pen, traffic: Arc<Traffic>, session: Option<&Session>, clock: Clock) -> Arc<Self> {
        Arc::new(Self {
            lane,
            waits: Mutex::default(),
            pen: Mutex::new(pen),
            ledger: Mutex::new(session.map(|_| Session::ledger())),
            tell: AtomicBool::new(false),
            filled: Notify::new(),
            unhurried: Notify::new(),
            untold: Notify::new(),
            ended: Notify::new(),
            closed: AtomicBool::new(false),
            assumed: AtomicBool::new(false),
            redial: Notify::new(),
            away: AtomicBool::new(false),
            lost: Mutex::default(),
            left: Mutex::default(),
            verdict: AtomicU64::new(Errno::EHOSTUNREACH.code() as u64),
            unproven: AtomicU64::new(Errno::EHOSTUNREACH.code() as u64),
            writing: AtomicBool::new(false),
            calls: Arc::new(Semaphore::new(CALLS)),
            round_trips: AtomicU64::new(0),
            traffic,
            leases: Leases::new(clock),
        })
    }

    fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            requests: self.requests(),
            round_trips: count(&self.round_trips),
            sent: count(&self.traffic.sent),
            received: count(&self.traffic.received),
        }
    }

    /// Messages that were sent so far.
    pub(super) fn requests(&self) -> u64 {
        self.waits.lock().requests
    }

    /// How many answers the server owes.
    pub(super) fn under_way(&self) -> usize {
        self.waits.lock().under_way()
    }

    /// Sends `messages` together, each with the data that follows it, as bulk of `fid` if there is one, and gives for
    /// each its ticket and where its reply will come. Errors: `EHOSTUNREACH` or `ESTALE` once the link has ended.
    pub(super) fn send(
        &self, messages: &[(T<'_>, Bytes)], mut permit: OwnedSemaphorePermit, fid: Option<&Arc<Fid>>,
    ) -> Result<Vec<(Ticket, oneshot::Receiver<Frame>)>, Errno> {
        if self.away.load(Ordering::Relaxed) {
            return Err(Errno::EHOSTUNREACH);
        }
        let mut waits = self.open()?;
        waits.stamp = self.leases.stamp();
        let one =
            |(message, data): &(T<'_>, Bytes)| waits.call(message, data.clone(), fid.map(Use::of), permit.split(1));
        let sent = messages.iter().map(one).collect::<Option<_>>().ok_or(Errno::EAGAIN);
        self.send_out(waits, messages.len());
        sent
    }

    /// Sees to it that what is in the outbox goes out: `new` messages that somebody waits for, and what was there
    /// before.
    fn send_out(&self, waits: MutexGuard<'_, Waits>, new: usize) {
        let alone = waits.waited_for() == new;
        drop(waits);
        if !alone || !self.write_here() {
            self.filled.notify_one();
        }
    }

    /// Asks the server to forget a request whose reply nobody waits for any more, or which is to end soon.
    pub(super) fn flush(&self, request: Ticket) {
        let (never_sent, ended) = {
            let mut waits = self.waits.lock();
            (waits.flush(request), waits.take_ended())
        };
        // Dropped outside the lock: whoever waits for it is woken.
        drop((never_sent, ended));
        self.filled.notify_one();
    }

    /// Gives `fid` back to the server, and its number back once the server has answered: what that is comes here.
    pub(super) fn clunk(&self, fid: u32) -> Result<oneshot::Receiver<Frame>, Errno> {
        let (sender, answer) = oneshot::channel();
        let mut waits = self.open()?;
        waits.clunk(fid, Some(sender));
        self.send_out(waits, 0);
        Ok(answer)
    }

    /// The same for a fid that the server may not have yet: a flush of the walk that makes it may be under way. Nobody
    /// waits for it, so it goes along with what is sent next, unless nothing is for a while.
    pub(super) fn give_up(&self, fid: u32, settled: bool) {
        let Ok(mut waits) = self.open() else { return };
        match settled {
            true => waits.clunk(fid, None),
            false => waits.clunk_after_flushes(fid),
        }
        drop(waits);
        self.unhurried.notify_one();
    }

    /// The number of a fid that the server does not have.
    pub(super) fn free_fid(&self, fid: u32) {
        self.waits.lock().free_fid(fid);
    }

    /// Sends a message that cannot wait, and whose answer nobody wants.
    pub(super) fn tell(&self, message: &T<'_>) {
        let Ok(mut waits) = self.open() else { return };
        drop(waits.call(message, Bytes::new(), None, None));
        drop(waits);
        self.filled.notify_one();
    }

    fn open(&self) -> Result<MutexGuard<'_, Waits>, Errno> {
        let waits = self.waits.lock();
        if self.is_closed() { Err(self.verdict()) } else { Ok(waits) }
    }

    /// What a call meets once the link has ended.
    pub(super) fn verdict(&self) -> Errno {
        Errno::from_code(self.verdict.load(Ordering::SeqCst) as i32)
    }

    /// What is known of a call that was sent before the link ended.
    pub(super) fn unproven(&self) -> Errno {
        Errno::from_code(self.unproven.load(Ordering::SeqCst) as i32)
    }

    /// Writes what there is to write, until that fails.
    pub(super) async fn write(&self) -> io::Error {
        loop {
            if let Err(err) = poll_fn(|cx| self.poll_write(&mut self.pen.lock(), cx)).await {
                return err;
            }
            self.filled.notified().await;
            // Whoever else is ready to ask something does so first, and all of it goes out at once.
            yield_now().await;
        }
    }

    /// Has the rest written that goes along with nothing else. It never returns.
    pub(super) async fn write_rest(&self) {
        loop {
            self.unhurried.notified().await;
            tokio::time::sleep(UNHURRIED).await;
            self.filled.notify_one();
        }
    }

    /// Writes until there is nothing left or the stream takes no more.
    fn poll_write(&self, pen: &mut Pen, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Pen { stream: Some(stream), pieces } = pen else { return Poll::Ready(Ok(())) };
        loop {
            if pieces.is_empty() {
                self.gather(pieces);
            }
            if pieces.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let written = pieces.poll_write(Pin::new(&mut *stream), cx);
            self.writing.store(written.is_pending(), Ordering::Relaxed);
            ready!(written)?;
        }
    }

    /// Takes what may go out now.
    fn gather(&self, pieces: &mut Pieces) {
        let mut ledger = self.ledger.lock();
        let Some(ledger) = &mut *ledger else {
            return self.waits.lock().take_outgoing(|_| true, |message| pieces.add(message));
        };
        if ledger.is_due() || (self.tell.swap(false, Ordering::Relaxed) && ledger.has_untold()) {
            pieces.add(one_way(&T::Ack { received: ledger.tells() }));
        }
        // Each that may go changes what may go after it.
        let ledger = RefCell::new(ledger);
        let may = |message: &Outgoing| ledger.borrow().has_room(message.is_bulk());
        self.waits.lock().take_outgoing(may, |message| {
            pieces.add(ledger.borrow_mut().sends(message));
        });
    }

    /// The same in the caller's thread, if the writer is not at it. Whether no more is to be done by the writer.
    fn write_here(&self) -> bool {
        let Some(mut pen) = self.pen.try_lock() else { return false };
        // Else the stream is to wake the writer, and nobody else. The writer also meets what fails.
        pen.pieces.is_empty()
            && matches!(self.poll_write(&mut pen, &mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())))
    }

    /// Whether the server has been away for too long.
    pub(super) fn away(&self, away: bool) {
        self.away.store(away, Ordering::Relaxed);
    }

    /// Tells the server what came, now.
    pub(super) fn acknowledge_now(&self) {
        self.tell.store(true, Ordering::Relaxed);
        self.filled.notify_one();
    }

    /// Gives `frame` to whoever waits for it. The error is a tag that nobody used.
    pub(super) fn take(&self, frame: Frame) -> Result<(), u16> {
        if tracing::enabled!(target: "p9::trace", tracing::Level::TRACE)
            && let Ok(Some(reply)) = R::decode(frame.code, &frame.body)
        {
            tracing::trace!(target: "p9::trace", "client <- {} {reply:?}", frame.tag);
        }
        if let Some(ledger) = &mut *self.ledger.lock() {
            let first = !ledger.has_untold();
            ledger.takes(frame.size());
            if ledger.is_due() {
                self.filled.notify_one();
            } else if first {
                self.untold.notify_one();
            }
        }
        if frame.tag == NO_TAG
            && let Some((fid, keep)) = lease::unasked(frame.code, &frame.body)
        {
            self.leases.broken(fid, keep);
            return Ok(());
        }
        let (waiter, more, ended) = {
            let mut waits = self.waits.lock();
            let waiter = waits.take(frame.tag)?;
            self.leases.heard(waits.heard);
            (waiter, waits.has_to_send(), waits.take_ended())
        };
        // Before its caller goes on, who may want the fid for something else.
        drop(ended);
        if more {
            self.unhurried.notify_one();
        }
        // Whoever gave up on it has no use for it.
        let _ = waiter.map(|waiter| waiter.send(frame));
        Ok(())
    }

    /// Returns when the server seems to be gone: nothing comes although it owes an answer, even to a question that
    /// costs nothing.
    pub(super) async fn watch(&self, liveness: Duration) {
        let (mut before, mut asked) = ((0, 0), false);
        loop {
            tokio::time::sleep(liveness).await;
            let traffic = &self.traffic;
            let now = (traffic.received.load(Ordering::Relaxed), traffic.sent.load(Ordering::Relaxed));
            // A server that still takes what is being sent is slow, not gone.
            let slow = self.writing.load(Ordering::Relaxed) && now.1 != before.1;
            let quiet = now.0 == before.0 && !slow;
            before = now;
            let mut waits = self.waits.lock();
            if !quiet || waits.under_way() == 0 {
                asked = false;
                continue;
            }
            if asked {
                return tracing::warn!("nothing came from the server for {:?}", liveness * 2);
            }
            asked = true;
            waits.ask();
            drop(waits);
            self.filled.notify_one();
        }
    }

    /// Ends the link: whoever calls, or waits for what was never sent, meets `verdict`. In a session of which others
    /// may make another what was sent meets `ECONNRESET`: it may have been done.
    pub(super) fn close(&self, verdict: Errno) {
        let unproven = if self.ledger.lock().is_some() { Errno::ECONNRESET } else { verdict };
        let (gone, unsent) = {
            let mut waits = self.waits.lock();
            self.verdict.store(verdict.code() as u64, Ordering::SeqCst);
            self.unproven.store(unproven.code() as u64, Ordering::SeqCst);
            self.closed.store(true, Ordering::SeqCst);
            let unsent = waits.take_unsent();
            (std::mem::take(&mut *waits), unsent)
        };
        for (tag, sender) in unsent {
            let _ = sender.send(Frame::refusal(tag, verdict));
        }
        // Dropped outside the lock: those who wait are woken.
        drop(gone);
        self.leases.end();
        self.calls.close();
        self.filled.notify_one();
        self.ended.notify_waiters();
        let kept = self.ledger.lock().take();
        drop(kept);
    }

    /// Returns when the connection has ended.
    pub(super) async fn closed(&self) {
        let ended = self.ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if !self.is_closed() {
            ended.await;
        }
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}
