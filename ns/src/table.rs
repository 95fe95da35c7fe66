//! The table: which trees are mounted where, and the lines that make it so.
//!
//! A tree of places, each of them shared with whoever looks at it: a change copies those on the way to it that somebody
//! looks at just now and changes the others where they are, so that whoever looks has either what was before it or what
//! is after, and a table of many places costs no more to change than a small one. Nothing here asks anyone anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use p9::{Name, NameBuf, NodeRef};

use crate::lines::Lines;
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
    /// Whether its directories are one with those of the same name in others of which this is so (`-m`).
    pub(crate) merge: bool,
    /// Whether what is removed from members behind it is marked in it (`-w`).
    pub(crate) mark: bool,
    /// What it was called when it was put here: a server, or the path of a bind. Empty for what was here before.
    pub(crate) from: Arc<str>,
}

impl Member {
    /// What a tree further up has at a place.
    pub(crate) fn beneath(id: TreeId, node: NodeRef) -> Self {
        Self { id, node, create: true, merge: false, mark: false, from: "".into() }
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
#[derive(Default)]
pub(crate) struct Table {
    root: Arc<Place>,
    lines: Lines,
    /// No place is deeper.
    depth: usize,
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

    /// Makes `change` to what is mounted at `path`; places that hold nothing vanish.
    fn change(&mut self, path: &[NameBuf], change: impl FnOnce(&mut Vec<Member>)) {
        let Some((first, rest)) = path.split_first() else { return change(&mut self.members) };
        let child = Arc::make_mut(self.below.entry(first.clone()).or_default());
        child.change(rest, change);
        if child.members.is_empty() && child.below.is_empty() {
            self.below.remove(first);
        }
    }
}

impl Table {
    /// The place at `path`, if there is one.
    pub(crate) fn at(&self, path: &Path) -> Option<&Arc<Place>> {
        if path.depth() > self.depth {
            return None;
        }
        path.lead(&self.root, &mut |place: &Arc<Place>, name| place.below.get(name))
    }

    /// The place of everything.
    pub(crate) fn root(&self) -> &Place {
        &self.root
    }

    /// What is mounted at the path of these names.
    pub(crate) fn mounted_at(&self, path: &[NameBuf]) -> &[Member] {
        let found = path.iter().try_fold(&self.root, |place, name| place.below.get(name));
        found.map_or(&[], |place| &place.members)
    }

    pub(crate) fn lines(&self) -> impl ExactSizeIterator<Item = &Line> {
        self.lines.iter()
    }

    /// The places as they are now, whatever is done to this table; they have no lines.
    pub(crate) fn frozen(&self) -> Self {
        Self { root: self.root.clone(), lines: Lines::default(), depth: self.depth }
    }

    /// Makes `change`.
    pub(crate) fn mount(&mut self, change: Change) {
        let Change { old, new, members: added, original, flags, line } = change;
        Arc::make_mut(&mut self.root).change(&old, |members| {
            if members.is_empty() && flags.union() {
                members.extend(original.map(|it| Member {
                    create: false,
                    merge: flags.merge || flags.marks,
                    mark: false,
                    from: "".into(),
                    ..it
                }));
            }
            match () {
                () if flags.before => drop(members.splice(0..0, added)),
                () if flags.after => members.extend(added),
                () => *members = added,
            }
        });
        self.depth = self.depth.max(old.len());
        // What is bound where it was, or from below, was read in the light of what it hides.
        let saw = new.as_ref().is_some_and(|new| new.starts_with(&old));
        let undoes = !flags.union() && !saw;
        if undoes {
            self.lines.forget(&old, |_| true);
        }
        self.lines.add(line, &old, new.as_deref(), undoes);
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

    /// Takes away what is mounted at `old`, or of it what was mounted under the names `sources`. Says whether there is
    /// such a thing. `path` is `old` as text.
    pub(crate) fn unmount(&mut self, old: &[NameBuf], sources: Option<&[Arc<str>]>, path: &str) -> bool {
        let gone = |member: &Member| sources.is_none_or(|sources| sources.contains(&member.from));
        let here = self.mounted_at(old);
        if !here.iter().any(gone) {
            return false;
        }
        let mut left: Vec<Member> = here.iter().filter(|member| !gone(member)).cloned().collect();
        // The directory that was there before, alone, is no union any more.
        if left.iter().all(|member| member.from.is_empty()) {
            left.clear();
        }
        let sources = sources.filter(|_| !left.is_empty());
        Arc::make_mut(&mut self.root).change(old, |members| *members = left);
        let puts = |line: &Line| match (line, sources) {
            (_, None) => true,
            (Line::Mount { server: from, .. } | Line::Bind { new: from, .. }, Some(sources)) => {
                sources.iter().any(|source| **source == **from)
            }
            _ => false,
        };
        // One that replaced what was there did more than add to the list, and one of those that are gone may have been
        // read in the light of another.
        let alone = |line: &Line| puts(line) && (sources.is_none() || line.flags().union());
        let all = self.lines.about(old).filter(|line| puts(line)).all(alone);
        if !all || !self.lines.forget(old, alone) {
            let news = match sources {
                None => vec![None],
                Some(sources) => sources.iter().map(|it| Some(it.to_string())).collect(),
            };
            for new in news {
                let undoes = new.is_none();
                self.lines.add(Line::Unmount { new, old: path.into(), quiet: false }, old, None, undoes);
            }
        }
        true
    }
}
