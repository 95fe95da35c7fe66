//! Locks on files of the server's.
//!
//! One that is waited for is parked at the server, where that does so; another server is asked again, ever more rarely.
//! So is any, where very many are parked.

use std::time::Duration;

use super::node::Remote;
use crate::Errno;
use crate::tree::{Lock, LockKind};
use crate::wire::lock::{BLOCK, BLOCKED, GRACE, RDLCK, SUCCESS, UNLCK, WRLCK};
use crate::wire::{R, Str, T};

/// How soon a server that does not wait is asked again, and how rarely in the end.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(1);

impl Remote {
    /// Who asks, as the server is to know it: to a plain server both together say who, and both must be the same
    /// whenever the owner is.
    fn owner(&self, lock: &Lock) -> (u32, String) {
        let proc_id = if self.fid.link.ordered { lock.pid } else { (lock.owner ^ lock.owner >> 32) as u32 };
        (proc_id, format!("{:016x}", lock.owner))
    }

    pub(super) async fn lock_now(&self, lock: Lock, wait: bool) -> Result<(), Errno> {
        let (proc_id, client_id) = self.owner(&lock);
        let parked = if wait { self.fid.link.parked.try_acquire().ok() } else { None };
        let (flags, mut pause) = (if parked.is_some() { BLOCK } else { 0 }, FIRST_PAUSE);
        loop {
            let client_id = Str(client_id.as_bytes());
            let Lock { kind, start, length, .. } = lock;
            let fid = self.fid.number();
            let ask = T::Lock { fid, kind: to_wire(kind), flags, start, length, proc_id, client_id };
            let R::Lock { status } = self.fid.link.call(ask).await?.message()? else { return Err(Errno::EPROTO) };
            match status {
                SUCCESS => return Ok(()),
                BLOCKED | GRACE if wait => tokio::time::sleep(pause).await,
                BLOCKED => return Err(Errno::EAGAIN),
                _ => return Err(Errno::ENOLCK),
            }
            pause = LAST_PAUSE.min(pause * 2);
        }
    }

    pub(super) async fn conflict_now(&self, lock: Lock) -> Result<Option<Lock>, Errno> {
        let (proc_id, client_id) = self.owner(&lock);
        let Lock { kind, start, length, .. } = lock;
        let (fid, client_id) = (self.fid.number(), Str(client_id.as_bytes()));
        let ask = T::Getlock { fid, kind: to_wire(kind), start, length, proc_id, client_id };
        let answer = self.fid.link.call(ask).await?;
        let R::Getlock { kind, start, length, proc_id, client_id } = answer.message()? else {
            return Err(Errno::EPROTO);
        };
        let kind = match kind {
            RDLCK => LockKind::Read,
            WRLCK => LockKind::Write,
            UNLCK => return Ok(None),
            _ => return Err(Errno::EPROTO),
        };
        // What a server of ours calls it, else nothing that could be compared.
        let owner = std::str::from_utf8(client_id.0).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
        Ok(Some(Lock { kind, start, length, owner: owner.unwrap_or(0), pid: proc_id }))
    }
}

fn to_wire(kind: LockKind) -> u8 {
    match kind {
        LockKind::Read => RDLCK,
        LockKind::Write => WRLCK,
        LockKind::Unlock => UNLCK,
    }
}
