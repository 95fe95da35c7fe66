//! Synthetic directories: fixed ones, and those whose entries come and go.
//!
//! A cookie is the qid path of the entry before, and entries are listed in the order of their qid paths, so that it
//! stays good whatever comes and goes in between.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::{
    Attr, Dir, DirSink, Entry, Errno, FileKind, Handle, How, Name, NameBuf, Node, NodeRef, Qid, Reply, SetAttr, Walk,
    Want,
};

/// The entries of a directory that is not fixed.
pub trait Listing: Send + Sync + 'static {
    /// The entry called `name`, if there is one.
    fn lookup<'a>(&'a self, name: Name<'a>) -> Reply<'a, Option<NodeRef>>;

    /// All entries, in any order.
    fn list(&self) -> Reply<'_, Vec<(NameBuf, NodeRef)>>;
}

/// A directory with these entries (0555). Names that cannot be names are left out.
pub fn dir<'n>(entries: impl IntoIterator<Item = (&'n str, NodeRef)>) -> NodeRef {
    let named = |(name, node): (&str, NodeRef)| Some((NameBuf::new(name).ok()?, node));
    directory(Arc::new(Fixed(entries.into_iter().filter_map(named).collect())))
}

/// A directory whose entries are what `listing` says (0555).
pub fn directory(listing: Arc<dyn Listing>) -> NodeRef {
    Arc::new(Directory { attr: super::attr(FileKind::Dir, 0o555), listing })
}

struct Fixed(BTreeMap<NameBuf, NodeRef>);

impl Listing for Fixed {
    fn lookup<'a>(&'a self, name: Name<'a>) -> Reply<'a, Option<NodeRef>> {
        Reply::ok(self.0.get(name.as_bytes()).cloned())
    }

    fn list(&self) -> Reply<'_, Vec<(NameBuf, NodeRef)>> {
        Reply::ok(self.0.iter().map(|(name, node)| (name.clone(), node.clone())).collect())
    }
}

struct Directory {
    attr: Attr,
    listing: Arc<dyn Listing>,
}

impl Directory {
    async fn walk_on(&self, names: &[Name<'_>], want: Want) -> Result<Walk, Errno> {
        let Some((&first, rest)) = names.split_first() else { return Err(Errno::EINVAL) };
        let node = self.listing.lookup(first).await?.ok_or(Errno::ENOENT)?;
        if rest.is_empty() {
            let attr = node.attr_if(want.attr).await?;
            return Ok(Walk::one(node, attr));
        }
        let below = node.walk(rest, want).await;
        Ok(Walk::after(node.qid(), below))
    }
}

impl Node for Directory {
    fn qid(&self) -> Qid {
        self.attr.qid
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        Reply::later(self.walk_on(names, want))
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(self.attr)
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        if how.changes() {
            return Errno::EISDIR.into();
        }
        Reply::ok(Handle::Dir(Arc::new(Open(self.listing.clone()))))
    }

    fn set_attr(&self, _change: SetAttr) -> Reply<'_, Attr> {
        Errno::EPERM.into()
    }
}

struct Open(Arc<dyn Listing>);

impl Dir for Open {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        self.0.list().then(move |entries| {
            let mut entries = entries?;
            entries.sort_by_key(|(_, node)| node.qid().path);
            let after = entries.partition_point(|(_, node)| node.qid().path <= cookie);
            for (name, node) in &entries[after..] {
                let qid = node.qid();
                let entry =
                    Entry { cookie: qid.path, qid, kind: qid.kind.mode_bits(), attr: None, name: name.as_name() };
                if let ControlFlow::Break(()) = each(entry) {
                    break;
                }
            }
            Ok(())
        })
    }
}
