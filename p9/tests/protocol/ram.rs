//! A tree in memory that does all that a file system does, for tests of the protocol.
//!
//! Qid paths count up from 1, the root's, in the order of creation; times stand still; so a conversation is the same
//! each time. Three files behave as only synthetic files do: [`Ram::pipe`], [`Ram::stubborn`], [`Ram::bad_close`]; and
//! [`Ram::other`] plays another client.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::{Bytes, BytesMut};
use p9::cancel;
use p9::locks::Ranges;
use p9::tree::{Guard, Lease, LeaseKind, Lock, OnBreak};
use p9::{
    Attr, Created, Digest, Dir, DirSink, Entry, Errno, FileKind, Handle, How, Name, NameBuf, New, Node, NodeRef, Qid,
    Reply, SetAttr, SetTime, Stream, Time, Tree, Walk, Want, What, Who, Written,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// A file in memory.
#[derive(Clone)]
pub(crate) struct Ram(Arc<Inode>);

struct Inode {
    attr: Mutex<Attr>,
    body: Body,
    xattrs: Mutex<BTreeMap<Vec<u8>, Bytes>>,
    locks: Mutex<Ranges<u64>>,
    unlocked: Notify,
    /// The next qid path of this tree.
    next: Arc<AtomicU64>,
    reads: AtomicUsize,
    leases: Mutex<Vec<(Weak<Leased>, OnBreak)>>,
}

/// A lease that was granted, whatever was asked for.
struct Leased;

impl Guard for Leased {
    fn keep(&self, _kind: LeaseKind) {}
}

enum Body {
    File(Mutex<BytesMut>),
    Dir(Mutex<Entries>),
    Link(Bytes),
    Pipe(Pipe),
    Stubborn(Pipe),
    BadClose,
    /// Breaks the leases of this file.
    Other(Ram),
    /// A device, FIFO or socket: never opened.
    Special,
}

#[derive(Default)]
struct Entries {
    /// Each with its cookie, which only ever counts up.
    named: BTreeMap<NameBuf, (u64, Ram)>,
    last: u64,
}

#[derive(Default)]
struct Pipe {
    data: Mutex<BytesMut>,
    changed: Notify,
}

impl Ram {
    /// An empty tree.
    pub(crate) fn root() -> Self {
        Self::make(&Arc::new(AtomicU64::new(1)), Body::Dir(Mutex::default()), 0o755)
    }

    /// A new file with these contents.
    pub(crate) fn file(&self, name: &str, contents: &str) -> Self {
        self.add(name, Body::File(Mutex::new(contents.as_bytes().into())), 0o644)
    }

    /// A new directory.
    pub(crate) fn dir(&self, name: &str) -> Self {
        self.add(name, Body::Dir(Mutex::default()), 0o755)
    }

    /// A file that gives back what is written to it, once, and whose reads wait for that.
    pub(crate) fn pipe(&self, name: &str) -> Self {
        self.add(name, Body::Pipe(Pipe::default()), 0o666)
    }

    /// A file whose writes take until [`Ram::release`], even when they are cancelled.
    pub(crate) fn stubborn(&self, name: &str) -> Self {
        self.add(name, Body::Stubborn(Pipe::default()), 0o666)
    }

    /// A link to `target`.
    pub(crate) fn link(&self, name: &str, target: &str) -> Self {
        self.add(name, Body::Link(Bytes::copy_from_slice(target.as_bytes())), 0o777)
    }

    /// A file that is well until it is closed, or given another length.
    pub(crate) fn bad_close(&self, name: &str) -> Self {
        self.add(name, Body::BadClose, 0o444)
    }

    /// A file that breaks the leases of `of` when it is written: what others may keep is the digit that is written.
    pub(crate) fn other(&self, name: &str, of: &Self) -> Self {
        self.add(name, Body::Other(of.clone()), 0o222)
    }

    /// Asks for all leases of this file back, but for `keep`.
    pub(crate) fn break_leases(&self, keep: LeaseKind) {
        self.0.leases.lock().retain(|(guard, _)| guard.strong_count() > 0);
        let held: Vec<OnBreak> = self.0.leases.lock().iter().map(|(_, on_break)| on_break.clone()).collect();
        held.into_iter().for_each(|on_break| on_break(keep));
    }

    /// How many leases of this file are held.
    pub(crate) fn leases(&self) -> usize {
        self.0.leases.lock().iter().filter(|(guard, _)| guard.strong_count() > 0).count()
    }

    /// Lets the writes of a stubborn file end.
    pub(crate) fn release(&self) {
        if let Body::Stubborn(pipe) = &self.0.body {
            pipe.changed.notify_waiters();
        }
    }

    /// What was written to a file.
    pub(crate) fn contents(&self) -> Bytes {
        match &self.0.body {
            Body::File(text) => text.lock().clone().freeze(),
            Body::Pipe(pipe) | Body::Stubborn(pipe) => pipe.data.lock().clone().freeze(),
            _ => Bytes::new(),
        }
    }

    /// How often it was read.
    pub(crate) fn reads(&self) -> usize {
        self.0.reads.load(Ordering::Relaxed)
    }

    /// How many hold this file: its directory, every fid, every open file.
    pub(crate) fn holders(&self) -> impl Fn() -> usize + use<> {
        let weak: Weak<Inode> = Arc::downgrade(&self.0);
        move || weak.strong_count()
    }

    fn make(next: &Arc<AtomicU64>, body: Body, permissions: u32) -> Self {
        let kind = match &body {
            Body::Dir(_) => FileKind::Dir,
            Body::Link(_) => FileKind::Link,
            _ => FileKind::File,
        };
        let qid = Qid { kind, version: 0, path: next.fetch_add(1, Ordering::Relaxed) };
        let now = Time { sec: 1_000_000_000, nsec: 5 };
        let attr = Attr { uid: 1, gid: 2, atime: now, mtime: now, ctime: now, ..Attr::synthetic(qid, permissions) };
        let (attr, xattrs, reads) = (Mutex::new(attr), Mutex::default(), AtomicUsize::new(0));
        let (locks, unlocked, leases) = (Mutex::default(), Notify::new(), Mutex::default());
        Self(Arc::new(Inode { attr, body, xattrs, locks, unlocked, next: next.clone(), reads, leases }))
    }

    fn add(&self, name: &str, body: Body, permissions: u32) -> Self {
        let made = Self::make(&self.0.next, body, permissions);
        self.entries().unwrap().put(NameBuf::new(name).unwrap(), made.clone());
        made
    }

    fn entries(&self) -> Result<parking_lot::MutexGuard<'_, Entries>, Errno> {
        match &self.0.body {
            Body::Dir(entries) => Ok(entries.lock()),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn lookup(&self, name: Name<'_>) -> Result<Self, Errno> {
        self.entries()?.named.get(name.as_bytes()).map(|(_, ram)| ram.clone()).ok_or(Errno::ENOENT)
    }

    fn attributes(&self) -> Attr {
        let size = match &self.0.body {
            Body::File(text) => text.lock().len(),
            Body::Link(target) => target.len(),
            _ => 0,
        };
        Attr { size: size as u64, ..*self.0.attr.lock() }
    }

    fn opened(&self, how: How) -> Result<Handle, Errno> {
        match &self.0.body {
            Body::Dir(_) if how.changes() => Err(Errno::EISDIR),
            Body::Dir(_) => Ok(Handle::Dir(Arc::new(Open(self.clone(), how)))),
            Body::Link(_) => Err(Errno::ELOOP),
            Body::Special => Err(Errno::ENXIO),
            _ if how.directory => Err(Errno::ENOTDIR),
            Body::File(text) => {
                if how.truncate {
                    text.lock().clear();
                }
                Ok(Handle::Stream(Arc::new(Open(self.clone(), how))))
            }
            _ => Ok(Handle::Stream(Arc::new(Open(self.clone(), how)))),
        }
    }

    fn created(&self, name: Name<'_>, new: New<'_>) -> Result<Created, Errno> {
        let there = self.lookup(name);
        let made = match (new.what, there) {
            (What::File(how), Ok(there)) if !how.excl => there,
            (_, Ok(_)) => return Err(Errno::EEXIST),
            (_, Err(Errno::ENOENT)) => {
                let body = match new.what {
                    What::File(_) => Body::File(Mutex::default()),
                    What::Dir => Body::Dir(Mutex::default()),
                    What::Link(target) => Body::Link(Bytes::copy_from_slice(target)),
                    What::Device { .. } => Body::Special,
                };
                let made = Self::make(&self.0.next, body, new.mode);
                {
                    let mut attr = made.0.attr.lock();
                    if let What::Device { kind, rdev } = new.what {
                        (attr.mode, attr.rdev) = (kind | new.mode, rdev);
                    }
                    attr.gid = new.owner.map_or(attr.gid, |(_, gid)| gid);
                }
                self.entries()?.put(name.into(), made.clone());
                made
            }
            (_, Err(errno)) => return Err(errno),
        };
        let handle = match new.what {
            What::File(how) => Some(made.opened(how)?),
            _ => None,
        };
        Ok(Created { attr: Some(made.attributes()), node: Arc::new(made), handle, lease: None })
    }

    fn walked(&self, names: &[Name<'_>], want: Want) -> Result<Walk, Errno> {
        let (mut at, mut qids) = (self.clone(), Vec::new());
        for name in names {
            match at.lookup(*name) {
                Ok(next) => at = next,
                Err(errno) if qids.is_empty() => return Err(errno),
                Err(errno) => return Ok(Walk { qids, end: Err(errno) }),
            }
            qids.push(at.qid());
        }
        let attr = want.attr.then(|| at.attributes());
        Ok(Walk { qids, end: Ok(p9::Reached { node: Arc::new(at), attr, lease: None }) })
    }

    fn renamed(&self, name: Name<'_>, new_dir: &NodeRef, new_name: Name<'_>, flags: u32) -> Result<(), Errno> {
        let new_dir = Self::own(new_dir)?;
        let moved = self.lookup(name)?;
        match (flags, new_dir.lookup(new_name)) {
            (0, _) | (libc::RENAME_NOREPLACE, Err(Errno::ENOENT)) => {}
            (libc::RENAME_NOREPLACE, _) => return Err(Errno::EEXIST),
            (libc::RENAME_EXCHANGE, there) => {
                let there = there?;
                new_dir.entries()?.put(new_name.into(), moved);
                self.entries()?.put(name.into(), there);
                return Ok(());
            }
            _ => return Err(Errno::EINVAL),
        }
        new_dir.entries()?.put(new_name.into(), moved);
        self.entries()?.named.remove(name.as_bytes());
        Ok(())
    }

    fn own(node: &NodeRef) -> Result<&Self, Errno> {
        let node: &dyn Any = &**node;
        node.downcast_ref().ok_or(Errno::EXDEV)
    }
}

impl Entries {
    fn put(&mut self, name: NameBuf, ram: Ram) {
        self.last += 1;
        self.named.insert(name, (self.last, ram));
    }
}

impl Tree for Ram {
    fn attach<'a>(&'a self, _who: &'a Who, aname: &'a [u8]) -> Reply<'a, NodeRef> {
        let names = match Name::split(aname) {
            Ok(names) if names.is_empty() => return Reply::ok(Arc::new(self.clone())),
            Ok(names) => names,
            Err(errno) => return errno.into(),
        };
        self.walked(&names, Want::default()).and_then(Walk::reached).map(|reached| reached.node).into()
    }
}

impl Node for Ram {
    fn qid(&self) -> Qid {
        self.0.attr.lock().qid
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        self.walked(names, want).into()
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(self.attributes())
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        self.opened(how).into()
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        self.created(name, what).into()
    }

    fn set_attr(&self, change: SetAttr) -> Reply<'_, Attr> {
        if change.size.is_some() && matches!(self.0.body, Body::BadClose) {
            return Errno::EDQUOT.into();
        }
        {
            let mut attr = self.0.attr.lock();
            let when = |set: SetTime| match set {
                SetTime::Now => Time { sec: 2_000_000_000, nsec: 0 },
                SetTime::At(time) => time,
            };
            attr.mode = change.mode.map_or(attr.mode, |mode| attr.mode & libc::S_IFMT | mode);
            attr.uid = change.uid.unwrap_or(attr.uid);
            attr.gid = change.gid.unwrap_or(attr.gid);
            attr.atime = change.atime.map_or(attr.atime, when);
            attr.mtime = change.mtime.map_or(attr.mtime, when);
        }
        if let (Some(size), Body::File(text)) = (change.size, &self.0.body) {
            text.lock().resize(size as usize, 0);
        }
        Reply::ok(self.attributes())
    }

    fn lease(&self, want: LeaseKind, on_break: OnBreak) -> Reply<'_, Option<Lease>> {
        if let Body::Link(_) = self.0.body {
            return Reply::ok(None);
        }
        let guard = Arc::new(Leased);
        self.0.leases.lock().push((Arc::downgrade(&guard), on_break));
        Reply::ok(Some(Lease { kind: want, guard }))
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        let gone = self.lookup(name).and_then(|gone| match (dir, gone.entries()) {
            (true, Ok(entries)) if !entries.named.is_empty() => Err(Errno::ENOTEMPTY),
            (true, Err(errno)) => Err(errno),
            (false, Ok(_)) => Err(Errno::EISDIR),
            _ => Ok(()),
        });
        gone.and_then(|()| self.entries().map(|mut entries| drop(entries.named.remove(name.as_bytes())))).into()
    }

    fn rename<'a>(&'a self, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32) -> Reply<'a, ()> {
        self.renamed(name, new_dir, new_name, flags).into()
    }

    fn link<'a>(&'a self, target: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        Self::own(target).and_then(|target| self.entries().map(|mut e| e.put(name.into(), target.clone()))).into()
    }

    fn lock(&self, lock: Lock, wait: bool) -> Reply<'_, ()> {
        Reply::later(async move {
            loop {
                let mut unlocked = std::pin::pin!(self.0.unlocked.notified());
                unlocked.as_mut().enable();
                {
                    let mut locks = self.0.locks.lock();
                    if locks.conflict(&lock.owner, &lock, |owner| *owner)?.is_none() {
                        if locks.set(&lock.owner, &lock, 4)? {
                            self.0.unlocked.notify_waiters();
                        }
                        return Ok(());
                    }
                }
                if !wait {
                    return Err(Errno::EAGAIN);
                }
                unlocked.await;
            }
        })
    }

    fn conflicting_lock(&self, lock: Lock) -> Reply<'_, Option<Lock>> {
        self.0.locks.lock().conflict(&lock.owner, &lock, |owner| *owner).into()
    }

    fn xattr<'a>(&'a self, name: &'a [u8]) -> Reply<'a, Bytes> {
        self.0.xattrs.lock().get(name).cloned().ok_or(Errno::ENODATA).into()
    }

    fn xattrs(&self) -> Reply<'_, Bytes> {
        let names: Vec<u8> = self.0.xattrs.lock().keys().flat_map(|name| [name, &b"\0"[..]].concat()).collect();
        Reply::ok(names.into())
    }

    fn set_xattr<'a>(&'a self, name: &'a [u8], value: Option<Bytes>, flags: u32) -> Reply<'a, ()> {
        let mut xattrs = self.0.xattrs.lock();
        let (there, flags) = (xattrs.contains_key(name), flags as i32);
        match value {
            _ if there && flags & libc::XATTR_CREATE != 0 => return Errno::EEXIST.into(),
            Some(_) if !there && flags & libc::XATTR_REPLACE != 0 => return Errno::ENODATA.into(),
            None if !there => return Errno::ENODATA.into(),
            Some(value) => xattrs.insert(name.to_vec(), value),
            None => xattrs.remove(name),
        };
        Reply::ok(())
    }

    fn read_link(&self) -> Reply<'_, Bytes> {
        match &self.0.body {
            Body::Link(target) => Reply::ok(target.clone()),
            _ => Errno::EINVAL.into(),
        }
    }
}

