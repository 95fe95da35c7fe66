//! Locks, as fcntl(2) has them: between owners of one client, and between clients.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use p9::cancel::Cancel;
use p9::tree::{Lock, LockKind};
use p9::{Errno, NodeRef};

use super::writing::put;
use super::{name, walk};

const READ: LockKind = LockKind::Read;
const WRITE: LockKind = LockKind::Write;
const UNLOCK: LockKind = LockKind::Unlock;

fn lock(kind: LockKind, owner: u64, start: u64, length: u64) -> Lock {
    Lock { kind, start, length, owner, pid: 1_000 + owner as u32 }
}

pub(super) async fn locks(dir: &NodeRef) {
    put(dir, "lock", "x").await;
    let node = walk(dir, "lock").await.unwrap();
    ranges(&node).await;
    waiting(&node).await;
    // What is no file can be locked, too, as flock(2) does.
    dir.lock(lock(WRITE, 1, 0, 0), false).await.unwrap();
    assert_eq!(dir.lock(lock(READ, 2, 0, 0), false).await.err(), Some(Errno::EAGAIN));
    dir.lock(lock(UNLOCK, 1, 0, 0), false).await.unwrap();
    dir.remove(name("lock"), false).await.unwrap();
}

async fn ranges(node: &NodeRef) {
    node.lock(lock(READ, 1, 0, 10), false).await.unwrap();
    node.lock(lock(READ, 2, 5, 0), false).await.expect("shared locks may overlap");
    assert_eq!(node.lock(lock(WRITE, 2, 9, 1), false).await.err(), Some(Errno::EAGAIN), "an exclusive one may not");
    node.lock(lock(WRITE, 2, 10, 0), false).await.expect("an owner's own locks are changed");
    let met = node.conflicting_lock(lock(READ, 1, 0, 0)).await.unwrap().expect("there is one");
    assert_eq!((met.kind, met.start, met.length, met.pid), (WRITE, 10, 0, 1_002), "it says what, and who");
    assert_eq!(node.conflicting_lock(lock(READ, 1, 0, 10)).await.unwrap(), None);
    assert_eq!(node.conflicting_lock(lock(WRITE, 2, 0, 5)).await.unwrap().map(|met| met.pid), Some(1_001));
    // Of a range, the middle is given back.
    node.lock(lock(UNLOCK, 2, 20, 5), false).await.unwrap();
    node.lock(lock(WRITE, 1, 20, 5), false).await.unwrap();
    assert_eq!(node.lock(lock(WRITE, 1, 20, 6), false).await.err(), Some(Errno::EAGAIN));
    for owner in [1, 2] {
        node.lock(lock(UNLOCK, owner, 0, 0), false).await.unwrap();
    }
    node.lock(lock(WRITE, 3, 0, 0), false).await.expect("nothing is held any more");
    node.lock(lock(UNLOCK, 3, 0, 0), false).await.unwrap();
    assert_eq!(node.lock(lock(READ, 1, 1 << 63, 1), false).await.err(), Some(Errno::EINVAL));
    assert_eq!(node.lock(lock(READ, 1, 1, u64::MAX), false).await.err(), Some(Errno::EOVERFLOW));
}

async fn waiting(node: &NodeRef) {
    node.lock(lock(WRITE, 1, 0, 0), false).await.unwrap();
    let mut waits = pin!(node.lock(lock(WRITE, 2, 0, 1), true));
    stays(&mut waits).await;
    node.attr().await.expect("all else goes on meanwhile");
    node.lock(lock(UNLOCK, 1, 0, 0), false).await.unwrap();
    waits.await.expect("what is given back is had by who waits");
    let cancel = Cancel::default();
    let mut waits = pin!(cancel.run(node.lock(lock(WRITE, 1, 0, 1), true)));
    stays(&mut waits).await;
    cancel.cancel();
    assert_eq!(waits.await.err(), Some(Errno::EINTR), "who gives up has nothing");
    node.lock(lock(UNLOCK, 2, 0, 0), false).await.unwrap();
    assert_eq!(node.conflicting_lock(lock(WRITE, 3, 0, 0)).await.unwrap(), None);
}

/// Makes sure that `waits` has been asked for, and is not answered.
async fn stays<T>(waits: &mut (impl Future<Output = T> + Unpin)) {
    assert!(tokio::time::timeout(Duration::from_millis(100), waits).await.is_err(), "it waits");
}

/// Checks what `one` and `other`, two clients that see the same directory, keep from each other; `one` goes.
pub async fn locks_of_clients(one: NodeRef, other: NodeRef) {
    put(&one, "lock", "x").await;
    let (mine, theirs) = (walk(&one, "lock").await.unwrap(), walk(&other, "lock").await.unwrap());
    // Owners of two clients are two owners, whatever they are called.
    mine.lock(lock(WRITE, 1, 0, 10), false).await.unwrap();
    assert_eq!(theirs.lock(lock(READ, 1, 9, 1), false).await.err(), Some(Errno::EAGAIN));
    assert_eq!(theirs.conflicting_lock(lock(READ, 1, 9, 1)).await.unwrap().map(|met| met.start), Some(0));
    theirs.lock(lock(WRITE, 1, 10, 0), false).await.unwrap();
    theirs.lock(lock(UNLOCK, 1, 0, 0), false).await.unwrap();
    let mut waits = pin!(theirs.lock(lock(WRITE, 1, 0, 0), true));
    stays(&mut waits).await;
    drop((mine, one));
    waits.await.expect("what a client held is free when it has gone");
    other.remove(name("lock"), false).await.unwrap();
}
