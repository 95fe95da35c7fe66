//! The table: which trees are mounted where, and the lines that make it so.
//!
//! A tree of places that is never changed, only replaced: a change copies the places on the way to it, so whoever looks
//! has either the table before it or the one after. The lines, read in order, make the same table again; those whose
//! effect is gone are dropped where no later line was read in their light. Nothing here asks anyone anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use p9::{Name, NameBuf, NodeRef};

use crate::path::Path;
use crate::text::{Flags, Line};
use crate::under::TreeId;

/// One tree, or a directory of one, at a mount point.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) id: TreeId,
    pub(crate) node: NodeRef,
    /// Whether files may be created in it (`-c`).
    pub(crate) create: bool,
    /// What it was called when it was put here: a server, or the path of a bind. Empty for what was here before.
    pub(crate) from: Arc<str>,
}

impl Member {
    /// What a tree further up has at a place.
    pub(crate) fn beneath(id: TreeId, node: NodeRef) -> Self {
        Self { id, node, create: true, from: "".into() }
    }

    fn is(&self, other: &Self) -> bool {
        self.id == other.id && self.node.qid().path == other.node.qid().path
    }
}

/// A place at which, or below which, something is mounted.
#[derive(Clone, Default)]
pub(crate) struct Place {
    /// What is mounted here, the first searched first; nothing on the way to a mount point.
    pub(crate) members: Vec<Member>,
    pub(crate) below: BTreeMap<NameBuf, Arc<Place>>,
}

/// A namespace's table, and the lines that made it.
#[derive(Clone, Default)]
pub(crate) struct Table {
    pub(crate) root: Arc<Place>,
    lines: Arc<Vec<Made>>,
    /// No place is deeper.
    depth: usize,
}

/// A line, and the paths that it was about.
#[derive(Clone)]
struct Made {
    line: Line,
    old: Vec<NameBuf>,
    /// The path that a bind looked at.
    new: Option<Vec<NameBuf>>,
}

impl Made {
    /// Whether what is mounted at `path` had a part in what it did: a bind of what is there, above or below, or a mount
    /// below on what was there.
    fn saw(&self, path: &[NameBuf]) -> bool {
        let bound = self.new.as_ref().is_some_and(|new| new.starts_with(path) || path.starts_with(new));
        bound || (self.old.len() > path.len() && self.old.starts_with(path))
    }
}

/// What a change puts where.
pub(crate) struct Change {
    pub(crate) old: Vec<NameBuf>,
    pub(crate) new: Option<Vec<NameBuf>>,
    pub(crate) members: Vec<Member>,
    /// What is there beneath, which a union on a plain directory keeps, without the right to create.
    pub(crate) original: Option<Member>,
    pub(crate) flags: Flags,
    pub(crate) line: Line,
}

impl Place {
    pub(crate) fn child(&self, name: Name<'_>) -> Option<&Arc<Self>> {
        self.below.get(name.as_bytes())
    }

    /// This place with `change` made to the one at `path`; places that hold nothing vanish.
    fn with(&self, path: &[NameBuf], change: &mut dyn FnMut(&mut Vec<Member>)) -> Self {
        let mut place = self.clone();
        match path.split_first() {
            None => change(&mut place.members),
            Some((first, rest)) => {
                let child = place.below.get(first).cloned().unwrap_or_default().with(rest, change);
                match child.members.is_empty() && child.below.is_empty() {
                    true => drop(place.below.remove(first)),
                    false => drop(place.below.insert(first.clone(), Arc::new(child))),
                }
            }
        }
        place
    }
}

impl Table {
    /// The place at `path`, if there is one.
    pub(crate) fn at(&self, path: &Path) -> Option<&Arc<Place>> {
        if path.depth() > self.depth {
            return None;
        }
        self.find(path.names())
    }

    /// What is mounted at the path of these names.
    pub(crate) fn mounted_at(&self, path: &[NameBuf]) -> &[Member] {
        self.find(path).map_or(&[], |place| &place.members)
    }

