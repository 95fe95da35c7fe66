//! What a connection waits for: tags and fids in use, who wants which reply, and the messages that are to go out.
//!
//! Changed under the lock of [`super::link::Wire`], by those who call and by the task that reads. A tag is free again
//! once its reply has come and no flush of it is under way; a fid once its clunk has been answered.

use std::collections::VecDeque;

use ahash::HashMap;
use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::bulk::Use;
use crate::buffers::Buffers;
use crate::frame::Frame;
use crate::wire::T;
use crate::writer::Outgoing;

/// Clunks under way at once; more of them wait.
pub(super) const CLUNKS: usize = 64;
/// The tag that a sign of life asks to flush: never given to a request.
const NOBODY: u16 = !1;

/// Where a reply goes.
type Sender = oneshot::Sender<Frame>;

/// One request: its tag, which another may have later, and what none other ever has.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Ticket {
    tag: u16,
    number: u64,
}

/// What a connection waits for.
#[derive(Default)]
pub(super) struct Waits {
    outbox: VecDeque<Outgoing>,
    /// Bulk that is to go out once nothing else is.
    bulk: VecDeque<Outgoing>,
    /// Where a message is put together, and what its head is then cut off.
    head: Vec<u8>,
    heads: Buffers,
    /// Uses that have ended, to be dropped where nothing is locked.
    ended: Vec<Use>,
    tags: HashMap<u16, Waiting>,
    /// Tags that were used and are free again.
    free_tags: Vec<u16>,
    next_tag: u16,
    free_fids: Vec<u32>,
    next_fid: u32,
    /// Fids to clunk once fewer clunks are under way.
    to_clunk: VecDeque<(u32, Option<Sender>)>,
    /// Fids to clunk once no flush is under way any more.
    uncertain: Vec<u32>,
    clunking: usize,
    flushing: usize,
    /// Messages put in the outbox so far.
    pub(super) requests: u64,
    /// Calls begun so far.
    calls: u64,
    /// Of these, those that change what a directory holds.
    pub(super) changes: u64,
    /// What the calls that are begun now are stamped with.
    pub(super) stamp: u64,
    /// The latest stamp of a call that was answered.
    pub(super) heard: u64,
}

/// Who waits for the reply to a tag.
pub(super) enum Waiting {
    Call {
        /// That of its [`Ticket`].
        number: u64,
        /// When it was sent.
        stamp: u64,
        /// Taken when the reply has come.
        sender: Option<Sender>,
        /// A flush of it is under way, which then frees the tag.
        flushing: bool,
        /// The fid whose bulk it is.
        of: Option<Use>,
        _permit: Option<OwnedSemaphorePermit>,
    },
    /// Perhaps nobody. The fid is then free again.
    Clunk(u32, Option<Sender>),
    /// A flush of this tag.
    Flush(u16),
}

impl Waits {
    /// A fid number that is not in use; `None` when there is none.
    pub(super) fn new_fid(&mut self) -> Option<u32> {
        self.free_fids.pop().or_else(|| {
            // The last is NO_FID.
            let next = self.next_fid.checked_add(1)?;
            Some(std::mem::replace(&mut self.next_fid, next))
        })
    }

    pub(super) fn free_fid(&mut self, fid: u32) {
        self.free_fids.push(fid);
    }

    /// Puts a request in the outbox; `None` when there is no tag for it.
    pub(super) fn call(
        &mut self, message: &T<'_>, data: Bytes, of: Option<Use>, permit: Option<OwnedSemaphorePermit>,
    ) -> Option<(Ticket, oneshot::Receiver<Frame>)> {
        let tag = self.new_tag()?;
        let (sender, receiver) = oneshot::channel();
        let number = self.calls;
        self.calls += 1;
        self.changes += u64::from(message.changes_names());
        let (apart, stamp) = (of.is_some(), self.stamp);
        let call = Waiting::Call { number, stamp, sender: Some(sender), flushing: false, of, _permit: permit };
        self.tags.insert(tag, call);
        let message = self.encode(tag, message, data);
        if apart && message.is_bulk() {
            self.bulk.push_back(message)
        } else {
            self.outbox.push_back(message)
        }
        Some((Ticket { tag, number }, receiver))
    }

