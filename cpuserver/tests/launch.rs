//! Jobs in namespaces of their own, started by the launcher, as root and as an ordinary user.
//!
//! The launcher is this very program started again, so it has a `main` of its own, which also does what test runners
//! ask for: `--list`, and names to run. Each test runs twice: `root::` in this process, `user::` in one that has left
//! root behind, with a /dev/fuse that is open to all (in a mount namespace of its own). What cannot run here says
//! `SKIPPED` and why.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "all of this is a test")]

#[path = "launch/ends.rs"]
mod ends;
#[path = "launch/failures.rs"]
mod failures;
#[path = "launch/job.rs"]
mod job;
#[path = "launch/places.rs"]
mod places;
#[path = "launch/programs.rs"]
mod programs;
#[path = "launch/root.rs"]
mod root;

use std::panic::catch_unwind;
use std::process::{Command, ExitCode};

use rustix::process::geteuid;

/// A test by its name.
type Test = (&'static str, fn());

/// The user that tests run as when they are not to run as root.
const USER: u32 = 12345;

/// How a test is run.
#[derive(Clone, Copy, PartialEq)]
enum As {
    Root,
    User,
    /// A user to whom /dev/fuse is closed.
    Stranger,
    /// A user where part of /proc is covered, as containers do it, so that no other /proc can be had.
    Contained,
    /// Root of a user namespace in which no other can be made.
    Confined,
}

fn tests() -> Vec<(String, As, fn())> {
    let both = [programs::TESTS, ends::TESTS, places::TESTS, failures::TESTS].concat();
    let named = |group: &str, how: As, tests: &[Test]| -> Vec<(String, As, fn())> {
        tests.iter().map(|(name, test)| (format!("{group}::{name}"), how, *test)).collect()
    };
    [
        named("root", As::Root, &both),
        named("root", As::Root, programs::ROOT_TESTS),
        named("user", As::User, &both),
        named("stranger", As::Stranger, failures::STRANGER_TESTS),
        named("contained", As::Contained, places::CONTAINED_TESTS),
        named("confined", As::Confined, failures::CONFINED_TESTS),
    ]
    .concat()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| args.iter().any(|arg| arg == flag);
    match args.first().map(String::as_str) {
        Some("launcher") => return cpuserver::launch::main(),
        // Started by `run`, below, as whoever the test is for.
        Some("--inside") => {
            let inside = tests().into_iter().find(|(name, ..)| Some(name) == args.get(1));
            return inside.map_or(ExitCode::FAILURE, |(_, _, test)| verdict(catch_unwind(test).is_ok()));
        }
        _ => {}
    }
    if has("--list") {
        let listed = if has("--ignored") { Vec::new() } else { tests() };
        listed.iter().for_each(|(name, ..)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let names: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let asked = |name: &str| {
        let is = |wanted: &&String| if has("--exact") { name == *wanted } else { name.contains(wanted.as_str()) };
        names.is_empty() || names.iter().any(is)
    };
    let mut passed = true;
    for (name, how, test) in tests().into_iter().filter(|(name, ..)| asked(name)) {
        let ok = run(&name, how, test);
        println!("test {name} ... {}", if ok { "ok" } else { "FAILED" });
        passed &= ok;
    }
    verdict(passed)
}

fn verdict(passed: bool) -> ExitCode {
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(name: &str, how: As, test: fn()) -> bool {
    let skipped = |why: &str| {
        println!("SKIPPED: {name}: {why}");
        true
    };
    if !std::path::Path::new("/dev/fuse").exists() {
        println!("{name}: there is no /dev/fuse on this machine: modprobe fuse");
        return false;
    }
    if geteuid().is_root() {
        return if how == As::Root { catch_unwind(test).is_ok() } else { inside(name, how) };
    }
    match how {
        As::User if std::fs::File::open("/dev/fuse").is_ok() => catch_unwind(test).is_ok(),
        As::User => skipped("/dev/fuse is closed to this user"),
        _ => skipped("only root can arrange it"),
    }
}

/// Runs the test `name` in a process of its own, as `how` says.
fn inside(name: &str, how: As) -> bool {
    const TO_USER: &str = "exec setpriv --reuid $3 --regid $3 --clear-groups /proc/self/fd/9 --inside \"$1\"";
    let scratch = tempfile::tempdir().unwrap();
    let script = match how {
        // A device file of our own, seen in place of the machine's in this mount namespace alone.
        As::User => format!("mknod -m 666 $2/fuse c 10 229 && mount --bind $2/fuse /dev/fuse && {TO_USER}"),
        As::Contained => format!(
            "mknod -m 666 $2/fuse c 10 229 && mount --bind $2/fuse /dev/fuse && mount --bind /dev/null /proc/version && {TO_USER}"
        ),
        As::Stranger => format!("mknod -m 600 $2/fuse c 10 229 && mount --bind $2/fuse /dev/fuse && {TO_USER}"),
        _ => "echo 0 >/proc/sys/user/max_user_namespaces && exec /proc/self/fd/9 --inside \"$1\"".to_owned(),
    };
    let mut command = Command::new("unshare");
    if how == As::Confined {
        command.args(["--user", "--map-root-user"]);
    }
    // By descriptor: the directory of this program may be closed to the user.
    let script = format!("exec 9<\"$4\"; {script}");
    let exe = std::env::current_exe().unwrap();
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh", name]);
    command.arg(scratch.path()).arg(USER.to_string()).arg(exe);
    command.status().unwrap().success()
}
