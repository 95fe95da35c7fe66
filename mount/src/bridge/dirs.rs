//! Directories: opening and listing them.
//!
//! Called through `fs`, in the request's own task. The offsets that the kernel gives back are the tree's cookies; `.` and
//! `..`, which a tree does not list, have two that no file system is known to use.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{FileHandle, FileType, INodeNo, ReplyDirectory};
use p9::{Attr, Entry, Errno, Handle, How};
use parking_lot::Mutex;

use super::{Bridge, Refuse};
use crate::attr::entry_type;
use crate::open::Open;

/// After `.`, and after `..`. The kernel takes offsets as signed; ext4 uses the largest one for the end.
const AFTER_DOT: u64 = i64::MAX as u64 - 2;
const AFTER_DOT_DOT: u64 = i64::MAX as u64 - 1;

/// A reply that is filled while the directory is listed, and sent when that is done.
pub(super) struct Listing(pub(super) Arc<Mutex<Option<ReplyDirectory>>>);

impl Listing {
    pub(super) fn send(self) {
        if let Some(reply) = self.0.lock().take() {
            reply.ok();
        }
    }
}

impl Refuse for Listing {
    fn refuse(self, errno: Errno) {
        if let Some(reply) = self.0.lock().take() {
            reply.refuse(errno);
        }
    }
}

impl Bridge {
    pub(super) async fn sync_dir(&self, id: INodeNo) -> Result<(), Errno> {
        let inode = self.inode(id)?;
        ask!(self, &inode, |node| node.sync().await)
    }

    pub(super) async fn open_dir(&self, id: INodeNo) -> Result<u64, Errno> {
        let inode = self.inode(id)?;
        let how = How { directory: true, ..How::READ };
        let (node, handle) = ask!(self, &inode, |node| node.open(how).await.map(|handle| (node.clone(), handle)))?;
        if !matches!(handle, Handle::Dir(_)) {
            return Err(Errno::ENOTDIR);
        }
        Ok(self.opens.add(Open::new(inode, node, handle, how, &Attr::default(), None).0))
    }

    /// Fills `list` with the entries after `offset`.
    pub(super) async fn list(
        &self, fh: FileHandle, offset: u64, list: Arc<Mutex<Option<ReplyDirectory>>>,
    ) -> Result<(), Errno> {
        let open = self.opens.get(fh.0)?;
        let Handle::Dir(dir) = &open.handle else { return Err(Errno::ENOTDIR) };
        let add = |id: u64, next: u64, kind: FileType, name: &[u8]| match list.lock().as_mut() {
            Some(reply) => reply.add(INodeNo(id), next, kind, OsStr::from_bytes(name)),
            None => true,
        };
        let Some(cookie) = dots(offset, |next, name| add(open.inode.id, next, FileType::Directory, name)) else {
            return Ok(());
        };
        let each = &mut |entry: Entry<'_>| {
            let kind = entry_type(entry.kind, entry.qid.kind);
            // A number that is not zero, which some programs take for no entry at all.
            let full = add(entry.qid.path.max(1), entry.cookie, kind, entry.name.as_bytes());
            if full { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        dir.list(cookie, each).await
    }
}

/// Adds `.` and `..`, if `offset` is before them; gives the cookie to go on from, or `None` if there is no room.
fn dots(offset: u64, mut add: impl FnMut(u64, &[u8]) -> bool) -> Option<u64> {
    if offset == 0 && add(AFTER_DOT, b".") {
        return None;
    }
    if matches!(offset, 0 | AFTER_DOT) && add(AFTER_DOT_DOT, b"..") {
        return None;
    }
    Some(if matches!(offset, 0 | AFTER_DOT | AFTER_DOT_DOT) { 0 } else { offset })
}
