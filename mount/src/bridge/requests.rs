//! The requests as fuser hands them in. What is one question is answered here, names in [`super::names`].

use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use p9::{Attr, Errno, FileKind, Handle, How, SetAttr};

use super::names::Thing;
use super::{Bridge, Shared};
use crate::attr::{entry_type, errno, set_time, to_fuse};
use crate::table::ROOT;

/// Where a listing goes on after `.` and after `..`: values that no tree's cookies have.
const AFTER_DOT: u64 = i64::MAX as u64 - 3;
const AFTER_DOT_DOT: u64 = i64::MAX as u64 - 2;

fn empty(answer: Result<(), Errno>, reply: ReplyEmpty) {
    match answer {
        Ok(()) => reply.ok(),
        Err(err) => reply.error(errno(err)),
    }
}

fn attr(shared: &Shared, id: u64, answer: Result<Attr, Errno>, reply: ReplyAttr) {
    match answer {
        Ok(attr) => {
            shared.table.saw(id, &attr);
            reply.attr(&shared.options.ttl, &to_fuse(&attr, id));
        }
        Err(err) => reply.error(errno(err)),
    }
}

fn xattr(answer: Result<Bytes, Errno>, size: u32, reply: ReplyXattr) {
    match answer {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(errno(Errno::ERANGE)),
        Err(err) => reply.error(errno(err)),
    }
}

/// Whether `uid` may do `mask` to a file with these attributes, as access(2) asks. Of a caller's groups only the first
/// is known, so what any group may do is granted: the tree itself decides when it comes to it.
fn may(attr: &Attr, uid: u32, mask: i32) -> bool {
    let mode = attr.mode as i32;
    if uid == 0 {
        return mask & libc::X_OK == 0 || mode & 0o111 != 0 || attr.qid.kind == FileKind::Dir;
    }
    let granted = if uid == attr.uid { mode >> 6 } else { (mode >> 3) | mode };
    mask & !granted & 7 == 0
}

impl Filesystem for Bridge {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // What a kernel does not have it goes without.
        for wanted in [
            InitFlags::FUSE_ASYNC_READ,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_BIG_WRITES,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(1 << 20);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.on_lookup(request, parent.0, name, reply);
    }

    fn forget(&self, _: &Request, id: INodeNo, count: u64) {
        self.0.table.forget(id.0, count);
    }

    fn getattr(&self, request: &Request, id: INodeNo, open: Option<FileHandle>, reply: ReplyAttr) {
        let (id, open) = (id.0, open.map(|open| open.0));
        let work = move |shared: Arc<Shared>| async move { shared.node(id, open).await?.attr().await };
        self.ask(request, id, work, move |shared, answer| attr(shared, id, answer, reply));
    }

    fn setattr(
        &self, request: &Request, id: INodeNo, mode: Option<u32>, uid: Option<u32>, gid: Option<u32>,
        size: Option<u64>, atime: Option<TimeOrNow>, mtime: Option<TimeOrNow>, _: Option<SystemTime>,
        open: Option<FileHandle>, _: Option<SystemTime>, _: Option<SystemTime>, _: Option<SystemTime>,
        _: Option<BsdFileFlags>, reply: ReplyAttr,
    ) {
        let (id, open) = (id.0, open.map(|open| open.0));
        let (atime, mtime) = (atime.map(set_time), mtime.map(set_time));
        let change = SetAttr { mode: mode.map(|mode| mode & 0o7777), uid, gid, size, atime, mtime };
        let work = move |shared: Arc<Shared>| async move { shared.node(id, open).await?.set_attr(change).await };
        self.ask(request, id, work, move |shared, answer| attr(shared, id, answer, reply));
    }

    fn readlink(&self, request: &Request, id: INodeNo, reply: ReplyData) {
        let id = id.0;
        let work = move |shared: Arc<Shared>| async move { shared.table.node(id).await?.read_link().await };
        self.ask(request, id, work, |_, answer| match answer {
            Ok(target) => reply.data(&target),
            Err(err) => reply.error(errno(err)),
        });
    }

