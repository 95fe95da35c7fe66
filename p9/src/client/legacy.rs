//! A file of a server that speaks 9P2000 and nothing newer: Plan 9's, or one of its kin.
//!
//! Made by [`super::Client`] in place of a [`Remote`], of which it uses the walk. Each thing is asked for in 9P2000's
//! own messages, since such a server may drop a client that sends others. What 9P2000 cannot say answers `EOPNOTSUPP`:
//! links, devices, extended attributes, locks; a move between directories is `EXDEV`, a change of the owner `EPERM`.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;

use super::fid::Fid;
use super::node::Remote;
use super::open::RemoteFile;
use crate::wire::legacy::{DMDIR, Stat, mode_of_open, perm_of, seconds};
use crate::wire::{Counted, R, Str, T};
use crate::{
    Attr, Created, Errno, FileKind, Handle, How, Name, New, Node, NodeRef, Opened, Qid, Reached, Reply, SetAttr,
    SetTime, Stream, Time, Walk, Want, What, Written, names,
};

mod dir;

use dir::LegacyDir;

/// A file of the server's.
pub(super) struct Legacy(Remote);

impl Legacy {
    pub(super) fn node(fid: Arc<Fid>, qid: Qid) -> NodeRef {
        Arc::new(Self(Remote { fid, qid }))
    }

    fn of(node: &NodeRef) -> Option<&Self> {
        let node: &dyn Any = &**node;
        node.downcast_ref()
    }

    fn is_dir(&self) -> bool {
        self.0.qid.kind == FileKind::Dir
    }

