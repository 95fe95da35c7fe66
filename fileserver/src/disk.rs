//! A directory of this machine as a tree, read and write.
//!
//! The node makes one for each export, the caller's agent one for the caller's root; the server loop and the FUSE
//! bridge call its nodes from any task. Every name is resolved by itself with `openat2`, beneath the directory that was
//! reached before and following no link, so that neither symbolic links nor renames lead out of the tree. What blocks
//! runs on tokio's blocking pool; what the kernel has in memory is answered in place.
//!
//! Descriptors are bounded: a node is (parent, name, file id), and its descriptor is looked for again when it is needed
//! (`disk/inode.rs`). /proc and /sys, and a slashn mount unless it is known not to wait for this tree, are shown as
//! empty directories (`disk/mounts.rs`).

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use p9::{Errno, Name, NodeRef, Reply, Tree, Want, Who};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use rustix::fs::{Mode, OFlags};

mod change;
mod dir;
mod inode;
mod leased;
mod locks;
mod mounts;
mod node;
mod sys;
mod xattr;

use inode::{Inode, Key, Seen};
use locks::{FileLocks, Locker};
use node::DiskNode;

use crate::Leases;

pub(crate) use sys::FileHandle;

/// A directory of this machine as a tree.
pub struct Disk {
    root: Arc<Inode>,
}

/// How a [`Disk`] is served.
#[derive(Clone, Debug)]
pub struct DiskOptions {
    /// Whether every change is refused with `EROFS`.
    pub read_only: bool,
    /// Whether slashn mounts are entered. Only for a tree of which no such mount can be made: or a mount would wait for
    /// itself, and who is served this tree would have what its server has of others.
    pub enters_mounts: bool,
    /// Keys the hash that makes `qid.path`, so that it tells a peer nothing and is the same after a restart.
    pub key: [u8; 32],
    /// How many descriptors may be kept for files that are not open.
    pub descriptors: usize,
    /// Who grants leases on its files. All trees of a node share one, and have the same `key`: an inode is known by its
    /// `qid.path`.
    pub leases: Arc<Leases>,
}

impl DiskOptions {
    /// Read and write, with an eighth of the descriptors that this process may have, at most 1024.
    pub fn new(key: [u8; 32]) -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(8192);
        let descriptors = (limit / 8).clamp(16, 1024) as usize;
        Self { read_only: false, enters_mounts: false, key, descriptors, leases: Leases::of_process() }
    }

    /// The same, refusing every change if `read_only`.
    pub fn read_only(self, read_only: bool) -> Self {
        Self { read_only, ..self }
    }

    /// The same, of which slashn mounts are a part.
    pub fn enters_mounts(self) -> Self {
        Self { enters_mounts: true, ..self }
    }
}

/// Why a directory cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened.
    #[error("{path}: {reason}")]
    Open {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: Errno,
    },
    /// It is in a slashn mount, or in /proc or the like.
    #[error("{path}: a slashn mount, or a file system such as /proc, cannot be served again")]
    Hidden {
        /// The directory.
        path: PathBuf,
    },
    /// The tables of the kernel that are needed cannot be read.
    #[error("/proc/self: {0} (is /proc mounted?)")]
    Proc(Errno),
}

/// What all nodes of one tree share.
struct Shared {
    options: DiskOptions,
    mounts: mounts::Mounts,
    /// `O_PATH` descriptors of files that were walked to.
    places: Cache<Key, Arc<OwnedFd>>,
    inodes: DashMap<Key, Weak<Inode>>,
    /// The locks of files, by their qid paths.
    locks: DashMap<u64, Weak<FileLocks>>,
    /// Held while it changes where an inode was last seen.
    moves: Mutex<()>,
    /// Those who attached, by the number of their session.
    lockers: Mutex<HashMap<u64, Weak<Locker>>>,
    /// Descriptors that hold locks, of which there are at most as many as others that are kept.
    lock_descriptors: AtomicUsize,
    /// What this process's umask takes from the mode of a new file, to be given back.
    umask: u32,
}

impl Disk {
    /// The directory `path` as a tree. Links in `path` itself are followed. It does blocking I/O.
    pub fn open(path: &Path, options: DiskOptions) -> Result<Arc<Self>, Error> {
        let open = |reason| Error::Open { path: path.to_owned(), reason };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty()).map_err(|err| open(err.into()))?;
        let shared = Arc::new(Shared {
            mounts: mounts::Mounts::open(options.enters_mounts).map_err(Error::Proc)?,
            places: Cache::new(options.descriptors),
            options,
            inodes: DashMap::new(),
            locks: DashMap::new(),
            moves: Mutex::default(),
            lockers: Mutex::default(),
            lock_descriptors: AtomicUsize::new(0),
            umask: umask().unwrap_or(0o022),
        });
        match shared.see(fd.as_fd(), None, false).map_err(open)? {
            Seen::File { mount, attr } => Ok(Arc::new(Self { root: shared.root(fd, mount, &attr) })),
            Seen::Hidden(_) => Err(Error::Hidden { path: path.to_owned() }),
        }
    }

    /// Lets go of the descriptors that are kept for files that are not open: they keep file systems busy.
    pub fn let_go(&self) {
        self.root.disk.places.clear();
    }

    /// The root of the tree, for use in this process.
    pub fn root(&self) -> NodeRef {
        self.root_for(0)
    }

    /// The root of the tree, as the [client](Who::client) that sees it.
    pub fn root_for(&self, client: u64) -> NodeRef {
        Arc::new(DiskNode::of(self.root.clone(), 0, self.root.disk.locker(client)))
    }
}

impl Tree for Disk {
    fn attach<'a>(&'a self, who: &'a Who, aname: &'a [u8]) -> Reply<'a, NodeRef> {
        let names = match Name::split(aname) {
            Ok(names) => names,
            Err(errno) => return errno.into(),
        };
        if names.is_empty() {
            return Reply::ok(self.root_for(who.client));
        }
        Reply::later(async move {
            let root = self.root_for(who.client);
            Ok(root.walk(&names, Want::default()).await?.reached()?.node)
        })
    }
}

impl Shared {
    /// Refuses if nothing may be changed.
    fn writable(&self) -> Result<(), Errno> {
        if self.options.read_only { Err(Errno::EROFS) } else { Ok(()) }
    }

    /// Does `call`, which opens a file; out of descriptors, lets go of those that are only kept, and tries again.
    fn patient<T>(&self, call: impl Fn() -> Result<T, Errno>) -> Result<T, Errno> {
        match call() {
            Err(Errno::EMFILE | Errno::ENFILE) => {
                self.places.clear();
                call()
            }
            answer => answer,
        }
    }
}

/// The umask of this process: proc_pid_status(5), since umask(2) can only tell it by changing it for all threads.
fn umask() -> Option<u32> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(line.trim(), 8).ok()
}
