//! What is written to a file that was just made, held back until it is closed.
//!
//! A small file is made, written and closed. Under the lease that came with its making nobody else can have seen it, so
//! what is written stays here, and goes out together with what the closing asks. Filled by writes, on fuser's threads;
//! written out by a flush, by whatever else asks about the file, and by a task once somebody else wants to see it: only
//! then is the lease given back. Invariant: no answer about the file is given, and no lease on it given back, while
//! something is held.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use p9::tree::Lease;
use p9::{Attr, Errno, Handle};
use parking_lot::Mutex;
use tokio::runtime::Handle as Runtime;
use tokio::sync::oneshot;

use crate::begun::begin;
use crate::changes::Changes;
use crate::conflict;
use crate::table::{Inode, Table};

/// The most that is held of one file.
const EACH: usize = 64 << 10;
/// And of all files of a mount.
const ALL: usize = 16 << 20;
/// How long something is held of a file that stays open, at least: who looks at the server itself sees it then.
const LONG: Duration = Duration::from_millis(500);
/// How often it is looked for what was held that long.
const SWEEP: Duration = Duration::from_millis(500);

/// What a mount holds of all files.
pub(crate) struct Held {
    runtime: Runtime,
    state: Mutex<All>,
}

#[derive(Default)]
struct All {
    bytes: usize,
    /// Those of which something is held or was a while ago, with when that began; in that order.
    files: Vec<(Instant, Weak<Hold>)>,
}

/// What is held of one open file.
pub(crate) struct Hold {
    handle: Handle,
    inode: Arc<Inode>,
    /// Its attributes when it was made.
    made: Attr,
    table: Arc<Table>,
    changes: Arc<Changes>,
    all: Arc<Held>,
    /// Held by whoever writes out.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// None once it was broken, or is of no use any more.
    lease: Option<Lease>,
    offset: u64,
    data: BytesMut,
    /// Some of it is being written out.
    writing: bool,
    /// Whether something was written of which no flush has told.
    unflushed: bool,
    /// What went wrong when nobody waited for it.
    failed: Option<Errno>,
}

impl Held {
    pub(crate) fn new(runtime: Runtime) -> Arc<Self> {
        Arc::new(Self { runtime, state: Mutex::default() })
    }

    /// Counts `bytes` more that are held, if there may be so many; the first of them of the file `begins`.
    fn add(self: &Arc<Self>, bytes: usize, begins: Option<&Arc<Hold>>) -> bool {
        let mut all = self.state.lock();
        if all.bytes + bytes > ALL {
            return false;
        }
        all.bytes += bytes;
        if let Some(hold) = begins {
            if all.files.is_empty() {
                self.runtime.spawn(self.clone().sweep());
            }
            all.files.push((Instant::now(), Arc::downgrade(hold)));
        }
        true
    }

    fn let_go(&self, bytes: usize) {
        self.state.lock().bytes -= bytes;
    }

    /// Writes out what is held for long, until nothing is held.
    async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let (old, ends): (Vec<_>, _) = {
                let files = &mut self.state.lock().files;
                let old = files.partition_point(|(since, _)| since.elapsed() >= LONG);
                (files.drain(..old).filter_map(|(_, hold)| hold.upgrade()).collect(), files.is_empty())
            };
            join_all(old.iter().map(Hold::settle)).await;
            if ends {
                return;
            }
        }
    }
}

impl Hold {
    /// For the new file `inode`, `made` with these attributes and open as `handle`, under `lease`; the rest is of the mount.
    pub(crate) fn new(
        (inode, made, handle): (Arc<Inode>, Attr, Handle), lease: &Lease,
        (table, changes, all): (Arc<Table>, Arc<Changes>, Arc<Held>),
    ) -> Arc<Self> {
        let state = Mutex::new(State { lease: Some(lease.clone()), ..State::default() });
        let (turn, runtime) = (tokio::sync::Mutex::default(), all.runtime.clone());
        let hold = Arc::new(Self { handle, inode, made, table, changes, all, turn, state });
        hold.inode.holds(&hold);
        let weak = Arc::downgrade(&hold);
        lease.tell(Arc::new(move |_| {
            if let Some(hold) = weak.upgrade() {
                runtime.spawn(async move { hold.end().await });
            }
        }));
        hold
    }

