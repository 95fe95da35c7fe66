//! The root of a server that is reached when it is used, and again when it was lost.
//!
//! Everything is passed on to what is at the server's root at that moment. Until it was reached the first time, and
//! while it cannot be, it is an empty directory that cannot be opened: looking at it from outside starts nothing. It is
//! one file however often the server comes and goes, with an identity of its own.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use p9::tree::{Lease, LeaseKind, OnBreak};
use p9::{
    Attr, Created, Errno, Handle, How, Name, NameBuf, New, Node, NodeRef, Opened, Qid, Reply, SetAttr, StatFs, Walk,
    Want, synth,
};
use parking_lot::Mutex;

use crate::grid::Names;
use crate::under::synthetic;

/// Makes such roots.
pub struct Lazy {
    servers: Arc<dyn Names>,
    server: String,
    spec: Vec<NameBuf>,
    qid: Qid,
    /// The root that the server had when it was last reached, and the directory `spec` of it.
    live: Mutex<Option<(NodeRef, NodeRef)>>,
}

impl Lazy {
    /// The directory `spec` of what `servers` reach under the name `server`; empty: the root. Errors: `spec` is no
    /// path.
    pub fn node(servers: Arc<dyn Names>, server: &str, spec: &str) -> Result<NodeRef, Errno> {
        let spec = Name::split(spec.as_bytes())?.into_iter().map(NameBuf::from).collect();
        let (qid, live) = (synth::dir([]).qid(), Mutex::default());
        Ok(Arc::new(Self { servers, server: server.into(), spec, qid, live }))
    }

    /// What `node` is at its server now, if it is such a root and was reached; else itself.
    pub(crate) fn real(node: &NodeRef) -> NodeRef {
        let any: &dyn Any = &**node;
        let live = any.downcast_ref::<Self>().and_then(|lazy| lazy.live.lock().as_ref().map(|(_, at)| at.clone()));
        live.unwrap_or_else(|| node.clone())
    }

    async fn now(&self) -> Result<NodeRef, Errno> {
        let root = self.servers.reach(&self.server).await?;
        if let Some((known, at)) = &*self.live.lock()
            && Arc::ptr_eq(known, &root)
        {
            return Ok(at.clone());
        }
        let mut at = root.clone();
        if !self.spec.is_empty() {
            let names: Vec<Name<'_>> = self.spec.iter().map(NameBuf::as_name).collect();
            at = root.walk(&names, Want::default()).await?.reached()?.node;
        }
        *self.live.lock() = Some((root, at.clone()));
        Ok(at)
    }

    /// What to ask once more, when `node` answered `errno` because its connection turned out to be dead. Errors:
    /// `errno`, when that is not why.
    async fn again(&self, node: &NodeRef, errno: Errno) -> Result<NodeRef, Errno> {
        if !matches!(errno, Errno::EHOSTUNREACH | Errno::ESTALE | Errno::ECONNRESET) {
            return Err(errno);
        }
        let again = self.now().await?;
        if Arc::ptr_eq(node, &again) { Err(errno) } else { Ok(again) }
    }

    /// Its own identity in what is told of the directory that it stands for.
    fn own(&self, attr: Attr) -> Attr {
        Attr { qid: self.qid, ..attr }
    }
}

/// Passes a question on that may be asked again.
macro_rules! ask {
    ($self:ident, |$node:ident| $question:expr) => {
        Reply::later(async move {
            let now = $self.now().await?;
            let $node = &now;
            match $question.await {
                Err(errno) => {
                    let $node = &$self.again(&now, errno).await?;
                    $question.await
                }
                answer => answer,
            }
        })
    };
}

/// Passes a change on.
macro_rules! change {
    ($self:ident, |$node:ident| $question:expr) => {
        Reply::later(async move {
            let $node = &$self.now().await?;
            $question.await
        })
    };
}

impl Node for Lazy {
    fn qid(&self) -> Qid {
        self.qid
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        ask!(self, |node| node.walk(names, want))
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        Reply::later(async move {
            let opened: Result<Opened, Errno> = ask!(self, |node| node.open_at(names, how, want)).await;
            let opened = opened?;
            if !names.is_empty() {
                return Ok(opened);
            }
            Ok(Opened { attr: opened.attr.map(|attr| self.own(attr)), node: None, ..opened })
        })
    }

    fn fetch<'a>(&'a self, name: Name<'a>, count: u32) -> Reply<'a, (Qid, Bytes)> {
        ask!(self, |node| node.fetch(name, count))
    }

    fn attr(&self) -> Reply<'_, Attr> {
        let live = self.live.lock().as_ref().map(|(_, at)| at.clone());
        let Some(live) = live else { return Reply::ok(synthetic(self.qid)) };
        Reply::later(async move {
            match live.attr().await {
                Ok(attr) => Ok(self.own(attr)),
                Err(Errno::EINTR) => Err(Errno::EINTR),
                // It is gone, and looking at it from outside does not bring it back.
                Err(_) => Ok(synthetic(self.qid)),
            }
        })
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        ask!(self, |node| node.open(how))
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        change!(self, |node| node.create(name, what))
    }

    fn create_leased<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        change!(self, |node| node.create_leased(name, what))
    }

    fn set_attr(&self, change: SetAttr) -> Reply<'_, Attr> {
        Reply::later(async move { Ok(self.own(self.now().await?.set_attr(change).await?)) })
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        change!(self, |node| node.remove(name, dir))
    }

    fn rename<'a>(&'a self, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32) -> Reply<'a, ()> {
        change!(self, |node| node.rename(name, &Self::real(new_dir), new_name, flags))
    }

    fn link<'a>(&'a self, target: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        change!(self, |node| node.link(target, name))
    }

    fn stat_fs(&self) -> Reply<'_, StatFs> {
        ask!(self, |node| node.stat_fs())
    }

    fn sync(&self) -> Reply<'_, ()> {
        change!(self, |node| node.sync())
    }

    fn xattr<'a>(&'a self, name: &'a [u8]) -> Reply<'a, Bytes> {
        ask!(self, |node| node.xattr(name))
    }

    fn xattrs(&self) -> Reply<'_, Bytes> {
        ask!(self, |node| node.xattrs())
    }

    fn set_xattr<'a>(&'a self, name: &'a [u8], value: Option<Bytes>, flags: u32) -> Reply<'a, ()> {
        change!(self, |node| node.set_xattr(name, value, flags))
    }

    fn lease(&self, want: LeaseKind, on_break: OnBreak) -> Reply<'_, Option<Lease>> {
        change!(self, |node| node.lease(want, on_break))
    }
}