    /// Flushes a request, unless its reply has come: its tag may be another's by now. One that has not gone out yet
    /// never will: that is what is given back.
    pub(super) fn flush(&mut self, ticket: Ticket) -> Option<Waiting> {
        let old = ticket.tag;
        match self.tags.get_mut(&old) {
            Some(Waiting::Call { number, flushing, .. }) if *number == ticket.number && !*flushing => *flushing = true,
            _ => return None,
        }
        let unsent = |queue: &mut VecDeque<Outgoing>| {
            let at = queue.iter().position(|message| message.tag() == old);
            at.and_then(|at| queue.remove(at)).is_some()
        };
        if unsent(&mut self.outbox) || unsent(&mut self.bulk) {
            self.requests -= 1;
            return self.free_tag(old);
        }
        // Without a tag for the flush the request's own reply frees its tag.
        match self.new_tag() {
            Some(tag) => self.put_flush(tag, old),
            None => {
                if let Some(Waiting::Call { flushing, .. }) = self.tags.get_mut(&old) {
                    *flushing = false;
                }
            }
        }
        None
    }

    /// Asks for a sign of life: to flush what is not under way costs a server nothing.
    pub(super) fn ask(&mut self) {
        if let Some(tag) = self.new_tag() {
            self.put_flush(tag, NOBODY);
        }
    }

    fn put_flush(&mut self, tag: u16, oldtag: u16) {
        self.flushing += 1;
        self.tags.insert(tag, Waiting::Flush(oldtag));
        self.put(tag, &T::Flush { oldtag });
    }

    /// Clunks `fid`, now or as soon as may be.
    pub(super) fn clunk(&mut self, fid: u32, sender: Option<Sender>) {
        self.to_clunk.push_back((fid, sender));
        self.put_clunks();
    }

    /// Clunks `fid`, which a walk makes that is perhaps being flushed, once it is certain whether it was made.
    pub(super) fn clunk_after_flushes(&mut self, fid: u32) {
        match self.flushing {
            0 => self.clunk(fid, None),
            _ => self.uncertain.push(fid),
        }
    }

    fn put_clunks(&mut self) {
        while self.clunking < CLUNKS && !self.to_clunk.is_empty() {
            let Some(tag) = self.new_tag() else { return };
            let Some((fid, sender)) = self.to_clunk.pop_front() else { return };
            self.clunking += 1;
            self.tags.insert(tag, Waiting::Clunk(fid, sender));
            self.put(tag, &T::Clunk { fid });
        }
    }

    fn put(&mut self, tag: u16, message: &T<'_>) {
        let message = self.encode(tag, message, Bytes::new());
        self.outbox.push_back(message);
    }

    fn encode(&mut self, tag: u16, message: &T<'_>, data: Bytes) -> Outgoing {
        tracing::trace!(target: "p9::trace", "client -> {tag} {message:?} and {} bytes", data.len());
        let head = &mut self.head;
        head.clear();
        message.encode(tag, head);
        if !data.is_empty() {
            // A write's data goes out from where it lies: only the two counts in front of it change.
            let (size, at) = ((head.len() + data.len()) as u32, head.len() - 4);
            head[..4].copy_from_slice(&size.to_le_bytes());
            head[at..].copy_from_slice(&(data.len() as u32).to_le_bytes());
        }
        self.requests += 1;
        let mut kept = self.heads.take(head.len());
        kept.extend_from_slice(head);
        Outgoing { head: kept.freeze(), data: data.into() }
    }

    /// Takes what is to go out now, as far as it `may`: all but bulk, and of that one message, so that what comes
    /// meanwhile goes before the next.
    pub(super) fn take_outgoing(&mut self, mut may: impl FnMut(&Outgoing) -> bool, mut each: impl FnMut(Outgoing)) {
        while let Some(message) = self.outbox.pop_front_if(|message| may(message)) {
            each(message);
        }
        self.bulk.pop_front_if(|message| may(message)).into_iter().for_each(each);
    }

