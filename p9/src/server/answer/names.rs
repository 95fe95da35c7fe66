//! Names: making, moving and removing what they stand for.
//!
//! The group that a client asks for is honoured where the tree may give files away, and not where the directory decides
//! about groups.

use super::{Answer, File};
use crate::server::fids::State;
use crate::wire::{NO_UID, R, T};
use crate::{Errno, FileKind, How, New, NodeRef, What};

/// `AT_REMOVEDIR`, in the flags of `Tunlinkat`.
pub(super) const REMOVE_DIR: u32 = 0x200;

/// What a message asks to be made, for the group `gid` if it names one.
pub(super) fn new(what: What<'_>, mode: u32, gid: u32) -> New<'_> {
    New { what, mode: mode & 0o7777, owner: (gid != NO_UID).then_some((NO_UID, gid)) }
}

/// Makes what is not open afterwards.
pub(super) async fn make(dir: &NodeRef, message: &T<'_>) -> Result<R<'static>, Errno> {
    Ok(match *message {
        T::Mkdir { name, mode, gid, .. } => {
            R::Mkdir { qid: dir.create(name, new(What::Dir, mode, gid)).await?.node.qid() }
        }
        T::Symlink { name, target, gid, .. } => {
            R::Symlink { qid: dir.create(name, new(What::Link(target.0), 0o777, gid)).await?.node.qid() }
        }
        T::Mknod { name, mode, major, minor, gid, .. } => {
            let what = match mode & libc::S_IFMT {
                0 | libc::S_IFREG => What::File(How { excl: true, ..How::WRITE }),
                kind @ (libc::S_IFIFO | libc::S_IFSOCK | libc::S_IFCHR | libc::S_IFBLK) => {
                    What::Device { kind, rdev: rustix::fs::makedev(major, minor) }
                }
                // As mknod(2) has it.
                libc::S_IFDIR => return Err(Errno::EPERM),
                _ => return Err(Errno::EINVAL),
            };
            let made = dir.create(name, new(what, mode, gid)).await?;
            if let Some(open) = made.handle {
                open.close().await?;
            }
            R::Mknod { qid: made.node.qid() }
        }
        _ => return Err(Errno::EINVAL),
    })
}

/// Messages about two files that leave both fids as they are.
pub(super) async fn on_two(message: &T<'_>, one: &File, other: &File) -> Result<Answer, Errno> {
    match *message {
        T::Link { name, .. } => {
            one.node.link(&other.node, name).await?;
            Ok(R::Link {}.into())
        }
        T::Renameat { oldname, newname, .. } => {
            one.node.rename(oldname, &other.node, newname, 0).await?;
            Ok(R::Renameat {}.into())
        }
        T::Rename2 { oldname, newname, flags, .. } => {
            one.node.rename(oldname, &other.node, newname, flags).await?;
            Ok(R::Rename2 {}.into())
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Moves the file of a fid, which then is where it was moved to.
pub(super) async fn rename(message: &T<'_>, file: &mut File, to: &File) -> Result<Answer, Errno> {
    let T::Rename { name, .. } = *message else { return Err(Errno::EINVAL) };
    let (dir, old, _) = file.place.entry(&file.node).await?;
    dir.rename(old.as_name(), &to.node, name, 0).await?;
    file.place = to.place.clone();
    file.place.enter(name);
    Ok(R::Rename {}.into())
}

/// Removes the file of a fid that is gone in any case.
pub(super) async fn remove(state: State) -> Result<Answer, Errno> {
    let file = match state {
        State::File(file) => file,
        State::Poisoned(errno) => return Err(errno),
        State::Coming => return Err(Errno::EBADF),
    };
    let removed = match file.place.entry(&file.node).await {
        Ok((dir, name, kind)) => dir.remove(name.as_name(), kind == FileKind::Dir).await,
        Err(errno) => Err(errno),
    };
    let closed = match &file.open {
        Some(open) => open.close().await,
        None => Ok(()),
    };
    removed.and(closed)?;
    Ok(R::Remove {}.into())
}