    async fn walk_now(&self, names: &[Name<'_>], want: Want) -> Result<Walk, Errno> {
        let Walk { qids, end } = self.0.walk_now(names, Want::default()).await?;
        let end = match end {
            Ok(Reached { node, .. }) => {
                let node: &dyn Any = &*node;
                let Remote { fid, qid } = node.downcast_ref().ok_or(Errno::EPROTO)?;
                let attr = if want.attr { Some(attr(fid).await?) } else { None };
                Ok(Reached { node: Self::node(fid.clone(), *qid), attr, lease: None })
            }
            Err(errno) => Err(errno),
        };
        Ok(Walk { qids, end })
    }

    /// The file called `name` here.
    async fn child(&self, name: Name<'_>) -> Result<NodeRef, Errno> {
        Ok(self.walk_now(&[name], Want::default()).await?.reached()?.node)
    }

    /// A fid of its own for what is to be opened.
    async fn clone(&self) -> Result<Arc<Fid>, Errno> {
        let to = self.0.fid.link.fid()?;
        self.0.walk_and(&[], &to, &[]).await?;
        Ok(to)
    }

    async fn open_now(&self, how: How) -> Result<Handle, Errno> {
        match self.is_dir() {
            true if how.changes() => return Err(Errno::EISDIR),
            false if how.directory => return Err(Errno::ENOTDIR),
            _ => {}
        }
        let fid = self.clone().await?;
        let opened = fid.link.call(T::Open { fid: fid.number(), mode: mode_of_open(how) }).await?;
        let qid = opened.message()?.qid().ok_or(Errno::EPROTO)?;
        if qid.kind == FileKind::Dir {
            let node = Self(Remote { fid: self.0.fid.clone(), qid: self.0.qid });
            return Ok(Handle::Dir(LegacyDir::new(node, fid)));
        }
        // Version 0 is that of a device, and of a file that was never written to: a device has no length.
        let seekable = qid.version != 0 || attr(&fid).await?.size > 0;
        Ok(Handle::Stream(Arc::new(LegacyFile::new(fid, seekable, how))))
    }

    async fn open_at_now(&self, names: &[Name<'_>], how: How, want: Want) -> Result<Opened, Errno> {
        let node =
            if names.is_empty() { None } else { Some(self.walk_now(names, Want::default()).await?.reached()?.node) };
        let at = node.as_ref().map_or(Some(self), Self::of).ok_or(Errno::EPROTO)?;
        let handle = at.open_now(how).await?;
        let attr = if want.attr { Some(attr(&at.0.fid).await?) } else { None };
        Ok(Opened { node, attr, handle, first: None, lease: None })
    }

    async fn create_file(&self, name: Name<'_>, how: How, mode: u32) -> Result<Created, Errno> {
        let fid = self.clone().await?;
        let perm = perm_of(libc::S_IFREG | mode);
        let create = T::Create { fid: fid.number(), name, perm, mode: mode_of_open(How { truncate: false, ..how }) };
        match fid.link.call(create).await?.message() {
            Ok(_) => {
                // What is made is a file, whatever its version.
                let handle = Handle::Stream(Arc::new(LegacyFile::new(fid, true, how)));
                self.created(name, Some(handle)).await
            }
            // In 9P2000 a create makes what was not there, and nothing else.
            Err(Errno::EEXIST) if !how.excl => {
                let Opened { node, attr, handle, .. } = self.open_at_now(&[name], how, Want::ATTR).await?;
                Ok(Created { node: node.ok_or(Errno::EPROTO)?, attr, handle: Some(handle), lease: None })
            }
            Err(errno) => Err(errno),
        }
    }

    async fn create_dir(&self, name: Name<'_>, mode: u32) -> Result<Created, Errno> {
        let fid = self.clone().await?;
        let create = T::Create { fid: fid.number(), name, perm: DMDIR | mode & 0o777, mode: 0 };
        fid.link.call(create).await?.message()?;
        self.created(name, None).await
    }

    async fn created(&self, name: Name<'_>, handle: Option<Handle>) -> Result<Created, Errno> {
        let Reached { node, attr, .. } = self.walk_now(&[name], Want::ATTR).await?.reached()?;
        Ok(Created { node, attr, handle, lease: None })
    }

    async fn set_now(&self, change: SetAttr) -> Result<Attr, Errno> {
        // A directory's length is 0 whatever it holds: that would be no change.
        if change.size.is_some() && self.is_dir() {
            return Err(Errno::EISDIR);
        }
        if let Some(uid) = change.uid
            && attr(&self.0.fid).await?.uid != uid
        {
            return Err(Errno::EPERM);
        }
        let gid = change.gid.map(names::group).unwrap_or_default();
        let mut to = Stat { gid: Str(gid.as_bytes()), ..Stat::untouched() };
        if let Some(mode) = change.mode {
            to.mode = perm_of(self.0.qid.kind.mode_bits() | mode);
        }
        if let Some(size) = change.size {
            to.length = size;
        }
        let at = |time: Option<SetTime>| match time {
            Some(SetTime::Now) => seconds(Time::now()),
            Some(SetTime::At(time)) => seconds(time),
            None => Stat::untouched().atime,
        };
        to.mtime = at(change.mtime);
        let all = Stat { atime: at(change.atime), ..to };
        if all != Stat::untouched() {
            match wstat(&self.0.fid, all).await {
                // By the book a time of access cannot be set.
                Err(_) if all != to && to != Stat::untouched() => wstat(&self.0.fid, to).await?,
                done => done?,
            }
        }
        attr(&self.0.fid).await
    }

    async fn remove_now(&self, name: Name<'_>, dir: bool) -> Result<(), Errno> {
        let node = self.child(name).await?;
        let gone = Self::of(&node).ok_or(Errno::EPROTO)?;
        match gone.is_dir() {
            true if !dir => return Err(Errno::EISDIR),
            false if dir => return Err(Errno::ENOTDIR),
            _ => {}
        }
        let fid = &gone.0.fid;
        let answer = fid.link.call(T::Remove { fid: fid.number() }).await?;
        // Whatever the answer is, the server has the fid no longer.
        fid.never_made();
        answer.message().map(drop)
    }

    async fn rename_now(&self, name: Name<'_>, to: &NodeRef, new_name: Name<'_>, flags: u32) -> Result<(), Errno> {
        let to = Self::of(to).filter(|to| Arc::ptr_eq(&to.0.fid.link, &self.0.fid.link)).ok_or(Errno::EXDEV)?;
        if flags & !libc::RENAME_NOREPLACE != 0 {
            return Err(Errno::EINVAL);
        }
        if to.0.qid.path != self.0.qid.path {
            return Err(Errno::EXDEV);
        }
        let moved = self.child(name).await?;
        let moved = Self::of(&moved).ok_or(Errno::EPROTO)?;
        if name == new_name {
            return if flags == 0 { Ok(()) } else { Err(Errno::EEXIST) };
        }
        let rename = || wstat(&moved.0.fid, Stat { name: Str(new_name.as_bytes()), ..Stat::untouched() });
        match rename().await {
            Err(Errno::EEXIST) if flags == 0 => {}
            renamed => return renamed,
        }
        // Not in one step: 9P2000 has no way to replace a file by another.
        self.remove_now(new_name, moved.is_dir()).await?;
        rename().await
    }
}

/// The attributes of what `fid` stands for.
async fn attr(fid: &Fid) -> Result<Attr, Errno> {
    match fid.link.call(T::Stat { fid: fid.number() }).await?.message()? {
        R::Stat { stat: Counted(stat) } => Ok(attr_of(&stat)),
        _ => Err(Errno::EPROTO),
    }
}

fn attr_of(stat: &Stat<'_>) -> Attr {
    stat.to_attr(names::user_number(stat.uid.0), names::group_number(stat.gid.0).unwrap_or(names::NOBODY))
}

async fn wstat(fid: &Fid, to: Stat<'_>) -> Result<(), Errno> {
    fid.link.call(T::Wstat { fid: fid.number(), stat: Counted(to) }).await?.message().map(drop)
}

/// Asks for what was written to be safe.
async fn sync(fid: &Fid) -> Result<(), Errno> {
    match wstat(fid, Stat::untouched()).await {
        // A server need not know that question: then what it has answered is as safe as it gets.
        Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::EROFS) => Ok(()),
        synced => synced,
    }
}

impl Node for Legacy {
    fn qid(&self) -> Qid {
        self.0.qid
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        Reply::later(self.walk_now(names, want))
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        Reply::later(self.open_at_now(names, how, want))
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::later(attr(&self.0.fid))
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        Reply::later(self.open_now(how))
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        match what.what {
            What::File(how) => Reply::later(self.create_file(name, how, what.mode)),
            What::Dir => Reply::later(self.create_dir(name, what.mode)),
            What::Link(_) | What::Device { .. } => Errno::EOPNOTSUPP.into(),
        }
    }

