//! A file that is read here and there: a database, an archive, a program that is being started.
//!
//! Each read has to go for its few bytes what may be a long way. So more is fetched around them, and the kernel is
//! given it. How much says the way itself: as long as to fetch some costs no more than a few times what a page alone
//! costs, the next is twice as long; so a reader never waits for more than a few times what it would have without.
//! Asked by the read of an open file, in the request's task. Invariant: no part of a file is fetched twice for this.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Duration;

/// What is fetched around a read at least, and at most: more of a file of which most is soon there.
const UNIT: u64 = 64 << 10;
const MOST: (u64, u64) = (1 << 20, 4 << 20);
/// A file up to this long is such a one: a program, a library.
const SHORT: u64 = 64 << 20;
/// Reads here and there before anything is fetched around one.
const SOME: u32 = 2;
/// What is fetched may take so many times as long as a read alone.
const TIMES: u32 = 3;

/// How one open file is read here and there.
#[derive(Default)]
pub(crate) struct Scattered {
    reads: u32,
    /// The least that a read alone took.
    alone: Option<Duration>,
    /// How much is fetched around a read.
    span: u64,
    /// The units that were fetched, 64 in each.
    fetched: HashMap<u64, u64>,
}

impl Scattered {
    /// The range `wanted` is read, away from what was read before, of a file that is `size` long. Gives what is to be
    /// fetched around it: whole units, in which its start is; `None` if it is to be read alone.
    pub(crate) fn around(&mut self, wanted: &Range<u64>, size: u64) -> Option<Range<u64>> {
        self.reads = self.reads.saturating_add(1);
        self.alone?;
        if self.reads <= SOME {
            return None;
        }
        let most = if size <= SHORT { MOST.1 } else { MOST.0 };
        let (unit, span) = (wanted.start / UNIT, self.span.clamp(UNIT, most) / UNIT);
        if self.has(unit) {
            return None;
        }
        let first = unit - unit % span;
        let last = (first + span).max(wanted.end.div_ceil(UNIT)).min(size.div_ceil(UNIT));
        let start = (first..unit).rev().find(|unit| self.has(*unit)).map_or(first, |before| before + 1);
        let end = (unit..last).find(|unit| self.has(*unit)).unwrap_or(last);
        for unit in start..end {
            *self.fetched.entry(unit / 64).or_default() |= 1 << (unit % 64);
        }
        (start < end).then(|| start * UNIT..(end * UNIT).min(size))
    }

    fn has(&self, unit: u64) -> bool {
        self.fetched.get(&(unit / 64)).is_some_and(|units| units & (1 << (unit % 64)) != 0)
    }

    /// A read alone took so long.
    pub(crate) fn took_alone(&mut self, time: Duration) {
        self.alone = Some(self.alone.map_or(time, |least| least.min(time)));
    }

    /// To fetch `range` took so long.
    pub(crate) fn took(&mut self, range: &Range<u64>, time: Duration) {
        let (Some(alone), length) = (self.alone, range.end - range.start) else { return };
        if time <= alone * TIMES && length >= self.span {
            self.span = (2 * self.span.max(UNIT)).min(MOST.1);
        } else if time > alone * TIMES * 2 {
            self.span = (self.span / 2).max(UNIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const SIZE: u64 = 100 << 20;

    fn page(at: u64) -> Range<u64> {
        at..at + (4 << 10)
    }

    /// One that was read alone, a millisecond each time.
    fn scattered() -> Scattered {
        let mut scattered = Scattered::default();
        for _ in 0..SOME {
            assert_eq!(scattered.around(&page(50 << 20), SIZE), None);
            scattered.took_alone(MS);
        }
        scattered
    }

    #[test]
    fn more_is_fetched_as_long_as_it_takes_little_longer() {
        let mut far = scattered();
        let mut lengths = Vec::new();
        for at in 1..8 {
            let range = far.around(&page(at * (4 << 20) + 5000), SIZE).unwrap();
            assert!(range.contains(&(at * (4 << 20) + 5000)));
            lengths.push((range.end - range.start) / UNIT);
            far.took(&range, MS * if lengths.len() < 5 { 2 } else { 7 });
        }
        assert_eq!(lengths, [1, 2, 4, 8, 16, 8, 4]);
    }

    #[test]
    fn nothing_is_fetched_twice_and_nothing_beyond_the_end() {
        let mut scattered = scattered();
        let mut fetched = Vec::new();
        for at in (0..=SIZE / 10_000).rev().chain(0..=SIZE / 10_000).map(|n| n * 10_000).chain([SIZE + 99]) {
            let Some(range) = scattered.around(&page(at), SIZE + 100) else { continue };
            scattered.took(&range, MS);
            fetched.push(range);
        }
        fetched.sort_unstable_by_key(|range| range.start);
        assert_eq!((fetched[0].start, fetched.last().unwrap().end), (0, SIZE + 100));
        assert!(fetched.windows(2).all(|two| two[0].end == two[1].start), "each byte once");
    }

    #[test]
    fn a_file_that_is_read_here_and_there_once_or_twice_is_left_alone() {
        let mut scattered = Scattered::default();
        assert_eq!(scattered.around(&page(5 << 20), SIZE), None);
        assert_eq!(scattered.around(&page(7 << 20), SIZE), None);
    }

    #[test]
    fn what_is_fetched_around_a_read_is_no_less_than_that_and_of_a_short_file_more() {
        let mut long = scattered();
        let wanted = (10 << 20) + 5000..(10 << 20) + 5000 + (128 << 10);
        let around = long.around(&wanted, SIZE).unwrap();
        assert!(around.start <= wanted.start && around.end >= wanted.end, "{around:?}");
        let mut most = [0, 0];
        for (size, most) in [SIZE, 40 << 20].into_iter().zip(&mut most) {
            let mut far = scattered();
            for at in 1..9 {
                let range = far.around(&page(at * (4 << 20)), size).unwrap();
                far.took(&range, MS);
                *most = (range.end - range.start).max(*most);
            }
        }
        assert_eq!(most, [1 << 20, 4 << 20]);
    }
}
