//! What the connections of a process may hold together, and those of one peer.
//!
//! A connection takes from here what it holds of the process's memory: the bytes of large requests, from before they
//! are read until nobody has anything of them any more; those of large replies, until they are sent and, in a session,
//! acknowledged; requests under way; fids. Bytes wait for room, requests and fids without room are refused. No peer,
//! which is all connections of one key, gets more than half of anything: one that floods leaves the rest to others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::Who;

/// Requests and replies of fewer bytes than this are not counted by their bytes, but by their number.
pub(crate) const COUNTED: usize = 8 << 10;

/// How much the connections of a process may hold together. One peer may hold half of each.
#[derive(Clone, Debug)]
pub struct PoolLimits {
    /// Requests at once; one more is `EAGAIN`.
    pub requests: usize,
    /// Fids at once; one more is `EMFILE`.
    pub fids: usize,
    /// Bytes of large requests, and as many of large replies; past it they wait. An eighth more is for replies that may
    /// be long in coming, past which those are small.
    pub bytes: usize,
}

impl Default for PoolLimits {
    fn default() -> Self {
        Self { requests: 32 << 10, fids: 2 << 20, bytes: 256 << 20 }
    }
}

/// What connections hold together. Clones are the same.
#[derive(Clone, Debug)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: PoolLimits,
    all: Part,
    peers: Mutex<HashMap<Arc<str>, Weak<Part>>>,
}

/// What some of them hold.
#[derive(Debug)]
struct Part {
    requests: AtomicUsize,
    fids: AtomicUsize,
    asked: Arc<Semaphore>,
    answered: Arc<Semaphore>,
    /// For replies that may be long in coming.
    awaited: Arc<Semaphore>,
}

impl Part {
    fn new(bytes: usize) -> Self {
        let [asked, answered, awaited] = [bytes, bytes, bytes / 8].map(|bytes| Arc::new(Semaphore::new(bytes)));
        Self { requests: AtomicUsize::new(0), fids: AtomicUsize::new(0), asked, answered, awaited }
    }
}

impl Pool {
    /// One of its own.
    pub fn new(limits: PoolLimits) -> Self {
        let all = Part::new(limits.bytes);
        Self(Arc::new(Inner { limits, all, peers: Mutex::default() }))
    }

    /// The one that all connections of this process share, unless they are given another.
    pub fn of_process() -> Self {
        static SHARED: LazyLock<Pool> = LazyLock::new(|| Pool::new(PoolLimits::default()));
        SHARED.clone()
    }

    /// The share of the peer `who`.
    pub(crate) fn share(&self, who: &Who) -> Share {
        let mut peers = self.0.peers.lock();
        let known = peers.get(&who.key).and_then(Weak::upgrade);
        let own = known.unwrap_or_else(|| {
            let own = Arc::new(Part::new(self.0.limits.bytes / 2));
            peers.retain(|_, part| part.strong_count() > 0);
            peers.insert(who.key.clone(), Arc::downgrade(&own));
            own
        });
        Share { pool: self.0.clone(), own }
    }
}

/// What the connections of one peer hold, within what all do.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    pool: Arc<Inner>,
    own: Arc<Part>,
}

/// Bytes that are held, until this is dropped.
pub(crate) struct Held([OwnedSemaphorePermit; 2]);

impl Held {
    /// No more than `bytes` of them are held any more.
    pub(crate) fn shrink(&mut self, bytes: usize) {
        for permit in &mut self.0 {
            drop(permit.split(permit.num_permits().saturating_sub(bytes)));
        }
    }
}

impl Share {
    /// Waits until so many bytes of a request may be held.
    pub(crate) async fn asked(&self, bytes: usize) -> Option<Held> {
        self.hold(&self.own.asked, &self.pool.all.asked, bytes).await
    }

    /// The same, if they may be now.
    pub(crate) fn asked_now(&self, bytes: usize) -> Option<Held> {
        hold_now(&self.own.asked, &self.pool.all.asked, bytes)
    }

    /// So many bytes of a reply that may be long in coming, if they may be held until then.
    pub(crate) fn awaited(&self, bytes: usize) -> Option<Held> {
        hold_now(&self.own.awaited, &self.pool.all.awaited, bytes)
    }

    /// Waits until so many bytes of a reply may be held.
    pub(crate) async fn answered(&self, bytes: usize) -> Option<Held> {
        self.hold(&self.own.answered, &self.pool.all.answered, bytes).await
    }

