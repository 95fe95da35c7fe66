//! A tree over a tree, which shows and allows what its rules say.
//!
//! The caller's agent puts one around the caller's disk before it serves a node; exports put one around what a peer may
//! only read. Its nodes are called in any task and only ever ask the tree beneath. Invariant: what the rules call absent
//! is never shown, nothing below [`Access::ReadWrite`] is changed, and no name that a rule depends on is moved or
//! removed; so a path means the same for as long as the tree is served.
//!
//! A file that a rule protects may have other paths that the rules do not know: a hard link, a bind mount, another
//! spelling where case does not count. So each file met is also compared with those that the protected paths lead to.
//!
//! A file gets no set-user-id or set-group-id bit and no capabilities through it: a node that may write a file here must
//! not be able to make a program that acts as its owner.

use std::any::Any;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use bytes::Bytes;
use p9::tree::{Lease, LeaseKind, Lock, OnBreak};
use p9::{
    Attr, Created, Dir, DirSink, Entry, Errno, FileKind, Handle, How, Name, New, Node, NodeRef, Qid, Reply, SetAttr,
    StatFs, Stream, Tree, TreeRef, Walk, Want, What, Who,
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
        let rules = Rules::new(access);
        let spot = rules.root();
        Arc::new(RuledNode { inner: root, spot, shared: Arc::new(Shared { rules, protected: HashMap::new() }) })
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
            let root = RuledNode { spot: self.rules.root(), inner, shared };
            if names.is_empty() {
                return Ok(Arc::new(root) as NodeRef);
            }
            Ok(root.walk(&names, Want::default()).await?.reached()?.node)
        })
    }
}

/// A file of the tree beneath, and where it is among the rules.
struct RuledNode {
    inner: NodeRef,
    spot: Spot,
    shared: Arc<Shared>,
}

impl RuledNode {
    fn wrap(&self, inner: NodeRef, spot: Spot) -> NodeRef {
        Arc::new(Self { inner, spot, shared: self.shared.clone() })
    }

