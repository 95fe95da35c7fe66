//! The answers to what 9P2000 asks in words of its own: open, create, stat, wstat, remove, and reading a directory.
//!
//! Called by [`super::answer`] for a request whose turn has come; fids, order and flushes are those of every dialect. A
//! file that is open here may be open alone (`DMEXCL`) and may be removed when it is closed (`ORCLOSE`): both are kept
//! in [`Extra`] and end with the fid, however that ends.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use super::answer::{Answer, Fields, opened_qid};
use super::connection::Context;
use super::fids::{File, Place};
use crate::wire::legacy::{self, DMAPPEND, DMDIR, DMEXCL, DMTMP, ORCLOSE, Stat};
use crate::wire::{Counted, NO_UID, R, T};
use crate::{Attr, Errno, FileKind, How, Name, NameBuf, New, NodeRef, SetAttr, SetTime, Time, What, names};

mod dir;
mod follow;

pub(super) use dir::read_dir;
pub(super) use follow::{follow, shown};

/// What an open file of a 9P2000 client has besides.
#[derive(Default)]
pub(super) struct Extra {
    /// Where the next read of a directory goes on.
    listed: Mutex<dir::Listed>,
    _exclusive: Option<Exclusive>,
    remove: Option<Remove>,
}

/// Answers an `Rerror`'s text. To `Tauth` it is that nobody need authenticate in 9P, as Plan 9's servers say it.
pub(super) fn refusal(code: u8, errno: Errno) -> String {
    const AUTH: u8 = 102;
    if code == AUTH { "authentication not required".into() } else { legacy::text_of(errno) }
}

/// Messages that change the fid, or wait for what came before on it.
pub(super) async fn on_fid(context: &Context, message: &T<'_>, file: &mut File) -> Result<Answer, Errno> {
    match *message {
        T::Open { mode, .. } => open(context, file, mode).await,
        T::Create { name, perm, mode, .. } => create(context, file, name, perm, mode).await,
        T::Wstat { stat, .. } => wstat(file, &stat.0).await,
        _ => Err(Errno::EINVAL),
    }
}

/// stat(5).
pub(super) async fn stat(file: &File) -> Result<Answer, Errno> {
    let attr = file.node.attr().await?;
    let name = file.place.name().map_or(&b"/"[..], Name::as_bytes);
    let (uid, gid) = (names::user(attr.uid), names::group(attr.gid));
    let stat = Counted(Stat::of(&attr, name, uid.as_bytes(), gid.as_bytes()));
    Ok(Fields::whole(&R::Stat { stat }).into())
}

/// open(5), open.
async fn open(context: &Context, file: &mut File, mode: u8) -> Result<Answer, Errno> {
    let is_dir = file.node.qid().kind == FileKind::Dir;
    let mut how = How { directory: is_dir, ..legacy::how_of(mode) };
    let mut extra = Extra::default();
    if is_dir {
        if how.changes() || mode & ORCLOSE != 0 {
            return Err(Errno::EISDIR);
        }
    } else {
        let perm = legacy::perm_of(file.node.attr().await?.mode);
        extra._exclusive = Exclusive::of(context, &file.node, perm)?;
        if perm & DMAPPEND != 0 {
            (how.append, how.truncate) = (how.write, false);
        }
    }
    let open = file.node.open(how).await?;
    let qid = opened_qid(file.node.qid(), &open);
    extra.remove = Remove::at_close(file, mode);
    (file.open, file.extra) = (Some(open), Some(Box::new(extra)));
    Ok(R::Open { qid, iounit: 0 }.into())
}

/// open(5), create: always a new file, with the permissions that its directory lets it have.
async fn create(context: &Context, file: &mut File, name: Name<'_>, perm: u32, mode: u8) -> Result<Answer, Errno> {
    if perm & !(DMDIR | DMAPPEND | DMEXCL | DMTMP | 0o777) != 0 {
        return Err(Errno::EPERM);
    }
    let is_dir = perm & DMDIR != 0;
    let how = How { directory: is_dir, exec: false, ..legacy::how_of(mode) };
    if is_dir && (how.changes() || mode & ORCLOSE != 0) {
        return Err(Errno::EISDIR);
    }
    let inherited = if is_dir { 0o777 } else { 0o666 };
    let dir = file.node.attr().await?;
    let perm = perm & (!inherited | dir.mode & inherited);
    let what = if is_dir {
        What::Dir
    } else {
        What::File(How { excl: true, append: how.write && perm & DMAPPEND != 0, ..how })
    };
    let owner = Some((NO_UID, dir.gid));
    let made = file.node.create(name, New { what, mode: legacy::mode_of(perm), owner }).await?;
    let open = match made.handle {
        Some(open) => open,
        None => made.node.open(how).await?,
    };
    let exclusive = if is_dir { None } else { Exclusive::of(context, &made.node, perm)? };
    let qid = opened_qid(made.node.qid(), &open);
    (file.open, file.node) = (Some(open), made.node);
    file.place.enter(name);
    let remove = Remove::at_close(file, mode);
    file.extra = Some(Box::new(Extra { _exclusive: exclusive, remove, ..Extra::default() }));
    Ok(R::Create { qid, iounit: 0 }.into())
}

