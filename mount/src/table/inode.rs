//! One file that the kernel knows.
//!
//! Shared by the table and the requests that concern the file, in any task; its own lock is held for moments only and
//! never across a wait. Invariant: an open file pins its node, so that it is served although it has no name any more.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use p9::{Attr, FileKind, Name, NameBuf, NodeRef, Qid, Time};
use parking_lot::Mutex;

use crate::hold::Hold;
use crate::kept::File;
use crate::pages::Pages;

/// A file that the kernel knows.
pub(crate) struct Inode {
    /// What the kernel calls it.
    pub(crate) id: u64,
    kind: FileKind,
    /// The path of its qid.
    pub(crate) qid_path: u64,
    state: Mutex<State>,
    /// Who gives the kernel pages of it, if anybody has or has kept them away.
    pages: OnceLock<Box<Pages>>,
    /// Its length, as last heard.
    size: AtomicU64,
    /// Counts the writes through this mount, and whatever else makes old what was read before.
    writes: AtomicU64,
    /// Its mode, as last heard.
    mode: AtomicU32,
    /// Whether a name was looked up in it since that was last asked.
    looked_in: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The latest.
    place: Option<Place>,
    /// Those before it: most have none, and there may be very many files.
    #[expect(clippy::box_collection, reason = "a pointer is a third of the room of an empty list")]
    others: Option<Box<Vec<Place>>>,
    pinned: Option<NodeRef>,
    pins: usize,
    filled: Option<Box<Filled>>,
    /// When the attributes last changed, as the kernel was told.
    told: Time,
    /// What is held back of what was written to it.
    held: Weak<Hold>,
    /// What it is as long as somebody has it open that was fetched.
    fetched: Weak<File>,
    /// When it was made through this mount, and the count of changes by then.
    made: Option<Box<(Instant, u64)>>,
    /// When it was listed as having no extended attributes, and the count of changes by then.
    bare: Option<(Instant, u64)>,
}

/// Where a file is seen.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) dir: Arc<Inode>,
    pub(crate) name: NameBuf,
}

impl Place {
    fn is(&self, dir: u64, name: Name<'_>) -> bool {
        self.dir.id == dir && self.name.as_name() == name
    }
}

/// What is the same while a file's contents are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Version {
    qid: u32,
    size: u64,
    mtime: Time,
    ctime: Time,
}

/// What the pages are of that the kernel has.
struct Filled {
    version: Version,
    since: Instant,
}

impl Filled {
    fn now(version: Version) -> Box<Self> {
        Box::new(Self { version, since: Instant::now() })
    }
}

impl Version {
    /// Of a file with these attributes; `None` while a change might go unseen, because the clock has not moved on
    /// from the last one.
    pub(crate) fn of(attr: &Attr, now: Time) -> Option<Self> {
        let settled = attr.ctime.max(attr.mtime).sec.saturating_add(2) < now.sec;
        settled.then_some(Self { qid: attr.qid.version, size: attr.size, mtime: attr.mtime, ctime: attr.ctime })
    }
}

impl Inode {
    pub(super) fn new(id: u64, qid: Qid) -> Self {
        Self {
            id,
            kind: qid.kind,
            qid_path: qid.path,
            state: Mutex::default(),
            pages: OnceLock::new(),
            size: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            mode: AtomicU32::new(0),
            looked_in: AtomicBool::new(false),
        }
    }

    #[cfg(test)]
    pub(crate) fn root_for_tests() -> Arc<Self> {
        Arc::new(Self::new(super::ROOT, Qid::default()))
    }

    /// Who gives the kernel pages of it.
    pub(crate) fn pages(&self) -> &Pages {
        self.pages.get_or_init(Box::default)
    }

    /// Whether `qid` is this file's.
    pub(crate) fn is(&self, qid: Qid) -> bool {
        (qid.kind, qid.path) == self.key()
    }

    pub(super) fn key(&self) -> (FileKind, u64) {
        (self.kind, self.qid_path)
    }

    /// Where it is seen, the latest last.
    pub(crate) fn places(&self) -> Vec<Place> {
        let state = self.state.lock();
        state.others.iter().flat_map(|others| others.iter()).chain(&state.place).cloned().collect()
    }

