//! The requests of a connection that are under way: their tags, how to cancel them, who waits for their end.
//!
//! The reader begins each request here, in order of arrival; whoever finishes it sends the reply and frees the tag in
//! one step, so that a flush can never be answered before the request that it names.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::Sender;

use super::{Error, Limits};
use crate::Errno;
use crate::cancel::Cancel;
use crate::wire::R;
use crate::writer::Outgoing;

/// What is under way, shared by the reader and the requests.
#[derive(Clone)]
pub(super) struct Requests(Arc<Shared>);

struct Shared {
    replies: Sender<Outgoing>,
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
    flushes: Vec<u16>,
}

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
    pub(super) fn new(replies: Sender<Outgoing>, limits: &Limits) -> Self {
        let (in_flight, bytes_in_flight) = (limits.in_flight, limits.bytes_in_flight);
        let (tags, bytes) = (Mutex::default(), AtomicUsize::new(0));
        Self(Arc::new(Shared { replies, tags, bytes, in_flight, bytes_in_flight }))
    }

    /// Begins the request `tag` of `bytes` bytes. The inner error is the answer to a peer that asks too much at once.
    pub(super) fn begin(&self, tag: u16, bytes: usize) -> Result<Result<(Cancel, Permit), Errno>, Error> {
        let mut tags = self.0.tags.lock();
        if tags.contains_key(&tag) {
            return Err(Error::DuplicateTag(tag));
        }
        let full = tags.len() >= self.0.in_flight;
        let cancel = tags.entry(tag).or_default().cancel.clone();
        let before = self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        let permit = Permit { shared: self.0.clone(), bytes };
        if full || before + bytes > self.0.bytes_in_flight {
            return Ok(Err(Errno::EAGAIN));
        }
        Ok(Ok((cancel, permit)))
    }

    /// Sends the reply to `tag`, frees the tag, and answers the flushes that waited for it.
    pub(super) async fn end(&self, tag: u16, head: Vec<u8>, data: Bytes) {
        // Once the writer is gone there is nobody to be told.
        let Ok(permit) = self.0.replies.reserve().await else { return };
        let flushes = {
            let mut tags = self.0.tags.lock();
            let pending = tags.remove(&tag);
            permit.send(Outgoing { head, data });
            pending.map(|pending| pending.flushes).unwrap_or_default()
        };
        for flush in flushes {
            Box::pin(self.end(flush, flushed(flush), Bytes::new())).await;
        }
    }

    /// Begins the flush `tag` of the request `old`. It is answered at once if there is none.
    pub(super) async fn flush(&self, tag: u16, old: u16) -> Result<(), Error> {
        {
            let mut tags = self.0.tags.lock();
            if tags.contains_key(&tag) {
                return Err(Error::DuplicateTag(tag));
            }
            if tags.len() >= 2 * self.0.in_flight {
                return Err(Error::DuplicateTag(old));
            }
            if let Some(pending) = tags.get_mut(&old) {
                pending.flushes.push(tag);
                pending.cancel.cancel();
                tags.insert(tag, Pending::default());
                return Ok(());
            }
            tags.insert(tag, Pending::default());
        }
        self.end(tag, flushed(tag), Bytes::new()).await;
        Ok(())
    }

    /// Forgets all requests: their tasks are gone.
    pub(super) fn clear(&self) {
        self.0.tags.lock().clear();
    }
}

fn flushed(tag: u16) -> Vec<u8> {
    let mut head = Vec::new();
    R::Flush {}.encode(tag, &mut head);
    head
}
