//! The files that a cache is made of.
//!
//! A segment is two files: bytes one after the other in `NAME.data`, and in `NAME.index` an entry for each unit. They
//! grow at their ends, bytes before their entry, and are removed as one; so whatever a crash leaves is read by what it
//! says, and the bytes prove themselves. Nothing is ever synced. A segment has a sixteenth of the room: where that is
//! used up the one that was used least recently goes, which its modification time says, to other processes and the next
//! one, too. A process that writes holds a lock on its segment's index.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use rustix::fs::FlockOperation;

use super::UNIT;
use super::entry::{Entry, LENGTH};
use super::index::Index;

/// How many segments there are at most.
const MOST: u64 = 16;
/// What a unit counts at least: it costs memory, too.
const EACH: u64 = 16 << 10;
/// How old the time of the last use may be that others see.
const MARK: Duration = Duration::from_secs(60);

/// The segments in one directory.
pub(super) struct Segments {
    dir: PathBuf,
    bytes: u64,
    known: Mutex<HashMap<u32, Known>>,
}

struct Known {
    name: String,
    used: Instant,
    /// When others were last told of that.
    marked: Instant,
}

/// One that is written to, by this process alone.
pub(super) struct Open {
    pub(super) number: u32,
    pub(super) data: File,
    pub(super) index: File,
    pub(super) length: u64,
    pub(super) entries: u64,
}

impl Open {
    /// Whether `bytes` more fit into a segment of `most`.
    pub(super) fn fits(&self, bytes: u64, most: u64) -> bool {
        (self.length + bytes).max((self.entries + 1) * EACH) <= most
    }
}

/// A segment as it is found in the directory.
struct Found {
    name: String,
    counts: u64,
    used: SystemTime,
}