    async fn hold(&self, own: &Arc<Semaphore>, all: &Arc<Semaphore>, bytes: usize) -> Option<Held> {
        // What can never be had is given all there is.
        let bytes = bytes.min(self.pool.limits.bytes / 2) as u32;
        let one = own.clone().acquire_many_owned(bytes).await.ok()?;
        Some(Held([one, all.clone().acquire_many_owned(bytes).await.ok()?]))
    }

    /// One more request is under way: whether that is one too many.
    pub(crate) fn begins(&self) -> bool {
        let [own, all] = [&self.own, &self.pool.all].map(|part| part.requests.fetch_add(1, Ordering::Relaxed));
        own >= self.pool.limits.requests / 2 || all >= self.pool.limits.requests
    }

    /// So many requests have ended.
    pub(crate) fn end(&self, count: usize) {
        for part in [&self.own, &self.pool.all] {
            part.requests.fetch_sub(count, Ordering::Relaxed);
        }
    }

    /// Whether there may be one more fid, which is then counted.
    pub(crate) fn takes_fid(&self) -> bool {
        let [own, all] = [&self.own, &self.pool.all].map(|part| part.fids.fetch_add(1, Ordering::Relaxed));
        let room = own < self.pool.limits.fids / 2 && all < self.pool.limits.fids;
        if !room {
            self.frees_fids(1);
        }
        room
    }

    /// So many fids are gone.
    pub(crate) fn frees_fids(&self, count: usize) {
        for part in [&self.own, &self.pool.all] {
            part.fids.fetch_sub(count, Ordering::Relaxed);
        }
    }
}

fn hold_now(own: &Arc<Semaphore>, all: &Arc<Semaphore>, bytes: usize) -> Option<Held> {
    let one = own.clone().try_acquire_many_owned(bytes as u32).ok()?;
    Some(Held([one, all.clone().try_acquire_many_owned(bytes as u32).ok()?]))
}

/// Room for the data of one reply, among what its connection, its peer and all may hold.
pub(crate) struct Room {
    pub(crate) own: Option<OwnedSemaphorePermit>,
    pub(crate) held: Option<Held>,
}

impl Room {
    /// The room for `bytes` of it; none for what is small.
    pub(crate) fn shrunk(mut self, bytes: usize) -> Option<Self> {
        if bytes < COUNTED {
            return None;
        }
        if let Some(own) = &mut self.own {
            drop(own.split(own.num_permits().saturating_sub(bytes)));
        }
        if let Some(held) = &mut self.held {
            held.shrink(bytes);
        }
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn who(key: &str) -> Who {
        Who { key: key.into(), ..Who::owner() }
    }

    fn pool() -> Pool {
        Pool::new(PoolLimits { requests: 4, fids: 4, bytes: 100 })
    }

    #[test]
    fn a_peer_has_half_whatever_the_number_of_its_connections() {
        let pool = pool();
        let (one, again, other) = (pool.share(&who("a")), pool.share(&who("a")), pool.share(&who("b")));
        let held = one.asked(40).now_or_never().flatten().unwrap();
        assert!(again.asked(20).now_or_never().is_none() && again.asked_now(20).is_none());
        assert!(again.answered(20).now_or_never().is_some(), "replies are counted apart");
        assert!(other.asked(50).now_or_never().is_some());
        drop(held);
        assert!(again.asked(50).now_or_never().is_some());
        assert_eq!([&one, &again, &again].map(Share::begins), [false, false, true]);
        again.end(1);
        assert!(!other.begins());
        assert_eq!([&one, &again, &again, &other].map(Share::takes_fid), [true, true, false, true]);
        one.frees_fids(1);
        assert!(again.takes_fid());
    }

    #[test]
    fn all_together_have_no_more_than_there_is() {
        let pool = pool();
        let shares = ["a", "b", "c"].map(|key| pool.share(&who(key)));
        let [mut one, _other] = [&shares[0], &shares[1]].map(|share| share.answered(50).now_or_never().unwrap());
        let mut third = Box::pin(shares[2].answered(30));
        assert!(third.as_mut().now_or_never().is_none());
        one.as_mut().unwrap().shrink(20);
        assert!(third.now_or_never().is_some());
        assert!(shares[2].answered(1000).now_or_never().is_none(), "it waits for as much as it may ever have");
        drop(one);
        assert!(shares[2].answered(1000).now_or_never().is_some());
    }
}
