//! Open files: their bytes, and what else can be done with them.
//!
//! Called through `fs`, in the request's own task; unbounded in time, since a read of a stream may last. Files with
//! offsets that mean something go through the kernel's pages, unless what the tree says of their length is no guide;
//! streams do not.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use fuser::{FileHandle, FopenFlags, INodeNo};
use futures_util::future::join_all;
use p9::tree::{Lease, LeaseKind};
use p9::{Attr, Errno, Handle, How, NodeRef, SetAttr, Time, Want};
use parking_lot::Mutex;

use super::Bridge;
use super::by_name::Opener;
use super::dirs::FIRST_BATCH;
use super::names::attr_of;
use super::unopened::Of;
use crate::ahead::{Ahead, Source};
use crate::disk::{Contents, Through, Twin};
use crate::hold::{Hold, Taken};
use crate::kept::File;
use crate::lasting::Lasting;
use crate::open::{Open, Position};
use crate::pages::Away;
use crate::table::{Inode, Version};

/// How much of a file is asked for along with its opening: what the kernel asks for first.
pub(crate) const FIRST_BYTES: u64 = 128 << 10;

/// The first bytes of a file, and [`Inode::writes`] when they were asked for.
pub(super) struct First {
    bytes: Bytes,
    writes: u64,
}

impl Open {
    /// The open file, and how the kernel is to treat it.
    pub(super) fn new(
        inode: Arc<Inode>, node: Option<NodeRef>, handle: Handle, how: How, attr: &Attr, mut first: Option<First>,
        kept: Option<Arc<File>>,
    ) -> (Self, FopenFlags) {
        let seekable = handle.seekable();
        // Contents made at each opening belong to that opening alone; an append goes where the server says; and what
        // claims to be empty may be made while it is read, as in /proc.
        let direct = !seekable
            || how.append
            || matches!(handle, Handle::Bytes(_))
            || matches!(handle, Handle::Stream(_)) && attr.size == 0 && !how.write;
        let mut flags = FopenFlags::empty();
        if direct {
            flags |= FopenFlags::FOPEN_DIRECT_IO;
            if !seekable {
                flags |= FopenFlags::FOPEN_NONSEEKABLE | FopenFlags::FOPEN_STREAM;
            }
        } else {
            let same = inode.keeps_pages(Version::of(attr, Time::now()));
            if kept.as_ref().is_some_and(|file| file.opens()) || same {
                flags |= FopenFlags::FOPEN_KEEP_CACHE;
            } else {
                // The kernel drops its pages, and whoever has the file open already asks anew, too.
                let before = inode.is_read_anew();
                if let Some(first) = first.as_mut().filter(|first| first.writes == before) {
                    first.writes += 1;
                }
            }
        }
        if !how.changes() {
            // There is nothing to tell when it is closed.
            flags |= FopenFlags::FOPEN_NOFLUSH;
        }
        let (reads, writes, poll) = (Position::default(), Position::default(), Mutex::default());
        let (batch, listed, too_many) = (FIRST_BATCH.into(), Mutex::default(), Mutex::default());
        let ahead = first.map_or_else(Ahead::default, |First { bytes, writes }| Ahead::new(bytes, writes));
        let (writes_too, written) = (how.changes(), AtomicBool::new(false));
        let open = Self {
            inode,
            node,
            handle,
            direct,
            writes_too,
            appends: how.append,
            written,
            reads,
            writes,
            ahead,
            batch,
            asked: 0,
            listed,
            too_many,
            leash: kept.as_ref().and_then(|file| file.leash()),
            kept,
            away: None,
            hold: None,
            local: OnceLock::new(),
            poll,
        };
        (open, flags)
    }

    /// The same, read from this machine's disk as far as `contents` or a `twin` are there: unless something has changed
    /// since [`Inode::writes`] was `asked`.
    fn over_disk(
        (mut open, flags): (Self, FopenFlags), (contents, twin): (Option<Contents>, Option<Twin>), asked: u64,
    ) -> (Self, FopenFlags) {
        let own = u64::from(!flags.contains(FopenFlags::FOPEN_KEEP_CACHE));
        let writes = open.inode.writes();
        if !open.direct && !open.writes_too && writes == asked + own {
            open.handle = Through::over(open.handle.clone(), contents, twin, &open.inode, writes);
        }
        (open, flags)
    }
}

