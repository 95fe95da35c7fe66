//! A FUSE file system that does nothing: what the kernel alone takes, and so the most that any file system of its kind
//! can reach on this machine.
//!
//! It has what the cases of the group `mount` use: a folder of small files, a big file, and a folder in which files are
//! made and removed. Reads give zeros, what is written is forgotten, names and attributes are good for an hour.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, WriteFlags,
};

const TTL: Duration = Duration::from_secs(3600);
const MOST: usize = 1 << 20;

struct Null {
    files: Mutex<Files>,
    zeros: Vec<u8>,
}

#[derive(Default)]
struct Files {
    attrs: BTreeMap<u64, FileAttr>,
    dirs: BTreeMap<u64, BTreeMap<OsString, u64>>,
}

impl Files {
    fn make(&mut self, dir: u64, name: &OsStr, kind: FileType, size: u64) -> FileAttr {
        let id = self.attrs.len() as u64 + 1;
        let time = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let perm = if kind == FileType::Directory { 0o755 } else { 0o644 };
        let attr = FileAttr {
            ino: INodeNo(id),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        self.attrs.insert(id, attr);
        if kind == FileType::Directory {
            self.dirs.insert(id, BTreeMap::new());
        }
        if id > 1 {
            self.dirs.entry(dir).or_default().insert(name.into(), id);
        }
        attr
    }

    fn find(&self, dir: u64, name: &OsStr) -> Option<FileAttr> {
        self.attrs.get(self.dirs.get(&dir)?.get(name)?).copied()
    }
}

/// Mounts one at `at`, with `small` files of 4 KiB and one of `big` bytes; it is unmounted when what this gives is
/// dropped.
pub(crate) fn mount(at: &Path, small: usize, big: u64) -> BackgroundSession {
    let mut files = Files::default();
    let root = files.make(0, OsStr::new(""), FileType::Directory, 0).ino.0;
    let folder = files.make(root, OsStr::new("small"), FileType::Directory, 0).ino.0;
    for i in 0..small {
        files.make(folder, OsStr::new(&format!("{i:05}")), FileType::RegularFile, 4096);
    }
    for (name, size) in [("big", big), ("middle", big / 4)] {
        files.make(root, OsStr::new(name), FileType::RegularFile, size);
    }
    files.make(root, OsStr::new("memory"), FileType::Directory, 0);
    std::fs::create_dir_all(at).expect("a mount point");
    let null = Null { files: Mutex::new(files), zeros: vec![0; MOST] };
    fuser::spawn_mount(null, at, &Config::default()).expect("a FUSE mount")
}

impl Null {
    fn files(&self) -> std::sync::MutexGuard<'_, Files> {
        self.files.lock().expect("nobody panics with it")
    }
}

impl Filesystem for Null {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let wanted = InitFlags::FUSE_PARALLEL_DIROPS | InitFlags::FUSE_ATOMIC_O_TRUNC | InitFlags::FUSE_DO_READDIRPLUS;
        let offered = config.capabilities() & wanted;
        _ = config.add_capabilities(offered);
        _ = config.set_max_write(MOST as u32);
        _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.files().find(parent.0, name) {
            Some(attr) => reply.entry(&TTL, &attr, Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, id: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.files().attrs.get(&id.0) {
            Some(attr) => reply.attr(&TTL, attr),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_NOFLUSH);
    }

    fn read(
        &self, _: &Request, _: INodeNo, _: FileHandle, _: u64, size: u32, _: OpenFlags, _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&self.zeros[..(size as usize).min(MOST)]);
    }

    fn write(
        &self, _: &Request, _: INodeNo, _: FileHandle, _: u64, data: &[u8], _: WriteFlags, _: OpenFlags,
        _: Option<LockOwner>, reply: ReplyWrite,
    ) {
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.entry(&TTL, &self.files().make(parent.0, name, FileType::Directory, 0), Generation(0));
    }

    fn create(&self, _: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        let attr = self.files().make(parent.0, name, FileType::RegularFile, 0);
        reply.created(&TTL, &attr, Generation(0), FileHandle(0), FopenFlags::empty());
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.files().dirs.entry(parent.0).or_default().remove(name);
        reply.ok();
    }

    fn rmdir(&self, r: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.unlink(r, parent, name, reply);
    }

    fn readdirplus(&self, _: &Request, id: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let files = self.files();
        let entries = files.dirs.get(&id.0).into_iter().flatten().zip(1..).skip(offset as usize);
        for ((name, id), next) in entries {
            let attr = &files.attrs[id];
            if reply.add(attr.ino, next, name, &TTL, attr, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }
}
