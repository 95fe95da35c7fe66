//! What the kernel mounts over a job's FUSE root, and the change of root.
//!
//! Called by init, in this order: [`prepare`] gets hold of everything that is this machine's while it is in sight,
//! [`pivot`] makes the FUSE root the root, [`attach`] puts the rest in place. Invariant: no name is looked up in the
//! FUSE root before `pivot`, and none of this machine's after it, so that a link in the one never leads into the other.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

use super::dev::Dev;
use super::{Error, JobMount, JobSpec};

/// Links that are followed on the way to a mount point.
const LINKS: usize = 16;

/// Something that is mounted nowhere yet.
pub(super) struct Prepared {
    at: PathBuf,
    what: OwnedFd,
    then: Then,
}

/// What kind of mount it is.
enum Then {
    Plain,
    /// Made by us and empty: mount points are made in it.
    Ours,
    Dev(Dev),
    /// Can be done without.
    Bind,
}

/// Gets hold of what `spec` wants mounted. What can be done without is noted.
pub(super) fn prepare(spec: &JobSpec, stdin: &OwnedFd, notes: &mut Vec<String>) -> Result<Vec<Prepared>, Error> {
    let mut mounts = Vec::new();
    for mount in &spec.mounts {
        let (at, what, then) = match mount {
            JobMount::Proc if spec.own_pids => (PathBuf::from("/proc"), own_proc()?, Then::Plain),
            JobMount::Proc => (PathBuf::from("/proc"), tree_of("/proc")?, Then::Plain),
            JobMount::Sys => (PathBuf::from("/sys"), sys_tree()?, Then::Plain),
            JobMount::Dev => {
                let dev = Dev::prepare(spec, stdin, notes)?;
                (PathBuf::from("/dev"), tmpfs(spec, "/dev", 1, 0o755)?, Then::Dev(dev))
            }
            JobMount::Tmpfs { at, size_mb, mode } => {
                (at.clone(), tmpfs(spec, &at.to_string_lossy(), *size_mb, *mode)?, Then::Ours)
            }
            JobMount::Bind { from, at, read_only } => match bind(from, *read_only) {
                Ok(tree) => (at.clone(), tree, Then::Bind),
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
                    notes.push(format!("{} is not on this machine", from.display()));
                    continue;
                }
                Err(errno) => return Err(failed(at, "bind", errno)),
            },
        };
        mounts.push(Prepared { at, what, then });
    }
    Ok(mounts)
}

/// Makes `root` the root; the old one is out of reach afterwards.
pub(super) fn pivot(root: OwnedFd) -> Result<(), Error> {
    let step = |step: &'static str| move |errno| failed(Path::new("/"), step, errno);
    // pivot_root(2) wants a mount point that is not the root: lay it over the root, stand in it.
    move_mount(&root, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(step("attach"))?;
    rustix::process::fchdir(&root).map_err(step("enter"))?;
    rustix::process::pivot_root(".", ".").map_err(step("pivot_root"))?;
    // "." is the old root now, on top of the new.
    unmount(".", UnmountFlags::DETACH).map_err(step("detach the old root"))?;
    rustix::process::chdir("/").map_err(step("enter"))
}

/// Puts `mounts` in place. Each place is looked up in the job's root, by whoever serves it. Gives those in which there
/// was nothing.
pub(super) fn attach(mounts: Vec<Prepared>, notes: &mut Vec<String>) -> Result<Vec<PathBuf>, Error> {
    let mut ours: Vec<PathBuf> = Vec::new();
    for Prepared { at, what, then } in mounts {
        let attached = place(&at, &what, &ours).and_then(|place| {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
            Ok(move_mount(&what, "", &place, "", flags)?)
        });
        match (attached, then) {
            (Ok(()), Then::Plain | Then::Bind) => {}
            (Ok(()), Then::Ours) => ours.push(at),
            (Ok(()), Then::Dev(dev)) => {
                dev.fill(&what)?;
                ours.push(at);
            }
            (Err(error), Then::Bind) => notes.push(format!("nothing is mounted at {}: {error}", at.display())),
            (Err(error), _) => {
                return Err(Error::Mount {
                    at: at.display().to_string(),
                    step: "mount point".into(),
                    reason: error.into(),
                });
            }
        }
    }
    Ok(ours)
}

/// Where `what` is to be mounted. Missing mount points are made in what is `ours`, and nowhere else: the rest of the
/// root is the caller's.
fn place(at: &Path, what: &OwnedFd, ours: &[PathBuf]) -> io::Result<OwnedFd> {
    let open = |path: &Path| rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    let mut path = at.to_path_buf();
    for _ in 0..LINKS {
        match open(&path) {
            Err(rustix::io::Errno::NOENT) => {}
            opened => return Ok(opened?),
        }
        // A link whose end is missing: /etc/resolv.conf often leads into /run.
        match fs::read_link(&path) {
            Ok(target) => path = normal(&path.parent().unwrap_or(Path::new("/")).join(target)),
            Err(_) if ours.iter().any(|mount| path.starts_with(mount)) => {
                make(&path, what)?;
            }
            Err(error) => return Err(error),
        }
    }
    Err(rustix::io::Errno::LOOP.into())
}

/// Makes an empty file, or directory, of the kind that `what` can be mounted on.
fn make(path: &Path, what: &OwnedFd) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))?;
    match FileType::from_raw_mode(rustix::fs::fstat(what)?.st_mode) {
        FileType::Directory => fs::create_dir(path),
        _ => fs::File::create_new(path).map(drop),
    }
}

