//! What a directory held when it was listed, and what of that may be told without asking.
//!
//! Made when a listing has come to its end, asked by lookups, in the request's task; broken by the task that reads from
//! the server. Under a lease on the directory's contents it answers for its files and for names that are not there, until
//! somebody else changes one; without, for a moment, and for what is there alone. Invariant: what was changed through this
//! mount since the listing began is not told.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use p9::tree::{Lease, LeaseKind};
use p9::{Attr, FileKind, Name, NameBuf};
use parking_lot::Mutex;

use crate::foresight::State as Ways;
use crate::tell::Teller;

/// Names that were changed here before a listing is of no more use.
const CHANGED: usize = 4096;

/// An entry of a directory, as it was listed.
pub(crate) struct Seen {
    pub(crate) name: NameBuf,
    /// Its attributes, if they came along.
    pub(crate) attr: Option<Attr>,
    /// What the kernel was told to call it, if it was told of it.
    pub(crate) id: Option<u64>,
}

impl Seen {
    /// The length of a regular file whose contents stay what they are while nobody changes them.
    pub(crate) fn plain(&self) -> Option<u64> {
        let regular = |attr: &Attr| attr.mode & libc::S_IFMT == libc::S_IFREG && attr.qid.version != 0;
        self.attr.filter(regular).map(|attr| attr.size)
    }
}

/// A listing on its way.
pub(crate) struct Gathered {
    pub(crate) entries: Vec<Seen>,
    /// Whether it has come to the end, from the start.
    pub(crate) whole: bool,
    pub(crate) begun: Instant,
    /// What was changed through this mount before it began: see [`crate::foresight::Foresight::changes`].
    pub(crate) changes: u64,
    pub(crate) lease: Option<Lease>,
}

/// A place in each of the two orders: as entries were listed, and as their names are sorted.
pub(crate) type Places = [usize; 2];

/// A directory that was listed.
pub(crate) struct Listed {
    /// What the kernel calls the directory.
    pub(crate) dir: u64,
    /// As they were listed.
    entries: Vec<Seen>,
    /// Where in `entries` each is, as they are sorted.
    sorted: Vec<usize>,
    places: HashMap<NameBuf, Places>,
    whole: bool,
    begun: Instant,
    lease: Option<Lease>,
    /// What may be kept under the lease.
    left: AtomicU8,
    told: Mutex<Told>,
    /// How it is gone through.
    pub(crate) ways: Mutex<Ways>,
}

#[derive(Default)]
struct Told {
    /// Changed through this mount since.
    changed: HashSet<NameBuf>,
    /// What the kernel was told of lately, by its number and when.
    files: HashMap<u64, Instant>,
    names: HashMap<NameBuf, Instant>,
}

/// What a listing says of a name.
#[derive(Debug, PartialEq)]
pub(crate) enum Known {
    /// It is there, and the kernel may keep that for so long.
    There(Box<Attr>, Duration),
    /// There is no such name.
    Missing,
}

impl Listed {
    /// The directory that the kernel calls `dir`, as it was listed. `teller` tells the kernel of what changes.
    pub(crate) fn new(dir: u64, gathered: Gathered, teller: &Teller) -> Arc<Self> {
        let Gathered { entries, whole, begun, lease, .. } = gathered;
        let mut sorted: Vec<usize> = (0..entries.len()).collect();
        sorted.sort_unstable_by(|a, b| entries[*a].name.cmp(&entries[*b].name));
        let mut places: HashMap<NameBuf, Places> = HashMap::with_capacity(entries.len());
        for (place, &entry) in sorted.iter().enumerate() {
            places.insert(entries[entry].name.clone(), [entry, place]);
        }
        let left = AtomicU8::new(lease.as_ref().map_or(LeaseKind::None, |lease| lease.kind).to_wire());
        let (mut told, now) = (Told::default(), Instant::now());
        for Seen { name, id, .. } in &entries {
            if let Some(id) = id {
                told.files.insert(*id, now);
                told.names.insert(name.clone(), now);
            }
        }
        let (told, ways) = (Mutex::new(told), Mutex::default());
        let listed = Arc::new(Self { dir, entries, sorted, places, whole, begun, lease, left, told, ways });
        if let Some(lease) = &listed.lease {
            let (weak, teller) = (Arc::downgrade(&listed), teller.clone());
            lease.tell(Arc::new(move |keep: LeaseKind| {
                if let Some(listed) = weak.upgrade() {
                    listed.left.fetch_min(keep.to_wire(), Ordering::SeqCst);
                    teller.dir_broken(listed, keep);
                }
            }));
        }
        listed
    }

