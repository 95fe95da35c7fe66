//! Files that are about to be looked up or opened, asked about before the kernel does.
//!
//! A program that has listed a directory often goes through its files one after the other, as they were listed or in
//! the order of their names: `ls -l`, `cat *`, `grep -r`, `tar`. Each is a question that waits for its answer. Once a
//! few came in order the next ones are asked about together: their attributes where they are looked up; where they are
//! opened, they are fetched under the directory's lease, or else opened, each with its first bytes and a lease. The
//! lookup or open that comes finds its answer here. Used by lookups, opens and listings, in the request's task.
//! Invariant: no answer is given for a name that was changed through this mount since, nor one without a lease that is
//! older than the kernel may keep one.

use std::ops::{ControlFlow, Range};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::{Shared, join_all};
use p9::tree::LeaseKind;
use p9::{Attr, Entry, FileKind, Handle, How, Name, NameBuf, NodeRef, Opened, Walk, Want};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use tokio::runtime::Handle as Runtime;

use crate::bridge::{FIRST_BYTES, FIRST_ENTRIES};
use crate::changes::Changes;
use crate::disk::Disk;
use crate::kept::{File, Kept};
use crate::leash::Leash;
use crate::listing::{Gathered, Known, Listed, Seen};
use crate::pages::Gift;
use crate::table::{Inode, Table};
use crate::tell::Teller;

mod beside;
mod dirs;
mod links;
mod order;
mod room;

pub(crate) use dirs::Ahead;
use links::Links;
pub(crate) use order::State;
use room::{Room, Rooms};

/// What is remembered of directories that were listed: so many entries in all, each directory counted as some.
const ENTRIES: u64 = 100_000;
const EACH: u64 = 64;
/// The most names that are remembered of one; a directory with more is not.
pub(crate) const NAMES: usize = 20_000;
/// Directories whose lookups are counted.
const COUNTED: usize = 1024;
/// Lookups in a directory before it is listed, and after which part of what it held it is listed again.
const LIST: (u32, u32) = (2, 16);
/// Names that are asked about together at first, and at most: where they are looked up, and where they are opened.
const LOOKED: (usize, usize) = (8, 64);
const OPENED: (usize, usize) = (16, 64);
/// The same of files that are fetched, at most: that costs the server no open files.
const FETCHED: usize = 256;
/// What the first bytes of one batch take at most.
const BYTES: u64 = 4 << 20;
/// Lookups in order before anything is foreseen.
const LOOKUPS: u32 = 3;
/// The same of opens, which say more.
const OPENS: u32 = 1;
/// How long what was not used after all is kept.
const UNUSED: Duration = Duration::from_secs(5);

/// What one mount foresees.
pub(crate) struct Foresight {
    dirs: Cache<u64, Arc<Listed>, Weight>,
    /// How many lookups are to come before each directory is listed.
    to_list: Cache<u64, Arc<AtomicU32>>,
    changes: Arc<Changes>,
    ttl: Duration,
    runtime: Runtime,
    kept: Arc<Kept>,
    teller: Teller,
    table: Arc<Table>,
    rooms: Rooms,
    disk: Disk,
    links: Links,
}

#[derive(Clone)]
struct Weight;

impl Weighter<u64, Arc<Listed>> for Weight {
    fn weight(&self, _: &u64, listed: &Arc<Listed>) -> u64 {
        EACH + listed.len() as u64
    }
}

/// What was asked about one name.
#[derive(Clone)]
pub(crate) struct Foreseen {
    begun: Instant,
    /// The count of [`Changes`] by then.
    count: u64,
    /// Whether it was opened, too.
    opened: bool,
    answer: Shared<Pin<Box<dyn Future<Output = Option<Answer>> + Send>>>,
    /// For its bytes.
    _room: Option<Arc<Room>>,
}

/// How it is asked about a name.
enum Way {
    Look,
    /// By its contents: these attributes it has, under the directory's lease.
    Fetch(Attr),
    /// By opening it, with so many bytes.
    Open(u32),
}

#[derive(Clone)]
enum Answer {
    Looked(NodeRef, Attr),
    Opened(Arc<File>),
}

/// A file that was foreseen.
pub(crate) enum Found {
    /// It was looked up, and the kernel may keep that for so long.
    Looked(NodeRef, Attr, Duration),
    /// It was opened.
    Opened(Arc<File>),
    /// It was listed.
    Listed(Arc<Listed>, Box<Attr>, Duration),
    /// It is a directory that was opened ahead, under a lease, and the one it is in was listed.
    Ahead(Arc<Listed>, NodeRef, Box<Attr>, Arc<Leash>),
    /// There is no such name.
    Missing,
}