    /// Holds `data`, written at `offset`, if that may be.
    pub(crate) fn add(self: &Arc<Self>, offset: u64, data: &[u8]) -> bool {
        let mut state = self.state.lock();
        let follows = state.data.is_empty() || offset == state.offset + state.data.len() as u64;
        let leased = state.lease.as_ref().is_some_and(Lease::holds);
        if !follows || !leased || state.failed.is_some() || state.data.len() + data.len() > EACH {
            return false;
        }
        let begins = state.data.is_empty();
        if !self.all.add(data.len(), begins.then_some(self)) {
            return false;
        }
        if begins {
            state.offset = offset;
        }
        state.data.extend_from_slice(data);
        true
    }

    /// Whether something is held, or being written out.
    pub(crate) fn is_full(&self) -> bool {
        let state = self.state.lock();
        state.writing || !state.data.is_empty()
    }

    /// Writes out what is held. What goes wrong is told by the next write, flush or fsync.
    pub(crate) async fn settle(self: &Arc<Self>) {
        self.write_out(false).await;
    }

    /// The same, and holds nothing any more.
    pub(crate) async fn end(self: &Arc<Self>) {
        let lease = self.state.lock().lease.take();
        self.settle().await;
        drop(lease);
    }

    /// The same for somebody who waits for what goes wrong.
    pub(crate) async fn settled(self: &Arc<Self>) -> Result<(), Errno> {
        self.write_out(false).await;
        self.state.lock().failed.take().map_or(Ok(()), Err)
    }

    /// Writes out what is held, and says what is known to have gone wrong.
    pub(crate) async fn flush(self: &Arc<Self>) -> Result<(), Errno> {
        self.write_out(true).await;
        let (failed, unflushed) = {
            let mut state = self.state.lock();
            (state.failed.take(), std::mem::take(&mut state.unflushed))
        };
        match failed {
            Some(errno) => Err(errno),
            None if unflushed => self.handle.flush().await,
            None => Ok(()),
        }
    }

    /// Writes what is held; with `flush`, that goes along. In a task of its own: what was written by one program is not lost
    /// if another gives up that only looks at the file.
    async fn write_out(self: &Arc<Self>, flush: bool) {
        if !self.is_full() {
            return;
        }
        let (hold, (told, done)) = (self.clone(), oneshot::channel());
        begin(&self.all.runtime, async move {
            let _turn = hold.turn.lock().await;
            hold.write_now(flush).await;
            _ = told.send(());
        })
        .detach();
        if done.await.is_err() {
            self.state.lock().failed.get_or_insert(Errno::EIO);
        }
    }

    /// The same. Only for whoever has the turn.
    async fn write_now(&self, flush: bool) {
        let (mut offset, mut data) = {
            let mut state = self.state.lock();
            state.writing = !state.data.is_empty();
            (state.offset, std::mem::take(&mut state.data).freeze())
        };
        let size = data.len();
        let mut written = self.write(&mut offset, &mut data, flush).await;
        if written == Err(Errno::ESTALE) {
            // The server has gone on without it.
            written = conflict::keep(&self.table, &self.changes, (&self.inode, &self.made), offset, data).await;
        }
        if size > 0 {
            // What was asked for meanwhile is old.
            self.inode.wrote(0);
            self.changes.file(self.inode.qid_path);
        }
        let mut state = self.state.lock();
        state.writing = false;
        if let Err(errno) = written {
            state.failed.get_or_insert(errno);
        }
        state.unflushed |= size > 0 && !(flush && written.is_ok());
        drop(state);
        self.all.let_go(size);
    }

    /// Writes `data` at `offset`; what is left of it is what was not written.
    async fn write(&self, offset: &mut u64, data: &mut Bytes, flush: bool) -> Result<(), Errno> {
        while !data.is_empty() {
            let written = match flush {
                true => self.handle.write_and_flush(*offset, data.clone()).await?,
                false => self.handle.write(*offset, data.clone()).await?,
            };
            let count = (written.count as usize).min(data.len());
            if count == 0 {
                return Err(Errno::EIO);
            }
            *offset += count as u64;
            *data = data.slice(count..);
        }
        Ok(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.all.let_go(self.state.get_mut().data.len());
    }
}