impl Bridge {
    /// The thread `caller` of the user `uid` opens a file.
    pub(super) async fn open(
        &self, id: INodeNo, flags: i32, (uid, caller): (u32, u32),
    ) -> Result<(u64, FopenFlags), Errno> {
        /// The bit by which the kernel says that a program is being started (`FMODE_EXEC`).
        const EXEC: i32 = 0x20;
        let how = How { exec: flags & EXEC != 0, ..How::from_flags(flags as u32)? };
        let inode = self.inode(id)?;
        let opener = self.opener(caller, &inode);
        self.open_for(&inode, how, (uid, opener)).await
    }

    /// Opens `inode` as `how` for the `opener`, who is the user `uid`.
    pub(super) async fn open_for(
        &self, inode: &Arc<Inode>, how: How, (uid, opener): (u32, Opener),
    ) -> Result<(u64, FopenFlags), Errno> {
        if how.changes() {
            self.writable()?;
        }
        // What has a length has its bytes at hand: tar(1) says that it would not wait.
        let how = if inode.size() > 0 { How { nonblock: false, ..how } } else { how };
        self.settle(inode).await;
        let asked = (inode.writes(), self.changes.count());
        let reads = How { exec: false, ..how } == How::READ;
        if reads
            && let Some(file) = self.opened_before(inode).await
            // Who may run it was not asked, where not everybody may.
            && (!how.exec || file.attr.mode & 0o111 == 0o111)
            && let Some(shared) = self.share(inode, &file)
        {
            return Ok(shared);
        }
        // Nothing of what has no length: it may be a stream, whose opening must not wait for something to read.
        let on_disk = || self.disk.knows(inode.qid_path, inode.size(), inode.told());
        let data = if how.changes() || on_disk() { 0 } else { inode.size().min(FIRST_BYTES) as u32 };
        let lease = match how {
            _ if reads => LeaseKind::Attr,
            // What was held by whoever had it open before was written out for this; two cannot hold some of one file.
            _ if self.holds(how) => LeaseKind::Write,
            _ => LeaseKind::None,
        };
        let want = Want { attr: true, data, lease };
        let away = self.keeps_away(inode, how.changes()).await;
        let _changing = how.truncate.then(|| self.changing(inode));
        let (node, opened, attr) = match self.open_by_name(inode, opener, how, want).await? {
            Some(opened) => opened,
            None => opener.found(ask!(self, inode, |node| {
                let opened = node.open_at(&[], how, want).await?;
                let attr = attr_of(node, opened.attr).await?;
                Ok((node.clone(), opened, attr))
            }))?,
        };
        let differs = inode.differs(&attr);
        if differs {
            self.teller.attributes_changed(inode);
        }
        inode.learn(&attr);
        let (contents, twin) = if how.changes() { (None, None) } else { self.disk.has(inode, &attr) };
        if let (Some(contents), Some(first)) = (&contents, &opened.first) {
            contents.keep(0, first);
        }
        if reads
            && let Some(file) = File::of(&node, &opened, (asked.1, &self.changes), &self.teller)
            && let Some(shared) = self.share(inode, &file)
        {
            return Ok(shared);
        }
        if differs {
            // What was listed a moment ago is older than what was opened.
            self.changes.file(inode.qid_path);
        }
        let granted = opened.lease;
        if reads && lease > granted.as_ref().map_or(LeaseKind::None, |lease| lease.kind) {
            self.kept.refused();
        }
        if how.truncate {
            self.changed_by(uid, inode, &node).await?;
        }
        let first = opened.first.map(|bytes| First { bytes, writes: asked.0 });
        let handle = self.lasting(inode, Some(&node), opened.handle, how);
        let about = (inode.clone(), attr, handle.clone(), None);
        let open = Open::new(inode.clone(), Some(node), handle, how, &attr, first, None);
        let (mut open, flags) = Open::over_disk(open, (contents, twin), asked.0);
        (open.away, open.hold) = (away, self.hold(about, granted.filter(|_| !open.direct)));
        Ok((self.opens.add(open), flags))
    }

