//! The processes of a job that has no pid namespace, found by descent.
//!
//! Used by the mounter, which is a subreaper then: what loses its parent, and at last its init, becomes its child; and
//! by the launcher's watcher, which gets what loses even its mounter. Invariant: only children of this process are ever
//! signalled, and a child's pid is its own until it is waited for.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::sys;

/// This process's children, as /proc lists them.
pub(super) struct Children {
    /// `/proc/PID/task/PID/children`, opened while the machine's /proc is in sight; none if the kernel lacks it.
    list: Option<File>,
}

impl Children {
    /// To be made before the root changes.
    pub(super) fn of_this_process() -> Self {
        let pid = std::process::id();
        Self { list: File::open(format!("/proc/{pid}/task/{pid}/children")).ok() }
    }

    /// Kills every child, and what thereby becomes a child, until none is left.
    pub(super) fn kill_all(&self) {
        loop {
            let children = self.now();
            for child in &children {
                let _ = sys::kill(*child, libc::SIGKILL);
            }
            // Without a list nobody was killed, so nobody is waited for.
            let flags = if children.is_empty() { libc::WNOHANG } else { 0 };
            match sys::wait(flags) {
                Ok(Some(_)) => {}
                Ok(None) if self.now().is_empty() => return,
                Ok(None) => {}
                Err(_) => return, // no child is left
            }
        }
    }

    /// Kills every child but `one`.
    pub(super) fn kill_but(&self, one: i32) {
        for child in self.now().into_iter().filter(|child| *child != one) {
            let _ = sys::kill(child, libc::SIGKILL);
        }
    }

    fn now(&self) -> Vec<i32> {
        let mut text = vec![0; 64 << 10];
        let got = self.list.as_ref().and_then(|list| list.read_at(&mut text, 0).ok()).unwrap_or_default();
        // A list that was cut may end within a number.
        let whole =
            if got == text.len() { text.iter().rposition(|byte| *byte == b' ').unwrap_or_default() } else { got };
        let words = String::from_utf8_lossy(&text[..whole]);
        words.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect()
    }
}
