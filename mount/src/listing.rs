//! What a directory held when it was listed, and what of that may be told without asking.
//!
//! Made when a listing has come to its end, asked by lookups, in the request's task. Under a lease on the directory's
//! contents it answers for its files and for names that are not there, until somebody else changes one; without, for a
//! moment, and for what is there alone. Invariant: what was changed through this mount since the listing began is not
//! told (see [`crate::changes`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use p9::tree::{Lease, LeaseKind};
use p9::{Attr, Entry, FileKind, Name, NameBuf, Qid};
use parking_lot::Mutex;

use crate::changes::Changes;
use crate::foresight::State as Ways;
use crate::leash::Leash;
use crate::noted::Noted;
use crate::table::Inode;
use crate::tell::Teller;

/// An entry of a directory, as it was listed.
pub(crate) struct Seen {
    pub(crate) name: NameBuf,
    /// Its attributes, if they came along.
    noted: Option<Noted>,
    /// What the kernel was told to call it, if it was told of it.
    pub(crate) id: Option<u64>,
    /// Where the listing goes on after it.
    pub(crate) cookie: u64,
}

impl Seen {
    /// What a listing says of `entry`.
    pub(crate) fn of(entry: &Entry<'_>) -> Self {
        Self::new(entry.name.into(), entry.attr, None, entry.cookie)
    }

    /// `name`, which the kernel was told to call `id`.
    pub(crate) fn new(name: NameBuf, attr: Option<&Attr>, id: Option<u64>, cookie: u64) -> Self {
        Self { name, noted: attr.and_then(Noted::of), id, cookie }
    }

    /// Its attributes, if they came along.
    pub(crate) fn attr(&self) -> Option<Attr> {
        self.noted.as_ref().map(Noted::attr)
    }

    /// The length of a regular file whose contents stay what they are while nobody changes them.
    pub(crate) fn plain(&self) -> Option<u64> {
        let regular = |attr: &Attr| attr.mode & libc::S_IFMT == libc::S_IFREG && attr.qid.version != 0;
        self.attr().filter(regular).map(|attr| attr.size)
    }
}

/// A listing on its way.
pub(crate) struct Gathered {
    pub(crate) entries: Vec<Seen>,
    /// Names that are known not to be there.
    pub(crate) missing: Vec<NameBuf>,
    /// Whether it has come to the end, from the start.
    pub(crate) whole: bool,
    pub(crate) begun: Instant,
    /// The count of [`Changes`] when it began.
    pub(crate) asked: u64,
    pub(crate) lease: Option<Arc<Leash>>,
    /// The directory's own attributes, if they came along under the lease.
    pub(crate) own: Option<Attr>,
}

impl Gathered {
    /// A listing that begins now.
    pub(crate) fn new(changes: &Changes) -> Self {
        Self {
            entries: Vec::new(),
            missing: Vec::new(),
            whole: false,
            begun: Instant::now(),
            asked: changes.count(),
            lease: None,
            own: None,
        }
    }

    /// What is listed was opened with this `lease`, unless it has one, and the directory's own attributes are `attr`,
    /// which are kept where the lease covers them.
    pub(crate) fn is_under(&mut self, lease: Option<Lease>, attr: Option<Attr>, teller: &Teller) {
        self.lease = self.lease.take().or(lease.map(|lease| Leash::new(lease, teller)));
        self.own = attr.filter(|_| self.lease.as_ref().is_some_and(|lease| lease.holds(LeaseKind::Read)));
    }

    /// What the kernel was told meanwhile: names, and what they are called.
    pub(crate) fn told(&self) -> impl Iterator<Item = (Name<'_>, u64)> {
        self.entries.iter().filter_map(|seen| Some((seen.name.as_name(), seen.id?)))
    }

    /// Adds entries that were listed after the cookie `after`, 0 for the start; none follow if it `ended`. Gives
    /// whether what was gathered has no gap. Whoever reads goes back to the last entry for which it had room.
    pub(crate) fn add(
        &mut self, after: u64, entries: impl IntoIterator<Item = Seen>, ended: bool, most: usize,
    ) -> bool {
        let follows = match after {
            0 => 0,
            _ => match self.entries.iter().rposition(|seen| seen.cookie == after) {
                Some(last) => last + 1,
                None => return false,
            },
        };
        self.entries.truncate(follows);
        // One more than are remembered says that there are too many.
        let room = (most + 1).saturating_sub(self.entries.len());
        self.entries.extend(entries.into_iter().take(room));
        self.whole = ended;
        true
    }
}

