//! What changes a disk tree: making, removing, renaming, linking, and setting attributes.
//!
//! Called by a node, each operation as one step of which a cancellation waits for the end.
//! Invariant: a read-only tree refuses all of it, and nothing here acts on a path of more than one component.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use p9::{Attr, Errno, How, Name, New, SetAttr, SetTime, Time, What};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid};

use super::inode::{Inode, Key, Reach, Seen};
use super::node::{DiskNode, Step, file_flags};
use super::sys;

/// A [`New`] that owns what it says.
pub(super) struct Making {
    what: Kind,
    mode: u32,
    owner: Option<(u32, u32)>,
}

enum Kind {
    File(How),
    Dir,
    Link(Vec<u8>),
    Device { kind: u32, rdev: u64 },
}

impl From<New<'_>> for Making {
    fn from(new: New<'_>) -> Self {
        let what = match new.what {
            What::File(how) => Kind::File(how),
            What::Dir => Kind::Dir,
            What::Link(target) => Kind::Link(target.to_vec()),
            What::Device { kind, rdev } => Kind::Device { kind, rdev },
        };
        Self { what, mode: new.mode & 0o7777, owner: new.owner }
    }
}

/// What was made.
pub(super) struct Made {
    pub(super) inode: Arc<Inode>,
    pub(super) attr: Attr,
    pub(super) open: Option<(OwnedFd, How)>,
    /// Whether the name is new.
    pub(super) fresh: bool,
}

impl Making {
    /// How a file of that name that is there already would be opened.
    pub(super) fn opens(&self) -> Option<How> {
        match self.what {
            Kind::File(how) if !how.excl => Some(how),
            _ => None,
        }
    }
}

impl DiskNode {
    pub(super) fn create_now(&self, name: Name<'_>, new: &Making) -> Result<Made, Errno> {
        self.inode.disk.writable()?;
        let mut reach = self.inode.reach(false)?;
        match &new.what {
            Kind::File(how) => return self.create_file(&mut reach, name, *how, new),
            Kind::Dir => rustix::fs::mkdirat(&reach, name.as_bytes(), Mode::from_raw_mode(new.mode))?,
            Kind::Link(target) => rustix::fs::symlinkat(target.as_slice(), &reach, name.as_bytes())?,
            Kind::Device { kind, rdev } => {
                let (kind, mode) = (FileType::from_raw_mode(*kind), Mode::from_raw_mode(new.mode));
                match kind {
                    FileType::Fifo | FileType::Socket => rustix::fs::mknodat(&reach, name.as_bytes(), kind, mode, 0)?,
                    // A privilege: the kernel says whose.
                    FileType::CharacterDevice | FileType::BlockDevice => {
                        rustix::fs::mknodat(&reach, name.as_bytes(), kind, mode, *rdev)?;
                    }
                    _ => return Err(Errno::EINVAL),
                }
            }
        }
        let Step::File(inode, attr) = self.inode.step(&mut reach, name, false)? else { return Err(Errno::EBUSY) };
        let attr = self.settle(&inode, &reach, attr, new)?;
        Ok(Made { inode, attr, open: None, fresh: true })
    }

