//! What proves that local processes leave a leased inode alone, or tells when they do not.
//!
//! Taken on the blocking pool when a lease is granted, kept in the inode's entry, dropped outside its lock when the
//! lease goes. A kernel lease (fcntl(2)) keeps every other process from opening the file for writing, or, while a
//! client of ours has it open for writing, from opening it at all, until our holders have let go.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use p9::Errno;

use super::sys;
use super::watch::{Mark, Watch};

/// A watch on a leased inode.
pub(super) type Watched = Mark;

/// A kernel lease; dropping it lets local processes go on.
pub(super) struct KernelLease {
    fd: OwnedFd,
    kind: sys::Kind,
    watch: Arc<Watch>,
    breaking: AtomicBool,
}

impl KernelLease {
    /// Takes one on the inode `key`, open as `fd`: for reading, if nobody is to write; or as the only descriptor that
    /// is open for writing (a duplicate of it), if nobody else is to open it. Errors: `EAGAIN` where others have it
    /// open.
    pub(super) fn take(fd: OwnedFd, kind: sys::Kind, key: u64, watch: &Arc<Watch>) -> Result<Self, Errno> {
        // Before it is taken: it may be broken at once.
        watch.leased(fd.as_raw_fd(), key);
        let lease = Self { fd, kind, watch: watch.clone(), breaking: AtomicBool::new(false) };
        sys::lease(lease.fd.as_fd(), kind, watch.thread)?;
        Ok(lease)
    }

    /// Whether no other descriptor may be open at all.
    pub(super) fn is_sole(&self) -> bool {
        self.kind == sys::Kind::Write
    }

    /// A local process waits for its end.
    pub(super) fn broken(&self) {
        self.breaking.store(true, Ordering::SeqCst);
    }

    /// Whether a local process waits for its end: nothing more is granted on it.
    pub(super) fn is_breaking(&self) -> bool {
        self.breaking.load(Ordering::SeqCst)
    }
}

impl Drop for KernelLease {
    fn drop(&mut self) {
        sys::unlease(self.fd.as_fd());
        self.watch.unleased(self.fd.as_raw_fd());
    }
}
