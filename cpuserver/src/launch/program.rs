//! The program's process, from fork to exec.
//!
//! A child of init, in the job's root. Whatever goes wrong is told to init through a pipe that execve(2) closes.
//! Invariant: the program finds default signals, three descriptors, and nothing else of ours.

use std::ffi::{CString, OsStr};
use std::io::{PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::Mode;
use rustix::process::{Gid, Signal, Uid, getgid, getuid};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::thread::{CpuSet, set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use super::emulator::{self, Emulators};
use super::{Error, JobSpec, interpreter, sys};

/// Becomes the program, or says to `report` why not.
pub(super) fn run(spec: &JobSpec, stdio: [OwnedFd; 3], emulators: &Emulators, mut report: PipeWriter) -> ! {
    let error = match prepare(spec, stdio) {
        Ok(()) => execute(spec, emulators),
        Err(error) => error,
    };
    let _ = serde_json::to_vec(&error).map(|text| report.write_all(&text));
    sys::exit(error.exit_code().into())
}

fn prepare(spec: &JobSpec, stdio: [OwnedFd; 3]) -> Result<(), Error> {
    sys::default_signals();
    let [stdin, stdout, stderr] = stdio;
    dup2_stdin(&stdin).and(dup2_stdout(&stdout)).and(dup2_stderr(&stderr)).map_err(Error::setup("streams"))?;
    sys::close_at_exec().map_err(Error::setup("close_range"))?;
    rustix::process::setsid().map_err(Error::setup("setsid"))?;
    if spec.pty {
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()).map_err(Error::setup("controlling terminal"))?;
    }
    for (resource, soft, hard) in &spec.rlimits {
        sys::limit(*resource, *soft, *hard).map_err(Error::setup(&format!("limit {resource}")))?;
    }
    if let Some(most) = spec.processors {
        processors(most).map_err(Error::setup("processors"))?;
    }
    if spec.nice != 0 {
        rustix::process::nice(spec.nice).map_err(Error::setup("nice"))?;
    }
    become_user(spec)?;
    if !spec.own_pids {
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)); // undone by setresuid(2)
    }
    rustix::process::umask(Mode::from_bits_truncate(spec.umask & 0o777));
    rustix::process::chdir(spec.cwd.as_slice())
        .map_err(|errno| Error::Cwd { path: lossy(&spec.cwd), reason: errno.into() })
}

/// Leaves this process `most` of the processors that it may run on: not always the same ones.
fn processors(most: usize) -> Result<(), rustix::io::Errno> {
    let all = rustix::thread::sched_getaffinity(None)?;
    let mine: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| all.is_set(*cpu)).collect();
    let mut some = CpuSet::new();
    let first = std::process::id() as usize;
    (0..most.min(mine.len())).for_each(|n| some.set(mine[(first + n) % mine.len()]));
    rustix::thread::sched_setaffinity(None, &some)
}

/// In a user namespace init is the user already. Otherwise groups go first, and the uid last.
fn become_user(spec: &JobSpec) -> Result<(), Error> {
    let (uid, gid) = (Uid::from_raw(spec.inner_uid), Gid::from_raw(spec.inner_gid));
    if !spec.user_ns && (getuid().is_root() || getuid() != uid || getgid() != gid) {
        set_thread_groups(&[gid]).map_err(Error::setup("setgroups"))?;
        set_thread_res_gid(gid, gid, gid).map_err(Error::setup("setgid"))?;
        set_thread_res_uid(uid, uid, uid).map_err(Error::setup("setuid"))?;
    }
    if !uid.is_root() {
        rustix::thread::set_no_new_privs(true).map_err(Error::setup("no_new_privs"))?;
    }
    Ok(())
}

