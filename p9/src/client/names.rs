//! Making, moving and removing names in a directory of the server's.
//!
//! Called by a node's methods. A server may be older than `Tunlinkat` and `Trenameat`, as diod 1.0 is: it is asked
//! again by `Tremove` and `Trename`, as the Linux kernel does. That looks at the name first, so that it is no longer
//! one step.

use std::sync::Arc;

use super::fid::Fid;
use super::lease::Asked;
use super::node::{Remote, handle, plain, take_attr};
use crate::tree::LeaseKind;
use crate::wire::{NO_UID, STATS_ALL, Steps, Str, T};
use crate::{Created, Errno, FileKind, How, Name, New, SetAttr, Want, What};

impl Remote {
    pub(super) async fn create_now(&self, name: Name<'_>, new: New<'_>, leased: bool) -> Result<Created, Errno> {
        let give = giving(&new);
        match new.what {
            // What is there already stays whose it is.
            What::File(how) if give.is_some() && !how.excl => {
                match self.create_file(name, How { excl: true, ..how }, &new, give, leased).await {
                    Err(Errno::EEXIST) => self.create_file(name, how, &new, None, leased).await,
                    made => made,
                }
            }
            What::File(how) => self.create_file(name, how, &new, give, leased).await,
            _ => self.create_other(name, &new, give).await,
        }
    }

    async fn create_file(
        &self, name: Name<'_>, how: How, new: &New<'_>, give: Option<SetAttr>, leased: bool,
    ) -> Result<Created, Errno> {
        let link = &self.fid.link;
        let open = link.fid()?;
        // One fid less to make and to give back.
        let node = if leased { open.clone() } else { link.fid()? };
        let (fid, other, clone) = (open.number(), node.number(), Steps::encode(&[]));
        let create = plain(T::Lcreate { fid, name, flags: how.to_wire(true), mode: new.mode, gid: group(new) });
        let (mut more, mut asked) = (vec![create], None);
        if link.ordered {
            if !leased {
                more.push(plain(T::Walk { fid, newfid: other, steps: Steps::of(&clone, 0) }));
            }
            more.extend(give.map(|change| plain(T::of_set_attr(other, &change))));
            if leased && how.write {
                let (lease, message) = Asked::new(&open, LeaseKind::Write);
                more.push(message);
                asked = Some(lease);
            }
            more.push(plain(T::Getattr { fid: other, mask: STATS_ALL }));
        }
        let mut calls = self.walk_and(&[], &open, &more).await?.calls.ok_or(Errno::EPROTO)?;
        let answer = calls.next().await?;
        let made = match answer.message() {
            Ok(message) => message.qid().ok_or(Errno::EPROTO)?,
            Err(errno) => {
                calls.rest().await;
                return Err(errno);
            }
        };
        if !link.ordered {
            drop(calls);
            let handle = Some(handle(open, made, how));
            return Ok(Created { handle, ..self.reached(name, give).await? });
        }
        if !leased {
            calls.next().await?.message()?;
            node.settle();
        }
        if give.is_some() {
            given(calls.next().await?.message().map(drop))?;
        }
        let lease = match asked {
            Some(asked) => asked.granted(calls.next().await)?,
            None => None,
        };
        let attr = take_attr(&mut calls).await?;
        Ok(Created { node: Self::node(node, made), attr: Some(attr), handle: Some(handle(open, made, how)), lease })
    }

    async fn create_other(&self, name: Name<'_>, new: &New<'_>, give: Option<SetAttr>) -> Result<Created, Errno> {
        let (fid, mode, gid) = (self.fid.number(), new.mode, group(new));
        let message = match new.what {
            What::Dir => T::Mkdir { dfid: fid, name, mode, gid },
            What::Link(target) => T::Symlink { fid, name, target: Str(target), gid },
            What::Device { kind, rdev } => {
                let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
                T::Mknod { dfid: fid, name, mode: kind | mode, major, minor, gid }
            }
            What::File(_) => return Err(Errno::EINVAL),
        };
        self.done(message).await?;
        self.reached(name, give).await
    }

    /// What was just made as `name`, given to whom it is for.
    async fn reached(&self, name: Name<'_>, give: Option<SetAttr>) -> Result<Created, Errno> {
        let mut reached = self.walk_now(&[name], Want::ATTR).await?.reached()?;
        if let Some(change) = give {
            match reached.node.set_attr(change).await {
                Ok(attr) => reached.attr = Some(attr),
                Err(errno) => given(Err(errno))?,
            }
        }
        Ok(Created { node: reached.node, attr: reached.attr, handle: None, lease: None })
    }

    pub(super) async fn remove_now(&self, name: Name<'_>, dir: bool) -> Result<(), Errno> {
        let flags = if dir { libc::AT_REMOVEDIR as u32 } else { 0 };
        let removed = self.done(T::Unlinkat { dirfid: self.fid.number(), name, flags }).await;
        if !self.is_older(removed) {
            return removed;
        }
        let (fid, kind) = self.there(name).await?;
        match (kind == FileKind::Dir, dir) {
            (true, false) => return Err(Errno::EISDIR),
            (false, true) => return Err(Errno::ENOTDIR),
            _ => {}
        }
        let removed = self.done(T::Remove { fid: fid.number() }).await;
        // Answered, it has ended the fid, whatever else it did.
        if !matches!(removed, Err(Errno::EINTR | Errno::EHOSTUNREACH)) {
            fid.never_made();
        }
        removed
    }

    pub(super) async fn rename_now(&self, name: Name<'_>, dir: &Self, newname: Name<'_>) -> Result<(), Errno> {
        let (olddirfid, newdirfid) = (self.fid.number(), dir.fid.number());
        let renamed = self.done(T::Renameat { olddirfid, oldname: name, newdirfid, newname }).await;
        if !self.is_older(renamed) {
            return renamed;
        }
        let (fid, _) = self.there(name).await?;
        self.done(T::Rename { fid: fid.number(), dfid: newdirfid, name: newname }).await
    }

    /// Whether that is the answer of a server that does not know the message.
    fn is_older(&self, answer: Result<(), Errno>) -> bool {
        !self.fid.link.ordered && matches!(answer, Err(Errno::EOPNOTSUPP | Errno::ENOSYS))
    }

    /// A fid for what is called `name`, and what that is.
    async fn there(&self, name: Name<'_>) -> Result<(Arc<Fid>, FileKind), Errno> {
        let fid = self.fid.link.fid()?;
        let walked = self.walk_and(&[name], &fid, &[]).await?;
        Ok((fid, walked.qids.last().ok_or(Errno::ENOENT)?.kind))
    }
}

/// The group that a new file is for. The messages that make one have no owner.
fn group(new: &New<'_>) -> u32 {
    new.owner.map_or(NO_UID, |(_, gid)| gid)
}

/// What gives a new file to its owner. The kernel takes setuid and setgid away with that, so they are set once more.
fn giving(new: &New<'_>) -> Option<SetAttr> {
    let (uid, _) = new.owner.filter(|(uid, _)| *uid != NO_UID)?;
    let again = new.mode & 0o6000 != 0 && !matches!(new.what, What::Link(_));
    Some(SetAttr { uid: Some(uid), mode: again.then_some(new.mode), ..SetAttr::default() })
}

/// Who may not give files away keeps them.
fn given(answer: Result<(), Errno>) -> Result<(), Errno> {
    if answer == Err(Errno::EPERM) { Ok(()) } else { answer }
}
