//! What a place answers: as a directory, from the table and all its trees; as anything else, what the first tree does.

use std::sync::Arc;

use bytes::Bytes;
use p9::tree::{LeaseKind, Lock, OnBreak};
use p9::{
    Attr, Created, Errno, Handle, How, Name, New, Node, NodeRef, Opened, Qid, Reply, SetAttr, StatFs, Stream, Walk,
    Want,
};

use super::{Point, marks, members_of, move_target};

impl Point {
    /// What a union is asked about goes to the first tree that is here.
    fn top(&self) -> Result<NodeRef, Errno> {
        self.first().map(|first| first.node).ok_or(Errno::EROFS)
    }
}

impl Node for Point {
    fn qid(&self) -> Qid {
        self.qid_here()
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        if names.is_empty() {
            return Errno::EINVAL.into();
        }
        Reply::later(self.walk_on(names, want))
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        Reply::later(self.open_on(names, how, want))
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::later(self.attr_here())
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        Reply::later(self.open_here(how))
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        Reply::later(self.create_in(name, what))
    }

    fn set_attr(&self, change: SetAttr) -> Reply<'_, Attr> {
        Reply::later(async move {
            let top = self.first().ok_or(Errno::EROFS)?;
            Ok(top.id.attr(top.node.set_attr(change).await?))
        })
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        Reply::later(self.remove_in(name, dir))
    }

    fn rename<'a>(&'a self, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32) -> Reply<'a, ()> {
        Reply::later(async move {
            let members = self.members();
            if marks::any(&members) {
                return self.rename_marked(&members, name, new_dir, new_name, flags).await;
            }
            let from = self.holder(name).await?;
            let to = move_target(&from, new_dir, new_name).await?;
            from.node.rename(name, &to, new_name, flags).await
        })
    }

    fn link<'a>(&'a self, target: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        Reply::later(async move {
            let linked = members_of(target).into_iter().next().ok_or(Errno::EXDEV)?;
            self.link_in(&linked, name).await
        })
    }

    fn read_link(&self) -> Reply<'_, Bytes> {
        Reply::later(async move { self.first().ok_or(Errno::EINVAL)?.node.read_link().await })
    }

    fn stat_fs(&self) -> Reply<'_, StatFs> {
        Reply::later(async move {
            match self.first() {
                Some(first) => first.node.stat_fs().await,
                None => Ok(StatFs::synthetic()),
            }
        })
    }

    fn sync(&self) -> Reply<'_, ()> {
        Reply::later(async move {
            match self.first() {
                Some(first) => first.node.sync().await,
                None => Ok(()),
            }
        })
    }

    fn xattr<'a>(&'a self, name: &'a [u8]) -> Reply<'a, Bytes> {
        Reply::later(async move { self.first().ok_or(Errno::EOPNOTSUPP)?.node.xattr(name).await })
    }

    fn xattrs(&self) -> Reply<'_, Bytes> {
        Reply::later(async move { self.first().ok_or(Errno::EOPNOTSUPP)?.node.xattrs().await })
    }

    fn set_xattr<'a>(&'a self, name: &'a [u8], value: Option<Bytes>, flags: u32) -> Reply<'a, ()> {
        Reply::later(async move { self.top()?.set_xattr(name, value, flags).await })
    }

    fn lock(&self, lock: Lock, wait: bool) -> Reply<'_, ()> {
        Reply::later(async move { self.top()?.lock(lock, wait).await })
    }

    fn conflicting_lock(&self, lock: Lock) -> Reply<'_, Option<Lock>> {
        Reply::later(async move { self.top()?.conflicting_lock(lock).await })
    }

    fn lease(&self, want: LeaseKind, on_break: OnBreak) -> Reply<'_, Option<p9::tree::Lease>> {
        Reply::later(async move {
            match self.first() {
                // What a union holds may change without its first tree knowing.
                Some(first) if self.place().below.is_empty() && self.members().len() == 1 => {
                    first.node.lease(want, on_break).await
                }
                _ => Ok(None),
            }
        })
    }

    fn events(&self) -> Reply<'_, Arc<dyn Stream>> {
        Reply::later(async move { self.first().ok_or(Errno::EOPNOTSUPP)?.node.events().await })
    }
}