    /// Whether what is written to a file that is opened as `how` may be held until it is closed.
    pub(super) fn holds(&self, how: How) -> bool {
        !self.options.single_writer && Hold::holds(how)
    }

    /// Holds back what is written to an open file, if a `lease` allows it.
    pub(super) fn hold(
        &self, about: (Arc<Inode>, Attr, Handle, Option<NodeRef>), lease: Option<Lease>,
    ) -> Option<Arc<Hold>> {
        let lease = lease.filter(|lease| lease.kind == LeaseKind::Write)?;
        let of_mount = (self.table.clone(), self.changes.clone(), self.held.clone());
        Some(Hold::new(about, &lease, of_mount))
    }

    /// If somebody `changes` the contents of `inode`, keeps what was fetched before away from the kernel meanwhile.
    pub(super) async fn keeps_away(&self, inode: &Arc<Inode>, changes: bool) -> Option<Away> {
        if changes { Some(Away::from(inode).await) } else { None }
    }

    /// `handle`, opened as `how` at `node`, which is `inode`: one that outlives its server's restart.
    pub(super) fn lasting(&self, inode: &Arc<Inode>, node: Option<&NodeRef>, handle: Handle, how: How) -> Handle {
        let place = (inode.clone(), self.table.clone(), self.locks.clone());
        Lasting::over(place, node.cloned(), handle, how)
    }

    /// The file of `inode`, if it was opened before, or ahead, and has not changed since.
    async fn opened_before(&self, inode: &Arc<Inode>) -> Option<Arc<File>> {
        if let Some(kept) = self.kept.get(inode.id) {
            return Some(kept);
        }
        let place = inode.place().filter(|place| self.foresight.knows(place.dir.id))?;
        let (dir, _) = self.table.node(&place.dir).await.ok()?;
        let ahead = self.foresight.open(place.dir.id, &dir, place.name.as_name()).await;
        self.kept.get(inode.id).or_else(|| ahead.filter(|file| inode.is(file.attr.qid)))
    }

    /// One more opening of `file`, which is `inode` and is kept; `None` if it is no longer what the server would show.
    fn share(&self, inode: &Arc<Inode>, file: &Arc<File>) -> Option<(u64, FopenFlags)> {
        // Before the look, so that the bytes are old if they change from here on.
        let writes = inode.writes();
        let _leash = file.leash();
        if !file.is_known_as(inode) {
            return None;
        }
        self.kept.keep(inode.id, file.clone());
        let File { node, attr, handle, first, .. } = &**file;
        if inode.differs(attr) {
            self.teller.attributes_changed(inode);
        }
        inode.learn(attr);
        if node.is_none() {
            inode.is_fetched(file);
        }
        let first = first.clone().map(|bytes| First { bytes, writes });
        let (node, handle) = (node.clone(), self.lasting(inode, node.as_ref(), handle.clone(), How::READ));
        let open = Open::new(inode.clone(), node, handle, How::READ, attr, first, Some(file.clone()));
        let disk = match file.as_fetched() {
            Some(_) => (None, None),
            None => self.disk.has(inode, attr),
        };
        let (open, flags) = Open::over_disk(open, disk, writes);
        Some((self.opens.add(open), flags))
    }

    /// The contents are changed by `uid`, which costs the setuid bit unless that is root. Where the kernel checks the
    /// rights it sees to this itself, but for a truncation at the opening, and for what does not go through its pages.
    async fn changed_by(&self, uid: u32, inode: &Inode, node: &NodeRef) -> Result<(), Errno> {
        if self.options.all_users
            && uid != 0
            && let Some(mode) = inode.mode_once_written()
        {
            inode.learn(&node.set_attr(SetAttr { mode: Some(mode), ..SetAttr::default() }).await?);
        }
        Ok(())
    }

