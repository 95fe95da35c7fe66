//! The launcher process: waits for requests, forks a mounter for each, and knows nothing else.
//!
//! Called by the node's `main` as `slashn launcher`, before any thread. Invariant: one thread, for as long as it lives:
//! it forks without exec, and the kernel tells its children of its death.

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::getpid;

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

/// Runs the launcher on `socket`, the far end of the one that [`super::Launcher`] holds.
///
/// The caller has one thread, and its standard descriptors are open.
pub fn run(socket: OwnedFd) -> ExitCode {
    // Signals from the daemon's terminal are for the daemon to understand.
    let _ = rustix::process::setsid();
    sys::ignore_children();
    let launcher = getpid();
    loop {
        let fds = match message::receive::<Start>(&socket) {
            Ok(Some((Start, fds))) => fds,
            Ok(None) => return ExitCode::SUCCESS,
            Err(error) if error.raw_os_error().is_some() => return ExitCode::FAILURE,
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
