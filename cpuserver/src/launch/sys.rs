//! The system calls of this module that have no safe wrapper, and nothing else.
//!
//! Called by every other file here. Invariant: what is unsafe is in this file.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `socket` as one that the runtime waits for.
pub(super) fn readable(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is open, and names the same file, for as long as it lives; the AsyncFd owns it.
    Ok(unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?)
}
