//! The kernel's requests, one method each: what is asked, and how the answer is written.
//!
//! Called by fuser, on its own threads; never waits there. The work itself is in the files beside this one.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use p9::{Errno, How, SetAttr, What};

use super::attrs::Caller;
use super::dirs::{Filling, ONLY};
use super::locks::{of_lock, to_lock};
use super::names::Owner;
use super::{Bridge, Refuse, Wait};
use crate::attr::{errno, set_time};

/// A bridge as fuser sees it.
pub(crate) struct Fs(pub(crate) Arc<Bridge>);

/// Answers `$reply` with what `$work` gives; `$bridge` is the bridge, for the work to keep.
macro_rules! answer {
    ($self:ident, $request:expr, $wait:ident, $reply:ident, |$bridge:ident| $work:expr, $send:expr) => {{
        let $bridge = $self.0.clone();
        $self.0.answer($request.pid(), Wait::$wait, $reply, async move { $work.await }, $send);
    }};
}

fn owned(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

/// Sends an extended attribute in the way that `size` asks for.
fn send_xattr(size: u32) -> impl FnOnce(ReplyXattr, Bytes) + Send + 'static {
    move |reply, value| match value.len() {
        length if size == 0 => reply.size(length as u32),
        length if length > size as usize => reply.refuse(Errno::ERANGE),
        _ => reply.data(&value),
    }
}

impl Fs {
    /// To whom what `request` makes is given.
    fn owner(&self, request: &Request) -> Owner {
        self.0.options.all_users.then(|| (request.uid(), request.gid()))
    }
}