    /// Where it was seen last.
    pub(crate) fn place(&self) -> Option<Place> {
        self.state.lock().place.clone()
    }

    pub(super) fn add_place(&self, place: Place) {
        let mut state = self.state.lock();
        if let Some(before) = state.place.replace(place) {
            state.others.get_or_insert_default().push(before);
        }
    }

    pub(super) fn remove_place(&self, dir: u64, name: Name<'_>) {
        let State { place, others, .. } = &mut *self.state.lock();
        if let Some(others) = others {
            others.retain(|other| !other.is(dir, name));
        }
        if place.as_ref().is_some_and(|place| place.is(dir, name)) {
            *place = others.as_mut().and_then(|others| others.pop());
        }
        others.take_if(|others| others.is_empty());
    }

    /// Whether it is seen as `name` in `dir`.
    pub(super) fn is_at(&self, dir: u64, name: Name<'_>) -> bool {
        let state = self.state.lock();
        state.others.iter().flat_map(|others| others.iter()).chain(&state.place).any(|place| place.is(dir, name))
    }

    pub(super) fn pinned(&self) -> Option<NodeRef> {
        self.state.lock().pinned.clone()
    }

    /// The file was opened: `node`, if there is one, is kept until it is closed.
    pub(crate) fn pin(&self, node: Option<NodeRef>) {
        let mut state = self.state.lock();
        state.pins += 1;
        state.pinned = node.or(state.pinned.take());
    }

    /// What is open was opened after all, as `node`.
    pub(crate) fn pin_opened(&self, node: &NodeRef) {
        let mut state = self.state.lock();
        if state.pins > 0 {
            state.pinned.get_or_insert_with(|| node.clone());
        }
    }

    /// The file was closed.
    pub(crate) fn unpin(&self) {
        let mut state = self.state.lock();
        state.pins = state.pins.saturating_sub(1);
        if state.pins == 0 {
            state.pinned = None;
        }
    }

    /// The pinned node is dead; the next open pins another.
    pub(super) fn unpin_lost(&self) {
        self.state.lock().pinned = None;
    }

    /// Takes note of attributes that the kernel is told.
    pub(crate) fn learn(&self, attr: &Attr) {
        self.size.store(attr.size, Ordering::Release);
        self.mode.store(attr.mode, Ordering::Release);
        self.state.lock().told = attr.ctime;
    }

    /// It was listed as having no extended attributes, when there had been `asked` changes.
    pub(crate) fn is_bare(&self, asked: u64) {
        self.state.lock().bare = Some((Instant::now(), asked));
    }

    /// The count of changes by when it was listed as having no extended attributes, less than `ttl` ago.
    pub(crate) fn bare(&self, ttl: Duration) -> Option<u64> {
        self.state.lock().bare.filter(|(when, _)| when.elapsed() < ttl).map(|(_, asked)| asked)
    }

    /// It was made through this mount, when there had been `asked` changes.
    pub(crate) fn is_made(&self, asked: u64) {
        self.state.lock().made = Some(Box::new((Instant::now(), asked)));
    }

    /// The count of changes by when it was made, if that is less than `ttl` ago.
    pub(crate) fn made(&self, ttl: Duration) -> Option<u64> {
        let state = self.state.lock();
        state.made.as_ref().filter(|made| made.0.elapsed() < ttl).map(|made| made.1)
    }

    /// It is opened as `file`, which was fetched.
    pub(crate) fn is_fetched(&self, file: &Arc<File>) {
        self.state.lock().fetched = Arc::downgrade(file);
    }

    /// What was fetched of it, if somebody has that open.
    pub(crate) fn fetched(&self) -> Option<Arc<File>> {
        let state = self.state.lock();
        if state.pins == 0 { None } else { state.fetched.upgrade() }
    }

    /// What is written to it is held by `hold`.
    pub(crate) fn holds(&self, hold: &Arc<Hold>) {
        self.state.lock().held = Arc::downgrade(hold);
    }

