//! The mounter: makes a job's namespaces and its FUSE root, starts its init, and outlives it.
//!
//! A child of the launcher, one for each job. It stays in the launcher's pid namespace: FUSE translates pids for the
//! one who mounted, so the daemon sees ids that are valid in its own /proc. Invariant: it never touches the job's root,
//! and holds its FUSE descriptor only until the daemon has it.

use std::fs;
use std::io::{PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, mount_change,
};
use rustix::process::{Pid, Signal, getgid, getuid, set_parent_process_death_signal};
use rustix::thread::UnshareFlags;

use super::children::Children;
use super::message::{self, Event};
use super::sys::{self, Side};
use super::{Error, Exit, JobSpec, Os, Usage, init};

/// A request for a job, as the launcher received it.
pub(super) struct Request {
    pub(super) launcher: Pid,
    pub(super) spec: OwnedFd,
    pub(super) socket: OwnedFd,
    pub(super) stdio: [OwnedFd; 3],
}

/// The mounter's life.
pub(super) fn run(request: Request) -> ! {
    sys::default_signals();
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    if rustix::process::getppid() != Some(request.launcher) {
        sys::exit(1); // it died before it was asked to tell
    }
    rustix::process::umask(Mode::empty());
    let Request { spec, socket, stdio, .. } = request;
    let started = read(spec).and_then(|spec| {
        let children = Children::of_this_process();
        Ok((start(&spec, &socket, stdio)?, children))
    });
    match started {
        Ok((init, children)) => {
            let (exit, usage) = outlive(init);
            children.kill_all();
            let _ = message::send(&socket, &Event::Gone { exit, usage }, &[]);
            sys::exit(0)
        }
        Err(error) => {
            let _ = message::send(&socket, &Event::Failed(error), &[]);
            sys::exit(1)
        }
    }
}

fn read(spec: OwnedFd) -> Result<JobSpec, Error> {
    let mut text = Vec::new();
    fs::File::from(spec).read_to_end(&mut text).map_err(Error::setup("job spec"))?;
    serde_json::from_slice(&text).map_err(|error| Error::Request { what: error.to_string() })
}

/// Waits for `init`, and for what became a child on the way.
fn outlive(init: i32) -> (Exit, Usage) {
    loop {
        match sys::wait(0) {
            Ok(Some(child)) if child.pid == init => return (child.exit, child.usage),
            Ok(_) => {}
            Err(_) => return (Exit::Code(255), Usage::default()),
        }
    }
}

/// Starts init, hands its root to the daemon, and returns init's pid. Init's own failures are told by init.
fn start(spec: &JobSpec, socket: &OwnedFd, stdio: [OwnedFd; 3]) -> Result<i32, Error> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC;
    flags.set(UnshareFlags::NEWUTS, spec.hostname.is_some());
    namespaces(spec, flags)?;
    let (fuse, root) = fuse_root(spec)?;
    if !spec.own_pids {
        // What loses its parent becomes ours, to be found when the job ends.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(Error::setup("subreaper"))?;
    }
    let (ready, init_ready) = std::io::pipe().map_err(Error::setup("pipe"))?;
    match sys::fork(if spec.own_pids { libc::CLONE_NEWPID } else { 0 }).map_err(Error::setup("init"))? {
        Side::Child => {
            // Init never execs, so CLOEXEC does not help: while it held this, the daemon's death would not abort the
            // connection, and init itself could wait for ever, unkillable, for an answer.
            drop((fuse, ready));
            init::run(spec, socket, root, stdio, init_ready)
        }
        Side::Parent { pid, pidfd } => {
            drop((init_ready, stdio, root));
            // Only now: a read of a /dev/fuse descriptor that is not mounted yet fails with EPERM. If init is not
            // ready, it has told why; if the daemon is gone, init notices.
            if is_ready(ready) {
                let _ = message::send(socket, &Event::Started { init: pid }, &[fuse.as_fd(), pidfd.as_fd()]);
            }
            Ok(pid)
        }
    }
}

