//! Telling the kernel that what it was told is old, when somebody else changes a file or a directory.
//!
//! Told by whoever hears of a broken lease, from any thread. One thread tells the kernel of attributes, for which it
//! waits for nobody, then gives the lease back, and whoever waits for it goes on. Another tells of pages and names,
//! for which the kernel waits for reads that are under way, or for whoever has the directory locked. Invariant: no
//! lease waits for pages or names.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use p9::NameBuf;
use p9::tree::LeaseKind;

use crate::kept::{File, Kept};
use crate::listing::Listed;
use crate::table::Inode;

/// Tells the kernel through one mount.
#[derive(Clone)]
pub(crate) struct Teller {
    broken: Sender<Broken>,
    kernel: Arc<OnceLock<Notifier>>,
}

/// A lease that was broken.
enum Broken {
    File(Arc<File>),
    /// Down to so much.
    Dir(Arc<Listed>, LeaseKind),
}

/// What the kernel is told by the second thread.
enum Old {
    Pages(INodeNo),
    Names(INodeNo, Vec<NameBuf>),
}

impl Teller {
    /// Starts the threads, which also take out of `kept` what is broken; they end with the last clone. The kernel keeps
    /// what it is told for `ttl`.
    pub(crate) fn start(kept: Arc<Kept>, ttl: Duration) -> io::Result<Self> {
        let (broken, breaks) = channel();
        let (old, olds) = channel();
        let kernel: Arc<OnceLock<Notifier>> = Arc::default();
        let start =
            |name: &str, run: Box<dyn FnOnce() + Send>| std::thread::Builder::new().name(name.into()).spawn(run);
        let tells = kernel.clone();
        start("mount-tell", Box::new(move || give_back(&breaks, &old, &kept, &tells, ttl)))?;
        let tells = kernel.clone();
        start("mount-tell-late", Box::new(move || tell_late(&olds, &tells)))?;
        Ok(Self { broken, kernel })
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
        _ = self.broken.send(Broken::File(file));
    }

    /// The lease of `dir` was broken down to `keep`.
    pub(crate) fn dir_broken(&self, dir: Arc<Listed>, keep: LeaseKind) {
        _ = self.broken.send(Broken::Dir(dir, keep));
    }
}

fn give_back(breaks: &Receiver<Broken>, old: &Sender<Old>, kept: &Kept, kernel: &OnceLock<Notifier>, ttl: Duration) {
    let attributes = |id| {
        if let Some(kernel) = kernel.get() {
            tell(kernel, INodeNo(id), -1);
        }
    };
    while let Ok(broken) = breaks.recv() {
        // The second thread ends after this one.
        match broken {
            Broken::File(file) => {
                let inode = file.inode();
                if let Some(inode) = &inode {
                    attributes(inode.id);
                }
                file.let_go();
                kept.drop_file(&file);
                _ = inode.map(|inode| old.send(Old::Pages(INodeNo(inode.id))));
            }
            Broken::Dir(dir, keep) => {
                let (files, names) = dir.told_lately(ttl, keep);
                files.into_iter().for_each(attributes);
                if keep < LeaseKind::Attr {
                    attributes(dir.dir);
                }
                dir.let_go(keep);
                _ = old.send(Old::Names(INodeNo(dir.dir), names));
            }
        }
    }
}

fn tell_late(olds: &Receiver<Old>, kernel: &OnceLock<Notifier>) {
    while let Ok(old) = olds.recv() {
        let Some(kernel) = kernel.get() else { continue };
        match old {
            Old::Pages(id) => tell(kernel, id, 0),
            Old::Names(dir, names) => {
                for name in names {
                    told(kernel.inval_entry(dir, OsStr::from_bytes(name.as_name().as_bytes())));
                }
            }
        }
    }
}

/// The attributes of `id` are old and, unless `from` is negative, the pages from there on.
fn tell(kernel: &Notifier, id: INodeNo, from: i64) {
    told(kernel.inval_inode(id, from, 0));
}

fn told(answer: io::Result<()>) {
    if let Err(err) = answer {
        tracing::debug!(%err, "the kernel was not told of a change");
    }
}
