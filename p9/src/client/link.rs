//! The connection behind a client: tags, what waits for a reply, the tasks that read and write.
//!
//! Requests are put in the outbox under one lock, so that those of one pipeline stay together and in order; the writer
//! takes all that is there at a time. A tag is free again once its reply has come and no flush of it is under way.
//! Everything from the server is checked: a reply that nobody waits for ends the connection.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::task::JoinSet;

use super::Counts;
use super::fid::Fid;
use crate::Errno;
use crate::frame::{Frame, Frames};
use crate::wire::T;
use crate::writer::{Outgoing, write};

/// Requests that may wait for replies at once. Clunks and flushes, which nobody waits for, come on top.
const CALLS: usize = 512;
/// The tag that a sign of life asks to flush: never given to a request.
const NOBODY: u16 = !1;

/// A connection.
pub(super) struct Link {
    pub(super) wire: Arc<Wire>,
    pub(super) msize: u32,
    /// Whether the server orders what is done to a fid, so that messages may be sent before the answer to those before.
    pub(super) ordered: bool,
    _tasks: Mutex<JoinSet<()>>,
}

/// What the tasks of a connection share with those who call.
pub(super) struct Wire {
    state: Mutex<State>,
    /// Something is in the outbox, or the connection has ended.
    filled: Notify,
    ended: Notify,
    closed: AtomicBool,
    pub(super) calls: Arc<Semaphore>,
    requests: AtomicU64,
    pub(super) round_trips: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

#[derive(Default)]
struct State {
    outbox: VecDeque<Outgoing>,
    waiting: HashMap<u16, Waiting>,
    /// Tags that were used and are free again.
    free_tags: Vec<u16>,
    next_tag: u16,
    free_fids: Vec<u32>,
    next_fid: u32,
    /// Fids to clunk once there are tags again.
    to_clunk: Vec<u32>,
}

/// Who waits for the reply to a tag.
enum Waiting {
    /// A call; the flag says that a flush of it is under way, which then frees the tag.
    Call(Option<oneshot::Sender<Frame>>, bool),
    /// Nobody: the fid is free again.
    Clunk(u32),
    /// A flush of this tag.
    Flush(u16),
}

impl Link {
    pub(super) fn start<R, W>(frames: Frames<R>, writer: W, msize: u32, ordered: bool, liveness: Duration) -> Arc<Self>
    where
        R: AsyncRead + Send + Unpin + 'static,
        W: AsyncWrite + Send + Unpin + 'static,
    {
        let wire = Arc::new(Wire {
            state: Mutex::default(),
            filled: Notify::new(),
            ended: Notify::new(),
            closed: AtomicBool::new(false),
            calls: Arc::new(Semaphore::new(CALLS)),
            requests: AtomicU64::new(0),
            round_trips: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(wire.clone().write(writer));
        tasks.spawn(wire.clone().read(frames));
        tasks.spawn(wire.clone().watch(liveness));
        Arc::new(Self { wire, msize, ordered, _tasks: Mutex::new(tasks) })
    }

    /// A fid number that is not in use, clunked when the last clone is dropped.
    pub(super) fn fid(self: &Arc<Self>) -> Result<Arc<Fid>, Errno> {
        let mut state = self.wire.state.lock();
        let number = match state.free_fids.pop() {
            Some(number) => number,
            None if state.next_fid == u32::MAX - 1 => return Err(Errno::EMFILE),
            None => {
                state.next_fid += 1;
                state.next_fid - 1
            }
        };
        Ok(Fid::new(self.clone(), number))
    }

    pub(super) fn is_closed(&self) -> bool {
        self.wire.closed.load(Ordering::SeqCst)
    }

    pub(super) async fn closed(&self) {
        self.wire.closed().await;
    }

    pub(super) fn counts(&self) -> Counts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            requests: count(&self.wire.requests),
            round_trips: count(&self.wire.round_trips),
            sent: count(&self.wire.sent),
            received: count(&self.wire.received),
        }
    }
}

impl Wire {
    /// Sends `messages` together, each with the data that follows it, and gives for each its tag and where its reply
    /// will come. Errors: `EHOSTUNREACH` once the connection has ended.
    pub(super) fn send(&self, messages: &[(T<'_>, Bytes)]) -> Result<Vec<(u16, oneshot::Receiver<Frame>)>, Errno> {
        let mut state = self.state.lock();
        if self.closed.load(Ordering::SeqCst) {
            return Err(Errno::EHOSTUNREACH);
        }
        let mut sent = Vec::with_capacity(messages.len());
        for (message, data) in messages {
            let tag = state.tag().ok_or(Errno::EAGAIN)?;
            let (sender, receiver) = oneshot::channel();
            state.waiting.insert(tag, Waiting::Call(Some(sender), false));
            self.put(&mut state, tag, message, data.clone());
            sent.push((tag, receiver));
        }
        drop(state);
        self.filled.notify_one();
        Ok(sent)
    }

    /// Asks the server to forget the request `old`, whose reply nobody waits for any more, or which is to end soon.
    pub(super) fn flush(&self, old: u16) {
        let mut state = self.state.lock();
        match state.waiting.get_mut(&old) {
            Some(Waiting::Call(_, flushing)) if !*flushing => *flushing = true,
            _ => return,
        }
        // Without a tag for the flush the call's own reply will free it.
        let Some(tag) = state.tag() else { return };
        state.waiting.insert(tag, Waiting::Flush(old));
        self.put(&mut state, tag, &T::Flush { oldtag: old }, Bytes::new());
        drop(state);
        self.filled.notify_one();
    }

    /// Gives `fid` back to the server, and its number back once the server has answered.
    pub(super) fn clunk(&self, fid: u32) {
        let mut state = self.state.lock();
        if self.closed.load(Ordering::SeqCst) {
            return;
        }
        match state.tag() {
            None => state.to_clunk.push(fid),
            Some(tag) => {
                state.waiting.insert(tag, Waiting::Clunk(fid));
                self.put(&mut state, tag, &T::Clunk { fid }, Bytes::new());
            }
        }
        drop(state);
        self.filled.notify_one();
    }

    /// The number of a fid whose clunk was answered.
    pub(super) fn free_fid(&self, fid: u32) {
        self.state.lock().free_fids.push(fid);
    }

    fn put(&self, state: &mut State, tag: u16, message: &T<'_>, data: Bytes) {
        tracing::trace!(target: "p9::trace", "client -> {tag} {message:?} and {} bytes", data.len());
        let mut head = Vec::with_capacity(64);
        message.encode(tag, &mut head);
        if !data.is_empty() {
            // A write's data goes out from where it lies: only the two counts in front of it change.
            let (size, at) = ((head.len() + data.len()) as u32, head.len() - 4);
            head[..4].copy_from_slice(&size.to_le_bytes());
            head[at..].copy_from_slice(&(data.len() as u32).to_le_bytes());
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.sent.fetch_add((head.len() + data.len()) as u64, Ordering::Relaxed);
        state.outbox.push_back(Outgoing { head, data });
    }

    async fn write(self: Arc<Self>, mut writer: impl AsyncWrite + Unpin) {
        loop {
            let batch = std::mem::take(&mut self.state.lock().outbox);
            if batch.is_empty() {
                if self.closed.load(Ordering::SeqCst) {
                    return;
                }
                self.filled.notified().await;
            } else if let Err(err) = write(batch.into_iter(), &mut writer).await {
                tracing::debug!("writing to the server: {err}");
                return self.close();
            }
        }
    }

    async fn read<R: AsyncRead + Unpin>(self: Arc<Self>, mut frames: Frames<R>) {
        loop {
            match frames.next().await {
                Ok(Some(frame)) => {
                    self.received.fetch_add(frame.body.len() as u64 + 7, Ordering::Relaxed);
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
        let mut state = self.state.lock();
        let tag = frame.tag;
        match state.waiting.get_mut(&tag) {
            None => return Err(tag),
            Some(Waiting::Call(sender, flushing)) => {
                let (sender, flushing) = (sender.take(), *flushing);
                if !flushing {
                    state.free_tag(tag);
                }
                drop(state);
                // Whoever gave up on it has no use for it.
                let _ = sender.map(|sender| sender.send(frame));
                return Ok(());
            }
            Some(&mut Waiting::Clunk(fid)) => {
                state.free_fids.push(fid);
                state.free_tag(tag);
            }
            Some(&mut Waiting::Flush(old)) => {
                state.free_tag(tag);
                // Unanswered until now, it never will be: dropping the sender tells the caller.
                if old != NOBODY {
                    state.free_tag(old);
                }
            }
        }
        while let Some(fid) = state.to_clunk.pop() {
            let Some(tag) = state.tag() else {
                state.to_clunk.push(fid);
                break;
            };
            state.waiting.insert(tag, Waiting::Clunk(fid));
            self.put(&mut state, tag, &T::Clunk { fid }, Bytes::new());
            self.filled.notify_one();
        }
        Ok(())
    }

    /// Gives the server up from which nothing comes although it owes an answer, even to a question that costs nothing.
    async fn watch(self: Arc<Self>, liveness: Duration) {
        let (mut before, mut asked) = (0, false);
        loop {
            tokio::time::sleep(liveness).await;
            let received = self.received.load(Ordering::Relaxed);
            let owes = !self.state.lock().waiting.is_empty();
            if received != before || !owes {
                (before, asked) = (received, false);
                continue;
            }
            if asked {
                tracing::warn!("nothing came from the server for {:?}: given up", liveness * 2);
                return self.close();
            }
            asked = true;
            let mut state = self.state.lock();
            let Some(tag) = state.tag() else { continue };
            state.waiting.insert(tag, Waiting::Flush(NOBODY));
            self.put(&mut state, tag, &T::Flush { oldtag: NOBODY }, Bytes::new());
            drop(state);
            self.filled.notify_one();
        }
    }

    fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        // Dropped outside the lock: those who wait are woken.
        let gone = std::mem::take(&mut self.state.lock().waiting);
        drop(gone);
        self.filled.notify_one();
        self.ended.notify_waiters();
    }

    async fn closed(&self) {
        let ended = self.ended.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        if !self.closed.load(Ordering::SeqCst) {
            ended.await;
        }
    }

    /// Whether the connection has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

impl State {
    fn tag(&mut self) -> Option<u16> {
        if let Some(tag) = self.free_tags.pop() {
            return Some(tag);
        }
        if self.next_tag == NOBODY {
            return None;
        }
        self.next_tag += 1;
        Some(self.next_tag - 1)
    }

    fn free_tag(&mut self, tag: u16) {
        if self.waiting.remove(&tag).is_some() {
            self.free_tags.push(tag);
        }
    }
}
