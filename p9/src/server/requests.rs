//! The requests of a connection that are under way, and their replies that are to be written: tags, how to cancel them,
//! who waits for their end.
//!
//! The reader begins each request here, in order of arrival; whoever finishes it queues the reply and frees the tag in
//! one step, so that a flush can never be answered before the request that it names. The writer takes what is queued.
//! Once a connection has been busy a message allocates nothing here: heads share buffers, and what could have cancelled
//! one request is for the next.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::task::Poll;

use ahash::HashMap;
use futures_util::future::Either;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::pool::Share;
use super::replies::Replies;
use super::{Error, Limits};
use crate::cancel::Cancel;
use crate::wire::{NO_TAG, R};
use crate::writer::{Outgoing, Payload, is_bulk};

/// What is under way, shared by the reader, the requests and the writer.
#[derive(Clone)]
pub(super) struct Requests(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Replies were taken where there was no room for more.
    taken: Notify,
    in_flight: usize,
    bytes_in_flight: usize,
}

struct State {
    tags: HashMap<u16, Pending>,
    /// What the requests under way have on the wire.
    bytes: usize,
    replies: Replies,
    /// What cancelled nothing, for the next request.
    spare: Option<Cancel>,
    /// What of all requests are its peer's.
    share: Share,
}

/// A request under way.
#[derive(Default)]
struct Pending {
    cancel: Cancel,
    bytes: usize,
    /// Whether it is counted among the requests of all.
    counted: bool,
    /// The tags of the flushes that wait for its end.
    flushes: VecDeque<u16>,
}

/// A request that has begun.
pub(super) struct Begun {
    /// The peer asks too much at once: it may be refused, unless it is to be served all the same.
    pub(super) full: bool,
    /// Whether a small reply need not wait for room.
    pub(super) room: bool,
}

/// Flushes, clunks and requests at once, for each request that is allowed: past this the peer is not worth serving.
const FLUSHES: usize = 4;
/// Small replies taken at a time.
const BATCH: usize = 64;

impl Requests {
    pub(super) fn new(limits: &Limits, share: Share) -> Self {
        let state = State { tags: HashMap::default(), bytes: 0, replies: Replies::new(), spare: None, share };
        let (in_flight, bytes_in_flight) = (limits.in_flight, limits.bytes_in_flight);
        Self(Arc::new(Shared { state: Mutex::new(state), taken: Notify::new(), in_flight, bytes_in_flight }))
    }

    /// Begins the request `tag` of `bytes` bytes.
    pub(super) fn begin(&self, tag: u16, bytes: usize) -> Result<Begun, Error> {
        let state = &mut *self.0.state.lock();
        let full = state.tags.len() >= self.0.in_flight;
        let Entry::Vacant(free) = state.tags.entry(tag) else { return Err(Error::DuplicateTag(tag)) };
        let cancel = state.spare.take().unwrap_or_default();
        free.insert(Pending { cancel, bytes, counted: true, flushes: VecDeque::new() });
        state.bytes += bytes;
        let full = state.share.begins() || full || state.bytes > self.0.bytes_in_flight;
        Ok(Begun { full, room: state.replies.has_room(false) })
    }

    /// What cancels the request `tag`, which is under way.
    pub(super) fn cancel_of(&self, tag: u16) -> Cancel {
        self.0.state.lock().tags.get(&tag).map(|pending| pending.cancel.clone()).unwrap_or_default()
    }

    /// Queues the reply to `tag`, frees the tag, and answers the flushes that waited for it. It waits while too many
    /// replies are queued.
    pub(super) async fn end(&self, tag: u16, head: &[u8], data: Payload) {
        let flushes = self.queue(tag, head, data, None).await;
        self.flushed(tag, flushes).await;
    }

    /// Answers `flushes` of `old`, which has ended.
    async fn flushed(&self, old: u16, flushes: VecDeque<u16>) {
        let mut flushes: VecDeque<_> = flushes.into_iter().map(|flush| (flush, old)).collect();
        // A flush may itself be waited for by others.
        while let Some((flush, old)) = flushes.pop_front() {
            let mut head = Vec::new();
            R::Flush {}.encode(flush, &mut head);
            tracing::trace!(target: "p9::trace", "<- {flush} Flush");
            let more = self.queue(flush, &head, Payload::default(), Some(old)).await;
            flushes.extend(more.into_iter().map(|more| (more, flush)));
        }
    }