    /// Makes and opens a file in one step, or opens the one that is there.
    fn create_file(&self, dir: &mut Reach, name: Name<'_>, how: How, new: &Making) -> Result<Made, Errno> {
        let disk = &self.inode.disk;
        // Each round lost to somebody who made or removed the name in the meantime.
        for _ in 0..16 {
            match disk.patient(|| sys::make(dir.as_fd(), name, file_flags(how), new.mode)) {
                Ok(fd) => {
                    let Seen::File { mount, attr } = disk.see(fd.as_fd(), Some(&self.inode.mount), false)? else {
                        return Err(Errno::EBUSY);
                    };
                    let inode = disk.seen(&self.inode, name, mount, &attr, None);
                    let attr = self.settle(&inode, &fd, attr, new)?;
                    return Ok(Made { inode, attr, open: Some((fd, how)), fresh: true });
                }
                Err(Errno::EEXIST) if !how.excl => {}
                Err(errno) => return Err(errno),
            }
            let mut reach = self.inode.reach(false)?;
            let (inode, attr) = match self.inode.step(&mut reach, name, false) {
                Ok(Step::File(inode, attr)) => (inode, attr),
                Ok(Step::Hidden(_)) => return Err(Errno::EISDIR),
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno),
            };
            match inode.format {
                libc::S_IFREG => {}
                libc::S_IFDIR => return Err(Errno::EISDIR),
                libc::S_IFLNK => return Err(Errno::ELOOP),
                _ => return Err(Errno::ENXIO),
            }
            Self::of(inode.clone(), 0, self.locker.clone()).make_way(how);
            let fd = disk.patient(|| sys::reopen(&reach, file_flags(how)))?;
            let attr = if how.truncate { sys::attr(&sys::statx(fd.as_fd(), true)?, attr.qid.path) } else { attr };
            return Ok(Made { inode, attr, open: Some((fd, how)), fresh: false });
        }
        Err(Errno::EBUSY)
    }

    /// Gives what was made in this directory its owner, and the mode that was asked for, of which this process's own
    /// umask may have taken away.
    fn settle(&self, inode: &Inode, fd: impl AsFd, attr: Attr, new: &Making) -> Result<Attr, Errno> {
        let given = self.give(&fd, attr, new)?;
        // What a default ACL took away, which also may be these bits, stays away.
        let missing = new.mode & !attr.mode & 0o777;
        let by_umask = missing != 0 && missing == new.mode & inode.disk.umask;
        let changed = inode.format != libc::S_IFLNK && (given || by_umask);
        if changed {
            rustix::fs::chmod(sys::proc_path(&fd), Mode::from_raw_mode((attr.mode | missing) & 0o7777))?;
        }
        if given || changed { Ok(sys::attr(&sys::statx(fd.as_fd(), true)?, attr.qid.path)) } else { Ok(attr) }
    }

    /// Gives a new file to whom it is for; whether that changed anything. Who may not give files away keeps them, and
    /// where the directory passes its group on, that is the file's.
    fn give(&self, fd: impl AsFd, attr: Attr, new: &Making) -> Result<bool, Errno> {
        let Some((uid, gid)) = new.owner else { return Ok(false) };
        let uid = (uid != u32::MAX && uid != attr.uid).then(|| Uid::from_raw(uid));
        let mut gid = (gid != u32::MAX && gid != attr.gid).then(|| Gid::from_raw(gid));
        if gid.is_some() && self.attr_now(false)?.mode & libc::S_ISGID != 0 {
            gid = None;
        }
        if uid.is_none() && gid.is_none() {
            return Ok(false);
        }
        match rustix::fs::chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH) {
            Err(rustix::io::Errno::PERM) => Ok(false),
            given => Ok(given.map(|()| true)?),
        }
    }

    pub(super) fn remove_now(&self, name: Name<'_>, dir: bool) -> Result<(), Errno> {
        self.inode.disk.writable()?;
        let flags = if dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        Ok(rustix::fs::unlinkat(self.inode.reach(false)?, name.as_bytes(), flags)?)
    }

    pub(super) fn rename_now(&self, name: Name<'_>, to: &Self, new_name: Name<'_>, flags: u32) -> Result<(), Errno> {
        let disk = &self.inode.disk;
        disk.writable()?;
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(Errno::EINVAL);
        }
        let (from_dir, to_dir) = (self.inode.reach(false)?, to.inode.reach(false)?);
        let moving = self.inode.entry(&from_dir, name);
        let coming = if flags.contains(RenameFlags::EXCHANGE) { to.inode.entry(&to_dir, new_name) } else { None };
        rustix::fs::renameat_with(&from_dir, name.as_bytes(), &to_dir, new_name.as_bytes(), flags)?;
        // Nodes that stand for what was moved find it where it is now.
        if let Some(inode) = moving {
            inode.moved(&to.inode, new_name);
        }
        if let Some(inode) = coming {
            inode.moved(&self.inode, name);
        }
        Ok(())
    }

    pub(super) fn link_now(&self, target: &Self, name: Name<'_>) -> Result<(), Errno> {
        self.inode.disk.writable()?;
        let (dir, target) = (self.inode.reach(false)?, target.inode.reach(false)?);
        // By way of /proc, since linking a descriptor itself is a privilege.
        Ok(rustix::fs::linkat(CWD, sys::proc_path(&target), dir, name.as_bytes(), AtFlags::SYMLINK_FOLLOW)?)
    }

    pub(super) fn set_attr_now(&self, change: SetAttr) -> Result<(), Errno> {
        self.inode.disk.writable()?;
        // To chown(2) it means "as it is", which is not what was asked for.
        if change.uid == Some(u32::MAX) || change.gid == Some(u32::MAX) {
            return Err(Errno::EINVAL);
        }
        let reach = self.inode.reach(false)?;
        if let Some(size) = change.size {
            self.make_way(How::WRITE);
            self.truncate(&reach, size)?;
        }
        if change.uid.is_some() || change.gid.is_some() {
            let (uid, gid) = (change.uid.map(Uid::from_raw), change.gid.map(Gid::from_raw));
            rustix::fs::chownat(&reach, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if let Some(mode) = change.mode {
            rustix::fs::chmod(sys::proc_path(&reach), Mode::from_raw_mode(mode & 0o7777))?;
        }
        if change.atime.is_some() || change.mtime.is_some() {
            let times = Timestamps { last_access: stamp(change.atime), last_modification: stamp(change.mtime) };
            rustix::fs::utimensat(CWD, sys::proc_path(&reach), &times, AtFlags::empty())?;
        }
        Ok(())
    }

    fn truncate(&self, reach: &Reach, size: u64) -> Result<(), Errno> {
        match self.inode.format {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(Errno::EISDIR),
            libc::S_IFLNK => return Err(Errno::ELOOP),
            _ => return Err(Errno::EINVAL),
        }
        // Who has it open for writing may truncate it, whatever its mode has become since: as ftruncate(2).
        if let Some(writer) = self.inode.writer() {
            return Ok(rustix::fs::ftruncate(&*writer, size)?);
        }
        let fd = self.inode.disk.patient(|| sys::reopen(reach, OFlags::WRONLY))?;
        Ok(rustix::fs::ftruncate(fd, size)?)
    }
}

impl Inode {
    /// The inode of the entry `name`, if some node stands for it.
    fn entry(&self, reach: &Reach, name: Name<'_>) -> Option<Arc<Self>> {
        let fd = sys::place(reach.as_fd(), name, false).ok()?;
        match self.disk.see(fd.as_fd(), Some(&self.mount), false).ok()? {
            Seen::File { mount, attr } => self.disk.known(Key { path: attr.qid.path, mount: mount.id }),
            Seen::Hidden(_) => None,
        }
    }
}

fn stamp(time: Option<SetTime>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        Some(SetTime::Now) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        Some(SetTime::At(Time { sec, nsec })) => Timespec { tv_sec: sec, tv_nsec: nsec.into() },
    }
}