/// A place in each of the two orders: as entries were listed, and as their names are sorted.
pub(crate) type Places = [usize; 2];

/// A directory that was listed.
pub(crate) struct Listed {
    /// The directory.
    pub(crate) dir: Arc<Inode>,
    /// As they were listed.
    entries: Vec<Seen>,
    /// Where in `entries` each is, as they are sorted.
    sorted: Vec<u32>,
    /// Names that are known not to be there.
    missing: Vec<NameBuf>,
    whole: bool,
    begun: Instant,
    asked: u64,
    changes: Arc<Changes>,
    lease: Option<Arc<Leash>>,
    own: Option<Attr>,
    /// How it is gone through.
    pub(crate) ways: Mutex<Ways>,
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
    /// The directory `dir`, as it was listed.
    pub(crate) fn new(dir: Arc<Inode>, gathered: Gathered, changes: Arc<Changes>) -> Arc<Self> {
        let Gathered { entries, missing, whole, begun, asked, lease, own } = gathered;
        if let Some(lease) = &lease {
            lease.is_of(dir.id);
        }
        let mut entries = entries;
        entries.shrink_to_fit();
        let mut sorted: Vec<u32> = (0..entries.len() as u32).collect();
        sorted.sort_unstable_by(|a, b| entries[*a as usize].name.cmp(&entries[*b as usize].name));
        let ways = Mutex::default();
        Arc::new(Self { dir, entries, sorted, missing, whole, begun, asked, changes, lease, own, ways })
    }

    /// Where `name` is.
    pub(crate) fn find(&self, name: Name<'_>) -> Option<Places> {
        let by_name = |entry: &u32| self.entries[*entry as usize].name.as_name().as_bytes().cmp(name.as_bytes());
        let place = self.sorted.binary_search_by(by_name).ok()?;
        Some([self.sorted[place] as usize, place])
    }

    /// The entries, as they were listed.
    pub(crate) fn entries(&self) -> &[Seen] {
        &self.entries
    }

    /// Whether it was listed less than `time` ago.
    pub(crate) fn is_younger(&self, time: Duration) -> bool {
        self.begun.elapsed() < time
    }

