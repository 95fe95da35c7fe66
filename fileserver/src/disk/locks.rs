//! Locks on files of the disk, and the clients that hold them.
//!
//! Asked by a node in any task. What the tree's own clients hold is in a table of each file, through whichever mount
//! that is reached, which decides between them and knows who they are; each owner's locks are also the kernel's, on a
//! descriptor of their own (open file description locks, fcntl(2)), which exclude this machine's own processes. A lock
//! that is waited for is a future and no thread: it is tried again when another client gives something back, and ever
//! more rarely while it is a local process that holds it. Invariant: the kernel knows each lock before the table does,
//! and forgets it before those who wait are told.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use p9::Errno;
use p9::cancel::blocking;
use p9::locks::Ranges;
use p9::tree::{Lock, LockKind};
use parking_lot::Mutex;
use rustix::fs::OFlags;
use tokio::sync::Notify;

use super::inode::Inode;
use super::node::DiskNode;
use super::{Shared, sys};

/// How soon a lock that a local process holds is tried again, and how rarely in the end.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(500);
/// Ranges of one file.
const RANGES: usize = 4096;

/// A client of the tree, known to all nodes that it reached. What it holds is free again when the last of them goes.
pub(super) struct Locker {
    /// That of its session, 0 for none: [`p9::Who::client`].
    pub(super) client: u64,
    /// Its number in this process.
    number: u64,
    /// The files in which it holds any, by their qid paths.
    locked: Mutex<HashMap<u64, Arc<FileLocks>>>,
}

/// Whose a lock is: the client, and its own name for the owner.
type Owner = (u64, u64);

/// The locks of one file, shared by all inodes that are that file by different mounts.
pub(super) struct FileLocks {
    path: u64,
    disk: Arc<Shared>,
    held: Mutex<Held>,
    freed: Notify,
}

#[derive(Default)]
struct Held {
    ranges: Ranges<Owner>,
    /// None for what is no regular file: only the table keeps those apart.
    descriptors: HashMap<Owner, Descriptor>,
}

/// A descriptor that holds locks, counted.
struct Descriptor {
    fd: OwnedFd,
    disk: Arc<Shared>,
}

/// What came of trying.
enum Tried {
    Done,
    /// A client of the tree has it.
    Ours,
    /// Somebody else has it.
    Others,
}

impl Shared {
    /// Who locks for `client`: the same for all attaches of one session, another for each attach of none.
    pub(super) fn locker(&self, client: u64) -> Arc<Locker> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let new = Arc::new(Locker { client, number, locked: Mutex::default() });
        if client == 0 {
            return new;
        }
        let mut lockers = self.lockers.lock();
        lockers.retain(|_, locker| locker.strong_count() > 0);
        let locker = lockers.get(&client).and_then(Weak::upgrade).unwrap_or(new);
        lockers.insert(client, Arc::downgrade(&locker));
        locker
    }

    /// The locks of the file whose qid path is `path`.
    pub(super) fn locks_of(self: &Arc<Self>, path: u64) -> Arc<FileLocks> {
        let mut entry = self.locks.entry(path).or_default();
        if let Some(locks) = entry.upgrade() {
            return locks;
        }
        let (held, freed) = (Mutex::default(), Notify::new());
        let locks = Arc::new(FileLocks { path, disk: self.clone(), held, freed });
        *entry = Arc::downgrade(&locks);
        locks
    }
}

impl Drop for FileLocks {
    fn drop(&mut self) {
        self.disk.locks.remove_if(&self.path, |_, locks| locks.strong_count() == 0);
    }
}

impl DiskNode {
    /// Takes, changes or drops a lock, waiting for it if so asked.
    pub(super) async fn lock_now(self, lock: Lock, wait: bool) -> Result<(), Errno> {
        let (locks, mut pause) = (self.inode.locks(), FIRST_PAUSE);
        loop {
            let mut freed = pin!(locks.freed.notified());
            // Registered before it is tried, so that nothing that is given back is missed.
            freed.as_mut().enable();
            let (node, asked) = (self.clone(), lock.clone());
            match blocking(move || node.try_lock(&asked)).await? {
                Tried::Done => return Ok(()),
                Tried::Ours | Tried::Others if !wait => return Err(Errno::EAGAIN),
                Tried::Ours => freed.await,
                Tried::Others => {
                    let _ = tokio::time::timeout(pause, freed).await;
                    pause = LAST_PAUSE.min(pause * 2);
                }
            }
        }
    }

