//! Mounting and unmounting: the system calls for root, `fusermount3` for everybody else.
//!
//! Called when a mount begins and ends, from any thread that may block; never from one that serves the mount. Mounts
//! are found in /proc/thread-self/mountinfo, which tells of them without touching them.

mod fusermount;
mod table;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};

use crate::Options;
pub(crate) use table::mounted;

/// The type under which our mounts appear: what a file server recognises, so as not to serve itself.
pub(crate) const TYPE: &str = "fuse.slashn";
const DEVICE: &str = "/dev/fuse";
/// The options of a mount for every user.
const ALL_USERS: &str = "allow_other,default_permissions";

/// Why something could not be mounted or unmounted. Whoever says it says where, too.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mount point is no directory that can be used.
    #[error("the mount point: {0}")]
    MountPoint(io::Error),
    /// Something is mounted there already: its type and source.
    #[error("{0} is mounted there already")]
    InUse(String),
    /// The FUSE device is not there, or not open to this user.
    #[error("{DEVICE}: {0}; slashn doctor says more")]
    Device(io::Error),
    /// There is no `fusermount3`, which mounts for ordinary users.
    #[error("fusermount3: {0}; it is in the package fuse3")]
    NoFusermount(io::Error),
    /// `fusermount3` refused: what it said.
    #[error("{0}")]
    Fusermount(String),
    /// The kernel refused.
    #[error("mount: {0}")]
    Mount(io::Error),
    /// The mount cannot be taken away.
    #[error("{0}")]
    Unmount(io::Error),
    /// The FUSE session could not be started.
    #[error("FUSE: {0}")]
    Session(io::Error),
}

/// Mounts a FUSE connection at `at`, which must be absolute and without symbolic links; gives its descriptor.
pub(crate) fn attach(at: &Path, options: &Options) -> Result<OwnedFd, Error> {
    if let Some(there) = mounted(at).filter(|there| there.kind == TYPE) {
        return Err(Error::InUse(format!("{} ({})", there.kind, there.source)));
    }
    let metadata = std::fs::metadata(at).map_err(Error::MountPoint)?;
    if !metadata.is_dir() {
        return Err(Error::MountPoint(rustix::io::Errno::NOTDIR.into()));
    }
    match mount_directly(at, metadata.mode(), options) {
        Err(Error::Mount(err) | Error::Device(err)) if err.kind() == io::ErrorKind::PermissionDenied => {
            fusermount::mount(at, options)
        }
        answer => answer,
    }
}

fn mount_directly(at: &Path, rootmode: u32, options: &Options) -> Result<OwnedFd, Error> {
    let device = rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let device = device.map_err(|err| Error::Device(err.into()))?;
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    let mut data = format!("fd={},rootmode={rootmode:o},user_id={uid},group_id={gid}", device.as_raw_fd());
    if options.all_users {
        data.push(',');
        data.push_str(ALL_USERS);
    }
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if options.read_only {
        flags |= MountFlags::RDONLY;
    }
    let data = std::ffi::CString::new(data).map_err(|err| Error::Mount(err.into()))?;
    rustix::mount::mount(&*options.fs_name, at, TYPE, flags, &*data).map_err(|err| Error::Mount(err.into()))?;
    Ok(device)
}

/// Takes the mount at `at` away; `lazily`, even while it is in use.
pub(crate) fn detach(at: &Path, lazily: bool) -> io::Result<()> {
    let how = if lazily { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(at, how | UnmountFlags::NOFOLLOW) {
        Err(rustix::io::Errno::PERM) => fusermount::unmount(at, lazily),
        answer => Ok(answer?),
    }
}

/// Ends the connection whose mount has the device number `minor`, where fusectl is mounted and lets us.
pub(crate) fn abort(minor: u32) {
    if let Err(err) = std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1") {
        tracing::debug!(minor, %err, "a FUSE connection could not be aborted");
    }
}

/// Whether a mount of ours is at `at`, alive or not; as the process `pid` sees it, if one is given.
pub fn is_mounted(at: &Path, pid: Option<u32>) -> bool {
    let there = pid.map_or_else(|| mounted(at), |pid| table::seen_by(&pid.to_string(), at));
    there.is_some_and(|there| there.kind == TYPE)
}

/// Whether a mount of ours is at `at` whose daemon is gone: everything there answers `ENOTCONN`.
pub fn stale(at: &Path) -> bool {
    if mounted(at).is_none_or(|there| there.kind != TYPE) {
        return false;
    }
    // A daemon that lives may be slow, and the question then waits for ever: so it is asked on a thread of its own.
    let (tell, told) = mpsc::sync_channel(1);
    let path = at.to_path_buf();
    let asked = std::thread::Builder::new().name("mount-probe".into()).spawn(move || {
        _ = tell.send(std::fs::metadata(path).err().and_then(|err| err.raw_os_error()));
    });
    // The second is what a question meets that was under way as the daemon died.
    asked.is_ok() && matches!(told.recv_timeout(PROBE_LIMIT), Ok(Some(libc::ENOTCONN | libc::ECONNABORTED)))
}

/// A live daemon on this machine answers sooner.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// Takes away a mount of ours at `at` whose daemon is gone; any other is left alone. Errors: [`Error::Unmount`].
pub fn clean(at: &Path) -> Result<(), Error> {
    if stale(at) { detach(at, true).map_err(Error::Unmount) } else { Ok(()) }
}

/// Unmounts what another process serves at `at`: at once if nobody is in it, else from under those who are, whose
/// requests end. Errors: [`Error::Unmount`], also if no mount of ours is there.
pub fn unmount(at: &Path) -> Result<(), Error> {
    let Some(there) = mounted(at).filter(|there| there.kind == TYPE) else {
        return Err(Error::Unmount(io::Error::new(io::ErrorKind::InvalidInput, "no mount of slashn is there")));
    };
    if detach(at, false).is_err() {
        detach(at, true).map_err(Error::Unmount)?;
        abort(there.minor);
    }
    Ok(())
}