    /// Where `name` is.
    pub(crate) fn find(&self, name: Name<'_>) -> Option<Places> {
        self.places.get(name.as_bytes()).copied()
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry at `place` of an order, and its place in the listing.
    pub(crate) fn at(&self, order: usize, place: usize) -> (usize, &Seen) {
        let entry = if order == 0 { place } else { self.sorted[place] };
        (entry, &self.entries[entry])
    }

    /// The place in an order of the entry at `entry` in the listing.
    pub(crate) fn place_in(&self, order: usize, entry: usize) -> usize {
        if order == 0 { entry } else { self.find(self.entries[entry].name.as_name()).map_or(0, |places| places[1]) }
    }

    /// Whether the lease lets this much be kept.
    fn holds(&self, kind: LeaseKind) -> bool {
        self.left.load(Ordering::SeqCst) >= kind.to_wire() && self.lease.as_ref().is_some_and(Lease::holds)
    }

    /// Whether some of what the lease let be kept no longer may.
    fn is_broken(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| self.left.load(Ordering::SeqCst) < lease.kind.to_wire())
    }

    /// Whether a new listing would tell more.
    pub(crate) fn is_over(&self, ttl: Duration) -> bool {
        !self.holds(LeaseKind::Read) && (self.is_broken() || self.begun.elapsed() >= ttl / 2)
    }

    /// Whether it tells nothing but the order of its names.
    pub(crate) fn is_bare(&self) -> bool {
        self.lease.is_none() && self.entries.iter().all(|seen| seen.attr.is_none())
    }

    /// What may be told of `name`; the kernel keeps things for `ttl`.
    pub(crate) fn known(&self, name: Name<'_>, ttl: Duration) -> Option<Known> {
        if self.told.lock().changed.contains(name.as_bytes()) {
            return None;
        }
        let Some([entry, _]) = self.find(name) else {
            return (self.whole && self.holds(LeaseKind::Attr)).then_some(Known::Missing);
        };
        let attr = self.entries[entry].attr?;
        let is_dir = attr.qid.kind == FileKind::Dir;
        // What has other names may be changed by those, which not everybody tells.
        if !is_dir && attr.nlink != 1 {
            return None;
        }
        if !is_dir && self.holds(LeaseKind::Read) {
            return Some(Known::There(Box::new(attr), ttl));
        }
        // It may have been a while on its way already; and a lease that was broken says that it is old.
        if !is_dir && self.is_broken() {
            return None;
        }
        let left = (ttl / 2).checked_sub(self.begun.elapsed())?;
        Some(Known::There(Box::new(attr), left))
    }

    /// `name` was changed through this mount, or what it stands for; gives whether the listing is still of use.
    pub(crate) fn changed(&self, name: Name<'_>) -> bool {
        let mut told = self.told.lock();
        told.changed.insert(name.into());
        told.changed.len() <= CHANGED
    }

    /// The kernel was told that `name` is the file that it calls `id`.
    pub(crate) fn tells(&self, name: Name<'_>, id: u64) {
        let (mut told, now) = (self.told.lock(), Instant::now());
        told.files.insert(id, now);
        told.names.insert(name.into(), now);
    }

    /// What the kernel was told within `ttl` and may not know any more: files, and names unless `keep` lets it.
    pub(crate) fn told_lately(&self, ttl: Duration, keep: LeaseKind) -> (Vec<u64>, Vec<NameBuf>) {
        let mut told = self.told.lock();
        let files = std::mem::take(&mut told.files).into_iter().filter(|(_, when)| when.elapsed() < ttl);
        let files = files.map(|(id, _)| id).collect();
        let names = if keep < LeaseKind::Attr { std::mem::take(&mut told.names) } else { HashMap::new() };
        (files, names.into_iter().filter(|(_, when)| when.elapsed() < ttl).map(|(name, _)| name).collect())
    }

    /// Gives back all of the lease but `keep`.
    pub(crate) fn let_go(&self, keep: LeaseKind) {
        if let Some(lease) = &self.lease {
            lease.keep(keep);
        }
    }
}
