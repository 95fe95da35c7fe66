//! The lines that made a table, in order: read again, they make the same one.
//!
//! A line whose effect is gone is dropped, where no later line was read in its light: where none bound what was at that
//! path, above or below it, and none mounted below it. That is asked at each change, so for each path it is kept which
//! line was the last to do so; where that line has been dropped since, a line may stay that could go, which is
//! harmless.

use std::collections::{BTreeMap, HashMap};

use p9::NameBuf;

use crate::text::Line;

/// The number of a line: later ones have higher ones. 0 is none.
type Number = u64;

#[derive(Default)]
pub(crate) struct Lines {
    made: BTreeMap<Number, Line>,
    last: Number,
    root: Way,
}

/// What lines were about a path.
#[derive(Default)]
struct Way {
    /// Those that changed what is mounted here.
    here: Vec<Number>,
    /// The last that bound what was here; and here or below.
    bound: Number,
    bound_within: Number,
    /// The last that changed what is mounted below, not here.
    changed_below: Number,
    below: HashMap<NameBuf, Way>,
}

impl Lines {
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Line> {
        self.made.values()
    }

    /// Adds a line that changed `old`; a bind, one that looked at `new`.
    pub(crate) fn add(&mut self, line: Line, old: &[NameBuf], new: Option<&[NameBuf]>) {
        self.last += 1;
        let number = self.last;
        self.made.insert(number, line);
        let mut way = &mut self.root;
        for name in old {
            way.changed_below = number;
            way = way.below.entry(name.clone()).or_default();
        }
        way.here.push(number);
        let Some(new) = new else { return };
        let mut way = &mut self.root;
        way.bound_within = number;
        for name in new {
            way = way.below.entry(name.clone()).or_default();
            way.bound_within = number;
        }
        way.bound = number;
    }

    /// The lines that changed `old`.
    pub(crate) fn about(&self, old: &[NameBuf]) -> impl Iterator<Item = &Line> {
        let way = old.iter().try_fold(&self.root, |way, name| way.below.get(name));
        way.into_iter().flat_map(|way| &way.here).filter_map(|number| self.made.get(number))
    }

    /// Drops the lines about `old` that are `gone`, unless they had a part in what a later line did. Says whether
    /// none is left.
    pub(crate) fn forget(&mut self, old: &[NameBuf], gone: impl Fn(&Line) -> bool) -> bool {
        let (mut way, mut saw) = (&mut self.root, 0);
        for name in old {
            saw = saw.max(way.bound);
            let Some(next) = way.below.get_mut(name) else { return true };
            way = next;
        }
        saw = saw.max(way.bound_within).max(way.changed_below);
        let made = &mut self.made;
        let is_gone = |number: &Number, made: &BTreeMap<Number, Line>| made.get(number).is_some_and(&gone);
        match way.here.iter().find(|number| is_gone(number, made)) {
            None => return true,
            Some(first) if saw >= *first => return false,
            Some(_) => {}
        }
        way.here.retain(|number| {
            let gone = is_gone(number, made);
            if gone {
                made.remove(number);
            }
            !gone
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Vec<NameBuf> {
        text.split('/').filter(|name| !name.is_empty()).map(|name| NameBuf::new(name).unwrap()).collect()
    }

    fn made(lines: &[(&str, Option<&str>)]) -> Lines {
        let mut all = Lines::default();
        for (old, new) in lines {
            let line = Line::Cd { dir: (*old).into() };
            all.add(line, &path(old), new.map(path).as_deref());
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
