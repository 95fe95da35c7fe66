//! Open files of this machine's own disk, which the kernel reads and writes itself (FUSE passthrough, Linux 6.9).
//!
//! Only root may ask for it. Asked when a file is opened, as the answer is sent, and whenever a file is asked about:
//! what is written goes past this process, so nothing that was heard of the file before is told while somebody has it
//! open so for writing. Invariant, the kernel's: all openings of a file that are so share one backing file, and beside
//! them there is none that goes by pages of its own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use fuser::{BackingId, FileHandle, FopenFlags, Generation, KernelConfig, ReplyCreate, ReplyOpen};
use p9::Handle;
use parking_lot::Mutex;

use super::Bridge;
use crate::open::Open;

/// How a file may be open that the kernel reads and writes itself; by the second only maps.
const BESIDE: FopenFlags = FopenFlags::FOPEN_NOFLUSH.union(FopenFlags::FOPEN_DIRECT_IO);

/// The files that the kernel reads and writes itself.
#[derive(Default)]
pub(super) struct Backings {
    on: AtomicBool,
    files: Mutex<HashMap<u64, Backed>>,
    /// How many of all openings are to write.
    writers: AtomicUsize,
}

/// One of them, or any other that is open.
#[derive(Default)]
struct Backed {
    backing: Weak<BackingId>,
    writers: usize,
    /// Openings that go by the kernel's pages.
    plain: usize,
}

/// An opening of a file, until this is dropped.
pub(crate) struct Local {
    bridge: Weak<Bridge>,
    id: u64,
    writes: bool,
    backing: Option<Arc<BackingId>>,
}

impl Backings {
    /// Asks the kernel for it, if this process may.
    pub(super) fn ask(&self, config: &mut KernelConfig) {
        let offered = rustix::process::geteuid().is_root()
            && config.add_capabilities(fuser::InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok();
        self.on.store(offered, Ordering::Relaxed);
    }

    /// Whether the kernel may be writing to the file `id` by itself.
    pub(super) fn writes(&self, id: u64) -> bool {
        self.writers.load(Ordering::SeqCst) > 0 && self.files.lock().get(&id).is_some_and(|file| file.writers > 0)
    }
}

impl Bridge {
    /// Answers an open.
    pub(super) fn opened(self: &Arc<Self>, reply: ReplyOpen, number: u64, flags: FopenFlags) {
        let fh = FileHandle(number);
        match self.backing(number, |file| reply.open_backing(file)) {
            Some(backing) => reply.opened_passthrough(fh, flags & BESIDE, &backing),
            None => reply.opened(fh, flags),
        }
    }

    /// Answers a create.
    pub(super) fn created(
        self: &Arc<Self>, reply: ReplyCreate, attr: &fuser::FileAttr, generation: Generation,
        (number, flags): (u64, FopenFlags),
    ) {
        let (fh, ttl) = (FileHandle(number), self.options.ttl);
        match self.backing(number, |file| reply.open_backing(file)) {
            Some(backing) => reply.created_passthrough(&ttl, attr, generation, fh, flags & BESIDE, &backing),
            None => reply.created(&ttl, attr, generation, fh, flags),
        }
    }

    /// What stands behind the open file `number`, if the kernel is to read and write that itself; `open` tells the
    /// kernel of one.
    fn backing(
        self: &Arc<Self>, number: u64, open: impl FnOnce(&p9::LocalFile) -> std::io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        let file = self.opens.get(number).ok().filter(|_| self.backings.on.load(Ordering::Relaxed))?;
        let Open { inode, handle, writes_too, .. } = &*file;
        let mut files = self.backings.files.lock();
        let backed = files.entry(inode.id).or_default();
        let backing = match (backed.backing.upgrade(), handle) {
            (None, Handle::Fd(there)) if backed.plain == 0 => open(there).map(Arc::new).ok(),
            // What was fetched of it ahead is opened as the others are.
            (backing, _) => backing,
        };
        match &backing {
            Some(backing) => {
                backed.backing = Arc::downgrade(backing);
                backed.writers += usize::from(*writes_too);
                self.backings.writers.fetch_add(usize::from(*writes_too), Ordering::SeqCst);
            }
            None => backed.plain += 1,
        }
        let local = Local { bridge: Arc::downgrade(self), id: inode.id, writes: *writes_too, backing: backing.clone() };
        _ = file.local.set(local);
        backing
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        let Some(bridge) = self.bridge.upgrade() else { return };
        let mut files = bridge.backings.files.lock();
        if let Some(backed) = files.get_mut(&self.id) {
            if self.backing.is_none() {
                backed.plain -= 1;
            } else if self.writes {
                backed.writers -= 1;
                bridge.backings.writers.fetch_sub(1, Ordering::SeqCst);
            }
            drop(self.backing.take());
            if backed.plain == 0 && backed.backing.strong_count() == 0 {
                files.remove(&self.id);
            }
        }
        drop(files);
        if self.writes
            && let Ok(inode) = bridge.table.get(self.id)
        {
            bridge.changed(&inode);
        }
    }
}
