//! A place in a disk tree: what a fid or a FUSE node id points at.
//!
//! Called by the server loop and the FUSE bridge, in any task. Each operation is a plain function that blocks
//! (`..._now`); it is first tried in place, with nothing that would wait allowed, and moves to the blocking pool when
//! that says `EAGAIN`. What changes anything cannot be tried: it goes by its [`Pace`] (see [`super::change`]).

use std::any::Any;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use p9::cancel::{blocking, brief};
use p9::tree::{Lease, LeaseKind, Lock, LockKind, OnBreak};
use p9::{
    Attr, Created, Errno, Handle, How, LocalFile, Name, NameBuf, New, Node, NodeRef, Opened, Qid, Reached, Reply,
    SetAttr, StatFs, Stream, Walk, Want,
};
use rustix::fs::{AtFlags, OFlags};

use super::dir::DiskDir;
use super::inode::{Inode, Reach, Seen};
use super::locks::Locker;
use super::{sys, xattr};
use crate::empty::Empty;
use crate::leases::Writer;

/// A file of the disk, as it was reached.
#[derive(Clone)]
pub(super) struct DiskNode {
    pub(super) inode: Arc<Inode>,
    /// Of the contents, when the node was made.
    version: u32,
    /// Whose leases its operations do not break: [`p9::Who::client`].
    pub(super) client: u64,
    /// The same, as one who locks.
    pub(super) locker: Arc<Locker>,
}

/// How long an operation takes, as a rule.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Pace {
    /// Some microseconds, since it is about what the kernel has in memory.
    Brief,
    /// It may move much, or wait for somebody on this machine.
    Slow,
}

/// What one step of a walk reached.
pub(super) enum Step {
    File(Arc<Inode>, Attr),
    Hidden(u64),
}

impl DiskNode {
    pub(super) fn of(inode: Arc<Inode>, version: u32, locker: Arc<Locker>) -> Self {
        Self { inode, version, client: locker.client, locker }
    }

    /// `node`, if it is one of this very tree.
    pub(super) fn ours(&self, node: &NodeRef) -> Option<Self> {
        let node: &dyn Any = &**node;
        node.downcast_ref::<Self>().filter(|node| Arc::ptr_eq(&node.inode.disk, &self.inode.disk)).cloned()
    }