    fn mknod(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, rdev: u32, reply: ReplyEntry) {
        match mode & libc::S_IFMT {
            0 | libc::S_IFREG => self.make_file(request, parent.0, name, mode, reply),
            kind => self.make(request, parent.0, name, Thing::Device { kind, rdev: rdev.into() }, mode, reply),
        }
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, reply: ReplyEntry) {
        self.make(request, parent.0, name, Thing::Dir, mode, reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.on_remove(request, parent.0, name, false, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.on_remove(request, parent.0, name, true, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.on_symlink(request, parent.0, name, target, reply);
    }

    fn rename(
        &self, request: &Request, parent: INodeNo, name: &OsStr, new_parent: INodeNo, new_name: &OsStr,
        flags: RenameFlags, reply: ReplyEmpty,
    ) {
        self.on_rename(request, (parent.0, name), (new_parent.0, new_name), flags.bits(), reply);
    }

    fn link(&self, request: &Request, id: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.on_link(request, id.0, parent.0, name, reply);
    }

    fn open(&self, request: &Request, id: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (id, flags) = (id.0, flags.0);
        let shared = self.0.clone();
        // A device or a clone file may take its time: no bound.
        self.run(request, None, async move { shared.open(id, flags).await }, move |answer| match answer {
            Ok((number, flags)) => reply.opened(FileHandle(number), flags),
            Err(err) => reply.error(errno(err)),
        });
    }

    fn create(
        &self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _: u32, flags: i32, reply: ReplyCreate,
    ) {
        self.on_create(request, parent.0, name, mode, flags, reply);
    }

    fn read(
        &self, request: &Request, _: INodeNo, open: FileHandle, offset: u64, size: u32, _: OpenFlags,
        _: Option<LockOwner>, reply: ReplyData,
    ) {
        let shared = self.0.clone();
        let work = async move { shared.file(open.0)?.read(offset, size).await };
        self.run(request, None, work, |answer| match answer {
            Ok(data) => reply.data(&data),
            Err(err) => reply.error(errno(err)),
        });
    }

    fn write(
        &self, request: &Request, _: INodeNo, open: FileHandle, offset: u64, data: &[u8], _: WriteFlags, _: OpenFlags,
        _: Option<LockOwner>, reply: ReplyWrite,
    ) {
        let (shared, data) = (self.0.clone(), Bytes::copy_from_slice(data));
        let work = async move { shared.file(open.0)?.write(offset, data).await };
        self.run(request, None, work, |answer| match answer {
            Ok(written) => reply.written(written.count),
            Err(err) => reply.error(errno(err)),
        });
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Nothing is held back: each write was answered. The kernel remembers, and does not ask again.
        reply.error(errno(Errno::ENOSYS));
    }

    fn release(
        &self, _: &Request, _: INodeNo, open: FileHandle, _: OpenFlags, _: Option<LockOwner>, _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.release(open.0);
        reply.ok();
    }

    fn fsync(&self, request: &Request, _: INodeNo, open: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let shared = self.0.clone();
        let work = async move { shared.file(open.0)?.handle.sync(datasync).await };
        self.run(request, None, work, |answer| empty(answer, reply));
    }

    fn opendir(&self, request: &Request, id: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let id = id.0;
        let work = move |shared: Arc<Shared>| async move {
            let node = shared.table.node(id).await?;
            let handle = node.open(How { directory: true, ..How::READ }).await?;
            Ok(shared.opened(id, node, handle, None, None).0)
        };
        self.ask(request, id, work, |_, answer| match answer {
            Ok(number) => reply.opened(FileHandle(number), FopenFlags::empty()),
            Err(err) => reply.error(errno(err)),
        });
    }

    fn readdir(&self, request: &Request, id: INodeNo, open: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let id = id.0;
        let work = move |shared: Arc<Shared>| async move {
            let open = shared.file(open.0)?;
            let Handle::Dir(dir) = &open.handle else { return Err(Errno::ENOTDIR) };
            let dots: &[_] = match offset {
                0 => &[(AFTER_DOT, "."), (AFTER_DOT_DOT, "..")],
                AFTER_DOT => &[(AFTER_DOT_DOT, "..")],
                _ => &[],
            };
            for (after, name) in dots {
                if reply.add(INodeNo(id.max(ROOT)), *after, FileType::Directory, name) {
                    return Ok(reply);
                }
            }
            let cookie = if matches!(offset, AFTER_DOT | AFTER_DOT_DOT) { 0 } else { offset };
            let mut add = |entry: p9::Entry<'_>| {
                let known = shared.table.known(id, entry.name);
                let number = INodeNo(known.unwrap_or(entry.qid.path | 1));
                let kind = entry_type(entry.kind, entry.qid.kind);
                match reply.add(number, entry.cookie, kind, entry.name.as_os_str()) {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            };
            dir.list(cookie, &mut add).await?;
            Ok(reply)
        };
        // An error drops the reply that the work owns, which answers EIO.
        self.ask(request, id, work, |_, answer| {
            if let Ok(reply) = answer {
                reply.ok();
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, open: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.release(open.0);
        reply.ok();
    }

    fn fsyncdir(&self, request: &Request, id: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let shared = self.0.clone();
        let work = async move { shared.table.node(id.0).await?.sync().await };
        self.run(request, None, work, |answer| empty(answer, reply));
    }

    fn statfs(&self, request: &Request, id: INodeNo, reply: ReplyStatfs) {
        let id = id.0;
        let work = move |shared: Arc<Shared>| async move { shared.table.node(id).await?.stat_fs().await };
        self.ask(request, id, work, |_, answer| match answer {
            Ok(s) => reply.statfs(s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.bsize),
            Err(err) => reply.error(errno(err)),
        });
    }

    fn setxattr(
        &self, request: &Request, id: INodeNo, name: &OsStr, value: &[u8], flags: i32, _: u32, reply: ReplyEmpty,
    ) {
        let (id, name, value) = (id.0, name.as_bytes().to_vec(), Bytes::copy_from_slice(value));
        let work = move |shared: Arc<Shared>| async move {
            shared.table.node(id).await?.set_xattr(&name, Some(value), flags as u32).await
        };
        self.ask(request, id, work, |_, answer| empty(answer, reply));
    }

    fn removexattr(&self, request: &Request, id: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (id, name) = (id.0, name.as_bytes().to_vec());
        let work =
            move |shared: Arc<Shared>| async move { shared.table.node(id).await?.set_xattr(&name, None, 0).await };
        self.ask(request, id, work, |_, answer| empty(answer, reply));
    }

    fn getxattr(&self, request: &Request, id: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (id, name) = (id.0, name.as_bytes().to_vec());
        let work = move |shared: Arc<Shared>| async move { shared.table.node(id).await?.xattr(&name).await };
        self.ask(request, id, work, move |_, answer| xattr(answer, size, reply));
    }

    fn listxattr(&self, request: &Request, id: INodeNo, size: u32, reply: ReplyXattr) {
        let id = id.0;
        let work = move |shared: Arc<Shared>| async move {
            match shared.table.node(id).await?.xattrs().await {
                // What has none lists none.
                Err(Errno::EOPNOTSUPP) => Ok(Bytes::new()),
                answer => answer,
            }
        };
        self.ask(request, id, work, move |_, answer| xattr(answer, size, reply));
    }

    fn access(&self, request: &Request, id: INodeNo, mask: AccessFlags, reply: ReplyEmpty) {
        let (id, uid, mask) = (id.0, request.uid(), mask.bits());
        let read_only = self.0.options.read_only;
        let work = move |shared: Arc<Shared>| async move {
            let attr = shared.table.node(id).await?.attr().await?;
            match may(&attr, uid, mask) {
                _ if mask & libc::W_OK != 0 && read_only => Err(Errno::EROFS),
                true => Ok(()),
                false => Err(Errno::EACCES),
            }
        };
        self.ask(request, id, work, |_, answer| empty(answer, reply));
    }
}
