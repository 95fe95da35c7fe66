//! An empty directory that nothing can be put into.
//!
//! What a disk tree shows in place of a slashn mount or of /proc, and what a rule shows in place of a directory whose
//! contents are nobody's business. It answers everything in place and touches nothing.

use std::sync::Arc;

use p9::{Attr, Dir, DirSink, Errno, FileKind, Handle, How, Name, Node, NodeRef, Qid, Reply, Walk, Want};

/// The directory, known by its qid.
pub(crate) struct Empty(Qid);

impl Empty {
    /// An empty directory whose `qid.path` is `path`.
    pub(crate) fn node(path: u64) -> NodeRef {
        Arc::new(Self(Self::attr_of(path).qid))
    }

    /// The attributes of the one whose `qid.path` is `path`.
    pub(crate) fn attr_of(path: u64) -> Attr {
        Attr::synthetic(Qid { kind: FileKind::Dir, version: 0, path }, 0o555)
    }

    /// Such a directory, opened.
    pub(crate) fn handle(how: How) -> Result<Handle, Errno> {
        if how.changes() { Err(Errno::EISDIR) } else { Ok(Handle::Dir(Arc::new(NoEntries))) }
    }
}

impl Node for Empty {
    fn qid(&self) -> Qid {
        self.0
    }

    fn walk<'a>(&'a self, _names: &'a [Name<'a>], _want: Want) -> Reply<'a, Walk> {
        Errno::ENOENT.into()
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(Self::attr_of(self.0.path))
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        Self::handle(how).into()
    }
}

struct NoEntries;

impl Dir for NoEntries {
    fn list<'a>(&'a self, _cookie: u64, _each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        Reply::ok(())
    }
}
