//! Writing what was read, behind the back of whoever reads.
//!
//! One thread for each cache, which gives way to everything else. What is to be written waits in a queue that has room
//! for some; what comes while it is full is left out.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use bytes::Bytes;

use super::entry::{Entry, hash};
use super::index::Index;
use super::segments::{Open, Segments};
use super::{FileId, PAGE};

/// Units that wait to be written, and their bytes.
const WAIT: (usize, usize) = (1024, 16 << 20);
/// What this thread does can wait for whatever else there is to do.
const NICE: i32 = 19;

/// What is to be written goes here.
pub(super) struct Writer {
    queue: SyncSender<Task>,
    bytes: Arc<AtomicUsize>,
}

enum Task {
    Unit(FileId, u64, Bytes),
    /// Somebody waits for those before.
    Settle(SyncSender<()>),
}

impl Writer {
    /// Starts the thread; it ends with this.
    pub(super) fn start(key: &[u8; 32], index: &Arc<Index>, segments: &Arc<Segments>) -> io::Result<Self> {
        let (queue, tasks) = sync_channel(WAIT.0);
        let bytes = Arc::<AtomicUsize>::default();
        let thread = Thread {
            key: *key,
            index: index.clone(),
            segments: segments.clone(),
            bytes: bytes.clone(),
            open: None,
            failed: false,
        };
        std::thread::Builder::new().name("mount-disk".into()).spawn(move || thread.run(&tasks))?;
        Ok(Self { queue, bytes })
    }

    /// Writes `bytes`, a unit of a file that begins at `start`, later; gives whether there was room for it.
    pub(super) fn write(&self, id: FileId, start: u64, bytes: Bytes) -> bool {
        let length = bytes.len();
        if self.bytes.fetch_add(length, Ordering::Relaxed) + length <= WAIT.1 {
            match self.queue.try_send(Task::Unit(id, start, bytes)) {
                Ok(()) => return true,
                Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
            }
        }
        self.bytes.fetch_sub(length, Ordering::Relaxed);
        false
    }

    /// Returns when what came before has been written.
    pub(super) fn settle(&self) {
        let (done, all) = sync_channel(1);
        if self.queue.send(Task::Settle(done)).is_ok() {
            _ = all.recv();
        }
    }
}

struct Thread {
    key: [u8; 32],
    index: Arc<Index>,
    segments: Arc<Segments>,
    bytes: Arc<AtomicUsize>,
    open: Option<Open>,
    /// Whether the last one could not be written.
    failed: bool,
}

impl Thread {
    fn run(mut self, tasks: &Receiver<Task>) {
        // Of this thread alone: setpriority(2), C library/kernel differences.
        _ = rustix::process::setpriority_process(None, NICE);
        while let Ok(task) = tasks.recv() {
            match task {
                Task::Settle(done) => _ = done.send(()),
                Task::Unit(id, start, bytes) => {
                    let answer = self.write(id, start, &bytes);
                    self.bytes.fetch_sub(bytes.len(), Ordering::Relaxed);
                    if let Err(err) = &answer {
                        self.open = None;
                        if !self.failed && err.kind() != io::ErrorKind::StorageFull {
                            tracing::warn!(%err, "what was read is not kept on disk");
                        }
                    }
                    self.failed = answer.is_err();
                }
            }
        }
    }

    fn write(&mut self, id: FileId, start: u64, bytes: &Bytes) -> io::Result<()> {
        let Ok(page) = u32::try_from(start / PAGE) else { return Ok(()) };
        if self.index.find(id, start).is_some_and(|there| there.end() >= start + bytes.len() as u64) {
            return Ok(());
        }
        let hash = hash(bytes, &self.key);
        let (there, most) = (self.index.spot(hash).is_some(), self.segments.each());
        let length = if there { 0 } else { bytes.len() as u64 };
        let fits = |open: &Open| open.fits(length, most) && self.segments.has(open.number);
        if !self.open.as_ref().is_some_and(fits) {
            // Its lock first, so that it may be removed.
            self.open = None;
            self.open = Some(self.segments.to_write(&self.index)?);
            // It may have gone to make room.
            if there && self.index.spot(hash).is_none() {
                return Ok(());
            }
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        let offset = (!there).then_some(open.length);
        if !there {
            // However far it got, what follows is written after it.
            open.length = u64::MAX;
            (&open.data).write_all(bytes)?;
            open.length = offset.unwrap_or(0) + length;
        }
        let entry = Entry { id, page, length: bytes.len() as u32, hash, offset };
        open.index.write_all(&entry.encode(&self.key))?;
        open.entries += 1;
        self.index.add(&entry, open.number);
        Ok(())
    }
}
