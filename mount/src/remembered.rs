//! A directory that is opened again while all that it holds is known: it is listed without asking anybody.
//!
//! Made by opendir, under the lease that its listing came with, and listed by readdir, in the request's task. What is
//! listed is what was there when it was opened, as of any directory; attributes are told only while the lease holds,
//! which whoever tells them checks. Invariant: nothing was changed in it through this mount since it was listed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use p9::{Attr, Dir, DirSink, Entry, Errno, FileKind, Name, Reply};

use crate::foresight::Foresight;
use crate::listing::{Listed, Seen};
use crate::table::Inode;

/// An open directory whose entries are remembered.
pub(crate) struct Remembered {
    listed: Arc<Listed>,
    /// How long what was told of a directory in it is good.
    ttl: Duration,
    /// The entries that were given.
    given: AtomicUsize,
}

impl Foresight {
    /// What the directory `inode` holds, if that is known.
    pub(crate) fn remembered(&self, inode: &Inode) -> Option<Remembered> {
        let (listed, _) = self.own(inode.id).filter(|(listed, _)| listed.is_whole())?;
        let ttl = self.ttl();
        listed.entries().iter().all(|seen| seen.attr().is_some()).then(|| Remembered {
            listed,
            ttl,
            given: AtomicUsize::new(0),
        })
    }
}

impl Remembered {
    /// What says that it is still so.
    pub(crate) fn listed(&self) -> &Arc<Listed> {
        &self.listed
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