    fn set_attr(&self, change: SetAttr) -> Reply<'_, Attr> {
        Reply::later(self.set_now(change))
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        Reply::later(self.remove_now(name, dir))
    }

    fn rename<'a>(&'a self, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32) -> Reply<'a, ()> {
        Reply::later(self.rename_now(name, new_dir, new_name, flags))
    }

    fn link<'a>(&'a self, _target: &'a NodeRef, _name: Name<'a>) -> Reply<'a, ()> {
        Errno::EOPNOTSUPP.into()
    }

    fn sync(&self) -> Reply<'_, ()> {
        Reply::later(sync(&self.0.fid))
    }
}

/// An open file.
struct LegacyFile {
    fid: Arc<Fid>,
    file: RemoteFile,
    how: How,
}

impl LegacyFile {
    fn new(fid: Arc<Fid>, seekable: bool, how: How) -> Self {
        Self { file: RemoteFile::new(fid.clone(), seekable, how), fid, how }
    }

    /// Writes as the file was opened: 9P2000 knows files that are appended to, but not opens.
    async fn write_now(&self, offset: u64, data: Bytes) -> Result<Written, Errno> {
        let end = if self.how.append { Some(attr(&self.fid).await?.size) } else { None };
        let written = self.file.write(end.unwrap_or(offset), data).await?;
        if self.how.sync {
            sync(&self.fid).await?;
        }
        Ok(Written { offset: end.or(written.offset), ..written })
    }
}

impl Stream for LegacyFile {
    fn seekable(&self) -> bool {
        self.file.seekable()
    }

    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        self.file.read(offset, count)
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        match self.how {
            How { append: false, sync: false, .. } => self.file.write(offset, data),
            _ => Reply::later(self.write_now(offset, data)),
        }
    }

    fn sync(&self, _data_only: bool) -> Reply<'_, ()> {
        Reply::later(sync(&self.fid))
    }

    fn close(&self) -> Reply<'_, ()> {
        self.file.close()
    }
}
