//! Directories: opening and listing them, with attributes and without.
//!
//! Called through `fs`, in the request's own task. The offsets that the kernel gives back are the tree's cookies; `.`
//! and `..`, which a tree does not list, have two that no file system is known to use. A listing with attributes asks
//! for those that the tree did not give along, all of a batch at once; the kernel then looks none of these names up. It
//! is what the kernel always asks for, since most trees give attributes along: of one that does not they are asked for
//! only where somebody seems to look at its files.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fuser::{FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};
use futures_util::future::join_all;
use p9::tree::LeaseKind;
use p9::{Attr, Dir, Entry, Errno, FileKind, Handle, How, NameBuf, NodeRef, Opened, Qid, Time, Walk, Want};
use parking_lot::Mutex;

use super::names::attr_of;
use super::{Bridge, Refuse};
use crate::attr::{entry_type, to_fuse};
use crate::foresight::{Ahead, NAMES};
use crate::leash::Leash;
use crate::listing::{Gathered, Seen};
use crate::open::Open;
use crate::table::{Inode, Version};

/// After `.`, and after `..`. The kernel takes offsets as signed; ext4 uses the largest one for the end.
const AFTER_DOT: u64 = i64::MAX as u64 - 2;
const AFTER_DOT_DOT: u64 = i64::MAX as u64 - 1;

/// How much of a directory is asked for along with its opening, in bytes.
pub(crate) const FIRST_ENTRIES: u32 = 256 << 10;
/// Where the kernel knows more inodes than these, a listing has it forget those of which it told before.
const KNOWN: usize = 100_000;
/// So many of a batch whose attributes did not come along are asked about in any case.
const FEW: usize = 8;
/// Entries whose attributes are asked for together, at first: as many as an older kernel has room for.
pub(super) const FIRST_BATCH: usize = 24;
/// And at most: as many as there is room for in what glibc asks for.
const LARGEST_BATCH: usize = 192;

/// A reply that is filled while the directory is listed, and sent by whoever takes it out when that is done.
pub(super) struct Filling<R>(Arc<Mutex<Option<R>>>);

impl<R> Clone for Filling<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R> Filling<R> {
    pub(super) fn new(reply: R) -> Self {
        Self(Arc::new(Mutex::new(Some(reply))))
    }

    pub(super) fn take(&self) -> Option<R> {
        self.0.lock().take()
    }

    /// Adds an entry by `add`, which says whether there was no room for it.
    fn is_full(&self, add: impl FnOnce(&mut R) -> bool) -> bool {
        self.0.lock().as_mut().is_none_or(add)
    }
}

impl<R: Refuse> Refuse for Filling<R> {
    fn refuse(self, errno: Errno) {
        if let Some(reply) = self.take() {
            reply.refuse(errno);
        }
    }
}

/// An entry of a batch, and its attributes once they are known.
struct Found {
    name: NameBuf,
    qid: Qid,
    kind: u32,
    cookie: u64,
    attr: Option<Attr>,
    node: Option<NodeRef>,
}

/// What the kernel is told under a lease by one answer: names, and what they are called.
pub(super) struct ToldUnder {
    leash: Arc<Leash>,
    names: Vec<(NameBuf, u64)>,
}

impl ToldUnder {
    /// The answer has gone out.
    pub(super) fn sent(&self) {
        self.leash.has_told(&self.names);
    }
}

impl Bridge {
    pub(super) async fn sync_dir(&self, id: INodeNo) -> Result<(), Errno> {
        let inode = self.inode(id)?;
        ask!(self, &inode, |node| node.sync().await)
    }

