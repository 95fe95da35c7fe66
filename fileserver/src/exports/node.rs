//! The directory of exports: fixed names, and a node of another tree under each.
//!
//! Made for one peer at attach, read in any task; it answers everything in place, except what it asks of the trees
//! beneath. Its qid is its own, and never that of a file on a disk, whose hash would have to hit this one number.

use std::ops::ControlFlow;
use std::sync::Arc;

use p9::{
    Attr, Dir, DirSink, Entry, Errno, FileKind, Handle, How, Name, NameBuf, Node, NodeRef, Qid, Reached, Reply, Walk,
    Want,
};

struct Directory(Arc<[(NameBuf, NodeRef)]>);

/// A directory of these nodes by these names.
pub(super) fn directory(entries: impl Iterator<Item = (String, NodeRef)>) -> NodeRef {
    Arc::new(Directory(entries.filter_map(|(name, node)| Some((NameBuf::new(name).ok()?, node))).collect()))
}

const QID: Qid = Qid { kind: FileKind::Dir, version: 0, path: 0x6578_706f_7274_7321 };

impl Node for Directory {
    fn qid(&self) -> Qid {
        QID
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        let Some((first, rest)) = names.split_first() else { return Errno::EINVAL.into() };
        let Some((_, node)) = self.0.iter().find(|(name, _)| name.as_name() == *first) else {
            return Errno::ENOENT.into();
        };
        if !rest.is_empty() {
            return node.walk(rest, want).then(|below| Ok(Walk::after(node.qid(), below)));
        }
        // What was only wanted along with the walk does not fail it.
        node.attr_if(want.attr).then(|attr| {
            let reached = Reached { node: node.clone(), attr: attr.unwrap_or(None), lease: None };
            Ok(Walk { qids: vec![node.qid()], end: Ok(reached) })
        })
    }

    fn attr(&self) -> Reply<'_, Attr> {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Reply::ok(Attr { uid, gid, ..Attr::synthetic(QID, 0o555) })
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        if how.changes() {
            return Errno::EISDIR.into();
        }
        Reply::ok(Handle::Dir(Arc::new(Self(self.0.clone()))))
    }
}

impl Dir for Directory {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        // The names never change, so an entry's number is its cookie.
        for (index, (name, node)) in self.0.iter().enumerate().skip(cookie as usize) {
            let qid = node.qid();
            let entry =
                Entry { cookie: index as u64 + 1, qid, kind: qid.kind.mode_bits(), attr: None, name: name.as_name() };
            if let ControlFlow::Break(()) = each(entry) {
                break;
            }
        }
        Reply::ok(())
    }
}
