//! The minimal /dev of a job.
//!
//! Called by init: [`Dev::prepare`] while this machine's /dev is in sight, [`Dev::fill`] once the new one is in place.
//! Invariant: all devices in it are ones that any program may have, and its terminals are the job's alone.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};
use rustix::mount::{MountAttrFlags, MoveMountFlags, move_mount};

use super::root::{clone_tree, failed, mounted};
use super::{Error, JobSpec};

/// The devices that are this machine's.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// What goes into /dev, by name.
pub(super) struct Dev {
    files: Vec<(&'static str, OwnedFd)>,
    directories: Vec<(&'static str, OwnedFd)>,
}

impl Dev {
    /// Gets hold of the devices. What can be done without is noted.
    pub(super) fn prepare(spec: &JobSpec, stdin: &OwnedFd, notes: &mut Vec<String>) -> Result<Self, Error> {
        let mut files = Vec::new();
        for name in DEVICES {
            match clone_tree(&Path::new("/dev").join(name)) {
                Ok(tree) => files.push((name, tree)),
                Err(errno) => notes.push(format!("no /dev/{name} on this machine: {errno}")),
            }
        }
        // ttyname(3) looks for the terminal in /dev by device and inode, and finds it there.
        if spec.pty
            && let Some(tree) = terminal(stdin)
        {
            files.push(("console", tree));
        }
        let directories = vec![("pts", pts(spec, notes)?), ("shm", shm(spec)?)];
        Ok(Self { files, directories })
    }

    /// Puts everything into `dev`, the root of the file system that is mounted at /dev.
    pub(super) fn fill(self, dev: &OwnedFd) -> Result<(), Error> {
        let fail = |name: &'static str| move |errno| failed(&Path::new("/dev").join(name), "make", errno);
        let attach = |name: &'static str, tree: OwnedFd| {
            move_mount(&tree, "", dev, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(fail(name))
        };
        for (name, tree) in self.files {
            openat(dev, name, OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC, Mode::from(0o644))
                .map_err(fail(name))?;
            attach(name, tree)?;
        }
        for (name, tree) in self.directories {
            mkdirat(dev, name, Mode::from(0o755)).map_err(fail(name))?;
            attach(name, tree)?;
        }
        LINKS.iter().try_for_each(|(name, target)| symlinkat(*target, dev, *name).map_err(fail(name)))
    }
}

/// Terminals of the job's own; this machine's where the kernel refuses.
fn pts(spec: &JobSpec, notes: &mut Vec<String>) -> Result<OwnedFd, Error> {
    let mut options = vec![("source", "devpts".to_owned()), ("ptmxmode", "666".to_owned()), ("mode", "620".to_owned())];
    if !spec.user_ns {
        options.push(("gid", "5".to_owned())); // `tty` by convention; not mapped in a user namespace
    }
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mounted("devpts", &options, flags).or_else(|errno| {
        notes.push(format!("/dev/pts is this machine's: {errno}"));
        clone_tree(Path::new("/dev/pts")).map_err(|errno| failed(Path::new("/dev/pts"), "bind", errno))
    })
}

fn shm(spec: &JobSpec) -> Result<OwnedFd, Error> {
    let ids = [("uid", spec.inner_uid.to_string()), ("gid", spec.inner_gid.to_string())];
    let options = [vec![("source", "shm".to_owned()), ("mode", "1777".to_owned())], ids.to_vec()].concat();
    let flags =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mounted("tmpfs", &options, flags).map_err(|errno| failed(Path::new("/dev/shm"), "tmpfs", errno))
}

/// The terminal that is standard input, by its name on this machine.
fn terminal(stdin: &OwnedFd) -> Option<OwnedFd> {
    let name = rustix::termios::ttyname(stdin.as_fd(), Vec::new()).ok()?;
    let path = PathBuf::from(name.to_str().ok()?);
    let named = openat(CWD, &path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let (a, b) = (rustix::fs::fstat(&named).ok()?, rustix::fs::fstat(stdin).ok()?);
    if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino) { clone_tree(&path).ok() } else { None }
}