impl Foresight {
    /// Answers without a lease are given for `ttl` after they were asked for; first bytes that nobody has opened yet
    /// are so `many`.
    pub(crate) fn new(
        (ttl, many): (Duration, u64), runtime: Runtime, changes: Arc<Changes>, kept: Arc<Kept>, teller: Teller,
        table: Arc<Table>, disk: Disk,
    ) -> Self {
        let dirs = Cache::with_weighter((ENTRIES / EACH) as usize, ENTRIES, Weight);
        let (to_list, rooms) = (Cache::new(COUNTED), Rooms::new(many));
        let links = Links::default();
        Self { dirs, to_list, changes, ttl, runtime, kept, teller, table, rooms, disk, links }
    }

    /// The directory `dir`, which is `node`, was listed, whole or in part.
    pub(crate) fn listed(self: &Arc<Self>, dir: Arc<Inode>, node: Option<&NodeRef>, gathered: Gathered) {
        if gathered.entries.len() > NAMES {
            return;
        }
        let id = dir.id;
        // One that is still good has been gone through in part already; what was changed here since is not in it.
        let is_good = |there: &Arc<Listed>| {
            let says_more = gathered.own.is_some() && there.own().is_none();
            let has_lease = there.lease().is_some() || gathered.lease.is_none();
            there.is_whole() && !there.is_over(self.ttl) && has_lease && !says_more
        };
        let there = self.dirs.get(&id);
        if let Some(good) = there.as_ref().filter(|there| is_good(there)) {
            good.takes_over(&gathered);
            return;
        }
        let listed = Listed::new(dir, gathered, self.changes.clone());
        if let (Some(lease), Some(before)) = (listed.lease(), there.as_ref().and_then(|there| there.lease())) {
            lease.takes_from(before);
        }
        let next = if listed.is_bare() { u32::MAX } else { LIST.0.max(listed.len() as u32 / LIST.1) };
        self.dirs.insert(id, listed.clone());
        self.to_list.insert(id, Arc::new(AtomicU32::new(next)));
        // The one before it was gone through file by file.
        if let (Some(order), Some(node)) = (self.deep(&listed), node) {
            let state = &mut *listed.ways.lock();
            let most = if listed.holds(LeaseKind::Read) { OPENED.1 } else { OPENED.0 };
            let first = state.opens.first(order, 0, listed.len(), most);
            self.foresee(&listed, node, state, (order, first), true);
        }
    }

    /// Nothing is told any more.
    pub(crate) fn end(&self) {
        self.dirs.clear();
    }

    /// What is known of `name` in the directory `inode`, which is looked up; and asks about the names that seem to come
    /// next, if `dir`, which is the directory's node, is at hand.
    pub(crate) async fn look(
        self: &Arc<Self>, inode: &Arc<Inode>, dir: Option<&NodeRef>, name: Name<'_>,
    ) -> Option<Found> {
        let listed = self.dirs.get(&inode.id)?;
        let known = listed.known(name, self.ttl);
        if known.is_none()
            && let Some((node, attr, lease, asked)) = self.look_ahead(&listed, name).await
        {
            match lease.filter(|lease| lease.holds(LeaseKind::Read) && listed.still_leads(name, attr.qid)) {
                Some(lease) if !self.changes.is_old(asked.1, attr.qid.path) => {
                    return Some(Found::Ahead(listed, node, Box::new(attr), lease));
                }
                _ => {
                    if let Some(left) = self.still_for(&listed, name, &attr, asked) {
                        return Some(Found::Looked(node, attr, left));
                    }
                }
            }
        }
        let foreseen = listed.find(name).and_then(|places| {
            let mut state = listed.ways.lock();
            // What is about to be opened is looked up by that, and what is known is not asked about.
            let opened = !state.is_unleased() && state.opens.is_near(places);
            let order = state.lookups.step(places, LOOKUPS);
            if let (Some(order), Some(dir)) = (order.filter(|_| !opened && known.is_none() && !self.ttl.is_zero()), dir)
            {
                let next = state.lookups.next(order, places[order], listed.len(), LOOKED.1);
                state.pass(&listed, order, places, &next);
                self.foresee(&listed, dir, &mut state, (order, next), false);
            }
            state.foreseen.get(&places[0]).filter(|foreseen| foreseen.opened || known.is_none()).cloned()
        });
        if let Some(foreseen) = foreseen
            && let Some(found) = self.answer(&listed, name, foreseen).await
        {
            return Some(found);
        }
        Some(match known? {
            Known::There(attr, ttl) => Found::Listed(listed, attr, ttl),
            Known::Missing => Found::Missing,
        })
    }