    /// Queues a reply, which comes after that to the tag `after` if there is one, and frees its tag in one step; gives
    /// the flushes that waited for it.
    async fn queue(&self, tag: u16, head: &[u8], data: Payload, after: Option<u16>) -> VecDeque<u16> {
        let bulk = is_bulk(head.len() + data.bytes.len());
        loop {
            let taken = {
                let mut state = self.0.state.lock();
                if state.replies.has_room(bulk) || state.replies.is_closed() {
                    let reply = state.replies.reply(head, data);
                    let flushes = state.free(tag);
                    let writer = match after {
                        Some(after) => state.replies.put_after(reply, after),
                        None => state.replies.put(reply),
                    };
                    drop(state);
                    writer.wake();
                    return flushes;
                }
                // Still locked, so that it misses nothing.
                self.0.taken.notified()
            };
            taken.await;
        }
    }

    /// Returns once there is something to write, of what is small if `small`, of bulk if `bulk`. False once nothing
    /// more comes.
    pub(super) async fn ready(&self, small: bool, bulk: bool) -> bool {
        poll_fn(|cx| self.0.state.lock().replies.poll_ready(small, bulk, cx)).await
    }

    /// Runs `work`, after which the writer, which is in the same task, has its turn, and so is not woken. Gives what
    /// `work` gives, and whether there is something for the writer to do.
    pub(super) fn turn<A>(&self, work: impl FnOnce() -> A) -> (A, bool) {
        self.0.state.lock().replies.turn(true);
        let done = work();
        (done, self.0.state.lock().replies.turn(false))
    }

    /// Polls `reading` and then `writing`, which so has whatever that gives it to do, until one of them ends.
    pub(super) async fn in_turn<A, B>(
        &self, reading: impl Future<Output = A>, writing: impl Future<Output = B>,
    ) -> Either<A, B> {
        let (mut reading, mut writing) = (pin!(reading), pin!(writing));
        poll_fn(|cx| match self.turn(|| reading.as_mut().poll(cx)).0 {
            Poll::Ready(read) => Poll::Ready(Either::Left(read)),
            Poll::Pending => writing.as_mut().poll(cx).map(Either::Right),
        })
        .await
    }

    /// Whether so much is to be written that it had better go out now.
    pub(super) fn is_due(&self) -> bool {
        self.0.state.lock().replies.is_due()
    }

    /// Takes what is to be written next, as long as there is `room` for what is small, or for bulk: all that is small,
    /// but no more than one message of bulk, so that what is small and comes meanwhile goes before the next.
    pub(super) fn take(&self, mut room: impl FnMut(bool) -> bool, mut each: impl FnMut(Outgoing)) {
        let (mut state, mut full) = (self.0.state.lock(), false);
        for bulk in [false; BATCH].into_iter().chain([true]) {
            if room(bulk)
                && let Some((reply, was_full)) = state.replies.take(bulk)
            {
                full |= was_full;
                each(reply);
            }
        }
        drop(state);
        if full {
            self.0.taken.notify_waiters();
        }
    }

    /// Says that nothing more comes, or is written.
    pub(super) fn close(&self) {
        let writer = self.0.state.lock().replies.close();
        writer.wake();
        self.0.taken.notify_waiters();
    }

    /// How a message is sent that answers none.
    pub(super) fn pushes(&self) -> Push {
        Push(Arc::downgrade(&self.0))
    }

    /// Begins the flush `tag` of the request `old`. It is answered at once if there is none.
    pub(super) async fn flush(&self, tag: u16, old: u16) -> Result<(), Error> {
        {
            let tags = &mut self.0.state.lock().tags;
            let most = FLUSHES * self.0.in_flight;
            if tags.contains_key(&tag) {
                return Err(Error::DuplicateTag(tag));
            }
            if tags.len() >= most {
                return Err(Error::TooMany(most));
            }
            let waits = tags.get_mut(&old).map(|pending| {
                pending.flushes.push_back(tag);
                pending.cancel.clone()
            });
            tags.insert(tag, Pending::default());
            if let Some(cancel) = waits {
                cancel.cancel();
                return Ok(());
            }
        }
        self.flushed(old, VecDeque::from([tag])).await;
        Ok(())
    }

    /// Asks all requests to end.
    pub(super) fn cancel_all(&self) {
        self.0.state.lock().tags.values().for_each(|pending| pending.cancel.cancel());
    }

    /// Forgets all requests: their tasks are gone.
    pub(super) fn clear(&self) {
        let mut state = self.0.state.lock();
        state.forget();
        state.bytes = 0;
    }
}

impl State {
    /// Forgets all requests.
    fn forget(&mut self) {
        let gone = std::mem::take(&mut self.tags);
        self.share.end(gone.values().filter(|pending| pending.counted).count());
    }

