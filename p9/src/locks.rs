//! Byte-range locks of one file, as fcntl(2) has them: who holds what.
//!
//! For trees that keep locks themselves. [`Ranges`] decides, and knows nothing of files or of waiting; a lock that is
//! waited for is a matter of whoever holds the ranges: try, and try again when something was given back. `O` says whose
//! a lock is. Invariant: an owner's ranges do not overlap, those of two owners only where both are shared.

use crate::Errno;
use crate::tree::{Lock, LockKind};

/// The largest offset that a lock may have: `OFFSET_MAX`, that of a file.
const OFFSET_MAX: u64 = i64::MAX as u64;

impl Lock {
    /// The first and the last byte. Errors: `EINVAL` for a start that no file has, `EOVERFLOW` for such an end.
    pub fn range(&self) -> Result<(u64, u64), Errno> {
        if self.start > OFFSET_MAX {
            return Err(Errno::EINVAL);
        }
        let last = match self.length {
            0 => Some(OFFSET_MAX),
            length => self.start.checked_add(length - 1).filter(|last| *last <= OFFSET_MAX),
        };
        Ok((self.start, last.ok_or(Errno::EOVERFLOW)?))
    }

    /// The length of the range from `first` to `last`, 0 if that is the end of everything.
    pub fn length_of(first: u64, last: u64) -> u64 {
        if last >= OFFSET_MAX { 0 } else { last - first + 1 }
    }
}

/// The ranges of one file that are locked.
#[derive(Clone, Debug)]
pub struct Ranges<O>(Vec<Range<O>>);

/// A range that is locked.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Range<O> {
    owner: O,
    exclusive: bool,
    first: u64,
    last: u64,
    pid: u32,
}

impl<O> Default for Ranges<O> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<O: Clone + Eq> Ranges<O> {
    /// The lock of another than `owner` that stands in the way of `lock`: that with the lowest start. Its `owner` is
    /// what `name` says.
    pub fn conflict(&self, owner: &O, lock: &Lock, name: impl Fn(&O) -> u64) -> Result<Option<Lock>, Errno> {
        let (first, last) = lock.range()?;
        if lock.kind == LockKind::Unlock {
            return Ok(None);
        }
        let wants_all = lock.kind == LockKind::Write;
        let others = self.0.iter().filter(|range| range.owner != *owner && (wants_all || range.exclusive));
        let met = others.filter(|range| range.first <= last && first <= range.last).min_by_key(|range| range.first);
        Ok(met.map(|range| Lock {
            kind: if range.exclusive { LockKind::Write } else { LockKind::Read },
            start: range.first,
            length: Lock::length_of(range.first, range.last),
            owner: name(&range.owner),
            pid: range.pid,
        }))
    }

    /// Takes, changes or drops `lock` for `owner`. There must be no conflict. Whether something that was held may be
    /// free now. Errors: `ENOLCK` beyond `most` ranges.
    pub fn set(&mut self, owner: &O, lock: &Lock, most: usize) -> Result<bool, Errno> {
        let (first, last) = lock.range()?;
        // At most, one range becomes two, and there is a new one.
        if self.0.len() + 2 > most && lock.kind != LockKind::Unlock {
            return Err(Errno::ENOLCK);
        }
        let (exclusive, mut freed, mut kept) = (lock.kind == LockKind::Write, false, Vec::new());
        self.0.retain(|range| {
            let meets = range.owner == *owner && range.first <= last && first <= range.last;
            if meets {
                freed |= lock.kind == LockKind::Unlock || range.exclusive && !exclusive;
                if range.first < first {
                    kept.push(Range { last: first - 1, ..range.clone() });
                }
                if range.last > last {
                    kept.push(Range { first: last + 1, ..range.clone() });
                }
            }
            !meets
        });
        self.0.append(&mut kept);
        if lock.kind != LockKind::Unlock {
            self.add(Range { owner: owner.clone(), exclusive, first, last, pid: lock.pid });
        }
        Ok(freed)
    }

    /// Adds a range that meets no other of its owner, as one with those that it touches.
    fn add(&mut self, mut new: Range<O>) {
        self.0.retain(|range| {
            let alike = range.owner == new.owner && range.exclusive == new.exclusive;
            let (before, after) = (range.last.checked_add(1), new.last.checked_add(1));
            let touches = alike && (before == Some(new.first) || after == Some(range.first));
            if touches {
                (new.first, new.last) = (new.first.min(range.first), new.last.max(range.last));
            }
            !touches
        });
        self.0.push(new);
    }

