//! Files that were opened for reading and may be opened again without asking.
//!
//! A file is opened together with a lease on its attributes. While nobody else changes it the lease is not broken, so
//! whoever opens it again sees what an open asked of the server would show: its attributes, the same open file, its
//! first bytes, and the kernel's pages. Filled and asked by opens and lookups, in the request's task; broken by the
//! task that reads from the server, or whichever thread changes the file. Invariant: what is given out was asked for
//! after the lease was, and neither the lease was broken nor the file changed through this mount since.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use p9::tree::{Lease, LeaseKind};
use p9::{Attr, Handle, Name, NameBuf, NodeRef, Opened};
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::changes::Changes;
use crate::fetched::Fetched;
use crate::leash::Leash;
use crate::listing::Listed;
use crate::table::Inode;
use crate::tell::Teller;

/// What a file counts beside its bytes: it costs the server a descriptor.
const EACH: u64 = 64 << 10;
/// The same of one that was fetched, which costs the server nothing.
const FETCHED: u64 = 1 << 10;
/// Where so many are kept, a refusal may be due to them.
const MANY: usize = 32;
/// How long after room was made it may be made again.
const ROOM_TIME: Duration = Duration::from_secs(10);

/// A file that was opened for reading under a lease, or fetched under that of its directory.
pub(crate) struct File {
    /// The place in the tree where it was opened, if it was.
    pub(crate) node: Option<NodeRef>,
    /// Its attributes, as it was opened.
    pub(crate) attr: Attr,
    /// Where its bytes are.
    pub(crate) handle: Handle,
    /// Its first bytes.
    pub(crate) first: Option<Bytes>,
    under: Under,
    /// The count of `changes` when it was asked for.
    asked: u64,
    changes: Arc<Changes>,
    state: Mutex<State>,
}

/// What says that it has not changed.
enum Under {
    /// A lease of its own.
    Lease(Lease),
    /// That of the directory.
    Dir(Weak<Leash>, Arc<Fetched>),
}

#[derive(Default)]
struct State {
    /// Whether the lease was broken, or given back.
    broken: bool,
    /// Which file it is to the kernel, once that was told of it.
    inode: Option<Arc<Inode>>,
    /// Whether it was opened, so that the kernel may have pages of it.
    opened: bool,
}

impl File {
    /// What was `opened` as `node` when there had been `asked` changes, if that may be kept. `teller` tells the kernel
    /// when it no longer may.
    pub(crate) fn of(
        node: &NodeRef, opened: &Opened, (asked, changes): (u64, &Arc<Changes>), teller: &Teller,
    ) -> Option<Arc<Self>> {
        let (Some(attr), Some(lease)) = (opened.attr, &opened.lease) else { return None };
        if lease.kind < LeaseKind::Attr || !opened.handle.seekable() {
            return None;
        }
        let (handle, first) = (opened.handle.clone(), opened.first.clone());
        let (node, under) = (Some(node.clone()), Under::Lease(lease.clone()));
        let (changes, state) = (changes.clone(), Mutex::default());
        let file = Arc::new(Self { node, attr, handle, first, under, asked, changes, state });
        let (weak, teller) = (Arc::downgrade(&file), teller.clone());
        lease.tell(Arc::new(move |_| {
            if let Some(file) = weak.upgrade() {
                file.broken();
                teller.broken(file);
            }
        }));
        Some(file)
    }

    /// The whole of the file `name` in `dir`, fetched when there had been `asked` changes, and with these attributes at
    /// `entry` in `listed`.
    pub(crate) fn fetched(
        (listed, entry): (&Arc<Listed>, usize), (dir, name): (&NodeRef, NameBuf), attr: Attr, bytes: Bytes,
        (asked, changes): (u64, &Arc<Changes>),
    ) -> Arc<Self> {
        let (changes, state) = (changes.clone(), Mutex::default());
        let file = Arc::new_cyclic(|file| {
            let fetched = Arc::new(Fetched::new(dir.clone(), name, attr.qid, bytes.clone(), file.clone()));
            let (handle, first) = (Handle::Stream(fetched.clone()), Some(bytes));
            let under = Under::Dir(listed.lease().map(Arc::downgrade).unwrap_or_default(), fetched);
            Self { node: None, attr, handle, first, under, asked, changes, state }
        });
        if let Some(lease) = listed.lease() {
            lease.covers(entry, &file);
        }
        file
    }

    /// Whether it is what the server would show now.
    pub(crate) fn is_good(&self) -> bool {
        let holds = match &self.under {
            Under::Lease(lease) => lease.holds(),
            Under::Dir(lease, _) => lease.upgrade().is_some_and(|lease| lease.holds(LeaseKind::Read)),
        };
        holds && !self.state.lock().broken && !self.changes.is_old(self.asked, self.attr.qid.path)
    }

