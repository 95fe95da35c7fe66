//! Open directories of the server's.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;

use super::fid::Fid;
use super::lease::Watch;
use super::node::take_data;
use crate::wire::{Dirent, IO_HEADER, R, T};
use crate::{Attr, Dir, DirSink, Entry, Errno, Name, Reply};

/// Attributes that came with entries are given out this long, without a lease.
const FRESH: Duration = Duration::from_millis(500);

/// An open directory, and the entries that came with the last answer but were not asked for yet.
pub(super) struct RemoteDir {
    fid: Arc<Fid>,
    left: Mutex<Left>,
    /// Whether entries come with their attributes.
    plus: AtomicBool,
    /// The lease that came along, under which nothing that was told becomes old.
    watch: Option<Watch>,
}

/// The first entries, which came along with the opening.
pub(super) struct First {
    pub(super) entries: Bytes,
    /// What this client had asked to be changed by then.
    pub(super) changes: u64,
    /// The lease under which they came.
    pub(super) watch: Option<Watch>,
}

#[derive(Clone, Default)]
struct Left {
    /// Where the first of `entries` follows.
    after: u64,
    entries: Bytes,
    /// Whether attributes are among them, and when they came.
    plus: bool,
    came: Option<Instant>,
    /// The server has said that none follow.
    ended: bool,
    /// What this client had asked to be changed by then.
    changes: u64,
}

impl RemoteDir {
    /// The directory that was opened as `fid`.
    pub(super) fn new(fid: Arc<Fid>, first: Option<First>) -> Arc<Self> {
        let (plus, mut left, mut watch) = (AtomicBool::new(fid.link.ordered), Left::default(), None);
        if let Some(First { entries, changes, watch: held }) = first {
            let (ended, came) = (entries.is_empty(), Some(Instant::now()));
            left = Left { after: 0, entries, plus: true, came, ended, changes };
            watch = held;
        }
        Arc::new(Self { fid, left: Mutex::new(left), plus, watch })
    }

    /// Whether `left` may be given out: what follows others does not change, but the start, and the word that there are
    /// no more, is old once this client has had something changed, and after a while, unless a lease is held.
    fn is_good(&self, left: &Left) -> bool {
        left.after != 0 && !left.ended || left.changes == self.fid.link.changes() && self.is_fresh(left)
    }

    /// Whether the attributes that came with `left` may be given out.
    fn is_fresh(&self, left: &Left) -> bool {
        let came_lately = left.came.is_some_and(|came| came.elapsed() < FRESH);
        self.watch.as_ref().map_or(came_lately, |watch| !watch.is_broken() && (came_lately || watch.holds()))
    }

    /// The entries after `cookie`, as many as the server sends.
    async fn read(&self, cookie: u64) -> Result<Left, Errno> {
        let (fid, count) = (self.fid.number(), self.fid.link.msize - IO_HEADER);
        loop {
            let plus = self.plus.load(Ordering::Relaxed);
            let read = match plus {
                true => T::Readdirplus { fid, offset: cookie, count },
                false => T::Readdir { fid, offset: cookie, count },
            };
            let changes = self.fid.link.changes();
            match take_data(&mut self.fid.link.calls(&[(read, Bytes::new())]).await?).await {
                // It speaks the dialect as it was before.
                Err(Errno::EOPNOTSUPP) if plus => self.plus.store(false, Ordering::Relaxed),
                answer => {
                    let (entries, came) = (answer?, Some(Instant::now()));
                    return Ok(Left { after: cookie, entries, plus, came, ended: false, changes });
                }
            }
        }
    }

    async fn list_now(&self, mut cookie: u64, each: &mut DirSink<'_>) -> Result<(), Errno> {
        loop {
            let mut left = std::mem::take(&mut *self.left.lock());
            if left.after != cookie || left.entries.is_empty() && !left.ended || !self.is_good(&left) {
                left = self.read(cookie).await?;
            }
            if left.entries.is_empty() {
                if left.after != 0 {
                    *self.left.lock() = left;
                }
                return Ok(());
            }
            let (from, fresh) = (cookie, self.is_fresh(&left));
            while !left.entries.is_empty() {
                let (rest, entry, attr) = next(&left)?;
                if entry.name.0.is_empty() && left.plus {
                    (left.after, left.ended, left.entries) = (cookie, true, Bytes::new());
                    *self.left.lock() = left;
                    return Ok(());
                }
                // Such a cookie would lead back here for ever.
                if entry.offset == 0 || entry.offset == from {
                    return Err(Errno::EPROTO);
                }
                if !matches!(entry.name.0, b"." | b"..") {
                    let name = Name::new(entry.name.0).map_err(|_| Errno::EPROTO)?;
                    let (kind, attr) = (u32::from(entry.kind) << 12, attr.filter(|_| fresh));
                    let entry = Entry { cookie: entry.offset, qid: entry.qid, kind, attr: attr.as_ref(), name };
                    if let ControlFlow::Break(()) = each(entry) {
                        left.after = cookie;
                        *self.left.lock() = left;
                        return Ok(());
                    }
                }
                cookie = entry.offset;
                left.entries.advance(left.entries.len() - rest);
            }
        }
    }
}

/// The first entry, its attributes if it has any, and how many bytes follow.
fn next(left: &Left) -> Result<(usize, Dirent<'_>, Option<Attr>), Errno> {
    let (mut rest, entry) = Dirent::read(&left.entries).map_err(|_| Errno::EPROTO)?;
    let mut attr = None;
    if left.plus {
        (rest, attr) = R::read_attr(rest).map_err(|_| Errno::EPROTO)?;
    }
    Ok((rest.len(), entry, attr))
}

impl Dir for RemoteDir {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        Reply::later(self.list_now(cookie, each))
    }
}
