//! This machine's files as a FUSE file system: read-only, inodes kept by path, enough for a job's root in a test.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, OpenAccMode,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen, Request, Session, SessionACL,
};

const TTL: Duration = Duration::from_secs(60);

/// Serves the mirror on `fuse` until the mount is gone. Returns at once.
pub(crate) fn serve(fuse: OwnedFd) {
    let session = Session::from_fd(Mirror::default(), fuse, SessionACL::All, Config::default()).unwrap();
    std::thread::spawn(move || session.run());
}

#[derive(Default)]
struct Mirror {
    table: Mutex<Table>,
}

/// Inode 1 is the root; inode N + 2 is `paths[N]`.
#[derive(Default)]
struct Table {
    paths: Vec<PathBuf>,
    numbers: HashMap<PathBuf, u64>,
}

impl Mirror {
    fn path(&self, ino: INodeNo) -> PathBuf {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        ino.0.checked_sub(2).map_or_else(|| PathBuf::from("/"), |n| table.paths[n as usize].clone())
    }

    fn number(&self, path: &Path) -> u64 {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let next = table.paths.len() as u64 + 2;
        let number = *table.numbers.entry(path.to_path_buf()).or_insert(next);
        if number == next {
            table.paths.push(path.to_path_buf());
        }
        number
    }
}

fn attr(meta: &Metadata, ino: u64) -> FileAttr {
    let time = |seconds: i64| UNIX_EPOCH + Duration::from_secs(seconds.max(0) as u64);
    FileAttr {
        ino: INodeNo(ino),
        size: meta.size(),
        blocks: meta.blocks(),
        atime: time(meta.atime()),
        mtime: time(meta.mtime()),
        ctime: time(meta.ctime()),
        crtime: UNIX_EPOCH,
        kind: kind(meta.file_type()),
        perm: (meta.mode() & 0o7777) as u16,
        nlink: meta.nlink() as u32,
        uid: meta.uid(),
        gid: meta.gid(),
        rdev: meta.rdev() as u32,
        blksize: 4096,
        flags: 0,
    }
}

fn kind(of: fs::FileType) -> FileType {
    match of {
        t if t.is_dir() => FileType::Directory,
        t if t.is_symlink() => FileType::Symlink,
        t if t.is_char_device() => FileType::CharDevice,
        t if t.is_block_device() => FileType::BlockDevice,
        t if t.is_fifo() => FileType::NamedPipe,
        t if t.is_socket() => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

impl Filesystem for Mirror {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let path = self.path(parent).join(name);
        match fs::symlink_metadata(&path) {
            Ok(meta) => reply.entry(&TTL, &attr(&meta, self.number(&path)), Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match fs::symlink_metadata(self.path(ino)) {
            Ok(meta) => reply.attr(&TTL, &attr(&meta, ino.0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match fs::read_link(self.path(ino)) {
            Ok(target) => reply.data(target.as_os_str().as_bytes()),
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match flags.acc_mode() {
            OpenAccMode::O_RDONLY => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
            _ => reply.error(Errno::EROFS),
        }
    }

    fn read(
        &self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, size: u32, _: OpenFlags, _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = vec![0; size as usize];
            let got = File::open(self.path(ino))?.read_at(&mut bytes, offset)?;
            bytes.truncate(got);
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Ok(list) = fs::read_dir(self.path(ino)) else { return reply.error(Errno::EIO) };
        for (i, entry) in list.flatten().enumerate().skip(offset as usize) {
            let kind = entry.file_type().map_or(FileType::RegularFile, kind);
            if reply.add(INodeNo(self.number(&entry.path())), i as u64 + 1, kind, entry.file_name()) {
                break;
            }
        }
        reply.ok();
    }
}
