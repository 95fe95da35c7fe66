//! The connection behind a client: the tasks that read, write, and watch over it.
//!
//! Requests are put in the outbox under one lock, so that those of one pipeline stay together and in order; the writer
//! takes all that is there at a time. A caller with whom nobody else waits writes by itself: waking the writer on
//! another thread would cost more than the writing. What waits for which reply is in [`Waits`]. The connection ends
//! with its first failure, with a reply that nobody waits for, and with its last user.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;

use super::counted::Traffic;
use super::fid::Fid;
use super::lease::{self, Leases};
use super::waits::{Ticket, Waits};
use super::{Counts, Options};
use crate::Errno;
use crate::frame::{Frame, Frames};
use crate::wire::{Dialect, NO_TAG, R, T};
use crate::writer::Pieces;

/// Requests that may wait for replies at once, those included that are being flushed. With their flushes and with
/// [`super::waits::CLUNKS`] it stays below what a server of ours takes.
pub(super) const CALLS: usize = 448;

/// A connection.
pub(super) struct Link {
    pub(super) wire: Arc<Wire>,
    pub(super) msize: u32,
    /// Whether the server orders what is done to a fid, so that messages may be sent before the answer to those before.
    pub(super) ordered: bool,
    pub(super) dialect: Dialect,
    _tasks: Mutex<JoinSet<()>>,
}

/// What the tasks of a connection share with those who call.
pub(super) struct Wire {
    waits: Mutex<Waits>,
    pen: Mutex<Pen>,
    /// Something is in the outbox, or the connection has ended.
    filled: Notify,
    ended: Notify,
    closed: AtomicBool,
    /// The stream does not take what is to be written as fast as it comes.
    writing: AtomicBool,
    pub(super) calls: Arc<Semaphore>,
    pub(super) round_trips: AtomicU64,
    traffic: Arc<Traffic>,
    pub(super) leases: Leases,
}

/// The side of the stream that is written to, and what it has not taken yet. Locked before the waits.
struct Pen {
    /// Gone once the connection has ended.
    stream: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pieces: Pieces,
}

impl Link {
    pub(super) fn start<R, W>(
        frames: Frames<R>, writer: W, traffic: Arc<Traffic>, (msize, dialect): (u32, Dialect), options: Options,
    ) -> Arc<Self>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let wire = Arc::new(Wire {
            waits: Mutex::default(),
            pen: Mutex::new(Pen { stream: Some(Box::new(writer)), pieces: Pieces::default() }),
            filled: Notify::new(),
            ended: Notify::new(),
            closed: AtomicBool::new(false),
            writing: AtomicBool::new(false),
            calls: Arc::new(Semaphore::new(CALLS)),
            round_trips: AtomicU64::new(0),
            traffic,
            leases: Leases::new(options.clock),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(wire.clone().write());
        tasks.spawn(wire.clone().read(frames));
        tasks.spawn(wire.clone().watch(options.liveness));
        Arc::new(Self { wire, msize, ordered: dialect == Dialect::Slashn, dialect, _tasks: Mutex::new(tasks) })
    }

    /// A fid number that is not in use, clunked when the last clone is dropped.
    pub(super) fn fid(self: &Arc<Self>) -> Result<Arc<Fid>, Errno> {
        let number = self.wire.waits.lock().new_fid().ok_or(Errno::EMFILE)?;
        Ok(Fid::new(self.clone(), number))
    }

    pub(super) fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            requests: self.wire.waits.lock().requests,
            round_trips: count(&self.wire.round_trips),
            sent: count(&self.wire.traffic.sent),
            received: count(&self.wire.traffic.received),
        }
    }
}

