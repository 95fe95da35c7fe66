//! A lease on a directory, and what of it is left.
//!
//! It may be broken while the directory is still being listed: then it is given back at once, since nobody has been told
//! anything that would have to be taken back first. Afterwards the listing is told of a break, and gives it back itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use p9::tree::{Lease, LeaseKind, OnBreak};

/// A lease on a directory.
pub(crate) struct Leash {
    lease: Lease,
    left: Arc<AtomicU8>,
}

impl Leash {
    /// Breaks of `lease` are answered from now on.
    pub(crate) fn new(lease: Lease) -> Self {
        let left = Arc::new(AtomicU8::new(lease.kind.to_wire()));
        // Not the lease itself, which owns whoever listens.
        let (guard, less) = (Arc::downgrade(&lease.guard), left.clone());
        lease.tell(Arc::new(move |keep: LeaseKind| {
            less.fetch_min(keep.to_wire(), Ordering::SeqCst);
            if let Some(guard) = guard.upgrade() {
                guard.keep(keep);
            }
        }));
        Self { lease, left }
    }

    /// `on_break` answers breaks from now on: at once, if there was one.
    pub(crate) fn listen(&self, on_break: OnBreak) {
        let (less, told) = (self.left.clone(), on_break.clone());
        self.lease.tell(Arc::new(move |keep: LeaseKind| {
            less.fetch_min(keep.to_wire(), Ordering::SeqCst);
            told(keep);
        }));
        if self.is_broken() {
            on_break(self.left());
        }
    }

    fn left(&self) -> LeaseKind {
        LeaseKind::from_wire(self.left.load(Ordering::SeqCst)).unwrap_or_default()
    }

    /// Whether this much may be kept.
    pub(crate) fn holds(&self, kind: LeaseKind) -> bool {
        self.left() >= kind && self.lease.holds()
    }

    /// Whether some of what it let be kept no longer may.
    pub(crate) fn is_broken(&self) -> bool {
        self.left() < self.lease.kind
    }

    /// Gives back all but `keep`.
    pub(crate) fn let_go(&self, keep: LeaseKind) {
        self.lease.keep(keep);
    }
}
