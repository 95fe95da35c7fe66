//! Telling the kernel that what it was told is old, when somebody else changes a file.
//!
//! Told by whoever hears of a broken lease, from any thread; a thread of its own tells the kernel, since that may take
//! a while: attributes first, for which it waits for nobody; then the lease is given back, and whoever waits for it
//! goes on; then the pages, for which it waits for reads that are under way. Invariant: no lease waits for pages.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};

use fuser::{INodeNo, Notifier};

use crate::kept::{File, Kept};
use crate::table::Inode;

/// Tells the kernel through one mount.
#[derive(Clone)]
pub(crate) struct Teller {
    files: Sender<Arc<File>>,
    kernel: Arc<OnceLock<Notifier>>,
}

impl Teller {
    /// Starts the thread, which also takes out of `kept` what is broken; it ends with the last clone.
    pub(crate) fn start(kept: Arc<Kept>) -> io::Result<Self> {
        let (files, broken) = channel();
        let kernel: Arc<OnceLock<Notifier>> = Arc::default();
        let teller = Self { files, kernel: kernel.clone() };
        std::thread::Builder::new().name("mount-tell".into()).spawn(move || run(&broken, &kept, &kernel))?;
        Ok(teller)
    }

    /// From now on there is a kernel to be told.
    pub(crate) fn begin(&self, kernel: Notifier) {
        _ = self.kernel.set(kernel);
    }

    /// The kernel was told attributes of `inode` that are old. For this it waits for nobody, so it may be said while a
    /// request for the file is answered.
    pub(crate) fn attributes_changed(&self, inode: &Inode) {
        if let Some(kernel) = self.kernel.get() {
            tell(kernel, INodeNo(inode.id), -1);
        }
    }

    /// The lease of `file` was broken.
    pub(crate) fn broken(&self, file: Arc<File>) {
        // The thread outlives every clone.
        _ = self.files.send(file);
    }
}

fn run(broken: &Receiver<Arc<File>>, kept: &Kept, kernel: &OnceLock<Notifier>) {
    while let Ok(file) = broken.recv() {
        let known = file.inode().zip(kernel.get()).map(|(inode, kernel)| (INodeNo(inode.id), kernel));
        if let Some((id, kernel)) = known {
            tell(kernel, id, -1);
        }
        file.let_go();
        kept.drop_file(&file);
        if let Some((id, kernel)) = known {
            tell(kernel, id, 0);
        }
    }
}

/// The attributes of `id` are old and, unless `from` is negative, the pages from there on.
fn tell(kernel: &Notifier, id: INodeNo, from: i64) {
    if let Err(err) = kernel.inval_inode(id, from, 0) {
        tracing::debug!(%err, "the kernel was not told of a change");
    }
}
