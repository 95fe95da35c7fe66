//! What is written to an open file, held back under a lease on writing it.
//!
//! Nobody else has the file open then, or can see what it is. A small file is made, written and closed: what is written
//! stays here, and goes out together with what the closing asks. Of more than that parts go out while the program
//! writes the next ones, several at a time, as over a long way they must. Filled by writes, on fuser's threads; written
//! out by a flush, by whatever else asks about the file, and by a task once somebody else wants to see it: only then is
//! the lease given back. Invariants: no answer about the file is given, and no lease on it given back, while something
//! is held; no two parts that are under way overlap.

mod attrs;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use p9::cancel::Cancel;
use p9::tree::Lease;
use p9::{Attr, Errno, Handle, How, NodeRef, SetAttr};
use parking_lot::Mutex;
use tokio::runtime::Handle as Runtime;
use tokio::sync::Notify;

use crate::begun::begin;
use crate::changes::Changes;
use crate::conflict::{self, Home, Known, Written};
use crate::lasting::Lasting;
use crate::table::{Inode, Table};

/// So much together goes out, if no more than half of it is a part already.
const PART: usize = 512 << 10;
/// The most that is held of one file, under way or not.
const EACH: usize = 8 << 20;
/// So much may be held whatever the way there is like.
const LEAST: usize = 256 << 10;
/// What is held is to be written out in so much time: others wait for it, and a server not for longer than 30 s.
const IN_TIME: Duration = Duration::from_secs(5);
/// What is written out in a second, before anything was.
const FIRST_RATE: f64 = 400e3;
/// How long something is held of a file that stays open, at least: who looks at the server itself sees it then.
const LONG: Duration = Duration::from_millis(500);
/// How often it is looked for what was held that long.
const SWEEP: Duration = Duration::from_millis(500);

/// What a mount holds of all files.
pub(crate) struct Held {
    /// At most so many bytes.
    most: usize,
    runtime: Runtime,
    state: Mutex<All>,
}

#[derive(Default)]
struct All {
    bytes: usize,
    /// What was written out in a second, lately.
    rate: Option<f64>,
    /// Those of which something is held or was a while ago, with when that began; in that order.
    files: Vec<(Instant, Weak<Hold>)>,
}

impl All {
    /// How much may be held: what can be written out in time for whoever asks for it.
    fn most(&self) -> usize {
        let rate = self.rate.unwrap_or(FIRST_RATE);
        (rate * IN_TIME.as_secs_f64()).max(LEAST as f64) as usize
    }
}

/// What is held of one open file.
pub(crate) struct Hold {
    handle: Handle,
    /// That of the file, if this mount has made it to open it so.
    made: Option<NodeRef>,
    inode: Arc<Inode>,
    table: Arc<Table>,
    changes: Arc<Changes>,
    all: Arc<Held>,
    state: Mutex<State>,
    /// Some of it has been written out.
    less: Notify,
    /// Where what is held goes once the lease was lost.
    home: tokio::sync::Mutex<Option<Home>>,
}

struct State {
    /// None once it was broken, or is of no use any more.
    lease: Option<Lease>,
    /// Where what is gathered begins.
    offset: u64,
    /// What is gathered, to go out together.
    data: BytesMut,
    /// The parts that are being written out, by their numbers. No two overlap.
    parts: BTreeMap<u64, Written>,
    under_way: usize,
    /// The number of the next part.
    next: u64,
    /// Whether it will be looked at again if it stays open.
    looked_after: bool,
    /// Whether something was written of which no flush has told.
    unflushed: bool,
    /// What went wrong when nobody waited for it.
    failed: Option<Errno>,
    /// The file's attributes, as they were heard last: while there is a lease nobody else changes them.
    seen: Attr,
    /// How often they were heard with a change that was asked for: what was asked about before is older.
    changed: u64,
    /// What was written out since.
    unseen: Vec<Written>,
    /// Whether the attributes are being asked for.
    asking: bool,
    /// What is to be set of the attributes once what was written before has gone out.
    change: SetAttr,
    /// Whether that is being done with what was held of it before.
    setting: bool,
}