    /// What holds some of what was written to it, if anything does.
    pub(crate) fn held(&self) -> Option<Arc<Hold>> {
        self.hold().filter(|hold| hold.is_full())
    }

    /// What may hold what is written to it.
    pub(crate) fn hold(&self) -> Option<Arc<Hold>> {
        self.state.lock().held.upgrade()
    }

    /// A name is looked up in it.
    pub(crate) fn look_in(&self) {
        self.looked_in.store(true, Ordering::Relaxed);
    }

    /// Whether a name was looked up in it since this was last asked.
    pub(crate) fn was_looked_in(&self) -> bool {
        self.looked_in.swap(false, Ordering::Relaxed)
    }

    /// When its attributes last changed, as the kernel was told.
    pub(crate) fn told(&self) -> Time {
        self.state.lock().told
    }

    /// Whether these attributes are other than what the kernel was told last.
    pub(crate) fn differs(&self, attr: &Attr) -> bool {
        self.size() != attr.size || self.state.lock().told != attr.ctime
    }

    /// Whether the kernel was told of attributes that are no older than these, and other: so these are old.
    pub(crate) fn knows_better(&self, attr: &Attr) -> bool {
        let told = self.state.lock().told;
        told > attr.ctime || told == attr.ctime && self.size() != attr.size
    }

    /// The mode that it is to have once somebody without privileges has written to it, where that is another: without
    /// the setuid bit, and without the setgid bit of a program.
    pub(crate) fn mode_once_written(&self) -> Option<u32> {
        let mode = self.mode() & 0o7777;
        let setgid = if mode & libc::S_IXGRP != 0 { libc::S_ISGID } else { 0 };
        Some(mode & !(libc::S_ISUID | setgid)).filter(|left| *left != mode)
    }

    /// The mode, as it was last told.
    pub(crate) fn mode(&self) -> u32 {
        self.mode.load(Ordering::Acquire)
    }

    /// The length, as the kernel was last told, or as writes since have made it.
    pub(crate) fn size(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Something up to `end` was written: what was read before is old.
    pub(crate) fn wrote(&self, end: u64) {
        self.size.fetch_max(end, Ordering::AcqRel);
        self.writes.fetch_add(1, Ordering::AcqRel);
    }

    /// What was read before may be old; gives [`Inode::writes`] as it was until now.
    pub(crate) fn is_read_anew(&self) -> u64 {
        self.writes.fetch_add(1, Ordering::AcqRel)
    }

    /// How many writes there were: what was read when it was less is old.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.load(Ordering::Acquire)
    }

    /// The file is opened with its contents at `version`: whether the pages that the kernel has are those.
    pub(crate) fn keeps_pages(&self, version: Option<Version>) -> bool {
        let mut state = self.state.lock();
        let same = version.is_some() && state.filled.as_ref().map(|filled| filled.version) == version;
        state.filled = version.map(Filled::now);
        same
    }

    /// The directory is opened with its contents at `version`: whether the listing that the kernel has is of those, and
    /// not older than `age`.
    pub(crate) fn keeps_listing(&self, version: Option<Version>, age: Duration) -> bool {
        let filled = &mut self.state.lock().filled;
        let keeps =
            filled.as_ref().is_some_and(|filled| Some(filled.version) == version && filled.since.elapsed() < age);
        if !keeps {
            *filled = version.map(Filled::now);
        }
        keeps
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_kept_only_of_what_has_not_changed_and_has_been_left_alone() {
        let inode = Inode::new(7, Qid::default());
        let at = |sec| Time { sec, nsec: 0 };
        let version = |size, mtime, now| {
            Version::of(&Attr { size, mtime: at(mtime), ctime: at(mtime), ..Attr::default() }, at(now))
        };
        assert!(!inode.keeps_pages(version(5, 100, 200)), "nothing is known yet");
        assert!(inode.keeps_pages(version(5, 100, 300)));
        assert!(!inode.keeps_pages(version(6, 100, 300)));
        assert!(!inode.keeps_pages(version(6, 301, 302)), "it may change again within the clock's tick");
        assert!(!inode.keeps_pages(version(6, 301, 400)));
        assert!(inode.keeps_pages(version(6, 301, 400)));
    }
}
