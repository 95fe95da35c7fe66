//! Mounting and unmounting at a path: mount(2) for root, fusermount3(1) for others; and what a killed daemon left.
//!
//! Called on threads that may block. Nothing here looks into a mount: whether one is alive is read from
//! /proc/self/mountinfo and asked with a bounded wait.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::Options;

/// Why something could not be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The FUSE device is not there, or not open to this user.
    #[error("/dev/fuse: {0}; slashn doctor says more")]
    Device(io::Error),
    /// Mounting failed.
    #[error("{0}")]
    Mount(io::Error),
    /// The FUSE session could not be started.
    #[error("FUSE: {0}")]
    Session(io::Error),
    /// Unmounting failed.
    #[error("{0}")]
    Unmount(String),
}

/// How long a mount may take to answer whether it is alive.
const ANSWER: Duration = Duration::from_secs(2);

/// Mounts FUSE at `at`, as root, and gives the descriptor on which to serve it.
pub(crate) fn mount(at: &Path, options: &Options) -> Result<OwnedFd, Error> {
    let open = || rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    let device = open().map_err(|err| Error::Device(err.into()))?;
    let fs = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|err| Error::Device(err.into()))?;
    let made = (|| {
        let set = |key: &str, value: &str| fsconfig_set_string(fs.as_fd(), key, value);
        set("source", &options.fs_name)?;
        set("subtype", "slashn")?;
        set("fd", &device.as_raw_fd().to_string())?;
        // Octal: a directory.
        set("rootmode", "40755")?;
        set("user_id", &rustix::process::getuid().as_raw().to_string())?;
        set("group_id", &rustix::process::getgid().as_raw().to_string())?;
        if options.allow_other {
            fsconfig_set_flag(fs.as_fd(), "allow_other")?;
        }
        fsconfig_create(fs.as_fd())?;
        let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        if options.read_only {
            attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        let mounted = fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        move_mount(mounted.as_fd(), "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    })();
    made.map_err(|err: rustix::io::Errno| Error::Mount(err.into()))?;
    Ok(device)
}

/// Whether the mount at `at` is one whose daemon is gone.
pub fn stale(at: &Path) -> bool {
    if find(at).is_none() {
        return false;
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let path = at.to_path_buf();
    // It may never answer: the thread is left to it then.
    std::thread::spawn(move || sender.send(fs::metadata(path).err().and_then(|err| err.raw_os_error())));
    receiver.recv_timeout(ANSWER) == Ok(Some(libc::ENOTCONN))
}

/// Takes away a mount at `at` whose daemon is gone; any other is left alone. Errors: it cannot be unmounted.
pub fn clean(at: &Path) -> Result<(), Error> {
    if stale(at) { unmount(at) } else { Ok(()) }
}

/// Unmounts what is at `at`: at once if nobody is in it, else lazily, and then its connection is cut, so that nobody
/// waits in it for ever. Errors: it cannot be unmounted, or nothing is mounted there.
pub fn unmount(at: &Path) -> Result<(), Error> {
    let Some(device) = find(at) else { return Err(Error::Unmount(format!("{}: not mounted", at.display()))) };
    if detach(at, false).is_err() {
        detach(at, true)?;
        abort(&device);
    }
    Ok(())
}

/// Cuts the FUSE connection of the mount with the device number `major:minor`: every request on it ends with an error.
pub(crate) fn abort(device: &str) {
    if let Some((_, minor)) = device.split_once(':') {
        let file = format!("/sys/fs/fuse/connections/{minor}/abort");
        if let Err(err) = fs::write(&file, "1") {
            tracing::debug!("{file}: {err}");
        }
    }
}

/// The device number of the mount of ours at `at`, as `major:minor`.
pub(crate) fn find(at: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let of_line = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let ours = line.contains(" - fuse.slashn ") && Path::new(&unescape(fields.get(4)?)) == at;
        ours.then(|| fields.get(2).map(ToString::to_string)).flatten()
    };
    // The last one is on top.
    mounts.lines().filter_map(of_line).next_back()
}

/// A path as mountinfo prints it: blanks and backslashes are octal.
fn unescape(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_string(), |text, (from, to)| text.replace(from, to))
}

fn detach(at: &Path, lazy: bool) -> Result<(), Error> {
    let flags = UnmountFlags::NOFOLLOW | if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(at, flags) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::PERM) => {}
        Err(err) => return Err(Error::Unmount(err.to_string())),
    }
    let mut command = Command::new("fusermount3");
    command.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(at).stdin(Stdio::null());
    let output = command.output().map_err(|err| Error::Unmount(format!("fusermount3: {err}")))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::Unmount(String::from_utf8_lossy(&output.stderr).trim().to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_mountinfo_are_unescaped() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(find(Path::new("/proc")), None);
    }
}