impl Held {
    pub(crate) fn new(most: u64, runtime: Runtime) -> Arc<Self> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Arc::new(Self { most, runtime, state: Mutex::default() })
    }

    /// Counts `bytes` more that are held, if there may be so many, or nothing else is.
    fn add(&self, bytes: usize) -> bool {
        let mut all = self.state.lock();
        let fits = all.bytes == 0 || all.bytes + bytes <= all.most().min(self.most);
        if fits {
            all.bytes += bytes;
        }
        fits
    }

    /// Something is held of the file of `hold` from now on.
    fn looks_after(self: &Arc<Self>, hold: &Arc<Hold>) {
        let mut all = self.state.lock();
        if all.files.is_empty() {
            self.runtime.spawn(self.clone().sweep());
        }
        all.files.push((Instant::now(), Arc::downgrade(hold)));
    }

    fn let_go(&self, bytes: usize) {
        self.state.lock().bytes -= bytes;
    }

    /// `bytes` were written out, with others, in this time.
    fn took(&self, bytes: usize, time: Duration) {
        let rate = bytes as f64 / time.as_secs_f64().max(1e-6);
        let mut all = self.state.lock();
        all.rate = Some(all.rate.map_or(rate, |before| (before + rate) / 2.0));
    }

    /// Writes out what is held for long, until nothing is held.
    async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let (old, ends): (Vec<_>, _) = {
                let files = &mut self.state.lock().files;
                let old = files.partition_point(|(since, _)| since.elapsed() >= LONG);
                (files.drain(..old).filter_map(|(_, hold)| hold.upgrade()).collect(), files.is_empty())
            };
            for hold in old {
                // Each by itself: the server of one may be away.
                // What is written from here on is another's to look after.
                hold.state.lock().looked_after = false;
                self.runtime.spawn(async move { hold.settle().await });
            }
            if ends {
                return;
            }
        }
    }
}

impl Hold {
    /// For the file `inode`, with these attributes when it was opened as `handle`, under `lease`; `made` is its node, if
    /// it was made by that. The rest is of the mount.
    pub(crate) fn new(
        (inode, attr, handle, made): (Arc<Inode>, Attr, Handle, Option<NodeRef>), lease: &Lease,
        (table, changes, all): (Arc<Table>, Arc<Changes>, Arc<Held>),
    ) -> Arc<Self> {
        let state = Mutex::new(State::new(lease.clone(), attr));
        let (less, home, runtime) = (Notify::new(), tokio::sync::Mutex::default(), all.runtime.clone());
        let hold = Arc::new(Self { handle, made, inode, table, changes, all, state, less, home });
        hold.inode.holds(&hold);
        let weak = Arc::downgrade(&hold);
        lease.tell(Arc::new(move |_| {
            if let Some(hold) = weak.upgrade() {
                runtime.spawn(async move { hold.end().await });
            }
        }));
        hold
    }

    /// Whether what is written to a file that is opened as `how` may be held back.
    pub(crate) fn holds(how: How) -> bool {
        how.write && !how.append && !how.sync
    }

    /// Holds `data`, written at `offset`, once there is room. Errors: what went wrong with what was held before.
    pub(crate) async fn take(self: &Arc<Self>, offset: u64, data: &Bytes) -> Result<Taken, Errno> {
        loop {
            let less = self.less.notified();
            let (answer, parts) = {
                let mut state = self.state.lock();
                let follows = !state.data.is_empty() && offset == state.end();
                // What else is gathered goes out, so that what is written here may be.
                let before = if follows { None } else { state.gathered(false) };
                let fits = state.held() + data.len() <= EACH && !state.overlaps(offset, data.len());
                match &state.lease {
                    _ if state.failed.is_some() => (state.failed.take().map(Err), Vec::from_iter(before)),
                    None => (Some(Ok(Taken::Ended)), Vec::from_iter(before)),
                    // Not heard of for a while.
                    Some(lease) if !lease.holds() => (Some(Ok(Taken::Through)), Vec::from_iter(before)),
                    Some(_) if fits && self.all.add(data.len()) => {
                        // A write sets it, too.
                        state.change.mtime = None;
                        if !std::mem::replace(&mut state.looked_after, true) {
                            self.all.looks_after(self);
                        }
                        (Some(Ok(Taken::Held)), before.into_iter().chain(state.keep(offset, data)).collect())
                    }
                    // Others hold all that may be held, or it is more than that.
                    Some(_) if state.held() == 0 => (Some(Ok(Taken::Through)), Vec::new()),
                    Some(_) => (None, before.into_iter().chain(state.gathered(false)).collect()),
                }
            };
            parts.into_iter().for_each(|part| self.begin(part));
            match answer {
                Some(answer) => return answer,
                None => less.await,
            }
        }
    }

