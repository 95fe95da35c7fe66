//! A tree over a tree: what a layer changes, and the passing on of everything else.
//!
//! A filter, a trace, other owners, rules by path: a layer is a [`Layer`], and [`Layered`] is the file that it makes of
//! one beneath. Each method of [`Node`] has its namesake here, which gets the file beneath as well and by default asks
//! that, then shows what comes back through the layer: nodes are wrapped, identities and attributes mapped, directories
//! listed through it. So a layer says only what it changes, and a new method of a node is passed on in this one place.
//! An open file's bytes go past the layer, unless [`Layer::file`] puts a [`FileLayer`] over them.
//!
//! What a layer overrides it still passes on itself, with [`Layer::walked`], [`Layer::opened`] and [`Layer::created`]
//! for what comes back. Where the file beneath answers at once, so does the layer: no box is made.
//!
//! A layer that makes everything read-only to look at:
//!
//! ```
//! use p9::layer::Layer;
//! use p9::{Attr, Errno, Handle, How, NodeRef, Reply, SetAttr, Who, synth};
//!
//! #[derive(Clone)]
//! struct Faded;
//!
//! impl Layer for Faded {
//!     // What is opened is looked at by `open`, however it is reached.
//!     const IN_STEPS: bool = true;
//!
//!     fn attr(&self, attr: Attr) -> Attr {
//!         Attr { mode: attr.mode & !0o222, ..attr }
//!     }
//!
//!     fn open<'a>(&'a self, below: &'a NodeRef, how: How) -> Reply<'a, Handle> {
//!         if how.changes() { Errno::EROFS.into() } else { below.open(how).map(|handle| self.handle(handle)) }
//!     }
//!
//!     fn set_attr<'a>(&'a self, _below: &'a NodeRef, _change: SetAttr) -> Reply<'a, Attr> {
//!         Errno::EROFS.into()
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Errno> {
//! let tree = p9::layer::tree(synth::tree(synth::value(|| Ok("1\n".into()), |_| Ok(()))), Faded);
//! let value = tree.attach(&Who::owner(), b"").await?;
//! assert_eq!(value.attr().await?.mode & 0o777, 0o444);
//! assert_eq!(value.open_at(&[], How::WRITE, p9::Want::default()).await.err(), Some(Errno::EROFS));
//! # Ok(())
//! # }
//! ```

use std::any::Any;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;

use crate::tree::{Lease, LeaseKind, Lock, OnBreak, fetch_in_steps, open_in_steps};
use crate::{
    Attr, Created, Dir, DirSink, Entry, Errno, Handle, How, Name, New, Node, NodeRef, Opened, Qid, Reached, Reply,
    SetAttr, StatFs, Stream, Walk, Want,
};

mod file;
mod tree;

pub use file::{FileLayer, LayeredFile};
pub use tree::tree;

/// What lies over one file of the tree beneath: the state of one place, such as its path among rules.
///
/// Cloned for each file that is reached from this one, so it should be cheap to clone.
pub trait Layer: Clone + Send + Sync + 'static {
    /// Whether what is opened is reached by [`Layer::walk`] and opened by [`Layer::open`], in two requests, instead of
    /// by [`Layer::open_at`]: for a layer that decides by what a file is.
    const IN_STEPS: bool = false;

    /// The layer over what `names` lead to from here.
    fn enter(&self, _names: &[Name<'_>]) -> Self {
        self.clone()
    }

    /// Whether `other` is of the same tree, so that names may be moved and linked between the two.
    fn same_tree(&self, _other: &Self) -> bool {
        true
    }

    /// The identity that `qid` shows.
    fn qid(&self, qid: Qid) -> Qid {
        qid
    }

    /// The attributes that `attr` shows, here and in every answer that brings attributes along.
    fn attr(&self, attr: Attr) -> Attr {
        Attr { qid: self.qid(attr.qid), ..attr }
    }

    /// Whether the listing of this directory leaves `entry`, as it is beneath, out.
    fn hides(&self, _entry: &Entry<'_>) -> bool {
        false
    }

    /// The layer over the open directory `below`.
    fn dir(&self, below: Arc<dyn Dir>) -> Arc<dyn Dir> {
        Arc::new(LayeredDir { layer: self.clone(), below })
    }

    /// What is over an open file, which is no directory: by default nothing. See [`LayeredFile::over`].
    fn file(&self, below: Handle) -> Handle {
        below
    }

    /// See [`Node::walk`].
    fn walk<'a>(&'a self, below: &'a NodeRef, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        below.walk(names, want).map(|walk| self.walked(names, walk))
    }

    /// See [`Node::open_at`].
    fn open_at<'a>(&'a self, below: &'a NodeRef, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        below.open_at(names, how, want).map(|opened| self.opened(names, opened))
    }

    /// See [`Node::fetch`]: what has a layer over the bytes of its files overrides it. Of no meaning with
    /// [`Layer::IN_STEPS`].
    fn fetch<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, count: u32) -> Reply<'a, (Qid, Bytes)> {
        below.fetch(name, count).map(move |(qid, bytes)| (self.enter(&[name]).qid(qid), bytes))
    }

    /// See [`Node::attr`]; what it gives is by [`Layer::attr`].
    fn get_attr<'a>(&'a self, below: &'a NodeRef) -> Reply<'a, Attr> {
        below.attr().map(|attr| self.attr(attr))
    }

    /// See [`Node::open`].
    fn open<'a>(&'a self, below: &'a NodeRef, how: How) -> Reply<'a, Handle> {
        below.open(how).map(|handle| self.handle(handle))
    }

    /// See [`Node::create`].
    fn create<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        below.create(name, what).map(move |created| self.created(name, created))
    }

    /// See [`Node::create_leased`]: of a layer that overrides [`Layer::create`], so must this be.
    fn create_leased<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        below.create_leased(name, what).map(move |created| self.created(name, created))
    }

    /// See [`Node::set_attr`].
    fn set_attr<'a>(&'a self, below: &'a NodeRef, change: SetAttr) -> Reply<'a, Attr> {
        below.set_attr(change).map(|attr| self.attr(attr))
    }

    /// See [`Node::remove`].
    fn remove<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        below.remove(name, dir)
    }

    /// See [`Node::rename`]. `new_dir` is whatever the caller has: see [`Layer::ours`].
    fn rename<'a>(
        &'a self, below: &'a NodeRef, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32,
    ) -> Reply<'a, ()> {
        match self.ours(new_dir) {
            Ok(new_dir) => below.rename(name, &new_dir.below, new_name, flags),
            Err(errno) => errno.into(),
        }
    }

    /// See [`Node::link`]. `target` is whatever the caller has: see [`Layer::ours`].
    fn link<'a>(&'a self, below: &'a NodeRef, target: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        match self.ours(target) {
            Ok(target) => below.link(&target.below, name),
            Err(errno) => errno.into(),
        }
    }

    /// See [`Node::read_link`].
    fn read_link<'a>(&'a self, below: &'a NodeRef) -> Reply<'a, Bytes> {
        below.read_link()
    }

    /// See [`Node::stat_fs`].
    fn stat_fs<'a>(&'a self, below: &'a NodeRef) -> Reply<'a, StatFs> {
        below.stat_fs()
    }

    /// See [`Node::sync`].
    fn sync<'a>(&'a self, below: &'a NodeRef) -> Reply<'a, ()> {
        below.sync()
    }

    /// See [`Node::xattr`].
    fn xattr<'a>(&'a self, below: &'a NodeRef, name: &'a [u8]) -> Reply<'a, Bytes> {
        below.xattr(name)
    }

    /// See [`Node::xattrs`].
    fn xattrs<'a>(&'a self, below: &'a NodeRef) -> Reply<'a, Bytes> {
        below.xattrs()
    }

    /// See [`Node::set_xattr`].
    fn set_xattr<'a>(&'a self, below: &'a NodeRef, name: &'a [u8], value: Option<Bytes>, flags: u32) -> Reply<'a, ()> {
        below.set_xattr(name, value, flags)
    }

    /// See [`Node::lock`].
    fn lock<'a>(&'a self, below: &'a NodeRef, lock: Lock, wait: bool) -> Reply<'a, ()> {
        below.lock(lock, wait)
    }

    /// See [`Node::conflicting_lock`].
    fn conflicting_lock<'a>(&'a self, below: &'a NodeRef, lock: Lock) -> Reply<'a, Option<Lock>> {
        below.conflicting_lock(lock)
    }

    /// See [`Node::lease`].
    fn lease<'a>(&'a self, below: &'a NodeRef, want: LeaseKind, on_break: OnBreak) -> Reply<'a, Option<Lease>> {
        below.lease(want, on_break)
    }

    /// See [`Node::events`].
    fn events<'a>(&'a self, below: &'a NodeRef) -> Reply<'a, Arc<dyn Stream>> {
        below.events()
    }

    /// See [`Node::local`]. By default `None`: whoever has the descriptor is past the layer.
    fn local(&self, _below: &NodeRef) -> Option<OwnedFd> {
        None
    }

    /// The file that this layer makes of `below`.
    fn over(self, below: NodeRef) -> NodeRef {
        Arc::new(Layered { layer: self, below })
    }

    /// `node`, if it is a file of this same tree. Errors: `EXDEV`.
    fn ours<'n>(&self, node: &'n NodeRef) -> Result<&'n Layered<Self>, Errno> {
        Layered::of(node).filter(|node| self.same_tree(&node.layer)).ok_or(Errno::EXDEV)
    }

    /// What an open of this file shows.
    fn handle(&self, handle: Handle) -> Handle {
        match handle {
            Handle::Dir(below) => Handle::Dir(self.dir(below)),
            file => self.file(file),
        }
    }

    /// Gives `each` what the `entry` of this directory shows, if anything.
    fn entry(&self, entry: Entry<'_>, each: &mut DirSink<'_>) -> ControlFlow<()> {
        if self.hides(&entry) {
            return ControlFlow::Continue(());
        }
        let attr = entry.attr.map(|attr| self.attr(*attr));
        each(Entry { qid: self.qid(entry.qid), attr: attr.as_ref(), ..entry })
    }

    /// What a walk of `names` from here shows.
    fn walked(&self, names: &[Name<'_>], walk: Walk) -> Walk {
        let Walk { mut qids, end } = walk;
        qids.iter_mut().for_each(|qid| *qid = self.qid(*qid));
        let reached = |Reached { node, attr, lease }| {
            let layer = self.enter(names);
            Reached { attr: attr.map(|attr| layer.attr(attr)), node: layer.over(node), lease }
        };
        Walk { qids, end: end.map(reached) }
    }

    /// What the opening of what `names` lead to from here shows.
    fn opened(&self, names: &[Name<'_>], opened: Opened) -> Opened {
        let Opened { node, attr, handle, first, lease } = opened;
        let Some(node) = node else {
            let (attr, handle) = (attr.map(|attr| self.attr(attr)), self.handle(handle));
            return Opened { node: None, attr, handle, first, lease };
        };
        let layer = self.enter(names);
        let (attr, handle) = (attr.map(|attr| layer.attr(attr)), layer.handle(handle));
        Opened { node: Some(layer.over(node)), attr, handle, first, lease }
    }

    /// What the making of `name` in here shows.
    fn created(&self, name: Name<'_>, created: Created) -> Created {
        let Created { node, attr, handle, lease } = created;
        let layer = self.enter(&[name]);
        let (attr, handle) = (attr.map(|attr| layer.attr(attr)), handle.map(|handle| layer.handle(handle)));
        Created { node: layer.over(node), attr, handle, lease }
    }
}

/// A file of the tree beneath, with a layer over it.
pub struct Layered<L> {
    /// What lies over it.
    pub layer: L,
    /// The file beneath.
    pub below: NodeRef,
}

impl<L: Layer> Layered<L> {
    /// `node`, if it has a layer of this kind over it.
    pub fn of(node: &NodeRef) -> Option<&Self> {
        let node: &dyn Any = &**node;
        node.downcast_ref()
    }
}

impl<L: Layer> Node for Layered<L> {
    fn qid(&self) -> Qid {
        self.layer.qid(self.below.qid())
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        self.layer.walk(&self.below, names, want)
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        if L::IN_STEPS {
            return open_in_steps(self, names, how, want);
        }
        self.layer.open_at(&self.below, names, how, want)
    }

    fn fetch<'a>(&'a self, name: Name<'a>, count: u32) -> Reply<'a, (Qid, Bytes)> {
        if L::IN_STEPS {
            return fetch_in_steps(self, name, count);
        }
        self.layer.fetch(&self.below, name, count)
    }

    fn attr(&self) -> Reply<'_, Attr> {
        self.layer.get_attr(&self.below)
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        self.layer.open(&self.below, how)
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        self.layer.create(&self.below, name, what)
    }

    fn create_leased<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        self.layer.create_leased(&self.below, name, what)
    }

    fn set_attr(&self, change: SetAttr) -> Reply<'_, Attr> {
        self.layer.set_attr(&self.below, change)
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        self.layer.remove(&self.below, name, dir)
    }

    fn rename<'a>(&'a self, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32) -> Reply<'a, ()> {
        self.layer.rename(&self.below, name, new_dir, new_name, flags)
    }

    fn link<'a>(&'a self, target: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        self.layer.link(&self.below, target, name)
    }

    fn read_link(&self) -> Reply<'_, Bytes> {
        self.layer.read_link(&self.below)
    }

    fn stat_fs(&self) -> Reply<'_, StatFs> {
        self.layer.stat_fs(&self.below)
    }

    fn sync(&self) -> Reply<'_, ()> {
        self.layer.sync(&self.below)
    }

    fn xattr<'a>(&'a self, name: &'a [u8]) -> Reply<'a, Bytes> {
        self.layer.xattr(&self.below, name)
    }

    fn xattrs(&self) -> Reply<'_, Bytes> {
        self.layer.xattrs(&self.below)
    }

    fn set_xattr<'a>(&'a self, name: &'a [u8], value: Option<Bytes>, flags: u32) -> Reply<'a, ()> {
        self.layer.set_xattr(&self.below, name, value, flags)
    }

    fn lock(&self, lock: Lock, wait: bool) -> Reply<'_, ()> {
        self.layer.lock(&self.below, lock, wait)
    }

    fn conflicting_lock(&self, lock: Lock) -> Reply<'_, Option<Lock>> {
        self.layer.conflicting_lock(&self.below, lock)
    }

    fn lease(&self, want: LeaseKind, on_break: OnBreak) -> Reply<'_, Option<Lease>> {
        self.layer.lease(&self.below, want, on_break)
    }

    fn events(&self) -> Reply<'_, Arc<dyn Stream>> {
        self.layer.events(&self.below)
    }

    fn local(&self) -> Option<OwnedFd> {
        self.layer.local(&self.below)
    }
}

/// An open directory of the tree beneath, with a layer over it.
struct LayeredDir<L> {
    layer: L,
    below: Arc<dyn Dir>,
}

impl<L: Layer> Dir for LayeredDir<L> {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        Reply::later(async move {
            let mut shown = |entry: Entry<'_>| self.layer.entry(entry, each);
            self.below.list(cookie, &mut shown).await
        })
    }
}
