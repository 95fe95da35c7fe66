//! `fusermount3`, which mounts for ordinary users: fusermount3(1).
//!
//! Called as `kernel` says. It opens the device itself, mounts, and sends the descriptor back over the socket named in
//! `_FUSE_COMMFD`.

use std::ffi::OsString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::io::FdFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};

use super::Error;
use crate::Options;

const PROGRAM: &str = "fusermount3";

/// Mounts at `at`; gives the connection's descriptor.
pub(super) fn mount(at: &Path, options: &Options) -> Result<OwnedFd, Error> {
    let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.map_err(|err| Error::Session(err.into()))?;
    // Left open in the child, and in any other that is started at this moment: it is closed in a moment, here.
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).map_err(|err| Error::Session(err.into()))?;
    let child = Command::new(PROGRAM)
        .arg("-o")
        .arg(mount_options(options))
        .arg("--")
        .arg(at)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(Error::NoFusermount)?;
    drop(theirs);
    let received = receive(ours.as_fd());
    let output = child.wait_with_output().map_err(Error::NoFusermount)?;
    match received {
        Ok(Some(fd)) => Ok(fd),
        _ => Err(Error::Fusermount(said(&output.stderr))),
    }
}

fn mount_options(options: &Options) -> OsString {
    // A comma in the name would begin another option.
    let name = options.fs_name.replace('\\', "\\\\").replace(',', "\\,");
    let mut text = format!("fsname={name},subtype=slashn,nosuid,nodev");
    for (on, option) in [(options.read_only, "ro"), (options.all_users, super::ALL_USERS)] {
        if on {
            text.push(',');
            text.push_str(option);
        }
    }
    text.into()
}

/// One message with a descriptor; `None` if the other end was closed without one.
fn receive(socket: std::os::fd::BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let fds = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(fds)
}

/// Takes the mount at `at` away.
pub(super) fn unmount(at: &Path, lazily: bool) -> io::Result<()> {
    let how = if lazily { "-uz" } else { "-u" };
    let output = Command::new(PROGRAM).arg(how).arg("--").arg(at).stdin(Stdio::null()).output()?;
    if output.status.success() { Ok(()) } else { Err(io::Error::other(said(&output.stderr))) }
}

/// What the program said, on one line.
fn said(stderr: &[u8]) -> String {
    String::from_utf8_lossy(stderr).trim().replace('\n', "; ")
}
