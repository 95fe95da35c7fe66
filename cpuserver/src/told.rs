//! The caller's tree, of which the caller has told the node what a command needs to start.
//!
//! Over the client that reaches the caller, beneath the command's namespace; made for each connection that brings a
//! tree together with facts. Walks and attributes that were told wait for nobody; everything that was told is walked to
//! and opened at the same time, as soon as this is made, so that whoever opens one waits for one round trip, however
//! many come after it. Facts are old after a moment, and as soon as the command changes anything; then, and for what
//! was not told, the caller is asked. Invariant: a file that was opened is handed out only if it still is what was
//! told.

mod facts;

use std::any::Any;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use p9::layer::{FileLayer, LayeredFile};
use p9::tree::{Lease, LeaseKind, Lock, OnBreak};
use p9::{
    Attr, Created, Digest, Errno, Handle, How, Name, NameBuf, New, Node, NodeRef, Opened, Qid, Reached, Reply, SetAttr,
    StatFs, Stream, Walk, Want,
};
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use facts::Fact;
pub(crate) use facts::MOST;
pub use facts::{Memory, gather};

/// How long facts are good once the caller's files were reached: longer than a command takes to start.
const FRESH: Duration = Duration::from_secs(2);

/// What was told of one caller's tree.
struct Tree {
    /// The caller's root.
    root: NodeRef,
    files: HashMap<Vec<NameBuf>, Arc<File>>,
    /// Until when facts are good, once that is known.
    until: OnceLock<Instant>,
    /// The command has changed something.
    changed: AtomicBool,
}

/// A file that was told of.
struct File {
    path: Vec<NameBuf>,
    fact: Fact,
    /// The caller's own.
    real: OnceCell<Result<NodeRef, Errno>>,
    /// It, opened for reading, until somebody takes it.
    opened: Mutex<Option<Opened>>,
}

/// A file of the tree.
struct Told {
    tree: Arc<Tree>,
    which: Which,
}

enum Which {
    /// One that was told of, with its attributes.
    Told(Arc<File>, Attr),
    /// Another: the caller's own.
    Real(NodeRef),
}

/// What a caller told, read.
pub(crate) struct Facts(facts::Facts);

impl Facts {
    /// What `told` says, if that is anything of the root.
    pub(crate) fn read(told: &[u8]) -> Option<Self> {
        let facts = facts::read(told);
        facts.get(&Vec::new()).is_some_and(|root| root.found.is_ok()).then_some(Self(facts))
    }

    /// What the root is.
    pub(crate) fn root(&self) -> Qid {
        self.0.get(&Vec::new()).and_then(|root| root.found.ok()).map(|attr| attr.qid).unwrap_or_default()
    }

    /// `root`, of which this was told.
    pub(crate) fn over(self, root: NodeRef) -> NodeRef {
        let file = |(path, fact): (Vec<NameBuf>, Fact)| {
            let file = File { path: path.clone(), fact, real: OnceCell::new(), opened: Mutex::default() };
            (path, Arc::new(file))
        };
        let files: HashMap<_, _> = self.0.into_iter().map(file).collect();
        let tree = Arc::new(Tree { root, files, until: OnceLock::new(), changed: AtomicBool::new(false) });
        let reaching = tree.clone();
        tokio::spawn(async move {
            join_all(reaching.files.values().map(|file| reaching.reach(file))).await;
            _ = reaching.until.set(Instant::now() + FRESH);
            let tree = Arc::downgrade(&reaching);
            drop(reaching);
            tokio::time::sleep(FRESH).await;
            // What nobody took, nobody will.
            let files = tree.upgrade().into_iter().flat_map(|tree| tree.files.values().cloned().collect::<Vec<_>>());
            files.for_each(|file| drop(file.opened.lock().take()));
        });
        match tree.told(&[]) {
            Some(Ok(told)) => told,
            _ => tree.root.clone(),
        }
    }
}

impl Tree {
    fn is_fresh(&self) -> bool {
        !self.changed.load(Ordering::SeqCst) && self.until.get().is_none_or(|until| Instant::now() < *until)
    }

    /// What is told of the file at `path`, if anything still is.
    fn told(self: &Arc<Self>, path: &[NameBuf]) -> Option<Result<NodeRef, Errno>> {
        let file = self.files.get(path).filter(|_| self.is_fresh())?;
        Some(file.fact.found.map(|attr| self.node(Which::Told(file.clone(), attr))))
    }

    fn node(self: &Arc<Self>, which: Which) -> NodeRef {
        Arc::new(Told { tree: self.clone(), which })
    }

    /// What a walk at the caller came to.
    fn walked(self: &Arc<Self>, walk: Walk) -> Walk {
        let end = walk.end.map(|end| Reached { node: self.node(Which::Real(end.node)), ..end });
        Walk { end, ..walk }
    }

    /// What was opened at the caller.
    fn opened(self: &Arc<Self>, opened: Opened) -> Opened {
        Opened { node: opened.node.map(|node| self.node(Which::Real(node))), ..opened }
    }

