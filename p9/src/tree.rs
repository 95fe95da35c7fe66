//! The one abstraction: what a served file is.
//!
//! A [`Tree`] is attached to once per proven peer and hands back its root [`Node`]. A node is a place in the tree as
//! that peer sees it, cheap to clone: what a 9P fid, a FUSE node id and a namespace entry point at. Opening one gives
//! a [`Handle`], which says where the bytes are rather than how to fetch them.
//!
//! What holds for every tree, direct or through a wire (the contract suite in `tests/` checks it):
//!
//! - **Names** were checked where they entered. `..` never reaches a tree: whoever holds the path resolves it. A walk
//!   does not follow symbolic links.
//! - **Cancelling**: dropping a pending [`Reply`] cancels the request. The operation then never started, or has
//!   finished: no write lands after the drop has returned control to whoever answers the flush.
//! - **Closing**: [`Handle::close`] can fail and be awaited; dropping is the fallback.
//! - **Layers**: a wrapper that gets a foreign node in [`Node::rename`] or [`Node::link`] recognises its own by
//!   downcasting (`let node: &dyn Any = &**node`) and answers `EXDEV` for any other. [`crate::layer`] does it.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;

use crate::handle::{Handle, Stream};
use crate::{Attr, Errno, Name, Qid, Reply, SetAttr, StatFs, Who};

/// Somewhere to attach: a disk tree, a synthetic tree, a remote server, a namespace.
pub trait Tree: Send + Sync + 'static {
    /// The file called `aname` (`/` or nothing: the root), as `who` sees it. The qid is that file's own.
    ///
    /// Errors: `ENOENT` for what is not there or not granted, alike; `EACCES` where the peer may not attach at all.
    fn attach<'a>(&'a self, who: &'a Who, aname: &'a [u8]) -> Reply<'a, NodeRef>;
}

/// A shared reference to a tree.
pub type TreeRef = Arc<dyn Tree>;

/// A shared reference to a node.
pub type NodeRef = Arc<dyn Node>;