    /// Begins to write `part`. In a task of its own: what was written by one program is not lost if another gives up
    /// that only looks at the file.
    fn begin(self: &Arc<Self>, Part { number, offset, data, flush }: Part) {
        let ends = Ends { hold: self.clone(), number, size: data.len(), flushed: false, failed: Some(Errno::EIO) };
        let (begun, before) = (Instant::now(), self.all.state.lock().bytes);
        let write = async move {
            let (mut at, mut left) = (offset, data);
            let mut written = ends.hold.write(&mut at, &mut left, flush).await;
            match written {
                // The server has gone on without it.
                Err(Errno::ESTALE) => written = ends.hold.keep(at, left).await,
                Ok(()) => ends.hold.all.took(before, begun.elapsed()),
                Err(_) => {}
            }
            ends.with(flush, written);
            Ok(())
        };
        // Whoever asks for it may be asked to end; the one who wrote it is not there any more.
        let writing = async move {
            _ = Cancel::default().run(write).await;
        };
        begin(&self.all.runtime, writing).detach();
    }

    /// Writes `data`, at `offset`, after the lease was lost.
    async fn keep(&self, offset: u64, data: Bytes) -> Result<(), Errno> {
        let (mut home, known) = (self.home.lock().await, self.known());
        conflict::keep(&self.table, &self.changes, &self.inode, (&mut home, known), offset, data).await
    }

    /// What is known of the file, as it is unless another has written it.
    fn known(&self) -> Known {
        let state = self.state.lock();
        Known { attr: state.seen, written: state.unseen.iter().chain(state.parts.values()).cloned().collect() }
    }

    /// The file's attributes are these, nothing being held by now.
    pub(crate) fn saw(&self, attr: &Attr) {
        self.state.lock().saw(attr);
    }

    /// Hears what the file's attributes are now that some of it was written out, for when the server is started anew.
    /// Nobody waits for it.
    fn looks(self: &Arc<Self>) {
        let Some(node) = self.table.at_hand(&self.inode) else { return };
        if std::mem::replace(&mut self.state.lock().asking, true) {
            return;
        }
        let hold = self.clone();
        self.all.runtime.spawn(async move {
            loop {
                let (unseen, changed) = {
                    let state = hold.state.lock();
                    (state.unseen.len(), state.changed)
                };
                let seen = node.attr().await;
                let mut state = hold.state.lock();
                match seen {
                    Ok(_) if state.changed != changed => continue,
                    Ok(attr) => {
                        state.seen = attr;
                        state.unseen.drain(..unseen);
                    }
                    Err(_) => {}
                }
                if seen.is_err() || state.unseen.is_empty() {
                    state.asking = false;
                    return;
                }
            }
        });
    }

    /// Whether something is held, or being written out.
    pub(crate) fn is_full(&self) -> bool {
        let state = self.state.lock();
        state.held() > 0 || state.setting || state.change != SetAttr::default()
    }

    /// Writes out what is held. What goes wrong is told by the next write, flush or fsync.
    pub(crate) async fn settle(self: &Arc<Self>) {
        self.write_out(false).await;
    }

    /// The same, and holds nothing any more.
    pub(crate) async fn end(self: &Arc<Self>) {
        let lease = self.state.lock().lease.take();
        self.settle().await;
        drop(lease);
    }

    /// The same for somebody who waits for what goes wrong.
    pub(crate) async fn settled(self: &Arc<Self>) -> Result<(), Errno> {
        self.write_out(false).await;
        self.state.lock().failed.take().map_or(Ok(()), Err)
    }

    /// Whether something went wrong of which nobody was told.
    pub(crate) fn failed(&self) -> Option<Errno> {
        self.state.lock().failed
    }

    /// Writes out what is held, and says what is known to have gone wrong.
    pub(crate) async fn flush(self: &Arc<Self>) -> Result<(), Errno> {
        self.write_out(true).await;
        let (failed, unflushed) = {
            let mut state = self.state.lock();
            (state.failed.take(), std::mem::take(&mut state.unflushed))
        };
        match failed {
            Some(errno) => Err(errno),
            None if unflushed => self.handle.flush().await,
            None => Ok(()),
        }
    }

    /// Writes what is held by now; with `flush`, that goes along where nothing else is under way.
    async fn write_out(self: &Arc<Self>, flush: bool) {
        let (part, end) = {
            let mut state = self.state.lock();
            let alone = state.parts.is_empty();
            (state.gathered(flush && alone), state.next)
        };
        part.into_iter().for_each(|part| self.begin(part));
        loop {
            let less = self.less.notified();
            if self.state.lock().parts.first_key_value().is_none_or(|(first, _)| *first >= end) {
                break;
            }
            less.await;
        }
        self.set_held().await;
    }