impl Filesystem for Fs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        /// One request carries this much at most; more only costs memory.
        const MAX_WRITE: u32 = 1 << 20;
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP;
        // What goes along with an open, and with a close. Without either the kernel truncates and locks by itself.
        let of_opens = match self.0.options.single_writer {
            true => InitFlags::FUSE_NO_OPEN_SUPPORT,
            false => InitFlags::FUSE_ATOMIC_O_TRUNC | InitFlags::FUSE_POSIX_LOCKS | InitFlags::FUSE_FLOCK_LOCKS,
        };
        // To take away a file's setuid bit upon a write is the kernel's part where it is the one that checks rights:
        // whoever serves then has all of them, and would keep the bit.
        let killing = if self.0.options.all_users { InitFlags::empty() } else { InitFlags::FUSE_HANDLE_KILLPRIV_V2 };
        let offered = config.capabilities() & (wanted | of_opens | killing);
        // What the kernel offers it also takes.
        _ = config.add_capabilities(offered);
        _ = config.set_max_write(MAX_WRITE);
        _ = config.set_max_readahead(MAX_WRITE).or_else(|most| config.set_max_readahead(most));
        _ = config.set_max_background(64);
        if !self.0.options.single_writer {
            self.0.backings.ask(config);
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.0.clear();
    }

    fn lookup(&self, r: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (name, caller) = (owned(name), r.pid());
        answer!(self, r, Bounded, reply, |b| b.lookup(parent, &name, caller), |reply, (attr, ttl)| {
            reply.entry(&ttl, &attr, ONLY);
        });
    }

    fn forget(&self, _: &Request, id: INodeNo, count: u64) {
        if self.0.table.forget(id.0, count) {
            self.0.kept.forget(id.0);
            self.0.forget_unopened(id);
        }
    }

    fn getattr(&self, r: &Request, id: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer!(self, r, Bounded, reply, |b| b.attr(id), |reply, (attr, ttl)| reply.attr(&ttl, &attr));
    }

    fn setattr(
        &self, r: &Request, id: INodeNo, mode: Option<u32>, uid: Option<u32>, gid: Option<u32>, size: Option<u64>,
        atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>, _ctime: Option<SystemTime>, _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>, _chgtime: Option<SystemTime>, _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>, reply: ReplyAttr,
    ) {
        let (atime, mtime) = (atime.map(set_time), mtime.map(set_time));
        let change = SetAttr { mode: mode.map(|mode| mode & 0o7777), uid, gid, size, atime, mtime };
        answer!(self, r, Bounded, reply, |b| b.set_attr(id, change), |reply, (attr, ttl)| reply.attr(&ttl, &attr));
    }

    fn readlink(&self, r: &Request, id: INodeNo, reply: ReplyData) {
        answer!(self, r, Bounded, reply, |b| b.read_link(id), |reply, target| reply.data(&target));
    }

    fn mknod(&self, r: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, rdev: u32, reply: ReplyEntry) {
        let what = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => What::File(How { excl: true, ..How::WRITE }),
            kind => What::Device { kind, rdev: rdev.into() },
        };
        let (name, ttl, owner) = (owned(name), self.0.options.ttl, self.owner(r));
        let unopened = self.0.options.single_writer && matches!(what, What::File(_));
        let work = async move |b: Arc<Bridge>| match unopened {
            true => b.make_unopened(parent, &name, mode, owner).await,
            false => b.make(parent, &name, what, mode, owner).await,
        };
        answer!(self, r, Bounded, reply, |b| work(b), move |reply, attr| reply.entry(&ttl, &attr, ONLY));
    }

    fn mkdir(&self, r: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let (name, ttl, owner) = (owned(name), self.0.options.ttl, self.owner(r));
        answer!(self, r, Bounded, reply, |b| b.make(parent, &name, What::Dir, mode, owner), move |reply, attr| {
            reply.entry(&ttl, &attr, ONLY);
        });
    }

    fn symlink(&self, r: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (name, target, ttl) = (owned(name), owned(target.as_os_str()), self.0.options.ttl);
        let owner = self.owner(r);
        answer!(
            self,
            r,
            Bounded,
            reply,
            |b| b.make(parent, &name, What::Link(&target), 0o777, owner),
            move |reply, attr| {
                reply.entry(&ttl, &attr, ONLY);
            }
        );
    }

    fn unlink(&self, r: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = owned(name);
        answer!(self, r, Bounded, reply, |b| b.remove(parent, &name, false), |reply, ()| reply.ok());
    }

    fn rmdir(&self, r: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = owned(name);
        answer!(self, r, Bounded, reply, |b| b.remove(parent, &name, true), |reply, ()| reply.ok());
    }

    fn rename(
        &self, r: &Request, parent: INodeNo, name: &OsStr, new_parent: INodeNo, new_name: &OsStr, flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name, flags) = (owned(name), owned(new_name), flags.bits());
        answer!(self, r, Bounded, reply, |b| b.rename((parent, &name), (new_parent, &new_name), flags), |reply, ()| {
            reply.ok();
        });
    }

    fn link(&self, r: &Request, id: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = owned(name);
        answer!(self, r, Bounded, reply, |b| b.link(id, parent, &name), |reply, (attr, ttl)| {
            reply.entry(&ttl, &attr, ONLY);
        });
    }

    fn open(&self, r: &Request, id: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        // It asks no more then.
        if self.0.options.single_writer {
            return reply.refuse(Errno::ENOSYS);
        }
        let (who, bridge) = ((r.uid(), r.pid()), self.0.clone());
        answer!(self, r, Unbounded, reply, |b| b.open(id, flags.0, who), move |reply, (number, flags)| {
            bridge.opened(reply, number, flags);
        });
    }

    fn create(
        &self, r: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, flags: i32, reply: ReplyCreate,
    ) {
        // The kernel then makes it, and opens it by itself.
        if self.0.options.single_writer {
            return reply.refuse(Errno::ENOSYS);
        }
        let (name, bridge, owner) = (owned(name), self.0.clone(), self.owner(r));
        answer!(self, r, Bounded, reply, |b| b.create(parent, &name, mode, flags, owner), move |reply,
                                                                                                (
            attr,
            number,
            flags,
        )| bridge.created(
            reply,
            &attr,
            ONLY,
            (number, flags)
        ));
    }

    fn read(
        &self, r: &Request, id: INodeNo, fh: FileHandle, offset: u64, size: u32, _: OpenFlags, _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        answer!(self, r, Unbounded, reply, |b| b.read((id, fh), offset, size), |reply, data| reply.data(&data));
    }

    fn write(
        &self, r: &Request, id: INodeNo, fh: FileHandle, offset: u64, data: &[u8], flags: WriteFlags, _: OpenFlags,
        _: Option<LockOwner>, reply: ReplyWrite,
    ) {
        let (data, by) = (Bytes::copy_from_slice(data), (r.uid(), flags.contains(WriteFlags::FUSE_WRITE_CACHE)));
        answer!(self, r, Unbounded, reply, |b| b.write((id, fh), offset, data, by), |reply, count| reply
            .written(count));
    }

    /// Asked for files that were opened to change them, each time that a descriptor is closed.
    fn flush(&self, r: &Request, id: INodeNo, fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        // All is written, and it asks no more.
        if self.0.options.single_writer {
            return reply.refuse(Errno::ENOSYS);
        }
        if !self.0.locks.holds(id.0, owner.0) {
            return answer!(self, r, Unbounded, reply, |b| b.flush(fh), |reply, ()| reply.ok());
        }
        let bridge = self.0.clone();
        let work = async move {
            bridge.unlock_all(id, owner.0).await;
            bridge.flush(fh).await
        };
        // Caller 0: whoever closes by dying gives its locks back all the same.
        self.0.answer(0, Wait::Unbounded, reply, work, |reply, ()| reply.ok());
    }

    fn release(
        &self, _: &Request, id: INodeNo, fh: FileHandle, _: OpenFlags, owner: Option<LockOwner>, _: bool,
        reply: ReplyEmpty,
    ) {
        let bridge = self.0.clone();
        let work = async move {
            // An owner is named only by who used flock(2).
            if let Some(owner) = owner {
                bridge.unlock_all(id, owner.0).await;
            }
            bridge.release(fh).await
        };
        // Caller 0: whoever closes by dying must not have the closing cancelled.
        self.0.answer(0, Wait::Unbounded, reply, work, |reply, ()| reply.ok());
    }

    fn getlk(
        &self, r: &Request, id: INodeNo, fh: FileHandle, owner: LockOwner, start: u64, end: u64, kind: i32, pid: u32,
        reply: ReplyLock,
    ) {
        let lock = match to_lock(kind, start, end, owner.0, pid) {
            Ok(lock) => lock,
            Err(errno) => return reply.refuse(errno),
        };
        answer!(self, r, Unbounded, reply, |b| b.conflict(id, fh, lock), |reply, met| {
            let (first, last, kind, pid) = of_lock(met);
            reply.locked(first, last, kind, pid);
        });
    }

    fn setlk(
        &self, r: &Request, id: INodeNo, fh: FileHandle, owner: LockOwner, start: u64, end: u64, kind: i32, pid: u32,
        wait: bool, reply: ReplyEmpty,
    ) {
        let lock = match to_lock(kind, start, end, owner.0, pid) {
            Ok(lock) => lock,
            Err(errno) => return reply.refuse(errno),
        };
        answer!(self, r, Unbounded, reply, |b| b.lock(id, fh, lock, wait), |reply, ()| reply.ok());
    }

    fn fsync(&self, r: &Request, id: INodeNo, fh: FileHandle, data_only: bool, reply: ReplyEmpty) {
        answer!(self, r, Unbounded, reply, |b| b.sync((id, fh), data_only), |reply, ()| reply.ok());
    }

    fn opendir(&self, r: &Request, id: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let caller = r.pid();
        answer!(self, r, Bounded, reply, |b| b.open_dir(id, caller), |reply, (number, flags)| {
            reply.opened(FileHandle(number), flags);
        });
    }

    fn readdir(&self, r: &Request, _: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        let reply = Filling::new(reply);
        let list = reply.clone();
        answer!(self, r, Bounded, reply, |b| b.list(fh, offset, list), |reply, ()| {
            if let Some(list) = reply.take() {
                list.ok();
            }
        });
    }

    fn readdirplus(&self, r: &Request, _: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        let reply = Filling::new(reply);
        let list = reply.clone();
        answer!(self, r, Bounded, reply, |b| b.list_plus(fh, offset, list), |reply, told| {
            if let Some(list) = reply.take() {
                list.ok();
            }
            if let Some(told) = told {
                told.sent();
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        if let Some(open) = self.0.opens.remove(fh.0) {
            self.0.has_too_many(&open);
            self.0.was_listed(&open);
        }
        reply.ok();
    }

    fn fsyncdir(&self, r: &Request, id: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        answer!(self, r, Unbounded, reply, |b| b.sync_dir(id), |reply, ()| reply.ok());
    }

    fn statfs(&self, r: &Request, id: INodeNo, reply: ReplyStatfs) {
        answer!(self, r, Bounded, reply, |b| b.stat_fs(id), |reply, fs| {
            reply.statfs(fs.blocks, fs.bfree, fs.bavail, fs.files, fs.ffree, fs.bsize, fs.namelen, fs.bsize);
        });
    }

    fn setxattr(
        &self, r: &Request, id: INodeNo, name: &OsStr, value: &[u8], flags: i32, _position: u32, reply: ReplyEmpty,
    ) {
        let (name, value) = (owned(name), Some(Bytes::copy_from_slice(value)));
        answer!(self, r, Bounded, reply, |b| b.set_xattr(id, &name, value, flags as u32), |reply, ()| reply.ok());
    }

    fn getxattr(&self, r: &Request, id: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name = owned(name);
        answer!(self, r, Bounded, reply, |b| b.xattr(id, Some(&name)), send_xattr(size));
    }

    fn listxattr(&self, r: &Request, id: INodeNo, size: u32, reply: ReplyXattr) {
        answer!(self, r, Bounded, reply, |b| b.xattr(id, None), send_xattr(size));
    }

    fn removexattr(&self, r: &Request, id: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = owned(name);
        answer!(self, r, Bounded, reply, |b| b.set_xattr(id, &name, None, 0), |reply, ()| reply.ok());
    }

    fn access(&self, r: &Request, id: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let caller = Caller { pid: r.pid(), uid: r.uid(), gid: r.gid() };
        answer!(self, r, Bounded, reply, |b| b.access(id, mask, caller), |reply, ()| reply.ok());
    }

    fn ioctl(
        &self, _: &Request, _: INodeNo, _: FileHandle, _: IoctlFlags, _: u32, _: &[u8], _: u32, reply: ReplyIoctl,
    ) {
        reply.error(errno(Errno::ENOTTY));
    }

    fn poll(
        &self, _: &Request, _: INodeNo, fh: FileHandle, notifier: PollNotifier, events: PollEvents, flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // Plain files are always ready: the kernel then says so itself.
        if self.0.options.single_writer {
            return reply.refuse(Errno::ENOSYS);
        }
        let notify = move || _ = notifier.notify();
        let notify = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY).then_some(notify);
        match self.0.poll(fh, events.bits(), notify) {
            Ok(ready) => reply.poll(PollEvents::from_bits_retain(ready)),
            Err(errno) => reply.refuse(errno),
        }
    }

    fn fallocate(
        &self, r: &Request, id: INodeNo, fh: FileHandle, offset: u64, length: u64, mode: i32, reply: ReplyEmpty,
    ) {
        answer!(self, r, Unbounded, reply, |b| b.allocate((id, fh), offset, length, mode), |reply, ()| reply.ok());
    }

    fn lseek(&self, r: &Request, id: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        answer!(self, r, Unbounded, reply, |b| b.seek((id, fh), offset, whence), |reply, at| reply.offset(at));
    }

    fn copy_file_range(
        &self, r: &Request, id: INodeNo, from: FileHandle, offset: u64, to_id: INodeNo, to: FileHandle, to_offset: u64,
        length: u64, _: CopyFileRangeFlags, reply: ReplyWrite,
    ) {
        let (from, to) = (((id, from), offset), ((to_id, to), to_offset));
        answer!(self, r, Unbounded, reply, |b| b.copy(from, to, length), |reply, count| {
            reply.written(count);
        });
    }
}