/// A place in a tree.
///
/// Every default refuses: a read-only tree says nothing about writing, and a file nothing about walking.
pub trait Node: Any + Send + Sync + 'static {
    /// What file this is. Kept with the node; never does I/O.
    fn qid(&self) -> Qid;

    /// Walks `names`, of which there is at least one. See [`Walk`].
    fn walk<'a>(&'a self, _names: &'a [Name<'a>], _want: Want) -> Reply<'a, Walk> {
        Errno::ENOTDIR.into()
    }

    /// Walks `names` (perhaps none) and opens what is there, in one round trip through every layer.
    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        open_in_steps(self, names, how, want)
    }

    /// What file `name` of this directory is, and up to `count` bytes from its start: a walk, an open, a read and a
    /// close in one, for regular files alone. Errors: theirs; `EINVAL` for what is no regular file; `EBUSY` where it
    /// has to be opened.
    fn fetch<'a>(&'a self, name: Name<'a>, count: u32) -> Reply<'a, (Qid, Bytes)> {
        fetch_in_steps(self, name, count)
    }

    /// The file's attributes, if `wanted`.
    fn attr_if(&self, wanted: bool) -> Reply<'_, Option<Attr>> {
        if wanted { self.attr().map(Some) } else { Reply::ok(None) }
    }

    /// The file's attributes.
    fn attr(&self) -> Reply<'_, Attr>;

    /// Opens the file. Cancellable.
    fn open(&self, how: How) -> Reply<'_, Handle>;

    /// Makes `what` under the name `name` in this directory and, if it is a file, opens it, in one step: a file made
    /// with mode 0444 and opened for writing must work. Errors: `EEXIST`; `EROFS` by default.
    fn create<'a>(&'a self, _name: Name<'a>, _what: New<'a>) -> Reply<'a, Created> {
        Errno::EROFS.into()
    }

    /// The same, and brings along a lease under which what is written to the new file may be held back
    /// ([`LeaseKind::Write`]), where that costs no more: [`Created::lease`]. Who wants to hear of a break says so by
    /// [`Lease::tell`].
    fn create_leased<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        self.create(name, what)
    }

    /// Changes the attributes that are `Some`, and gives the attributes afterwards.
    fn set_attr(&self, _change: SetAttr) -> Reply<'_, Attr> {
        Errno::EROFS.into()
    }

    /// Removes the entry `name` from this directory; `dir` says that it must be an empty directory, otherwise it must
    /// not be one.
    fn remove<'a>(&'a self, _name: Name<'a>, _dir: bool) -> Reply<'a, ()> {
        Errno::EROFS.into()
    }

    /// Moves the entry `name` to `new_name` in `new_dir`, which is of this same tree (`EXDEV` otherwise). `flags` are
    /// those of renameat2(2).
    fn rename<'a>(&'a self, _name: Name<'a>, _new_dir: &'a NodeRef, _new_name: Name<'a>, _flags: u32) -> Reply<'a, ()> {
        Errno::EROFS.into()
    }

    /// Makes `name` in this directory another name of `target`, which is of this same tree (`EXDEV` otherwise).
    fn link<'a>(&'a self, _target: &'a NodeRef, _name: Name<'a>) -> Reply<'a, ()> {
        Errno::EROFS.into()
    }

    /// The target of a symbolic link, uninterpreted.
    fn read_link(&self) -> Reply<'_, Bytes> {
        Errno::EINVAL.into()
    }

    /// The file system that this file is on.
    fn stat_fs(&self) -> Reply<'_, StatFs> {
        Reply::ok(StatFs::synthetic())
    }

    /// Makes the directory's entries safe, as fsync(2) of an open directory does.
    fn sync(&self) -> Reply<'_, ()> {
        Reply::ok(())
    }

    /// The value of the extended attribute `name`. Errors: `ENODATA`; `EOPNOTSUPP` where there are none.
    fn xattr<'a>(&'a self, _name: &'a [u8]) -> Reply<'a, Bytes> {
        Errno::EOPNOTSUPP.into()
    }

    /// The names of the extended attributes, each ended by NUL, as listxattr(2) gives them.
    fn xattrs(&self) -> Reply<'_, Bytes> {
        Errno::EOPNOTSUPP.into()
    }

    /// Sets the extended attribute `name`, or with `None` removes it; `flags` are those of setxattr(2).
    fn set_xattr<'a>(&'a self, _name: &'a [u8], _value: Option<Bytes>, _flags: u32) -> Reply<'a, ()> {
        Errno::EOPNOTSUPP.into()
    }

    /// Takes, changes or drops a lock, as fcntl(2) `F_SETLK` does. With `wait` it is one parked request, which
    /// dropping the reply cancels. Errors: `EAGAIN` when it is held by another.
    fn lock(&self, _lock: Lock, _wait: bool) -> Reply<'_, ()> {
        Errno::EOPNOTSUPP.into()
    }

    /// A lock that stands in the way of `lock`, as `F_GETLK` gives it.
    fn conflicting_lock(&self, _lock: Lock) -> Reply<'_, Option<Lock>> {
        Errno::EOPNOTSUPP.into()
    }

    /// A lease on what `want` says, or on as much of it as can be had: `None` where that is nothing. Own operations
    /// never break a lease: those of the client that this node was attached for.
    fn lease(&self, _want: LeaseKind, _on_break: OnBreak) -> Reply<'_, Option<Lease>> {
        Reply::ok(None)
    }

    /// Changes to this file or directory, as they happen: a stream of lines.
    fn events(&self) -> Reply<'_, Arc<dyn Stream>> {
        Errno::EOPNOTSUPP.into()
    }

    /// The descriptor of a directory or file of this machine's own disk that this node stands for, so that whoever
    /// composes a namespace here may bind it instead of asking. `None` wherever a rule must still be applied.
    fn local(&self) -> Option<std::os::fd::OwnedFd> {
        None
    }
}

