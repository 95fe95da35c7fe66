//! Reading ahead of a program that reads a file in order, where each request has far to go.
//!
//! Used by the read of an open file, in the request's task; what is fetched ahead runs in tasks of its own, which end
//! when the file is closed or read elsewhere, as [`crate::scattered`] says. The kernel asks for 128 KiB at a time; this
//! keeps chunks of 1 MiB under way, more of them the longer one takes. Invariant: nothing fetched before a write
//! through this mount has returned is given out after it.

use std::collections::VecDeque;
use std::future::ready;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::Shared;
use p9::{Errno, Stream};
use parking_lot::Mutex;
use tokio::runtime::Handle as Runtime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;

use crate::kept::File;
use crate::pages::Gift;
use crate::scattered::Scattered;
use crate::table::Inode;
use crate::tell::Teller;

/// What is fetched at a time.
const CHUNK: u64 = 1 << 20;
/// The most chunks ahead of one reader: where they come at once, and over a long way, which holds many.
const DEPTH: (usize, usize) = (4, 16);
/// A chunk more is under way for each so many milliseconds that one takes: a gigabit link carries it in twice that, and
/// the way back is as long.
const DEEPER_MS: u64 = 4;
/// Reads that come this near to the last one came out of order; others go elsewhere.
const NEAR: u64 = 1 << 20;
/// And if they are no longer than this they were asked for by a program, not by the kernel ahead of one.
const SMALL: u64 = 32 << 10;

type Fetch = Shared<Pin<Box<dyn Future<Output = Result<Bytes, Errno>> + Send>>>;

/// What all open files of a mount share: memory, and where tasks run.
pub(crate) struct Budget {
    chunks: Arc<Semaphore>,
    runtime: Runtime,
    teller: Teller,
}

impl Budget {
    /// For what is read ahead there is room for so many bytes.
    pub(crate) fn new(bytes: u64, runtime: Runtime, teller: Teller) -> Self {
        Self { chunks: Arc::new(Semaphore::new((bytes / CHUNK) as usize)), runtime, teller }
    }
}

/// What an open file is read from.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) stream: &'a Arc<dyn Stream>,
    pub(crate) inode: &'a Arc<Inode>,
    /// What says that it has not changed, if anything does.
    pub(crate) kept: Option<&'a Arc<File>>,
}

/// What was fetched for one open file.
#[derive(Default)]
pub(crate) struct Ahead(Mutex<State>);

#[derive(Default)]
struct State {
    /// In order, without gaps.
    chunks: VecDeque<Chunk>,
    /// The end of the furthest read.
    high: u64,
    /// Reads in order so far.
    run: u32,
    /// How many milliseconds the last chunk took.
    took_ms: Arc<AtomicU64>,
    scattered: Scattered,
}

struct Chunk {
    offset: u64,
    length: u64,
    /// [`Inode::writes`] when it was begun.
    writes: u64,
    fetch: Fetch,
    task: Option<AbortHandle>,
    _budget: Option<OwnedSemaphorePermit>,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Ahead {
    /// For a file whose `first` bytes were asked for when there had been `writes`.
    pub(crate) fn new(first: Bytes, writes: u64) -> Self {
        let mut state = State::default();
        if !first.is_empty() {
            let length = first.len() as u64;
            let fetch = ready(Ok(first)).boxed().shared();
            state.chunks.push_back(Chunk { offset: 0, length, writes, fetch, task: None, _budget: None });
        }
        Self(Mutex::new(state))
    }

    /// `size` bytes from `offset`; fewer only at the end of the file.
    pub(crate) async fn read(
        &self, source: Source<'_>, budget: &Budget, offset: u64, size: u32,
    ) -> Result<Bytes, Errno> {
        let Source { stream, inode, kept } = source;
        let end = offset.saturating_add(u64::from(size));
        let in_order = self.0.lock().plan(stream, inode, budget, offset, end);
        if let (false, Some(file)) = (in_order, kept) {
            return self.read_around(source, file, budget, offset..end).await;
        }
        let mut whole = Bytes::new();
        loop {
            let at = offset + whole.len() as u64;
            let piece = match self.fetched(inode, at, end).await {
                Some(piece) => piece,
                None => stream.read(at, (end - at) as u32).await?,
            };
            let ended = piece.is_empty();
            whole = joined(whole, piece);
            let at = offset + whole.len() as u64;
            // The kernel does not look past the length that it was told, which is the one known here.
            if ended || at >= end || at >= inode.size() {
                return Ok(whole);
            }
        }
    }

    /// The same of a file that is read here and there: the kernel is given what is fetched around it.
    async fn read_around(
        &self, source: Source<'_>, file: &Arc<File>, budget: &Budget, wanted: Range<u64>,
    ) -> Result<Bytes, Errno> {
        let Source { stream, inode, .. } = source;
        let (writes, begun) = (inode.writes(), Instant::now());
        let around = self.0.lock().scattered.around(&wanted, inode.size());
        let Some(around) = around.filter(|around| around.end >= wanted.end.min(inode.size())) else {
            let end = wanted.end.min(inode.size()).max(wanted.start + 1);
            let bytes = fill(stream.clone(), wanted.start, end - wanted.start).await?;
            self.0.lock().scattered.took_alone(begun.elapsed());
            return Ok(bytes);
        };
        let bytes = fill(stream.clone(), around.start, around.end - around.start).await?;
        self.0.lock().scattered.took(&around, begun.elapsed());
        let part = |from: u64, to: u64| {
            let at = |offset: u64| ((offset - around.start) as usize).min(bytes.len());
            bytes.slice(at(from)..at(to))
        };
        let (start, end) = (wanted.start, wanted.end.min(around.end));
        if bytes.len() as u64 == around.end - around.start {
            let pages = vec![(around.start, part(around.start, start)), (end, part(end, around.end))];
            // Before the answer, so that no page is given that is older than one read since.
            budget.teller.give(vec![Gift::of(inode, file, writes, pages)]).await;
        }
        Ok(part(start, end))
    }

    /// What a chunk has of the bytes from `at` to `end`, if one has any.
    async fn fetched(&self, inode: &Inode, at: u64, end: u64) -> Option<Bytes> {
        let (offset, fetch) = self.0.lock().chunk_at(at, inode.writes())?;
        let bytes = fetch.await.ok()?;
        let (start, end) = ((at - offset) as usize, bytes.len().min((end - offset) as usize));
        (start < end).then(|| bytes.slice(start..end))
    }

    /// Ends what is under way.
    pub(crate) fn stop(&self) {
        self.0.lock().chunks.clear();
    }
}

impl State {
    fn chunk_at(&self, at: u64, writes: u64) -> Option<(u64, Fetch)> {
        let chunk = self.chunks.iter().find(|chunk| chunk.writes == writes && chunk.covers(at))?;
        Some((chunk.offset, chunk.fetch.clone()))
    }