    pub(super) async fn open_dir(&self, id: INodeNo, caller: u32) -> Result<(u64, FopenFlags), Errno> {
        let inode = self.inode(id)?;
        let opener = self.opener(caller, &inode);
        let how = How { directory: true, ..How::READ };
        // What one user may list another may not.
        let remembered = if self.options.all_users { None } else { self.foresight.remembered(&inode, &self.table) };
        if let Some(remembered) = remembered
            && self.is_led_to(&inode).await
        {
            let (lease, asked) = (remembered.listed().lease().cloned(), remembered.listed().asked());
            let flags = self.keeps_listing(&inode, remembered.listed().own());
            let node = remembered.node();
            let handle = Handle::Dir(Arc::new(remembered));
            let mut open = Open::new(inode, node, handle, how, &Attr::default(), None, None).0;
            (open.leash, open.asked) = (lease, asked);
            return Ok((self.opens.add(open), flags));
        }
        let want = Want { attr: true, data: FIRST_ENTRIES, lease: LeaseKind::Read };
        let mut gathered = Gathered::new(&self.changes);
        let (node, opened) = if let Some(ahead) = self.opened_ahead(&inode).await {
            (gathered.begun, gathered.asked, gathered.lease) = (ahead.begun, ahead.asked, ahead.lease);
            (ahead.node, ahead.opened)
        } else if let Some(opened) = self.open_by_name(&inode, opener, how, want).await? {
            let (node, opened, _) = opened;
            (node, opened)
        } else {
            ask!(self, &inode, |node| node.open_at(&[], how, want).await.map(|opened| (node.clone(), opened)))?
        };
        let Opened { handle, lease, attr, .. } = opened;
        if !matches!(handle, Handle::Dir(_)) {
            return Err(Errno::ENOTDIR);
        }
        let handle = self.lasting(&inode, Some(&node), handle, how);
        let mut open = Open::new(inode, Some(node), handle, how, &Attr::default(), None, None).0;
        gathered.is_under(lease, attr, &self.teller);
        if let Some(lease) = &gathered.lease {
            lease.is_of(id.0);
        }
        open.asked = gathered.asked;
        let flags = self.keeps_listing(&open.inode, gathered.own);
        *open.listed.lock() = Some(gathered);
        Ok((self.opens.add(open), flags))
    }

    /// Whether the kernel may keep what it lists of the directory `inode`, whose attributes under a lease are `own`,
    /// and list it from that which it has: as long as it has not changed, and the kernel still knows the names, which
    /// it would else look up one by one.
    fn keeps_listing(&self, inode: &Inode, own: Option<Attr>) -> FopenFlags {
        let Some(own) = own.filter(|_| !self.options.all_users && self.table.len() <= KNOWN) else {
            return FopenFlags::empty();
        };
        match inode.keeps_listing(Version::of(&own, Time::now()), self.options.ttl / 2) {
            true => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
            false => FopenFlags::FOPEN_CACHE_DIR,
        }
    }

    /// Whether the name of the directory `inode` is known to lead to it, or does so now.
    async fn is_led_to(&self, inode: &Inode) -> bool {
        let Some(place) = inode.place() else { return false };
        let name = place.name.as_name();
        if self.foresight.own_at(place.dir.id, name, inode.id).is_some() {
            return true;
        }
        let Some(dir) = self.table.at_hand(&place.dir) else { return false };
        let walked = dir.walk(&[name], Want::default()).await.and_then(Walk::reached);
        walked.is_ok_and(|reached| inode.is(reached.node.qid()))
    }

    /// The directory `inode`, if it was opened ahead and is what was opened.
    async fn opened_ahead(&self, inode: &Inode) -> Option<Ahead> {
        let place = inode.place().filter(|place| self.foresight.knows(place.dir.id))?;
        let (dir, _) = self.table.node(&place.dir).await.ok()?;
        let ahead = self.foresight.open_dir(place.dir.id, &dir, place.name.as_name()).await;
        ahead.filter(|ahead| self.foresight.is_still(ahead, inode))
    }