/// Tries the program wherever the job's PATH says it may be, as execvp(3) does. Returns why there is none to run.
fn execute(spec: &JobSpec, emulators: &Emulators) -> Error {
    let strings =
        |items: &[Vec<u8>]| items.iter().map(|item| CString::new(item.as_slice())).collect::<Result<Vec<_>, _>>();
    let (Ok(argv), Ok(env)) = (strings(&spec.argv), strings(&spec.env)) else {
        return Error::Request { what: "a zero byte in args or env".into() };
    };
    let Some(name) = spec.argv.first() else { return Error::Request { what: "no program is named".into() } };
    let mut denied = None;
    for path in candidates(name, &spec.env) {
        let Ok(c_path) = CString::new(path.as_slice()) else { continue };
        let error = sys::execute(&c_path, &argv, &env);
        let found = lossy(&path);
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => {
                if let Some(missing) = interpreter::of(&path) {
                    return Error::Interpreter { program: found, missing };
                }
            }
            Some(libc::EACCES) => {
                let reason = interpreter::why_denied(&path);
                denied.get_or_insert(Error::NotExecutable { program: found, reason });
            }
            // Shells pass over such a directory of PATH, too.
            Some(libc::ELOOP) => {
                let reason = super::Os::from(error).to_string();
                denied.get_or_insert(Error::NotExecutable { program: found, reason });
            }
            // No directory of PATH has such a name.
            Some(libc::ENAMETOOLONG) if !name.contains(&b'/') => {}
            Some(libc::ENOEXEC) => return foreign(&path, argv, &env, emulators),
            _ => return Error::NotExecutable { program: found, reason: super::Os::from(error).to_string() },
        }
    }
    denied.unwrap_or_else(|| Error::NotFound { program: lossy(name) })
}

/// Where the program `name` may be.
fn candidates(name: &[u8], env: &[Vec<u8>]) -> Vec<Vec<u8>> {
    if name.contains(&b'/') {
        return vec![name.to_vec()];
    }
    let path = env.iter().find_map(|item| item.strip_prefix(b"PATH=")).unwrap_or(b"/usr/local/bin:/usr/bin:/bin");
    let dirs = path.split(|byte| *byte == b':').map(|dir| if dir.is_empty() { b"." } else { dir });
    dirs.map(|dir| [dir, b"/", name].concat()).collect()
}

/// What the kernel cannot run is for another machine, and then an emulator's, or else as [`shell_or_nothing`] says.
fn foreign(path: &[u8], argv: Vec<CString>, env: &[CString], emulators: &Emulators) -> Error {
    if let Some(error) = emulator::run(emulators, path, &argv, env) {
        return Error::NotExecutable {
            program: lossy(path),
            reason: format!("its emulator: {}", super::Os::from(error)),
        };
    }
    let own = std::env::consts::ARCH;
    match interpreter::architecture(std::path::Path::new(OsStr::from_bytes(path))) {
        Some(architecture) if architecture != own => {
            Error::Foreign { program: lossy(path), architecture: architecture.into(), own: own.into() }
        }
        _ => shell_or_nothing(path, argv, env),
    }
}

/// What the kernel has no format for is either a script without a `#!` line, which shells and execvp(3) run by /bin/sh,
/// or not for this machine.
fn shell_or_nothing(path: &[u8], argv: Vec<CString>, env: &[CString]) -> Error {
    if let Err(reason) = interpreter::may_be_script(path) {
        return Error::NotExecutable { program: lossy(path), reason };
    }
    let script = CString::new(path).unwrap_or_default();
    let argv: Vec<CString> = [c"/bin/sh".to_owned(), script].into_iter().chain(argv.into_iter().skip(1)).collect();
    let error = sys::execute(c"/bin/sh", &argv, env);
    if error.raw_os_error() == Some(libc::ENOENT) {
        return Error::Interpreter { program: lossy(path), missing: "/bin/sh".into() };
    }
    Error::NotExecutable { program: "/bin/sh".into(), reason: super::Os::from(error).to_string() }
}

/// So many bytes of a path are told.
const TOLD: usize = 512;

fn lossy(bytes: &[u8]) -> String {
    let told = String::from_utf8_lossy(&bytes[..bytes.len().min(TOLD)]).into_owned();
    if bytes.len() > TOLD { format!("{told}...") } else { told }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_slash_is_looked_up_in_the_path_of_its_own_environment() {
        let env = [b"HOME=/h".to_vec(), b"PATH=/a:/b/c:".to_vec()];
        assert_eq!(candidates(b"x", &env), [b"/a/x".to_vec(), b"/b/c/x".to_vec(), b"./x".to_vec()]);
        assert_eq!(candidates(b"./x", &env), [b"./x".to_vec()]);
    }
}
