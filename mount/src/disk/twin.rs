//! Files that this machine has, too, and which need not be fetched: a system's libraries and compilers, say.
//!
//! A file of the tree and one of this machine with the same path and length may hold the same. Whoever reads the first
//! asks what a part of it is known by, some megabytes at a time, and reads that part of the second if it is known by
//! the same. Made when a file is opened for reading, asked by its reads, in any task. Invariant: a part is read here
//! only if the whole of it was found to be the same, and the file here is what it was when it was hashed.

use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use p9::{Attr, Digest, Handle, LocalFile, Stream, Time};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, ResolveFlags, Stat, fstat, open, openat2};
use tokio::runtime::Handle as Runtime;
use tokio::sync::OnceCell;

use crate::table::Inode;

/// How much is compared at a time: no more than a server hashes for one message.
const PART: u64 = 16 << 20;
/// A file has to be this long: the beginning of it comes along when it is opened.
const LEAST: u64 = 192 << 10;

/// Where this machine may have the same files as a tree.
#[derive(Clone, Debug)]
pub struct TwinOptions {
    /// A directory: a file below it may hold the same as that of the same path in the tree. Only files that everybody
    /// may read are looked at, and only those on the file system of the directory itself.
    pub dir: PathBuf,
    /// How long a file here must have been left alone: a store through a mapping changes its times only when it goes to
    /// the disk.
    pub settled: Duration,
}

impl TwinOptions {
    /// Below `dir`, what was left alone for a minute.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, settled: Duration::from_secs(60) }
    }
}

/// Where this machine may have the same files as the tree.
pub(crate) struct Twins {
    dir: OwnedFd,
    settled: Duration,
    runtime: Runtime,
}

impl Twins {
    /// As `options` say. Errors: as open(2), of the directory.
    pub(crate) fn new(options: &TwinOptions, runtime: Runtime) -> io::Result<Arc<Self>> {
        let dir = open(&options.dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Arc::new(Self { dir, settled: options.settled, runtime }))
    }

    /// The file at `path` with `size` bytes, if it is a regular one that everybody may read and that was left alone.
    /// It blocks.
    fn find(&self, path: &CString, size: u64) -> Option<Own> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        // No other file system: one may be slow, or this very mount.
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let fd = openat2(&self.dir, path.as_c_str(), flags, Mode::empty(), beneath).ok()?;
        let stat = fstat(&fd).ok()?;
        let plain = stat.st_mode & libc::S_IFMT == libc::S_IFREG && stat.st_mode & libc::S_IROTH != 0;
        let left_alone = Time::now().sec.saturating_sub(stat.st_mtime.max(stat.st_ctime));
        let same_length = u64::try_from(stat.st_size) == Ok(size);
        (plain && left_alone >= self.settled.as_secs() as i64 && same_length)
            .then(|| Own { file: LocalFile::new(fd, false, None), stamp: stamp(&stat) })
    }
}

/// What changes when a file does.
type Stamp = [i64; 5];

fn stamp(stat: &Stat) -> Stamp {
    [stat.st_size, stat.st_mtime, stat.st_mtime_nsec as i64, stat.st_ctime, stat.st_ctime_nsec as i64]
}

/// A file of this machine.
struct Own {
    file: Arc<LocalFile>,
    stamp: Stamp,
}

impl Own {
    fn is_unchanged(&self) -> bool {
        fstat(self.file.as_fd()).is_ok_and(|stat| stamp(&stat) == self.stamp)
    }
}

/// What this machine may have of a file that is open for reading.
pub(crate) struct Twin {
    twins: Arc<Twins>,
    inode: Arc<Inode>,
    size: u64,
    own: OnceCell<Option<Arc<Own>>>,
    /// Whether each part that was asked about is the same.
    parts: Mutex<HashMap<u64, Arc<OnceCell<bool>>>>,
    /// Whether one was not: then the others are hardly worth asking about.
    differs: AtomicBool,
}

impl Twin {
    /// Of `inode`, which had these attributes as it was opened, if it is worth the asking.
    pub(super) fn of(twins: &Arc<Twins>, inode: &Arc<Inode>, attr: &Attr) -> Option<Self> {
        let (twins, inode, size) = (twins.clone(), inode.clone(), attr.size);
        let (own, parts, differs) = (OnceCell::new(), Mutex::default(), AtomicBool::new(false));
        // What has no version may hold something else each time.
        let may_be = size >= LEAST && attr.qid.version != 0;
        may_be.then_some(Self { twins, inode, size, own, parts, differs })
    }

    /// What this machine has of `count` bytes from `offset`, from there up to the end of a part; `None` if it is not
    /// known to be the same as what is `below`.
    pub(super) async fn read(&self, below: &dyn Stream, offset: u64, count: u32) -> Option<Bytes> {
        if offset >= self.size || self.differs.load(Ordering::Relaxed) {
            return None;
        }
        let own = self.own().await?;
        let number = offset / PART;
        if !self.has(own, below, number).await {
            return None;
        }
        let count = u64::from(count).min((number + 1) * PART - offset) as u32;
        let bytes = Handle::Fd(own.file.clone()).read(offset, count).await.ok()?;
        (!bytes.is_empty() && own.is_unchanged()).then_some(bytes)
    }

    /// The file of this machine, if there is one that may be the same.
    async fn own(&self) -> Option<&Arc<Own>> {
        let find = async || {
            let (twins, path, size) = (self.twins.clone(), path(&self.inode)?, self.size);
            self.twins.runtime.spawn_blocking(move || twins.find(&path, size)).await.ok()?.map(Arc::new)
        };
        self.own.get_or_init(find).await.as_ref()
    }

    /// Whether the part `number` is the same here.
    async fn has(&self, own: &Arc<Own>, below: &dyn Stream, number: u64) -> bool {
        let part = self.parts.lock().entry(number).or_default().clone();
        let same = *part.get_or_init(|| self.compare(own, below, number * PART)).await;
        if !same {
            self.differs.store(true, Ordering::Relaxed);
        }
        same
    }

    async fn compare(&self, own: &Arc<Own>, below: &dyn Stream, offset: u64) -> bool {
        let count = PART.min(self.size - offset);
        let (mine, at) = (own.clone(), self.twins.runtime.clone());
        let mine = async move { at.spawn_blocking(move || Digest::of_file(&mine.file, offset, count)).await };
        match tokio::join!(below.digest(offset, count), mine) {
            (Ok(theirs), Ok(Ok(mine))) => theirs == mine && theirs.count == count && own.is_unchanged(),
            _ => false,
        }
    }
}

/// The path of `inode` in the tree, as it was seen last; the root has none.
fn path(inode: &Arc<Inode>) -> Option<CString> {
    let mut names = Vec::new();
    let mut at = inode.clone();
    while let Some(place) = at.place() {
        names.push(place.name);
        at = place.dir;
    }
    names.reverse();
    let path = names.iter().map(|name| name.as_name().as_bytes()).collect::<Vec<_>>().join(&b'/');
    CString::new(path).ok()
}
