//! The locks that a client may hold, so that they end with it whatever stands between this server and who keeps them.
//!
//! A disk frees by itself what a client held; to a namespace, or to another server behind this one, all clients of this
//! server are one. Noted by a request for a lock, before it is made; given back when the client is gone.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::tree::{Lock, LockKind};
use crate::{Errno, NodeRef};

/// Files and owners of locks in them, at once.
const MOST: usize = 16 << 10;

/// The locks of one client: which file, by its qid path, and whose.
#[derive(Default)]
pub(super) struct Locks(Mutex<HashMap<(u64, u64), NodeRef>>);

impl Locks {
    /// Takes or drops `lock` on `node`. Errors: those of the node; `ENOLCK` for one too many.
    pub(super) async fn lock(&self, node: &NodeRef, lock: Lock, wait: bool) -> Result<(), Errno> {
        let key = (node.qid().path, lock.owner);
        if lock.kind == LockKind::Unlock {
            let all = lock.start == 0 && lock.length == 0;
            node.lock(lock, wait).await?;
            if all {
                drop(self.0.lock().remove(&key));
            }
            return Ok(());
        }
        {
            let mut locks = self.0.lock();
            if locks.len() >= MOST && !locks.contains_key(&key) {
                return Err(Errno::ENOLCK);
            }
            // Before it is asked for: one that is cancelled may have been taken all the same.
            locks.entry(key).or_insert_with(|| node.clone());
        }
        node.lock(lock, wait).await
    }

    /// Gives all of them back.
    pub(super) async fn give_back(&self) {
        let held = std::mem::take(&mut *self.0.lock());
        give_back(held).await;
    }
}

async fn give_back(held: HashMap<(u64, u64), NodeRef>) {
    for ((_, owner), node) in held {
        let lock = Lock { kind: LockKind::Unlock, start: 0, length: 0, owner, pid: 0 };
        if let Err(errno) = node.lock(lock, false).await {
            tracing::debug!("giving back the locks of a client that has gone: {errno}");
        }
    }
}

impl Drop for Locks {
    fn drop(&mut self) {
        let held = std::mem::take(self.0.get_mut());
        if let (false, Ok(runtime)) = (held.is_empty(), Handle::try_current()) {
            runtime.spawn(give_back(held));
        }
    }
}
