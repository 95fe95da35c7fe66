//! What a message claims of its connection's fids, settled by the reader when it arrives.
//!
//! One match says which messages are barriers, which make a fid, and which are about two.

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard};

use super::fids::{Alone, Fids, Made, Shared, State};
use crate::Errno;
use crate::wire::T;

/// What a message claims.
pub(super) enum Claim {
    /// A fid, shared with others.
    Shared(Shared),
    /// A fid, alone.
    Alone(Alone),
    /// Two fids, each shared with others.
    Both(Shared, Shared),
    /// One fid alone, and another shared with others.
    AloneAnd(Alone, Shared),
    /// A fid that it makes, from another or from nothing.
    Make(Option<Result<Shared, Errno>>, Made),
}

/// The same once its turn has come.
pub(super) enum Held {
    Shared(OwnedRwLockReadGuard<State>),
    Alone(OwnedRwLockWriteGuard<State>),
    Both(OwnedRwLockReadGuard<State>, OwnedRwLockReadGuard<State>),
    AloneAnd(OwnedRwLockWriteGuard<State>, OwnedRwLockReadGuard<State>),
}

impl Claim {
    /// Queues `message` at its fids. Errors are the message's answer.
    pub(super) fn of(message: &T<'_>, fids: &Fids, most: usize) -> Result<Self, Errno> {
        Ok(match *message {
            T::Walk { fid, newfid, .. } if fid != newfid => {
                let made = fids.make(newfid, most)?;
                Self::Make(Some(fids.shared(fid)), made)
            }
            T::Xattrwalk { fid, newfid, .. } if fid == newfid => return Err(Errno::EINVAL),
            T::Xattrwalk { fid, newfid, .. } => {
                let made = fids.make(newfid, most)?;
                Self::Make(Some(fids.shared(fid)), made)
            }
            T::Attach { fid, .. } => Self::Make(None, fids.make(fid, most)?),
            T::Clunk { fid } | T::Remove { fid } => Self::Alone(fids.clunk(fid)?),
            T::Walk { fid, .. }
            | T::Lopen { fid, .. }
            | T::Lcreate { fid, .. }
            | T::Open { fid, .. }
            | T::Create { fid, .. }
            | T::Wstat { fid, .. }
            | T::Xattrcreate { fid, .. }
            | T::Setattr { fid, .. }
            | T::Lease { fid, .. }
            | T::Fsync { fid, .. } => Self::Alone(fids.alone(fid)?),
            T::Link { dfid: one, fid: other, .. }
            | T::Renameat { olddirfid: one, newdirfid: other, .. }
            | T::Rename2 { olddirfid: one, newdirfid: other, .. }
            | T::Copy { fid: one, tofid: other, .. } => Self::Both(fids.shared(one)?, fids.shared(other)?),
            // Into itself: it would wait for itself, too.
            T::Rename { fid, dfid, .. } if fid == dfid => return Err(Errno::EINVAL),
            T::Rename { fid, dfid, .. } => Self::AloneAnd(fids.alone(fid)?, fids.shared(dfid)?),
            T::Statfs { fid }
            | T::Symlink { fid, .. }
            | T::Readlink { fid }
            | T::Getattr { fid, .. }
            | T::Stat { fid }
            | T::Readdir { fid, .. }
            | T::Mkdir { dfid: fid, .. }
            | T::Mknod { dfid: fid, .. }
            | T::Unlinkat { dirfid: fid, .. }
            | T::Lock { fid, .. }
            | T::Getlock { fid, .. }
            | T::Readdirplus { fid, .. }
            | T::Fetch { fid, .. }
            | T::Allocate { fid, .. }
            | T::Seek { fid, .. }
            | T::Digest { fid, .. }
            | T::Append { fid, .. }
            | T::Read { fid, .. }
            | T::Write { fid, .. } => Self::Shared(fids.shared(fid)?),
            // Who the peer is was proven before. That nobody need authenticate in 9P is what diod answers, too, and
            // what its clients go on upon.
            T::Auth { .. } => return Err(Errno::ENOENT),
            // The reader answers these itself.
            T::Version { .. } | T::Flush { .. } | T::Session { .. } | T::Ack { .. } => return Err(Errno::EINVAL),
        })
    }
}