    fn find<'a>(&self, path: impl IntoIterator<Item = &'a NameBuf>) -> Option<&Arc<Place>> {
        path.into_iter().try_fold(&self.root, |place, name| place.below.get(name))
    }

    pub(crate) fn lines(&self) -> impl ExactSizeIterator<Item = &Line> {
        self.lines.iter().map(|made| &made.line)
    }

    /// The table after `change`.
    pub(crate) fn mounted(&self, change: Change) -> Self {
        let Change { old, new, members: added, original, flags, line } = change;
        let (mut added, mut original) = (Some(added), original);
        let root = self.root.with(&old, &mut |members| {
            let added = added.take().unwrap_or_default();
            if members.is_empty() && flags.union() {
                members.extend(original.take().map(|it| Member { create: false, from: "".into(), ..it }));
            }
            match () {
                () if flags.before => drop(members.splice(0..0, added)),
                () if flags.after => members.extend(added),
                () => *members = added,
            }
        });
        let mut next = Self { root: Arc::new(root), depth: self.depth.max(old.len()), lines: self.lines.clone() };
        let made = Made { line, old, new };
        if !flags.union() && !made.saw(&made.old) {
            next.forget(&made.old, |_| true);
        }
        Arc::make_mut(&mut next.lines).push(made);
        next
    }

    /// The names under which something of `only` is mounted at `old`.
    pub(crate) fn sources(&self, old: &[NameBuf], only: &[Member]) -> Vec<Arc<str>> {
        let mut sources: Vec<Arc<str>> = Vec::new();
        for member in self.mounted_at(old) {
            let named = !member.from.is_empty() && only.iter().any(|one| one.is(member));
            if named && !sources.contains(&member.from) {
                sources.push(member.from.clone());
            }
        }
        sources
    }

    /// The table without what is mounted at `old`, or of it what was mounted under the names `sources`. `None` when
    /// there is no such thing. `path` is `old` as text.
    pub(crate) fn unmounted(&self, old: &[NameBuf], sources: Option<&[Arc<str>]>, path: &str) -> Option<Self> {
        let gone = |member: &Member| sources.is_none_or(|sources| sources.contains(&member.from));
        let here = self.mounted_at(old);
        if !here.iter().any(gone) {
            return None;
        }
        let mut left: Vec<Member> = here.iter().filter(|member| !gone(member)).cloned().collect();
        // The directory that was there before, alone, is no union any more.
        if left.iter().all(|member| member.from.is_empty()) {
            left.clear();
        }
        let sources = sources.filter(|_| !left.is_empty());
        let root = self.root.with(old, &mut |members| *members = std::mem::take(&mut left));
        let mut next = Self { root: Arc::new(root), lines: self.lines.clone(), ..*self };
        let puts = |line: &Line| match (line, sources) {
            (_, None) => true,
            (Line::Mount { server: from, .. } | Line::Bind { new: from, .. }, Some(sources)) => {
                sources.iter().any(|source| **source == **from)
            }
            _ => false,
        };
        // One that replaced what was there did more than add to the list.
        let joined = |line: &Line| puts(line) && (sources.is_none() || line.flags().union());
        let undone = next.forget(old, joined);
        if !undone || next.lines.iter().any(|made| made.old == old && puts(&made.line)) {
            next.lines = self.lines.clone();
            let news =
                sources.map_or_else(|| vec![None], |sources| sources.iter().map(|it| Some(it.to_string())).collect());
            for new in news {
                let line = Line::Unmount { new, old: path.into() };
                Arc::make_mut(&mut next.lines).push(Made { line, old: old.to_vec(), new: None });
            }
        }
        Some(next)
    }

    /// Drops the lines about `old` that are `gone`, unless they had a part in what a later line did. Says whether
    /// none is left.
    fn forget(&mut self, old: &[NameBuf], gone: impl Fn(&Line) -> bool) -> bool {
        let about = |made: &Made| made.old == old && gone(&made.line);
        let Some(first) = self.lines.iter().position(about) else { return true };
        if self.lines[first..].iter().any(|made| made.saw(old)) {
            return false;
        }
        Arc::make_mut(&mut self.lines).retain(|made| !about(made));
        true
    }
}