    /// Fills `list` with the entries after `offset`.
    pub(super) async fn list(&self, fh: FileHandle, offset: u64, list: Filling<ReplyDirectory>) -> Result<(), Errno> {
        let open = self.opens.get(fh.0)?;
        let Handle::Dir(dir) = &open.handle else { return Err(Errno::ENOTDIR) };
        let add = |id: u64, next: u64, kind: FileType, name: &[u8]| {
            list.is_full(|reply| reply.add(INodeNo(id), next, kind, OsStr::from_bytes(name)))
        };
        let Some(cookie) = dots(offset, |next, name| add(open.inode.id, next, FileType::Directory, name)) else {
            return Ok(());
        };
        let (mut seen, mut full) = (Vec::new(), false);
        let each = &mut |entry: Entry<'_>| {
            let kind = entry_type(entry.kind, entry.qid.kind);
            // A number that is not zero, which some programs take for no entry at all.
            if add(entry.qid.path.max(1), entry.cookie, kind, entry.name.as_bytes()) {
                full = true;
                return ControlFlow::Break(());
            }
            seen.push(Seen::of(&entry));
            ControlFlow::Continue(())
        };
        let answer = dir.list(cookie, each).await;
        self.has_listed(&open, cookie, seen, answer.is_ok() && !full);
        answer
    }

    /// Fills `list` with the entries after `offset` and their attributes. Gives what the lease is to hear of once that
    /// has gone out.
    pub(super) async fn list_plus(
        &self, fh: FileHandle, offset: u64, list: Filling<ReplyDirectoryPlus>,
    ) -> Result<Option<ToldUnder>, Errno> {
        let open = self.opens.get(fh.0)?;
        let Handle::Dir(dir) = &open.handle else { return Err(Errno::ENOTDIR) };
        self.has_too_many(&open);
        // The kernel looks at their names and types alone.
        let here = to_fuse(&Attr { mode: libc::S_IFDIR, ..Attr::default() }, open.inode.id);
        let dot = |next, name: &[u8]| {
            list.is_full(|reply| reply.add(here.ino, next, OsStr::from_bytes(name), &Duration::ZERO, &here, ONLY))
        };
        let Some(after) = dots(offset, dot) else { return Ok(None) };
        let mut cookie = after;
        let most = open.batch.load(Ordering::Relaxed);
        let (mut batch, mut ended) = (Vec::new(), false);
        // An answer without entries is the end, so if all of a batch have gone there must be another.
        while batch.is_empty() {
            batch = gather(&**dir, cookie, most).await?;
            let Some(last) = batch.last() else {
                ended = true;
                break;
            };
            cookie = last.cookie;
            let untold = batch.iter().filter(|found| found.attr.is_none()).count();
            // Of many, only for a program that seems to look at each.
            if after == 0 || untold <= FEW || open.inode.was_looked_in() {
                look_up(&self.node_of(&open).await?, &mut batch).await;
            }
        }
        let gathered = || open.listed.lock().as_ref().and_then(|gathered| gathered.lease.clone());
        let lease = open.leash.clone().or_else(gathered);
        let add = |found| self.add_to(&list, found, &open, lease.as_deref());
        let ids: Vec<u64> = batch.iter().map_while(add).collect();
        let fitted = ids.len();
        let told = |leash| ToldUnder {
            leash,
            names: batch.iter().zip(&ids).map(|(found, id)| (found.name.clone(), *id)).collect(),
        };
        let told = lease.clone().map(told);
        if fitted == batch.len() {
            // There was room for more.
            open.batch.store(LARGEST_BATCH.min(most * 2), Ordering::Relaxed);
        }
        if self.table.len() > KNOWN {
            let files = batch[..fitted].iter().filter(|found| found.qid.kind != FileKind::Dir);
            open.too_many.lock().extend(files.map(|found| found.name.clone()));
        }
        let seen = |(found, id): (Found, u64)| {
            // What the listing did not tell no lease covers.
            let attr = found.attr.filter(|_| found.node.is_none());
            Seen::new(found.name, attr.as_ref(), Some(id), found.cookie)
        };
        self.has_listed(&open, after, batch.into_iter().zip(ids).map(seen), ended);
        Ok(told)
    }

    /// These entries of `open` were listed after the cookie `after`, and no more follow if it `ended`. Programs that go
    /// through a tree keep each directory open meanwhile, so what it holds is of use from then on.
    fn has_listed(&self, open: &Open, after: u64, entries: impl IntoIterator<Item = Seen>, ended: bool) {
        {
            let mut listed = open.listed.lock();
            let Some(gathered) = &mut *listed else { return };
            // What is not remembered needs no lease.
            if !gathered.add(after, entries, ended, NAMES) || gathered.entries.len() > NAMES {
                *listed = None;
            }
        }
        if ended {
            self.was_listed(open);
        }
    }

    /// What `open` was listed to hold is made use of.
    pub(super) fn was_listed(&self, open: &Open) {
        let gathered = open.listed.lock().take();
        if let Some(gathered) = gathered {
            self.foresight.listed(open.inode.clone(), open.node.as_ref(), gathered);
        }
    }

    /// Has the kernel forget what the listing `open` told it beyond what it is to know.
    pub(super) fn has_too_many(&self, open: &Open) {
        let names = std::mem::take(&mut *open.too_many.lock());
        if !names.is_empty() {
            self.teller.forgets(&open.inode, names);
        }
    }

    /// Adds `found`, an entry of `open`, to `list` and to what the kernel knows, by the number that is given; `None` if
    /// it is full.
    fn add_to(
        &self, list: &Filling<ReplyDirectoryPlus>, found: &Found, open: &Open, lease: Option<&Leash>,
    ) -> Option<u64> {
        let &Found { ref name, qid, kind, cookie, attr, ref node } = found;
        let (dir, asked) = (&open.inode, open.asked);
        let inode = self.table.enter(dir, name.as_name(), qid, node.clone());
        // Of what cannot be asked about the type is known, and the kernel asks again before it uses the rest.
        let unknown = Attr { qid, mode: kind & libc::S_IFMT, size: inode.size(), ..Attr::default() };
        // Nor is what the server says of a file the truth while something of it is held back.
        let attr = attr.filter(|_| inode.held().is_none() && !self.backings.writes(inode.id));
        // Nor what came along with the listing, where it was changed through this mount since.
        let is_old = || {
            let name = self.changes.is_old_name(asked, dir.qid_path, name.as_name());
            node.is_none() && (name || self.changes.is_old(asked, qid.path))
        };
        let attr = attr.filter(|_| !is_old());
        // Nor what another may have changed since.
        let holds = lease.is_none_or(|lease| {
            lease.tells(name.as_name(), inode.id);
            !lease.is_broken()
        });
        let attr = attr.filter(|_| holds || node.is_some());
        let (attr, ttl) = attr.map_or((unknown, Duration::ZERO), |attr| (attr, self.options.ttl));
        inode.learn(&attr);
        if attr.bare {
            inode.is_bare(asked);
        }
        let (shown, name) = (to_fuse(&attr, inode.id), name.as_name().as_os_str());
        let full = list.is_full(|reply| reply.add(shown.ino, cookie, name, &ttl, &shown, ONLY));
        if full {
            self.table.forget(inode.id, 1);
        }
        (!full).then_some(inode.id)
    }
}