impl Wire {
    /// Sends `messages` together, each with the data that follows it, and gives for each its ticket and where its reply
    /// will come. Errors: `EHOSTUNREACH` once the connection has ended.
    pub(super) fn send(
        &self, messages: &[(T<'_>, Bytes)], mut permit: OwnedSemaphorePermit,
    ) -> Result<Vec<(Ticket, oneshot::Receiver<Frame>)>, Errno> {
        let mut waits = self.open()?;
        waits.stamp = self.leases.stamp();
        let one = |(message, data): &(T<'_>, Bytes)| waits.call(message, data.clone(), permit.split(1));
        let sent = messages.iter().map(one).collect::<Option<_>>().ok_or(Errno::EAGAIN);
        let alone = waits.under_way() == messages.len();
        drop(waits);
        if !alone || !self.write_here() {
            self.filled.notify_one();
        }
        sent
    }

    /// Asks the server to forget a request whose reply nobody waits for any more, or which is to end soon.
    pub(super) fn flush(&self, request: Ticket) {
        let never_sent = self.waits.lock().flush(request);
        // Dropped outside the lock: whoever waits for it is woken.
        drop(never_sent);
        self.filled.notify_one();
    }

    /// Gives `fid` back to the server, and its number back once the server has answered: what that is comes here.
    pub(super) fn clunk(&self, fid: u32) -> Result<oneshot::Receiver<Frame>, Errno> {
        let (sender, answer) = oneshot::channel();
        self.open()?.clunk(fid, Some(sender));
        self.filled.notify_one();
        Ok(answer)
    }

    /// The same for a fid that the server may not have yet: a flush of the walk that makes it may be under way.
    pub(super) fn give_up(&self, fid: u32, settled: bool) {
        let Ok(mut waits) = self.open() else { return };
        match settled {
            true => waits.clunk(fid, None),
            false => waits.clunk_after_flushes(fid),
        }
        drop(waits);
        self.filled.notify_one();
    }

    /// The number of a fid that the server does not have.
    pub(super) fn free_fid(&self, fid: u32) {
        self.waits.lock().free_fid(fid);
    }

    /// Sends a message that cannot wait, and whose answer nobody wants.
    pub(super) fn tell(&self, message: &T<'_>) {
        let Ok(mut waits) = self.open() else { return };
        drop(waits.call(message, Bytes::new(), None));
        drop(waits);
        self.filled.notify_one();
    }

    fn open(&self) -> Result<MutexGuard<'_, Waits>, Errno> {
        let waits = self.waits.lock();
        if self.is_closed() { Err(Errno::EHOSTUNREACH) } else { Ok(waits) }
    }

    async fn write(self: Arc<Self>) {
        self.write_all().await;
        // The server sees the end of the stream, even while there are nodes.
        self.pen.lock().stream = None;
    }

    async fn write_all(&self) {
        loop {
            let written = tokio::select! {
                written = poll_fn(|cx| self.poll_write(&mut self.pen.lock(), cx)) => written,
                () = self.closed() => return,
            };
            if let Err(err) = written {
                return self.failed(&err);
            }
            if self.is_closed() {
                return;
            }
            self.filled.notified().await;
        }
    }

    /// Writes what is in the outbox, until there is nothing left or the stream takes no more.
    fn poll_write(&self, pen: &mut Pen, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if pen.pieces.is_empty() {
                let batch = self.waits.lock().take_outbox();
                if batch.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                batch.into_iter().for_each(|message| pen.pieces.add(message));
            }
            let Pen { stream: Some(stream), pieces } = pen else { return Poll::Ready(Ok(())) };
            let written = pieces.poll_write(Pin::new(stream), cx);
            self.writing.store(written.is_pending(), Ordering::Relaxed);
            ready!(written)?;
        }
    }

    /// The same in the caller's thread, if the writer is not at it. Whether no more is to be done by the writer.
    fn write_here(&self) -> bool {
        let Some(mut pen) = self.pen.try_lock() else { return false };
        // Else the stream is to wake the writer, and nobody else.
        if !pen.pieces.is_empty() {
            return false;
        }
        match self.poll_write(&mut pen, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(err)) => {
                drop(pen);
                self.failed(&err);
                true
            }
            Poll::Pending => false,
        }
    }

    fn failed(&self, err: &io::Error) {
        tracing::debug!("writing to the server: {err}");
        self.close();
    }

    async fn read<R: AsyncRead + Unpin>(self: Arc<Self>, mut frames: Frames<R>) {
        loop {
            let frame = tokio::select! {
                frame = frames.next() => frame,
                // Given up by another task: the stream is to go, even while there are nodes.
                () = self.closed() => return,
            };
            match frame {
                Ok(Some(frame)) => {
                    if let Err(tag) = self.take(frame) {
                        tracing::warn!("the server answered tag {tag}, which is not in use");
                        break;
                    }
                }
                Ok(None) => break,
                Err(err) => {
                    tracing::debug!("reading from the server: {err}");
                    break;
                }
            }
        }
        self.close();
    }

    /// Gives `frame` to whoever waits for it. The error is a tag that nobody used.
    fn take(&self, frame: Frame) -> Result<(), u16> {
        if tracing::enabled!(target: "p9::trace", tracing::Level::TRACE)
            && let Ok(Some(reply)) = R::decode(frame.code, &frame.body)
        {
            tracing::trace!(target: "p9::trace", "client <- {} {reply:?}", frame.tag);
        }
        if frame.tag == NO_TAG
            && let Some((fid, keep)) = lease::unasked(frame.code, &frame.body)
        {
            self.leases.broken(fid, keep);
            return Ok(());
        }
        let (waiter, more) = {
            let mut waits = self.waits.lock();
            let waiter = waits.take(frame.tag)?;
            self.leases.heard(waits.heard);
            (waiter, waits.has_to_send())
        };
        if more {
            self.filled.notify_one();
        }
        // Whoever gave up on it has no use for it.
        let _ = waiter.map(|waiter| waiter.send(frame));
        Ok(())
    }

    /// Gives the server up from which nothing comes although it owes an answer, even to a question that costs nothing.
    async fn watch(self: Arc<Self>, liveness: Duration) {
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
                tracing::warn!("nothing came from the server for {:?}: given up", liveness * 2);
                drop(waits);
                return self.close();
            }
            asked = true;
            waits.ask();
            drop(waits);
            self.filled.notify_one();
        }
    }

    fn close(&self) {
        let gone = {
            let mut waits = self.waits.lock();
            self.closed.store(true, Ordering::SeqCst);
            std::mem::take(&mut *waits)
        };
        // Dropped outside the lock: those who wait are woken.
        drop(gone);
        self.leases.end();
        self.calls.close();
        self.filled.notify_one();
        self.ended.notify_waiters();
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