    pub(super) async fn read(self: &Arc<Self>, of: Of, offset: u64, size: u32) -> Result<Bytes, Errno> {
        let open = self.file(of, false).await?;
        self.settle(&open.inode).await;
        match &open.handle {
            Handle::Stream(stream) if !stream.seekable() => {
                let turn = open.reads.turn().await?;
                let data = stream.read(turn.at(), size).await?;
                turn.advance(data.len());
                Ok(data)
            }
            Handle::Stream(stream) if !open.direct => {
                let source = Source { stream, inode: &open.inode, kept: open.kept.as_ref() };
                open.ahead.read(source, &self.read_ahead, offset, size).await
            }
            handle => handle.read(offset, size).await,
        }
    }

    /// Writes `data` for the user `uid`; what is `mapped` is pages that a program changed where it had mapped them.
    pub(super) async fn write(
        self: &Arc<Self>, of: Of, offset: u64, data: Bytes, (uid, mapped): (u32, bool),
    ) -> Result<u32, Errno> {
        let open = self.file(of, true).await?;
        if mapped && open.appends {
            return self.write_in_place(&open, offset, data).await;
        }
        if open.direct {
            self.changed_by(uid, &open.inode, &self.node_of(&open).await?).await?;
        }
        let _changing = self.changing(&open.inode);
        match &open.hold {
            Some(hold) => {
                if hold.take(offset, &data).await? == Taken::Held {
                    open.inode.wrote(offset + data.len() as u64);
                    return Ok(data.len() as u32);
                }
                hold.settled().await?;
            }
            None => self.settle(&open.inode).await,
        }
        open.written.store(true, Ordering::Relaxed);
        if !open.handle.seekable() {
            let turn = open.writes.turn().await?;
            let written = open.handle.write(turn.at(), data).await?;
            turn.advance(written.count as usize);
            return Ok(written.count);
        }
        let (mut done, size) = (0, data.len());
        while done < size {
            let at = offset + done as u64;
            let written = open.handle.write(at, data.slice(done..)).await?;
            let count = written.count as usize;
            open.inode.wrote(written.offset.unwrap_or(at) + count as u64);
            done += count.min(size - done);
            // Pages are written whole, or not at all: the rest meets the reason why it was left.
            if open.direct || count == 0 {
                break;
            }
        }
        if done == 0 && size > 0 { Err(Errno::EIO) } else { Ok(done as u32) }
    }

    /// Writes pages of a file back to their place, through an opening whose writes go to the end.
    async fn write_in_place(&self, open: &Open, offset: u64, data: Bytes) -> Result<u32, Errno> {
        let _changing = self.changing(&open.inode);
        let node = self.node_of(open).await?;
        let place = node.open_at(&[], How::WRITE, Want::default()).await?.handle;
        let (mut done, size) = (0, data.len());
        while done < size {
            let count = place.write(offset + done as u64, data.slice(done..)).await?.count as usize;
            if count == 0 {
                return Err(Errno::EIO);
            }
            done += count.min(size - done);
        }
        place.close().await?;
        Ok(size as u32)
    }

    /// Says to a close(2) what is known to have gone wrong with what was written. It may not be the last, so the file
    /// stays open; and nobody is asked where nothing was written since the one before.
    pub(super) async fn flush(&self, fh: FileHandle) -> Result<(), Errno> {
        let open = self.opens.get(fh.0)?;
        if let Some(hold) = &open.hold {
            hold.flush().await?;
        }
        if open.written.swap(false, Ordering::Relaxed) { open.handle.flush().await } else { Ok(()) }
    }

    /// Closes what the kernel has let go of. Nobody waits for the answer any more, so a failure is only logged. A file
    /// that was only read is closed a little later, with others: closing each would cost as much as opening it. The
    /// closing of a stream may mean something, and begins at once.
    pub(super) async fn release(self: &Arc<Self>, fh: FileHandle) -> Result<(), Errno> {
        let Some(open) = self.opens.remove(fh.0) else { return Err(Errno::EBADF) };
        open.ahead.stop();
        if let Some(hold) = &open.hold
            && let Err(errno) = hold.settled().await
        {
            tracing::warn!(?errno, "what was written to a file that is closed is lost");
        }
        if open.kept.is_some() {
            // Others may have it open, too: it is closed when nobody keeps it any more.
            return Ok(());
        }
        if open.writes_too || open.direct {
            return close(&open).await;
        }
        let mut closing = self.closing.lock();
        closing.push(open);
        if closing.len() == 1 {
            let bridge = self.clone();
            self.runtime.spawn(async move {
                tokio::time::sleep(CLOSE_TOGETHER).await;
                let together = std::mem::take(&mut *bridge.closing.lock());
                join_all(together.iter().map(|open| close(open))).await;
            });
        }
        Ok(())
    }

