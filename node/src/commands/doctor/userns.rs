//! Whether an ordinary user's jobs can have a namespace of their own: asked of the kernel by trying it in a child.
//!
//! Debian and Ubuntu each have their own way to forbid it, and each is named with what allows it.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::Check;

const WHAT: &str = "user namespaces";

/// Tries to make a user, mount and pid namespace.
pub(super) fn check() -> Check {
    let flags = UnshareFlags::NEWUSER | UnshareFlags::NEWNS | UnshareFlags::NEWPID;
    // Never executed: the child ends before that.
    let mut child = Command::new("/proc/self/exe");
    // SAFETY: the closure runs in the child between fork and exec and makes two system calls, which are
    // async-signal-safe; the child is single-threaded and shares no descriptor table (no CLONE_FILES in `flags`).
    unsafe {
        child.pre_exec(move || {
            unshare_unsafe(flags)?;
            libc::_exit(0)
        })
    };
    match child.status() {
        Ok(_) => Check::ok(WHAT, "can be made"),
        Err(error) => {
            let (reason, remedy) = forbidden_by().unwrap_or(("", "cat /proc/sys/user/max_user_namespaces"));
            let finding = format!("cannot be made ({error}){reason}");
            // Root runs its own jobs without one.
            match rustix::process::geteuid().is_root() {
                true => Check::warn(WHAT, format_args!("{finding}: jobs of other users will not run; try: {remedy}")),
                false => Check::mend(WHAT, format_args!("{finding}: jobs cannot run"), remedy),
            }
        }
    }
}

/// What forbids them here, and the command that allows them.
fn forbidden_by() -> Option<(&'static str, &'static str)> {
    let reads = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).map(|text| text.trim().to_owned());
    let is = |name, value: &str| reads(name).is_ok_and(|text| text == value);
    if is("user/max_user_namespaces", "0") {
        Some((": user.max_user_namespaces is 0", "sudo sysctl user.max_user_namespaces=15000"))
    } else if is("kernel/unprivileged_userns_clone", "0") {
        Some((": kernel.unprivileged_userns_clone is 0", "sudo sysctl kernel.unprivileged_userns_clone=1"))
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        Some((": AppArmor restricts them", "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"))
    } else {
        None
    }
}