/// Opens what `names` lead to from `node` by its own walk and open, one after the other: what [`Node::open_at`] does
/// unless a tree knows better.
pub fn open_in_steps<'a, N: Node + ?Sized>(
    node: &'a N, names: &'a [Name<'a>], how: How, want: Want,
) -> Reply<'a, Opened> {
    Reply::later(async move {
        if names.is_empty() {
            let (handle, attr) = (node.open(how).await?, node.attr_if(want.attr).await?);
            return Ok(Opened { node: None, attr, handle, first: None, lease: None });
        }
        let reached = node.walk(names, Want::default()).await?.reached()?;
        let handle = reached.node.open(how).await?;
        // After the open, so that a truncation shows.
        let attr = if want.attr { Some(reached.node.attr().await?) } else { None };
        Ok(Opened { node: Some(reached.node), attr, handle, first: None, lease: reached.lease })
    })
}

/// Fetches `name` by opening it: what [`Node::fetch`] does unless a tree knows better. What is no regular file is not
/// opened: that may wait, or mean something.
pub fn fetch_in_steps<'a, N: Node + ?Sized>(node: &'a N, name: Name<'a>, count: u32) -> Reply<'a, (Qid, Bytes)> {
    Reply::later(async move {
        let Reached { node, attr, .. } = node.walk(&[name], Want::ATTR).await?.reached()?;
        let attr = match attr {
            Some(attr) => attr,
            None => node.attr().await?,
        };
        if attr.mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Errno::EINVAL);
        }
        let want = Want { attr: false, data: count, lease: LeaseKind::None };
        let Opened { handle, first, .. } = node.open_at(&[], How::READ, want).await?;
        if !handle.seekable() {
            return Err(Errno::EINVAL);
        }
        let bytes = match first {
            Some(bytes) => bytes,
            None => handle.read(0, count).await?,
        };
        handle.close().await?;
        Ok((node.qid(), bytes))
    })
}

/// What a walk is asked to bring along: each may save a round trip, none may fail the walk.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Want {
    /// The attributes of the last file.
    pub attr: bool,
    /// Up to this many of its first bytes; of a directory that is opened as such, of its first entries.
    pub data: u32,
    /// A lease on it, under which what else comes along may be kept. Who wants to hear of a break says so by
    /// [`Lease::tell`].
    pub lease: LeaseKind,
}

impl Want {
    /// The attributes, and nothing else.
    pub const ATTR: Self = Self { attr: true, data: 0, lease: LeaseKind::None };
}

/// How far a walk got. A walk that fails at its first name is an error; one that fails later is this, with the errno
/// that stopped it.
pub struct Walk {
    /// One for each name that was walked.
    pub qids: Vec<Qid>,
    /// Where the walk ended, if every name was walked; else what stopped it.
    pub end: Result<Reached, Errno>,
}

/// The end of a walk.
#[derive(Clone)]
pub struct Reached {
    /// The file.
    pub node: NodeRef,
    /// Its attributes, if they were wanted and at hand: `None` means ask.
    pub attr: Option<Attr>,
    /// A lease, if one was wanted and granted.
    pub lease: Option<Lease>,
}

impl Walk {
    /// The walk of one name that reached `node`.
    pub fn one(node: NodeRef, attr: Option<Attr>) -> Self {
        Self { qids: vec![node.qid()], end: Ok(Reached { node, attr, lease: None }) }
    }

    /// The walk that reached `first` and goes on as `below` did.
    pub fn after(first: Qid, below: Result<Self, Errno>) -> Self {
        match below {
            Ok(Self { mut qids, end }) => {
                qids.insert(0, first);
                Self { qids, end }
            }
            Err(errno) => Self { qids: vec![first], end: Err(errno) },
        }
    }

    /// The end, for those to whom a partial walk is a failure.
    pub fn reached(self) -> Result<Reached, Errno> {
        self.end
    }
}

