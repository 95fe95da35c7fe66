//! Files that the kernel reads and writes without having opened them.
//!
//! Where a tree has a single writer, the kernel's opens and closes are declined, and what it asks comes with a file's
//! number alone. So the file is opened here when it is first asked for, once for all who have it open, and closed when
//! nobody asked for a while, or the kernel has forgotten it. Invariant: what could not be opened again stays open: a
//! file without a name, or one whose mode has come to deny it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use fuser::{FileAttr, FileHandle, INodeNo};
use p9::{Errno, How};
use parking_lot::Mutex;

use super::Bridge;
use super::by_name::Opener;
use super::names::Owner;
use crate::open::Open;
use crate::table::Inode;

/// Which file is meant: its number, and that of the open file if the kernel opened it.
pub(super) type Of = (INodeNo, FileHandle);

/// How long a file is kept open that nobody asks for, at least; and at most twice that.
const IDLE: Duration = Duration::from_secs(2);

/// A file's number, and whether it was opened to change it.
type Key = (u64, bool);

/// The open files of one mount that the kernel has not opened.
#[derive(Default)]
pub(super) struct Unopened(Mutex<HashMap<Key, Entry>>);

struct Entry {
    /// The number of the open file.
    number: u64,
    /// Whether it was asked for since this was last looked at.
    used: bool,
}

impl Unopened {
    /// The number of the open file `key`, which is used.
    fn get(&self, key: Key) -> Option<u64> {
        let mut files = self.0.lock();
        let entry = files.get_mut(&key)?;
        entry.used = true;
        Some(entry.number)
    }

    /// Keeps the open file `number` as `key`, unless there is one; gives which there is now, and whether it is the
    /// first of all.
    fn keep(&self, key: Key, number: u64) -> (u64, bool) {
        let mut files = self.0.lock();
        let first = files.is_empty();
        let entry = files.entry(key).or_insert(Entry { number, used: true });
        (entry.number, first)
    }

    /// Takes the file `id` out.
    fn forget(&self, id: u64) -> Vec<u64> {
        let mut files = self.0.lock();
        [false, true].into_iter().filter_map(|changes| Some(files.remove(&(id, changes))?.number)).collect()
    }

    /// Takes out what was not used since the last time and `may_close`; gives that, and whether any is left.
    fn idle(&self, may_close: impl Fn(Key, u64) -> bool) -> (Vec<u64>, bool) {
        let mut files = self.0.lock();
        let mut idle = Vec::new();
        files.retain(|key, entry| {
            let stays = std::mem::take(&mut entry.used) || !may_close(*key, entry.number);
            if !stays {
                idle.push(entry.number);
            }
            stays
        });
        (idle, !files.is_empty())
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}

impl Bridge {
    /// The open file that is meant, opened now if the kernel did not; to change it, if it `changes`.
    pub(super) async fn file(self: &Arc<Self>, (id, fh): Of, changes: bool) -> Result<Arc<Open>, Errno> {
        if !self.options.single_writer {
            return self.opens.get(fh.0);
        }
        let key = (id.0, changes);
        if let Some(open) = self.unopened.get(key).and_then(|number| self.opens.get(number).ok()) {
            return Ok(open);
        }
        let inode = self.inode(id)?;
        let how = if changes { How { read: true, ..How::WRITE } } else { How::READ };
        let number = match self.open_for(&inode, how, (0, Opener::ITSELF)).await {
            Ok((number, _)) => number,
            // Who may only read it, or only write it, as it was made: the kernel has seen to the rights.
            Err(Errno::EACCES) if changes => self.open_for(&inode, How::WRITE, (0, Opener::ITSELF)).await?.0,
            Err(Errno::EACCES) => {
                return self.unopened.get((id.0, true)).ok_or(Errno::EACCES).and_then(|number| self.opens.get(number));
            }
            Err(errno) => return Err(errno),
        };
        self.opens.get(self.keep_unopened(key, number).await)
    }

    /// Makes the file `name` in `parent`, and keeps it open for whoever had it made.
    pub(super) async fn make_unopened(
        self: &Arc<Self>, parent: INodeNo, name: &[u8], mode: u32, owner: Owner,
    ) -> Result<FileAttr, Errno> {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        let (attr, number, _) = self.create(parent, name, mode, flags, owner).await?;
        self.keep_unopened((attr.ino.0, true), number).await;
        Ok(attr)
    }

    /// Opens `inode`, which is about to lose its name, since somebody may have it open.
    pub(super) async fn open_nameless(self: &Arc<Self>, inode: Option<&Arc<Inode>>) {
        let file = inode.filter(|inode| self.options.single_writer && inode.mode() & libc::S_IFMT == libc::S_IFREG);
        if let Some(inode) = file
            && self.unopened.get((inode.id, true)).is_none()
        {
            // Whom the server does not let read it has not read it, either.
            _ = self.file((INodeNo(inode.id), FileHandle(0)), false).await;
        }
    }

    /// The kernel has forgotten the file `id`: nobody has it open.
    pub(super) fn forget_unopened(self: &Arc<Self>, id: INodeNo) {
        for number in self.unopened.forget(id.0) {
            let bridge = self.clone();
            self.runtime.spawn(async move { bridge.release(FileHandle(number)).await });
        }
    }

    /// Keeps the open file `number` as `key`; gives the one that is there.
    async fn keep_unopened(self: &Arc<Self>, key: Key, number: u64) -> u64 {
        let (kept, first) = self.unopened.keep(key, number);
        if first {
            self.runtime.spawn(close_idle(Arc::downgrade(self)));
        }
        if kept != number {
            _ = self.release(FileHandle(number)).await;
        }
        kept
    }

    /// Whether the open file `number` can be closed: nobody is using it, and it can be opened again.
    fn may_close(&self, (_, changes): Key, number: u64) -> bool {
        let Ok(open) = self.opens.get(number) else { return true };
        let needed = if changes { libc::S_IRUSR | libc::S_IWUSR } else { libc::S_IRUSR };
        // One is in the table, one is here.
        Arc::strong_count(&open) == 2 && open.inode.place().is_some() && open.inode.mode() & needed == needed
    }
}

/// Closes what is not asked for, until nothing is left.
async fn close_idle(bridge: Weak<Bridge>) {
    loop {
        tokio::time::sleep(IDLE).await;
        let Some(bridge) = bridge.upgrade() else { return };
        let (idle, any) = bridge.unopened.idle(|key, number| bridge.may_close(key, number));
        for number in idle {
            _ = bridge.release(FileHandle(number)).await;
        }
        if !any {
            return;
        }
    }
}
