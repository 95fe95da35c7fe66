//! The directory at /n: the nodes that are known, each dialled when it is used (Plan 9's mntgen).
//!
//! Listing it, and looking at an entry, dial nobody: an entry is a directory of ours until something within it is asked
//! for. A node that was lost is reached again at the next use, since an entry keeps a name and no connection.

use std::collections::HashMap;
use std::sync::Arc;

use p9::layer::Layer;
use p9::synth::{self, Listing};
use p9::{Attr, Errno, Handle, How, Name, NameBuf, Node, NodeRef, Opened, Qid, Reply, Walk, Want};
use parking_lot::Mutex;

use crate::under::{TreeId, Under, synthetic};

/// The nodes that are known.
pub trait Names: Send + Sync + 'static {
    /// Their names now. It does not wait for anyone.
    fn names(&self) -> Vec<String>;

    /// The root of the node `name`: the same for as long as the connection lasts. Errors: `ENOENT` for one that is not
    /// known, `EHOSTUNREACH` for one that cannot be reached.
    fn reach<'a>(&'a self, name: &'a str) -> Reply<'a, NodeRef>;
}

/// Makes the directory.
pub struct Grid {
    names: Arc<dyn Names>,
    entries: Mutex<HashMap<String, NodeRef>>,
}

impl Grid {
    /// The directory of the nodes that `names` knows.
    #[expect(clippy::new_ret_no_self, reason = "what it makes is used as a node, whatever it is behind")]
    pub fn new(names: Arc<dyn Names>) -> NodeRef {
        synth::directory(Arc::new(Self { names, entries: Mutex::default() }))
    }

    /// The entry of a known node: one for each name, so that its identity lasts.
    fn entry(&self, name: &str) -> NodeRef {
        let mut entries = self.entries.lock();
        let made = || -> NodeRef {
            let qid = synth::dir([]).qid();
            Arc::new(Remote { names: self.names.clone(), name: name.to_string(), id: TreeId::of("/n", name), qid })
        };
        entries.entry(name.to_string()).or_insert_with(made).clone()
    }
}

impl Listing for Grid {
    fn lookup<'a>(&'a self, name: Name<'a>) -> Reply<'a, Option<NodeRef>> {
        let known = self.names.names().into_iter().find(|known| known.as_bytes() == name.as_bytes());
        Reply::ok(known.map(|known| self.entry(&known)))
    }

    fn list(&self) -> Reply<'_, Vec<(NameBuf, NodeRef)>> {
        let named = |name: String| Some((NameBuf::new(name.as_bytes()).ok()?, self.entry(&name)));
        Reply::ok(self.names.names().into_iter().filter_map(named).collect())
    }
}

/// A node, by its name.
struct Remote {
    names: Arc<dyn Names>,
    name: String,
    id: TreeId,
    qid: Qid,
}

impl Remote {
    /// What is at the node's root now.
    async fn root(&self) -> Result<NodeRef, Errno> {
        self.names.reach(&self.name).await
    }

    fn show(&self, root: &NodeRef) -> NodeRef {
        Under { id: self.id, at: None }.over(root.clone())
    }

    /// The root to ask once more, when `root` answered `errno` because its connection turned out to be dead. Errors:
    /// `errno`, when that is not why.
    async fn again(&self, root: &NodeRef, errno: Errno) -> Result<NodeRef, Errno> {
        // The last two: it was started anew, and what was open there, or under way, is gone.
        if !matches!(errno, Errno::EHOSTUNREACH | Errno::ESTALE | Errno::ECONNRESET) {
            return Err(errno);
        }
        let again = self.root().await?;
        if Arc::ptr_eq(root, &again) { Err(errno) } else { Ok(self.show(&again)) }
    }

    async fn walk_now(&self, names: &[Name<'_>], want: Want) -> Result<Walk, Errno> {
        let root = self.root().await?;
        match self.show(&root).walk(names, want).await {
            Err(errno) => self.again(&root, errno).await?.walk(names, want).await,
            walk => walk,
        }
    }

    async fn open_now(&self, names: &[Name<'_>], how: How, want: Want) -> Result<Opened, Errno> {
        let root = self.root().await?;
        match self.show(&root).open_at(names, how, want).await {
            Err(errno) => self.again(&root, errno).await?.open_at(names, how, want).await,
            opened => opened,
        }
    }
}

impl Node for Remote {
    fn qid(&self) -> Qid {
        self.qid
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        Reply::later(self.walk_now(names, want))
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        Reply::later(async move {
            if names.is_empty() {
                let (handle, attr) = (self.open(how).await?, self.attr_if(want.attr).await?);
                return Ok(Opened { node: None, attr, handle, first: None, lease: None });
            }
            self.open_now(names, how, want).await
        })
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(synthetic(self.qid))
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        if how.changes() {
            return Errno::EISDIR.into();
        }
        Reply::later(async move { Ok(self.open_now(&[], how, Want::default()).await?.handle) })
    }
}
