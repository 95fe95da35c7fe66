//! Locks: fcntl(2) and flock(2), asked of the tree, so that they hold between all who use it.
//!
//! Called through `fs`, in the request's own task. A lock that is waited for is one parked request, watched like any
//! other. A tree that keeps no locks leaves them to this mount.

use std::sync::Arc;
use std::time::Duration;

use fuser::{FileHandle, INodeNo};
use p9::tree::{Lock, LockKind};
use p9::{Errno, NodeRef, Time, cancel};

use super::Bridge;
use crate::locks::Holder;
use crate::table::{Inode, Version};

/// How long a close(2) waits for locks to be given back.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

impl Bridge {
    /// Takes, changes or drops a lock.
    pub(super) async fn lock(&self, id: INodeNo, fh: FileHandle, lock: Lock, wait: bool) -> Result<(), Errno> {
        let open = self.opens.get(fh.0)?;
        self.settle(&open.inode).await;
        let node = self.node_of(&open).await?;
        let holder = Holder { file: id.0, owner: lock.owner, pid: lock.pid, node, ending: Arc::default() };
        let takes = lock.kind != LockKind::Unlock;
        if takes {
            // What had this number before gives its locks back first.
            if let Some(before) = self.locks.holder(id.0, lock.owner) {
                drop(before.ending.lock().await);
            }
            self.locks.takes(holder.clone());
        }
        self.ask_lock(&holder, lock, wait).await?;
        if takes {
            self.locked(&open.inode, &holder.node).await;
        }
        Ok(())
    }

    /// A lock on the file was taken: whoever had it before may have changed the file, and what the kernel has of that
    /// is old. Where the lock is all that matters nobody waits any more who was asked to end: it has the lock.
    async fn locked(&self, inode: &Arc<Inode>, node: &NodeRef) {
        if self.kept.get(inode.id).is_some() {
            return;
        }
        let _hold = cancel::hold();
        let attr = tokio::select! {
            attr = async { node.attr().await.ok() } => attr,
            () = cancel::asked() => None,
        };
        let version = attr.and_then(|attr| Version::of(&attr, Time::now()));
        if inode.keeps_pages(version) && attr.is_some_and(|attr| !inode.differs(&attr)) {
            return;
        }
        drop(self.changing(inode));
        self.teller.contents_changed(inode).await;
    }

    /// What stands in the way of a lock.
    pub(super) async fn conflict(&self, id: INodeNo, fh: FileHandle, lock: Lock) -> Result<Option<Lock>, Errno> {
        let open = self.opens.get(fh.0)?;
        if let Some(local) = self.locks.local(id.0) {
            return local.conflict(&lock);
        }
        match self.node_of(&open).await?.conflicting_lock(lock.clone()).await {
            Err(errno) if keeps_none(errno) => self.locks.keep(id.0).conflict(&lock),
            answer => answer,
        }
    }

    /// Gives back all that an owner holds who has closed the file, who need not wait for ever for that: a server that
    /// does not answer is asked in the background.
    pub(super) async fn unlock_all(self: &Arc<Self>, id: INodeNo, owner: u64) {
        let Some(holder) = self.locks.holder(id.0, owner) else { return };
        let ending = holder.ending.clone().lock_owned().await;
        let bridge = self.clone();
        let asked = self.runtime.spawn(async move {
            if let Err(errno) = bridge.ask_lock(&holder, holder.unlock(), false).await {
                tracing::warn!(?errno, "giving back the locks of a closed file failed");
            }
            bridge.locks.ended(&holder);
            drop(ending);
        });
        _ = tokio::time::timeout(CLOSE_LIMIT, asked).await;
    }

    async fn ask_lock(&self, holder: &Holder, lock: Lock, wait: bool) -> Result<(), Errno> {
        if let Some(local) = self.locks.local(holder.file) {
            return local.lock(lock, wait).await;
        }
        match holder.node.lock(lock.clone(), wait).await {
            Err(errno) if keeps_none(errno) => self.locks.keep(holder.file).lock(lock, wait).await,
            answer => answer,
        }
    }
}

/// Whether the tree says that it keeps no locks; a server that keeps them for open files alone says `EBADF`.
fn keeps_none(errno: Errno) -> bool {
    matches!(errno, Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EBADF)
}

/// A lock as the kernel asks for it: `last` is its last byte.
pub(super) fn to_lock(kind: i32, first: u64, last: u64, owner: u64, pid: u32) -> Result<Lock, Errno> {
    let kind = match kind {
        libc::F_RDLCK => LockKind::Read,
        libc::F_WRLCK => LockKind::Write,
        libc::F_UNLCK => LockKind::Unlock,
        _ => return Err(Errno::EINVAL),
    };
    if last < first {
        return Err(Errno::EINVAL);
    }
    Ok(Lock { kind, start: first, length: Lock::length_of(first, last), owner, pid })
}

/// What is said of a lock in the way: its first and last byte, its kind, its process.
pub(super) fn of_lock(lock: Option<Lock>) -> (u64, u64, i32, u32) {
    let Some(lock) = lock else { return (0, 0, libc::F_UNLCK, 0) };
    let kind = if lock.kind == LockKind::Write { libc::F_WRLCK } else { libc::F_RDLCK };
    let (first, last) = lock.range().unwrap_or((lock.start, u64::MAX));
    (first, last, kind, lock.pid)
}
