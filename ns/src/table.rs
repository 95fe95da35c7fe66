//! The table: which trees are mounted where.
//!
//! A tree of places that is never changed, only replaced: a change copies the places on the way to it, so whoever looks
//! has either the table before it or the one after.

use std::collections::BTreeMap;
use std::sync::Arc;

use p9::{Errno, Name, NameBuf, NodeRef};

use crate::text::{Flags, Line};
use crate::under::TreeId;

/// One tree, or a directory of one, at a mount point.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) id: TreeId,
    pub(crate) node: NodeRef,
    /// Whether files may be created in it (`-c`).
    pub(crate) create: bool,
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
    pub(crate) lines: Vec<Line>,
}

impl Place {
    pub(crate) fn at(self: &Arc<Self>, path: &[NameBuf]) -> Option<Arc<Self>> {
        let mut place = self;
        for name in path {
            place = place.below.get(name)?;
        }
        Some(place.clone())
    }

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
    /// The table with `new` mounted at `path`; `original` is what is there beneath, which a union on a plain directory
    /// keeps as a member without the right to create.
    pub(crate) fn mounted(
        &self, path: &[NameBuf], new: Vec<Member>, original: Option<Member>, flags: Flags, line: Line,
    ) -> Self {
        let (mut new, mut original) = (Some(new), original);
        let root = self.root.with(path, &mut |members| {
            let new = new.take().unwrap_or_default();
            if members.is_empty() && flags.union() {
                members.extend(original.take());
            }
            match () {
                () if flags.before => drop(members.splice(0..0, new)),
                () if flags.after => members.extend(new),
                () => *members = new,
            }
        });
        self.next(root, line)
    }

    /// The table without what is mounted at `path`, or without the member `only` of it. Errors: `EINVAL` when that is
    /// not mounted there.
    pub(crate) fn unmounted(&self, path: &[NameBuf], only: Option<&[Member]>, line: Line) -> Result<Self, Errno> {
        let here = self.root.at(path).ok_or(Errno::EINVAL)?;
        let gone = |member: &Member| match only {
            None => true,
            Some(only) => only.iter().any(|one| one.id == member.id && one.node.qid().path == member.node.qid().path),
        };
        if !here.members.iter().any(gone) {
            return Err(Errno::EINVAL);
        }
        Ok(self.next(self.root.with(path, &mut |members| members.retain(|member| !gone(member))), line))
    }

    fn next(&self, root: Place, line: Line) -> Self {
        let mut lines = self.lines.clone();
        lines.push(line);
        Self { root: Arc::new(root), lines }
    }
}