/// The generation of every node id.
pub(super) const ONLY: Generation = Generation(0);

/// Up to `most` entries after `cookie`.
async fn gather(dir: &dyn Dir, cookie: u64, most: usize) -> Result<Vec<Found>, Errno> {
    let mut batch = Vec::with_capacity(most);
    let each = &mut |entry: Entry<'_>| {
        if batch.len() == most {
            return ControlFlow::Break(());
        }
        let Entry { cookie, qid, kind, attr, name } = entry;
        batch.push(Found { name: name.into(), qid, kind, cookie, attr: attr.copied(), node: None });
        ControlFlow::Continue(())
    };
    dir.list(cookie, each).await?;
    Ok(batch)
}

/// Asks about those of `batch`, entries of `dir`, whose attributes did not come along; leaves out those that have gone.
async fn look_up(dir: &NodeRef, batch: &mut Vec<Found>) {
    let questions = batch.iter().map(async |found| {
        if found.attr.is_some() {
            return Ok(None);
        }
        let reached = dir.walk(&[found.name.as_name()], Want::ATTR).await.and_then(Walk::reached)?;
        let attr = attr_of(&reached.node, reached.attr).await?;
        Ok(Some((reached.node, attr)))
    });
    let answers = join_all(questions).await;
    let mut answers = answers.into_iter();
    batch.retain_mut(|found| match answers.next() {
        Some(Ok(Some((node, attr)))) => {
            (found.qid, found.attr, found.node) = (node.qid(), Some(attr), Some(node));
            true
        }
        Some(Err(Errno::ENOENT)) => false,
        _ => true,
    });
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
