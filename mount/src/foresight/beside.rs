//! Directories that are gone through one after the other, file by file: `tar`, `grep -r`, `git status`.
//!
//! What was done with the last one is about to be done with the next, and with those that come after it.

use std::sync::Arc;

use p9::tree::LeaseKind;

use super::{Foresight, OPENED};
use crate::listing::Listed;
use crate::table::Inode;

/// Directories that come next, of which files are fetched, too.
const BESIDE: usize = 8;

impl Foresight {
    /// In which order files of another directory beside `listed` were opened last.
    pub(super) fn deep(&self, listed: &Listed) -> Option<usize> {
        let above = self.above(&listed.dir)?;
        let (last, order) = above.ways.lock().deep?;
        (last != listed.dir.id).then_some(order)
    }

    /// The directory that `dir` is in, if it was listed.
    pub(super) fn above(&self, dir: &Inode) -> Option<Arc<Listed>> {
        self.dirs.peek(&dir.place()?.dir.id)
    }

    /// Files of `dir` are opened in `order`, as those of the directory that the kernel calls `last` were, and both are
    /// in `above`: so are those of the directories that come next there, as far as they were listed.
    pub(super) fn foresee_beside(self: &Arc<Self>, above: &Listed, dir: &Inode, last: u64, order: usize) {
        let place = |dir: &Inode| above.find(dir.place()?.name.as_name());
        let before = self.table.get(last).ok().and_then(|last| place(&last));
        let (Some(now), Some(before)) = (place(dir), before) else { return };
        let Some(way) = (0..2).filter(|way| now[*way] > before[*way]).min_by_key(|way| now[*way] - before[*way]) else {
            return;
        };
        for place in (now[way] + 1..above.len()).take(BESIDE) {
            let name = above.at(way, place).1.name.as_name();
            let next = self.table.child(&above.dir, name).and_then(|next| self.dirs.get(&next.id));
            let Some(next) = next.filter(|next| next.holds(LeaseKind::Read)) else { continue };
            let Some(node) = self.table.at_hand(&next.dir) else { continue };
            let state = &mut *next.ways.lock();
            if state.opens.is_new() {
                let first = state.opens.first(order, 0, next.len(), OPENED.1);
                self.foresee(&next, &node, state, (order, first), true);
            }
        }
    }
}