impl Segments {
    /// Those in `dir`, which may take so many `bytes` together. Errors: it cannot be made, or is open to others.
    pub(super) fn open(dir: &Path, bytes: u64) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let found = fs::metadata(dir)?;
        if found.uid() != rustix::process::geteuid().as_raw() || found.mode() & 0o077 != 0 {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not this user's alone"));
        }
        Ok(Self { dir: dir.to_path_buf(), bytes, known: Mutex::default() })
    }

    /// The most that one of them may have.
    pub(super) fn each(&self) -> u64 {
        (self.bytes / MOST).max(UNIT)
    }

    /// Adds what they have to `index`; what is too much goes first.
    pub(super) fn load(&self, key: &[u8; 32], index: &Index) {
        self.make_room(index, 0);
        for Found { name, .. } in self.found() {
            if let Err(err) = self.load_one(&name, key, index) {
                tracing::debug!(name, %err, "a segment of the disk cache is left out");
            }
        }
        index.prune();
    }

    fn load_one(&self, name: &str, key: &[u8; 32], index: &Index) -> io::Result<()> {
        let (length, mut entries) = (fs::metadata(self.data(name))?.len(), Vec::new());
        // What is longer than it may be was not written by this program.
        File::open(self.index(name))?.take(self.bytes.min(1 << 30)).read_to_end(&mut entries)?;
        let number = self.knows(name);
        let (entries, _) = entries.as_chunks::<LENGTH>();
        for entry in entries.iter().filter_map(|entry| Entry::decode(entry, key)) {
            let ends = |offset: u64| offset.checked_add(entry.length.into());
            if entry.length as u64 <= UNIT && entry.offset.is_none_or(|at| ends(at).is_some_and(|end| end <= length)) {
                index.add(&entry, number);
            }
        }
        Ok(())
    }

    fn knows(&self, name: &str) -> u32 {
        let (mut known, now) = (self.known.lock(), Instant::now());
        if let Some((number, _)) = known.iter().find(|(_, known)| known.name == name) {
            return *number;
        }
        let number = known.keys().max().map_or(0, |last| last.wrapping_add(1));
        known.insert(number, Known { name: name.into(), used: now, marked: now });
        number
    }

    /// Whether the segment is still one of them.
    pub(super) fn has(&self, number: u32) -> bool {
        self.known.lock().contains_key(&number)
    }

    /// The bytes of segment `number`, which is used now.
    pub(super) fn reads(&self, number: u32) -> Option<File> {
        let (path, mark) = {
            let mut known = self.known.lock();
            let known = known.get_mut(&number)?;
            known.used = Instant::now();
            let mark = known.marked.elapsed() >= MARK;
            if mark {
                known.marked = known.used;
            }
            (self.data(&known.name), mark)
        };
        let file = File::open(path).ok()?;
        if mark {
            _ = File::set_modified(&file, SystemTime::now());
        }
        Some(file)
    }

    /// One to write to: the latest that has room, or a new one, for which room is made. Errors: `StorageFull` where the
    /// file system has less room left than all of them may take: that is for others.
    pub(super) fn to_write(&self, index: &Index) -> io::Result<Open> {
        let mut found = self.found();
        found.reverse();
        for Found { name, counts, .. } in &found {
            if counts + UNIT <= self.each()
                && let Some(open) = self.lock(name, false)?
            {
                return Ok(open);
            }
        }
        self.make_room(index, self.each());
        if self.is_scarce() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let name = format!("{:016x}-{}", since.as_nanos() as u64, std::process::id());
        self.lock(&name, true)?.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    /// Opens the segment `name` to write to its end, unless another process does.
    fn lock(&self, name: &str, new: bool) -> io::Result<Option<Open>> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create_new(new).mode(0o600);
        let open = |path: PathBuf| match options.open(path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            file => file.map(Some),
        };
        let Some(index) = open(self.index(name))? else { return Ok(None) };
        if rustix::fs::flock(&index, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let Some(data) = open(self.data(name))? else { return Ok(None) };
        let entries = index.metadata()?.len() / LENGTH as u64;
        // Another process may have ended within one.
        index.set_len(entries * LENGTH as u64)?;
        let length = data.metadata()?.len();
        Ok(Some(Open { number: self.knows(name), data, index, length, entries }))
    }

    /// Removes those that were used least recently, until there is room for `more`.
    fn make_room(&self, index: &Index, more: u64) {
        self.mark_all();
        let mut found = self.found();
        found.reverse();
        let mut taken: u64 = found.iter().map(|found| found.counts).sum();
        while (taken + more > self.bytes || more > 0 && self.is_scarce())
            && let Some(Found { name, counts, .. }) = found.pop()
        {
            if self.remove(&name, index) {
                taken -= counts;
            }
        }
    }

    /// Whether the file system has little room left.
    fn is_scarce(&self) -> bool {
        rustix::fs::statvfs(&self.dir).is_ok_and(|fs| fs.f_bavail.saturating_mul(fs.f_frsize) < self.bytes)
    }

    /// Others may see when each was used last.
    fn mark_all(&self) {
        let now = (Instant::now(), SystemTime::now());
        for known in self.known.lock().values_mut().filter(|known| known.used > known.marked) {
            let used = now.1.checked_sub(now.0 - known.used);
            let file = OpenOptions::new().append(true).open(self.data(&known.name));
            if let (Some(used), Ok(file)) = (used, file) {
                _ = file.set_modified(used);
            }
            known.marked = known.used;
        }
    }

    /// Removes the segment `name`, unless another process is writing it; gives whether it has gone.
    fn remove(&self, name: &str, index: &Index) -> bool {
        let written = File::open(self.index(name))
            .is_ok_and(|file| rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared).is_err());
        if written {
            return false;
        }
        _ = fs::remove_file(self.index(name));
        let gone = fs::remove_file(self.data(name)).map_or_else(|err| err.kind() == io::ErrorKind::NotFound, |()| true);
        let number = self.known.lock().iter().find(|(_, known)| known.name == name).map(|(number, _)| *number);
        if let Some(number) = number {
            self.forget(number, index);
        }
        gone
    }

    /// What segment `number` has is garbled, or it has gone: nothing of it is used any more.
    pub(super) fn drop_one(&self, number: u32, index: &Index) {
        let name = self.known.lock().get(&number).map(|known| known.name.clone());
        self.forget(number, index);
        if let Some(name) = name {
            _ = fs::remove_file(self.index(&name));
            _ = fs::remove_file(self.data(&name));
        }
    }

    fn forget(&self, number: u32, index: &Index) {
        self.known.lock().remove(&number);
        index.remove(number);
    }

    /// Those in the directory, the one that was used least recently first.
    fn found(&self) -> Vec<Found> {
        let Ok(entries) = fs::read_dir(&self.dir) else { return Vec::new() };
        let one = |path: PathBuf| -> Option<Found> {
            let name = path.file_name()?.to_str()?.strip_suffix(".data")?.to_string();
            let data = fs::metadata(&path).ok()?;
            let entries = fs::metadata(self.index(&name)).map_or(0, |index| index.len() / LENGTH as u64);
            Some(Found { counts: data.len().max(entries * EACH), used: data.modified().ok()?, name })
        };
        let mut found: Vec<_> = entries.flatten().filter_map(|entry| one(entry.path())).collect();
        found.sort_by(|a, b| (a.used, &a.name).cmp(&(b.used, &b.name)));
        found
    }

    fn data(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.data"))
    }

    fn index(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.index"))
    }
}
