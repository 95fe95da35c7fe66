//! A tree whose files of one owner show another: this node's files, in a job that sees itself as someone else.
//!
//! In the user namespace of a job only the caller's ids mean anything; a file of the node's own user has to show them,
//! or the job could not write its own /tmp. A layer over nodes of any tree; used by the job's task when it dials the
//! node's own trees.

use std::os::fd::OwnedFd;

use p9::layer::Layer;
use p9::{Attr, Created, Name, New, NodeRef, Reply, SetAttr};

/// Which ids show as which: uid and gid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Owners {
    /// Those of the files' server.
    pub own: (u32, u32),
    /// Those of the job.
    pub shown: (u32, u32),
}

impl Owners {
    /// `node`, and all below it, with its owners as they are to be shown.
    pub fn show(self, node: NodeRef) -> NodeRef {
        if self.own == self.shown { node } else { self.over(node) }
    }

    fn own_uid(self, uid: u32) -> u32 {
        if uid == self.shown.0 { self.own.0 } else { uid }
    }

    fn own_gid(self, gid: u32) -> u32 {
        if gid == self.shown.1 { self.own.1 } else { gid }
    }
}

impl Layer for Owners {
    fn attr(&self, attr: Attr) -> Attr {
        let shown = |id, own, shown| if id == own { shown } else { id };
        Attr { uid: shown(attr.uid, self.own.0, self.shown.0), gid: shown(attr.gid, self.own.1, self.shown.1), ..attr }
    }

    fn local(&self, below: &NodeRef) -> Option<OwnedFd> {
        // The job's user namespace shows the kernel's owners so, too.
        below.local()
    }

    fn create<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        let owner = what.owner.map(|(uid, gid)| (self.own_uid(uid), self.own_gid(gid)));
        below.create(name, New { owner, ..what }).map(move |created| self.created(name, created))
    }

    fn create_leased<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        let owner = what.owner.map(|(uid, gid)| (self.own_uid(uid), self.own_gid(gid)));
        below.create_leased(name, New { owner, ..what }).map(move |created| self.created(name, created))
    }

    fn set_attr<'a>(&'a self, below: &'a NodeRef, change: SetAttr) -> Reply<'a, Attr> {
        let (uid, gid) = (change.uid.map(|uid| self.own_uid(uid)), change.gid.map(|gid| self.own_gid(gid)));
        below.set_attr(SetAttr { uid, gid, ..change }).map(|attr| self.attr(attr))
    }
}