    fn created(self: &Arc<Self>, created: Created) -> Created {
        Created { node: self.node(Which::Real(created.node)), ..created }
    }

    /// The caller's own file, to which the way is gone once.
    async fn reach(&self, file: &File) -> Result<NodeRef, Errno> {
        let reached = file.real.get_or_init(|| async {
            let attr = file.fact.found?;
            if file.path.is_empty() {
                return Ok(self.root.clone());
            }
            let names: Vec<Name<'_>> = file.path.iter().map(NameBuf::as_name).collect();
            if attr.mode & libc::S_IFMT != libc::S_IFREG {
                let reached = self.root.walk(&names, Want::default()).await?.reached()?;
                return self.still(&attr, reached.node);
            }
            let want = Want { attr: true, data: 0, lease: LeaseKind::Attr };
            match self.root.open_at(&names, How::READ, want).await {
                Ok(opened) => {
                    let node = opened.node.clone().ok_or(Errno::EIO)?;
                    if opened.attr.is_some_and(|now| now.qid == attr.qid && now.mtime == attr.mtime) {
                        *file.opened.lock() = Some(opened);
                    } else {
                        // Whatever else was told is as old.
                        self.changed.store(true, Ordering::SeqCst);
                    }
                    self.still(&attr, node)
                }
                // It may be there all the same, and not be ours to read.
                Err(_) => self.still(&attr, self.root.walk(&names, Want::default()).await?.reached()?.node),
            }
        });
        reached.await.clone()
    }

    /// `node`, if it is the file that `attr` was told of.
    fn still(&self, attr: &Attr, node: NodeRef) -> Result<NodeRef, Errno> {
        if node.qid().path == attr.qid.path {
            return Ok(node);
        }
        self.changed.store(true, Ordering::SeqCst);
        Err(Errno::ESTALE)
    }
}

impl Told {
    async fn real(&self) -> Result<NodeRef, Errno> {
        match &self.which {
            Which::Told(file, _) => self.tree.reach(file).await,
            Which::Real(node) => Ok(node.clone()),
        }
    }

    /// The same for what changes something: nothing that was told is sure any more.
    async fn to_change(&self) -> Result<NodeRef, Errno> {
        self.tree.changed.store(true, Ordering::SeqCst);
        self.real().await
    }

    /// How far a walk of `names` gets by what was told; nothing, if the caller has to be asked.
    fn walk_told(&self, names: &[Name<'_>], want: Want) -> Option<Result<Walk, Errno>> {
        let Which::Told(file, _) = &self.which else { return None };
        let path: Vec<_> = file.path.iter().cloned().chain(names.iter().map(|name| NameBuf::from(*name))).collect();
        let mut qids = Vec::with_capacity(names.len());
        let mut end = None;
        for length in path.len() - names.len() + 1..=path.len() {
            match self.tree.told(&path[..length])? {
                Ok(node) => {
                    qids.push(node.qid());
                    end = Some(node);
                }
                Err(errno) if qids.is_empty() => return Some(Err(errno)),
                Err(errno) => return Some(Ok(Walk { qids, end: Err(errno) })),
            }
        }
        let attr = self.tree.files.get(&path).and_then(|file| file.fact.found.ok()).filter(|_| want.attr);
        Some(Ok(Walk { qids, end: Ok(Reached { node: end?, attr, lease: None }) }))
    }

    /// The file itself as it was opened ahead, if it is to be opened like that.
    async fn opened_ahead(&self, how: How, want: Want) -> Option<Opened> {
        let reads = How { exec: false, nonblock: false, ..how } == How::READ;
        if !reads || want.lease > LeaseKind::Attr || !self.tree.is_fresh() {
            return None;
        }
        let Which::Told(file, _) = &self.which else { return None };
        self.tree.reach(file).await.ok()?;
        let opened = file.opened.lock().take()?;
        let handle = match (&file.fact.digest, &file.fact.data) {
            (None, None) => opened.handle,
            _ => LayeredFile::over(Contents { file: file.clone(), tree: self.tree.clone() }, opened.handle),
        };
        let (attr, lease) = (opened.attr.filter(|_| want.attr), opened.lease.filter(|_| want.lease > LeaseKind::None));
        Some(Opened { node: None, attr, handle, first: None, lease })
    }
}

/// Over a file that was opened ahead, and still was what was told: what that holds or hashes to was told, too.
struct Contents {
    file: Arc<File>,
    tree: Arc<Tree>,
}

impl FileLayer for Contents {
    fn read<'a>(&'a self, below: &'a Handle, offset: u64, count: u32) -> Reply<'a, Bytes> {
        match &self.file.fact.data {
            Some(data) if self.tree.is_fresh() => {
                let start = data.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
                Reply::ok(data.slice(start..data.len().min(start.saturating_add(count as usize))))
            }
            _ => below.read(offset, count),
        }
    }

