//! Locks on files of the disk, and this machine's own processes.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use fileserver::{Disk, DiskOptions};
use p9::Errno;
use p9::tree::{Lock, LockKind};

use crate::common::*;

const WRITE: LockKind = LockKind::Write;
const UNLOCK: LockKind = LockKind::Unlock;

fn lock(kind: LockKind, owner: u64) -> Lock {
    Lock { kind, start: 0, length: 10, owner, pid: 1 }
}

/// Somebody else on this machine, who has the file open.
struct Local(File);

impl Local {
    fn of(path: &Path) -> Self {
        Self(File::options().read(true).write(true).open(path).unwrap())
    }

    /// Takes (`F_WRLCK`) or drops (`F_UNLCK`) a lock on the first ten bytes, without waiting.
    fn try_lock(&self, kind: i32) -> bool {
        let flock = libc::flock { l_type: kind as i16, l_whence: 0, l_start: 0, l_len: 10, l_pid: 0 };
        // SAFETY: `F_OFD_SETLK` only reads the structure, which outlives the call.
        unsafe { libc::fcntl(self.0.as_raw_fd(), libc::F_OFD_SETLK, &raw const flock) == 0 }
    }
}

#[tokio::test]
async fn a_local_process_keeps_others_out_and_is_kept_out() {
    let (dir, root) = disk();
    put(&root, "f", "x").await.unwrap();
    let (node, local) = (walk(&root, "f").await.unwrap(), Local::of(&dir.path().join("f")));
    assert!(local.try_lock(libc::F_WRLCK));
    assert_eq!(node.lock(lock(WRITE, 1), false).await.err(), Some(Errno::EAGAIN));
    let met = node.conflicting_lock(lock(WRITE, 1)).await.unwrap().expect("the kernel tells");
    assert_eq!((met.kind, met.start, met.length), (WRITE, 0, 10));
    {
        let mut waits = pin!(node.lock(lock(WRITE, 1), true));
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut waits).await.is_err(), "it waits");
        assert!(local.try_lock(libc::F_UNLCK));
        waits.await.unwrap();
    }
    assert!(!local.try_lock(libc::F_WRLCK));
    // Another owner's end is nothing to it; its own is.
    node.lock(lock(UNLOCK, 2), false).await.unwrap();
    assert!(!local.try_lock(libc::F_WRLCK));
    drop((node, root));
    assert!(local.try_lock(libc::F_WRLCK), "a client that is gone holds nothing");
}

#[tokio::test]
async fn what_may_only_be_read_can_be_locked_by_those_who_use_the_tree() {
    let (dir, root) = disk();
    put(&root, "f", "x").await.unwrap();
    let read_only = Disk::open(dir.path(), DiskOptions::new([7; 32]).read_only(true)).unwrap();
    let (one, other) = (read_only.root(), read_only.root());
    let (one, other) = (walk(&one, "f").await.unwrap(), walk(&other, "f").await.unwrap());
    one.lock(lock(WRITE, 1), false).await.unwrap();
    assert_eq!(other.lock(lock(WRITE, 1), false).await.err(), Some(Errno::EAGAIN));
    assert!(Local::of(&dir.path().join("f")).try_lock(libc::F_WRLCK), "who may not write keeps nobody from it");
}

#[tokio::test]
async fn more_owners_than_there_are_descriptors_for_are_refused() {
    let (dir, root) = disk();
    put(&root, "f", "x").await.unwrap();
    let few = DiskOptions { descriptors: 16, ..DiskOptions::new([7; 32]) };
    let node = walk(&Disk::open(dir.path(), few).unwrap().root(), "f").await.unwrap();
    let read = |owner| lock(LockKind::Read, owner);
    for owner in 0..16 {
        node.lock(read(owner), false).await.unwrap();
    }
    assert_eq!(node.lock(read(16), false).await.err(), Some(Errno::ENOLCK));
    node.lock(lock(UNLOCK, 3), false).await.unwrap();
    node.lock(read(16), false).await.unwrap();
}
