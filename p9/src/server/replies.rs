//! The replies of a connection, or of a lane of a session, that wait for its writer.
//!
//! Part of [`super::requests`], and changed under its lock. What is small goes before what is bulk, however long that
//! has waited: an answer of a few bytes never waits for more than the one message of bulk that is being written.
//! Invariants: what is told goes before every reply that is put in after it; a flush is answered after the reply to
//! what it names.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};

use crate::buffers::Buffers;
use crate::writer::{Outgoing, Payload};

/// Replies of bulk that wait for the writer, and bytes of small ones; past it, requests wait. The bytes of bulk are
/// counted where they are read.
const ROOM: usize = 256;
const SMALL_ROOM: usize = 256 << 10;
/// Small replies that wait for no more to go along with.
const DUE: usize = 32;

/// What waits to be written.
pub(super) struct Replies {
    small: VecDeque<Outgoing>,
    bulk: VecDeque<Outgoing>,
    /// Those of all that are small.
    bytes: usize,
    /// What their heads are cut off.
    heads: Buffers,
    /// Waits for something to write, or for the word that there will be nothing.
    writer: Option<Waker>,
    /// The reader is at it, in the task of the writer, which has its turn next: it need not be woken.
    turn: bool,
    /// Nothing more comes, or nobody would write it.
    closed: bool,
}

/// Who is to be woken, once nothing is locked any more.
#[must_use = "the writer sleeps"]
pub(super) struct Wake(Option<Waker>);

impl Wake {
    pub(super) fn wake(self) {
        if let Some(writer) = self.0 {
            writer.wake();
        }
    }
}

impl Replies {
    pub(super) fn new() -> Self {
        let (small, bulk) = (VecDeque::new(), VecDeque::new());
        Self { small, bulk, bytes: 0, heads: Buffers::default(), writer: None, turn: false, closed: false }
    }

    /// A reply of these parts.
    pub(super) fn reply(&mut self, head: &[u8], data: Payload) -> Outgoing {
        let mut kept = self.heads.take(head.len());
        kept.extend_from_slice(head);
        Outgoing { head: kept.freeze(), data }
    }

    /// Whether there is room for one more reply, of bulk or small.
    pub(super) fn has_room(&self, bulk: bool) -> bool {
        if bulk { self.bulk.len() < ROOM } else { self.bytes < SMALL_ROOM }
    }

    /// Puts in a reply for which there is room, or what is told and answers nothing, whatever room there is.
    pub(super) fn put(&mut self, message: Outgoing) -> Wake {
        if self.closed {
            return Wake(None);
        }
        if message.is_bulk() {
            self.bulk.push_back(message)
        } else {
            self.bytes += message.size();
            self.small.push_back(message)
        }
        self.wake()
    }

    /// The writer, unless it has its turn anyway.
    fn wake(&mut self) -> Wake {
        Wake(if self.turn { None } else { self.writer.take() })
    }

    /// Puts in a reply that must not come before that to the tag `old`: to a flush of it. There is room for it.
    pub(super) fn put_after(&mut self, message: Outgoing, old: u16) -> Wake {
        match self.bulk.iter().position(|reply| reply.tag() == old) {
            Some(at) if !self.closed => {
                self.bulk.insert(at + 1, message);
                self.wake()
            }
            _ => self.put(message),
        }
    }

    /// Says whether the reader is at it, in the task of the writer; gives whether that waits and has something to do.
    pub(super) fn turn(&mut self, turn: bool) -> bool {
        self.turn = turn;
        self.writer.is_some() && !(self.small.is_empty() && self.bulk.is_empty())
    }

    /// Whether the writer waits, and so much is to be written that it had better go out now.
    pub(super) fn is_due(&self) -> bool {
        self.writer.is_some() && self.small.len() >= DUE
    }

    /// Says that nothing more comes, or is written.
    pub(super) fn close(&mut self) -> Wake {
        self.closed = true;
        Wake(self.writer.take())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Ready once there is something to take, of what is small if `small`, of bulk if `bulk`. False once nothing more
    /// comes.
    pub(super) fn poll_ready(&mut self, small: bool, bulk: bool, cx: &mut Context<'_>) -> Poll<bool> {
        self.writer = None;
        if (small && !self.small.is_empty()) || (bulk && !self.bulk.is_empty()) {
            return Poll::Ready(true);
        }
        if self.closed && self.small.is_empty() && self.bulk.is_empty() {
            return Poll::Ready(false);
        }
        self.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The next that is small, or bulk; and whether there was no room for more.
    pub(super) fn take(&mut self, bulk: bool) -> Option<(Outgoing, bool)> {
        let full = !self.has_room(bulk);
        let reply = if bulk { self.bulk.pop_front() } else { self.small.pop_front() }?;
        if !bulk {
            self.bytes -= reply.size();
        }
        Some((reply, full))
    }
}
