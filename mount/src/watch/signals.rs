//! Which signals wait for a thread, read from procfs: see proc_pid_status(5) and signal(7).
//!
//! Called by the watch thread alone. Only those asked to end are freed: a caught signal makes the interrupted call fail
//! with `EINTR` even under `SA_RESTART`, since FUSE cannot restart it, and runtimes send themselves `SIGURG`,
//! `SIGPROF`, `SIGCHLD` and real-time signals all the time.

use std::fs;
use std::io::ErrorKind;

use rustix::process::{Pid, test_kill_process};

/// The masks of one thread; bit N-1 stands for signal N.
#[derive(Clone, Copy, Debug, Default)]
struct Signals {
    /// Pending for the thread or its process, and neither blocked nor ignored.
    waiting: u64,
    /// Those that have a handler.
    caught: u64,
    /// `SIGKILL` is pending: the thread is dying whatever it does.
    fatal: bool,
}

const fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

const ASKS: u64 = bit(libc::SIGINT) | bit(libc::SIGTERM) | bit(libc::SIGQUIT) | bit(libc::SIGHUP);
const STOPS: u64 = bit(libc::SIGSTOP) | bit(libc::SIGTSTP) | bit(libc::SIGTTIN) | bit(libc::SIGTTOU);
/// Ignored by default, and pending only while a debugger looks on.
const HARMLESS: u64 = bit(libc::SIGCHLD) | bit(libc::SIGCONT) | bit(libc::SIGURG) | bit(libc::SIGWINCH);

/// Whether the thread `id` is gone, dying, or asked to end. (A thread id works as a process id does, in /proc and in
/// kill(2), although it is not listed.)
pub(super) fn wants_to_end(id: u32) -> bool {
    match fs::read_to_string(format!("/proc/{id}/status")) {
        Ok(text) => Signals::parse(&text).is_some_and(|signals| signals.is_dying() || signals.is_asked_to_end()),
        // Hidden processes (hidepid) look like this, too.
        Err(err) if err.kind() == ErrorKind::NotFound => is_gone(id),
        // ESRCH: it went while its file was read.
        Err(err) => err.raw_os_error() == Some(libc::ESRCH),
    }
}

fn is_gone(id: u32) -> bool {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw);
    pid.is_none_or(|pid| test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

impl Signals {
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            u64::from_str_radix(line.trim(), 16).ok()
        };
        let pending = field("SigPnd:")? | field("ShdPnd:")?;
        Some(Self {
            waiting: pending & !field("SigBlk:")? & !field("SigIgn:")?,
            caught: field("SigCgt:")?,
            fatal: pending & bit(libc::SIGKILL) != 0,
        })
    }

    /// The process is dying. The kernel turns a signal that ends the process into `SIGKILL` for each thread, except
    /// those that dump core, which stay in the masks as they are.
    fn is_dying(self) -> bool {
        self.fatal || self.waiting & !self.caught & !STOPS & !HARMLESS != 0
    }

    /// A signal that asks to end waits for the program's own handler: ^C in a shell, python, an editor.
    fn is_asked_to_end(self) -> bool {
        self.waiting & self.caught & ASKS != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signals(pending: u64, blocked: u64, ignored: u64, caught: u64) -> Signals {
        let text = format!(
            "Name:\tx\nSigPnd:\t{pending:016x}\nShdPnd:\t0\nSigBlk:\t{blocked:x}\nSigIgn:\t{ignored:x}\nSigCgt:\t{caught:x}\n"
        );
        Signals::parse(&text).unwrap()
    }

    #[test]
    fn only_those_who_end_are_freed() {
        let (int, usr1, chld, tstp) = (bit(libc::SIGINT), bit(libc::SIGUSR1), bit(libc::SIGCHLD), bit(libc::SIGTSTP));
        assert!(signals(int, 0, 0, 0).is_dying());
        assert!(signals(int, 0, 0, int).is_asked_to_end());
        assert!(signals(bit(libc::SIGKILL), 0, 0, 0).is_dying());
        for kept in [
            signals(int, int, 0, 0),
            signals(int, 0, int, 0),
            signals(usr1, 0, 0, usr1),
            signals(chld, 0, 0, 0),
            signals(tstp, 0, 0, 0),
        ] {
            assert!(!kept.is_dying() && !kept.is_asked_to_end(), "{kept:?}");
        }
    }
}
