//! Open files, by the number that the kernel gives back with each request on them.
//!
//! Made by open, create and opendir; used by the requests on the open file, in any task; taken out by release, which
//! the kernel sends once nothing else is under way on it. Invariant: an open file pins its inode's node for as long as
//! it is in here.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use p9::{Errno, Handle, NameBuf, NodeRef};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::AbortHandle;

use crate::ahead::Ahead;
use crate::bridge::Local;
use crate::hold::Hold;
use crate::kept::File;
use crate::leash::Leash;
use crate::listing::Gathered;
use crate::pages::Away;
use crate::table::Inode;

/// The open files of one mount.
#[derive(Default)]
pub(crate) struct Opens {
    files: DashMap<u64, Arc<Open>>,
    last: AtomicU64,
}

/// One open file.
pub(crate) struct Open {
    /// Which file.
    pub(crate) inode: Arc<Inode>,
    /// The place in the tree where it was opened, if it was.
    pub(crate) node: Option<NodeRef>,
    /// Where its bytes are.
    pub(crate) handle: Handle,
    /// Whether each read and write is what the program asked for, without pages of the kernel between.
    pub(crate) direct: bool,
    /// Whether it was opened to change the file.
    pub(crate) writes_too: bool,
    /// Whether what is written to it goes to the end of the file, wherever the kernel says.
    pub(crate) appends: bool,
    /// Whether something was written that close(2) has not asked about.
    pub(crate) written: AtomicBool,
    /// Where the next read and the next write of a stream go: a stream has no other offsets.
    pub(crate) reads: Position,
    /// See [`Open::reads`].
    pub(crate) writes: Position,
    /// What was read ahead of the program.
    pub(crate) ahead: Ahead,
    /// How many entries of a directory are asked about together.
    pub(crate) batch: AtomicUsize,
    /// How many changes there had been when a directory was opened.
    pub(crate) asked: u64,
    /// The entries of a directory, as far as it was listed.
    pub(crate) listed: Mutex<Option<Gathered>>,
    /// Files that the kernel was told of by this listing, and is to forget: it knows enough.
    pub(crate) too_many: Mutex<Vec<NameBuf>>,
    /// What it shares with others who have the file open, if it does.
    pub(crate) kept: Option<Arc<File>>,
    /// The directory's lease that covers it, where it has none of its own; of a directory, that which says what it
    /// holds.
    pub(crate) leash: Option<Arc<Leash>>,
    /// Keeps pages of it away from the kernel, if it was opened to change the file.
    pub(crate) away: Option<Away>,
    /// What is held back of what was written, if it may be.
    pub(crate) hold: Option<Arc<Hold>>,
    /// How it is open to the kernel, where that reads and writes files of this machine itself.
    pub(crate) local: OnceLock<Local>,
    /// The task that waits for what a poll asked about.
    pub(crate) poll: Mutex<Option<AbortHandle>>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.poll_waits(None);
    }
}

impl Open {
    /// From now on `task` is the one that waits for what a poll asked about.
    pub(crate) fn poll_waits(&self, task: Option<AbortHandle>) {
        if let Some(before) = std::mem::replace(&mut *self.poll.lock(), task) {
            before.abort();
        }
    }
}

/// A place in a stream, that one request at a time moves on.
pub(crate) struct Position {
    turn: Semaphore,
    at: AtomicU64,
}

impl Default for Position {
    fn default() -> Self {
        Self { turn: Semaphore::new(1), at: AtomicU64::new(0) }
    }
}

impl Position {
    /// Waits until those before are done.
    pub(crate) async fn turn(&self) -> Result<Turn<'_>, Errno> {
        let turn = self.turn.acquire().await.map_err(|_| Errno::EIO)?;
        Ok(Turn { position: self, _turn: turn })
    }
}

/// The right to move a position on, held by one request.
pub(crate) struct Turn<'a> {
    position: &'a Position,
    _turn: SemaphorePermit<'a>,
}

impl Turn<'_> {
    /// Where it is.
    pub(crate) fn at(&self) -> u64 {
        self.position.at.load(Ordering::Relaxed)
    }

    /// Moves on by what was read or written.
    pub(crate) fn advance(self, bytes: usize) {
        self.position.at.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Opens {
    /// Keeps an open file; gives its number.
    pub(crate) fn add(&self, open: Open) -> u64 {
        open.inode.pin(open.node.clone());
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.files.insert(number, Arc::new(open));
        number
    }

    /// The open file `number`.
    pub(crate) fn get(&self, number: u64) -> Result<Arc<Open>, Errno> {
        self.files.get(&number).map(|open| open.clone()).ok_or(Errno::EBADF)
    }

    /// Takes it out.
    pub(crate) fn remove(&self, number: u64) -> Option<Arc<Open>> {
        let (_, open) = self.files.remove(&number)?;
        open.inode.unpin();
        Some(open)
    }

    /// What is held back of them.
    pub(crate) fn holds(&self) -> Vec<Arc<Hold>> {
        self.files.iter().filter_map(|open| open.hold.clone()).filter(|hold| hold.is_full()).collect()
    }

    /// Whether `inode` is one of them.
    pub(crate) fn has(&self, inode: &Arc<Inode>) -> bool {
        self.files.iter().any(|open| Arc::ptr_eq(&open.inode, inode))
    }

    /// Takes all of them out, when the mount has ended.
    pub(crate) fn clear(&self) {
        self.files.clear();
    }
}
