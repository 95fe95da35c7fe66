//! The leases that a connection's fids hold.
//!
//! Granted by a request that has its fid alone; given back by the reader, as soon as it is read and before anything that
//! waits for it, and with the fid. A break goes to the peer in the order of the replies, from whichever thread it comes.

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
pub(super) struct Leases(Mutex<HashMap<u32, Leased>>);

struct Leased {
    lease: Lease,
    /// What the peer may still keep of it: less once it was broken.
    left: Arc<AtomicU8>,
}

impl Leases {
    /// Grants `fid`, which stands for `file`, a lease of what can be had of `kind`, in place of the one that it has.
    pub(super) async fn grant(&self, fid: u32, file: &File, kind: u8, push: &Push) -> Result<Answer, Errno> {
        let want = LeaseKind::from_wire(kind).ok_or(Errno::EINVAL)?;
        if want == LeaseKind::None || self.0.lock().len() >= MOST {
            self.forget(fid);
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
        let _before = match granted {
            Some(lease) => self.0.lock().insert(fid, Leased { lease, left }),
            None => self.0.lock().remove(&fid),
        };
        Ok(R::Lease { kind: kind.to_wire() }.into())
    }

    /// Gives back all but `kind` of the lease of `fid`, if it has that much; else it is a new one that is asked for.
    pub(super) fn lower(&self, fid: u32, kind: u8) -> bool {
        let Some(kind) = LeaseKind::from_wire(kind) else { return false };
        let lowered = {
            let mut leases = self.0.lock();
            match leases.get_mut(&fid) {
                None => return false,
                Some(Leased { lease, left }) => {
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
            self.forget(fid);
        }
        true
    }

    /// The fid is gone, and its lease with it.
    pub(super) fn forget(&self, fid: u32) {
        let gone = self.0.lock().remove(&fid);
        drop(gone);
    }
}
