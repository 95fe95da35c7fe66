//! Contents of files on this machine's disk, so that what was read yesterday is not fetched again.
//!
//! A file goes by its qid and its version: when it changed last, and how long it is. That is told by the open, or the
//! listing, which is asked in any case; so what is here is never asked about by itself, and never served for a file
//! that has changed. Contents go in units of up to 64 KiB, as they were read, each named by the hash of its bytes, so
//! that what is the same in two files is kept once. Filled by reads, and asked by them, in any task; written by a
//! thread of its own, which leaves out what it cannot keep up with. Invariants: what is given out has the hash that it
//! was kept by; no more is kept than was allowed, and what was used last goes last.

mod entry;
mod index;
mod read;
mod segments;
mod through;
mod twin;
mod write;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use p9::{Attr, FileKind, Time};
use tokio::runtime::Handle as Runtime;

use index::Index;
use segments::Segments;
pub(crate) use through::Through;
pub use twin::TwinOptions;
pub(crate) use twin::{Twin, Twins};
use write::Writer;

use crate::table::Inode;

/// What is kept together at most, in bytes; what is kept begins with a page, and ends with one or with the file.
const UNIT: u64 = 64 << 10;
const PAGE: u64 = 4 << 10;
/// A file may take this part of all there is room for; one that is longer is not kept.
const LARGEST: u64 = 8;

/// Where file contents are kept on disk, and how many.
#[derive(Clone)]
pub struct DiskOptions {
    /// A directory of this user's alone; made if it is missing.
    pub dir: PathBuf,
    /// The most bytes that are kept, each unit counted as 16 KiB at least.
    pub bytes: u64,
    /// Keys the hashes. What was kept with another key is not found.
    pub key: [u8; 32],
    /// How long a file must have been left alone before it is kept. Whatever its times say of a change, they say it by
    /// then: clocks may differ, and what is written through a mapping is told when it goes to the disk.
    pub settled: Duration,
}

impl DiskOptions {
    /// In `dir`, up to `bytes`, keyed by `key`, of files that were left alone for a minute.
    pub fn new(dir: PathBuf, bytes: u64, key: [u8; 32]) -> Self {
        Self { dir, bytes, key, settled: Duration::from_secs(60) }
    }
}

/// Contents of files, kept on disk: shared by all mounts of a process, and found again by the next process.
#[derive(Clone)]
pub struct DiskCache {
    store: Arc<Store>,
    /// Apart from what else is kept.
    whose: [u8; 32],
}

struct Store {
    key: [u8; 32],
    settled: Duration,
    largest: u64,
    index: Arc<Index>,
    segments: Arc<Segments>,
    writer: Writer,
}

impl DiskCache {
    /// Finds what is kept. Errors: the directory cannot be made or read, or is open to others.
    pub fn open(options: &DiskOptions) -> io::Result<Self> {
        let key = blake3::derive_key("slashn disk cache", &options.key);
        let segments = Arc::new(Segments::open(&options.dir, options.bytes)?);
        let index = Arc::<Index>::default();
        segments.load(&key, &index);
        let writer = Writer::start(&key, &index, &segments)?;
        let DiskOptions { bytes, settled, .. } = *options;
        let store = Arc::new(Store { key, settled, largest: bytes / LARGEST, index, segments, writer });
        Ok(Self { store, whose: [0; 32] })
    }

    /// The same, for files of others whose qids might be alike: those that `whose` serves.
    pub fn apart(&self, whose: &[u8]) -> Self {
        Self { store: self.store.clone(), whose: *blake3::keyed_hash(&self.whose, whose).as_bytes() }
    }

    /// Waits until what was read so far has been written, or left out. It blocks.
    pub fn settle(&self) {
        self.store.writer.settle();
    }
}

impl fmt::Debug for DiskCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskCache").finish_non_exhaustive()
    }
}

/// Which version of which file: what a unit is kept by.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct FileId {
    file: u64,
    version: u64,
}

/// What one mount keeps on disk, and finds there; of one without a cache, nothing is kept.
#[derive(Clone)]
pub(crate) struct Disk {
    cache: Option<DiskCache>,
    twins: Option<Arc<Twins>>,
    runtime: Runtime,
}

impl Disk {
    /// Of a mount with these options.
    pub(crate) fn new(options: &crate::Options, runtime: Runtime) -> Self {
        let twins = options.twins.as_ref().and_then(|options| {
            let twins = Twins::new(options, runtime.clone());
            twins.inspect_err(|err| tracing::warn!(dir = %options.dir.display(), %err, "nothing is found here")).ok()
        });
        Self { cache: options.disk.clone(), twins, runtime }
    }