    /// Drops all locks of the owners that `gone` names. Whether there were any.
    pub fn drop_all(&mut self, gone: impl Fn(&O) -> bool) -> bool {
        let before = self.0.len();
        self.0.retain(|range| !gone(&range.owner));
        self.0.len() < before
    }

    /// Whether any owner that `is` names holds anything.
    pub fn holds(&self, is: impl Fn(&O) -> bool) -> bool {
        self.0.iter().any(|range| is(&range.owner))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const READ: LockKind = LockKind::Read;
    const WRITE: LockKind = LockKind::Write;

    fn lock(kind: LockKind, start: u64, length: u64) -> Lock {
        Lock { kind, start, length, owner: 0, pid: 7 }
    }

    #[test]
    fn a_range_ends_where_no_file_goes_on() {
        assert_eq!(lock(READ, 5, 0).range(), Ok((5, OFFSET_MAX)));
        assert_eq!(lock(READ, 5, 3).range(), Ok((5, 7)));
        assert_eq!(lock(READ, 1 << 63, 1).range(), Err(Errno::EINVAL));
        assert_eq!(lock(READ, 5, u64::MAX).range(), Err(Errno::EOVERFLOW));
        assert_eq!((Lock::length_of(5, 7), Lock::length_of(5, OFFSET_MAX)), (3, 0));
    }

    #[test]
    fn what_touches_becomes_one_and_what_is_cut_out_leaves_both_ends() {
        let mut ranges = Ranges::default();
        for start in [0, 20, 10] {
            ranges.set(&1, &lock(WRITE, start, 10), 10).unwrap();
        }
        assert_eq!(ranges.0.len(), 1);
        assert!(ranges.set(&1, &lock(LockKind::Unlock, 12, 3), 10).unwrap());
        assert!(!ranges.set(&1, &lock(LockKind::Unlock, 12, 3), 10).unwrap(), "nothing was there any more");
        let met = |range: Lock| ranges.conflict(&2, &range, |owner| *owner).unwrap();
        assert_eq!(met(lock(READ, 12, 3)), None);
        assert_eq!(met(lock(READ, 5, 10)), Some(Lock { owner: 1, ..lock(WRITE, 0, 12) }));
        assert_eq!(met(lock(READ, 13, 0)), Some(Lock { owner: 1, ..lock(WRITE, 15, 15) }));
        assert_eq!(ranges.set(&2, &lock(READ, 100, 1), 3), Err(Errno::ENOLCK));
        assert!(ranges.drop_all(|owner| *owner == 1) && !ranges.holds(|owner| *owner == 1));
    }

    proptest! {
        /// The same as a lock on each byte.
        #[test]
        fn ranges_are_what_a_lock_on_each_byte_would_be(
            steps in prop::collection::vec((0..3_u64, 0..3_u8, 0..12_u64, 0..12_u64), 1..60),
        ) {
            let mut ranges = Ranges::default();
            // By byte: each owner's lock, 0 none, 1 shared, 2 exclusive.
            let mut bytes = [[0_u8; 3]; 24];
            for (owner, kind, start, length) in steps {
                let kind = [LockKind::Unlock, READ, WRITE][usize::from(kind)];
                let lock = lock(kind, start, length);
                let until = if length == 0 { bytes.len() } else { (start + length) as usize };
                let (mine, want) = (owner as usize, kind as usize);
                let value = match kind { LockKind::Unlock => 0, READ => 1, WRITE => 2 };
                let touched = &mut bytes[start as usize..until];
                let conflict = touched.iter().any(|byte| (0..3).any(|other| {
                    other != mine && (value == 2 && byte[other] > 0 || value == 1 && byte[other] == 2)
                }));
                let met = ranges.conflict(&owner, &lock, |owner| *owner).unwrap();
                prop_assert_eq!(met.is_some(), conflict, "{:?} {}", lock, want);
                if conflict {
                    continue;
                }
                let frees = touched.iter().any(|byte| byte[mine] > value);
                touched.iter_mut().for_each(|byte| byte[mine] = value);
                prop_assert_eq!(ranges.set(&owner, &lock, 1_000).unwrap(), frees);
                for owner in 0..3 {
                    prop_assert_eq!(ranges.holds(|held| *held == owner), bytes.iter().any(|byte| byte[owner as usize] > 0));
                }
            }
        }
    }
}
