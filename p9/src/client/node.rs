//! A file of the server's.
//!
//! A node is a fid that is never opened: opening and creating work on a clone of it. Where fids are ordered, the clone
//! and what is done to it go out together.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;

use super::call::Calls;
use super::data_of;
use super::dir::{First, RemoteDir};
use super::fid::Fid;
use super::lease::Asked;
use super::open::RemoteFile;
use super::walk::Walked;
use crate::tree::{Lease, LeaseKind, Lock, OnBreak, fetch_in_steps};
use crate::wire::{IO_HEADER, R, STATS_ALL, T};
use crate::{
    Attr, Created, Errno, FileKind, Handle, How, Name, New, Node, NodeRef, Opened, Qid, Reply, SetAttr, StatFs, Walk,
    Want,
};

/// A file of the server's.
pub(super) struct Remote {
    pub(super) fid: Arc<Fid>,
    pub(super) qid: Qid,
}

/// A message, and the data that follows it.
pub(super) type Message<'a> = (T<'a>, Bytes);

pub(super) fn plain(message: T<'_>) -> Message<'_> {
    (message, Bytes::new())
}

impl Remote {
    pub(super) fn node(fid: Arc<Fid>, qid: Qid) -> NodeRef {
        Arc::new(Self { fid, qid })
    }

    fn of<'a>(&self, node: &'a NodeRef) -> Result<&'a Self, Errno> {
        let node: &dyn Any = &**node;
        let other = node.downcast_ref::<Self>().ok_or(Errno::EXDEV)?;
        if Arc::ptr_eq(&self.fid.link, &other.fid.link) { Ok(other) } else { Err(Errno::EXDEV) }
    }

    /// All in one go: the walk, the lease, the open, the attributes, the first bytes.
    async fn open_ordered(&self, names: &[Name<'_>], how: How, want: Want) -> Result<Opened, Errno> {
        let to = self.fid.link.fid()?;
        let (fid, brings, changes) = (to.number(), want.data > 0 && how.read, self.fid.link.changes());
        let (mut more, open) = (Vec::with_capacity(4), plain(T::Lopen { fid, flags: how.to_wire(false) }));
        // First, so that what comes along may be kept under it; but only who has it open may hold changes back.
        let later = want.lease == LeaseKind::Write;
        let asked = match (want.lease > LeaseKind::None).then(|| Asked::new(&to, want.lease)) {
            Some((asked, lease)) => {
                more.extend(if later { [open, lease] } else { [lease, open] });
                Some(asked)
            }
            None => {
                more.push(open);
                None
            }
        };
        if want.attr {
            more.push(plain(T::Getattr { fid, mask: STATS_ALL }));
        }
        if brings {
            let count = want.data.min(self.fid.link.msize - IO_HEADER);
            more.push(plain(match how.directory {
                true => T::Readdirplus { fid, offset: 0, count },
                false => T::Read { fid, offset: 0, count },
            }));
        }
        let Walked { qids, calls, .. } = self.walk_and(names, &to, &more).await?;
        let mut calls = calls.ok_or(Errno::EPROTO)?;
        let opened_first = if later { Some(calls.next().await?) } else { None };
        let lease = match asked {
            Some(asked) => match asked.watched(calls.next().await) {
                Err(Errno::EINTR) => return Err(Errno::EINTR),
                // What the walk was poisoned with, which the open meets, too.
                answer => answer.ok().flatten(),
            },
            None => None,
        };
        let (lease, watch) = lease.map_or((None, None), |(lease, watch)| (Some(lease), watch));
        let opened = match opened_first {
            Some(opened) => opened,
            None => calls.next().await?,
        };
        let qid = match opened.message() {
            Ok(message) => message.qid().ok_or(Errno::EPROTO)?,
            Err(errno) => {
                calls.rest().await;
                return Err(errno);
            }
        };
        let attr = if want.attr { Some(take_attr(&mut calls).await?) } else { None };
        let first = if brings { take_data(&mut calls).await.ok() } else { None };
        let node = match (names.is_empty(), qids.last()) {
            (true, _) => None,
            // The fid that was opened can be walked and asked like any other.
            (false, Some(walked)) => Some(Self::node(to.clone(), Qid { version: qid.version, ..*walked })),
            (false, None) => return Err(Errno::EPROTO),
        };
        if qid.kind == FileKind::Dir {
            let first = first.map(|entries| First { entries, changes, watch });
            let handle = Handle::Dir(RemoteDir::new(to, first));
            return Ok(Opened { node, attr, handle, first: None, lease });
        }
        Ok(Opened { node, attr, handle: handle(to, qid, how), first, lease })
    }

    /// The same for a server that may do in any order what is sent together.
    async fn open_plain(&self, names: &[Name<'_>], how: How, want: Want) -> Result<Opened, Errno> {
        if !names.is_empty() {
            let node = self.walk_now(names, Want::default()).await?.reached()?.node;
            let opened = node.open_at(&[], how, want).await?;
            return Ok(Opened { node: Some(node), ..opened });
        }
        let to = self.fid.link.fid()?;
        let fid = to.number();
        self.walk_and(&[], &to, &[]).await?;
        let opened = self.fid.link.call(T::Lopen { fid, flags: how.to_wire(false) }).await?;
        let qid = opened.message()?.qid().ok_or(Errno::EPROTO)?;
        let getattr = plain(T::Getattr { fid, mask: STATS_ALL });
        let attr = if want.attr { Some(take_attr(&mut self.fid.link.calls(&[getattr]).await?).await?) } else { None };
        Ok(Opened { node: None, attr, handle: handle(to, qid, how), first: None, lease: None })
    }

    async fn open_now(&self, names: &[Name<'_>], how: How, want: Want) -> Result<Opened, Errno> {
        match self.fid.link.ordered {
            true => self.open_ordered(names, how, want).await,
            false => self.open_plain(names, how, want).await,
        }
    }

    async fn set_now(&self, change: SetAttr) -> Result<Attr, Errno> {
        // No owner has this number: a plain server may take it for no change.
        if [change.uid, change.gid].contains(&Some(u32::MAX)) {
            return Err(Errno::EINVAL);
        }
        let (fid, link) = (self.fid.number(), &self.fid.link);
        let set = plain(T::of_set_attr(fid, &change));
        let get = plain(T::Getattr { fid, mask: STATS_ALL });
        if link.ordered {
            let mut calls = link.calls(&[set, get]).await?;
            calls.next().await?.message()?;
            return take_attr(&mut calls).await;
        }
        // A new owner costs the setuid and setgid bits: at a server that sets the mode first, too.
        if change.mode.is_some() && (change.uid.is_some() || change.gid.is_some()) {
            self.done(T::of_set_attr(fid, &SetAttr { mode: None, ..change })).await?;
            self.done(T::of_set_attr(fid, &SetAttr { mode: change.mode, ..SetAttr::default() })).await?;
        } else {
            self.done(set.0).await?;
        }
        take_attr(&mut link.calls(&[get]).await?).await
    }

    /// An answer about this very file. A plain server may know a fid by its path, as diod does, and no more once the
    /// file was moved: whoever knows the place is told to walk there again.
    fn own<T>(&self, answer: Result<T, Errno>) -> Result<T, Errno> {
        match answer {
            Err(Errno::ENOENT) if !self.fid.link.ordered => Err(Errno::ESTALE),
            answer => answer,
        }
    }

    /// Whether there is no such name in this directory, or the directory itself is not found: see [`Self::own`].
    async fn nothing_there<T>(&self, answer: Result<T, Errno>) -> Result<T, Errno> {
        if !self.fid.link.ordered && matches!(answer, Err(Errno::ENOENT)) {
            self.attr().await?;
        }
        answer
    }

    /// One message of which only the success matters.
    pub(super) async fn done(&self, message: T<'_>) -> Result<(), Errno> {
        self.fid.link.call(message).await?.message().map(|_| ())
    }
}

/// What was opened as `fid`.
pub(super) fn handle(fid: Arc<Fid>, qid: Qid, how: How) -> Handle {
    match qid.kind {
        FileKind::Dir => Handle::Dir(RemoteDir::new(fid, None)),
        _ => {
            // Without a version the contents do not stay: see `Qid`. A plain server may give none to any file.
            let seekable = qid.version != 0 || !fid.link.ordered;
            Handle::Stream(Arc::new(RemoteFile::new(fid, seekable, how)))
        }
    }
}

/// The attributes of a getattr.
pub(super) async fn take_attr(calls: &mut Calls) -> Result<Attr, Errno> {
    calls.next().await?.message()?.to_attr().ok_or(Errno::EPROTO)
}

/// The data of a read.
pub(super) async fn take_data(calls: &mut Calls) -> Result<Bytes, Errno> {
    let answer = calls.next().await?;
    match answer.message()? {
        R::Read { data } | R::Readdir { data } | R::Readdirplus { data } => Ok(data_of(answer.frame(), data)),
        _ => Err(Errno::EPROTO),
    }
}

impl Node for Remote {
    fn qid(&self) -> Qid {
        self.qid
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        Reply::later(async move { self.nothing_there(self.walk_now(names, want).await).await })
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        Reply::later(async move {
            let opened = self.open_now(names, how, want).await;
            if names.is_empty() { self.own(opened) } else { self.nothing_there(opened).await }
        })
    }

    fn fetch<'a>(&'a self, name: Name<'a>, count: u32) -> Reply<'a, (Qid, Bytes)> {
        if !self.fid.link.ordered {
            return fetch_in_steps(self, name, count);
        }
        let fetch = T::Fetch { fid: self.fid.number(), name, count: count.min(self.fid.link.msize - IO_HEADER - 13) };
        Reply::later(async move {
            let answer = self.fid.link.call(fetch).await?;
            match answer.message() {
                Ok(R::Fetch { qid, data }) => Ok((qid, data_of(answer.frame(), data))),
                Ok(_) => Err(Errno::EPROTO),
                // An older server.
                Err(Errno::EOPNOTSUPP) => fetch_in_steps(self, name, count).await,
                Err(errno) => Err(errno),
            }
        })
    }

    fn attr(&self) -> Reply<'_, Attr> {
        let get = T::Getattr { fid: self.fid.number(), mask: STATS_ALL };
        Reply::later(async move { self.own(self.fid.link.call(get).await?.message())?.to_attr().ok_or(Errno::EPROTO) })
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        Reply::later(async move { Ok(self.own(self.open_now(&[], how, Want::default()).await)?.handle) })
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        Reply::later(async move { self.nothing_there(self.create_now(name, what, false).await).await })
    }

    fn create_leased<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        Reply::later(async move { self.nothing_there(self.create_now(name, what, true).await).await })
    }

    fn set_attr(&self, change: SetAttr) -> Reply<'_, Attr> {
        Reply::later(async move { self.own(self.set_now(change).await) })
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        Reply::later(async move { self.nothing_there(self.remove_now(name, dir).await).await })
    }

    fn rename<'a>(&'a self, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32) -> Reply<'a, ()> {
        // .L has no flags; the kernel answers EINVAL for those that a file system does not know.
        if flags != 0 && !self.fid.link.ordered {
            return Errno::EINVAL.into();
        }
        Reply::later(async move {
            let to = self.of(new_dir)?;
            if flags == 0 {
                let renamed = self.rename_now(name, to, new_name).await;
                return self.nothing_there(renamed).await;
            }
            let (olddirfid, newdirfid) = (self.fid.number(), to.fid.number());
            self.done(T::Rename2 { olddirfid, oldname: name, newdirfid, newname: new_name, flags }).await
        })
    }

    fn link<'a>(&'a self, target: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        Reply::later(async move {
            let fid = self.of(target)?.fid.number();
            self.done(T::Link { dfid: self.fid.number(), fid, name }).await
        })
    }

    fn read_link(&self) -> Reply<'_, Bytes> {
        Reply::later(async move {
            let answer = self.fid.link.call(T::Readlink { fid: self.fid.number() }).await?;
            match self.own(answer.message())? {
                R::Readlink { target } => Ok(answer.frame().slice_ref(target.0)),
                _ => Err(Errno::EPROTO),
            }
        })
    }

    fn lease(&self, want: LeaseKind, on_break: OnBreak) -> Reply<'_, Option<Lease>> {
        self.lease_soon(want, on_break)
    }

    fn stat_fs(&self) -> Reply<'_, StatFs> {
        let stat = T::Statfs { fid: self.fid.number() };
        Reply::later(async move { self.fid.link.call(stat).await?.message()?.to_stat_fs().ok_or(Errno::EPROTO) })
    }

    fn xattr<'a>(&'a self, name: &'a [u8]) -> Reply<'a, Bytes> {
        // No name asks for the list.
        if name.is_empty() { Errno::ERANGE.into() } else { Reply::later(self.read_xattr(name)) }
    }

    fn xattrs(&self) -> Reply<'_, Bytes> {
        Reply::later(self.read_xattr(b""))
    }

    fn set_xattr<'a>(&'a self, name: &'a [u8], value: Option<Bytes>, flags: u32) -> Reply<'a, ()> {
        Reply::later(self.write_xattr(name, value, flags))
    }

    fn lock(&self, lock: Lock, wait: bool) -> Reply<'_, ()> {
        Reply::later(self.lock_now(lock, wait))
    }

    fn conflicting_lock(&self, lock: Lock) -> Reply<'_, Option<Lock>> {
        Reply::later(self.conflict_now(lock))
    }

    fn sync(&self) -> Reply<'_, ()> {
        Reply::later(async move {
            match self.done(T::Fsync { fid: self.fid.number(), datasync: 0 }).await {
                // A plain server syncs open fids only.
                Err(Errno::EBADF) => Ok(()),
                done => done,
            }
        })
    }
}