    /// What this machine has, and what it may have, of `inode`, which is opened and has these attributes.
    pub(crate) fn has(&self, inode: &Arc<Inode>, attr: &Attr) -> (Option<Contents>, Option<Twin>) {
        (self.of(attr), self.twins.as_ref().and_then(|twins| Twin::of(twins, inode, attr)))
    }

    /// Whether the start of the file with this qid path is kept, as it seems by its length and the time of its last
    /// change: then its bytes need not come along when it is opened.
    pub(crate) fn knows(&self, qid_path: u64, size: u64, ctime: Time) -> bool {
        let Some(cache) = &self.cache else { return false };
        let version = cache.store.index.version(cache.file(qid_path));
        version.is_some_and(|version| version as u32 == cache.seems(size, ctime))
    }

    /// The contents of the file with these attributes, if they may be kept.
    pub(crate) fn of(&self, attr: &Attr) -> Option<Contents> {
        let cache = self.cache.as_ref()?;
        let Store { settled, largest, .. } = &*cache.store;
        let age = Time::now().sec.saturating_sub(attr.ctime.max(attr.mtime).sec);
        // What has no version may change with its times as they are.
        let plain =
            attr.qid.kind == FileKind::File && attr.mode & libc::S_IFMT == libc::S_IFREG && attr.qid.version != 0;
        let keeps = plain && (1..=*largest).contains(&attr.size) && age >= settled.as_secs() as i64;
        keeps.then(|| Contents {
            store: cache.store.clone(),
            id: FileId { file: cache.file(attr.qid.path), version: cache.version(attr) },
            size: attr.size,
            runtime: self.runtime.clone(),
        })
    }
}

impl DiskCache {
    fn file(&self, qid_path: u64) -> u64 {
        self.hash(b"file", &[qid_path])
    }

    fn version(&self, attr: &Attr) -> u64 {
        let Attr { qid, size, mtime, ctime, .. } = *attr;
        let all = self.hash(b"version", &[u64::from(qid.version), size, mtime.sec as u64, u64::from(mtime.nsec)]);
        all << 32 | u64::from(self.seems(size, ctime))
    }

    /// The lower half of a version.
    fn seems(&self, size: u64, ctime: Time) -> u32 {
        self.hash(b"seems", &[size, ctime.sec as u64, u64::from(ctime.nsec)]) as u32
    }

    fn hash(&self, what: &[u8], numbers: &[u64]) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.store.key);
        hasher.update(&self.whose).update(what);
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
        entry::start_of(&hasher.finalize())
    }
}

/// The contents of one version of a file.
#[derive(Clone)]
pub(crate) struct Contents {
    store: Arc<Store>,
    id: FileId,
    size: u64,
    runtime: Runtime,
}

impl Contents {
    /// What is kept of `count` bytes from `offset`, from there up to the first that is not; `None` if that is nothing.
    pub(crate) async fn read(&self, offset: u64, count: u64) -> Option<Bytes> {
        let range = offset..offset.checked_add(count)?.min(self.size);
        if range.is_empty() || self.store.index.find(self.id, offset).is_none() {
            return None;
        }
        let me = self.clone();
        self.runtime.spawn_blocking(move || me.read_now(range)).await.ok()?
    }

    /// The whole file, if all of it is kept.
    pub(crate) async fn whole(&self) -> Option<Bytes> {
        self.read(0, self.size).await.filter(|bytes| bytes.len() as u64 == self.size)
    }

    /// It has `bytes` at `offset`: those that are not kept already are, whole pages of them, if there is time to.
    pub(crate) fn keep(&self, offset: u64, bytes: &Bytes) {
        let (mut at, end) = (offset.next_multiple_of(PAGE), offset + bytes.len() as u64);
        while at < end {
            if let Some(there) = self.store.index.find(self.id, at) {
                at = there.end();
                continue;
            }
            let until = (at - at % UNIT + UNIT).min(end);
            let until = if until == self.size { until } else { until - until % PAGE };
            let unit = (at - offset) as usize..until.saturating_sub(offset) as usize;
            if until <= at || !self.store.writer.write(self.id, at, bytes.slice(unit)) {
                return;
            }
            at = until;
        }
    }
}

#[cfg(test)]
mod tests;
