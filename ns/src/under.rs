//! A file within one mounted tree: everything is passed on, and its identity is made unique in the namespace.
//!
//! Two trees may number their files alike (each node's synthetic files begin at 1), so the qid path is hashed with the
//! name of the tree it came from: equal identities then mean the same file of the same tree, at however many places it
//! is mounted or bound. Made by walks that go beyond what the table knows, and by [`crate::Grid`]. A file that was
//! reached through a namespace keeps where, so that it becomes a [`Point`] once something is mounted there.

use std::any::Any;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use p9::handle::{Dir, DirSink, Stream};
use p9::tree::{LeaseKind, Lock, OnBreak};
use p9::{
    Attr, Created, Entry, Errno, Handle, How, Name, New, Node, NodeRef, Opened, Qid, Reached, Reply, SetAttr, StatFs,
    Time, Walk, Want,
};

use crate::namespace::Namespace;
use crate::path::Path;
use crate::point::{self, Point, members_of};
use crate::table::{Member, Place};

/// Which tree a file is of: the same number for the same tree, and one that no peer can guess, or a node could number
/// its files so that they pass for those of another.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TreeId(u64);

/// A hash with this process's own key.
pub(crate) fn keyed(value: impl Hash) -> u64 {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    KEY.get_or_init(RandomState::new).hash_one(value)
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

    /// A walk within the tree, as the namespace shows it; `at` is where it leads.
    pub(crate) fn walk(self, walk: Walk, at: impl FnOnce() -> Option<At>) -> Walk {
        let Walk { mut qids, end } = walk;
        qids.iter_mut().for_each(|qid| *qid = self.mix(*qid));
        let reached = |Reached { node, attr, lease }| {
            let (node, attr) = (wrap(self, node, at()), attr.map(|attr| self.attr(attr)));
            Reached { node, attr, lease }
        };
        Walk { qids, end: end.map(reached) }
    }

    /// A file of the tree that was opened, as the namespace shows it; `at` is where it was reached.
    pub(crate) fn opened(self, opened: Opened, at: impl FnOnce() -> Option<At>) -> Opened {
        let Opened { node, attr, handle, first, lease } = opened;
        let (node, attr) = (node.map(|node| wrap(self, node, at())), attr.map(|attr| self.attr(attr)));
        Opened { node, attr, handle: self.handle(handle), first, lease }
    }

    /// A file that was made in the tree, as the namespace shows it; `at` is where.
    pub(crate) fn created(self, created: Created, at: Option<At>) -> Created {
        let Created { node, attr, handle } = created;
        let (node, attr) = (wrap(self, node, at), attr.map(|attr| self.attr(attr)));
        Created { node, attr, handle: handle.map(|handle| self.handle(handle)) }
    }

    fn handle(self, handle: Handle) -> Handle {
        match handle {
            Handle::Dir(dir) => Handle::Dir(Arc::new(UnderDir { id: self, dir })),
            other => other,
        }
    }

    /// `entry` as the namespace shows it, given to `each`.
    pub(crate) fn entry(self, entry: Entry<'_>, each: &mut DirSink<'_>) -> std::ops::ControlFlow<()> {
        let attr = entry.attr.map(|attr| self.attr(*attr));
        each(Entry { qid: self.mix(entry.qid), attr: attr.as_ref(), ..entry })
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

/// A file within the tree `id`.
pub(crate) struct Under {
    pub(crate) id: TreeId,
    pub(crate) node: NodeRef,
    /// Where in a namespace it was reached, if it was.
    at: Option<At>,
}

/// `node`, of the tree `id`, as the namespace shows it at `at`.
pub(crate) fn wrap(id: TreeId, node: NodeRef, at: Option<At>) -> NodeRef {
    Arc::new(Under { id, node, at })
}

impl Under {
    /// What `node` stands for in its own tree, if it is a file of one tree.
    pub(crate) fn of(node: &NodeRef) -> Option<&Self> {
        let node: &dyn Any = &**node;
        node.downcast_ref()
    }

    /// The place of the table that this is, if something has been mounted here or below since it was reached.
    pub(crate) fn point(&self) -> Option<Point> {
        let at = self.at.as_ref()?;
        at.place()?;
        Some(Point::new(at.clone(), vec![Member::beneath(self.id, self.node.clone())]))
    }

    fn enter(&self, names: &[Name<'_>]) -> Option<At> {
        self.at.as_ref().map(|at| at.enter(names))
    }
}

impl Node for Under {
    fn qid(&self) -> Qid {
        self.id.mix(self.node.qid())
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        match self.point() {
            Some(point) => Reply::later(async move { point.walk_on(names, want).await }),
            None => self.node.walk(names, want).map(|walk| self.id.walk(walk, || self.enter(names))),
        }
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        match self.point() {
            Some(point) => Reply::later(async move { point.open_on(names, how, want).await }),
            None => self.node.open_at(names, how, want).map(|opened| self.id.opened(opened, || self.enter(names))),
        }
    }

    fn attr(&self) -> Reply<'_, Attr> {
        self.node.attr().map(|attr| self.id.attr(attr))
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        match self.point() {
            Some(point) => Reply::later(async move { point.open_here(how).await }),
            None => self.node.open(how).map(|handle| self.id.handle(handle)),
        }
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        match self.point() {
            Some(point) => Reply::later(async move { point.create_in(name, what).await }),
            None => self.node.create(name, what).map(move |made| self.id.created(made, self.enter(&[name]))),
        }
    }

    fn set_attr(&self, change: SetAttr) -> Reply<'_, Attr> {
        self.node.set_attr(change).map(|attr| self.id.attr(attr))
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        match self.point() {
            Some(point) => Reply::later(async move { point.remove_in(name, dir).await }),
            None => self.node.remove(name, dir),
        }
    }

    fn rename<'a>(&'a self, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32) -> Reply<'a, ()> {
        Reply::later(async move {
            let from = match self.point() {
                Some(point) => point.holder(name).await?,
                None => Member::beneath(self.id, self.node.clone()),
            };
            let to = point::move_target(&from, new_dir, new_name).await?;
            from.node.rename(name, &to, new_name, flags).await
        })
    }

    fn link<'a>(&'a self, linked: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        Reply::later(async move {
            let linked = members_of(linked).into_iter().next().ok_or(Errno::EXDEV)?;
            match self.point() {
                Some(point) => point.link_in(&linked, name).await,
                None if linked.id == self.id => self.node.link(&linked.node, name).await,
                None => Err(Errno::EXDEV),
            }
        })
    }

    fn read_link(&self) -> Reply<'_, Bytes> {
        self.node.read_link()
    }

    fn stat_fs(&self) -> Reply<'_, StatFs> {
        self.node.stat_fs()
    }

    fn sync(&self) -> Reply<'_, ()> {
        self.node.sync()
    }

    fn xattr<'a>(&'a self, name: &'a [u8]) -> Reply<'a, Bytes> {
        self.node.xattr(name)
    }

    fn xattrs(&self) -> Reply<'_, Bytes> {
        self.node.xattrs()
    }

    fn set_xattr<'a>(&'a self, name: &'a [u8], value: Option<Bytes>, flags: u32) -> Reply<'a, ()> {
        self.node.set_xattr(name, value, flags)
    }

    fn lock(&self, lock: Lock, wait: bool) -> Reply<'_, ()> {
        self.node.lock(lock, wait)
    }

    fn conflicting_lock(&self, lock: Lock) -> Reply<'_, Option<Lock>> {
        self.node.conflicting_lock(lock)
    }

    fn lease(&self, want: LeaseKind, on_break: OnBreak) -> Reply<'_, Option<p9::tree::Lease>> {
        self.node.lease(want, on_break)
    }

    fn events(&self) -> Reply<'_, Arc<dyn Stream>> {
        self.node.events()
    }

    fn local(&self) -> Option<std::os::fd::OwnedFd> {
        // A descriptor would show nothing of what is mounted below.
        if self.at.as_ref().is_some_and(|at| at.place().is_some()) { None } else { self.node.local() }
    }
}

/// An open directory within one tree.
struct UnderDir {
    id: TreeId,
    dir: Arc<dyn Dir>,
}

impl Dir for UnderDir {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        Reply::later(async move {
            let mut mixed = |entry: Entry<'_>| self.id.entry(entry, each);
            self.dir.list(cookie, &mut mixed).await
        })
    }
}