struct Open(Ram, How);

impl Stream for Open {
    fn seekable(&self) -> bool {
        matches!(self.0.0.body, Body::File(_))
    }

    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        if !self.1.read {
            return Errno::EBADF.into();
        }
        self.0.0.reads.fetch_add(1, Ordering::Relaxed);
        match &self.0.0.body {
            Body::File(text) => {
                let text = text.lock();
                let start = text.len().min(offset as usize);
                let end = text.len().min(start + count as usize);
                Reply::ok(Bytes::copy_from_slice(&text[start..end]))
            }
            Body::Pipe(pipe) => Reply::later(pipe.read(count)),
            _ => Reply::ok(Bytes::new()),
        }
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        if !self.1.write {
            return Errno::EBADF.into();
        }
        let written = Written::count(data.len());
        match &self.0.0.body {
            Body::File(text) => {
                let mut text = text.lock();
                let start = if self.1.append { text.len() } else { offset as usize };
                let end = text.len().max(start + data.len());
                text.resize(end, 0);
                text[start..start + data.len()].copy_from_slice(&data);
                Reply::ok(Written { offset: self.1.append.then_some(start as u64), ..written })
            }
            Body::Other(of) => {
                let keep = data.first().and_then(|digit| LeaseKind::from_wire(digit.wrapping_sub(b'0')));
                of.break_leases(keep.unwrap_or_default());
                Reply::ok(written)
            }
            Body::Pipe(pipe) => {
                pipe.data.lock().extend_from_slice(&data);
                pipe.changed.notify_waiters();
                Reply::ok(written)
            }
            Body::Stubborn(pipe) => Reply::later(async move {
                let _hold = cancel::hold();
                pipe.changed.notified().await;
                pipe.data.lock().extend_from_slice(&data);
                Ok(written)
            }),
            _ => Errno::EIO.into(),
        }
    }

    fn flush(&self) -> Reply<'_, ()> {
        self.close()
    }

    fn allocate(&self, mode: u32, offset: u64, length: u64) -> Reply<'_, ()> {
        match &self.0.0.body {
            Body::File(text) if mode == 0 && self.1.write => {
                let mut text = text.lock();
                let end = text.len().max((offset + length) as usize);
                text.resize(end, 0);
                Reply::ok(())
            }
            Body::File(_) if mode == 0 => Errno::EBADF.into(),
            _ => Errno::EOPNOTSUPP.into(),
        }
    }

    /// A run of eight zeros or more is a hole.
    fn seek(&self, offset: u64, hole: bool) -> Reply<'_, u64> {
        let Body::File(text) = &self.0.0.body else { return Errno::EOPNOTSUPP.into() };
        let text = text.lock();
        let at = |i: usize| text.len() - i >= 8 && text[i..i + 8].iter().all(|byte| *byte == 0);
        let found = (offset as usize..text.len()).find(|i| at(*i) == hole);
        match found.or((hole && offset < text.len() as u64).then_some(text.len())) {
            Some(found) => Reply::ok(found as u64),
            None => Errno::ENXIO.into(),
        }
    }

    fn digest(&self, offset: u64, count: u64) -> Reply<'_, Digest> {
        match &self.0.0.body {
            Body::File(_) if !self.1.read => Errno::EBADF.into(),
            Body::File(text) => Reply::ok(Digest::of(&text.lock(), offset, count)),
            _ => Errno::EOPNOTSUPP.into(),
        }
    }

    fn copy<'a>(&'a self, offset: u64, to: &'a Handle, to_offset: u64, length: u64) -> Reply<'a, u64> {
        Reply::later(async move {
            let data = self.read(offset, length.min(1 << 20) as u32).await?;
            let count = to.write(to_offset, data).await?.count;
            Ok(count.into())
        })
    }

    fn close(&self) -> Reply<'_, ()> {
        if matches!(self.0.0.body, Body::BadClose) { Errno::EDQUOT.into() } else { Reply::ok(()) }
    }
}

impl Pipe {
    async fn read(&self, count: u32) -> Result<Bytes, Errno> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut data = self.data.lock();
                if !data.is_empty() {
                    let count = data.len().min(count as usize);
                    return Ok(data.split_to(count).freeze());
                }
            }
            changed.await;
        }
    }
}

impl Dir for Open {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        let mut all: Vec<(u64, NameBuf, Ram)> = match self.0.entries() {
            Ok(entries) => entries.named.iter().map(|(name, (at, ram))| (*at, name.clone(), ram.clone())).collect(),
            Err(errno) => return errno.into(),
        };
        all.sort_by_key(|(at, ..)| *at);
        for (at, name, ram) in all.iter().filter(|(at, ..)| *at > cookie) {
            let attr = ram.attributes();
            let (qid, kind) = (attr.qid, attr.qid.kind.mode_bits());
            // Of a pipe nothing is said here.
            let told = (!matches!(ram.0.body, Body::Pipe(_))).then_some(&attr);
            let entry = Entry { cookie: *at, qid, kind, attr: told, name: name.as_name() };
            if let ControlFlow::Break(()) = each(entry) {
                break;
            }
        }
        Reply::ok(())
    }
}
