//! Where the units of files are, in memory.
//!
//! Filled when the cache is opened and by its writer; asked by reads. Its lock is held for moments.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;

use super::entry::{Entry, Hash};
use super::{FileId, PAGE};

/// All units that are kept.
#[derive(Default)]
pub(super) struct Index(Mutex<Maps>);

#[derive(Default)]
struct Maps {
    /// By file and first page: the version that was kept last.
    units: BTreeMap<(u64, u32), Kept>,
    spots: HashMap<Hash, Spot>,
}

#[derive(Clone, Copy)]
struct Kept {
    version: u64,
    hash: Hash,
    length: u32,
}

/// A unit of a file.
pub(super) struct Unit {
    /// Its offset in the file.
    pub(super) start: u64,
    pub(super) length: u32,
    pub(super) hash: Hash,
    pub(super) spot: Spot,
}

impl Unit {
    /// Where in the file it ends.
    pub(super) fn end(&self) -> u64 {
        self.start + u64::from(self.length)
    }
}

/// Where some bytes are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Spot {
    /// The number of the segment.
    pub(super) segment: u32,
    pub(super) offset: u64,
}

impl Index {
    /// The version of which the start of `file` is kept.
    pub(super) fn version(&self, file: u64) -> Option<u64> {
        self.0.lock().units.get(&(file, 0)).map(|kept| kept.version)
    }

    /// The unit that has the byte at `offset`, if that is kept.
    pub(super) fn find(&self, id: FileId, offset: u64) -> Option<Unit> {
        let maps = self.0.lock();
        let page = u32::try_from(offset / PAGE).ok()?;
        let (&(_, first), &Kept { version, hash, length }) =
            maps.units.range((id.file, 0)..=(id.file, page)).next_back()?;
        let unit = Unit { start: u64::from(first) * PAGE, length, hash, spot: *maps.spots.get(&hash)? };
        (version == id.version && offset < unit.end()).then_some(unit)
    }

    /// Where bytes with this hash are.
    pub(super) fn spot(&self, hash: Hash) -> Option<Spot> {
        self.0.lock().spots.get(&hash).copied()
    }

    /// A unit is kept, as `entry` of the segment `segment` says.
    pub(super) fn add(&self, entry: &Entry, segment: u32) {
        let &Entry { id, page, length, hash, offset } = entry;
        let mut maps = self.0.lock();
        maps.units.insert((id.file, page), Kept { version: id.version, hash, length });
        if let Some(offset) = offset {
            maps.spots.insert(hash, Spot { segment, offset });
        }
    }

    /// The segment `segment` has gone.
    pub(super) fn remove(&self, segment: u32) {
        self.0.lock().spots.retain(|_, spot| spot.segment != segment);
        self.prune();
    }

    /// Forgets the units whose bytes have gone.
    pub(super) fn prune(&self) {
        let Maps { units, spots } = &mut *self.0.lock();
        units.retain(|_, kept| spots.contains_key(&kept.hash));
    }

    /// How many units are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.lock().units.len()
    }
}
