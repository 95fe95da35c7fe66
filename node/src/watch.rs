//! Tells when a file of the home may have changed, so that what was denied ends while it is in use.
//!
//! Awaited by a node that is up, in a task of its own, beside `Authorized`'s look at each handshake. Watches the
//! directory rather than the files, since edits replace them. Invariant: no change is missed; one may be reported
//! more than once, or be another file's.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;

/// A watch on one directory.
#[derive(Debug)]
pub struct Watch {
    inotify: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Watches the files in `dir` from now on. Called on a runtime. Errors: those of inotify(7), `EMFILE` and
    /// `ENOSPC` (too many watches) among them.
    pub fn new(dir: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let changes = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::ATTRIB;
        inotify::add_watch(&inotify, dir, changes)?;
        // SAFETY: an OwnedFd is open, and names the same file, for as long as it lives; the AsyncFd owns it.
        let inotify = unsafe { AsyncFd::register(inotify) }?;
        Ok(Self { inotify })
    }

    /// Waits until something changed since the watch was made, or since this returned last. Cancelling it loses
    /// nothing.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            let mut seen = false;
            // Which file it was does not matter, and neither does what an overflow left out.
            let mut buffer = [MaybeUninit::uninit(); 4096];
            while let Ok(read) = ready.try_io(|inotify| Ok(rustix::io::read(inotify, &mut buffer)?)) {
                read?;
                seen = true;
            }
            if seen {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_edit_and_a_replacement_are_noticed_and_a_read_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authorized_keys");
        std::fs::write(&path, "one").unwrap();
        let watch = Watch::new(dir.path()).unwrap();
        for change in [
            (|path| crate::files::replace("edit", path, "two", 0o600).unwrap()) as fn(&Path),
            |path| std::fs::write(path, "three").unwrap(),
            |path| std::fs::remove_file(path).unwrap(),
        ] {
            let _ = std::fs::read(&path).unwrap();
            assert!(tokio::time::timeout(Duration::ZERO, watch.changed()).await.is_err(), "nothing has changed yet");
            change(&path);
            tokio::time::timeout(Duration::from_secs(30), watch.changed()).await.expect("it is noticed").unwrap();
        }
    }
}
