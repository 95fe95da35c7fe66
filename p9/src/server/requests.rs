//! The requests of a connection that are under way: their tags, how to cancel them, who waits for their end.
//!
//! The reader begins each request here, in order of arrival; whoever finishes it sends the reply and frees the tag in
//! one step, so that a flush can never be answered before the request that it names.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use super::replies::Replies;
use super::{Error, Limits};
use crate::Errno;
use crate::cancel::Cancel;
use crate::wire::{NO_TAG, R};
use crate::writer::Outgoing;

/// What is under way, shared by the reader and the requests.
#[derive(Clone)]
pub(super) struct Requests(Arc<Shared>);

struct Shared {
    replies: Replies,
    tags: Mutex<HashMap<u16, Pending>>,
    bytes: AtomicUsize,
    in_flight: usize,
    bytes_in_flight: usize,
}

/// A request under way.
#[derive(Default)]
struct Pending {
    cancel: Cancel,
    /// The tags of the flushes that wait for its end.
    flushes: VecDeque<u16>,
}

/// A request that was begun: how to cancel it, and what it costs.
pub(super) type Begun = (Cancel, Permit);

/// Flushes, clunks and requests at once, for each request that is allowed: past this the peer is not worth serving.
const FLUSHES: usize = 4;

/// What a request costs while it is under way.
pub(super) struct Permit {
    shared: Arc<Shared>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shared.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Requests {
    pub(super) fn new(replies: Replies, limits: &Limits) -> Self {
        let (in_flight, bytes_in_flight) = (limits.in_flight, limits.bytes_in_flight);
        let (tags, bytes) = (Mutex::default(), AtomicUsize::new(0));
        Self(Arc::new(Shared { replies, tags, bytes, in_flight, bytes_in_flight }))
    }

    /// Begins the request `tag` of `bytes` bytes. The inner error is for a peer that asks too much at once: what may be
    /// answered, if that is not served all the same.
    pub(super) fn begin(&self, tag: u16, bytes: usize) -> Result<Result<Begun, (Begun, Errno)>, Error> {
        let mut tags = self.0.tags.lock();
        let full = tags.len() >= self.0.in_flight;
        let Entry::Vacant(free) = tags.entry(tag) else { return Err(Error::DuplicateTag(tag)) };
        let cancel = free.insert(Pending::default()).cancel.clone();
        let before = self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        let begun = (cancel, Permit { shared: self.0.clone(), bytes });
        let full = full || before + bytes > self.0.bytes_in_flight;
        Ok(if full { Err((begun, Errno::EAGAIN)) } else { Ok(begun) })
    }

    /// Sends the reply to `tag`, frees the tag, and answers the flushes that waited for it.
    pub(super) async fn end(&self, tag: u16, head: Vec<u8>, data: Bytes) {
        let mut flushes = self.send(tag, Outgoing::new(head, data)).await;
        // A flush may itself be waited for by others.
        while let Some(flush) = flushes.pop_front() {
            let mut head = Vec::new();
            R::Flush {}.encode(flush, &mut head);
            tracing::trace!(target: "p9::trace", "<- {flush} Flush");
            flushes.extend(self.send(flush, Outgoing::new(head, Bytes::new())).await);
        }
    }

    /// Queues a reply and frees its tag in one step; gives the flushes that waited for it.
    async fn send(&self, tag: u16, reply: Outgoing) -> VecDeque<u16> {
        // Once the writer is gone there is nobody to be told.
        let Some(room) = self.0.replies.room(&reply).await else { return VecDeque::new() };
        let mut tags = self.0.tags.lock();
        self.0.replies.put(reply, room);
        tags.remove(&tag).map(|pending| pending.flushes).unwrap_or_default()
    }

    /// How a message is sent that answers none.
    pub(super) fn pushes(&self) -> Push {
        Push(Arc::downgrade(&self.0))
    }

    /// Begins the flush `tag` of the request `old`. It is answered at once if there is none.
    pub(super) async fn flush(&self, tag: u16, old: u16) -> Result<(), Error> {
        {
            let mut tags = self.0.tags.lock();
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
        let mut head = Vec::new();
        R::Flush {}.encode(tag, &mut head);
        self.end(tag, head, Bytes::new()).await;
        Ok(())
    }

    /// Asks all requests to end.
    pub(super) fn cancel_all(&self) {
        self.0.tags.lock().values().for_each(|pending| pending.cancel.cancel());
    }

    /// Forgets all requests: their tasks are gone.
    pub(super) fn clear(&self) {
        self.0.tags.lock().clear();
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
        shared.replies.tell(Outgoing::new(head, Bytes::new()));
    }
}