/// Init has done all that can be done without its root's being served.
fn is_ready(mut ready: PipeReader) -> bool {
    ready.read_exact(&mut [0]).is_ok()
}

/// Enters namespaces of these kinds, and a user namespace if `spec` wants one. That maps this process's own ids and no
/// others, so that the job is the same user to the kernel.
pub(super) fn namespaces(spec: &JobSpec, mut flags: UnshareFlags) -> Result<(), Error> {
    let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
    flags.set(UnshareFlags::NEWUSER, spec.user_ns);
    let refused = |step: &'static str| {
        move |error: std::io::Error| {
            if spec.user_ns { user_namespace(step, error.into()) } else { Error::setup(step)(error) }
        }
    };
    sys::unshare(flags).map_err(refused("unshare"))?;
    if spec.user_ns {
        fs::write("/proc/self/setgroups", "deny").map_err(refused("setgroups"))?; // or gid_map is refused
        fs::write("/proc/self/uid_map", format!("{} {uid} 1", spec.inner_uid)).map_err(refused("uid_map"))?;
        fs::write("/proc/self/gid_map", format!("{} {gid} 1", spec.inner_gid)).map_err(refused("gid_map"))?;
    }
    // What is mounted or unmounted on the machine later may arrive here; ours never travels there. It is the first call
    // that AppArmor's restriction of user namespaces refuses.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|errno| refused("mount propagation")(errno.into()))?;
    if let Some(name) = &spec.hostname {
        sys::set_hostname(name.as_bytes()).map_err(Error::setup("hostname"))?;
    }
    Ok(())
}

/// What this machine's settings say about a user namespace that was refused.
fn user_namespace(step: &str, reason: Os) -> Error {
    let setting = |name: &str| fs::read_to_string(format!("/proc/sys/{name}")).unwrap_or_default().trim().to_owned();
    let remedy = if setting("kernel/apparmor_restrict_unprivileged_userns") == "1" {
        "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for slashn with `userns,`"
    } else if setting("kernel/unprivileged_userns_clone") == "0" {
        "sysctl kernel.unprivileged_userns_clone=1"
    } else if setting("user/max_user_namespaces") == "0" || reason == Os(libc::ENOSPC) {
        "sysctl user.max_user_namespaces=10000"
    } else {
        "allow user namespaces where the node runs (a container or chroot may forbid them), or run it as root"
    };
    Error::UserNamespace { step: step.to_owned(), reason, remedy: remedy.to_owned() }
}

/// A FUSE mount that is attached to nothing yet, and its descriptor, which must be opened *inside* the user namespace:
/// the kernel wants the opener's namespace to be the mount's.
pub(super) fn fuse_root(spec: &JobSpec) -> Result<(OwnedFd, OwnedFd), Error> {
    let fuse = rustix::fs::openat(CWD, "/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::Fuse { reason: errno.into() })?;
    let mount = || -> rustix::io::Result<OwnedFd> {
        let fs = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
        let (uid, gid) = (getuid().as_raw().to_string(), getgid().as_raw().to_string()); // mapped in the namespace
        let options: [(&str, &str); 6] = [
            ("source", "slashn"),
            ("subtype", "slashn"),
            ("fd", &fuse.as_raw_fd().to_string()),
            ("rootmode", "40755"), // octal: a directory
            ("user_id", &uid),
            ("group_id", &gid),
        ];
        for (key, value) in options {
            fsconfig_set_string(&fs, key, value)?;
        }
        fsconfig_set_flag(&fs, "allow_other")?;
        fsconfig_create(&fs)?;
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, flags)
    };
    let root = mount().map_err(|errno| match errno {
        rustix::io::Errno::PERM | rustix::io::Errno::ACCESS if spec.user_ns => user_namespace("mount", errno.into()),
        _ => Error::Mount { at: "/".into(), step: "fuse".into(), reason: errno.into() },
    })?;
    Ok((fuse, root))
}