    /// Does `work` on the blocking pool.
    pub(super) fn later<'a, T: Send + 'static>(
        &self, work: impl FnOnce(Self) -> Result<T, Errno> + Send + 'static,
    ) -> Reply<'a, T> {
        let node = self.clone();
        Reply::later(blocking(move || work(node)))
    }

    /// Does `work`, in place if it is brief and keeps nobody waiting, else on the blocking pool.
    pub(super) async fn at<T: Send + 'static>(
        self, pace: Pace, work: impl FnOnce(Self) -> Result<T, Errno> + Send + 'static,
    ) -> Result<T, Errno> {
        let mount = &self.inode.mount;
        let is_brief = pace == Pace::Brief && !mount.remote && !mount.copies;
        let work = move || work(self);
        if is_brief { brief(work).await } else { blocking(work).await }
    }

    /// Does `work` in place if that needs no waiting, else on the blocking pool.
    pub(super) fn soon<'a, T: Send + 'static>(
        &self, work: impl Fn(&Self, bool) -> Result<T, Errno> + Send + 'static,
    ) -> Reply<'a, T> {
        match work(self, true) {
            Err(Errno::EAGAIN) => self.later(move |node| work(&node, false)),
            answer => answer.into(),
        }
    }

    pub(super) fn attr_now(&self, cached: bool) -> Result<Attr, Errno> {
        if cached && self.inode.mount.remote {
            return Err(Errno::EAGAIN);
        }
        let reach = self.inode.reach(cached)?;
        Ok(sys::attr(&sys::statx(reach.as_fd(), true)?, self.inode.key.path))
    }

    fn walk_now<'n>(&self, names: impl Iterator<Item = Name<'n>>, want: Want, cached: bool) -> Result<Walk, Errno> {
        let mut reach = self.inode.reach(cached)?;
        let (mut inode, mut qids, mut last) = (self.inode.clone(), Vec::new(), None);
        for name in names {
            let step = match last {
                // Nothing is in what is shown as empty.
                Some(Step::Hidden(_)) => Err(Errno::ENOENT),
                _ => inode.step(&mut reach, name, cached),
            };
            match step {
                Err(errno) if qids.is_empty() || errno == Errno::EAGAIN => return Err(errno),
                Err(errno) => return Ok(Walk { qids, end: Err(errno) }),
                Ok(step) => {
                    if let Step::File(found, _) = &step {
                        inode = found.clone();
                    }
                    qids.push(step.attr().qid);
                    last = Some(step);
                }
            }
        }
        let step = last.ok_or(Errno::EINVAL)?;
        // Attributes that another client holds back are to be asked for.
        let attr = (want.attr && !inode.is_held_back(self.client)).then(|| step.attr());
        Ok(Walk { qids, end: Ok(Reached { node: step.node(&self.locker), attr, lease: None }) })
    }

    /// Opens it; `writer` is what [`DiskNode::opening`] gave.
    pub(super) fn open_now(&self, how: How, writer: Option<Writer>, cached: bool) -> Result<Handle, Errno> {
        let inode = &self.inode;
        if how.changes() {
            inode.disk.writable()?;
        }
        match inode.format {
            libc::S_IFDIR if how.changes() => return Err(Errno::EISDIR),
            libc::S_IFDIR => {
                let reach = inode.reach(cached)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                let fd = inode.disk.patient(|| sys::reopen(&reach, flags))?;
                return Ok(Handle::Dir(DiskDir::of(fd, inode.clone(), self.client)));
            }
            _ if how.directory => return Err(Errno::ENOTDIR),
            libc::S_IFREG => {}
            libc::S_IFLNK => return Err(Errno::ELOOP),
            libc::S_IFIFO | libc::S_IFSOCK => return Err(Errno::ENXIO),
            _ => return Err(Errno::EACCES),
        }
        if cached && (inode.mount.remote || how.truncate) {
            return Err(Errno::EAGAIN);
        }
        let reach = inode.reach(cached)?;
        if how.exec {
            let access = rustix::fs::Access::EXEC_OK;
            rustix::fs::accessat(rustix::fs::CWD, sys::proc_path(&reach), access, AtFlags::EACCESS)?;
        }
        // In place, a lease that somebody on this machine holds on the file is not waited for: `EAGAIN` instead.
        let flags = if cached { file_flags(how) | OFlags::NONBLOCK } else { file_flags(how) };
        self.make_way(how);
        let fd = inode.disk.patient(|| sys::reopen(&reach, flags))?;
        Ok(self.handle(fd, how, writer))
    }

    /// The contents of the regular file `name`, as far as `count` bytes go.
    fn fetch_now(&self, name: &NameBuf, count: u32, cached: bool) -> Result<(Qid, Bytes), Errno> {
        let disk = &self.inode.disk;
        let Some((place, Seen::File { attr, .. })) = self.look(name, cached)? else { return Err(Errno::ENOENT) };
        if attr.mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Errno::EINVAL);
        }
        let leases = &disk.options.leases;
        if leases.in_the_way(self.client, attr.qid.path, LeaseKind::Read) || leases.is_sole(attr.qid.path) {
            return Err(Errno::EBUSY);
        }
        let flags = if cached { OFlags::RDONLY | OFlags::NONBLOCK } else { OFlags::RDONLY };
        let file = LocalFile::new(disk.patient(|| sys::reopen(&place, flags))?, false, None);
        let bytes = first_bytes(&file, count.min(attr.size.try_into().unwrap_or(u32::MAX)), cached);
        match bytes.ok_or(Errno::EAGAIN) {
            Ok(bytes) if cached && (bytes.len() as u64) < attr.size.min(count.into()) => Err(Errno::EAGAIN),
            answer => Ok((attr.qid, answer?)),
        }
    }
}

/// The open(2) flags for a regular file.
pub(super) fn file_flags(how: How) -> OFlags {
    // What names the file was resolved already, and whether it is new is decided elsewhere.
    let how = How { excl: false, directory: false, nonblock: false, ..how };
    OFlags::from_bits_retain(how.to_flags())
}

