//! What was changed through this mount, so that nothing older is told.
//!
//! A mount's own changes break none of its own leases. So each is noted here once it was answered, by the file and by
//! the name; and whatever is kept was asked for at some count of changes, and is told only while neither its file nor
//! its name changed since. Noted and asked by requests, in any task; the lock is held for moments. Files and
//! directories go by their qids, so that it does not matter at which of several places one was changed.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};

use p9::Name;
use parking_lot::Mutex;

/// Files and names whose last change is remembered.
const REMEMBERED: usize = 64 << 10;

/// The changes of one mount.
pub(crate) struct Changes {
    hashes: RandomState,
    latest: Mutex<Latest>,
    remembered: usize,
}

#[derive(Default)]
struct Latest {
    count: u64,
    /// By file or name, the count at its last change.
    changed: HashMap<u64, u64>,
    /// The same, the oldest first; some have changed again since.
    order: VecDeque<(u64, u64)>,
    /// What was asked for before this count may be older than a change that is not remembered any more.
    forgotten: u64,
}

impl Default for Changes {
    fn default() -> Self {
        Self { hashes: RandomState::new(), latest: Mutex::default(), remembered: REMEMBERED }
    }
}

impl Changes {
    /// How many there were: for what is about to be asked for.
    pub(crate) fn count(&self) -> u64 {
        self.latest.lock().count
    }

    /// The file with this qid path was changed.
    pub(crate) fn file(&self, file: u64) {
        self.note(self.hashes.hash_one(file));
    }

    /// What `name` stands for in the directory with this qid path was changed.
    pub(crate) fn name(&self, dir: u64, name: Name<'_>) {
        self.note(self.hash_of(dir, name));
    }

    /// Anything may have been changed.
    pub(crate) fn all(&self) {
        let mut latest = self.latest.lock();
        latest.count += 1;
        latest.forgotten = latest.count;
    }

    /// Whether the file may have been changed since there were `asked` changes.
    pub(crate) fn is_old(&self, asked: u64, file: u64) -> bool {
        self.latest.lock().is_old(asked, self.hashes.hash_one(file))
    }

    /// Whether what the name stands for may have been changed since there were `asked` changes.
    pub(crate) fn is_old_name(&self, asked: u64, dir: u64, name: Name<'_>) -> bool {
        self.latest.lock().is_old(asked, self.hash_of(dir, name))
    }

    fn hash_of(&self, dir: u64, name: Name<'_>) -> u64 {
        self.hashes.hash_one((dir, name.as_bytes()))
    }

    fn note(&self, what: u64) {
        let mut latest = self.latest.lock();
        latest.count += 1;
        let count = latest.count;
        if latest.changed.insert(what, count).is_none() {
            latest.order.push_back((what, count));
        }
        while latest.changed.len() > self.remembered {
            latest.forget_one();
        }
    }
}

impl Latest {
    fn is_old(&self, asked: u64, what: u64) -> bool {
        asked < self.forgotten || self.changed.get(&what).is_some_and(|changed| *changed > asked)
    }

    /// Forgets the one that has not changed for longest, as far as `order` knows.
    fn forget_one(&mut self) {
        let Some((what, then)) = self.order.pop_front() else { return };
        match self.changed.get(&what) {
            Some(&last) if last > then => self.order.push_back((what, last)),
            _ => {
                self.changed.remove(&what);
                self.forgotten = self.forgotten.max(then);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_before_a_change_is_old_and_so_is_what_nobody_remembers() {
        let changes = Changes { remembered: 8, ..Changes::default() };
        let name = Name::new(b"f").unwrap();
        let before = changes.count();
        changes.file(7);
        changes.name(1, name);
        assert!(changes.is_old(before, 7) && changes.is_old_name(before, 1, name));
        assert!(!changes.is_old(before, 8) && !changes.is_old_name(before, 2, name));
        assert!(!changes.is_old(changes.count(), 7));
        // One that changes again and again pushes nobody out.
        (0..100).for_each(|_| changes.file(7));
        assert!(changes.is_old_name(before, 1, name) && !changes.is_old(before, 8));
        (100..120).for_each(|file| changes.file(file));
        assert!(changes.is_old(before, 8), "what was forgotten may have been that");
        assert!(!changes.is_old(changes.count(), 8));
        assert!(changes.latest.lock().order.len() <= 9);
        let before = changes.count();
        changes.all();
        assert!(changes.is_old(before, 8) && !changes.is_old(changes.count(), 8));
    }
}
