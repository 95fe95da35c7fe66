//! The lines that made a table, in order: read again, they make the same one.
//!
//! A line whose effect is gone is dropped, where no later line was read in its light: where none bound what was at that
//! path, above or below it, and none mounted below it. One that is kept for such a line alone goes with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use p9::NameBuf;

use crate::text::Line;

/// The number of a line: later ones have higher ones. 0 is none.
type Number = u64;

/// More paths than this with lines that only others keep are not looked at again: such lines are harmless.
const KEPT: usize = 256;

#[derive(Default)]
pub(crate) struct Lines {
    made: BTreeMap<Number, Line>,
    last: Number,
    root: Way,
    /// Paths of which lines have no effect any more, and are there for those that were read in their light.
    kept: BTreeSet<Vec<NameBuf>>,
}

/// What lines were about a path.
#[derive(Default)]
struct Way {
    /// Those that changed what is mounted here.
    here: Vec<Number>,
    /// Of those, the ones up to this have no effect any more.
    undone: Number,
    /// Those that bound what was here; and here or below.
    bound: BTreeSet<Number>,
    bound_within: BTreeSet<Number>,
    /// Those that changed what is mounted below, not here.
    changed_below: BTreeSet<Number>,
    below: HashMap<NameBuf, Way>,
}

impl Way {
    fn at(&self, path: &[NameBuf]) -> Option<&Self> {
        path.iter().try_fold(self, |way, name| way.below.get(name))
    }

    /// Notes line `number`, which changed `old`; or forgets that.
    fn changed(&mut self, number: Number, old: &[NameBuf], is: bool) -> &mut Self {
        old.iter().fold(self, |way, name| {
            note(&mut way.changed_below, number, is);
            way.below.entry(name.clone()).or_default()
        })
    }

    /// Notes line `number`, which bound what was at `new`; or forgets that.
    fn looked_at(&mut self, number: Number, new: &[NameBuf], is: bool) {
        note(&mut self.bound_within, number, is);
        let way = new.iter().fold(self, |way, name| {
            let way = way.below.entry(name.clone()).or_default();
            note(&mut way.bound_within, number, is);
            way
        });
        note(&mut way.bound, number, is);
    }
}

fn note(set: &mut BTreeSet<Number>, number: Number, is: bool) {
    if is {
        set.insert(number);
    } else {
        set.remove(&number);
    }
}

/// The names of a path that a line has.
fn names(path: &str) -> Vec<NameBuf> {
    path.split('/').filter_map(|name| NameBuf::new(name).ok()).collect()
}

impl Lines {
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Line> {
        self.made.values()
    }

    /// Adds a line that changed `old`; a bind, one that looked at `new`. If it `undoes` what was there, the lines about
    /// that are kept only for others.
    pub(crate) fn add(&mut self, line: Line, old: &[NameBuf], new: Option<&[NameBuf]>, undoes: bool) {
        self.last += 1;
        let number = self.last;
        let is_end = matches!(line, Line::Unmount { .. });
        self.made.insert(number, line);
        let way = self.root.changed(number, old, true);
        way.here.push(number);
        if undoes {
            way.undone = if is_end { number } else { number - 1 };
            if way.here.first().is_some_and(|first| *first <= way.undone) {
                self.kept.insert(old.to_vec());
            }
        }
        if let Some(new) = new {
            self.root.looked_at(number, new, true);
        }
        if undoes {
            self.tidy_all();
        }
    }

    /// The lines that changed `old`.
    pub(crate) fn about(&self, old: &[NameBuf]) -> impl Iterator<Item = &Line> {
        self.root.at(old).into_iter().flat_map(|way| &way.here).filter_map(|number| self.made.get(number))
    }

