//! This process's own standard streams.
//!
//! A pipe is opened once more, so that reads and writes of it need not block and no thread stands in between: what is
//! set for that description concerns nobody who shares the pipe. Whatever else they are goes by the runtime's threads.
//! Used where a command's streams are this process's ([`crate::Stdio::inherit`]).

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::unix::pipe;

/// Pipes this long save wake-ups where much is written; what the kernel refuses stays as it was.
const PIPE_SIZE: usize = 256 << 10;

/// Standard input.
pub(crate) fn input() -> Box<dyn AsyncRead + Send + Unpin> {
    match again(std::io::stdin(), "0", OFlags::RDONLY).and_then(pipe::Receiver::from_owned_fd) {
        Ok(pipe) => Box::new(pipe),
        Err(_) => Box::new(tokio::io::stdin()),
    }
}

/// Standard output.
pub(crate) fn output() -> Box<dyn AsyncWrite + Send + Unpin> {
    match again(std::io::stdout(), "1", OFlags::WRONLY).and_then(pipe::Sender::from_owned_fd) {
        Ok(pipe) => Box::new(pipe),
        Err(_) => Box::new(tokio::io::stdout()),
    }
}

/// Standard error.
pub(crate) fn error() -> Box<dyn AsyncWrite + Send + Unpin> {
    match again(std::io::stderr(), "2", OFlags::WRONLY).and_then(pipe::Sender::from_owned_fd) {
        Ok(pipe) => Box::new(pipe),
        Err(_) => Box::new(tokio::io::stderr()),
    }
}

/// The descriptor `fd`, which has this `number`, opened once more, if it is a pipe.
fn again(fd: impl AsFd, number: &str, how: OFlags) -> std::io::Result<OwnedFd> {
    if FileType::from_raw_mode(fstat(&fd)?.st_mode) != FileType::Fifo {
        return Err(std::io::ErrorKind::Unsupported.into());
    }
    let pipe = open(format!("/proc/self/fd/{number}"), how | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let _ = rustix::pipe::fcntl_setpipe_size(&pipe, PIPE_SIZE);
    Ok(pipe)
}
