//! Open files that outlive the restart of their server.
//!
//! What a server had open is gone when it is started anew. Whoever then asks something of an open file walks to it
//! again by its name, sees that it is the very file (`ESTALE` if not), opens it as it was, and asks once more. Made
//! when a file is opened, used by reads and writes, in the request's task. Invariant: what is asked again may be done
//! twice; an append may not, and is `EIO` then, and so is everything once locks were lost.

mod dir;

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use p9::{Digest, Errno, Handle, How, NodeRef, Reply, Stream, Want, Written};
use parking_lot::Mutex;

use crate::bridge::{is_lost, may_be_done};
use crate::locks::Locks;
use crate::table::{Inode, Table};

/// How often something is asked at most.
const TRIES: u32 = 3;
/// The modes of fallocate(2) that move what comes after: not to be done twice.
const MOVING: u32 = (libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE) as u32;

/// An open file that has offsets, or an open directory, somewhere that must be asked.
pub(crate) struct Lasting {
    inode: Arc<Inode>,
    table: Arc<Table>,
    locks: Arc<Locks>,
    /// How it is opened again.
    how: How,
    /// Held by whoever opens it again.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Clone)]
struct State {
    /// Where it was opened, if it was.
    node: Option<NodeRef>,
    handle: Handle,
    /// Counts how often it was opened again.
    times: u64,
    /// Whether locks were lost with a server.
    unlocked: bool,
}

/// Asks `$question` of the handle that there is, and again of another one if that is lost. What may be done by then,
/// and may not be done twice, is not: it ends with the error `$unproven`.
macro_rules! ask {
    ($self:ident, $unproven:expr, |$handle:ident| $question:expr) => {
        Reply::later(async move {
            let (mut tries, unproven): (u32, Option<Errno>) = (0, $unproven);
            loop {
                let State { handle: $handle, times, .. } = $self.now()?;
                let answer: Result<_, Errno> = async { $question.await }.await;
                tries += 1;
                match answer {
                    Err(errno) if is_lost(errno) && tries < TRIES => {
                        $self.open_again(times, errno).await?;
                        if let Some(errno) = unproven.filter(|_| may_be_done(errno)) {
                            return Err(errno);
                        }
                    }
                    answer => return answer,
                }
            }
        })
    };
}

impl Lasting {
    /// Over `handle`, opened as `how` at `node`; what does not seek, or need not be asked, stays what it is.
    pub(crate) fn over(
        (inode, table, locks): (Arc<Inode>, Arc<Table>, Arc<Locks>), node: Option<NodeRef>, handle: Handle, how: How,
    ) -> Handle {
        let is_dir = match &handle {
            Handle::Stream(stream) if stream.seekable() => false,
            Handle::Dir(_) => true,
            _ => return handle,
        };
        let how = How { truncate: false, excl: false, ..how };
        let state = Mutex::new(State { node, handle, times: 0, unlocked: false });
        let turn = tokio::sync::Mutex::default();
        let lasting = Arc::new(Self { inode, table, locks, how, turn, state });
        if is_dir { Handle::Dir(lasting) } else { Handle::Stream(lasting) }
    }

    fn now(&self) -> Result<State, Errno> {
        let state = self.state.lock().clone();
        if state.unlocked { Err(Errno::EIO) } else { Ok(state) }
    }

    /// Writes to `handle` what was held back since it was opened, and with `flush` does that, too. For whoever wrote it
    /// the write is over, so it is not done with the file opened anew: others may have been let in by then, for whom it
    /// would undo what they wrote. Errors: `ESTALE` then.
    pub(crate) async fn write_held(handle: &Handle, offset: u64, data: Bytes, flush: bool) -> Result<Written, Errno> {
        let write = async |handle: &Handle| match flush {
            true => handle.write_and_flush(offset, data.clone()).await,
            false => handle.write(offset, data.clone()).await,
        };
        let lasting = match handle {
            Handle::Stream(stream) => (&**stream as &dyn Any).downcast_ref::<Self>(),
            _ => None,
        };
        let Some(lasting) = lasting else { return write(handle).await };
        let State { handle, times, .. } = lasting.now()?;
        if times > 0 {
            return Err(Errno::ESTALE);
        }
        match write(&handle).await {
            Err(errno) if is_lost(errno) => {
                lasting.open_again(times, errno).await?;
                Err(Errno::ESTALE)
            }
            answer => answer,
        }
    }

    /// Opens the file again, if the handle that answered `errno`, when it had been opened so many `times`, has gone
    /// with its server. Errors: `errno` if it has not.
    async fn open_again(&self, times: u64, errno: Errno) -> Result<(), Errno> {
        let _turn = self.turn.lock().await;
        let State { node, times: now, .. } = self.now()?;
        if now != times {
            return Ok(());
        }
        // A server that is there may say the same of a file.
        if let Some(node) = node
            && !node.attr().await.is_err_and(is_lost)
        {
            return Err(errno);
        }
        if self.locks.any(self.inode.id) {
            self.state.lock().unlocked = true;
            return Err(Errno::EIO);
        }
        self.table.lost(&self.inode);
        let node = self.table.walk_to(&self.inode).await?;
        let handle = node.open_at(&[], self.how, Want::default()).await?.handle;
        *self.state.lock() = State { node: Some(node), handle, times: times + 1, unlocked: false };
        Ok(())
    }
}

impl Stream for Lasting {
    fn seekable(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        ask!(self, None, |handle| handle.read(offset, count))
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        ask!(self, self.how.append.then_some(Errno::EIO), |handle| handle.write(offset, data.clone()))
    }

    fn sync(&self, data_only: bool) -> Reply<'_, ()> {
        ask!(self, None, |handle| handle.sync(data_only))
    }

    fn flush(&self) -> Reply<'_, ()> {
        ask!(self, None, |handle| handle.flush())
    }

    fn write_and_flush(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        ask!(self, self.how.append.then_some(Errno::EIO), |handle| handle.write_and_flush(offset, data.clone()))
    }

    fn allocate(&self, mode: u32, offset: u64, length: u64) -> Reply<'_, ()> {
        ask!(self, (mode & MOVING != 0).then_some(Errno::EIO), |handle| handle.allocate(mode, offset, length))
    }

    /// What it is copied to may be lost, too: then it is read and written.
    fn copy<'a>(&'a self, offset: u64, to: &'a Handle, to_offset: u64, length: u64) -> Reply<'a, u64> {
        ask!(self, Some(Errno::EOPNOTSUPP), |handle| async {
            match to {
                Handle::Stream(stream) => match (&**stream as &dyn Any).downcast_ref::<Self>() {
                    Some(to) => handle.copy(offset, &to.now()?.handle, to_offset, length).await,
                    None => handle.copy(offset, to, to_offset, length).await,
                },
                _ => handle.copy(offset, to, to_offset, length).await,
            }
        })
    }

    fn digest(&self, offset: u64, count: u64) -> Reply<'_, Digest> {
        ask!(self, None, |handle| handle.digest(offset, count))
    }

    fn seek(&self, offset: u64, hole: bool) -> Reply<'_, u64> {
        ask!(self, None, |handle| handle.seek(offset, hole))
    }

    /// There is nothing to close at a server that has gone.
    fn close(&self) -> Reply<'_, ()> {
        let State { handle, .. } = self.state.lock().clone();
        Reply::later(async move {
            match handle.close().await {
                Err(errno) if is_lost(errno) => Ok(()),
                answer => answer,
            }
        })
    }
}
