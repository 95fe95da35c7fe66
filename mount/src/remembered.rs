//! A directory that is opened again while all that it holds is known: it is listed without asking anybody.
//!
//! Made by opendir, under the lease that its listing came with, and listed by readdir, in the request's task. What is
//! listed is what was there when that began, as of any directory, and attributes are told only while the lease holds,
//! which whoever tells them checks. Whoever begins once more, as by rewinddir(3), after something has changed is told
//! what is there by then: the directory is opened for that. Invariant: nothing was changed in it through this mount
//! between its listing and where a listing from memory began.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use p9::{Attr, Dir, DirSink, Entry, Errno, FileKind, Handle, How, Name, NodeRef, Reply, Want};
use tokio::sync::Mutex;

use crate::foresight::Foresight;
use crate::listing::{Listed, Seen};
use crate::table::{Inode, Table};

/// An open directory whose entries are remembered.
pub(crate) struct Remembered {
    listed: Arc<Listed>,
    /// How long what was told of a directory in it is good.
    ttl: Duration,
    /// The entries that were given.
    given: AtomicUsize,
    place: (Arc<Inode>, Arc<Table>, Option<NodeRef>),
    /// The directory, opened since it is not known any more what it holds.
    anew: Mutex<Option<Handle>>,
}

impl Foresight {
    /// What the directory `inode` of `table` holds, if that is known.
    pub(crate) fn remembered(&self, inode: &Arc<Inode>, table: &Arc<Table>) -> Option<Remembered> {
        let (listed, _) = self.own(inode.id).filter(|(listed, _)| listed.is_whole())?;
        let ttl = self.ttl();
        listed.entries().iter().all(|seen| seen.attr().is_some()).then(|| Remembered {
            listed,
            ttl,
            given: AtomicUsize::new(0),
            // As long as it is open it is this directory, whatever comes to be at its place.
            place: (inode.clone(), table.clone(), table.at_hand(inode)),
            anew: Mutex::default(),
        })
    }
}

impl Remembered {
    /// What says that it is still so.
    pub(crate) fn listed(&self) -> &Arc<Listed> {
        &self.listed
    }

    /// Its node, if that was at hand when it was opened.
    pub(crate) fn node(&self) -> Option<NodeRef> {
        self.place.2.clone()
    }

    /// The entries after `cookie` as they are now, by the directory itself.
    async fn ask(&self, cookie: u64, each: &mut DirSink<'_>) -> Result<(), Errno> {
        let mut anew = self.anew.lock().await;
        if cookie == 0 {
            let (inode, table, node) = &self.place;
            let node = match node {
                Some(node) => node.clone(),
                None => table.node(inode).await?.0,
            };
            let how = How { directory: true, ..How::READ };
            *anew = match node.open_at(&[], how, Want::default()).await {
                Ok(opened) => Some(opened.handle),
                // It was removed: there is nothing in it.
                Err(Errno::ENOENT | Errno::ESTALE) => None,
                Err(errno) => return Err(errno),
            };
        }
        match &*anew {
            Some(Handle::Dir(dir)) => dir.list(cookie, each).await,
            _ => Ok(()),
        }
    }

    /// Whether the entries after `cookie` are those that are remembered.
    fn is_known(&self, cookie: u64) -> bool {
        let Ok(mut anew) = self.anew.try_lock() else { return false };
        if cookie == 0 && self.listed.own().is_some() {
            *anew = None;
            return true;
        }
        cookie != 0 && anew.is_none()
    }

    /// Where the entries after `cookie` begin. Errors: `EINVAL` for a cookie of none of them.
    fn after(&self, cookie: u64) -> Result<usize, Errno> {
        if cookie == 0 {
            return Ok(0);
        }
        let is_last = |seen: &Seen| seen.cookie == cookie;
        let entries = self.listed.entries();
        // Whoever reads goes back by as many as it had no room for.
        let near = entries[..self.given.load(Ordering::Relaxed)].iter().rposition(is_last);
        near.or_else(|| entries.iter().position(is_last)).map(|last| last + 1).ok_or(Errno::EINVAL)
    }

    /// An entry with these attributes. What is told of a directory is told for a moment alone.
    fn entry<'a>(&self, seen: &'a Seen, attr: &'a Attr) -> Entry<'a> {
        let is_fresh = attr.qid.kind != FileKind::Dir || self.listed.is_younger(self.ttl / 2);
        let (kind, name): (_, Name<'a>) = (attr.mode & libc::S_IFMT, seen.name.as_name());
        Entry { cookie: seen.cookie, qid: attr.qid, kind, attr: Some(attr).filter(|_| is_fresh), name }
    }
}

impl Dir for Remembered {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        if !self.is_known(cookie) {
            return Reply::later(self.ask(cookie, each));
        }
        let after = match self.after(cookie) {
            Ok(after) => after,
            Err(errno) => return errno.into(),
        };
        let mut given = after;
        for seen in &self.listed.entries()[after..] {
            given += 1;
            if seen.attr().is_some_and(|attr| each(self.entry(seen, &attr)).is_break()) {
                break;
            }
        }
        self.given.store(given, Ordering::Relaxed);
        Reply::ok(())
    }
}
