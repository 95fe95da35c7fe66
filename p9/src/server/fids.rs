//! The fids of a connection, and the order of what is done to them.
//!
//! A fid is a fair read-write lock around its state: a barrier takes it alone, everything else shares it, and both are
//! queued by the reader in order of arrival, before any of them runs. That is the whole of the ordering rule. The lock
//! is held while the request runs: it is the request's place in the fid's queue, and guards nothing else.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use ahash::HashMap;
use parking_lot::Mutex;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};
use tokio::task::coop::unconstrained;

use super::legacy::Extra;
use super::pool::Share;
use crate::{Attr, Errno, Handle, NameBuf, NodeRef};

/// What a fid stands for.
#[derive(Default)]
pub(super) enum State {
    /// The walk or attach that makes it has not ended.
    #[default]
    Coming,
    /// What made it failed.
    Poisoned(Errno),
    /// A file.
    File(Box<File>),
}

/// A file that a fid stands for.
pub(super) struct File {
    pub(super) node: NodeRef,
    pub(super) place: Place,
    pub(super) open: Option<Handle>,
    /// Whether it was opened to append.
    pub(super) appends: bool,
    /// What 9P2000 keeps with it while it is open.
    pub(super) extra: Option<Box<Extra>>,
    /// What the walk to it met, until the getattr takes it that came along with the walk.
    met: Mutex<Option<Box<Attr>>>,
}

impl File {
    pub(super) fn new(node: NodeRef, place: Place) -> Self {
        Self { node, place, open: None, appends: false, extra: None, met: Mutex::default() }
    }

    /// The same, with the attributes that the walk to it met.
    pub(super) fn with(mut self, met: Option<Attr>) -> Self {
        self.met = Mutex::new(met.map(Box::new));
        self
    }

    /// What the walk to it met, once.
    pub(super) fn take_met(&self) -> Option<Attr> {
        self.met.lock().take().map(|met| *met)
    }

    /// Returns once what was written is safe.
    pub(super) async fn sync(&self, data_only: bool) -> Result<(), Errno> {
        match &self.open {
            Some(open) if !matches!(open, Handle::Dir(_)) => open.sync(data_only).await,
            _ => self.node.sync().await,
        }
    }
}

/// How a file was reached: what `..` needs.
#[derive(Clone)]
pub(super) struct Place {
    /// What was attached to.
    pub(super) root: NodeRef,
    /// The names from there, the last first.
    pub(super) path: Option<Arc<Link>>,
    /// Whether links on the way are followed: 9P2000 has none.
    pub(super) follows: bool,
}

/// One name of a path, and those before it.
pub(super) struct Link {
    pub(super) name: NameBuf,
    pub(super) before: Option<Arc<Link>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        // One after another: a path may be deeper than the stack.
        let mut before = self.before.take();
        while let Some(mut link) = before.and_then(Arc::into_inner) {
            before = link.before.take();
        }
    }
}

impl State {
    /// The file. Errors: what the fid's walk failed with; `EBADF` for a fid that never was.
    pub(super) fn file(&self) -> Result<&File, Errno> {
        match self {
            Self::File(file) => Ok(file),
            Self::Poisoned(errno) => Err(*errno),
            Self::Coming => Err(Errno::EBADF),
        }
    }

    /// The file, to be changed.
    pub(super) fn file_mut(&mut self) -> Result<&mut File, Errno> {
        match self {
            Self::File(file) => Ok(file),
            Self::Poisoned(errno) => Err(*errno),
            Self::Coming => Err(Errno::EBADF),
        }
    }
}

pub(super) type Fid = Arc<RwLock<State>>;

/// A place in a fid's queue: the turn has come, or will.
pub(super) enum Turn<G> {
    Now(G),
    Later(Pin<Box<dyn Future<Output = G> + Send>>),
}

/// A turn that shares the fid.
pub(super) type Shared = Turn<OwnedRwLockReadGuard<State>>;
/// A turn that has the fid alone.
pub(super) type Alone = Turn<OwnedRwLockWriteGuard<State>>;

