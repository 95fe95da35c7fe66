//! The leases that a connection's fids hold.
//!
//! Granted by a request that has its fid alone; given back by the reader, as soon as it is read and before anything
//! that waits for it, and with the fid. A break goes to the peer in the order of the replies, from whichever thread it
//! comes. Invariant: a number of a fid is one place in the table from the first Tlease after it was made until the
//! clunk that ends it arrives; what is granted to a place that has gone is given back at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;

use super::answer::Answer;
use super::fids::File;
use super::requests::Push;
use crate::Errno;
use crate::tree::{Lease, LeaseKind};
use crate::wire::R;

/// Leases at once; a request for one more is granted nothing.
const MOST: usize = 16 << 10;

/// The leases of one connection, by fid.
#[derive(Default)]
pub(super) struct Leases {
    places: Mutex<HashMap<u32, Place>>,
    /// As many clones as there are leases.
    count: Arc<()>,
}

/// Where the lease of one fid is kept, whatever has that number later.
#[derive(Clone, Default)]
pub(super) struct Place(Arc<Mutex<Kept>>);

#[derive(Default)]
struct Kept {
    leased: Option<Leased>,
    /// The fid has gone.
    gone: bool,
}

struct Leased {
    lease: Lease,
    /// What the peer may still keep of it: less once it was broken.
    left: Arc<AtomicU8>,
    _counted: Arc<()>,
}

impl Leases {
    /// The place of `fid`, to be asked for when a request for a lease arrives.
    pub(super) fn place(&self, fid: u32) -> Place {
        self.places.lock().entry(fid).or_default().clone()
    }

    /// Grants `fid`, which stands for `file`, a lease of what can be had of `kind`, in place of the one that it has.
    pub(super) async fn grant(
        &self, fid: u32, place: Place, file: &File, kind: u8, push: &Push,
    ) -> Result<Answer, Errno> {
        let want = LeaseKind::from_wire(kind).ok_or(Errno::EINVAL)?;
        if want == LeaseKind::None || Arc::strong_count(&self.count) > MOST {
            place.put(None);
            return Ok(R::Lease { kind: LeaseKind::None.to_wire() }.into());
        }
        let (push, left) = (push.clone(), Arc::new(AtomicU8::new(kind)));
        let broken = left.clone();
        let on_break = Arc::new(move |keep: LeaseKind| {
            broken.fetch_min(keep.to_wire(), Ordering::SeqCst);
            push.send(&R::Break { fid, keep: keep.to_wire() });
        });
        let granted = file.node.lease(want, on_break).await?;
        let kind = granted.as_ref().map_or(LeaseKind::None, |lease| lease.kind);
        // The one that it had goes only now, so that nothing comes between.
        place.put(granted.map(|lease| Leased { lease, left, _counted: self.count.clone() }));
        Ok(R::Lease { kind: kind.to_wire() }.into())
    }

    /// Gives back all but `kind` of the lease of `fid`, if it has that much; else it is a new one that is asked for.
    pub(super) fn lower(&self, fid: u32, kind: u8) -> bool {
        let Some(kind) = LeaseKind::from_wire(kind) else { return false };
        let Some(place) = self.places.lock().get(&fid).cloned() else { return false };
        let lowered = {
            let mut kept = place.0.lock();
            match &mut kept.leased {
                None => return false,
                Some(Leased { lease, left, .. }) => {
                    if lease.kind < kind || left.load(Ordering::SeqCst) < kind.to_wire() {
                        return false;
                    }
                    lease.kind = kind;
                    lease.clone()
                }
            }
        };
        lowered.keep(kind);
        if kind == LeaseKind::None {
            place.put(None);
        }
        true
    }

    /// The fid goes, and its lease with it. Called when what ends it arrives.
    pub(super) fn forget(&self, fid: u32) {
        let gone = self.places.lock().remove(&fid);
        if let Some(Place(kept)) = gone {
            let lease = {
                let mut kept = kept.lock();
                kept.gone = true;
                kept.leased.take()
            };
            drop(lease);
        }
    }
}

impl Place {
    /// Keeps `leased` and nothing else, unless the fid has gone.
    fn put(&self, leased: Option<Leased>) {
        let mut kept = self.0.lock();
        let spare = if kept.gone { leased } else { std::mem::replace(&mut kept.leased, leased) };
        drop(kept);
        // Given back outside the lock.
        drop(spare);
    }
}
