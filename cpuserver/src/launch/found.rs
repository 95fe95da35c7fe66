//! What a job finds that is nobody's file: sockets on which the daemon takes connections, and small files.
//!
//! Made by init, in the job's root, before the program runs: what connects to them may rely on their being there.
//! Nobody but the job's own user can use them, and what is in a place of the job's own (its /run) is gone with it. A
//! socket elsewhere is mounted over one that is there, which means nothing here: one of the caller's, or what the
//! daemon has put into the namespace. So nothing of the caller's is made or removed.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

use super::message::{self, DESCRIPTORS, Event};
use super::{Error, JobSpec, Os};

/// Connections that wait to be taken.
const BACKLOG: i32 = 128;

/// Makes the files of `spec`, then its sockets, which are handed to the daemon at `daemon`. `ours` are the places that
/// are the job's own.
pub(super) fn make(spec: &JobSpec, ours: &[PathBuf], daemon: &OwnedFd) -> Result<(), Error> {
    if spec.files.is_empty() && spec.sockets.is_empty() {
        return Ok(());
    }
    let before = rustix::process::umask(Mode::from_bits_truncate(0o077));
    for (path, contents) in &spec.files {
        file(path, contents, ours).map_err(failed(path))?;
    }
    let sockets = spec.sockets.iter().enumerate();
    let sockets = sockets.map(|(number, path)| socket(path, number, ours).map_err(failed(path)));
    let sockets = sockets.collect::<Result<Vec<OwnedFd>, Error>>()?;
    rustix::process::umask(before);
    rustix::process::chdir("/").map_err(Error::setup("enter /"))?;
    for some in sockets.chunks(DESCRIPTORS) {
        let fds: Vec<_> = some.iter().map(AsFd::as_fd).collect();
        message::send(daemon, &Event::Listening, &fds).map_err(Error::setup("hand over sockets"))?;
    }
    Ok(())
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    let at = path.display().to_string();
    move |error| Error::Listen { at: at.clone(), reason: Os::from(error) }
}

fn file(path: &Path, contents: &[u8], ours: &[PathBuf]) -> io::Result<()> {
    if !is_within(path, ours) {
        return Err(rustix::io::Errno::ROFS.into());
    }
    room(path)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(contents)
}

/// A socket that listens at `path`.
fn socket(path: &Path, number: usize, ours: &[PathBuf]) -> io::Result<OwnedFd> {
    if is_within(path, ours) {
        room(path)?;
        return listening(path);
    }
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(rustix::io::Errno::ADDRINUSE.into());
    }
    let own = ours.iter().find(|own| own.ends_with("run")).ok_or(rustix::io::Errno::ADDRINUSE)?;
    let own = own.join(format!("slashn/socket-{number}"));
    room(&own)?;
    let socket = listening(&own)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let over = open_tree(CWD, &own, flags)?;
    move_mount(over, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    Ok(socket)
}

fn is_within(path: &Path, ours: &[PathBuf]) -> bool {
    ours.iter().any(|own| path != own && path.starts_with(own))
}

/// Makes the directories for `path`: the job's user's alone.
fn room(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path.parent().unwrap_or(path))
}

/// From within its directory: the name of a socket is short (unix(7)), that of a directory need not be.
fn listening(path: &Path) -> io::Result<OwnedFd> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(rustix::io::Errno::INVAL.into());
    };
    rustix::process::chdir(directory)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(name)?)?;
    // What a file system makes of the umask is its own business.
    rustix::fs::chmodat(CWD, name, Mode::from_bits_truncate(0o600), AtFlags::empty())?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}