    /// Notices how the file is read, lets go of what was read, and begins to fetch what comes next.
    /// Gives whether it is read in order.
    fn plan(&mut self, stream: &Arc<dyn Stream>, inode: &Inode, budget: &Budget, offset: u64, end: u64) -> bool {
        let writes = inode.writes();
        let mut in_order = true;
        if offset == self.high || self.chunks.iter().any(|chunk| chunk.covers(offset)) {
            self.run = self.run.saturating_add(1);
            self.high = self.high.max(end);
        } else if offset.abs_diff(self.high) <= NEAR {
            in_order = self.run > 1 || end - offset > SMALL;
            self.high = self.high.max(end);
        } else {
            (self.run, self.high, in_order) = (0, end, false);
            self.chunks.clear();
        }
        let high = self.high;
        self.chunks.retain(|chunk| chunk.writes == writes && chunk.end() + NEAR > high);
        if self.run < 2 {
            return in_order;
        }
        let far = (self.took_ms.load(Ordering::Relaxed) / DEEPER_MS) as usize;
        let depth = far.clamp(DEPTH.0, DEPTH.1).min(self.run as usize - 1);
        let mut next = self.chunks.back().map_or(offset, |last| last.end().max(offset));
        while self.chunks.iter().filter(|chunk| chunk.end() > high).count() < depth && next < inode.size() {
            let Ok(permit) = budget.chunks.clone().try_acquire_owned() else { break };
            let length = CHUNK.min(inode.size() - next);
            let (filled, took_ms, begun) = (fill(stream.clone(), next, length), self.took_ms.clone(), Instant::now());
            let fetch = filled.inspect(move |_| took_ms.store(begun.elapsed().as_millis() as u64, Ordering::Relaxed));
            let fetch = fetch.boxed().shared();
            let task = Some(budget.runtime.spawn(fetch.clone()).abort_handle());
            self.chunks.push_back(Chunk { offset: next, length, writes, fetch, task, _budget: Some(permit) });
            next += length;
        }
        in_order
    }
}

impl Chunk {
    fn end(&self) -> u64 {
        self.offset + self.length
    }

    fn covers(&self, at: u64) -> bool {
        (self.offset..self.end()).contains(&at)
    }
}

/// `length` bytes from `offset`; fewer at the end of the file.
async fn fill(stream: Arc<dyn Stream>, offset: u64, length: u64) -> Result<Bytes, Errno> {
    let mut whole = Bytes::new();
    while (whole.len() as u64) < length {
        let (at, rest) = (offset + whole.len() as u64, length - whole.len() as u64);
        let piece = stream.read(at, rest as u32).await?;
        if piece.is_empty() {
            break;
        }
        whole = joined(whole, piece);
    }
    Ok(whole)
}

/// One after the other; copied only if there are two.
fn joined(first: Bytes, second: Bytes) -> Bytes {
    match (first.is_empty(), second.is_empty()) {
        (true, _) => second,
        (_, true) => first,
        _ => {
            let mut both = first.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
            both.extend_from_slice(&second);
            both.freeze()
        }
    }
}