    /// What is known of the attributes of `name` in the directory `id`.
    pub(crate) fn attr(&self, id: u64, name: Name<'_>) -> Option<(Arc<Listed>, Attr, Duration)> {
        let listed = self.dirs.peek(&id)?;
        match listed.known(name, self.ttl)? {
            Known::There(attr, ttl) => Some((listed, *attr, ttl)),
            Known::Missing => None,
        }
    }

    /// The attributes of the directory that the kernel calls `id`, if they are known by what was listed of it, and it
    /// is still what is called `name` in the directory `above`. The kernel is told both.
    pub(crate) fn own_at(&self, above: u64, name: Name<'_>, id: u64) -> Option<Attr> {
        let find = || {
            let (listed, attr) = self.own(id)?;
            let above = self.dirs.peek(&above)?;
            above.still_leads(name, attr.qid).then_some((above, listed, attr))
        };
        let (above, listed, _) = find()?;
        above.tells(name, id);
        listed.tells_own();
        // Asked again, now that whoever changes one of them knows that the kernel was told.
        find().map(|(.., attr)| attr)
    }

    /// What was listed of the directory `id`, if its own attributes are known by it.
    pub(crate) fn own(&self, id: u64) -> Option<(Arc<Listed>, Attr)> {
        let listed = self.dirs.peek(&id)?;
        let own = listed.own()?;
        Some((listed, own))
    }