impl<G> Turn<G> {
    /// Waits for it.
    pub(super) async fn come(self) -> G {
        match self {
            Self::Now(guard) => guard,
            Self::Later(turn) => turn.await,
        }
    }
}

/// The fids of one connection.
pub(super) struct Fids {
    all: Mutex<HashMap<u32, Fid>>,
    share: Share,
}

impl Fids {
    pub(super) fn new(share: Share) -> Self {
        Self { all: Mutex::default(), share }
    }

    pub(super) fn clear(&self) {
        // Dropped outside the lock: closing files may take a while.
        let gone = std::mem::take(&mut *self.all.lock());
        self.share.frees_fids(gone.len());
        drop(gone);
    }

    fn find(&self, fid: u32) -> Result<Fid, Errno> {
        self.all.lock().get(&fid).cloned().ok_or(Errno::EBADF)
    }

    /// Queues a request that shares `fid`.
    pub(super) fn shared(&self, fid: u32) -> Result<Shared, Errno> {
        let fid = self.find(fid)?;
        match fid.clone().try_read_owned() {
            Ok(guard) => Ok(Turn::Now(guard)),
            Err(_) => Ok(queue(fid.read_owned())),
        }
    }

    /// Queues a request that has `fid` alone.
    pub(super) fn alone(&self, fid: u32) -> Result<Alone, Errno> {
        self.find(fid).map(alone)
    }

    /// Takes `fid` away, and queues its clunk behind what it is used for.
    pub(super) fn clunk(&self, fid: u32) -> Result<Alone, Errno> {
        let gone = self.all.lock().remove(&fid).ok_or(Errno::EBADF)?;
        self.share.frees_fids(1);
        Ok(alone(gone))
    }

    /// Makes `fid` for the request that arrives now, which has it alone until it ends. Errors: `EBADF` for one that is
    /// in use, `EMFILE` for one too many.
    pub(super) fn make(&self, fid: u32, most: usize) -> Result<Made, Errno> {
        if fid == crate::wire::NO_FID {
            return Err(Errno::EBADF);
        }
        let made = Fid::default();
        let state = made.clone().try_write_owned().map_err(|_| Errno::EIO)?;
        let mut fids = self.all.lock();
        let poisoned = |fid: &Fid| fid.try_read().is_ok_and(|state| matches!(*state, State::Poisoned(_)));
        match fids.get(&fid) {
            Some(old) if !poisoned(old) => return Err(Errno::EBADF),
            None if fids.len() >= most || !self.share.takes_fid() => return Err(Errno::EMFILE),
            _ => fids.insert(fid, made.clone()),
        };
        Ok(Made { number: fid, fid: made, state })
    }

    /// Takes a fid away again that could not be made, if it is still there.
    pub(super) fn unmake(&self, number: u32, made: &Fid) {
        let mut fids = self.all.lock();
        if fids.get(&number).is_some_and(|there| Arc::ptr_eq(there, made)) {
            fids.remove(&number);
            self.share.frees_fids(1);
        }
    }
}

impl Drop for Fids {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A fid that is being made.
pub(super) struct Made {
    pub(super) number: u32,
    pub(super) fid: Fid,
    pub(super) state: OwnedRwLockWriteGuard<State>,
}

fn alone(fid: Fid) -> Alone {
    match fid.clone().try_write_owned() {
        Ok(guard) => Turn::Now(guard),
        Err(_) => queue(fid.write_owned()),
    }
}

/// Takes the place in the queue now, whatever the reader has done in this turn; the turn may come later.
fn queue<G>(turn: impl Future<Output = G> + Send + 'static) -> Turn<G> {
    // What the reader has spent of tokio's budget must not decide about places.
    let mut turn: Pin<Box<dyn Future<Output = G> + Send>> = Box::pin(unconstrained(turn));
    // The request that it is for is polled next, and asks to be woken.
    match turn.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(guard) => Turn::Now(guard),
        Poll::Pending => Turn::Later(turn),
    }
}