    fn try_lock(&self, lock: &Lock) -> Result<Tried, Errno> {
        let (inode, owner) = (&self.inode, (self.locker.number, lock.owner));
        let locks = inode.locks();
        let mut held = locks.held.lock();
        if held.ranges.conflict(&owner, lock, |owner| owner.1)?.is_some() {
            return Ok(Tried::Ours);
        }
        let mut after = held.ranges.clone();
        let freed = after.set(&owner, lock, RANGES)?;
        if lock.kind == LockKind::Unlock {
            if let Some(descriptor) = held.descriptors.get(&owner) {
                sys::lock(descriptor.fd.as_fd(), lock)?;
            }
        } else if inode.format == libc::S_IFREG && !self.ask_kernel(&mut held, owner, lock)? {
            return Ok(Tried::Others);
        }
        held.ranges = after;
        held.forget_idle(owner);
        let mut locked = self.locker.locked.lock();
        if held.ranges.holds(|(client, _)| *client == owner.0) {
            locked.insert(inode.key.path, locks.clone());
        } else {
            locked.remove(&inode.key.path);
        }
        drop((locked, held));
        if freed {
            locks.freed.notify_waiters();
        }
        Ok(Tried::Done)
    }

    /// Takes the lock from the kernel: whether no local process stands in the way. What may not be opened in the way
    /// that the kernel wants for such a lock is kept in the table alone.
    fn ask_kernel(&self, held: &mut Held, owner: Owner, lock: &Lock) -> Result<bool, Errno> {
        let descriptor = match held.descriptors.entry(owner) {
            Entry::Occupied(there) => there.into_mut(),
            Entry::Vacant(free) => match Descriptor::open(&self.inode) {
                Ok(descriptor) => free.insert(descriptor),
                Err(Errno::EAGAIN) => return Ok(false),
                Err(errno) => return Err(errno),
            },
        };
        let locked = match sys::lock(descriptor.fd.as_fd(), lock) {
            Ok(()) | Err(Errno::EBADF) => return Ok(true),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
            Err(errno) => Err(errno),
        };
        held.forget_idle(owner);
        locked
    }

    /// What stands in the way of `lock`.
    pub(super) fn conflict_now(&self, lock: &Lock) -> Result<Option<Lock>, Errno> {
        let owner = (self.locker.number, lock.owner);
        let held = self.inode.locks().held.lock();
        let known = held.ranges.conflict(&owner, lock, |owner| owner.1)?;
        if known.is_some() || lock.kind == LockKind::Unlock || self.inode.format != libc::S_IFREG {
            return Ok(known);
        }
        match held.descriptors.get(&owner) {
            Some(descriptor) => sys::conflict(descriptor.fd.as_fd(), lock),
            None => sys::conflict(Descriptor::open(&self.inode)?.fd.as_fd(), lock),
        }
    }
}

impl Held {
    /// Closes the descriptor of an owner who holds nothing.
    fn forget_idle(&mut self, owner: Owner) {
        if !self.ranges.holds(|held| *held == owner) {
            self.descriptors.remove(&owner);
        }
    }
}

impl Descriptor {
    /// Opens the file for locks of either kind, or of that kind for which this process may. Errors: `ENOLCK` if there
    /// are too many; `EAGAIN` while a local process has a lease on it.
    fn open(inode: &Arc<Inode>) -> Result<Self, Errno> {
        let disk = inode.disk.clone();
        let reach = inode.reach(false)?;
        if disk.lock_descriptors.fetch_add(1, Ordering::Relaxed) >= disk.options.descriptors {
            disk.lock_descriptors.fetch_sub(1, Ordering::Relaxed);
            return Err(Errno::ENOLCK);
        }
        let modes = [OFlags::RDWR, OFlags::RDONLY, OFlags::WRONLY];
        let mut opened = Err(Errno::EACCES);
        for mode in &modes[usize::from(disk.options.read_only)..] {
            opened = disk.patient(|| sys::reopen(&reach, *mode | OFlags::NONBLOCK));
            if !matches!(opened, Err(Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::ETXTBSY)) {
                break;
            }
        }
        match opened {
            Ok(fd) => Ok(Self { fd, disk }),
            Err(errno) => {
                disk.lock_descriptors.fetch_sub(1, Ordering::Relaxed);
                Err(errno)
            }
        }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.disk.lock_descriptors.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        for locks in std::mem::take(self.locked.get_mut()).into_values() {
            {
                let mut held = locks.held.lock();
                held.ranges.drop_all(|(client, _)| *client == self.number);
                held.descriptors.retain(|(client, _), _| *client != self.number);
            }
            locks.freed.notify_waiters();
        }
    }
}
