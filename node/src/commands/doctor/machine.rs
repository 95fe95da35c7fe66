//! What slashn needs of the machine, user namespaces apart: FUSE, limits, the clock, the port.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::net::{Ipv6Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use rustix::process::{Resource, geteuid, getrlimit};

use super::Check;
use crate::Context;
use crate::home::Home;

/// Where a node listens unless told otherwise.
const PORT: u16 = 17020;
/// Descriptors that a node with a few busy peers is comfortable with.
const DESCRIPTORS: u64 = 4096;

/// Whether /dev/fuse is there and may be opened.
pub(super) fn fuse() -> Check {
    const WHAT: &str = "/dev/fuse";
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Check::ok(WHAT, "can be opened"),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Check::mend(WHAT, "you may not open it: your node can run no jobs", "sudo chmod 666 /dev/fuse")
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Check::mend(WHAT, "is missing", "sudo modprobe fuse"),
        Err(error) => Check::mend(WHAT, error, "sudo modprobe fuse"),
    }
}

/// Whether an ordinary user has the program that mounts for it.
pub(super) fn fusermount(context: &Context) -> Check {
    const WHAT: &str = "fusermount3";
    if geteuid().is_root() {
        return Check::ok(WHAT, "is not needed: root mounts by itself");
    }
    let path = context.environment.var("PATH").unwrap_or_default();
    let found = std::env::split_paths(path).map(|dir| dir.join("fusermount3")).find(|file| file.exists());
    let Some(found) = found else {
        return Check::mend(WHAT, "is not in $PATH, so you cannot mount", "sudo apt-get install fuse3");
    };
    let setuid = found.metadata().is_ok_and(|meta| meta.mode() & 0o4000 != 0 && meta.uid() == 0);
    if setuid {
        Check::ok(WHAT, found.display())
    } else {
        let remedy = format!("sudo chown root {0} && sudo chmod u+s {0}", found.display());
        Check::mend(WHAT, format_args!("{} is not setuid root, so you cannot mount", found.display()), remedy)
    }
}

/// Whether enough files may be open.
pub(super) fn descriptors() -> Check {
    const WHAT: &str = "open files";
    let limit = getrlimit(Resource::Nofile);
    match limit.maximum {
        Some(hard) if hard < DESCRIPTORS => Check::warn(
            WHAT,
            format_args!("at most {hard}; {DESCRIPTORS} are comfortable; try: ulimit -Hn {DESCRIPTORS} as root"),
        ),
        Some(hard) => Check::ok(WHAT, format_args!("up to {hard}")),
        None => Check::ok(WHAT, "unlimited"),
    }
}

/// Whether the whole of /proc is visible: the kernel lets a job have a fresh one only then.
pub(super) fn proc_mount() -> Check {
    const WHAT: &str = "/proc";
    let mounts = match std::fs::read_to_string("/proc/self/mountinfo") {
        Ok(mounts) => mounts,
        Err(error) => return Check::mend(WHAT, error, "sudo mount -t proc proc /proc"),
    };
    let covered = mounts.lines().filter_map(|line| line.split(' ').nth(4)).find(|at| at.starts_with("/proc/"));
    match covered {
        // What systemd keeps there covers an empty directory, which the kernel allows.
        None | Some("/proc/sys/fs/binfmt_misc") => Check::ok(WHAT, "jobs can have their own"),
        Some(at) => Check::warn(
            WHAT,
            format_args!("{at} is covered, as containers do: jobs may have to see all processes here"),
        ),
    }
}

/// Whether the clock is later than what was written before now.
pub(super) fn clock(home: &Home) -> Check {
    const WHAT: &str = "clock";
    let written = home.grid().metadata().and_then(|meta| meta.modified());
    match written.ok().and_then(|written| written.duration_since(SystemTime::now()).ok()) {
        Some(behind) if behind.as_secs() > 0 => {
            let finding = format!("is {} s behind the time at which grid.toml was written", behind.as_secs());
            Check::mend(WHAT, finding, "timedatectl set-ntp true")
        }
        _ => Check::ok(WHAT, "is later than everything in the home"),
    }
}

/// Whether the default port can be listened on, or a node of this home does.
pub(super) fn port(home: &Home) -> Check {
    const WHAT: &str = "port";
    match home.holder() {
        Ok(Some(pid)) => return Check::ok(WHAT, format_args!("a node is up (process {pid})")),
        Ok(None) => {}
        Err(error) => return Check::bad(WHAT, error),
    }
    let any = TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT));
    // Without IPv6, the node listens on IPv4 alone.
    let bound = if Path::new("/proc/net/if_inet6").exists() { any } else { TcpListener::bind(("0.0.0.0", PORT)) };
    match bound {
        Ok(_) => Check::ok(WHAT, format_args!("{PORT} is free")),
        Err(error) => Check::warn(WHAT, format_args!("{PORT}: {error}; try: slashn up --listen [::]:0")),
    }
}
