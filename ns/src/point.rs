//! A place of the namespace that the table knows: a mount point, or a directory on the way to one.
//!
//! It holds its path, not what is mounted there, so that it shows changes; and what was found at that path in the trees
//! above. A walk goes on from place to place, and leaves the table behind ([`Under`]) where nothing further is mounted:
//! from there on it is one request to one tree.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use p9::{
    Attr, Created, Errno, FileKind, Handle, How, Name, NameBuf, New, Node, NodeRef, Opened, Qid, Reply, SetAttr,
    StatFs, Time, Walk, Want,
};

use crate::list::Listing;
use crate::namespace::Namespace;
use crate::table::{Member, Place};
use crate::under::{TreeId, Under, wrap};

/// A place.
pub(crate) struct Point {
    ns: Namespace,
    path: Arc<[NameBuf]>,
    /// What the trees mounted further up have here.
    beneath: Vec<Member>,
}

impl Point {
    pub(crate) fn root(ns: &Namespace) -> NodeRef {
        Arc::new(Self { ns: ns.clone(), path: Arc::new([]), beneath: Vec::new() })
    }

    /// The place that `node` stands for, if it is one.
    pub(crate) fn of(node: &NodeRef) -> Option<&Self> {
        let node: &dyn Any = &**node;
        node.downcast_ref()
    }

    /// The place in the table; an empty one if it was unmounted since.
    pub(crate) fn place(&self) -> Arc<Place> {
        self.ns.0.read().root.at(&self.path).unwrap_or_default()
    }

    /// What is here: what is mounted, else what the trees further up have.
    pub(crate) fn members(&self) -> Vec<Member> {
        self.members_of(&self.place())
    }

    fn members_of(&self, place: &Place) -> Vec<Member> {
        if place.members.is_empty() { self.beneath.clone() } else { place.members.clone() }
    }

    /// The file of the tree `id` that is here.
    pub(crate) fn member(&self, id: TreeId) -> Option<NodeRef> {
        self.members().into_iter().find(|member| member.id == id).map(|member| member.node)
    }

    pub(crate) fn is_mount_point(&self, name: Name<'_>) -> bool {
        self.place().child(name).is_some()
    }

    fn first(&self) -> Option<Member> {
        self.members().into_iter().next()
    }

    /// The qid of a directory that no tree has.
    fn synthetic_qid(&self) -> Qid {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in self.path.iter().flat_map(|name| name.as_name().as_bytes().iter().chain(b"/")) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        Qid { kind: FileKind::Dir, version: 0, path: hash }
    }

    /// The place `name` below, with what the trees here have under that name.
    async fn step(&self, name: Name<'_>, members: &[Member]) -> Self {
        let mut beneath = Vec::new();
        for member in members {
            if let Ok(reached) = member.node.walk(&[name], Want::default()).await.and_then(Walk::reached) {
                beneath.push(Member { id: member.id, node: reached.node, create: true });
                // The first tree that has the name is the one that counts.
                break;
            }
        }
        let path = self.path.iter().cloned().chain([NameBuf::from(name)]).collect();
        Self { ns: self.ns.clone(), path, beneath }
    }

