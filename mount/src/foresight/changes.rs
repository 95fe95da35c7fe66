//! What was changed through this mount lately, for listings that were under way meanwhile.
//!
//! Added to by every change, once it was answered, and asked when a listing has come to its end.

use std::collections::VecDeque;

use p9::{Name, NameBuf};
use parking_lot::Mutex;

/// Changes that are remembered.
const REMEMBERED: usize = 4096;

/// The latest changes, each by the directory and the name.
#[derive(Default)]
pub(super) struct Changes(Mutex<Latest>);

#[derive(Default)]
struct Latest {
    names: VecDeque<(u64, NameBuf)>,
    /// How many there were before those.
    forgotten: u64,
}

impl Changes {
    /// How many there were.
    pub(super) fn count(&self) -> u64 {
        let latest = self.0.lock();
        latest.forgotten + latest.names.len() as u64
    }

    /// One more: `name` in the directory `id`.
    pub(super) fn add(&self, id: u64, name: Name<'_>) {
        let mut latest = self.0.lock();
        latest.names.push_back((id, name.into()));
        if latest.names.len() > REMEMBERED {
            latest.names.pop_front();
            latest.forgotten += 1;
        }
    }

    /// Those in the directory `id` since there were `before`; `None` if that is not known any more.
    pub(super) fn of(&self, id: u64, before: u64) -> Option<Vec<NameBuf>> {
        let latest = self.0.lock();
        let skip = usize::try_from(before.checked_sub(latest.forgotten)?).ok()?;
        let since = latest.names.iter().skip(skip).filter(|(dir, _)| *dir == id);
        Some(since.map(|(_, name)| name.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_remembered_is_not_said_to_be_nothing() {
        let (changes, name) = (Changes::default(), |n: usize| NameBuf::new(n.to_string()).unwrap());
        changes.add(7, name(0).as_name());
        let before = changes.count();
        changes.add(7, name(1).as_name());
        changes.add(8, name(2).as_name());
        assert_eq!(changes.of(7, before), Some(vec![name(1)]));
        (0..REMEMBERED).for_each(|n| changes.add(9, name(n).as_name()));
        assert_eq!(changes.of(7, before), None);
        assert_eq!(changes.of(7, changes.count()), Some(vec![]));
    }
}
