//! The namespace as a value: what is mounted and bound, and the tree that this makes.
//!
//! Shared by all who hold a clone. A change replaces the table at once: no reader sees it half made, and what is open
//! stays what it was. Resolving the names of a bind may ask other machines, which happens before the change.

use std::fmt;
use std::sync::Arc;

use p9::{Errno, FileKind, Name, NameBuf, NodeRef, Reply, Tree, Walk, Want, Who};
use parking_lot::RwLock;

use crate::point::Point;
use crate::table::{Member, Table};
use crate::text::{Flags, Line};
use crate::under::{TreeId, Under};

/// A namespace. Cheap to clone; clones are the same namespace.
#[derive(Clone, Default)]
pub struct Namespace(pub(crate) Arc<RwLock<Table>>);

/// Why a namespace was not changed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// A path that is none.
    #[error("{path}: {errno}")]
    Path {
        /// The path.
        path: String,
        /// What is wrong with it, or what the tree that has it answered.
        errno: Errno,
    },
    /// A server that could not be reached.
    #[error("mount {server}: {errno}")]
    Dial {
        /// The server.
        server: String,
        /// What dialling it met.
        errno: Errno,
    },
    /// A directory over a file, or a file over a directory or in a union.
    #[error("{new} on {old}: a directory goes on a directory, a file on a file, and files have no unions")]
    Kind {
        /// What was to be mounted.
        new: String,
        /// Where.
        old: String,
    },
    /// Nothing of the kind is mounted there.
    #[error("{0}: not mounted")]
    NotMounted(String),
}

impl Namespace {
    /// An empty namespace: its root is an empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Mounts the tree with the root `root` at `old`, as mount(2). `server` and `spec` say where the tree is from, for
    /// the text.
    pub async fn mount(&self, server: &str, spec: &str, root: NodeRef, old: &str, flags: Flags) -> Result<(), Error> {
        let new = vec![Member { id: TreeId::next(), node: root, create: flags.create }];
        let line = Line::Mount { flags, server: server.into(), old: old.into(), spec: spec.into() };
        self.put(server, new, old, flags, line).await
    }

    /// Binds what is at `new` now to `old`, as bind(2): of a union, a copy of its list.
    pub async fn bind(&self, new: &str, old: &str, flags: Flags) -> Result<(), Error> {
        let mut members = self.members(new).await?;
        if flags.create {
            members.iter_mut().for_each(|member| member.create = true);
        }
        let line = Line::Bind { flags, new: new.into(), old: old.into() };
        self.put(new, members, old, flags, line).await
    }

    /// Unmounts all that is at `old`, or what `new` stands for of it.
    pub async fn unmount(&self, new: Option<&str>, old: &str) -> Result<(), Error> {
        let path = split(old)?;
        let only = match new {
            Some(new) => Some(self.members(new).await?),
            None => None,
        };
        let line = Line::Unmount { new: new.map(str::to_string), old: old.into() };
        let mut table = self.0.write();
        let changed = table.unmounted(&path, only.as_deref(), line);
        *table = changed.map_err(|_| Error::NotMounted(old.into()))?;
        Ok(())
    }

    /// The lines that made it, in order.
    pub fn lines(&self) -> Vec<Line> {
        self.0.read().lines.clone()
    }

    async fn put(&self, new: &str, members: Vec<Member>, old: &str, flags: Flags, line: Line) -> Result<(), Error> {
        let path = split(old)?;
        let beneath = match path.is_empty() && self.0.read().root.members.is_empty() {
            true => None,
            false => self.members(old).await.ok().and_then(|there| there.into_iter().next()),
        };
        let is_dir = |member: &Member| member.node.qid().kind == FileKind::Dir;
        let dirs = members.iter().all(is_dir);
        let fits = beneath.as_ref().is_none_or(|beneath| is_dir(beneath) == dirs) && (dirs || !flags.union());
        if !fits || members.is_empty() {
            return Err(Error::Kind { new: new.into(), old: old.into() });
        }
        let original = beneath.map(|member| Member { create: false, ..member });
        let mut table = self.0.write();
        *table = table.mounted(&path, members, original, flags, line);
        Ok(())
    }

    /// What is at `path`, in the trees that have it.
    async fn members(&self, path: &str) -> Result<Vec<Member>, Error> {
        let node = self.walk(path).await.map_err(|errno| Error::Path { path: path.into(), errno })?;
        if let Some(Under { id, node }) = Under::of(&node) {
            return Ok(vec![Member { id: *id, node: node.clone(), create: true }]);
        }
        let members = Point::of(&node).map(Point::members).unwrap_or_default();
        if members.is_empty() {
            return Err(Error::Path { path: path.into(), errno: Errno::ENOENT });
        }
        Ok(members)
    }

    /// The file at `path`.
    pub async fn walk(&self, path: &str) -> Result<NodeRef, Errno> {
        let root: NodeRef = Point::root(self);
        let names = Name::split(path.as_bytes())?;
        if names.is_empty() {
            return Ok(root);
        }
        root.walk(&names, Want::default()).await.and_then(Walk::reached).map(|reached| reached.node)
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.read().lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Tree for Namespace {
    fn attach<'a>(&'a self, _who: &'a Who, aname: &'a [u8]) -> Reply<'a, NodeRef> {
        match std::str::from_utf8(aname) {
            Ok("" | "/") => Reply::ok(Point::root(self)),
            Ok(path) => Reply::later(self.walk(path)),
            Err(_) => Errno::ENOENT.into(),
        }
    }
}

fn split(path: &str) -> Result<Vec<NameBuf>, Error> {
    let names = Name::split(path.as_bytes()).map_err(|errno| Error::Path { path: path.into(), errno })?;
    Ok(names.into_iter().map(NameBuf::from).collect())
}