    /// Drops the lines about `old` that are `gone`, unless they had a part in what a later line did, and what was kept
    /// for them alone. Says whether none is left.
    pub(crate) fn forget(&mut self, old: &[NameBuf], gone: impl Fn(&Line) -> bool) -> bool {
        let (here, saw) = self.seen(old);
        let is_gone = |number: &Number| self.made.get(number).is_some_and(&gone);
        let all: Vec<Number> = here.iter().copied().filter(is_gone).collect();
        if all.first().is_some_and(|first| saw >= *first) {
            return false;
        }
        self.drop_all(old, &all);
        if !all.is_empty() {
            self.tidy_all();
        }
        true
    }

    fn tidy_all(&mut self) {
        let mut more = self.kept.len() <= KEPT;
        while more {
            more = false;
            for path in self.kept.clone() {
                more |= self.tidy(&path);
            }
        }
    }

    /// Drops what is kept of the lines about `path` and need not be any more. Says whether that was anything.
    fn tidy(&mut self, path: &[NameBuf]) -> bool {
        let undone = self.root.at(path).map_or(0, |way| way.undone);
        let (here, saw) = self.seen(path);
        let old: Vec<Number> = here.iter().copied().filter(|number| *number <= undone).collect();
        let wanted = old.iter().any(|number| *number <= saw);
        // What ends those that are wanted stays with them.
        let unwanted: Vec<Number> =
            old.into_iter().filter(|number| *number > saw && (!wanted || *number != undone)).collect();
        self.drop_all(path, &unwanted);
        if !wanted {
            self.kept.remove(path);
        }
        !unwanted.is_empty()
    }

    fn drop_all(&mut self, old: &[NameBuf], numbers: &[Number]) {
        for number in numbers {
            self.root.changed(*number, old, false).here.retain(|here| here != number);
            if let Some(Line::Bind { new, .. }) = self.made.remove(number) {
                self.root.looked_at(*number, &names(&new), false);
            }
        }
    }

    /// The lines that changed `old`, and the last of all that was read in the light of what is there.
    fn seen(&self, old: &[NameBuf]) -> (&[Number], Number) {
        let latest = |set: &BTreeSet<Number>| set.last().copied().unwrap_or_default();
        let (mut way, mut saw) = (&self.root, 0);
        for name in old {
            saw = saw.max(latest(&way.bound));
            let Some(next) = way.below.get(name) else { return (&[], 0) };
            way = next;
        }
        (&way.here, saw.max(latest(&way.bound_within)).max(latest(&way.changed_below)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Flags;

    fn path(text: &str) -> Vec<NameBuf> {
        text.split('/').filter(|name| !name.is_empty()).map(|name| NameBuf::new(name).unwrap()).collect()
    }

    fn made(lines: &[(&str, Option<&str>)]) -> Lines {
        let mut all = Lines::default();
        for (old, new) in lines {
            let line = match new {
                Some(new) => Line::Bind { flags: Flags::default(), new: (*new).into(), old: (*old).into() },
                None => Line::Cd { dir: (*old).into() },
            };
            all.add(line, &path(old), new.map(path).as_deref(), false);
        }
        all
    }

    #[test]
    fn a_line_is_dropped_unless_a_later_one_was_read_in_its_light() {
        for (lines, dropped) in [
            (&[("/a", None), ("/b", None)][..], true),
            (&[("/a", None), ("/a/b", None)], false),
            (&[("/a/b", None), ("/a", None)], false),
            (&[("/a/b", None), ("/c", Some("/a/b/d"))], false),
            (&[("/a/b", None), ("/c", Some("/a"))], false),
            (&[("/a/b", None), ("/c", Some("/"))], false),
            (&[("/a/b", None), ("/c", Some("/a/c"))], true),
            (&[("/c", Some("/a")), ("/a/b", None)], true),
        ] {
            let mut all = made(lines);
            let old = lines.iter().map(|(old, _)| *old).find(|old| old.starts_with("/a")).unwrap();
            let expected = dropped || old == "/a/b" && lines.len() == 2 && lines[1].0 == "/a";
            assert_eq!(all.forget(&path(old), |_| true), expected, "{lines:?}");
            assert_eq!(all.iter().len(), 2 - usize::from(expected), "{lines:?}");
        }
    }
}
