//! A file of the server's.
//!
//! A node is a fid that is never opened: opening and creating work on a clone of it. Where fids are ordered, the clone
//! and what is done to it go out together.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;

use super::call::Calls;
use super::data_of;
use super::fid::Fid;
use super::open::{RemoteDir, RemoteFile};
use crate::wire::{R, Step, Steps, T};
use crate::{
    Attr, Created, Errno, FileKind, Handle, How, Name, New, Node, NodeRef, Opened, Qid, Reached, Reply, SetAttr,
    StatFs, Walk, Want, What,
};

/// A file of the server's.
pub(super) struct Remote {
    fid: Arc<Fid>,
    qid: Qid,
}

type Message<'a> = (T<'a>, Bytes);

fn plain(message: T<'_>) -> Message<'_> {
    (message, Bytes::new())
}

/// The steps of a walk, encoded in as many pieces as the protocol wants; one empty piece for a clone.
struct Pieces(Vec<(Vec<u8>, u16)>);

impl Pieces {
    fn of(names: &[Name<'_>]) -> Self {
        let encode = |names: &[Name<'_>]| {
            let steps: Vec<Step<'_>> = names.iter().map(|name| Step::Into(*name)).collect();
            (Steps::encode(&steps), names.len() as u16)
        };
        if names.is_empty() {
            return Self(vec![encode(names)]);
        }
        Self(names.chunks(Steps::MAX.into()).map(encode).collect())
    }

    /// The walks from `fid` to `newfid`: the first from the one, the others on from the other.
    fn walks(&self, fid: u32, newfid: u32) -> impl Iterator<Item = Message<'_>> {
        self.0.iter().enumerate().map(move |(i, (bytes, count))| {
            let fid = if i == 0 { fid } else { newfid };
            plain(T::Walk { fid, newfid, steps: Steps::of(bytes, *count) })
        })
    }
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

    /// Sends the walk of `names` to a new fid, then `more` on that fid: at once where fids are ordered, else once the
    /// walk has been answered. Gives the qids of the walk, and the replies to `more`.
    async fn walk_and(
        &self, names: &[Name<'_>], to: &Arc<Fid>, more: &[Message<'_>],
    ) -> Result<(Vec<Qid>, Option<Calls>), Errno> {
        let pieces = Pieces::of(names);
        let link = &self.fid.link;
        let walks: Vec<Message<'_>> = pieces.walks(self.fid.number(), to.number()).collect();
        if link.ordered {
            let all: Vec<Message<'_>> = walks.iter().chain(more).cloned().collect();
            let mut calls = link.calls(&all).await?;
            let mut qids = Vec::with_capacity(names.len());
            for i in 0..walks.len() {
                match take_qids(&mut calls, &mut qids).await {
                    Err(errno) if i == 0 => return Err(errno),
                    _ => {}
                }
            }
            to.settle();
            return Ok((qids, Some(calls)));
        }
        let mut qids = Vec::with_capacity(names.len());
        for (i, walk) in walks.iter().enumerate() {
            let mut calls = link.calls(std::slice::from_ref(walk)).await?;
            let before = qids.len();
            let answer = take_qids(&mut calls, &mut qids).await;
            let whole = answer.is_ok() && qids.len() - before == pieces.0[i].1 as usize;
            if i == 0 && !whole {
                if answer != Err(Errno::EINTR) {
                    to.failed();
                }
                return answer.map(|()| (qids, None));
            }
            to.settle();
            if !whole {
                return Ok((qids, None));
            }
        }
        let calls = if more.is_empty() { None } else { Some(link.calls(more).await?) };
        Ok((qids, calls))
    }

    async fn walk_now(&self, names: &[Name<'_>], want: Want) -> Result<Walk, Errno> {
        let to = self.fid.link.fid()?;
        let getattr = plain(T::Getattr { fid: to.number(), mask: !0 });
        let more = if want.attr { std::slice::from_ref(&getattr) } else { &[] };
        let (qids, calls) = self.walk_and(names, &to, more).await?;
        let attr = match calls {
            Some(mut calls) if want.attr => Some(take_attr(&mut calls).await),
            _ => None,
        };
        if qids.len() < names.len() {
            let errno = match attr {
                Some(Err(errno)) => errno,
                _ => self.why_stopped(&to, qids.last()).await,
            };
            return Ok(Walk { qids, end: Err(errno) });
        }
        let qid = *qids.last().ok_or(Errno::EPROTO)?;
        let attr = attr.transpose()?;
        Ok(Walk { qids, end: Ok(Reached { node: Self::node(to, qid), attr, lease: None }) })
    }

    /// The errno of a walk that stopped after `last`. A poisoned fid answers it; a plain server does not say.
    async fn why_stopped(&self, to: &Fid, last: Option<&Qid>) -> Errno {
        if self.fid.link.ordered
            && let Ok(answer) = self.fid.link.call(T::Getattr { fid: to.number(), mask: 0 }).await
            && let Err(errno) = answer.message()
        {
            return errno;
        }
        match last.map(|qid| qid.kind) {
            Some(FileKind::Dir) => Errno::ENOENT,
            _ => Errno::ENOTDIR,
        }
    }

    async fn open_now(&self, names: &[Name<'_>], how: How, want: Want) -> Result<Opened, Errno> {
        let to = self.fid.link.fid()?;
        let fid = to.number();
        let mut more = vec![plain(T::Lopen { fid, flags: how.to_flags() })];
        if want.attr {
            more.push(plain(T::Getattr { fid, mask: !0 }));
        }
        // A plain server may run the read before the open is done.
        let first_bytes = want.data > 0 && how.read && self.fid.link.ordered;
        if first_bytes {
            more.push(plain(T::Read { fid, offset: 0, count: want.data }));
        }
        let (qids, calls) = if self.fid.link.ordered {
            self.walk_and(names, &to, &more).await?
        } else {
            let (qids, _) = self.walk_and(names, &to, &more[..0]).await?;
            if qids.len() < names.len() {
                return Err(self.why_stopped(&to, qids.last()).await);
            }
            (qids, None)
        };
        let mut calls = match calls {
            Some(calls) => calls,
            None => self.fid.link.calls(&more[..1]).await?,
        };
        let opened = calls.next().await?;
        let qid = opened.message()?.qid().ok_or(Errno::EPROTO)?;
        let attr = match (want.attr, self.fid.link.ordered) {
            (false, _) => None,
            (true, true) => Some(take_attr(&mut calls).await?),
            (true, false) => Some(take_attr(&mut self.fid.link.calls(&more[1..2]).await?).await?),
        };
        let first = match first_bytes {
            true => take_data(&mut calls).await.ok(),
            false => None,
        };
        let node = qids.last().map(|walked| Self::node(to.clone(), Qid { version: qid.version, ..*walked }));
        let handle = match qid.kind {
            FileKind::Dir => Handle::Dir(RemoteDir::new(to)),
            _ => Handle::Stream(Arc::new(RemoteFile::new(to, qid.version != 0))),
        };
        Ok(Opened { node, attr, handle, first, lease: None })
    }

    async fn create_file(&self, name: Name<'_>, how: How, mode: u32, gid: u32) -> Result<Created, Errno> {
        let link = &self.fid.link;
        let (open, node) = (link.fid()?, link.fid()?);
        let (fid, other) = (open.number(), node.number());
        let flags = how.to_flags() | libc::O_CREAT as u32;
        let clone = Steps::encode(&[]);
        let create = plain(T::Lcreate { fid, name, flags, mode, gid });
        let again = plain(T::Walk { fid, newfid: other, steps: Steps::of(&clone, 0) });
        let getattr = plain(T::Getattr { fid: other, mask: !0 });
        let more = if link.ordered { vec![create, again, getattr] } else { vec![create] };
        let (_, calls) = self.walk_and(&[], &open, &more).await?;
        let mut calls = calls.ok_or(Errno::EPROTO)?;
        let made = calls.next().await?.message()?.qid().ok_or(Errno::EPROTO)?;
        let handle = Some(Handle::Stream(Arc::new(RemoteFile::new(open, made.version != 0))));
        if !link.ordered {
            drop(calls);
            let reached = self.walk_now(&[name], Want::ATTR).await?.reached()?;
            return Ok(Created { node: reached.node, attr: reached.attr, handle });
        }
        calls.next().await?.message()?;
        node.settle();
        let attr = take_attr(&mut calls).await?;
        Ok(Created { node: Self::node(node, made), attr: Some(attr), handle })
    }

    async fn create_other(&self, name: Name<'_>, what: What<'_>, mode: u32, gid: u32) -> Result<Created, Errno> {
        let fid = self.fid.number();
        let message = match what {
            What::Dir => T::Mkdir { dfid: fid, name, mode, gid },
            What::Link(target) => T::Symlink { fid, name, target: crate::wire::Str(target), gid },
            What::File(_) | What::Device { .. } => return Err(Errno::EOPNOTSUPP),
        };
        self.fid.link.call(message).await?.message()?;
        let reached = self.walk_now(&[name], Want::ATTR).await?.reached()?;
        Ok(Created { node: reached.node, attr: reached.attr, handle: None })
    }

    async fn set_now(&self, change: SetAttr) -> Result<Attr, Errno> {
        let (fid, link) = (self.fid.number(), &self.fid.link);
        let set = plain(T::of_set_attr(fid, &change));
        let get = plain(T::Getattr { fid, mask: !0 });
        if link.ordered {
            let mut calls = link.calls(&[set, get]).await?;
            calls.next().await?.message()?;
            return take_attr(&mut calls).await;
        }
        link.calls(&[set]).await?.next().await?.message()?;
        take_attr(&mut link.calls(&[get]).await?).await
    }

    /// One message of which only the success matters.
    async fn done(&self, message: T<'_>) -> Result<(), Errno> {
        self.fid.link.call(message).await?.message().map(|_| ())
    }
}

async fn take_qids(calls: &mut Calls, qids: &mut Vec<Qid>) -> Result<(), Errno> {
    match calls.next().await?.message()? {
        R::Walk { qids: walked } => {
            qids.extend(walked.iter());
            Ok(())
        }
        _ => Err(Errno::EPROTO),
    }
}

async fn take_attr(calls: &mut Calls) -> Result<Attr, Errno> {
    calls.next().await?.message()?.to_attr().ok_or(Errno::EPROTO)
}

/// The data of a read.
pub(super) async fn take_data(calls: &mut Calls) -> Result<Bytes, Errno> {
    let answer = calls.next().await?;
    match answer.message()? {
        R::Read { data } | R::Readdir { data } => Ok(data_of(answer.frame(), data)),
        _ => Err(Errno::EPROTO),
    }
}

impl Node for Remote {
    fn qid(&self) -> Qid {
        self.qid
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        Reply::later(self.walk_now(names, want))
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        Reply::later(self.open_now(names, how, want))
    }

    fn attr(&self) -> Reply<'_, Attr> {
        let get = T::Getattr { fid: self.fid.number(), mask: !0 };
        Reply::later(async move { self.fid.link.call(get).await?.message()?.to_attr().ok_or(Errno::EPROTO) })
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        Reply::later(async move { Ok(self.open_now(&[], how, Want::default()).await?.handle) })
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        let gid = what.owner.map_or(!0, |(_, gid)| gid);
        match what.what {
            What::File(how) => Reply::later(self.create_file(name, how, what.mode, gid)),
            other => Reply::later(self.create_other(name, other, what.mode, gid)),
        }
    }

    fn set_attr(&self, change: SetAttr) -> Reply<'_, Attr> {
        Reply::later(self.set_now(change))
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        let flags = if dir { libc::AT_REMOVEDIR as u32 } else { 0 };
        Reply::later(self.done(T::Unlinkat { dirfid: self.fid.number(), name, flags }))
    }

    fn rename<'a>(&'a self, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32) -> Reply<'a, ()> {
        // .L has no flags; the kernel answers EINVAL for those that a file system does not know.
        if flags != 0 {
            return Errno::EINVAL.into();
        }
        Reply::later(async move {
            let (olddirfid, newdirfid) = (self.fid.number(), self.of(new_dir)?.fid.number());
            self.done(T::Renameat { olddirfid, oldname: name, newdirfid, newname: new_name }).await
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
            match answer.message()? {
                R::Readlink { target } => Ok(answer.frame().slice_ref(target.0)),
                _ => Err(Errno::EPROTO),
            }
        })
    }

    fn stat_fs(&self) -> Reply<'_, StatFs> {
        let stat = T::Statfs { fid: self.fid.number() };
        Reply::later(async move { self.fid.link.call(stat).await?.message()?.to_stat_fs().ok_or(Errno::EPROTO) })
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