    /// The same of its being called `name` in the directory with the qid path `dir`.
    pub(crate) fn is_still(&self, dir: u64, name: Name<'_>) -> bool {
        self.is_good() && !self.changes.is_old_name(self.asked, dir, name)
    }

    /// What it is when it was fetched.
    pub(crate) fn as_fetched(&self) -> Option<&Arc<Fetched>> {
        match &self.under {
            Under::Lease(_) => None,
            Under::Dir(_, fetched) => Some(fetched),
        }
    }

    /// The directory's lease that it is under: as long as somebody has the file open that is needed.
    pub(crate) fn leash(&self) -> Option<Arc<Leash>> {
        match &self.under {
            Under::Lease(_) => None,
            Under::Dir(lease, _) => lease.upgrade(),
        }
    }

    /// Its lease was broken: what was read of it is old.
    pub(crate) fn broken(&self) {
        let inode = {
            let mut state = self.state.lock();
            state.broken = true;
            state.inode.clone()
        };
        if let Some(inode) = inode {
            inode.wrote(0);
        }
    }

    /// Gives the lease back.
    pub(crate) fn let_go(&self) {
        self.state.lock().broken = true;
        if let Under::Lease(lease) = &self.under {
            lease.keep(LeaseKind::None);
        }
    }

    /// The kernel is told that it is `inode`; gives whether it still is what the server would show.
    pub(crate) fn is_known_as(&self, inode: &Arc<Inode>) -> bool {
        self.state.lock().inode = Some(inode.clone());
        self.is_good()
    }

    /// Which file it is to the kernel, if that knows of it.
    pub(crate) fn inode(&self) -> Option<Arc<Inode>> {
        self.state.lock().inode.clone()
    }

    /// The kernel is given pages of it, as `inode`, and is to drop them when it changes; gives whether it still is what
    /// the server would show.
    pub(crate) fn is_filled_as(&self, inode: &Arc<Inode>) -> bool {
        self.state.lock().opened = true;
        self.is_known_as(inode)
    }

    /// Whether the kernel may have pages of it.
    pub(crate) fn was_opened(&self) -> bool {
        self.state.lock().opened
    }

    /// It is opened; gives whether it was before, so that the kernel may keep its pages.
    pub(crate) fn opens(&self) -> bool {
        std::mem::replace(&mut self.state.lock().opened, true)
    }
}

/// The files that one mount keeps.
pub(crate) struct Kept {
    /// By the kernel's number.
    files: Cache<u64, Arc<File>, Weight>,
    /// When room was made last.
    made_room: Mutex<Option<Instant>>,
    /// Whether the mount has ended.
    ended: AtomicBool,
}

#[derive(Clone)]
struct Weight;

impl Weighter<u64, Arc<File>> for Weight {
    fn weight(&self, _: &u64, file: &Arc<File>) -> u64 {
        let each = if file.node.is_some() { EACH } else { FETCHED };
        each + file.first.as_ref().map_or(0, |first| first.len() as u64)
    }
}

impl Default for Kept {
    fn default() -> Self {
        Self::new(64 << 20)
    }
}

impl Kept {
    /// One whose files' bytes may be so many.
    pub(crate) fn new(bytes: u64) -> Self {
        let files = Cache::with_weighter((bytes / EACH) as usize, bytes, Weight);
        Self { files, made_room: Mutex::default(), ended: AtomicBool::new(false) }
    }
}

impl Kept {
    /// The file `id`, if it is kept and good.
    pub(crate) fn get(&self, id: u64) -> Option<Arc<File>> {
        self.files.get(&id).filter(|file| file.is_good())
    }

    /// `file` is not good any more.
    pub(crate) fn drop_file(&self, file: &Arc<File>) {
        if let Some(inode) = file.inode() {
            self.files.remove_if(&inode.id, |there| Arc::ptr_eq(there, file));
        }
    }

    /// Keeps `file` as `id`.
    pub(crate) fn keep(&self, id: u64, file: Arc<File>) {
        self.files.insert(id, file);
        // What is kept keeps the mount's thread.
        if self.ended.load(Ordering::SeqCst) {
            self.files.clear();
        }
    }

    /// The file `id` was changed through this mount, or the kernel has forgotten it.
    pub(crate) fn forget(&self, id: u64) {
        self.files.remove(&id);
    }

    /// A lease was refused. It may be that the server grants no more: so those that are kept are given back now and
    /// then, or they would be all that is ever kept.
    pub(crate) fn refused(&self) {
        let mut made_room = self.made_room.lock();
        let now = Instant::now();
        if self.files.len() >= MANY && made_room.is_none_or(|then| now - then > ROOM_TIME) {
            *made_room = Some(now);
            self.files.clear();
        }
    }

    /// Keeps nothing any more.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
        self.files.clear();
    }
}
