//! A tree over a tree, which shows and allows what its rules say.
//!
//! The caller's agent puts one around the caller's disk before it serves a node; exports put one around what a peer may
//! only read. A layer, called in any task, that only ever asks the tree beneath. Invariant: what the rules call absent
//! is never shown, nothing below [`Access::ReadWrite`] is changed, and no name that a rule depends on is moved or
//! removed; so a path means the same for as long as the tree is served.
//!
//! A file that a rule protects may have other paths that the rules do not know: a hard link, a bind mount, another
//! spelling where case does not count. So each file met is also compared with those that the protected paths lead to.
//!
//! A file gets no set-user-id or set-group-id bit and no capabilities through it: a node that may write a file here
//! must not be able to make a program that acts as its owner.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use bytes::Bytes;
use p9::layer::Layer;
use p9::tree::{Lease, LeaseKind, OnBreak};
use p9::{
    Attr, Created, Entry, Errno, FileKind, Handle, How, Name, New, NodeRef, Qid, Reply, SetAttr, Stream, Tree, TreeRef,
    Walk, Want, What, Who,
};
use tokio::sync::OnceCell;

use crate::rules::{Access, Rules, Spot};

/// A tree as its rules show it.
pub struct Ruled {
    inner: TreeRef,
    rules: Rules,
    shared: OnceCell<Arc<Shared>>,
}

/// What all nodes of one tree share.
struct Shared {
    rules: Rules,
    /// By qid path, the files that protected paths led to when the tree was first attached to.
    protected: HashMap<u64, Access>,
}

impl Ruled {
    /// `inner`, as `rules` show it; their paths start at its root.
    pub fn new(inner: TreeRef, rules: Rules) -> Arc<Self> {
        Arc::new(Self { inner, rules, shared: OnceCell::new() })
    }

    /// The directory `root`, of which everything has this `access`.
    pub fn node(root: NodeRef, access: Access) -> NodeRef {
        Self::shown(root, Rules::new(access))
    }

    /// The directory `root`, as `rules` show it; their paths start there. Files that they protect are known by these
    /// paths alone.
    pub fn shown(root: NodeRef, rules: Rules) -> NodeRef {
        let spot = rules.root();
        Place { spot, shared: Arc::new(Shared { rules, protected: HashMap::new() }) }.over(root)
    }
}

impl Shared {
    /// Finds the files that the rules protect below `root`.
    async fn find(rules: &Rules, root: &NodeRef) -> Arc<Self> {
        let mut protected = HashMap::new();
        for (path, access) in rules.protected() {
            let Ok(names) = Name::split(path.as_os_str().as_bytes()) else { continue };
            if names.is_empty() {
                continue;
            }
            if let Ok(Walk { qids, end: Ok(_) }) = root.walk(&names, Want::default()).await {
                let path = qids.last().map_or(0, |qid| qid.path);
                protected.entry(path).and_modify(|known: &mut Access| *known = access.min(*known)).or_insert(access);
            }
        }
        Arc::new(Self { rules: rules.clone(), protected })
    }

    /// What is known of the entry `name` of the directory at `spot`, which is the file `qid`.
    fn met(&self, spot: &Spot, name: Name<'_>, qid: Qid) -> Spot {
        spot.child(name).also(self.protected.get(&qid.path).copied())
    }
}

impl Tree for Ruled {
    fn attach<'a>(&'a self, who: &'a Who, aname: &'a [u8]) -> Reply<'a, NodeRef> {
        let names = match Name::split(aname) {
            Ok(names) => names,
            Err(errno) => return errno.into(),
        };
        Reply::later(async move {
            let inner = self.inner.attach(who, b"").await?;
            let shared = self.shared.get_or_init(|| Shared::find(&self.rules, &inner)).await.clone();
            let root = Place { spot: self.rules.root(), shared }.over(inner);
            if names.is_empty() {
                return Ok(root);
            }
            Ok(root.walk(&names, Want::default()).await?.reached()?.node)
        })
    }
}

/// Where a file of the tree beneath is among the rules.
#[derive(Clone)]
struct Place {
    spot: Spot,
    shared: Arc<Shared>,
}