    /// Counts a lookup in the directory `inode`, whose node is `dir`, that has to wait; after some, it is listed.
    pub(crate) fn count(self: &Arc<Self>, inode: &Arc<Inode>, dir: &NodeRef) {
        let fresh = || Ok::<_, std::convert::Infallible>(Arc::new(AtomicU32::new(LIST.0)));
        let Ok(to_come) = self.to_list.get_or_insert_with(&inode.id, fresh);
        // At 1 it is time, and only once.
        if to_come.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)) != Ok(1) {
            return;
        }
        let (foresight, inode, dir) = (self.clone(), inode.clone(), dir.clone());
        self.runtime.spawn(async move {
            match foresight.gather(&dir).await {
                Some(gathered) => foresight.listed(inode, Some(&dir), gathered),
                // It may be another time.
                None => to_come.store(LIST.0 * LIST.1, Ordering::SeqCst),
            }
        });
    }

    /// Lists `dir`, under a lease if one can be had.
    async fn gather(&self, dir: &NodeRef) -> Option<Gathered> {
        let gathered = Gathered::new(&self.changes);
        let want = Want { attr: true, data: FIRST_ENTRIES, lease: LeaseKind::Read };
        let opened = dir.open_at(&[], How { directory: true, ..How::READ }, want).await.ok()?;
        self.gather_all(opened, gathered).await
    }

    /// All that `opened`, a directory, holds, added to what `gathered` says of when it was asked for.
    async fn gather_all(&self, opened: Opened, mut gathered: Gathered) -> Option<Gathered> {
        gathered.is_under(opened.lease, opened.attr, &self.teller);
        let Handle::Dir(listing) = &opened.handle else { return None };
        let mut entries = Vec::new();
        let each = &mut |entry: Entry<'_>| {
            entries.push(Seen::of(&entry));
            if entries.len() > NAMES { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        listing.list(0, each).await.ok()?;
        gathered.add(0, entries, true, NAMES).then_some(gathered)
    }

    /// The same of a file that is opened: only if it was opened ahead.
    pub(crate) async fn open(self: &Arc<Self>, id: u64, dir: &NodeRef, name: Name<'_>) -> Option<Arc<File>> {
        let listed = self.dirs.get(&id)?;
        let places = listed.find(name)?;
        let deep = self.deep(&listed);
        let (foreseen, order) = {
            let mut state = listed.ways.lock();
            let most = if listed.holds(LeaseKind::Read) { FETCHED } else { OPENED.1 };
            let begins = state.opens.is_new();
            let order = state.opens.step(places, OPENS).filter(|_| !state.is_unleased());
            // What was done with the directory before this one is about to be done with this one.
            let next = match (order, deep.filter(|_| begins && !state.is_unleased())) {
                (Some(order), _) => Some((order, state.opens.next(order, places[order], listed.len(), most))),
                (None, Some(order)) => Some((order, state.opens.first(order, places[order], listed.len(), most))),
                (None, None) => None,
            };
            if let Some((order, next)) = &next {
                state.pass(&listed, *order, places, next);
                self.foresee(&listed, dir, &mut state, (*order, next.clone()), true);
            }
            (state.foreseen.remove(&places[0]), next.map(|(order, _)| order))
        };
        if let (Some(order), Some(above)) = (order, self.above(&listed.dir)) {
            let before = above.ways.lock().deep.replace((id, order));
            if let Some((last, _)) = before.filter(|(last, _)| *last != id) {
                self.foresee_beside(&above, &listed.dir, last, order);
            }
        }
        match foreseen?.answer.await? {
            Answer::Opened(file) if file.is_good() => Some(file),
            _ => None,
        }
    }

    /// For how long the kernel keeps what it is told.
    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Whether anything is known of the directory `id`.
    pub(crate) fn knows(&self, id: u64) -> bool {
        self.dirs.peek(&id).is_some()
    }

    /// Asks about what is at the places of `next` in `order`; of files that are `opened` only those that can be.
    fn foresee(
        self: &Arc<Self>, listed: &Arc<Listed>, dir: &NodeRef, state: &mut State, (order, next): (usize, Range<usize>),
        opened: bool,
    ) {
        if next.is_empty() {
            return;
        }
        let (begun, mut room, mut asked) = (Instant::now(), BYTES, Vec::new());
        for place in next {
            let (entry, seen) = listed.at(order, place);
            let length = match seen.plain() {
                _ if !opened => 0,
                Some(length) if length <= FIRST_BYTES && length <= room => length,
                _ => continue,
            };
            // Nor what is kept already.
            let kept = || listed.has_fetched(entry) || seen.id.is_some_and(|id| self.kept.get(id).is_some());
            if opened && kept() || state.foreseen.get(&entry).is_some_and(|there| there.opened || !opened) {
                continue;
            }
            // Where there is no room it is opened when it is asked for.
            let Some(taken) = self.rooms.take(length) else { continue };
            room -= length;
            let way = match (opened, listed.covered(seen.name.as_name())) {
                (false, _) => Way::Look,
                (true, Some(attr)) => Way::Fetch(attr),
                (true, None) => Way::Open(if self.is_on_disk(seen) { 0 } else { length as u32 }),
            };
            let count = self.changes.count();
            let answer = self.clone().ask((listed.clone(), entry), dir.clone(), seen.name.clone(), way, count);
            let (answer, _room) = (answer.boxed().shared(), Some(Arc::new(taken)).filter(|_| length > 0));
            let foreseen = Foreseen { begun, count, opened, answer, _room };
            asked.push((entry, (seen.name.clone(), foreseen.answer.clone())));
            state.foreseen.insert(entry, foreseen);
        }
        let (listed, of) = (Arc::downgrade(listed), listed.dir.clone());
        let (table, teller) = (self.table.clone(), self.teller.clone());
        self.runtime.spawn(async move {
            let (entries, answers): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
            let (names, answers): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
            let answers = join_all(answers).await;
            {
                // Nothing of the mount is kept while it sleeps, which may end meanwhile.
                let (table, teller, of) = (table, teller, of);
                let gift = |(name, answer): (NameBuf, Option<Answer>)| match answer? {
                    Answer::Opened(file) => Gift::whole(&table.child(&of, name.as_name())?, &file),
                    Answer::Looked(..) => None,
                };
                teller.give(names.into_iter().zip(answers).filter_map(gift).collect()).await;
            }
            tokio::time::sleep(UNUSED).await;
            let Some(listed) = listed.upgrade() else { return };
            let mut state = listed.ways.lock();
            let old = |entry: &usize| state.foreseen.get(entry).is_some_and(|there| there.begun == begun);
            let unused: Vec<_> = entries.into_iter().filter(old).collect();
            let gone: Vec<_> = unused.iter().map(|entry| state.foreseen.remove(entry)).collect();
            drop((state, gone));
        });
    }

    /// Asks about `name` in `dir`, which is at `entry` in `listed`, when there had been `count` changes.
    async fn ask(
        self: Arc<Self>, (listed, entry): (Arc<Listed>, usize), dir: NodeRef, name: NameBuf, way: Way, count: u64,
    ) -> Option<Answer> {
        let asked = (count, &self.changes);
        match way {
            Way::Look => look(&dir, name.as_name()).await,
            Way::Fetch(attr) => {
                let bytes = self.fetch(&dir, name.as_name(), &attr).await?;
                Some(Answer::Opened(File::fetched((&listed, entry), (&dir, name), attr, bytes, asked)))
            }
            Way::Open(length) => {
                let opened = open(&dir, name.as_name(), length, asked, &self.teller).await?;
                if let Some(Some(first)) = opened.as_ref().map(|file| &file.first) {
                    self.disk.of(&opened.as_ref()?.attr).iter().for_each(|contents| contents.keep(0, first));
                }
                listed.ways.lock().leased(opened.is_some());
                match &opened {
                    None => self.kept.refused(),
                    // What has other names may be changed by those.
                    Some(file) if !has_one_name(&file.attr) => return None,
                    Some(_) => {}
                }
                opened.map(Answer::Opened)
            }
        }
    }

    /// Whether the start of what was seen seems to be on this machine's disk.
    fn is_on_disk(&self, seen: &Seen) -> bool {
        seen.attr().is_some_and(|attr| self.disk.knows(attr.qid.path, attr.size, attr.ctime))
    }

    /// The whole file `name` of `dir`, if it still has these attributes.
    async fn fetch(&self, dir: &NodeRef, name: Name<'_>, attr: &Attr) -> Option<Bytes> {
        let on_disk = self.disk.of(attr);
        if let Some(contents) = &on_disk
            && let Some(bytes) = contents.whole().await
        {
            return Some(bytes);
        }
        let (qid, bytes) = dir.fetch(name, attr.size as u32).await.ok()?;
        // What is of another version changed meanwhile, and the lease is about to be broken.
        let same = qid == attr.qid && bytes.len() as u64 == attr.size;
        if let Some(contents) = on_disk.filter(|_| same) {
            contents.keep(0, &bytes);
        }
        same.then_some(bytes)
    }

    /// The answer to `foreseen`, about `name` in `listed`, if it is still good once it has come.
    async fn answer(&self, listed: &Listed, name: Name<'_>, foreseen: Foreseen) -> Option<Found> {
        match foreseen.answer.await? {
            Answer::Opened(file) => file.is_still(listed.dir.qid_path, name).then_some(Found::Opened(file)),
            Answer::Looked(node, attr) => {
                let left = self.still_for(listed, name, &attr, (foreseen.begun, foreseen.count))?;
                Some(Found::Looked(node, attr, left))
            }
        }
    }

    /// How long the kernel may keep that `name` in `listed` has the attributes `attr`, which were asked for at a time
    /// when there had been `count` changes.
    fn still_for(
        &self, listed: &Listed, name: Name<'_>, attr: &Attr, (begun, count): (Instant, u64),
    ) -> Option<Duration> {
        let old =
            self.changes.is_old(count, attr.qid.path) || self.changes.is_old_name(count, listed.dir.qid_path, name);
        self.ttl.checked_sub(begun.elapsed()).filter(|_| !old)
    }
}

/// Asks about `name`, an entry of `dir`. What fails is asked again by whoever wants to know why.
async fn look(dir: &NodeRef, name: Name<'_>) -> Option<Answer> {
    let reached = dir.walk(&[name], Want::ATTR).await.and_then(Walk::reached).ok()?;
    let attr = match reached.attr {
        Some(attr) => attr,
        None => reached.node.attr().await.ok()?,
    };
    has_one_name(&attr).then_some(Answer::Looked(reached.node, attr))
}

/// Whether it cannot be changed under another name without that being noticed.
fn has_one_name(attr: &Attr) -> bool {
    attr.nlink == 1 || attr.qid.kind == FileKind::Dir
}

/// Opens `name`, a file of `dir` that was `length` long, with its contents; `Some(None)` if no lease came along.
async fn open(
    dir: &NodeRef, name: Name<'_>, length: u32, asked: (u64, &Arc<Changes>), teller: &Teller,
) -> Option<Option<Arc<File>>> {
    let want = Want { attr: true, data: length, lease: LeaseKind::Attr };
    let opened = dir.open_at(&[name], How::READ, want).await.ok()?;
    Some(File::of(opened.node.as_ref()?, &opened, asked, teller))
}