    /// `node`, if it is one of this very tree.
    fn ours<'n>(&self, node: &'n NodeRef) -> Option<&'n Self> {
        let node: &dyn Any = &**node;
        node.downcast_ref::<Self>().filter(|node| Arc::ptr_eq(&node.shared, &self.shared))
    }

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

    /// Refuses if the entry `name` exists and is one more name of a file that is protected.
    async fn unprotected(&self, name: Name<'_>) -> Result<(), Errno> {
        let Ok(Walk { end: Ok(found), .. }) = self.inner.walk(&[name], Want::default()).await else { return Ok(()) };
        match self.shared.met(&self.spot, name, found.node.qid()).access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Errno::EROFS),
            Access::Absent | Access::Empty => Err(Errno::EACCES),
        }
    }

    fn open_file(&self, handle: Handle, spot: &Spot) -> Handle {
        match handle {
            Handle::Dir(inner) => {
                Handle::Dir(Arc::new(RuledDir { inner, spot: spot.clone(), shared: self.shared.clone() }))
            }
            other => other,
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

impl Node for RuledNode {
    fn qid(&self) -> Qid {
        self.inner.qid()
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        let there = self.follow(names);
        if there == 0 {
            return Errno::ENOENT.into();
        }
        self.inner.walk(&names[..there], want).then(move |walk| {
            let Walk { mut qids, end } = walk?;
            let (spot, met) = self.met(names, &qids);
            let end = match end {
                _ if met == 0 => return Err(Errno::ENOENT),
                _ if met < qids.len() => Err(Errno::ENOENT),
                Ok(_) if there < names.len() => Err(Errno::ENOENT),
                Ok(mut reached) => {
                    reached.attr = reached.attr.map(|attr| self.shared.rules.show(attr));
                    reached.node = self.wrap(reached.node, spot);
                    Ok(reached)
                }
                Err(errno) => Err(errno),
            };
            qids.truncate(met);
            Ok(Walk { qids, end })
        })
    }

    // As the default does it, in two steps: what is opened must be known first.

    fn attr(&self) -> Reply<'_, Attr> {
        self.inner.attr().map(|attr| self.shared.rules.show(attr))
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        if let Err(errno) = openable(self.qid(), &self.spot, how) {
            return errno.into();
        }
        self.inner.open(how).map(|handle| self.open_file(handle, &self.spot))
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
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
            self.unprotected(name).await?;
            let made = self.inner.create(name, what).await?;
            let attr = made.attr.map(|attr| self.shared.rules.show(attr));
            Ok(Created { node: self.wrap(made.node, spot), attr, handle: made.handle })
        })
    }

    fn set_attr(&self, change: SetAttr) -> Reply<'_, Attr> {
        let allowed = self.writable().and_then(|()| is_plain(self.qid().kind, change.mode.unwrap_or(0)));
        match allowed {
            Ok(()) => self.inner.set_attr(change).map(|attr| self.shared.rules.show(attr)),
            Err(errno) => errno.into(),
        }
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        Reply::later(async move {
            self.movable(name)?;
            self.unprotected(name).await?;
            self.inner.remove(name, dir).await
        })
    }

    fn rename<'a>(&'a self, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32) -> Reply<'a, ()> {
        let Some(new_dir) = self.ours(new_dir) else { return Errno::EXDEV.into() };
        Reply::later(async move {
            self.movable(name).and_then(|()| new_dir.movable(new_name))?;
            self.unprotected(name).await?;
            new_dir.unprotected(new_name).await?;
            self.inner.rename(name, &new_dir.inner, new_name, flags).await
        })
    }

    fn link<'a>(&'a self, target: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        let Some(target) = self.ours(target) else { return Errno::EXDEV.into() };
        // What may only be read must not get a name by which it could be written.
        match target.writable().and_then(|()| self.movable(name)) {
            Ok(()) => self.inner.link(&target.inner, name),
            Err(errno) => errno.into(),
        }
    }

    fn read_link(&self) -> Reply<'_, Bytes> {
        self.inner.read_link()
    }

    fn stat_fs(&self) -> Reply<'_, StatFs> {
        self.inner.stat_fs()
    }

    fn sync(&self) -> Reply<'_, ()> {
        self.inner.sync()
    }

    fn xattr<'a>(&'a self, name: &'a [u8]) -> Reply<'a, Bytes> {
        self.inner.xattr(name)
    }

    fn xattrs(&self) -> Reply<'_, Bytes> {
        self.inner.xattrs()
    }

    fn set_xattr<'a>(&'a self, name: &'a [u8], value: Option<Bytes>, flags: u32) -> Reply<'a, ()> {
        match self.writable() {
            Ok(()) if !name.starts_with(b"user.") => Errno::EPERM.into(),
            Ok(()) => self.inner.set_xattr(name, value, flags),
            Err(errno) => errno.into(),
        }
    }

    fn lock(&self, lock: Lock, wait: bool) -> Reply<'_, ()> {
        self.inner.lock(lock, wait)
    }

    fn conflicting_lock(&self, lock: Lock) -> Reply<'_, Option<Lock>> {
        self.inner.conflicting_lock(lock)
    }

    fn lease(&self, want: LeaseKind, on_break: OnBreak) -> Reply<'_, Option<Lease>> {
        match (self.spot.access, want) {
            (Access::Absent | Access::Empty, _) => Reply::ok(None),
            // Changes that are written back later must be allowed, too.
            (Access::ReadOnly, LeaseKind::Write) => self.inner.lease(LeaseKind::Read, on_break),
            _ => self.inner.lease(want, on_break),
        }
    }

    fn events(&self) -> Reply<'_, Arc<dyn Stream>> {
        // They name entries that the rules may hide.
        if self.spot.shows_all() && !self.spot.is_named() { self.inner.events() } else { Errno::EOPNOTSUPP.into() }
    }
}

struct RuledDir {
    inner: Arc<dyn Dir>,
    spot: Spot,
    shared: Arc<Shared>,
}

impl Dir for RuledDir {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        Reply::later(async move {
            let mut take = |entry: Entry<'_>| {
                if !self.shared.met(&self.spot, entry.name, entry.qid).is_there() {
                    return ControlFlow::Continue(());
                }
                let attr = entry.attr.map(|attr| self.shared.rules.show(*attr));
                each(Entry { attr: attr.as_ref(), ..entry })
            };
            self.inner.list(cookie, &mut take).await
        })
    }
}
