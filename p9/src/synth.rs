//! Files made of closures: `/cpu`, `/stat`, control sockets and the directories between them are made of these.
//!
//! A synthetic file has no place on any disk. Its qid path is a number that no other in this process has, its owner is
//! this process's user, and it is never cached by whoever shows it, since it says whether it seeks.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::{
    Attr, Errno, FileKind, Handle, How, Name, Node, NodeRef, Qid, Reply, SetAttr, Stream, Tree, TreeRef, Want, Who,
};

mod dir;
mod files;

pub use dir::{Listing, dir, directory};

/// A file whose contents are what `contents` gives when it is opened (0444).
pub fn file(contents: impl Fn() -> Result<Bytes, Errno> + Send + Sync + 'static) -> NodeRef {
    File::node(0o444, move |how| {
        if how.changes() {
            return Errno::EACCES.into();
        }
        contents().map(Handle::Bytes).into()
    })
}

/// A control file (0222): each write is one command, the line end cut off; its error answers the write. Opening to
/// truncate or append, as a shell does, means nothing.
pub fn ctl(command: impl Fn(Bytes) -> Reply<'static, ()> + Send + Sync + 'static) -> NodeRef {
    let command = Arc::new(command);
    File::node(0o222, move |how| {
        if how.read {
            return Errno::EACCES.into();
        }
        Reply::ok(Handle::Stream(Arc::new(files::Ctl(command.clone()))))
    })
}

/// A value (0666): reading gives what `get` gives at the open; what one open file has written so far, from offset 0 on
/// and up to 4 MiB, is given to `set` at each write, so that whoever writes a wrong value is told. What is appended
/// comes after the value that there was.
pub fn value(
    get: impl Fn() -> Result<Bytes, Errno> + Send + Sync + 'static,
    set: impl Fn(Bytes) -> Result<(), Errno> + Send + Sync + 'static,
) -> NodeRef {
    let set: Arc<dyn Fn(Bytes) -> Result<(), Errno> + Send + Sync> = Arc::new(set);
    File::node(0o666, move |how| {
        let read = if (how.read || how.append) && !how.truncate { get() } else { Ok(Bytes::new()) };
        read.map(|read| match how.changes() {
            true => Handle::Stream(Arc::new(files::Value::new(how, read, set.clone())) as Arc<dyn Stream>),
            false => Handle::Bytes(read),
        })
        .into()
    })
}

/// A file of permissions `mode` that is opened by `open`: what waits, what is endless, what does as it is told.
pub fn stream(mode: u32, open: impl Fn(How) -> Reply<'static, Arc<dyn Stream>> + Send + Sync + 'static) -> NodeRef {
    File::node(mode, move |how| {
        let allowed = (!how.read || mode & 0o444 != 0) && (!how.changes() || mode & 0o222 != 0);
        if !allowed {
            return Errno::EACCES.into();
        }
        open(how).map(Handle::Stream)
    })
}

/// A clone file (0444): opening it makes something, reading gives its name, and the guard that `make` gives lives as
/// long as the open file does.
pub fn clone_file(
    make: impl Fn() -> Reply<'static, (Bytes, Box<dyn Any + Send + Sync>)> + Send + Sync + 'static,
) -> NodeRef {
    File::node(0o444, move |how| {
        if how.changes() {
            return Errno::EACCES.into();
        }
        make().map(|(text, guard)| Handle::Stream(Arc::new(files::Made { text, _guard: guard })))
    })
}

/// A symbolic link to `target`.
pub fn link(target: impl Into<Bytes>) -> NodeRef {
    Arc::new(Link { attr: attr(FileKind::Link, 0o777), target: target.into() })
}

/// The tree with this root; attaching at a path walks there.
pub fn tree(root: NodeRef) -> TreeRef {
    tree_for(move |_| Ok(root.clone()))
}

/// A tree whose root depends on who attaches.
pub fn tree_for(root: impl Fn(&Who) -> Result<NodeRef, Errno> + Send + Sync + 'static) -> TreeRef {
    Arc::new(Rooted(root))
}

/// A qid path that no other synthetic file of this process has.
fn next_path() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The attributes of a new synthetic file, owned by this process's user.
fn attr(kind: FileKind, permissions: u32) -> Attr {
    let qid = Qid { kind, version: 0, path: next_path() };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let now = crate::Time::now();
    Attr { uid, gid, atime: now, mtime: now, ctime: now, ..Attr::synthetic(qid, permissions) }
}

struct Rooted<F>(F);

impl<F: Fn(&Who) -> Result<NodeRef, Errno> + Send + Sync + 'static> Tree for Rooted<F> {
    fn attach<'a>(&'a self, who: &'a Who, aname: &'a [u8]) -> Reply<'a, NodeRef> {
        let start = (self.0)(who).and_then(|root| Ok((root, Name::split(aname)?)));
        match start {
            Err(errno) => errno.into(),
            Ok((root, names)) if names.is_empty() => Reply::ok(root),
            Ok((root, names)) => {
                Reply::later(async move { Ok(root.walk(&names, Want::default()).await?.reached()?.node) })
            }
        }
    }
}

struct File<F> {
    attr: Attr,
    open: F,
}

impl<F: Fn(How) -> Reply<'static, Handle> + Send + Sync + 'static> File<F> {
    fn node(permissions: u32, open: F) -> NodeRef {
        Arc::new(Self { attr: attr(FileKind::File, permissions), open })
    }
}

impl<F: Fn(How) -> Reply<'static, Handle> + Send + Sync + 'static> Node for File<F> {
    fn qid(&self) -> Qid {
        self.attr.qid
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(self.attr)
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        if how.directory {
            return Errno::ENOTDIR.into();
        }
        (self.open)(how)
    }

    fn set_attr(&self, change: SetAttr) -> Reply<'_, Attr> {
        harmless(change, self.attr)
    }
}

/// What a shell's `>` asks of a file that can be written, and touch(1): nothing happens, and that is no error.
fn harmless(change: SetAttr, attr: Attr) -> Reply<'static, Attr> {
    let SetAttr { mode, uid, gid, size, atime: _, mtime: _ } = change;
    let writable = attr.mode & 0o222 != 0;
    if mode.is_some() || uid.is_some() || gid.is_some() || !writable || size.is_some_and(|size| size != 0) {
        return Errno::EPERM.into();
    }
    Reply::ok(attr)
}

struct Link {
    attr: Attr,
    target: Bytes,
}

impl Node for Link {
    fn qid(&self) -> Qid {
        self.attr.qid
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(Attr { size: self.target.len() as u64, ..self.attr })
    }

    fn open(&self, _how: How) -> Reply<'_, Handle> {
        Errno::ELOOP.into()
    }

    fn read_link(&self) -> Reply<'_, Bytes> {
        Reply::ok(self.target.clone())
    }
}

#[cfg(test)]
mod tests;