    /// Who waits for the answer to what has not gone out.
    pub(super) fn take_unsent(&mut self) -> Vec<(u16, Sender)> {
        let unsent: Vec<u16> = self.outbox.drain(..).chain(self.bulk.drain(..)).map(|message| message.tag()).collect();
        let sender = |tag: u16| match self.tags.get_mut(&tag)? {
            Waiting::Call { sender, .. } | Waiting::Clunk(_, sender) => Some((tag, sender.take()?)),
            Waiting::Flush(_) => None,
        };
        unsent.into_iter().filter_map(sender).collect()
    }

    pub(super) fn has_to_send(&self) -> bool {
        !self.outbox.is_empty() || !self.bulk.is_empty()
    }

    /// The uses that have ended.
    pub(super) fn take_ended(&mut self) -> Vec<Use> {
        std::mem::take(&mut self.ended)
    }

    /// How many answers are waited for.
    pub(super) fn waited_for(&self) -> usize {
        self.tags.len() - self.clunking
    }

    /// How many answers the server owes.
    pub(super) fn under_way(&self) -> usize {
        self.tags.len()
    }

    /// The reply to `tag` has come: who wants it, if anybody does. The error is a tag that waits for none.
    pub(super) fn take(&mut self, tag: u16) -> Result<Option<Sender>, u16> {
        let waiter = match self.tags.get_mut(&tag).ok_or(tag)? {
            Waiting::Call { stamp, sender, flushing, .. } => {
                let (sender, flushing) = (sender.take().ok_or(tag)?, *flushing);
                self.heard = self.heard.max(*stamp);
                if !flushing {
                    self.free_tag(tag);
                }
                Some(sender)
            }
            Waiting::Clunk(fid, sender) => {
                let (fid, sender) = (*fid, sender.take());
                self.clunking -= 1;
                self.free_fid(fid);
                self.free_tag(tag);
                sender
            }
            &mut Waiting::Flush(old) => {
                self.flushing -= 1;
                self.free_tag(tag);
                // Unanswered until now, it never will be: dropping the sender tells the caller.
                self.free_tag(old);
                if self.flushing == 0 {
                    let certain = std::mem::take(&mut self.uncertain);
                    self.to_clunk.extend(certain.into_iter().map(|fid| (fid, None)));
                }
                None
            }
        };
        self.put_clunks();
        Ok(waiter)
    }

    fn new_tag(&mut self) -> Option<u16> {
        if let Some(tag) = self.free_tags.pop() {
            return Some(tag);
        }
        if self.next_tag == NOBODY {
            return None;
        }
        self.next_tag += 1;
        Some(self.next_tag - 1)
    }

    fn free_tag(&mut self, tag: u16) -> Option<Waiting> {
        let mut freed = self.tags.remove(&tag);
        if let Some(Waiting::Call { of, .. }) = &mut freed {
            self.ended.extend(of.take());
        }
        if freed.is_some() {
            self.free_tags.push(tag);
        }
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_that_comes_too_late_does_not_meet_the_next_request_with_that_tag() {
        let mut waits = Waits::default();
        let call = |waits: &mut Waits| waits.call(&T::Getattr { fid: 1, mask: 0 }, Bytes::new(), None, None).unwrap();
        let (first, _answer) = call(&mut waits);
        waits.take_outgoing(|_| true, drop);
        assert!(waits.take(first.tag).unwrap().is_some(), "the first is answered");
        let (second, mut answer) = call(&mut waits);
        waits.take_outgoing(|_| true, drop);
        assert_eq!(second.tag, first.tag, "its tag is used again");
        assert!(waits.flush(first).is_none());
        assert!(!waits.has_to_send(), "nothing is flushed");
        assert!(matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty)), "the second still waits");
        waits.flush(second);
        assert!(waits.has_to_send(), "which it can be itself");
    }
}
