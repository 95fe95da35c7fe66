//! The system calls of a disk tree: the few that rustix lacks, and the others with the flags that keep them safe.
//!
//! Called by the disk tree alone, on the blocking pool or, where the kernel answers from memory, in place. Its
//! invariant: no call follows a symbolic link or resolves more than one component, except through /proc/self/fd, whose
//! links the kernel itself makes.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use p9::tree::{Lock, LockKind};
use p9::{Attr, Errno, FileKind, Name, Qid, Time};
use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags, StatxTimestamp};
use rustix::io::retry_on_intr;

/// A file as `O_PATH`: it can be named and looked at, not read.
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// One component, beneath the directory, and no link.
const ONE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);

/// Opens the entry `name` of `dir` as a place. With `cached`, only if the kernel has it in memory: else `EAGAIN`.
pub(super) fn place(dir: BorrowedFd<'_>, name: Name<'_>, cached: bool) -> Result<OwnedFd, Errno> {
    let resolve = if cached { ONE.union(ResolveFlags::CACHED) } else { ONE };
    Ok(retry_on_intr(|| rustix::fs::openat2(dir, name.as_bytes(), PLACE, Mode::empty(), resolve))?)
}

/// Makes the file `name` in `dir`, which must not exist, and opens it.
pub(super) fn make(dir: BorrowedFd<'_>, name: Name<'_>, flags: OFlags, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(retry_on_intr(|| rustix::fs::openat2(dir, name.as_bytes(), flags, Mode::from_raw_mode(mode & 0o7777), ONE))?)
}

/// How long the list of the extended attributes of the entry `name` of `dir` is, by listxattrat(2). Errors: those of
/// listxattr(2); `ENOSYS` before Linux 6.13.
pub(super) fn xattrs_length(dir: BorrowedFd<'_>, name: Name<'_>) -> Result<usize, Errno> {
    /// Its number on every architecture that counts as they all do since Linux 5.0.
    const LISTXATTRAT: libc::c_long = 465;
    static IS_MISSING: AtomicBool = AtomicBool::new(!cfg!(any(
        target_arch = "x86_64",
        target_arch = "aarch64",
        target_arch = "riscv64",
        target_arch = "powerpc64",
        target_arch = "s390x"
    )));
    if IS_MISSING.load(Ordering::Relaxed) {
        return Err(Errno::ENOSYS);
    }
    let path = CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?;
    let no_list: *mut libc::c_char = std::ptr::null_mut();
    let flags = libc::AT_SYMLINK_NOFOLLOW;
    // SAFETY: the path ends with NUL and outlives the call, which is given no room to write to.
    let length = unsafe { libc::syscall(LISTXATTRAT, dir.as_raw_fd(), path.as_ptr(), flags, no_list, 0_usize) };
    usize::try_from(length).map_err(|_| {
        let errno = Errno::from(std::io::Error::last_os_error());
        // A sandbox that does not know it may say that it is not permitted.
        if matches!(errno, Errno::ENOSYS | Errno::EPERM) {
            IS_MISSING.store(true, Ordering::Relaxed);
        }
        errno
    })
}

/// The path by which the kernel reaches the file open as `fd`, also one that has no name any more.
pub(super) fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Opens the file that `place` stands for. Only for what is known to be a regular file or a directory: it never waits.
pub(super) fn reopen(place: impl AsFd, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
    Ok(retry_on_intr(|| rustix::fs::open(proc_path(&place), flags, Mode::empty()))?)
}

/// What statx(2) says of the file open as `fd`. `sync` asks a file system that has a server for the truth; without it
/// the server is not asked, so that looking at a slashn mount never waits for this very process.
pub(super) fn statx(fd: BorrowedFd<'_>, sync: bool) -> Result<Statx, Errno> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    let how = if sync { AtFlags::empty() } else { AtFlags::STATX_DONT_SYNC };
    Ok(rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | how, mask)?)
}

/// The attributes that `stat` says, of the file whose qid path is `path`.
pub(super) fn attr(stat: &Statx, path: u64) -> Attr {
    let mode = u32::from(stat.stx_mode);
    Attr {
        qid: Qid { kind: FileKind::of_mode(mode), version: version(stat), path },
        mode,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        nlink: u64::from(stat.stx_nlink),
        rdev: rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
        size: stat.stx_size,
        blksize: stat.stx_blksize,
        blocks: stat.stx_blocks,
        atime: time(&stat.stx_atime),
        mtime: time(&stat.stx_mtime),
        ctime: time(&stat.stx_ctime),
        btime: time(&stat.stx_btime),
        bare: false,
    }
}

