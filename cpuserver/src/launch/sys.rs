//! The system calls of this module that have no safe wrapper, and nothing else.
//!
//! Called by every other file here, all but [`readable`] only in processes of one thread. Invariant: what is unsafe is
//! in this file.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::thread::UnshareFlags;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Exit, Usage};

/// `socket` as one that the runtime waits for.
pub(super) fn readable(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and names the same file, for as long as it lives; the AsyncFd owns it.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}

/// Which side of a fork this is.
pub(super) enum Side {
    /// The new process.
    Child,
    /// The old one.
    Parent {
        /// The child, in this process's pid namespace.
        pid: i32,
        /// The same as a descriptor.
        pidfd: OwnedFd,
    },
}

/// fork(2), with `CLONE_` flags. The caller is a process of one thread, so that the child may allocate.
pub(super) fn fork(flags: i32) -> io::Result<Side> {
    let mut pidfd: RawFd = -1;
    let flags = flags | libc::CLONE_PIDFD | libc::SIGCHLD;
    // SAFETY: no CLONE_VM, so nothing is shared with the child; the kernel writes one int to `pidfd` (the third
    // argument on every architecture that Rust's std supports with CLONE_PIDFD).
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags as libc::c_ulong, 0, &raw mut pidfd, 0, 0) };
    match check(pid)? {
        0 => Ok(Side::Child),
        // SAFETY: the kernel has just made this descriptor for us.
        pid => Ok(Side::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Ends this process at once: nothing that was inherited by fork is flushed or run.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: always sound.
    unsafe { libc::_exit(code) }
}

/// unshare(2).
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    // SAFETY: only FILES is unsafe.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// sethostname(2).
pub(super) fn set_hostname(name: &[u8]) -> io::Result<()> {
    // SAFETY: the pointer and the length are of one slice.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) }.into()).map(drop)
}

/// What wait(2) told of a child.
pub(super) struct Reaped {
    pub(super) pid: i32,
    pub(super) exit: Exit,
    pub(super) usage: Usage,
}

/// Waits for any child; none if `flags` has `WNOHANG` and none has ended. Errors: `ECHILD` without children.
pub(super) fn wait(flags: i32) -> io::Result<Option<Reaped>> {
    let mut status = 0;
    let mut usage = MaybeUninit::zeroed();
    let pid = loop {
        // SAFETY: both pointers are to locals of the types that wait4(2) writes.
        let pid = unsafe { libc::wait4(-1, &mut status, flags, usage.as_mut_ptr()) };
        match check(pid.into()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            end => break end? as i32,
        }
    };
    // SAFETY: zeroes are a valid rusage, and so is what the kernel has written.
    let usage = usage_of(&unsafe { usage.assume_init() });
    Ok((pid > 0).then(|| Reaped { pid, exit: exit_of(status), usage }))
}

/// What all children used that were waited for.
pub(super) fn children_usage() -> Usage {
    let mut usage = MaybeUninit::zeroed();
    // SAFETY: the pointer is to a local of the type that getrusage(2) writes; zeroes are a valid one.
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_CHILDREN, usage.as_mut_ptr());
        usage.assume_init()
    };
    usage_of(&usage)
}

fn usage_of(usage: &libc::rusage) -> Usage {
    let time = |t: libc::timeval| Duration::new(t.tv_sec as u64, t.tv_usec as u32 * 1000);
    Usage {
        user: time(usage.ru_utime),
        system: time(usage.ru_stime),
        max_rss_kib: usage.ru_maxrss as u64,
        major_faults: usage.ru_majflt as u64,
        ..Usage::default()
    }
}

fn exit_of(status: i32) -> Exit {
    if libc::WIFSIGNALED(status) {
        Exit::Signal { number: libc::WTERMSIG(status), core: libc::WCOREDUMP(status) }
    } else {
        Exit::Code(libc::WEXITSTATUS(status) as u8)
    }
}

/// kill(2), for any signal number.
pub(super) fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: always sound.
    check(unsafe { libc::kill(pid, signal) }.into()).map(drop)
}

/// Blocks every signal, and makes a descriptor that is readable while SIGCHLD is pending.
pub(super) fn children_signal() -> io::Result<OwnedFd> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the set is filled before it is read; signalfd(2) makes a new descriptor, which is ours.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
        let fd = check(libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Gives every signal its default meaning and blocks none, as a program expects to find them.
pub(super) fn default_signals() {
    // All zeroes is SIG_DFL, no flags, empty mask in the kernel's own `struct sigaction`, however long it is here. Not
    // sigaction(3), which keeps two signals to itself; whoever started us may have ignored those.
    let default = [0_u64; 8];
    const SIGNALS: i32 = 64;
    for signal in 1..=SIGNALS {
        // SAFETY: SIG_DFL runs no code of ours, and the structure is shorter than `default`. It fails for KILL and
        // STOP.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0, SIGNALS / 8) };
    }
    // SAFETY: the set is as long as said.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, default.as_ptr(), 0, SIGNALS / 8) };
}

/// Has the kernel reap children by itself.
pub(super) fn ignore_children() {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Closes all but the standard descriptors at execve(2).
pub(super) fn close_at_exec() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: this closes nothing now, and execve(2) leaves nobody behind who would miss them.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, flags) }).map(drop)
}

/// setrlimit(2); a hard limit above ours is cut to ours, unless we may raise it.
pub(super) fn limit(resource: i32, soft: u64, hard: u64) -> io::Result<()> {
    let set = |soft: u64, hard: u64| {
        let wanted = libc::rlimit64 { rlim_cur: soft.min(hard), rlim_max: hard };
        // SAFETY: the pointer is to a local; an unknown resource is refused by the kernel.
        check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const wanted, 0) })
    };
    let Err(error) = set(soft, hard) else { return Ok(()) };
    if error.raw_os_error() != Some(libc::EPERM) {
        return Err(error);
    }
    let mut ours = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a local of the type that prlimit(2) writes.
    check(unsafe { libc::syscall(libc::SYS_prlimit64, 0, resource, 0, &raw mut ours) })?;
    set(soft, hard.min(ours.rlim_max)).map(drop)
}

/// mount_setattr(2) on the whole tree of `mount`: sets the `MOUNT_ATTR_` flags.
pub(super) fn set_mount_flags(mount: impl AsFd, flags: u32) -> io::Result<()> {
    /// `struct mount_attr` of Linux 5.12, whose size is passed along.
    #[repr(C)]
    struct Attr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attr = Attr { set: flags.into(), clear: 0, propagation: 0, userns_fd: 0 };
    let (fd, at) = (mount.as_fd().as_raw_fd(), libc::AT_EMPTY_PATH | libc::AT_RECURSIVE);
    // SAFETY: the pointers are to a constant and a local, whose size is the last argument.
    check(unsafe { libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), at, &raw const attr, size_of::<Attr>()) })
        .map(drop)
}

/// execve(2): returns only if it fails.
pub(super) fn execute(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |items: &[CString]| -> Vec<*const c_char> {
        items.iter().map(|item| item.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer, and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// execveat(2) of an open file: returns only if it fails.
pub(super) fn execute_fd(file: RawFd, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |items: &[CString]| -> Vec<*const c_char> {
        items.iter().map(|item| item.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end with a null pointer, and their strings outlive the call.
    unsafe {
        libc::syscall(libc::SYS_execveat, file, c"".as_ptr(), argv.as_ptr(), env.as_ptr(), libc::AT_EMPTY_PATH);
    }
    io::Error::last_os_error()
}

fn check(returned: libc::c_long) -> io::Result<libc::c_long> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}
