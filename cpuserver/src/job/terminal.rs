//! A job's standard streams: pipes, or a terminal.
//!
//! Made by the job's task before the launcher starts the program, which gets the far ends; the near ends do not block
//! and are drained by the flows. The near end of a terminal is one descriptor, its master, shared by input, output and
//! whoever sets the window size.

use std::os::fd::{AsFd, OwnedFd};

use p9::Errno;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{SpecialCodeIndex, Winsize, tcgetattr, tcsetwinsize};
use tokio::net::unix::pipe;

/// Pipes this long save wake-ups where much is written; what the kernel refuses stays as it was.
const PIPE_SIZE: usize = 256 << 10;

/// The near ends.
pub(crate) struct Near {
    pub(crate) stdin: pipe::Sender,
    pub(crate) stdout: pipe::Receiver,
    /// A terminal has none: what is written there comes with the output.
    pub(crate) stderr: Option<pipe::Receiver>,
    pub(crate) terminal: Option<Terminal>,
}

/// The master of a job's terminal.
pub(crate) struct Terminal(OwnedFd);

impl Terminal {
    /// Sets the window size; the kernel tells the foreground processes.
    pub(crate) fn resize(&self, rows: u16, cols: u16) -> Result<(), Errno> {
        Ok(tcsetwinsize(&self.0, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 })?)
    }

    /// What is typed to end the input, unless the program turned that off: `^D`.
    pub(crate) fn end_of_input(&self) -> u8 {
        const CONTROL_D: u8 = 4;
        tcgetattr(&self.0).map_or(CONTROL_D, |attrs| attrs.special_codes[SpecialCodeIndex::VEOF])
    }
}

/// Both ends of the streams. Call it on the runtime.
pub(crate) fn streams(pty: bool) -> std::io::Result<(Near, [OwnedFd; 3])> {
    if pty { terminal() } else { pipes() }
}

fn pipes() -> std::io::Result<(Near, [OwnedFd; 3])> {
    let (stdin, stdin_near) = std::io::pipe()?;
    let (stdout_near, stdout) = std::io::pipe()?;
    let (stderr_near, stderr) = std::io::pipe()?;
    for pipe in [stdin.as_fd(), stdout.as_fd()] {
        let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_SIZE);
    }
    let near = Near {
        stdin: pipe::Sender::from_owned_fd(stdin_near.into())?,
        stdout: pipe::Receiver::from_owned_fd(stdout_near.into())?,
        stderr: Some(pipe::Receiver::from_owned_fd(stderr_near.into())?),
        terminal: None,
    };
    Ok((near, [stdin.into(), stdout.into(), stderr.into()]))
}

fn terminal() -> std::io::Result<(Near, [OwnedFd; 3])> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    fcntl_setfl(&master, fcntl_getfl(&master)? | OFlags::NONBLOCK)?;
    let near = Near {
        stdin: pipe::Sender::from_owned_fd_unchecked(master.try_clone()?)?,
        stdout: pipe::Receiver::from_owned_fd_unchecked(master.try_clone()?)?,
        stderr: None,
        terminal: Some(Terminal(master)),
    };
    Ok((near, [slave.try_clone()?, slave.try_clone()?, slave]))
}
