//! An open file, with what was read of it before anyone asked.
//!
//! The kernel reads 128 KiB at a time and offers no more; over a network that is a round trip each. So a file of
//! another machine that is read in sequence is read ahead here, a few large pieces at a time, and a small one whole at
//! its open. What was read ahead is dropped by a write through this file, and lasts no longer than the open file.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};
use p9::{Errno, Handle, NodeRef, Written};
use parking_lot::Mutex;
use tokio::runtime;

/// Bytes of a piece that is read ahead.
const PIECE: u32 = 512 << 10;
/// Pieces under way or at hand.
const PIECES: usize = 6;
/// How far behind a reader pieces are kept: the kernel's requests may come out of order.
const BEHIND: u64 = 1 << 20;

/// An open file.
pub(crate) struct Open {
    pub(crate) handle: Handle,
    /// The file, which may have no name any more.
    pub(crate) node: NodeRef,
    pub(crate) id: u64,
    /// The whole contents, of a small file, as they were at the open.
    whole: Mutex<Option<Bytes>>,
    ahead: Option<Mutex<Ahead>>,
    runtime: runtime::Handle,
}

#[derive(Default)]
struct Ahead {
    /// Where the next read begins, if it is in sequence.
    next: u64,
    pieces: VecDeque<Piece>,
}

#[derive(Clone)]
struct Piece {
    start: u64,
    data: Shared<BoxFuture<'static, Result<Bytes, Errno>>>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.start + u64::from(PIECE)
    }
}

impl Open {
    pub(crate) fn new(handle: Handle, node: NodeRef, id: u64, whole: Option<Bytes>, runtime: runtime::Handle) -> Self {
        let remote = matches!(&handle, Handle::Stream(stream) if stream.seekable());
        Self { handle, node, id, whole: Mutex::new(whole), ahead: remote.then(Mutex::default), runtime }
    }

    /// Whether the kernel may keep what is read of it.
    pub(crate) fn is_cached(&self) -> bool {
        !matches!(self.handle, Handle::Bytes(_)) && self.handle.seekable()
    }

    /// Up to `size` bytes from `offset`; fewer only at the end of a file that has one.
    pub(crate) async fn read(&self, offset: u64, size: u32) -> Result<Bytes, Errno> {
        let whole = self.whole.lock().clone();
        if let Some(whole) = whole {
            let start = usize::try_from(offset).map_or(whole.len(), |offset| offset.min(whole.len()));
            return Ok(whole.slice(start..whole.len().min(start + size as usize)));
        }
        let pieces = self.ahead.as_ref().and_then(|ahead| self.pieces(&mut ahead.lock(), offset, size));
        match pieces {
            Some(pieces) => gather(pieces, offset, size).await,
            None => self.handle.read(offset, size).await,
        }
    }

    /// The pieces that a read in sequence is answered from; `None` for any other.
    fn pieces(&self, ahead: &mut Ahead, offset: u64, size: u32) -> Option<Vec<Piece>> {
        let (end, after) = (offset + u64::from(size), ahead.pieces.back().map(Piece::end));
        let within = ahead.pieces.front().is_some_and(|first| first.start <= offset) && after > Some(offset);
        // A first read from the start may be all that is wanted; the second in a row shows that more will be.
        if !within && (offset != ahead.next || offset == 0) {
            ahead.pieces.clear();
            ahead.next = end;
            return None;
        }
        if !within {
            ahead.pieces.clear();
        }
        ahead.next = ahead.next.max(end);
        while ahead.pieces.front().is_some_and(|first| first.end() + BEHIND <= offset) {
            ahead.pieces.pop_front();
        }
        let in_front = |ahead: &Ahead| ahead.pieces.iter().filter(|piece| piece.end() > offset).count();
        while in_front(ahead) < PIECES || ahead.pieces.back().is_none_or(|last| last.end() < end) {
            let start = ahead.pieces.back().map_or(offset, Piece::end);
            ahead.pieces.push_back(self.piece(start));
        }
        Some(ahead.pieces.iter().filter(|piece| piece.end() > offset && piece.start < end).cloned().collect())
    }

    fn piece(&self, start: u64) -> Piece {
        let handle = self.handle.clone();
        let read = self.runtime.spawn(async move { handle.read(start, PIECE).await });
        Piece { start, data: async move { read.await.unwrap_or(Err(Errno::EIO)) }.boxed().shared() }
    }

    /// Writes `data` at `offset`, all of it unless there is a reason.
    pub(crate) async fn write(&self, offset: u64, data: Bytes) -> Result<Written, Errno> {
        let written = self.handle.write(offset, data).await;
        self.whole.lock().take();
        if let Some(ahead) = &self.ahead {
            ahead.lock().pieces.clear();
        }
        written
    }
}

/// What `pieces`, which follow one another, have of `size` bytes from `offset`.
async fn gather(pieces: Vec<Piece>, offset: u64, size: u32) -> Result<Bytes, Errno> {
    let (mut all, mut at) = (BytesMut::new(), offset);
    let end = offset + u64::from(size);
    for piece in pieces {
        let data = piece.data.clone().await?;
        let start = ((at - piece.start) as usize).min(data.len());
        let part = data.slice(start..data.len().min((end - piece.start) as usize));
        let short = data.len() < PIECE as usize;
        if all.is_empty() && (short || at + part.len() as u64 == end) {
            return Ok(part);
        }
        at += part.len() as u64;
        all.extend_from_slice(&part);
        if short {
            break;
        }
    }
    Ok(all.freeze())
}
