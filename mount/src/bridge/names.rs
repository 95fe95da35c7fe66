//! Requests about names: what makes, removes, moves and links.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use fuser::{Generation, ReplyCreate, ReplyEmpty, ReplyEntry, Request};
use p9::{Attr, Errno, How, Name, New, What};

use super::{Bridge, EXEC, Shared};
use crate::attr::{errno, missing, to_fuse};

/// Something to make that is not opened.
pub(super) enum Thing {
    Dir,
    Link(Vec<u8>),
    Device { kind: u32, rdev: u64 },
}

impl Thing {
    fn what(&self) -> What<'_> {
        match self {
            Self::Dir => What::Dir,
            Self::Link(target) => What::Link(target),
            Self::Device { kind, rdev } => What::Device { kind: *kind, rdev: *rdev },
        }
    }
}

fn entry(shared: &Shared, answer: Result<(u64, Attr), Errno>, reply: ReplyEntry) {
    match answer {
        Ok((id, attr)) => reply.entry(&shared.options.ttl, &to_fuse(&attr, id), Generation(0)),
        Err(err) => reply.error(errno(err)),
    }
}

fn empty(answer: Result<(), Errno>, reply: ReplyEmpty) {
    match answer {
        Ok(()) => reply.ok(),
        Err(err) => reply.error(errno(err)),
    }
}

impl Bridge {
    pub(super) fn on_lookup(&self, request: &Request, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        let work = move |shared: std::sync::Arc<Shared>| async move { shared.look_up(parent, &name).await };
        self.ask(request, parent, work, |shared, answer| match answer {
            // A name that is not there may be remembered as such.
            Err(Errno::ENOENT) => reply.entry(&shared.options.ttl, &missing(), Generation(0)),
            answer => entry(shared, answer, reply),
        });
    }

    pub(super) fn make(
        &self, request: &Request, parent: u64, name: &OsStr, thing: Thing, mode: u32, reply: ReplyEntry,
    ) {
        let name = name.as_bytes().to_vec();
        let work = move |shared: std::sync::Arc<Shared>| async move {
            let (dir, name) = (shared.table.node(parent).await?, Name::new(&name)?);
            let new = New { what: thing.what(), mode: mode & 0o7777, owner: None };
            let made = dir.create(name, new).await?;
            shared.made(parent, name, (made.node, made.attr)).await
        };
        self.ask(request, parent, work, |shared, answer| entry(shared, answer, reply));
    }

    /// mknod(2) of a regular file: made and closed again.
    pub(super) fn make_file(&self, request: &Request, parent: u64, name: &OsStr, mode: u32, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        let work = move |shared: std::sync::Arc<Shared>| async move {
            let (dir, name) = (shared.table.node(parent).await?, Name::new(&name)?);
            let how = How { excl: true, ..How::WRITE };
            let made = dir.create(name, New { what: What::File(how), mode: mode & 0o7777, owner: None }).await?;
            if let Some(handle) = &made.handle {
                handle.close().await?;
            }
            shared.made(parent, name, (made.node, made.attr)).await
        };
        self.ask(request, parent, work, |shared, answer| entry(shared, answer, reply));
    }

    pub(super) fn on_create(
        &self, request: &Request, parent: u64, name: &OsStr, mode: u32, flags: i32, reply: ReplyCreate,
    ) {
        let name = name.as_bytes().to_vec();
        let work = move |shared: std::sync::Arc<Shared>| async move {
            let (dir, name) = (shared.table.node(parent).await?, Name::new(&name)?);
            let how = How { exec: flags & EXEC != 0, ..How::from_flags(flags as u32)? };
            let made = dir.create(name, New { what: What::File(how), mode: mode & 0o7777, owner: None }).await?;
            let handle = made.handle.ok_or(Errno::EIO)?;
            let (id, attr) = shared.made(parent, name, (made.node.clone(), made.attr)).await?;
            let (number, flags) = shared.opened(id, made.node, handle, Some(attr), None);
            Ok((id, attr, number, flags))
        };
        self.ask(request, parent, work, |shared, answer| match answer {
            Ok((id, attr, number, flags)) => {
                let (attr, number) = (to_fuse(&attr, id), fuser::FileHandle(number));
                reply.created(&shared.options.ttl, &attr, Generation(0), number, flags);
            }
            Err(err) => reply.error(errno(err)),
        });
    }

    pub(super) fn on_remove(&self, request: &Request, parent: u64, name: &OsStr, dir: bool, reply: ReplyEmpty) {
        let name = name.as_bytes().to_vec();
        let work = move |shared: std::sync::Arc<Shared>| async move {
            let (parent_dir, name) = (shared.table.node(parent).await?, Name::new(&name)?);
            parent_dir.remove(name, dir).await?;
            shared.table.removed(parent, name);
            Ok(())
        };
        self.ask(request, parent, work, |_, answer| empty(answer, reply));
    }

    pub(super) fn on_rename(
        &self, request: &Request, from: (u64, &OsStr), to: (u64, &OsStr), flags: u32, reply: ReplyEmpty,
    ) {
        let ((parent, name), (new_parent, new_name)) = (from, to);
        let (name, new_name) = (name.as_bytes().to_vec(), new_name.as_bytes().to_vec());
        let work = move |shared: std::sync::Arc<Shared>| async move {
            let (dir, new_dir) = (shared.table.node(parent).await?, shared.table.node(new_parent).await?);
            let (name, new_name) = (Name::new(&name)?, Name::new(&new_name)?);
            dir.rename(name, &new_dir, new_name, flags).await?;
            shared.table.renamed(parent, name, new_parent, new_name);
            Ok(())
        };
        self.ask(request, parent, work, |_, answer| empty(answer, reply));
    }

    pub(super) fn on_link(&self, request: &Request, id: u64, parent: u64, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        let work = move |shared: std::sync::Arc<Shared>| async move {
            let (dir, node) = (shared.table.node(parent).await?, shared.table.node(id).await?);
            dir.link(&node, Name::new(&name)?).await?;
            shared.look_up(parent, &name).await
        };
        self.ask(request, parent, work, |shared, answer| entry(shared, answer, reply));
    }

    pub(super) fn on_symlink(&self, request: &Request, parent: u64, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes().to_vec();
        self.make(request, parent, name, Thing::Link(target), 0o777, reply);
    }
}
