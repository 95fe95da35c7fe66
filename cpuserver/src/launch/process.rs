//! The launcher process: waits for requests, forks a mounter for each, and knows nothing else; and its watcher, which
//! outlives it.
//!
//! Called by the node's `main` as `slashn launcher`, before any thread. Invariant: one thread each, for as long as they
//! live: they fork without exec, and the kernel tells the launcher's children of its death.

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::getpid;

use super::children::Children;
use super::message::{self, Start};
use super::mounter::{self, Request};
use super::sys::{self, Side};

/// Runs the launcher on standard input, as [`super::Launcher::start`] arranges it, until the daemon is gone.
pub fn main() -> ExitCode {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3);
    let null = rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    match (socket, null) {
        // Descriptor 0 must stay taken, or the next one opened would be it.
        (Ok(socket), Ok(null)) if rustix::stdio::dup2_stdin(&null).is_ok() => run(socket),
        _ => ExitCode::FAILURE,
    }
}

/// Runs the launcher on `socket`, the far end of the one that [`super::Launcher`] holds, and watches it: returns when
/// it has ended, and everything that it started.
///
/// The caller has one thread, and its standard descriptors are open.
pub fn run(socket: OwnedFd) -> ExitCode {
    // Signals from the daemon's terminal are for the daemon to understand.
    let _ = rustix::process::setsid();
    sys::default_signals();
    // What loses its parents becomes a child of this process.
    if rustix::process::set_child_subreaper(Some(getpid())).is_err() {
        return ExitCode::FAILURE;
    }
    match sys::fork(0) {
        Ok(Side::Child) => launch(socket),
        Ok(Side::Parent { pid, .. }) => {
            drop(socket);
            watch(pid)
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Kills what has lost its mounter, whatever session or group it moved to, and when the launcher has ended all that is
/// left. Where jobs have pid namespaces the kernel did that already. (Killed itself, it is missed by nobody but this.)
fn watch(launcher: i32) -> ExitCode {
    let children = Children::of_this_process();
    loop {
        match sys::wait(0) {
            Ok(Some(child)) if child.pid == launcher => {
                children.kill_all();
                return ExitCode::SUCCESS;
            }
            // Init dies with its mounter, and its death is the news that the rest of the job is here, too.
            Ok(_) => children.kill_but(launcher),
            Err(_) => return ExitCode::FAILURE,
        }
    }
}

/// The launcher's life: until the daemon is gone.
fn launch(socket: OwnedFd) -> ! {
    sys::ignore_children();
    let launcher = getpid();
    loop {
        let fds = match message::receive::<Start>(&socket) {
            Ok(Some((Start, fds))) => fds,
            Ok(None) => sys::exit(0),
            Err(error) if error.raw_os_error().is_some() => sys::exit(1),
            Err(_) => continue,
        };
        let Ok([spec, job, stdin, stdout, stderr]) = <[OwnedFd; 5]>::try_from(fds) else { continue };
        match sys::fork(0) {
            Ok(Side::Child) => {
                drop(socket);
                mounter::run(Request { launcher, spec, socket: job, stdio: [stdin, stdout, stderr] });
            }
            Ok(Side::Parent { .. }) => {}
            Err(error) => {
                let failed = message::Event::Failed(super::Error::setup("fork")(error));
                let _ = message::send(&job, &failed, &[]);
            }
        }
    }
}
