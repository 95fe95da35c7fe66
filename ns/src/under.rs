//! A layer over the files of one mounted tree: everything is passed on, with identities unique in the namespace.
//!
//! Two trees may number their files alike (each node's synthetic files begin at 1), so the qid path is hashed with the
//! name of the tree it came from: equal identities then mean the same file of the same tree, at however many places it
//! is mounted or bound. Made by walks that go beyond what the table knows, and by [`crate::Grid`]. A file that was
//! reached through a namespace keeps where, so that it becomes a [`Point`] once something is mounted there.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use p9::layer::{Layer, Layered};
use p9::{Attr, Created, Errno, Handle, How, Name, New, Node, NodeRef, Opened, Qid, Reply, Time, Walk, Want};

use crate::namespace::Namespace;
use crate::path::Path;
use crate::point::{self, Point, members_of};
use crate::table::{Member, Place};

/// Which tree a file is of: the same number for the same tree, and one that no peer can guess, or a node could number
/// its files so that they pass for those of another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TreeId(u64);

/// The key of all identities in this process.
static KEY: OnceLock<(u64, u64)> = OnceLock::new();

/// Keys the identities of files in the namespaces of this process, so that they are the same in the next one that is
/// given the same secret `key`. Without, each process has its own. To be called before there is a namespace; of no
/// effect afterwards.
pub fn identify_by(key: [u8; 16]) {
    let [low, high] =
        [0, 8].map(|at| key[at..at + 8].iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)));
    _ = KEY.set((low, high));
}

/// A hash with this process's own key, or the one that it was given.
pub(crate) fn keyed(value: impl Hash) -> u64 {
    let &(low, high) = KEY.get_or_init(|| {
        let random = RandomState::new();
        (random.hash_one(0), random.hash_one(1))
    });
    #[expect(deprecated, reason = "of those in the standard library it is the only one that takes a key")]
    let mut hasher = std::hash::SipHasher::new_with_keys(low, high);
    value.hash(&mut hasher);
    hasher.finish()
}

/// The attributes of a directory that no tree has.
pub(crate) fn synthetic(qid: Qid) -> Attr {
    static START: OnceLock<Time> = OnceLock::new();
    let start = *START.get_or_init(Time::now);
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Attr { uid, gid, atime: start, mtime: start, ctime: start, nlink: 1, ..Attr::synthetic(qid, 0o555) }
}

impl TreeId {
    /// What is part of a namespace already: its files keep the identity that they have.
    pub(crate) const SAME: Self = Self(0);

    /// The tree that `server` serves at `spec`.
    pub(crate) fn of(server: &str, spec: &str) -> Self {
        Self(keyed((server, spec)).max(1))
    }

    /// `qid` as it is in the namespace.
    pub(crate) fn mix(self, qid: Qid) -> Qid {
        if self == Self::SAME { qid } else { Qid { path: keyed((self.0, qid.path)), ..qid } }
    }

    /// `attr` as it is in the namespace.
    pub(crate) fn attr(self, attr: Attr) -> Attr {
        Attr { qid: self.mix(attr.qid), ..attr }
    }
}

/// A place in a namespace.
#[derive(Clone)]
pub(crate) struct At {
    pub(crate) ns: Namespace,
    pub(crate) path: Path,
}

impl At {
    /// The place that `names` lead to from here.
    pub(crate) fn enter(&self, names: &[Name<'_>]) -> Self {
        Self { ns: self.ns.clone(), path: self.path.enter_all(names) }
    }

    /// What the table has here.
    pub(crate) fn place(&self) -> Option<Arc<Place>> {
        self.ns.place(&self.path)
    }
}

/// What lies over a file within the tree `id`.
#[derive(Clone)]
pub(crate) struct Under {
    pub(crate) id: TreeId,
    /// Where in a namespace it was reached, if it was.
    pub(crate) at: Option<At>,
}

impl Under {
    /// The file `node` of one tree, if it is that.
    pub(crate) fn of(node: &NodeRef) -> Option<&Layered<Self>> {
        Layered::of(node)
    }

    /// The place of the table that the file `below` is, if something has been mounted here or below since it was
    /// reached.
    pub(crate) fn point(&self, below: &NodeRef) -> Option<Point> {
        let at = self.at.as_ref()?;
        at.place()?;
        Some(Point::new(at.clone(), vec![Member::beneath(self.id, below.clone())]))
    }
}

impl Layer for Under {
    fn enter(&self, names: &[Name<'_>]) -> Self {
        Self { id: self.id, at: self.at.as_ref().map(|at| at.enter(names)) }
    }

    fn qid(&self, qid: Qid) -> Qid {
        self.id.mix(qid)
    }

    fn walk<'a>(&'a self, below: &'a NodeRef, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        match self.point(below) {
            Some(point) => Reply::later(async move { point.walk_on(names, want).await }),
            None => below.walk(names, want).map(|walk| self.walked(names, walk)),
        }
    }

    fn open_at<'a>(&'a self, below: &'a NodeRef, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        match self.point(below) {
            Some(point) => Reply::later(async move { point.open_on(names, how, want).await }),
            None => below.open_at(names, how, want).map(|opened| self.opened(names, opened)),
        }
    }

    fn fetch<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, count: u32) -> Reply<'a, (Qid, Bytes)> {
        match self.point(below) {
            Some(point) => Reply::later(async move { point.fetch(name, count).await }),
            None => below.fetch(name, count).map(|(qid, bytes)| (self.qid(qid), bytes)),
        }
    }

    fn open<'a>(&'a self, below: &'a NodeRef, how: How) -> Reply<'a, Handle> {
        match self.point(below) {
            Some(point) => Reply::later(async move { point.open_here(how).await }),
            None => below.open(how).map(|handle| self.handle(handle)),
        }
    }

    fn create<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        match self.point(below) {
            Some(point) => Reply::later(async move { point.create_in(name, what).await }),
            None => below.create(name, what).map(move |created| self.created(name, created)),
        }
    }

    fn create_leased<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        match self.point(below) {
            Some(_) => self.create(below, name, what),
            None => below.create_leased(name, what).map(move |created| self.created(name, created)),
        }
    }

    fn remove<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        match self.point(below) {
            Some(point) => Reply::later(async move { point.remove_in(name, dir).await }),
            None => below.remove(name, dir),
        }
    }

    fn rename<'a>(
        &'a self, below: &'a NodeRef, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32,
    ) -> Reply<'a, ()> {
        Reply::later(async move {
            if let Some(point) = self.point(below) {
                return point.rename(name, new_dir, new_name, flags).await;
            }
            let from = Member::beneath(self.id, below.clone());
            let to = point::move_target(&from, new_dir, new_name).await?;
            from.node.rename(name, &to, new_name, flags).await
        })
    }

    fn link<'a>(&'a self, below: &'a NodeRef, linked: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        Reply::later(async move {
            let linked = members_of(linked).into_iter().next().ok_or(Errno::EXDEV)?;
            match self.point(below) {
                Some(point) => point.link_in(&linked, name).await,
                None if linked.id == self.id => below.link(&linked.node, name).await,
                None => Err(Errno::EXDEV),
            }
        })
    }

    fn local(&self, below: &NodeRef) -> Option<OwnedFd> {
        // A descriptor would show nothing of what is mounted below.
        if self.at.as_ref().is_some_and(|at| at.place().is_some()) { None } else { below.local() }
    }
}
