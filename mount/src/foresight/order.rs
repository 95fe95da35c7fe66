//! In which order a directory's entries are gone through.
//!
//! Kept for each directory that was listed, under a lock that is held for moments only.

use std::collections::HashMap;
use std::ops::Range;

use super::dirs::Coming;
use super::{Foreseen, LOOKED, OPENED};
use crate::listing::{Listed, Places};

/// Names that one in order may leave out: the kernel knows some already.
const STEP: usize = 8;
/// Files opened without a lease before it is given up to open more ahead.
const REFUSED: u32 = 4;

/// How a directory is gone through, and what was asked ahead.
pub(crate) struct State {
    pub(super) lookups: Followed,
    pub(super) opens: Followed,
    /// By the place in the listing.
    pub(super) foreseen: HashMap<usize, Foreseen>,
    pub(super) dirs: Followed,
    pub(super) dirs_coming: HashMap<usize, Coming>,
    /// The last of its directories of which files were opened, and in which order.
    pub(super) deep: Option<(u64, usize)>,
    /// How many files in a row were opened without a lease.
    refused: u32,
}

impl Default for State {
    fn default() -> Self {
        Self {
            lookups: Followed::new(LOOKED.0),
            opens: Followed::new(OPENED.0),
            foreseen: HashMap::new(),
            dirs: Followed::new(OPENED.0),
            dirs_coming: HashMap::new(),
            deep: None,
            refused: 0,
        }
    }
}

impl State {
    /// More is asked about, at the places of `next`: what was passed over before `places` is not wanted any more.
    pub(super) fn pass(&mut self, listed: &Listed, order: usize, places: Places, next: &Range<usize>) {
        if !next.is_empty() {
            self.foreseen.retain(|entry, _| listed.place_in(order, *entry) >= places[order]);
        }
    }

    /// A file was opened ahead, with a lease or without.
    pub(super) fn leased(&mut self, granted: bool) {
        self.refused = if granted { 0 } else { self.refused.saturating_add(1) };
    }

    /// Whether it is of no use to open files of this directory ahead, since they come without leases.
    pub(super) fn is_unleased(&self) -> bool {
        self.refused >= REFUSED
    }
}

/// How requests of one kind go through a directory.
pub(super) struct Followed {
    last: Option<Places>,
    runs: [u32; 2],
    /// The order that was followed last.
    order: usize,
    /// What was asked about ends here, in each order.
    asked: Places,
    /// How many are asked about next, and at first.
    window: usize,
    first: usize,
}

impl Followed {
    fn new(first: usize) -> Self {
        Self { last: None, runs: [0; 2], order: 0, asked: [0; 2], window: first, first }
    }

    /// Takes note of a request; gives the order that is followed once `enough` came in it.
    pub(super) fn step(&mut self, places: Places, enough: u32) -> Option<usize> {
        self.step_within(STEP, places, enough)
    }

    /// The same of requests that leave out any number of names in between.
    pub(super) fn step_anyhow(&mut self, places: Places, enough: u32) -> Option<usize> {
        if self.last == Some(places) {
            return None;
        }
        self.step_within(usize::MAX, places, enough)
    }

    fn step_within(&mut self, most: usize, places: Places, enough: u32) -> Option<usize> {
        for order in 0..2 {
            let before = self.last.map(|last| last[order]);
            let follows = before.is_some_and(|before| before < places[order] && places[order] - before <= most);
            self.runs[order] = if follows { self.runs[order].saturating_add(1) } else { 0 };
            if !follows {
                self.asked[order] = 0;
            }
        }
        self.last = Some(places);
        // Names that follow each other in one order may seem to do so in the other, for a while.
        if self.runs[0] != self.runs[1] {
            self.order = usize::from(self.runs[1] > self.runs[0]);
        }
        let order = self.order;
        if self.runs[order] < enough {
            self.window = self.first;
            return None;
        }
        Some(order)
    }

    /// Whether nothing was asked for yet.
    pub(super) fn is_new(&self) -> bool {
        self.last.is_none() && self.asked == [0; 2]
    }

    /// Whether the last request was for a name just before `places`, or for that.
    pub(super) fn is_near(&self, places: Places) -> bool {
        self.last.is_some_and(|last| (0..2).any(|order| (last[order]..=last[order] + STEP).contains(&places[order])))
    }

    /// Which places of `order` to ask about before anything was asked for: up to `most`, from that of `place` on.
    pub(super) fn first(&mut self, order: usize, place: usize, entries: usize, most: usize) -> Range<usize> {
        (self.order, self.asked[order]) = (order, entries.min(place + most));
        (self.runs[order], self.window) = (1, most);
        place..self.asked[order]
    }

    /// Which places of `order` to ask about when that of `place` was asked for: none while enough were. Each time it is
    /// four times as many, up to `most`.
    pub(super) fn next(&mut self, order: usize, place: usize, entries: usize, most: usize) -> Range<usize> {
        let from = self.asked[order].max(place + 1);
        // More are left than were asked about before the last.
        if from > place + self.window / 4 + 1 {
            return from..from;
        }
        let to = (from + self.window).min(entries);
        self.asked[order] = to;
        self.window = (self.window * 4).min(most);
        from.min(to)..to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_orders_are_followed_and_a_jump_ends_a_run() {
        let mut followed = Followed::new(LOOKED.0);
        for places in [[0, 9], [1, 3], [4, 0]] {
            assert_eq!(followed.step(places, 3), None);
        }
        assert_eq!(followed.step([5, 8], 3), Some(0));
        assert!(followed.is_near([6, 100]) && followed.is_near([5, 8]) && !followed.is_near([4, 100]));
        assert_eq!(followed.step([5 + STEP + 1, 9], 3), None);
        assert_eq!(followed.step([100, 10], 3), Some(1));
    }

    #[test]
    fn more_are_asked_about_each_time_when_few_are_left() {
        let mut followed = Followed::new(LOOKED.0);
        let first = 11 + LOOKED.0;
        assert_eq!(followed.next(0, 10, 1000, LOOKED.1), 11..first);
        assert_eq!(followed.next(0, 11, 1000, LOOKED.1), first..first + 4 * LOOKED.0);
        assert_eq!(followed.next(0, 12, 1000, LOOKED.1).len(), 0);
        assert_eq!(followed.next(1, 999, 1000, LOOKED.1).len(), 0);
    }
}