/// stat(5), wstat: all of it or nothing.
async fn wstat(file: &mut File, to: &Stat<'_>) -> Result<Answer, Errno> {
    if *to == Stat::untouched() {
        file.sync(false).await?;
        return Ok(R::Wstat {}.into());
    }
    let change = change(&file.node.attr().await?, to)?;
    let old = file.place.name().map(NameBuf::from);
    let renamed = match to.name.0 {
        b"" => None,
        name if old.as_ref().is_some_and(|old| old.as_name().as_bytes() == name) => None,
        name => Some(NameBuf::new(name)?),
    };
    if let Some(new) = &renamed {
        rename(file, new).await?;
    }
    if change != SetAttr::default()
        && let Err(errno) = file.node.set_attr(change).await
    {
        if let (Some(_), Some(old)) = (&renamed, &old) {
            rename(file, old).await?;
        }
        return Err(errno);
    }
    Ok(R::Wstat {}.into())
}

/// What of `attr` becomes other than it is. The client's kernel writes what it likes into `type` and `dev`, and Linux's
/// gives a `muid`: nobody here keeps any of them. The version moves by itself.
fn change(attr: &Attr, to: &Stat<'_>) -> Result<SetAttr, Errno> {
    let (uid, gid) = (names::user(attr.uid), names::group(attr.gid));
    let is = Stat::of(attr, b"", uid.as_bytes(), gid.as_bytes());
    fn differs<V: PartialEq>(to: V, untouched: V, is: V) -> bool {
        to != untouched && to != is
    }
    let none = Stat::untouched();
    if differs(to.qid_path, none.qid_path, is.qid_path) || differs(to.uid, none.uid, is.uid) {
        return Err(Errno::EPERM);
    }
    let mut change = SetAttr::default();
    if differs(to.mode & !DMTMP, none.mode & !DMTMP, is.mode) {
        if (to.mode ^ is.mode) & DMDIR != 0 {
            return Err(Errno::EPERM);
        }
        // What 9P2000 has no bit for stays as it is.
        let kept = attr.mode & 0o7000 & !legacy::mode_of(is.mode);
        change.mode = Some(legacy::mode_of(to.mode) | kept);
    }
    if differs(to.length, none.length, is.length) {
        if is.mode & DMDIR != 0 {
            return Err(Errno::EISDIR);
        }
        change.size = Some(to.length);
    }
    let at = |to: u32, is: u32| differs(to, u32::MAX, is).then_some(SetTime::At(Time { sec: to.into(), nsec: 0 }));
    (change.atime, change.mtime) = (at(to.atime, is.atime), at(to.mtime, is.mtime));
    if differs(to.gid, none.gid, is.gid) {
        change.gid = Some(names::group_number(to.gid.0).ok_or(Errno::EINVAL)?);
    }
    Ok(change)
}

/// Gives the file another name in its directory, which must be free.
async fn rename(file: &mut File, new: &NameBuf) -> Result<(), Errno> {
    let (dir, name, _) = file.place.entry(&file.node).await?;
    let (old, to) = (name.as_name(), new.as_name());
    match dir.rename(old, &dir, to, libc::RENAME_NOREPLACE).await {
        // A tree that has no flags.
        Err(Errno::EINVAL) => match dir.walk(&[to], crate::Want::default()).await.map(|walk| walk.end) {
            Ok(Ok(_)) => return Err(Errno::EEXIST),
            Err(Errno::ENOENT) | Ok(Err(Errno::ENOENT)) => dir.rename(old, &dir, to, 0).await?,
            Ok(Err(errno)) | Err(errno) => return Err(errno),
        },
        renamed => renamed?,
    }
    file.place.leave();
    file.place.enter(to);
    Ok(())
}

async fn unlink(place: &Place, node: &NodeRef) -> Result<(), Errno> {
    let (dir, name, kind) = place.entry(node).await?;
    dir.remove(name.as_name(), kind == FileKind::Dir).await
}

/// A file that is removed when its fid ends (`ORCLOSE`).
struct Remove(Option<(Place, NodeRef)>);

impl Remove {
    fn at_close(file: &File, mode: u8) -> Option<Self> {
        (mode & ORCLOSE != 0).then(|| Self(Some((file.place.clone(), file.node.clone()))))
    }
}

impl Extra {
    /// What is to be done once the file has been closed.
    pub(super) async fn close(mut self) -> Result<(), Errno> {
        match self.remove.as_mut().and_then(|remove| remove.0.take()) {
            Some((place, node)) => unlink(&place, &node).await,
            None => Ok(()),
        }
    }
}

impl Drop for Remove {
    /// Its client has gone away without a clunk.
    fn drop(&mut self) {
        if let (Some((place, node)), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                if let Err(errno) = unlink(&place, &node).await {
                    tracing::debug!("removing a file that was open to be removed: {errno}");
                }
            });
        }
    }
}

/// The files for exclusive use that are open now: of which tree, and which.
static EXCLUSIVE: Mutex<Option<HashSet<(usize, u64)>>> = Mutex::new(None);

/// The one open of a file for exclusive use.
struct Exclusive((usize, u64));

impl Exclusive {
    /// `None` for a file that is not for exclusive use. Errors: `ETXTBSY` if it is open.
    fn of(context: &Context, node: &NodeRef, perm: u32) -> Result<Option<Self>, Errno> {
        if perm & DMEXCL == 0 {
            return Ok(None);
        }
        let key = (Arc::as_ptr(&context.tree).cast::<()>() as usize, node.qid().path);
        let mut all = EXCLUSIVE.lock();
        if all.get_or_insert_default().insert(key) { Ok(Some(Self(key))) } else { Err(Errno::ETXTBSY) }
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        if let Some(all) = EXCLUSIVE.lock().as_mut() {
            all.remove(&self.0);
        }
    }
}
