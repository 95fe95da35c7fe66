//! Who holds locks in a mount, and the locks of files whose tree keeps none.
//!
//! The kernel keeps no locks of a mount itself, or two mounts of one tree could not exclude each other. It names an
//! owner by a number, and says when one closes a file: then all that this owner has locked is given back. Used by the
//! requests about locks, in any task. Invariant: whoever may hold a lock is in here.

use std::pin::pin;
use std::sync::Arc;

use dashmap::DashMap;
use p9::locks::Ranges;
use p9::tree::{Lock, LockKind};
use p9::{Errno, NodeRef};
use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, Notify};

/// The locks of one mount.
#[derive(Default)]
pub(crate) struct Locks {
    /// By file and owner.
    holders: DashMap<(u64, u64), Holder>,
    /// By file.
    local: DashMap<u64, Arc<Local>>,
}

/// Whoever may hold locks on a file.
#[derive(Clone)]
pub(crate) struct Holder {
    pub(crate) file: u64,
    pub(crate) owner: u64,
    /// The process, as it is shown to others.
    pub(crate) pid: u32,
    /// Where they were taken.
    pub(crate) node: NodeRef,
    /// Held while all is given back. The kernel may use the owner's number again before that is done.
    pub(crate) ending: Arc<Turn<()>>,
}

/// The locks of a file whose tree keeps none: they hold within this mount.
#[derive(Default)]
pub(crate) struct Local {
    ranges: Mutex<Ranges<u64>>,
    freed: Notify,
}

/// Ranges of one file.
const RANGES: usize = 4096;

impl Locks {
    /// `holder` is about to take a lock.
    pub(crate) fn takes(&self, holder: Holder) {
        self.holders.entry((holder.file, holder.owner)).or_insert(holder);
    }

    /// Whether this owner may hold something.
    pub(crate) fn holds(&self, file: u64, owner: u64) -> bool {
        self.holders.contains_key(&(file, owner))
    }

    /// Whether anybody may hold something on `file`.
    pub(crate) fn any(&self, file: u64) -> bool {
        self.holders.iter().any(|holder| holder.file == file)
    }

    /// Who this owner is, if it may hold something.
    pub(crate) fn holder(&self, file: u64, owner: u64) -> Option<Holder> {
        self.holders.get(&(file, owner)).map(|holder| holder.clone())
    }

    /// This owner has given all back.
    pub(crate) fn ended(&self, holder: &Holder) {
        self.holders.remove(&(holder.file, holder.owner));
    }

    /// All who may hold something are about to give it back.
    pub(crate) fn end_all(&self) -> Vec<Holder> {
        let all = self.holders.iter().map(|entry| entry.clone()).collect();
        self.holders.clear();
        all
    }

    /// The locks of `file`, if its tree has said that it keeps none.
    pub(crate) fn local(&self, file: u64) -> Option<Arc<Local>> {
        self.local.get(&file).map(|local| local.clone())
    }

    /// The tree of `file` keeps no locks.
    pub(crate) fn keep(&self, file: u64) -> Arc<Local> {
        self.local.entry(file).or_default().clone()
    }
}

impl Holder {
    /// What gives back all that it holds.
    pub(crate) fn unlock(&self) -> Lock {
        Lock { kind: LockKind::Unlock, start: 0, length: 0, owner: self.owner, pid: self.pid }
    }
}

impl Local {
    pub(crate) async fn lock(&self, lock: Lock, wait: bool) -> Result<(), Errno> {
        loop {
            let mut freed = pin!(self.freed.notified());
            // Registered before the look, so that nothing that is given back is missed.
            freed.as_mut().enable();
            if self.try_lock(&lock)? {
                return Ok(());
            }
            if !wait {
                return Err(Errno::EAGAIN);
            }
            freed.await;
        }
    }

    fn try_lock(&self, lock: &Lock) -> Result<bool, Errno> {
        let mut ranges = self.ranges.lock();
        if ranges.conflict(&lock.owner, lock, |owner| *owner)?.is_some() {
            return Ok(false);
        }
        if ranges.set(&lock.owner, lock, RANGES)? {
            self.freed.notify_waiters();
        }
        Ok(true)
    }

    pub(crate) fn conflict(&self, lock: &Lock) -> Result<Option<Lock>, Errno> {
        self.ranges.lock().conflict(&lock.owner, lock, |owner| *owner)
    }
}
