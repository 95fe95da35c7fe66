//! A tree whose files of one owner show another: this node's files, in a job that sees itself as someone else.
//!
//! In the user namespace of a job only the caller's ids mean anything; a file of the node's own user has to show them,
//! or the job could not write its own /tmp. Wraps nodes of any tree; used by the job's task when it dials the node's
//! own trees. Recognises its own nodes in rename and link by downcasting.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use p9::tree::Lock;
use p9::{
    Attr, Created, Dir, DirSink, Entry, Errno, Handle, How, Name, New, Node, NodeRef, Opened, Qid, Reached, Reply,
    SetAttr, StatFs, Walk, Want,
};

/// Which ids show as which: uid and gid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Owners {
    pub(crate) own: (u32, u32),
    pub(crate) shown: (u32, u32),
}

impl Owners {
    /// `node`, and all below it, with its owners as they are to be shown.
    pub(crate) fn show(self, node: NodeRef) -> NodeRef {
        if self.own == self.shown { node } else { Arc::new(Owned { node, owners: self }) }
    }

    fn attr(self, attr: Attr) -> Attr {
        let shown = |id, own, shown| if id == own { shown } else { id };
        Attr { uid: shown(attr.uid, self.own.0, self.shown.0), gid: shown(attr.gid, self.own.1, self.shown.1), ..attr }
    }

    fn back(self, (uid, gid): (Option<u32>, Option<u32>)) -> (Option<u32>, Option<u32>) {
        let own = |id, own, shown| if id == shown { own } else { id };
        (uid.map(|id| own(id, self.own.0, self.shown.0)), gid.map(|id| own(id, self.own.1, self.shown.1)))
    }

    fn handle(self, handle: Handle) -> Handle {
        match handle {
            Handle::Dir(dir) => Handle::Dir(Arc::new(OwnedDir { dir, owners: self })),
            other => other,
        }
    }
}

struct Owned {
    node: NodeRef,
    owners: Owners,
}

/// What `node` wraps, if it is one of ours.
fn inner(node: &NodeRef) -> Result<&NodeRef, Errno> {
    let any: &dyn Any = &**node;
    any.downcast_ref::<Owned>().map(|owned| &owned.node).ok_or(Errno::EXDEV)
}

impl Node for Owned {
    fn qid(&self) -> Qid {
        self.node.qid()
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        let owners = self.owners;
        self.node.walk(names, want).map(move |walk| {
            let shown = |reached: Reached| Reached {
                node: owners.show(reached.node),
                attr: reached.attr.map(|attr| owners.attr(attr)),
                lease: reached.lease,
            };
            Walk { qids: walk.qids, end: walk.end.map(shown) }
        })
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        let owners = self.owners;
        self.node.open_at(names, how, want).map(move |opened| Opened {
            node: opened.node.map(|node| owners.show(node)),
            attr: opened.attr.map(|attr| owners.attr(attr)),
            handle: owners.handle(opened.handle),
            ..opened
        })
    }

    fn attr(&self) -> Reply<'_, Attr> {
        self.node.attr().map(|attr| self.owners.attr(attr))
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        self.node.open(how).map(|handle| self.owners.handle(handle))
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        let owner = what.owner.map(|(uid, gid)| match self.owners.back((Some(uid), Some(gid))) {
            (Some(uid), Some(gid)) => (uid, gid),
            _ => (uid, gid),
        });
        let owners = self.owners;
        self.node.create(name, New { owner, ..what }).map(move |created| Created {
            node: owners.show(created.node),
            attr: created.attr.map(|attr| owners.attr(attr)),
            handle: created.handle,
        })
    }

    fn set_attr(&self, change: SetAttr) -> Reply<'_, Attr> {
        let (uid, gid) = self.owners.back((change.uid, change.gid));
        self.node.set_attr(SetAttr { uid, gid, ..change }).map(|attr| self.owners.attr(attr))
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        self.node.remove(name, dir)
    }

    fn rename<'a>(&'a self, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32) -> Reply<'a, ()> {
        match inner(new_dir) {
            Ok(new_dir) => self.node.rename(name, new_dir, new_name, flags),
            Err(errno) => errno.into(),
        }
    }

    fn link<'a>(&'a self, target: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        match inner(target) {
            Ok(target) => self.node.link(target, name),
            Err(errno) => errno.into(),
        }
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
}

struct OwnedDir {
    dir: Arc<dyn Dir>,
    owners: Owners,
}

impl Dir for OwnedDir {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        Reply::later(async move {
            let mut shown = |entry: Entry<'_>| {
                let attr = entry.attr.map(|&attr| self.owners.attr(attr));
                each(Entry { attr: attr.as_ref(), ..entry })
            };
            self.dir.list(cookie, &mut shown).await
        })
    }
}