    /// The count of [`Changes`] when it was listed.
    pub(crate) fn asked(&self) -> u64 {
        self.asked
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry at `place` of an order, and its place in the listing.
    pub(crate) fn at(&self, order: usize, place: usize) -> (usize, &Seen) {
        let entry = if order == 0 { place } else { self.sorted[place] as usize };
        (entry, &self.entries[entry])
    }

    /// The place in an order of the entry at `entry` in the listing.
    pub(crate) fn place_in(&self, order: usize, entry: usize) -> usize {
        if order == 0 { entry } else { self.find(self.entries[entry].name.as_name()).map_or(0, |places| places[1]) }
    }

    /// Whether the lease lets this much be kept.
    pub(crate) fn holds(&self, kind: LeaseKind) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.holds(kind))
    }

    fn is_broken(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| lease.is_broken())
    }

    /// Whether a new listing would tell more.
    pub(crate) fn is_over(&self, ttl: Duration) -> bool {
        !self.holds(LeaseKind::Read) && (self.is_broken() || self.begun.elapsed() >= ttl / 2)
    }

    /// Whether it says anything of `name`.
    pub(crate) fn says(&self, name: Name<'_>) -> bool {
        self.whole || self.find(name).is_some() || self.missing.iter().any(|missing| missing.as_name() == name)
    }

    /// Whether it is all that the directory holds.
    pub(crate) fn is_whole(&self) -> bool {
        self.whole
    }

    /// Whether it tells nothing but the order of its names.
    pub(crate) fn is_bare(&self) -> bool {
        self.lease.is_none() && self.entries.iter().all(|seen| seen.noted.is_none())
    }

    /// What may be told of `name`; the kernel keeps things for `ttl`.
    pub(crate) fn known(&self, name: Name<'_>, ttl: Duration) -> Option<Known> {
        if self.changes.is_old_name(self.asked, self.dir.qid_path, name) {
            return None;
        }
        let Some([entry, _]) = self.find(name) else {
            return (self.says(name) && self.holds(LeaseKind::Attr)).then_some(Known::Missing);
        };
        let attr = self.entries[entry].attr()?;
        let is_dir = attr.qid.kind == FileKind::Dir;
        // What has other names may be changed by those, which not everybody tells.
        if !is_dir && attr.nlink != 1 || self.changes.is_old(self.asked, attr.qid.path) {
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

    /// Whether `name` is still that of the directory `qid`.
    pub(crate) fn still_leads(&self, name: Name<'_>, qid: Qid) -> bool {
        let there = || self.find(name).and_then(|[entry, _]| self.entries[entry].attr());
        self.holds(LeaseKind::Attr)
            && !self.changes.is_old_name(self.asked, self.dir.qid_path, name)
            && there().is_some_and(|attr| (attr.qid.kind, attr.qid.path) == (qid.kind, qid.path))
    }

    /// The directory's own attributes, while they are what they were.
    pub(crate) fn own(&self) -> Option<Attr> {
        let own = self.own.filter(|_| self.holds(LeaseKind::Read))?;
        (!self.changes.is_old(self.asked, self.dir.qid_path)).then_some(own)
    }

    /// The kernel is told the directory's own attributes.
    pub(crate) fn tells_own(&self) {
        if let Some(lease) = &self.lease {
            lease.tells_own();
        }
    }

    /// The kernel is told that `name` is the file that it calls `id`.
    pub(crate) fn tells(&self, name: Name<'_>, id: u64) {
        if let Some(lease) = &self.lease {
            lease.tells(name, id);
        }
    }

    /// The kernel was told by `other`, a listing of the same directory that is not kept beside this one: what of that a
    /// lease covered this one's covers from now on.
    pub(crate) fn takes_over(&self, other: &Gathered) {
        if let (Some(lease), Some(others)) = (&self.lease, &other.lease) {
            let told: Vec<_> = other.told().map(|(name, id)| (name.into(), id)).collect();
            told.iter().for_each(|(name, id): &(NameBuf, u64)| lease.tells(name.as_name(), *id));
            others.forgets();
            lease.has_told(&told);
        }
    }

    /// The lease that covers it, if one does.
    pub(crate) fn lease(&self) -> Option<&Arc<Leash>> {
        self.lease.as_ref()
    }

    /// The attributes of `name`, if it is a regular file that is covered by the lease, contents and all.
    pub(crate) fn covered(&self, name: Name<'_>) -> Option<Attr> {
        match self.known(name, Duration::ZERO)? {
            Known::There(attr, _) if self.holds(LeaseKind::Read) && attr.qid.kind == FileKind::File => Some(*attr),
            _ => None,
        }
    }

    /// Whether the entry at `entry` in the listing was fetched, and still is what it was.
    pub(crate) fn has_fetched(&self, entry: usize) -> bool {
        let file = self.lease.as_ref().and_then(|lease| lease.fetched(entry));
        file.is_some_and(|file| file.is_good())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(name: &str, cookie: u64) -> Seen {
        Seen::new(NameBuf::new(name).unwrap(), None, None, cookie)
    }

    #[test]
    fn entries_are_found_in_both_orders() {
        let (changes, root) = (Arc::<Changes>::default(), Inode::root_for_tests());
        let mut gathered = Gathered::new(&changes);
        assert!(gathered.add(0, [seen("c", 1), seen("a", 2), seen("b", 3)], true, 10));
        let listed = Listed::new(root, gathered, changes);
        assert_eq!(listed.find(Name::new(b"c").unwrap()), Some([0, 2]));
        assert_eq!((listed.at(1, 2).0, listed.place_in(1, 0)), (0, 2));
    }

    #[test]
    fn a_listing_with_a_gap_is_not_taken_for_the_whole() {
        let mut gathered = Gathered::new(&Changes::default());
        assert!(gathered.add(0, [seen("a", 1), seen("b", 2), seen("c", 3)], false, 10));
        // The reader had room for two.
        assert!(gathered.add(2, [seen("c", 3), seen("d", 4)], true, 10));
        let names: Vec<_> = gathered.entries.iter().map(|seen| seen.name.to_string()).collect();
        assert_eq!((names.join(""), gathered.whole), ("abcd".into(), true));
        assert!(!gathered.add(9, [seen("z", 10)], true, 10), "it went elsewhere");
        assert!(gathered.add(0, [], true, 10));
        assert!(gathered.entries.is_empty());
    }
}