    fn digest<'a>(&'a self, below: &'a Handle, offset: u64, count: u64) -> Reply<'a, Digest> {
        match self.file.fact.digest {
            Some(digest) if offset == 0 && count >= digest.count && self.tree.is_fresh() => Reply::ok(digest),
            _ => below.digest(offset, count),
        }
    }
}

/// What `node` is at the caller.
async fn real(node: &NodeRef) -> Result<NodeRef, Errno> {
    let any: &dyn Any = &**node;
    match any.downcast_ref::<Told>() {
        Some(told) => told.real().await,
        None => Ok(node.clone()),
    }
}

/// Asks the caller.
macro_rules! ask {
    ($self:ident, |$node:ident| $question:expr) => {
        Reply::later(async move {
            let $node = &$self.real().await?;
            $question.await
        })
    };
}

/// The same for a change.
macro_rules! change {
    ($self:ident, |$node:ident| $question:expr) => {
        Reply::later(async move {
            let $node = &$self.to_change().await?;
            $question.await
        })
    };
}

impl Node for Told {
    fn qid(&self) -> Qid {
        match &self.which {
            Which::Told(_, attr) => attr.qid,
            Which::Real(node) => node.qid(),
        }
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        match self.walk_told(names, want) {
            Some(walk) => walk.into(),
            None => ask!(self, |node| node.walk(names, want)).map(|walk| self.tree.walked(walk)),
        }
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        Reply::later(async move {
            if how.changes() {
                self.tree.changed.store(true, Ordering::SeqCst);
            }
            if names.is_empty() {
                return match self.opened_ahead(how, want).await {
                    Some(opened) => Ok(opened),
                    None => self.real().await?.open_at(&[], how, want).await,
                };
            }
            if let Some(Ok(Walk { end, .. })) = self.walk_told(names, Want::default())
                && let Ok(Reached { node, .. }) = end
            {
                match node.open_at(&[], how, want).await {
                    // Something else is called so by now.
                    Err(Errno::ESTALE) => {}
                    opened => return opened.map(|opened| Opened { node: Some(node), ..opened }),
                }
            }
            let opened = self.real().await?.open_at(names, how, want).await?;
            Ok(self.tree.opened(opened))
        })
    }

    fn fetch<'a>(&'a self, name: Name<'a>, count: u32) -> Reply<'a, (Qid, Bytes)> {
        ask!(self, |node| node.fetch(name, count))
    }

    fn attr(&self) -> Reply<'_, Attr> {
        match &self.which {
            Which::Told(_, attr) if self.tree.is_fresh() => Reply::ok(*attr),
            _ => ask!(self, |node| node.attr()),
        }
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        self.open_at(&[], how, Want::default()).map(|opened| opened.handle)
    }

    fn create<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        change!(self, |node| node.create(name, what)).map(|created| self.tree.created(created))
    }

    fn create_leased<'a>(&'a self, name: Name<'a>, what: New<'a>) -> Reply<'a, Created> {
        change!(self, |node| node.create_leased(name, what)).map(|created| self.tree.created(created))
    }

    fn set_attr(&self, change: SetAttr) -> Reply<'_, Attr> {
        change!(self, |node| node.set_attr(change))
    }

    fn remove<'a>(&'a self, name: Name<'a>, dir: bool) -> Reply<'a, ()> {
        change!(self, |node| node.remove(name, dir))
    }

    fn rename<'a>(&'a self, name: Name<'a>, new_dir: &'a NodeRef, new_name: Name<'a>, flags: u32) -> Reply<'a, ()> {
        Reply::later(async move {
            let (from, to) = (self.to_change().await?, real(new_dir).await?);
            from.rename(name, &to, new_name, flags).await
        })
    }

    fn link<'a>(&'a self, target: &'a NodeRef, name: Name<'a>) -> Reply<'a, ()> {
        Reply::later(async move {
            let (dir, target) = (self.to_change().await?, real(target).await?);
            dir.link(&target, name).await
        })
    }

    fn read_link(&self) -> Reply<'_, Bytes> {
        if let Which::Told(file, _) = &self.which
            && let Some(target) = file.fact.target.as_ref().filter(|_| self.tree.is_fresh())
        {
            return Reply::ok(target.clone());
        }
        ask!(self, |node| node.read_link())
    }

    fn stat_fs(&self) -> Reply<'_, StatFs> {
        ask!(self, |node| node.stat_fs())
    }

    fn sync(&self) -> Reply<'_, ()> {
        ask!(self, |node| node.sync())
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

    fn lock(&self, lock: Lock, wait: bool) -> Reply<'_, ()> {
        ask!(self, |node| node.lock(lock, wait))
    }

    fn conflicting_lock(&self, lock: Lock) -> Reply<'_, Option<Lock>> {
        ask!(self, |node| node.conflicting_lock(lock))
    }

    fn lease(&self, want: LeaseKind, on_break: OnBreak) -> Reply<'_, Option<Lease>> {
        ask!(self, |node| node.lease(want, on_break))
    }

    fn events(&self) -> Reply<'_, Arc<dyn Stream>> {
        ask!(self, |node| node.events())
    }
}

#[cfg(test)]
mod tests;
