//! Messages on their way into a stream: all that are ready go out in as few calls as it takes.
//!
//! Used by the one writer of a connection: the server's for replies, the client's for requests. Small pieces are
//! gathered into one buffer; the data of large reads goes out from where it lies. One small reply at a time would cost
//! a system call each, 5 to 9 us on loopback against 0.3 us in a batch.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use crate::server::pool::Room;
use crate::wire::NO_TAG;

/// A message on its way: its header and fields, and what follows them.
#[derive(Clone)]
pub(crate) struct Outgoing {
    pub(crate) head: Bytes,
    pub(crate) data: Payload,
}

/// The data of a read or write, uncopied.
#[derive(Default)]
pub(crate) struct Payload {
    pub(crate) bytes: Bytes,
    /// The room that it takes until it has been sent and, in a session, acknowledged, where that is bounded.
    pub(crate) _room: Option<Room>,
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, _room: None }
    }
}

impl Clone for Payload {
    /// The same bytes, whose room is with what they were cloned from.
    fn clone(&self) -> Self {
        self.bytes.clone().into()
    }
}

impl Outgoing {
    pub(crate) fn new(head: Vec<u8>, data: Bytes) -> Self {
        Self { head: head.into(), data: data.into() }
    }

    /// Its tag.
    pub(crate) fn tag(&self) -> u16 {
        self.head.get(5..7).map_or(NO_TAG, |tag| u16::from_le_bytes([tag[0], tag[1]]))
    }

    /// The bytes that it has on the wire.
    pub(crate) fn size(&self) -> usize {
        self.head.len() + self.data.bytes.len()
    }

    /// See [`is_bulk`].
    pub(crate) fn is_bulk(&self) -> bool {
        is_bulk(self.size())
    }
}

/// Whether a message of `size` bytes is so large that what is small should not wait for it.
pub(crate) fn is_bulk(size: usize) -> bool {
    size >= UNCOPIED
}

/// Data of at least this many bytes is sent from where it lies.
const UNCOPIED: usize = 16 << 10;
/// Pieces that go out in one call.
const BATCH: usize = 64;

/// Messages on their way into a stream.
#[derive(Default)]
pub(crate) struct Pieces {
    all: VecDeque<Payload>,
    small: BytesMut,
    /// All was written, but perhaps not passed on.
    to_flush: bool,
}

impl Pieces {
    pub(crate) fn add(&mut self, message: Outgoing) {
        self.small.extend_from_slice(&message.head);
        if message.data.bytes.len() < UNCOPIED {
            self.small.extend_from_slice(&message.data.bytes);
        } else {
            self.all.push_back(self.small.split().freeze().into());
            self.all.push_back(message.data);
        }
        self.to_flush = true;
    }

    /// Whether all that was added has gone out.
    pub(crate) fn is_empty(&self) -> bool {
        !self.to_flush
    }

    /// Writes all in as few calls as it takes, and flushes the stream.
    pub(crate) fn poll_write<W: AsyncWrite>(
        &mut self, mut stream: Pin<&mut W>, cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.small.is_empty() {
            self.all.push_back(self.small.split().freeze().into());
        }
        loop {
            while self.all.front().is_some_and(|piece| piece.bytes.is_empty()) {
                self.all.pop_front();
            }
            if self.all.is_empty() {
                break;
            }
            let mut slices = [IoSlice::new(&[]); BATCH];
            slices.iter_mut().zip(&self.all).for_each(|(slice, piece)| *slice = IoSlice::new(&piece.bytes));
            let count = self.all.len().min(BATCH);
            let mut written = ready!(stream.as_mut().poll_write_vectored(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            for piece in &mut self.all {
                let part = written.min(piece.bytes.len());
                piece.bytes.advance(part);
                written -= part;
            }
        }
        ready!(stream.poll_flush(cx))?;
        self.to_flush = false;
        Poll::Ready(Ok(()))
    }
}
