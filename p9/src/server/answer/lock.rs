//! Locks: who a client says holds them, and how their outcome is told.
//!
//! A lock that is waited for is one parked request, which a flush frees.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::{Answer, Fields};
use crate::server::connection::Context;
use crate::tree::{Lock, LockKind};
use crate::wire::lock::{BLOCK, BLOCKED, ERROR, RDLCK, RECLAIM, SUCCESS, UNLCK, WRLCK};
use crate::wire::{Dialect, R, Str, T};
use crate::{Errno, NodeRef};

/// Takes or drops a lock on `node`.
pub(super) async fn lock(context: &Context, node: &NodeRef, message: &T<'_>) -> Result<Answer, Errno> {
    let T::Lock { kind, flags, start, length, proc_id, client_id, .. } = *message else { return Err(Errno::EINVAL) };
    if flags & !(BLOCK | RECLAIM) != 0 {
        return Err(Errno::EINVAL);
    }
    let owner = owner(context, proc_id, client_id);
    let lock = Lock { kind: kind_of(kind)?, start, length, owner, pid: proc_id };
    lock.range()?;
    let status = match context.locks.lock(node, lock, flags & BLOCK != 0).await {
        Ok(()) => SUCCESS,
        Err(Errno::EAGAIN) => BLOCKED,
        Err(Errno::ENOLCK) => ERROR,
        Err(errno) => return Err(errno),
    };
    Ok(R::Lock { status }.into())
}

/// A lock that stands in the way; or the one that was asked about, which then is free.
pub(super) async fn conflict(context: &Context, node: &NodeRef, message: &T<'_>) -> Result<Answer, Errno> {
    let T::Getlock { kind, start, length, proc_id, client_id, .. } = *message else { return Err(Errno::EINVAL) };
    let owner = owner(context, proc_id, client_id);
    let kind = match kind_of(kind)? {
        // Linux's client says so whatever its program asks: any lock there is stands in the way of something.
        LockKind::Unlock => LockKind::Write,
        kind => kind,
    };
    let lock = Lock { kind, start, length, owner, pid: proc_id };
    lock.range()?;
    let answer = match node.conflicting_lock(lock).await? {
        None => Fields::whole(&R::Getlock { kind: UNLCK, start, length, proc_id, client_id }),
        Some(Lock { kind, start, length, owner, pid }) => {
            let kind = if kind == LockKind::Write { WRLCK } else { RDLCK };
            let client_id = format!("{owner:016x}");
            let client_id = Str(client_id.as_bytes());
            Fields::whole(&R::Getlock { kind, start, length, proc_id: pid, client_id })
        }
    };
    Ok(answer.into())
}

fn kind_of(kind: u8) -> Result<LockKind, Errno> {
    match kind {
        RDLCK => Ok(LockKind::Read),
        WRLCK => Ok(LockKind::Write),
        UNLCK => Ok(LockKind::Unlock),
        _ => Err(Errno::EINVAL),
    }
}

/// The owner, another for each client: what is below a namespace knows of one alone. In our dialect `client_id` alone
/// says who, and `proc_id` is there to be shown.
fn owner(context: &Context, proc_id: u32, Str(client_id): Str<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    context.who.client.hash(&mut hasher);
    client_id.hash(&mut hasher);
    if context.dialect != Dialect::Slashn {
        proc_id.hash(&mut hasher);
    }
    hasher.finish()
}
