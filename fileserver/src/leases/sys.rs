//! The system calls of the lease authority: fanotify(7), leases of fcntl(2), and the signal that tells of their breaks.
//!
//! Called by [`super::grip`] on the blocking pool and by the thread in [`super::watch`]. Kernel leases report to that
//! thread alone: it alone blocks the signal and reads it, so that no other thread of the process is ever interrupted.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use p9::Errno;

/// What becomes of `result` of a system call that answers -1 for an error.
fn checked(result: libc::c_int) -> Result<libc::c_int, Errno> {
    if result < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(result) }
}

/// A lease of fcntl(2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// Nobody has it open for writing; who opens it so waits until the lease is gone.
    Read,
    /// Nobody else has it open at all.
    Write,
}

/// The signal that tells of a broken lease: real-time, so that each is queued and says which descriptor.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 7
}

/// Takes a lease on the file open as `fd`, whose break is told to the thread `tid`. Errors: `EAGAIN` where it is open
/// in another way; `EACCES` for another user's file.
pub(super) fn lease(fd: BorrowedFd<'_>, kind: Kind, tid: libc::pid_t) -> Result<(), Errno> {
    /// Of asm-generic/fcntl.h.
    #[repr(C)]
    struct Owner {
        kind: libc::c_int,
        pid: libc::pid_t,
    }
    const F_SETSIG: libc::c_int = 10;
    const F_SETOWN_EX: libc::c_int = 15;
    const F_OWNER_TID: libc::c_int = 0;
    let (fd, owner) = (fd.as_raw_fd(), Owner { kind: F_OWNER_TID, pid: tid });
    let kind = match kind {
        Kind::Read => libc::F_RDLCK,
        Kind::Write => libc::F_WRLCK,
    };
    // SAFETY: `fd` is open; F_SETOWN_EX reads a struct of this layout, which outlives the call, the others numbers.
    unsafe {
        checked(libc::fcntl(fd, F_SETOWN_EX, &raw const owner))?;
        checked(libc::fcntl(fd, F_SETSIG, signal()))?;
        checked(libc::fcntl(fd, libc::F_SETLEASE, kind))?;
    }
    Ok(())
}

/// Gives the lease on `fd` back, whichever it is.
pub(super) fn unlease(fd: BorrowedFd<'_>) {
    // SAFETY: `fd` is open, and F_SETLEASE takes a number.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
}

/// What tells this thread, which must not end before the leases do, of broken leases.
pub(super) struct Breaks(OwnedFd);

impl Breaks {
    /// For the thread that calls this; gives its number, too.
    pub(super) fn here() -> Result<(Self, libc::pid_t), Errno> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` fills the set that the others read. SIGIO is what the kernel sends in place of a signal
        // for which it has no room; blocked here, neither does anything to the thread but wait to be read.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), signal());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGIO);
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            checked(libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?
        };
        // SAFETY: the descriptor is new and nobody else's; gettid has no failure.
        unsafe { Ok((Self(OwnedFd::from_raw_fd(fd)), libc::gettid())) }
    }

    /// The descriptor whose lease was broken; `Some(None)` if that is not known any more, `None` if there is no more.
    pub(super) fn next(&self) -> Option<Option<RawFd>> {
        let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        // SAFETY: the kernel writes at most `size` bytes into `info`, of which any are a valid value.
        let (got, info) = unsafe {
            let got = libc::read(self.0.as_raw_fd(), info.as_mut_ptr().cast(), size);
            (got, info.assume_init())
        };
        if got != size as isize {
            return None;
        }
        Some((info.ssi_signo == signal() as u32).then_some(info.ssi_fd))
    }
}

impl AsFd for Breaks {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What happened to an object itself.
pub(super) const SELF: u64 = libc::FAN_ATTRIB | libc::FAN_MODIFY | libc::FAN_DELETE_SELF | libc::FAN_MOVE_SELF;
/// What happened to the entries of a directory.
pub(super) const ENTRIES: u64 = libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MOVED_FROM | libc::FAN_MOVED_TO;

/// A queue of fanotify(7) events that name the directory, the entry and the file. Errors: the kernel is older than 5.13
/// and this process unprivileged, or older than 5.9.
pub(super) fn fanotify() -> Result<OwnedFd, Errno> {
    let report = libc::FAN_REPORT_DFID_NAME | libc::FAN_REPORT_FID;
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK | report;
    // SAFETY: it takes numbers, and the descriptor that it gives is new.
    unsafe { Ok(OwnedFd::from_raw_fd(checked(libc::fanotify_init(flags, libc::O_RDONLY as u32))?)) }
}

/// Adds a mark on the file that `place` stands for, or takes it away. Errors: `EXDEV`, `ENODEV`, `EOPNOTSUPP` where the
/// file system cannot; `ENOSPC` for one mark too many.
pub(super) fn mark(queue: BorrowedFd<'_>, place: BorrowedFd<'_>, mask: u64, add: bool) -> Result<(), Errno> {
    let path = std::ffi::CString::new(format!("/proc/self/fd/{}", place.as_raw_fd())).map_err(|_| Errno::EINVAL)?;
    let flags = if add { libc::FAN_MARK_ADD } else { libc::FAN_MARK_REMOVE };
    // SAFETY: the path is a C string that outlives the call.
    let done = unsafe { libc::fanotify_mark(queue.as_raw_fd(), flags, mask, libc::AT_FDCWD, path.as_ptr()) };
    checked(done).map(drop)
}
