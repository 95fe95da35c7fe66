//! Operations and open writers, which others' leases have to make way for.
//!
//! Begun by the disk tree in any task, and over when they are dropped. Until then nobody else is granted what they make
//! wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use p9::Errno;
use p9::handle::Token;
use p9::tree::LeaseKind;
use tokio::time::Instant;

use super::Leases;
use super::table::Whose;

impl Leases {
    /// Begins an operation that changes something, if nothing is leased; else it has to [`claim`](Self::claim).
    pub(crate) fn quick(self: &Arc<Self>) -> Option<Quick> {
        self.quick.fetch_add(1, Ordering::SeqCst);
        let quick = Quick(self.clone());
        self.is_quiet().then_some(quick)
    }

    /// Says that `client` is about to do to the inodes `keys` what leaves others no more than `keep` of them, and asks
    /// them for the rest.
    pub(crate) fn claim(self: &Arc<Self>, client: u64, keep: LeaseKind, keys: &[u64]) -> Claim {
        let id = self.id();
        for &key in keys {
            self.with(key, |entry| entry.claim(id, client, keep, None));
            self.ask(key, Whose::Others(client), keep);
        }
        Claim { leases: self.clone(), id, client, keep, keys: keys.into() }
    }

    /// Says that `client` opens the inode `key` for writing. As long as the token lives, others are granted nothing.
    pub(crate) fn writer(self: &Arc<Self>, client: u64, key: u64) -> Writer {
        let (id, shut) = (self.id(), Arc::new(AtomicBool::new(false)));
        self.with(key, |entry| entry.claim(id, client, LeaseKind::None, Some(shut.clone())));
        let claim = Claim { leases: self.clone(), id, client, keep: LeaseKind::None, keys: [key].into() };
        Writer(Arc::new(Writing { claim, shut }))
    }
}

/// An operation under way that began when nothing was leased.
pub(crate) struct Quick(Arc<Leases>);

impl Drop for Quick {
    fn drop(&mut self) {
        if self.0.quick.fetch_sub(1, Ordering::SeqCst) == 1 && !self.0.is_quiet() {
            self.0.drained.notify_waiters();
        }
    }
}

/// An operation that changes something, or is about to.
pub(crate) struct Claim {
    leases: Arc<Leases>,
    id: u64,
    client: u64,
    keep: LeaseKind,
    keys: Box<[u64]>,
}

impl Claim {
    /// Waits until it may be done: no client but its own holds more than it leaves to them.
    pub(crate) async fn settle(&self) {
        for &key in &self.keys {
            self.leases.settle(key, Whose::Others(self.client), self.keep).await;
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let now = Instant::now();
        // First: who links an entry afterwards and meets no claim knows that it was changed.
        self.leases.ended.fetch_add(1, Ordering::SeqCst);
        for &key in &self.keys {
            self.leases.with(key, |entry| entry.unclaim(self.id, now));
        }
    }
}

/// What an open writer holds; clones are the same writer.
#[derive(Clone)]
pub(crate) struct Writer(Arc<Writing>);

struct Writing {
    claim: Claim,
    shut: Arc<AtomicBool>,
}

impl Writer {
    /// Waits until it may be opened.
    pub(crate) async fn settle(&self) {
        self.0.claim.settle().await;
    }
}

impl Token for Writer {
    fn may_write(&self) -> Result<(), Errno> {
        if self.0.shut.load(Ordering::SeqCst) { Err(Errno::ESTALE) } else { Ok(()) }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let Claim { leases, client, keys, .. } = &self.claim;
        // With the last writer goes what kept others out while it was open.
        if let [key] = **keys
            && leases.is_sole(key)
        {
            leases.make_way(*client, key, true);
        }
    }
}