    async fn walk_on(&self, names: &[Name<'_>], want: Want) -> Result<Walk, Errno> {
        let Some((&first, rest)) = names.split_first() else { return Err(Errno::EINVAL) };
        let place = self.place();
        let members = self.members_of(&place);
        if let Some(below) = place.child(first) {
            let mounted_whole = !below.members.is_empty() && below.below.is_empty() && below.members.len() == 1;
            // A single tree with nothing mounted in it needs no table any more.
            let next: NodeRef = match below.members.first() {
                Some(only) if mounted_whole && only.create => wrap(only.id, only.node.clone()),
                Some(_) => Arc::new(Self::below(self, first)),
                None => Arc::new(self.step(first, &members).await),
            };
            if rest.is_empty() {
                let attr = next.attr_if(want.attr).await?;
                return Ok(Walk::one(next, attr));
            }
            let below = next.walk(rest, want).await;
            return Ok(Walk::after(next.qid(), below));
        }
        let mut missing = Errno::ENOENT;
        for member in &members {
            match member.node.walk(names, want).await {
                Ok(walk) => return Ok(member.id.walk(walk)),
                // A member that is dead hides nothing that others have.
                Err(errno) if errno != Errno::ENOENT => missing = errno,
                Err(_) => {}
            }
        }
        Err(missing)
    }

    fn below(&self, name: Name<'_>) -> Self {
        let path = self.path.iter().cloned().chain([NameBuf::from(name)]).collect();
        Self { ns: self.ns.clone(), path, beneath: Vec::new() }
    }

    /// The member that has `name`.
    async fn having(&self, name: Name<'_>) -> Result<Member, Errno> {
        if self.is_mount_point(name) {
            return Err(Errno::EBUSY);
        }
        let mut missing = Errno::ENOENT;
        for member in self.members() {
            match member.node.walk(&[name], Want::default()).await {
                Ok(_) => return Ok(member),
                Err(errno) if errno != Errno::ENOENT => missing = errno,
                Err(_) => {}
            }
        }
        Err(missing)
    }

    async fn create_in(&self, name: Name<'_>, what: New<'_>) -> Result<Created, Errno> {
        match self.having(name).await {
            Err(Errno::EBUSY) => return Err(Errno::EEXIST),
            // An existing file is opened where it is, and any other thing is in the way.
            Ok(member) => return Ok(member.id.created(member.node.create(name, what).await?)),
            Err(_) => {}
        }
        let here = self.members();
        if here.is_empty() {
            return Err(Errno::EROFS);
        }
        // "Mounted directory forbids creation", unless one of its members was mounted to allow it.
        let member = here.iter().find(|member| member.create).ok_or(Errno::EACCES)?;
        Ok(member.id.created(member.node.create(name, what).await?))
    }

    async fn open_here(&self, how: How) -> Result<Handle, Errno> {
        let members = self.members();
        match members.first() {
            Some(first) if first.node.qid().kind != FileKind::Dir => return first.node.open(how).await,
            _ if how.changes() => return Err(Errno::EISDIR),
            _ => {}
        }
        Ok(Handle::Dir(Arc::new(Listing::open(&self.place(), members, how).await?)))
    }

    async fn attr_here(&self) -> Result<Attr, Errno> {
        match self.first() {
            Some(first) => {
                let attr = first.node.attr().await?;
                Ok(Attr { qid: first.id.mix(attr.qid), ..attr })
            }
            None => {
                let now = Time::now();
                let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                let attr = Attr::synthetic(self.synthetic_qid(), 0o555);
                Ok(Attr { uid, gid, atime: now, mtime: now, ctime: now, ..attr })
            }
        }
    }

    /// The first tree that is here: what a union is asked about goes to it.
    fn top(&self) -> Result<Member, Errno> {
        self.first().ok_or(Errno::EROFS)
    }
}

impl Node for Point {
    fn qid(&self) -> Qid {
        self.first().map_or_else(|| self.synthetic_qid(), |first| first.id.mix(first.node.qid()))
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        Reply::later(self.walk_on(names, want))
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        Reply::later(async move {
            let Some(&first) = names.first() else {
                let (handle, attr) = (self.open_here(how).await?, self.attr_if(want.attr).await?);
                return Ok(Opened { node: None, attr, handle, first: None, lease: None });
            };
            let members = self.members();
            match (&members[..], self.is_mount_point(first)) {
                // One tree and nothing mounted further down: one request.
                ([only], false) => Ok(only.id.opened(only.node.open_at(names, how, want).await?)),
                _ => {
                    let reached = self.walk_on(names, Want::default()).await?.reached()?;
                    let opened = reached.node.open_at(&[], how, want).await?;
                    Ok(Opened { node: Some(reached.node), ..opened })
                }
            }
        })
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
            let top = self.top()?;
            let attr = top.node.set_attr(change).await?;
            Ok(Attr { qid: top.id.mix(attr.qid), ..attr })
        })
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        Reply::later(async move { self.having(name).await?.node.remove(name, dir).await })
    }

    fn rename<'a>(&'a self, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32) -> Reply<'a, ()> {
        Reply::later(async move {
            let from = self.having(name).await?;
            Under::move_to(from.id, &from.node, name, new_dir, new_name, flags).await
        })
    }

    fn link<'a>(&'a self, target: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        Reply::later(async move {
            match self.having(name).await {
                Ok(_) | Err(Errno::EBUSY) => return Err(Errno::EEXIST),
                Err(_) => {}
            }
            let Under { id, node } = Under::of(target).ok_or(Errno::EXDEV)?;
            let here = self.members().into_iter().find(|member| member.id == *id).ok_or(Errno::EXDEV)?;
            here.node.link(node, name).await
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
}