impl Place {
    /// Refuses unless this file may be changed.
    fn writable(&self) -> Result<(), Errno> {
        if self.spot.access == Access::ReadWrite { Ok(()) } else { Err(Errno::EROFS) }
    }

    /// Refuses unless the entry `name` may go, or become another.
    fn movable(&self, name: Name<'_>) -> Result<(), Errno> {
        self.writable()?;
        let spot = self.spot.child(name);
        match spot.access {
            _ if !spot.is_there() => Err(Errno::EACCES),
            Access::ReadWrite if spot.is_named() => Err(Errno::EBUSY),
            Access::ReadWrite => Ok(()),
            _ => Err(Errno::EROFS),
        }
    }

    /// Refuses if the entry `name` of `below` exists and is one more name of a file that is protected.
    async fn unprotected(&self, below: &NodeRef, name: Name<'_>) -> Result<(), Errno> {
        let Ok(Walk { end: Ok(found), .. }) = below.walk(&[name], Want::default()).await else { return Ok(()) };
        match self.shared.met(&self.spot, name, found.node.qid()).access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Errno::EROFS),
            Access::Absent | Access::Empty => Err(Errno::EACCES),
        }
    }

    /// How many of `names` the rules say are there.
    fn follow(&self, names: &[Name<'_>]) -> usize {
        let mut spot = self.spot.clone();
        for (count, &name) in names.iter().enumerate() {
            spot = spot.child(name);
            if !spot.is_there() {
                return count;
            }
        }
        names.len()
    }

    /// What the walk of `names` to `qids` met: where it is now, and how many of these are there.
    fn met(&self, names: &[Name<'_>], qids: &[Qid]) -> (Spot, usize) {
        let mut spot = self.spot.clone();
        for (count, (&name, &qid)) in names.iter().zip(qids).enumerate() {
            spot = self.shared.met(&spot, name, qid);
            if !spot.is_there() {
                return (spot, count);
            }
        }
        (spot, qids.len())
    }
}

/// Refuses unless the file may be opened so. Only a directory is there to be opened where it merely leads on.
fn openable(qid: Qid, spot: &Spot, how: How) -> Result<(), Errno> {
    match spot.access {
        Access::Absent | Access::Empty if qid.kind != FileKind::Dir => Err(Errno::EACCES),
        Access::Absent | Access::Empty | Access::ReadOnly if how.changes() => Err(Errno::EROFS),
        _ => Ok(()),
    }
}

/// A device of this machine would be reached through a name of its own, by whoever may open that here.
fn is_no_device(what: What<'_>) -> Result<(), Errno> {
    match what {
        What::Device { kind: libc::S_IFCHR | libc::S_IFBLK, .. } => Err(Errno::EPERM),
        _ => Ok(()),
    }
}

/// The bits by which a file acts as its owner: not for a directory, where set-group-id means inheritance.
fn is_plain(kind: FileKind, mode: u32) -> Result<(), Errno> {
    let refused = if kind == FileKind::Dir { libc::S_ISUID } else { libc::S_ISUID | libc::S_ISGID };
    if mode & refused == 0 { Ok(()) } else { Err(Errno::EPERM) }
}

impl Layer for Place {
    // What is opened must be known first.
    const IN_STEPS: bool = true;

    fn enter(&self, names: &[Name<'_>]) -> Self {
        let spot = names.iter().fold(self.spot.clone(), |spot, name| spot.child(*name));
        Self { spot, shared: self.shared.clone() }
    }

    fn same_tree(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    fn attr(&self, attr: Attr) -> Attr {
        self.shared.rules.show(attr)
    }

    fn hides(&self, entry: &Entry<'_>) -> bool {
        !self.shared.met(&self.spot, entry.name, entry.qid).is_there()
    }

    fn walk<'a>(&'a self, below: &'a NodeRef, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        let there = self.follow(names);
        if there == 0 {
            return Errno::ENOENT.into();
        }
        below.walk(&names[..there], want).then(move |walk| {
            let Walk { mut qids, end } = walk?;
            let (spot, met) = self.met(names, &qids);
            let end = match end {
                _ if met == 0 => return Err(Errno::ENOENT),
                _ if met < qids.len() => Err(Errno::ENOENT),
                Ok(_) if there < names.len() => Err(Errno::ENOENT),
                Ok(mut reached) => {
                    reached.attr = reached.attr.map(|attr| self.attr(attr));
                    reached.node = Self { spot, shared: self.shared.clone() }.over(reached.node);
                    Ok(reached)
                }
                Err(errno) => Err(errno),
            };
            qids.truncate(met);
            Ok(Walk { qids, end })
        })
    }

    fn open<'a>(&'a self, below: &'a NodeRef, how: How) -> Reply<'a, Handle> {
        match openable(below.qid(), &self.spot, how) {
            Ok(()) => below.open(how).map(|handle| self.handle(handle)),
            Err(errno) => errno.into(),
        }
    }

    fn create<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        let spot = self.spot.child(name);
        let kind = if matches!(what.what, What::Dir) { FileKind::Dir } else { FileKind::File };
        let allowed = self.writable().and_then(|()| match spot.access {
            _ if !spot.is_there() => Err(Errno::EACCES),
            // A link in place of a directory that leads to a rule would lead around it.
            Access::ReadWrite if !spot.shows_all() && kind != FileKind::Dir => Err(Errno::EACCES),
            Access::ReadWrite => is_plain(kind, what.mode).and_then(|()| is_no_device(what.what)),
            _ => Err(Errno::EROFS),
        });
        if let Err(errno) = allowed {
            return errno.into();
        }
        Reply::later(async move {
            self.unprotected(below, name).await?;
            Ok(self.created(name, below.create(name, what).await?))
        })
    }

    fn create_leased<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        self.create(below, name, what)
    }

    fn set_attr<'a>(&'a self, below: &'a NodeRef, change: SetAttr) -> Reply<'a, Attr> {
        match self.writable().and_then(|()| is_plain(below.qid().kind, change.mode.unwrap_or(0))) {
            Ok(()) => below.set_attr(change).map(|attr| self.attr(attr)),
            Err(errno) => errno.into(),
        }
    }

    fn remove<'a>(&'a self, below: &'a NodeRef, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        Reply::later(async move {
            self.movable(name)?;
            self.unprotected(below, name).await?;
            below.remove(name, dir).await
        })
    }

    fn rename<'a>(
        &'a self, below: &'a NodeRef, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32,
    ) -> Reply<'a, ()> {
        Reply::later(async move {
            let new_dir = self.ours(new_dir)?;
            self.movable(name).and_then(|()| new_dir.layer.movable(new_name))?;
            self.unprotected(below, name).await?;
            new_dir.layer.unprotected(&new_dir.below, new_name).await?;
            below.rename(name, &new_dir.below, new_name, flags).await
        })
    }

    fn link<'a>(&'a self, below: &'a NodeRef, target: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        // What may only be read must not get a name by which it could be written.
        let allowed = |target: &Self| target.writable().and_then(|()| self.movable(name));
        match self.ours(target).and_then(|target| allowed(&target.layer).map(|()| target)) {
            Ok(target) => below.link(&target.below, name),
            Err(errno) => errno.into(),
        }
    }

    fn set_xattr<'a>(&'a self, below: &'a NodeRef, name: &'a [u8], value: Option<Bytes>, flags: u32) -> Reply<'a, ()> {
        match self.writable() {
            Ok(()) if !name.starts_with(b"user.") => Errno::EPERM.into(),
            Ok(()) => below.set_xattr(name, value, flags),
            Err(errno) => errno.into(),
        }
    }

    fn lease<'a>(&'a self, below: &'a NodeRef, want: LeaseKind, on_break: OnBreak) -> Reply<'a, Option<Lease>> {
        match (self.spot.access, want) {
            (Access::Absent | Access::Empty, _) => Reply::ok(None),
            // Changes that are written back later must be allowed, too.
            (Access::ReadOnly, LeaseKind::Write) => below.lease(LeaseKind::Read, on_break),
            _ => below.lease(want, on_break),
        }
    }

    fn events<'a>(&'a self, below: &'a NodeRef) -> Reply<'a, Arc<dyn Stream>> {
        // They name entries that the rules may hide.
        if self.spot.shows_all() && !self.spot.is_named() { below.events() } else { Errno::EOPNOTSUPP.into() }
    }
}
