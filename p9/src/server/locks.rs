//! The locks that a client may hold, so that they end with it whatever stands between this server and who keeps them.
//!
//! A disk frees by itself what a client held; to a namespace, or to another server behind this one, all clients of this
//! server are one. Noted by a request for a lock, before it is made; given back when the client is gone. A request that
//! is dropped may still be taking its lock elsewhere: it is seen to its end by a task of its own, which holds the
//! notes. Invariant: nothing is given back for good while a lock is being taken.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tracing::Instrument;

use crate::cancel::{self, Cancel};
use crate::tree::{Lock, LockKind};
use crate::{Errno, NodeRef};

/// Files and owners of locks in them, at once.
const MOST: usize = 16 << 10;

/// The locks of one client.
#[derive(Default)]
pub(super) struct Locks(Arc<Notes>);

/// Which file, by its qid path, and whose.
type Key = (u64, u64);

/// What may be held. Dropping the last reference gives it back.
#[derive(Default)]
struct Notes(Mutex<HashMap<Key, Note>>);

/// The locks of one owner in one file.
struct Note {
    node: NodeRef,
    /// How many were asked for so far, and how many of those requests have ended.
    asked: u64,
    ended: u64,
}

/// A lock that is being taken.
struct Taking {
    notes: Arc<Notes>,
    key: Key,
}

/// Asks an operation to end, if it goes on by then.
struct EndsWithThis(Cancel);

impl Locks {
    /// Takes or drops `lock` on `node`. Errors: those of the node; `ENOLCK` for one too many.
    pub(super) async fn lock(&self, node: &NodeRef, lock: Lock, wait: bool) -> Result<(), Errno> {
        let key = (node.qid().path, lock.owner);
        if lock.kind != LockKind::Unlock {
            return take(Taking::begin(&self.0, key, node)?, node.clone(), lock, wait).await;
        }
        let (all, before) = (lock.start == 0 && lock.length == 0, self.0.asked(key));
        node.lock(lock, wait).await?;
        if all {
            self.0.forget(key, before);
        }
        Ok(())
    }

    /// Gives all of them back. Nothing may be under way.
    pub(super) async fn give_back(&self) {
        let held = std::mem::take(&mut *self.0.0.lock());
        give_back(held).await;
    }
}

/// Takes a lock; where that has to be waited for it goes on, if this is dropped, until it is known that none was taken
/// or that one is held.
async fn take(taking: Taking, node: NodeRef, lock: Lock, wait: bool) -> Result<(), Errno> {
    let cancel = Cancel::default();
    let ends = EndsWithThis(cancel.clone());
    let mut work = Box::pin(async move {
        let _taking = taking;
        cancel.run(node.lock(lock, wait)).await
    });
    if let Poll::Ready(answer) = poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
        return answer;
    }
    let _hold = cancel::hold();
    let mut work = tokio::spawn(work.in_current_span());
    let answer = tokio::select! {
        biased;
        answer = &mut work => answer,
        () = cancel::asked() => {
            drop(ends);
            work.await
        }
    };
    answer.unwrap_or(Err(Errno::EIO))
}

impl Drop for EndsWithThis {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

impl Taking {
    /// Noted before it is asked for: one that is cancelled may have been taken all the same.
    fn begin(notes: &Arc<Notes>, key: Key, node: &NodeRef) -> Result<Self, Errno> {
        let mut noted = notes.0.lock();
        if noted.len() >= MOST && !noted.contains_key(&key) {
            return Err(Errno::ENOLCK);
        }
        noted.entry(key).or_insert_with(|| Note { node: node.clone(), asked: 0, ended: 0 }).asked += 1;
        Ok(Self { notes: notes.clone(), key })
    }
}

impl Drop for Taking {
    fn drop(&mut self) {
        if let Some(note) = self.notes.0.lock().get_mut(&self.key) {
            note.ended += 1;
        }
    }
}

impl Notes {
    /// How many locks were asked for, if no such request is under way.
    fn asked(&self, key: Key) -> Option<u64> {
        self.0.lock().get(&key).filter(|note| note.asked == note.ended).map(|note| note.asked)
    }

    /// Nothing is held any more, unless a lock was asked for since there were `before`: then nobody knows which of the
    /// two came first.
    fn forget(&self, key: Key, before: Option<u64>) {
        let mut noted = self.0.lock();
        let gone = noted.get(&key).is_some_and(|note| Some(note.asked) == before).then(|| noted.remove(&key));
        drop((noted, gone));
    }
}

async fn give_back(held: HashMap<Key, Note>) {
    for ((_, owner), Note { node, .. }) in held {
        let lock = Lock { kind: LockKind::Unlock, start: 0, length: 0, owner, pid: 0 };
        if let Err(errno) = node.lock(lock, false).await {
            tracing::debug!("giving back the locks of a client that has gone: {errno}");
        }
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        let held = std::mem::take(self.0.get_mut());
        if let (false, Ok(runtime)) = (held.is_empty(), Handle::try_current()) {
            runtime.spawn(give_back(held));
        }
    }
}