    pub(super) async fn sync(self: &Arc<Self>, of: Of, data_only: bool) -> Result<(), Errno> {
        let open = self.file(of, false).await?;
        match &open.hold {
            Some(hold) => hold.settled().await?,
            None => {
                self.settle(&open.inode).await;
                if let Some(errno) = open.inode.hold().and_then(|hold| hold.failed()) {
                    return Err(errno);
                }
            }
        }
        open.handle.sync(data_only).await
    }

    pub(super) async fn allocate(self: &Arc<Self>, of: Of, offset: u64, length: u64, mode: i32) -> Result<(), Errno> {
        let open = self.file(of, true).await?;
        self.settle(&open.inode).await;
        let _changing = self.changing(&open.inode);
        open.handle.allocate(mode as u32, offset, length).await
    }

    /// `SEEK_DATA` and `SEEK_HOLE`; a file that cannot tell is all data.
    pub(super) async fn seek(self: &Arc<Self>, of: Of, offset: i64, whence: i32) -> Result<i64, Errno> {
        let open = self.file(of, false).await?;
        let at = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        let hole = match whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return Err(Errno::EINVAL),
        };
        self.settle(&open.inode).await;
        if let Handle::Stream(stream) = &open.handle {
            match stream.seek(at, hole).await {
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {}
                answer => return answer.map(|at| at as i64),
            }
        }
        let size = ask!(self, &open.inode, |node| node.attr().await)?.size;
        if at >= size {
            return Err(Errno::ENXIO);
        }
        Ok(if hole { size as i64 } else { offset })
    }

    pub(super) async fn copy(self: &Arc<Self>, from: (Of, u64), to: (Of, u64), length: u64) -> Result<u32, Errno> {
        let (source, target) = (self.file(from.0, false).await?, self.file(to.0, true).await?);
        // The answer has 32 bits; a program goes on with the rest.
        let length = length.min(1 << 30);
        self.settle(&source.inode).await;
        self.settle(&target.inode).await;
        let _changing = self.changing(&target.inode);
        let copied = source.handle.copy(from.1, &target.handle, to.1, length).await;
        // Upon either of these the kernel copies by reading and writing.
        let copied = copied.map_err(|errno| if errno == Errno::ENOSYS { Errno::EOPNOTSUPP } else { errno })?;
        target.inode.wrote(to.1 + copied);
        Ok(copied as u32)
    }

    /// Which of `events` are so now. If none is, `notify` is called once one may be.
    pub(super) fn poll(
        self: &Arc<Self>, fh: FileHandle, events: u32, notify: Option<impl FnOnce() + Send + 'static>,
    ) -> Result<u32, Errno> {
        let open = self.opens.get(fh.0)?;
        let Handle::Stream(stream) = open.handle.clone() else { return Ok(events) };
        let mut wait: super::Work<u32> = Box::pin(async move { stream.poll(events).await });
        let now = wait.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        if let std::task::Poll::Ready(answer) = now {
            return answer;
        }
        if let Some(notify) = notify {
            // The latest poll is the one that waits. A poller that went away is forgotten in the end.
            let task = self.runtime.spawn(async move {
                _ = tokio::time::timeout(POLL_LIMIT, wait).await;
                notify();
            });
            open.poll_waits(Some(task.abort_handle()));
        }
        Ok(0)
    }
}

async fn close(open: &Open) -> Result<(), Errno> {
    let answer = open.handle.close().await;
    if let Err(errno) = answer {
        tracing::warn!(?errno, "closing a file failed");
    }
    answer
}

/// How long files that were read wait for others to be closed with.
const CLOSE_TOGETHER: Duration = Duration::from_millis(10);
/// How long a poll waits for a stream before the poller is woken to ask again.
const POLL_LIMIT: Duration = Duration::from_secs(600);