/// `path` without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            _ => {}
        }
    }
    plain
}

/// A procfs of this pid namespace. The kernel allows it in a user namespace only while another procfs that nothing
/// covers is visible: so before the old root goes, and not inside most containers.
fn own_proc() -> Result<OwnedFd, Error> {
    let flags =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    mounted("proc", &[], flags).map_err(|errno| Error::OwnProc { reason: errno.into() })
}

/// This machine's /sys.
fn sys_tree() -> Result<OwnedFd, Error> {
    let tree = tree_of("/sys")?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    super::sys::set_mount_flags(&tree, flags.bits()).map_err(|error| Error::Mount {
        at: "/sys".into(),
        step: "read-only".into(),
        reason: error.into(),
    })?;
    Ok(tree)
}

fn tmpfs(spec: &JobSpec, at: &str, size_mb: u64, mode: u32) -> Result<OwnedFd, Error> {
    let options = [
        ("source", "slashn".to_owned()),
        ("size", format!("{size_mb}m")),
        ("mode", format!("{mode:o}")),
        ("uid", spec.inner_uid.to_string()),
        ("gid", spec.inner_gid.to_string()),
    ];
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    mounted("tmpfs", &options, flags).map_err(|errno| failed(Path::new(at), "tmpfs", errno))
}

/// A file or directory of this machine, with all that is mounted below.
fn bind(from: &Path, read_only: bool) -> rustix::io::Result<OwnedFd> {
    let tree = clone_tree(from)?;
    let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID;
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only);
    let set = super::sys::set_mount_flags(&tree, flags.bits());
    set.map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))?;
    Ok(tree)
}

fn tree_of(path: &str) -> Result<OwnedFd, Error> {
    clone_tree(Path::new(path)).map_err(|errno| failed(Path::new(path), "bind", errno))
}

/// What is at `path`, with all that is mounted below (a user namespace may not split them), mounted nowhere yet.
pub(super) fn clone_tree(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags)
}

/// A new file system of type `fs`, mounted nowhere yet.
pub(super) fn mounted(fs: &str, options: &[(&str, String)], flags: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(fs, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, value.as_str())?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

pub(super) fn failed(at: &Path, step: &str, errno: rustix::io::Errno) -> Error {
    Error::Mount { at: at.display().to_string(), step: step.to_owned(), reason: errno.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_a_missing_file_is_followed_by_name() {
        assert_eq!(normal(Path::new("/etc/../run/./systemd/x")), Path::new("/run/systemd/x"));
        assert_eq!(normal(Path::new("/../../x")), Path::new("/x"));
    }
}