/// Another number whenever the contents may have changed. ctime moves with every write and cannot be set back; size
/// helps where two writes fall into one tick of the clock.
fn version(stat: &Statx) -> u32 {
    let ctime = &stat.stx_ctime;
    let mixed = (ctime.tv_sec as u64).wrapping_mul(1_000_000_007) ^ (u64::from(ctime.tv_nsec) << 20) ^ stat.stx_size;
    (mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

fn time(stamp: &StatxTimestamp) -> Time {
    Time { sec: stamp.tv_sec, nsec: stamp.tv_nsec }
}

/// Takes, changes or drops a lock of the open file `fd` (fcntl(2), `F_OFD_SETLK`), without waiting. Errors: `EAGAIN` if
/// another has it; `EBADF` if the file is not open in the way that such a lock wants.
pub(super) fn lock(fd: BorrowedFd<'_>, lock: &Lock) -> Result<(), Errno> {
    let flock = flock(lock);
    // SAFETY: `F_OFD_SETLK` only reads the structure, which outlives the call.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const flock) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

/// What stands in the way of a lock of the open file `fd` (`F_OFD_GETLK`).
pub(super) fn conflict(fd: BorrowedFd<'_>, lock: &Lock) -> Result<Option<Lock>, Errno> {
    let mut flock = flock(lock);
    // SAFETY: `F_OFD_GETLK` reads and writes the structure, which outlives the call.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut flock) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let kind = match i32::from(flock.l_type) {
        libc::F_RDLCK => LockKind::Read,
        libc::F_WRLCK => LockKind::Write,
        _ => return Ok(None),
    };
    // Of a lock that belongs to an open file, the process is not known: -1.
    let pid = u32::try_from(flock.l_pid).unwrap_or(0);
    Ok(Some(Lock { kind, start: flock.l_start as u64, length: flock.l_len as u64, owner: 0, pid }))
}

fn flock(lock: &Lock) -> libc::flock {
    let kind = match lock.kind {
        LockKind::Read => libc::F_RDLCK,
        LockKind::Write => libc::F_WRLCK,
        LockKind::Unlock => libc::F_UNLCK,
    };
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: lock.start as i64,
        l_len: lock.length as i64,
        l_pid: 0,
    }
}

/// The kernel's own name for a file, unique in its file system for all time: name_to_handle_at(2).
#[repr(C)]
pub(crate) struct FileHandle {
    bytes: u32,
    kind: i32,
    data: [u8; libc::MAX_HANDLE_SZ as usize],
}

impl FileHandle {
    /// That of the file open as `fd`; `None` where the file system has none.
    pub(crate) fn of(fd: BorrowedFd<'_>) -> Option<Self> {
        /// Linux 6.5: a handle that need not be openable, which more file systems have.
        const AT_HANDLE_FID: i32 = 0x200;
        Self::ask(fd, libc::AT_EMPTY_PATH).or_else(|| Self::ask(fd, libc::AT_EMPTY_PATH | AT_HANDLE_FID))
    }

    fn ask(fd: BorrowedFd<'_>, flags: i32) -> Option<Self> {
        let data = [0; libc::MAX_HANDLE_SZ as usize];
        let mut handle = Self { bytes: data.len() as u32, kind: 0, data };
        let (mut mount, raw) = (0, fd.as_raw_fd());
        // SAFETY: `handle` has the layout of `struct file_handle` with room for the `bytes` it claims, the name is a C
        // string, and both out-pointers outlive the call.
        let done = unsafe {
            libc::name_to_handle_at(raw, c"".as_ptr(), (&raw mut handle).cast::<libc::file_handle>(), &mut mount, flags)
        };
        (done == 0 && handle.bytes as usize <= handle.data.len()).then_some(handle)
    }

    /// Its type and bytes.
    pub(crate) fn parts(&self) -> (i32, &[u8]) {
        (self.kind, &self.data[..self.bytes as usize])
    }
}