/// What [`Node::open_at`] gives.
pub struct Opened {
    /// The file; `None` when no name was walked.
    pub node: Option<NodeRef>,
    /// Its attributes after the open, if wanted and at hand.
    pub attr: Option<Attr>,
    /// The open file. At a server the node may stand for the same: it is closed when both are gone.
    pub handle: Handle,
    /// Its first bytes, if wanted and at hand.
    pub first: Option<Bytes>,
    /// A lease, if wanted and granted.
    pub lease: Option<Lease>,
}

/// What [`Node::create`] gives.
pub struct Created {
    /// The new file. At a server it may stand for the same as the open file: that is closed when both are gone.
    pub node: NodeRef,
    /// Its attributes, where they are at hand.
    pub attr: Option<Attr>,
    /// The open file, when it is a file that was made.
    pub handle: Option<Handle>,
    /// See [`Node::create_leased`].
    pub lease: Option<Lease>,
}

/// How to open a file: flags of open(2), by their meaning.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct How {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// For execution: the right to execute is asked for, too.
    pub exec: bool,
    /// Throw away the contents first.
    pub truncate: bool,
    /// Every write goes to the end, by the server's doing.
    pub append: bool,
    /// Fail if the name exists (only with [`Node::create`]).
    pub excl: bool,
    /// Each write is safe before it is answered.
    pub sync: bool,
    /// Do not wait: `EAGAIN` instead.
    pub nonblock: bool,
    /// It must be a directory.
    pub directory: bool,
}

impl How {
    /// For reading only.
    pub const READ: Self = Self {
        read: true,
        write: false,
        exec: false,
        truncate: false,
        append: false,
        excl: false,
        sync: false,
        nonblock: false,
        directory: false,
    };
    /// For writing only.
    pub const WRITE: Self = Self { read: false, write: true, ..Self::READ };
    /// For reading and writing.
    pub const RDWR: Self = Self { write: true, ..Self::READ };

    /// What Linux's open(2) flags mean; flags without a meaning here are dropped. Errors: `EINVAL` for the access
    /// mode 3.
    pub fn from_flags(flags: u32) -> Result<Self, Errno> {
        let flags = flags as i32;
        let has = |bit: i32| flags & bit == bit;
        let (read, write) = match flags & libc::O_ACCMODE {
            libc::O_RDONLY => (true, false),
            libc::O_WRONLY => (false, true),
            libc::O_RDWR => (true, true),
            _ => return Err(Errno::EINVAL),
        };
        Ok(Self {
            read,
            write,
            exec: false,
            truncate: has(libc::O_TRUNC),
            append: has(libc::O_APPEND),
            excl: has(libc::O_EXCL),
            sync: flags & (libc::O_DSYNC | libc::O_SYNC) != 0,
            nonblock: has(libc::O_NONBLOCK),
            directory: has(libc::O_DIRECTORY),
        })
    }

    /// The open(2) flags that mean this (`O_EXCL` without `O_CREAT`: who creates adds it).
    pub fn to_flags(self) -> u32 {
        let access = match (self.read, self.write) {
            (true, true) => libc::O_RDWR,
            (false, true) => libc::O_WRONLY,
            _ => libc::O_RDONLY,
        };
        let flag = |on: bool, bit: i32| if on { bit } else { 0 };
        let flags = access
            | flag(self.truncate, libc::O_TRUNC)
            | flag(self.append, libc::O_APPEND)
            | flag(self.excl, libc::O_EXCL)
            | flag(self.sync, libc::O_SYNC)
            | flag(self.nonblock, libc::O_NONBLOCK)
            | flag(self.directory, libc::O_DIRECTORY);
        flags as u32
    }

    /// Whether the open file could change anything.
    pub fn changes(self) -> bool {
        self.write || self.truncate || self.append
    }
}

/// Something to make in a directory.
#[derive(Clone, Copy, Debug)]
pub struct New<'a> {
    /// What.
    pub what: What<'a>,
    /// Its permission bits (07777), the caller's umask taken off already; of no meaning to a link.
    pub mode: u32,
    /// Its owner and group, where the tree may give files away; otherwise, and for one that is `u32::MAX`, who attached
    /// and what the directory says.
    pub owner: Option<(u32, u32)>,
}

