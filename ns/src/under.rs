//! A file within one mounted tree: everything is passed on, and its identity is made unique in the namespace.
//!
//! Two trees may number their files alike (each node's synthetic files begin at 1), so the qid path is mixed with the
//! number of the tree it came from: equal identities then mean the same file of the same tree, at however many places it
//! is bound. Made by walks that leave the table behind, and by [`crate::Grid`].

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use p9::handle::{Dir, DirSink, Stream};
use p9::tree::{LeaseKind, Lock, OnBreak};
use p9::{
    Attr, Created, Entry, Errno, Handle, How, Name, New, Node, NodeRef, Opened, Qid, Reached, Reply, SetAttr, StatFs,
    Walk, Want,
};

/// The number of a mounted tree, unique in this process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct TreeId(u64);

impl TreeId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// `qid` as it is in the namespace: a bijection for each tree, by odd multiplication and xor (Fibonacci hashing).
    pub(crate) fn mix(self, qid: Qid) -> Qid {
        let key = self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let path = (qid.path ^ key).wrapping_mul(0xbf58_476d_1ce4_e5b9).rotate_left(31) ^ key;
        Qid { path, ..qid }
    }

    fn attr(self, attr: Attr) -> Attr {
        Attr { qid: self.mix(attr.qid), ..attr }
    }

    /// A walk within the tree, as the namespace shows it.
    pub(crate) fn walk(self, walk: Walk) -> Walk {
        let Walk { mut qids, end } = walk;
        qids.iter_mut().for_each(|qid| *qid = self.mix(*qid));
        Walk { qids, end: end.map(|reached| self.reached(reached)) }
    }

    fn reached(self, reached: Reached) -> Reached {
        let Reached { node, attr, lease } = reached;
        Reached { node: wrap(self, node), attr: attr.map(|attr| self.attr(attr)), lease }
    }

    pub(crate) fn opened(self, opened: Opened) -> Opened {
        let Opened { node, attr, handle, first, lease } = opened;
        let (node, attr) = (node.map(|node| wrap(self, node)), attr.map(|attr| self.attr(attr)));
        Opened { node, attr, handle: self.handle(handle), first, lease }
    }

    pub(crate) fn created(self, created: Created) -> Created {
        let Created { node, attr, handle } = created;
        let (node, attr) = (wrap(self, node), attr.map(|attr| self.attr(attr)));
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

/// A file within the tree `id`.
pub(crate) struct Under {
    pub(crate) id: TreeId,
    pub(crate) node: NodeRef,
}

/// `node`, of the tree `id`, as the namespace shows it.
pub(crate) fn wrap(id: TreeId, node: NodeRef) -> NodeRef {
    Arc::new(Under { id, node })
}

impl Under {
    /// What `node` stands for in its own tree, if it is a file of one tree.
    pub(crate) fn of(node: &NodeRef) -> Option<&Self> {
        let node: &dyn Any = &**node;
        node.downcast_ref()
    }
}

/// What a directory that something is moved or linked to stands for, in the tree `id` if it has that.
fn target(node: &NodeRef, id: TreeId) -> Result<NodeRef, Errno> {
    if let Some(under) = Under::of(node) {
        return Ok(under.node.clone());
    }
    crate::point::Point::of(node).and_then(|point| point.member(id)).ok_or(Errno::EXDEV)
}

impl Under {
    /// Moves `name` of this directory, which a table may have more to say about than this node.
    pub(crate) async fn move_to(
        id: TreeId, from: &NodeRef, name: Name<'_>, new_dir: &NodeRef, new_name: Name<'_>, flags: u32,
    ) -> Result<(), Errno> {
        if let Some(point) = crate::point::Point::of(new_dir)
            && point.is_mount_point(new_name)
        {
            return Err(Errno::EBUSY);
        }
        from.rename(name, &target(new_dir, id)?, new_name, flags).await
    }
}

impl Node for Under {
    fn qid(&self) -> Qid {
        self.id.mix(self.node.qid())
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        self.node.walk(names, want).map(|walk| self.id.walk(walk))
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        self.node.open_at(names, how, want).map(|opened| self.id.opened(opened))
    }

    fn attr(&self) -> Reply<'_, Attr> {
        self.node.attr().map(|attr| self.id.attr(attr))
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        self.node.open(how).map(|handle| self.id.handle(handle))
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        self.node.create(name, what).map(|created| self.id.created(created))
    }

    fn set_attr(&self, change: SetAttr) -> Reply<'_, Attr> {
        self.node.set_attr(change).map(|attr| self.id.attr(attr))
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        self.node.remove(name, dir)
    }

    fn rename<'a>(&'a self, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32) -> Reply<'a, ()> {
        Reply::later(Self::move_to(self.id, &self.node, name, new_dir, new_name, flags))
    }

    fn link<'a>(&'a self, linked: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        Reply::later(async move { self.node.link(&target(linked, self.id)?, name).await })
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
        self.node.local()
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