/// Up to `count` bytes from the start, where they are to be had; a failure is left for the read proper to meet.
pub(super) fn first_bytes(file: &LocalFile, count: u32, cached: bool) -> Option<Bytes> {
    let mut buf = vec![0; count as usize];
    let flags = if cached { rustix::io::ReadWriteFlags::NOWAIT } else { rustix::io::ReadWriteFlags::empty() };
    let got = rustix::io::preadv2(file, &mut [std::io::IoSliceMut::new(&mut buf)], 0, flags).ok()?;
    buf.truncate(got);
    Some(buf.into())
}

impl Step {
    fn attr(&self) -> Attr {
        match self {
            Self::File(_, attr) => *attr,
            Self::Hidden(path) => Empty::attr_of(*path),
        }
    }

    fn node(self, locker: &Arc<Locker>) -> NodeRef {
        match self {
            Self::File(inode, attr) => Arc::new(DiskNode::of(inode, attr.qid.version, locker.clone())),
            Self::Hidden(path) => Empty::node(path),
        }
    }
}

impl Inode {
    /// Walks one name from this directory, which is reached by `reach`; then that reaches what was found.
    pub(super) fn step(self: &Arc<Self>, reach: &mut Reach, name: Name<'_>, cached: bool) -> Result<Step, Errno> {
        let fd = self.disk.patient(|| sys::place(reach.as_fd(), name, cached))?;
        match self.disk.see(fd.as_fd(), Some(&self.mount), cached)? {
            Seen::Hidden(path) => Ok(Step::Hidden(path)),
            Seen::File { mount, attr } => {
                let fd = Arc::new(fd);
                *reach = Reach::Place(fd.clone());
                Ok(Step::File(self.disk.seen(self, name, mount, &attr, Some(fd)), attr))
            }
        }
    }
}

