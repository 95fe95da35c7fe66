//! A directory that a member of a merging union does not have, where others do: it is made when something is put in it.
//!
//! A node that [`crate::point`] adds to the members of a place, so that new files, and marks, go into the member that
//! takes them. Until it is made it is empty, and its attributes are nobody's: whoever looks for the first member of a
//! place passes it over. It holds its parent, which may be such a directory, too.

use std::any::Any;
use std::sync::Arc;

use p9::{Attr, Created, Errno, Handle, How, Name, NameBuf, New, Node, NodeRef, Qid, Reply, Walk, Want, What, synth};

use crate::under::synthetic;

pub(crate) struct Absent {
    parent: NodeRef,
    name: NameBuf,
    /// The directory of that name that another member has.
    like: NodeRef,
    qid: Qid,
}

impl Absent {
    /// The directory `name` of `parent`, which is to be as `like` is.
    pub(crate) fn node(parent: NodeRef, name: Name<'_>, like: NodeRef) -> NodeRef {
        Arc::new(Self { parent, name: name.into(), like, qid: synth::dir([]).qid() })
    }

    pub(crate) fn is(node: &NodeRef) -> bool {
        let any: &dyn Any = &**node;
        any.is::<Self>()
    }

    /// `node`, made if it is such a directory.
    pub(crate) async fn made(node: &NodeRef) -> Result<NodeRef, Errno> {
        let any: &dyn Any = &**node;
        match any.downcast_ref::<Self>() {
            Some(absent) => Box::pin(absent.make()).await,
            None => Ok(node.clone()),
        }
    }

    /// The directory, if it has been made since.
    async fn there(&self) -> Result<NodeRef, Errno> {
        Ok(self.parent.walk(&[self.name.as_name()], Want::default()).await?.reached()?.node)
    }

    async fn make(&self) -> Result<NodeRef, Errno> {
        match self.there().await {
            Err(Errno::ENOENT) => {}
            there => return there,
        }
        let mode = self.like.attr().await.map_or(0o755, |attr| attr.mode & 0o7777);
        let parent = Self::made(&self.parent).await?;
        let made = parent.create(self.name.as_name(), New { what: What::Dir, mode, owner: None }).await;
        match made {
            Ok(created) => Ok(created.node),
            Err(Errno::EEXIST) => self.there().await,
            Err(errno) => Err(errno),
        }
    }
}

impl Node for Absent {
    fn qid(&self) -> Qid {
        self.qid
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        Reply::later(async move { self.there().await?.walk(names, want).await })
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(synthetic(self.qid))
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        Reply::later(async move {
            match self.there().await {
                Ok(there) => there.open(how).await,
                Err(Errno::ENOENT) => synth::dir([]).open(how).await,
                Err(errno) => Err(errno),
            }
        })
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        Reply::later(async move { self.make().await?.create(name, what).await })
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        Reply::later(async move { self.there().await?.remove(name, dir).await })
    }

    fn link<'a>(&'a self, target: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        Reply::later(async move { self.make().await?.link(target, name).await })
    }
}