    /// Writes `data` at `offset`; what is left of it is what was not written.
    async fn write(&self, offset: &mut u64, data: &mut Bytes, flush: bool) -> Result<(), Errno> {
        while !data.is_empty() {
            let written = Lasting::write_held(&self.handle, *offset, data.clone(), flush).await?;
            let count = (written.count as usize).min(data.len());
            if count == 0 {
                return Err(Errno::EIO);
            }
            *offset += count as u64;
            *data = data.slice(count..);
        }
        Ok(())
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Taken {
    /// It is held.
    Held,
    /// There is no room for it now: it is to be written once what is held was.
    Through,
    /// Nothing is held any more.
    Ended,
}

/// Some of what is held, to be written out.
struct Part {
    number: u64,
    offset: u64,
    data: Bytes,
    /// Whether a flush goes along.
    flush: bool,
}

impl State {
    fn new(lease: Lease, seen: Attr) -> Self {
        Self {
            lease: Some(lease),
            offset: 0,
            data: BytesMut::new(),
            parts: BTreeMap::new(),
            under_way: 0,
            next: 0,
            looked_after: false,
            unflushed: false,
            failed: None,
            seen,
            changed: 0,
            unseen: Vec::new(),
            asking: false,
            change: SetAttr::default(),
            setting: false,
        }
    }

    /// A change that was asked for has made the attributes these.
    fn saw(&mut self, attr: &Attr) {
        self.seen = *attr;
        self.changed += 1;
    }

    /// Adds `data`, which follows what is held. Gives what goes out for that.
    fn keep(&mut self, offset: u64, data: &Bytes) -> Vec<Part> {
        if data.len() >= PART / 2 {
            let before = self.gathered(false);
            self.offset = offset + data.len() as u64;
            return before.into_iter().chain([self.part(offset, data.clone(), false)]).collect();
        }
        if self.data.is_empty() {
            self.offset = offset;
        }
        self.data.extend_from_slice(data);
        let enough = self.data.len() >= PART;
        enough.then(|| self.gathered(false)).flatten().into_iter().collect()
    }

    /// What is gathered, to go out; with `flush`, that goes along.
    fn gathered(&mut self, flush: bool) -> Option<Part> {
        if self.data.is_empty() {
            return None;
        }
        let (offset, data) = (self.offset, std::mem::take(&mut self.data).freeze());
        self.offset += data.len() as u64;
        Some(self.part(offset, data, flush))
    }

    fn part(&mut self, offset: u64, data: Bytes, flush: bool) -> Part {
        let number = self.next;
        self.next += 1;
        self.under_way += data.len();
        self.parts.insert(number, Written::of(offset, &data));
        Part { number, offset, data, flush }
    }

    /// Whether some of these bytes are being written out.
    fn overlaps(&self, offset: u64, length: usize) -> bool {
        let end = |offset: u64, length: usize| offset.saturating_add(length as u64);
        let under_way = |part: &Written| part.offset < end(offset, length) && offset < end(part.offset, part.length);
        self.parts.values().any(under_way)
    }

    fn held(&self) -> usize {
        self.data.len() + self.under_way
    }

    /// Where what is held ends.
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }
}

/// A part is being written out, until this is dropped.
struct Ends {
    hold: Arc<Hold>,
    number: u64,
    size: usize,
    flushed: bool,
    failed: Option<Errno>,
}

impl Ends {
    fn with(mut self, flush: bool, written: Result<(), Errno>) {
        (self.flushed, self.failed) = (flush && written.is_ok(), written.err());
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let Self { hold, number, size, flushed, failed } = self;
        // What was asked for meanwhile is old.
        hold.inode.wrote(0);
        hold.changes.file(hold.inode.qid_path);
        {
            let mut state = hold.state.lock();
            let written = state.parts.remove(number).filter(|_| failed.is_none());
            state.unseen.extend(written);
            state.under_way -= *size;
            state.failed = state.failed.or(*failed);
            state.unflushed |= !*flushed;
        }
        hold.all.let_go(*size);
        hold.less.notify_waiters();
        // What was flushed is about to be closed.
        if failed.is_none() && !*flushed {
            hold.looks();
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.all.let_go(self.state.get_mut().data.len());
    }
}