/// What to make.
#[derive(Clone, Copy, Debug)]
pub enum What<'a> {
    /// A file, opened like this. If the name exists and `how.excl` is off, that file is opened.
    File(How),
    /// A directory.
    Dir,
    /// A symbolic link to this target.
    Link(&'a [u8]),
    /// A device, FIFO or socket: the type bits of `st_mode`, and the device number.
    Device {
        /// `S_IFCHR`, `S_IFBLK`, `S_IFIFO` or `S_IFSOCK`.
        kind: u32,
        /// Device number (`makedev`).
        rdev: u64,
    },
}

/// A byte range lock: fcntl(2), or flock(2) as a lock on everything by an owner of its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Lock {
    /// Shared, exclusive, or off.
    pub kind: LockKind,
    /// First byte.
    pub start: u64,
    /// Bytes; 0 means to the end, however far that is.
    pub length: u64,
    /// Who holds it, unique within the client.
    pub owner: u64,
    /// The holder's process id, for `F_GETLK` alone.
    pub pid: u32,
}

/// What a lock does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LockKind {
    /// Shared, for readers.
    Read,
    /// Exclusive, for a writer.
    Write,
    /// None: drop it.
    Unlock,
}

/// What may be kept without asking while a lease lasts; each kind includes those before it.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum LeaseKind {
    /// Nothing.
    #[default]
    None,
    /// Attributes; and of a directory its entries, and the names that are not there.
    Attr,
    /// That, and the contents.
    Read,
    /// That, and changes that are written back later.
    Write,
}

impl LeaseKind {
    /// As `Tlease` and `Rbreak` say it.
    pub fn to_wire(self) -> u8 {
        self as u8
    }

    /// What `kind` says in a `Tlease` or `Rbreak`.
    pub fn from_wire(kind: u8) -> Option<Self> {
        [Self::None, Self::Attr, Self::Read, Self::Write].get(usize::from(kind)).copied()
    }
}

/// A lease that was granted. Dropping its last clone gives it back.
///
/// What may be kept under it is what was asked for after the lease was, and answered before it was broken: an answer
/// to an earlier question may be older than the lease.
#[derive(Clone)]
pub struct Lease {
    /// What may be kept, as it was granted.
    pub kind: LeaseKind,
    /// The grant itself.
    pub guard: Arc<dyn Guard>,
}

/// What a tree gave with a lease; dropping it gives the lease back, without waiting for anything.
pub trait Guard: Send + Sync + 'static {
    /// Whether what was kept may be used at this moment: a lease from another machine ends when nothing was heard from
    /// there for a while. That it was broken is told by [`OnBreak`] alone.
    fn holds(&self) -> bool {
        true
    }

    /// Gives back all but `kind`. It does not wait for anything.
    fn keep(&self, kind: LeaseKind);

    /// See [`Lease::tell`]. A guard whose lease was asked for with an [`OnBreak`] has somebody to tell already.
    fn tell(&self, _on_break: OnBreak) {}
}

impl Lease {
    /// See [`Guard::holds`].
    pub fn holds(&self) -> bool {
        self.guard.holds()
    }

    /// Gives back all but `kind`, at once.
    pub fn keep(&self, kind: LeaseKind) {
        self.guard.keep(kind);
    }

    /// Has `on_break` told of breaks of a lease that came along with something else ([`Want::lease`]): at once of one
    /// that has come already.
    pub fn tell(&self, on_break: OnBreak) {
        self.guard.tell(on_break);
    }
}

/// Called from any thread when another needs a lease back, with what may still be kept: from this moment on nothing
/// else may be used any more. The holder answers by [`Lease::keep`] or by dropping the lease, after it has written back
/// what it must, in bounded time; it may be called again, with less, and before the lease itself was handed out. It
/// must not block.
pub type OnBreak = Arc<dyn Fn(LeaseKind) + Send + Sync>;