fn owned(names: &[Name<'_>]) -> Vec<NameBuf> {
    names.iter().map(|&name| name.into()).collect()
}

impl Node for DiskNode {
    fn qid(&self) -> Qid {
        Qid { kind: self.inode.kind, version: self.version, path: self.inode.key.path }
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        match self.walk_now(names.iter().copied(), want, true) {
            Err(Errno::EAGAIN) => {
                let names = owned(names);
                self.later(move |node| node.walk_now(names.iter().map(NameBuf::as_name), want, false))
            }
            answer => answer.into(),
        }
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        if names.is_empty() {
            return self.open_and(how, want);
        }
        match self.walk_now(names.iter().copied(), Want::default(), true) {
            Err(Errno::EAGAIN) => {
                let names = owned(names);
                let walked = self.later(move |node| {
                    node.walk_now(names.iter().map(NameBuf::as_name), Want::default(), false)?.reached()
                });
                Reply::later(async move { self.open_reached(walked.await?.node, how, want).await })
            }
            Err(errno) => errno.into(),
            Ok(walk) => match walk.reached() {
                Ok(reached) => self.open_reached(reached.node, how, want),
                Err(errno) => errno.into(),
            },
        }
    }

    fn fetch<'a>(&'a self, name: Name<'a>, count: u32) -> Reply<'a, (Qid, Bytes)> {
        let name = NameBuf::from(name);
        self.soon(move |node, cached| node.fetch_now(&name, count, cached))
    }

    fn attr(&self) -> Reply<'_, Attr> {
        if !self.inode.is_held_back(self.client) {
            return self.soon(Self::attr_now);
        }
        Reply::later(async move {
            let _claim = self.claimed(LeaseKind::Read).await;
            self.soon(Self::attr_now).await
        })
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        self.open_and(how, Want::default()).map(|opened| opened.handle)
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        self.create_soon(name.into(), what.into())
    }

    fn set_attr(&self, change: SetAttr) -> Reply<'_, Attr> {
        let pace = if change.size.is_some() { Pace::Slow } else { Pace::Brief };
        self.changing(
            pace,
            |node, _| Ok(vec![node.inode.key.path]),
            move |node| {
                node.set_attr_now(change)?;
                node.attr_now(false)
            },
        )
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        let (name, named) = (NameBuf::from(name), NameBuf::from(name));
        let keys = move |node: &Self, cached| Self::keys(&[(node, &named)], cached);
        self.changing(Pace::Brief, keys, move |node| node.remove_now(name.as_name(), dir))
    }

    fn rename<'a>(&'a self, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32) -> Reply<'a, ()> {
        let Some(new_dir) = self.ours(new_dir) else { return Errno::EXDEV.into() };
        let (name, new_name) = (NameBuf::from(name), NameBuf::from(new_name));
        let (from, to, into) = (name.clone(), new_name.clone(), new_dir.clone());
        self.changing(
            Pace::Brief,
            move |node, cached| Self::keys(&[(node, &from), (&into, &to)], cached),
            move |node| node.rename_now(name.as_name(), &new_dir, new_name.as_name(), flags),
        )
    }

    fn link<'a>(&'a self, target: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        let Some(target) = self.ours(target) else { return Errno::EXDEV.into() };
        let (name, linked) = (NameBuf::from(name), target.inode.key.path);
        let keys = move |node: &Self, _| Ok(vec![node.inode.key.path, linked]);
        self.changing(Pace::Brief, keys, move |node| node.link_now(&target, name.as_name()))
    }

    fn read_link(&self) -> Reply<'_, Bytes> {
        self.soon(|node, cached| {
            if node.inode.format != libc::S_IFLNK {
                return Err(Errno::EINVAL);
            }
            if cached && node.inode.mount.remote {
                return Err(Errno::EAGAIN);
            }
            let reach = node.inode.reach(cached)?;
            Ok(rustix::fs::readlinkat(reach.as_fd(), c"", Vec::new())?.into_bytes().into())
        })
    }

    fn stat_fs(&self) -> Reply<'_, StatFs> {
        self.later(|node| {
            let reach = node.inode.reach(false)?;
            let (kind, is) = (rustix::fs::fstatfs(&reach)?.f_type, rustix::fs::fstatvfs(&reach)?);
            Ok(StatFs {
                kind: kind as u32,
                bsize: is.f_bsize as u32,
                blocks: is.f_blocks,
                bfree: is.f_bfree,
                bavail: is.f_bavail,
                files: is.f_files,
                ffree: is.f_ffree,
                fsid: is.f_fsid,
                namelen: is.f_namemax as u32,
            })
        })
    }

    fn sync(&self) -> Reply<'_, ()> {
        self.later(|node| {
            if node.inode.format != libc::S_IFDIR {
                return Err(Errno::EINVAL);
            }
            let reach = node.inode.reach(false)?;
            let fd = node.inode.disk.patient(|| sys::reopen(&reach, OFlags::RDONLY | OFlags::DIRECTORY))?;
            Ok(rustix::fs::fsync(fd)?)
        })
    }

    fn xattr<'a>(&'a self, name: &'a [u8]) -> Reply<'a, Bytes> {
        let name = name.to_vec();
        Reply::later(self.clone().at(Pace::Brief, move |node| xattr::read(&node.inode.reach(false)?, &name)))
    }

    fn xattrs(&self) -> Reply<'_, Bytes> {
        Reply::later(self.clone().at(Pace::Brief, |node| xattr::list(&node.inode.reach(false)?)))
    }

    fn set_xattr<'a>(&'a self, name: &'a [u8], value: Option<Bytes>, flags: u32) -> Reply<'a, ()> {
        let name = name.to_vec();
        self.changing(
            Pace::Brief,
            |node, _| Ok(vec![node.inode.key.path]),
            move |node| {
                node.inode.disk.writable()?;
                xattr::write(&node.inode.reach(false)?, &name, value.as_deref(), flags)
            },
        )
    }

    fn lease(&self, want: LeaseKind, on_break: OnBreak) -> Reply<'_, Option<Lease>> {
        self.lease_soon(want, on_break)
    }

    fn events(&self) -> Reply<'_, Arc<dyn Stream>> {
        self.later(|node| node.events_now())
    }

    fn lock(&self, lock: Lock, wait: bool) -> Reply<'_, ()> {
        Reply::later(async move {
            let claim = if lock.kind == LockKind::Unlock { None } else { self.unleased().await };
            // It may wait for long, and is tried again and again.
            let _claim = claim.filter(|_| !wait);
            self.clone().lock_now(lock, wait).await
        })
    }

    fn conflicting_lock(&self, lock: Lock) -> Reply<'_, Option<Lock>> {
        Reply::later(async move {
            let _claim = self.unleased().await;
            self.later(move |node| node.conflict_now(&lock)).await
        })
    }

    fn local(&self) -> Option<OwnedFd> {
        self.inode.disk.writable().ok()?;
        self.inode.reach(true).ok()?.as_fd().try_clone_to_owned().ok()
    }
}