    /// Frees a tag; gives the flushes that waited for it.
    fn free(&mut self, tag: u16) -> VecDeque<u16> {
        let Some(ended) = self.tags.remove(&tag) else { return VecDeque::new() };
        let Pending { cancel, bytes, counted, flushes } = ended;
        self.share.end(counted.into());
        self.bytes -= bytes;
        self.spare = cancel.renewed().or(self.spare.take());
        flushes
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.forget();
    }
}

/// Sends messages that answer none; it keeps no connection open.
#[derive(Clone)]
pub(super) struct Push(Weak<Shared>);

impl Push {
    /// Sends `message` before every reply that is sent from now on. From any thread; it never waits.
    pub(super) fn send(&self, message: &R<'_>) {
        let Some(shared) = self.0.upgrade() else { return };
        let mut head = Vec::new();
        message.encode(NO_TAG, &mut head);
        tracing::trace!(target: "p9::trace", "<- {NO_TAG} {message:?}");
        let writer = {
            let mut state = shared.state.lock();
            let message = state.replies.reply(&head, Payload::default());
            state.replies.put(message)
        };
        writer.wake();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt;

    use super::*;

    fn requests() -> Requests {
        Requests::new(&Limits::default(), Limits::default().pool.share(&crate::Who::owner()))
    }

    async fn small(requests: &Requests, name: u8) {
        requests.end(name.into(), &[name], Payload::default()).await;
    }

    async fn bulk(requests: &Requests, name: u8) {
        requests.end(name.into(), &[name], Bytes::from_static(&[0; 1 << 16]).into()).await;
    }

    /// Takes all, as the writer does.
    fn names(requests: &Requests) -> Vec<u8> {
        let mut names = Vec::new();
        loop {
            let before = names.len();
            requests.take(|_| true, |message| names.push(message.head[0]));
            if names.len() == before {
                return names;
            }
        }
    }

    #[tokio::test]
    async fn what_is_small_goes_before_bulk_that_waits() {
        let requests = requests();
        bulk(&requests, 1).await;
        bulk(&requests, 2).await;
        small(&requests, 3).await;
        bulk(&requests, 4).await;
        small(&requests, 5).await;
        assert_eq!(names(&requests), [3, 5, 1, 2, 4]);
        requests.close();
        assert!(!requests.ready(true, true).await, "nothing more comes");
    }

    #[tokio::test]
    async fn bulk_without_room_keeps_nothing_small_from_its_own() {
        let requests = requests();
        while bulk(&requests, 1).now_or_never().is_some() {}
        let mut waits = Box::pin(bulk(&requests, 2));
        assert!(waits.as_mut().now_or_never().is_none());
        small(&requests, 3).await;
        assert!(requests.ready(true, false).await);
        assert_eq!(names(&requests)[..2], [3, 1]);
        waits.await;
    }

    #[tokio::test]
    async fn what_is_told_goes_before_a_reply_that_waited_for_room_already() {
        let requests = requests();
        while small(&requests, 1).now_or_never().is_some() {}
        let mut waits = Box::pin(small(&requests, 2));
        assert!(waits.as_mut().now_or_never().is_none(), "there is no room");
        requests.pushes().send(&R::Break { fid: 7, keep: 0 });
        let told = names(&requests);
        waits.await;
        assert_eq!((told.last(), told.len() > 1, names(&requests)), (Some(&12), true, vec![2]));
    }

    #[tokio::test]
    async fn a_flush_is_answered_after_the_reply_that_it_names_however_large_that_is() {
        let requests = requests();
        let head = |tag: u8| [tag, 0, 0, 0, 0, tag, 0];
        let large = || Bytes::from_static(&[0; 1 << 16]).into();
        // The reply is queued when the flush comes, and when the flush has waited for it.
        for tag in [1, 2, 3] {
            requests.begin(tag, 0).unwrap();
        }
        requests.end(1, &head(1), large()).await;
        requests.flush(11, 1).await.unwrap();
        requests.flush(12, 2).await.unwrap();
        requests.flush(13, 12).await.unwrap();
        requests.end(2, &head(2), large()).await;
        requests.end(3, &head(3), Payload::default()).await;
        let mut tags = Vec::new();
        while tags.len() < 6 {
            requests.take(|_| true, |message| tags.push(message.tag()));
        }
        assert_eq!(tags, [3, 1, 11, 2, 12, 13]);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_writer_that_is_gone() {
        let requests = requests();
        while small(&requests, 1).now_or_never().is_some() {}
        requests.close();
        small(&requests, 2).await;
    }
}
