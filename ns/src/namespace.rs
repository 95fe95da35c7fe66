//! The namespace as a value: what is mounted and bound, and the tree that this makes.
//!
//! Shared by all who hold a clone. A change replaces the table at once: no reader sees it half made, and what is open
//! stays what it was. Resolving the names of a bind may ask other machines, which happens before the change.

use std::fmt;
use std::sync::Arc;

use p9::{Errno, FileKind, Name, NameBuf, NodeRef, Reply, Tree, Walk, Want, Who};
use parking_lot::RwLock;

use crate::path::{Path, clean};
use crate::point::{Point, first_with, members_of};
use crate::table::{Change, Member, Place, Table};
use crate::text::{Flags, Line, OWN_LINES, ParseError};
use crate::under::{At, TreeId};

/// The most names in the path of a mount point.
const MAX_DEPTH: usize = 128;

/// A namespace. Cheap to clone; clones are the same namespace.
#[derive(Clone, Default)]
pub struct Namespace(Arc<RwLock<Table>>);

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
    #[error("mount {server}: {why}")]
    Dial {
        /// The server.
        server: String,
        /// What dialling it met.
        errno: Errno,
        /// The same in words.
        why: String,
    },
    /// A directory over a file, or a file over a directory or in a union.
    #[error("{new} on {old}: a directory goes on a directory, a file on a file, and files have no unions")]
    Kind {
        /// What was to be mounted.
        new: String,
        /// Where.
        old: String,
    },
    /// Both before and after.
    #[error("{0}: before what is there (-b) or after it (-a), not both")]
    Order(String),
    /// A union, none of whose members may be created in, was to be bound so that files can be created in it.
    #[error("{0}: a union in which nothing can be created is not bound with -c")]
    Create(String),
    /// Nothing is mounted there.
    #[error("{0}: not mounted")]
    NotMounted(String),
    /// Something else is mounted there.
    #[error("{new} is not in the union at {old}")]
    NotInUnion {
        /// What was to be unmounted.
        new: String,
        /// Where.
        old: String,
    },
    /// A directory was to be bound below itself.
    #[error("{old} is in {new}: a directory is not bound below itself")]
    Loop {
        /// What was to be bound.
        new: String,
        /// Where.
        old: String,
    },
    /// A namespace of more lines than one may have, or than a text may make.
    #[error("a namespace has at most {0} lines")]
    Full(usize),
    /// A file that is included is no namespace file.
    #[error("{path}: {error}")]
    Text {
        /// The file.
        path: String,
        /// Where in it, and why.
        error: ParseError,
    },
    /// A line of a file that is included could not be done.
    #[error("{path}:{line}: {error}")]
    Included {
        /// The file.
        path: String,
        /// The number of the line.
        line: usize,
        /// Why.
        error: Box<Error>,
    },
    /// A file includes itself, or one that does.
    #[error(". {0}: it is included too deep")]
    Depth(String),
}

impl Error {
    /// What is behind it, in whichever file.
    pub fn cause(&self) -> &Self {
        match self {
            Self::Included { error, .. } => error.cause(),
            cause => cause,
        }
    }

    /// What shows whoever wrote it what is wrong: a command.
    pub fn remedy(&self) -> String {
        match self.cause() {
            Self::Dial { server, .. } => match server.split_once('!') {
                None | Some(("tls", _)) => {
                    "slashn nodes; or -q at that line of the namespace file, if it may fail".into()
                }
                Some(("local" | "unix", path)) if path.starts_with('/') => format!("ls -ld {path}"),
                Some(_) => "slashn man ns".into(),
            },
            Self::NotMounted(_) | Self::NotInUnion { .. } => "slashn ns".into(),
            _ => "slashn man ns".into(),
        }
    }
}

/// A place where something is mounted.
#[derive(Debug)]
pub struct Shown {
    /// Where.
    pub path: std::path::PathBuf,
    /// What is there, if that is one file or directory of this machine's disk with nothing mounted below.
    pub local: Option<std::os::fd::OwnedFd>,
    /// It is a directory.
    pub is_dir: bool,
}

impl Namespace {
    /// An empty namespace: its root is an empty directory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Mounts the tree with the root `root` at `old`, as mount(2). `server` and `spec` say where the tree is from, for
    /// the text; within one namespace they are the same for the same tree alone, and the identity of its files is made
    /// from them. Errors: [`Error::Kind`], [`Error::Path`], [`Error::Order`], [`Error::Full`].
    pub async fn mount(&self, server: &str, spec: &str, root: NodeRef, old: &str, flags: Flags) -> Result<(), Error> {
        let change = mount(server, spec, root, old, flags)?;
        self.put(server, change).await
    }

    /// Binds what is at `new` now to `old`, as bind(2): of a union, a copy of its list. Errors: those of
    /// [`Namespace::mount`], and [`Error::Create`].
    pub async fn bind(&self, new: &str, old: &str, flags: Flags) -> Result<(), Error> {
        let (path, source) = (split(old)?, split(new)?);
        let (new, old) = (&*clean("/", new), clean("/", old));
        if path.len() > source.len() && path.starts_with(&source) {
            return Err(Error::Loop { new: new.into(), old });
        }
        let mut members = self.members(new).await?;
        let many = members.len() > 1;
        if flags.create && many && !members.iter().any(|member| member.create) {
            return Err(Error::Create(new.into()));
        }
        let from: Arc<str> = new.into();
        for member in &mut members {
            member.create = flags.create && (member.create || !many);
            (member.merge, member.mark) = (flags.merge || flags.marks, flags.marks);
            member.from = from.clone();
        }
        let line = Line::Bind { flags, new: new.into(), old };
        self.put(new, Change { old: path, new: Some(source), members, original: None, flags, line }).await
    }

    /// Unmounts all that is at `old`, or of it what `new` says: what was mounted or bound under that name, or else
    /// under whichever name what is at that path now was. Errors: [`Error::NotMounted`], [`Error::NotInUnion`],
    /// [`Error::Path`].
    pub async fn unmount(&self, new: Option<&str>, old: &str) -> Result<(), Error> {
        let path = split(old)?;
        let sources = match new {
            None => None,
            Some(new) => Some(self.sources(new, &path).await?),
        };
        let mut table = self.0.write();
        room(&table)?;
        if table.unmount(&path, sources.as_deref(), &clean("/", old)) {
            return Ok(());
        }
        let not_in = |new: &str| Error::NotInUnion { new: new.into(), old: old.into() };
        let mounted = !table.mounted_at(&path).is_empty();
        Err(new.filter(|_| mounted).map_or_else(|| Error::NotMounted(old.into()), not_in))
    }

    /// The names under which what `new` says is mounted at `old`.
    async fn sources(&self, new: &str, old: &[NameBuf]) -> Result<Vec<Arc<str>>, Error> {
        let path = if new.starts_with('/') { clean("/", new) } else { new.to_string() };
        if !path.starts_with('/') || self.0.read().mounted_at(old).iter().any(|member| *member.from == *path) {
            return Ok(vec![path.into()]);
        }
        let only = self.members(&path).await?;
        Ok(self.0.read().sources(old, &only))
    }

    /// Takes away all that is mounted.
    pub fn clear(&self) {
        *self.0.write() = Table::default();
    }

    /// The lines that make it, in order.
    pub fn lines(&self) -> Vec<Line> {
        self.0.read().lines().cloned().collect()
    }

    /// The text that makes it, a line each: what [`crate::text::parse`] reads.
    pub fn to_text(&self) -> String {
        self.to_string()
    }

    /// The places where something is mounted, outer ones before those within.
    pub fn places(&self) -> Vec<Shown> {
        fn add(place: &Place, path: &std::path::Path, all: &mut Vec<Shown>) {
            if let Some(first) = place.members.first() {
                let alone = place.members.len() == 1 && place.below.is_empty();
                let local = if alone { first.node.local() } else { None };
                all.push(Shown { path: path.into(), local, is_dir: first.node.qid().kind == FileKind::Dir });
            }
            place.below.iter().for_each(|(name, below)| add(below, &path.join(name.as_name().as_os_str()), all));
        }
        let (mut all, frozen) = (Vec::new(), self.0.read().frozen());
        add(frozen.root(), "/".as_ref(), &mut all);
        all
    }

    /// The file at `path`, which is absolute and has no `..`.
    pub async fn walk(&self, path: &str) -> Result<NodeRef, Errno> {
        self.walk_bytes(path.as_bytes()).await
    }

    async fn walk_bytes(&self, path: &[u8]) -> Result<NodeRef, Errno> {
        let root = self.root();
        let names = Name::split(path)?;
        if names.is_empty() {
            return Ok(root);
        }
        root.walk(&names, Want::default()).await.and_then(Walk::reached).map(|reached| reached.node)
    }

    fn root(&self) -> NodeRef {
        Arc::new(Point::new(At { ns: self.clone(), path: Path::default() }, Vec::new()))
    }

    /// What is mounted at `path` and below, whatever that is and will be: an empty directory, as long as it is nothing.
    /// What trees that are mounted further up have there does not show. Errors: [`Error::Path`].
    pub fn root_at(&self, path: &str) -> Result<NodeRef, Error> {
        let names = split(path)?;
        let path = names.iter().fold(Path::default(), |path, name| path.enter(name.as_name()));
        Ok(Arc::new(Point::new(At { ns: self.clone(), path }, Vec::new())))
    }

    /// This namespace as it is now, whatever is done to it afterwards.
    pub(crate) fn frozen(&self) -> Self {
        Self(Arc::new(RwLock::new(self.0.read().frozen())))
    }

    /// What is mounted at `path` or below.
    pub(crate) fn place(&self, path: &Path) -> Option<Arc<Place>> {
        self.0.read().at(path).cloned()
    }

    async fn put(&self, new: &str, mut change: Change) -> Result<(), Error> {
        let original = self.original(&change.old).await;
        fits(new, &change, original.as_ref())?;
        change.original = original;
        self.apply(change)
    }

    /// Makes a change that is known to be right.
    pub(crate) fn apply(&self, change: Change) -> Result<(), Error> {
        let mut table = self.0.write();
        room(&table)?;
        table.mount(change);
        Ok(())
    }

    /// What is at `path` beneath all that is mounted there, if anything is.
    async fn original(&self, path: &[NameBuf]) -> Option<Member> {
        let (last, above) = path.split_last()?;
        let mut dir = self.root();
        if !above.is_empty() {
            let names: Vec<Name<'_>> = above.iter().map(NameBuf::as_name).collect();
            dir = self.root().walk(&names, Want::default()).await.and_then(Walk::reached).ok()?.node;
        }
        first_with(&members_of(&dir), last.as_name()).await.ok().flatten()
    }

    /// What is at `path`, in the trees that have it.
    async fn members(&self, path: &str) -> Result<Vec<Member>, Error> {
        let fail = |errno| Error::Path { path: path.into(), errno };
        // What was mounted below comes along, as it is now.
        let frozen = self.frozen();
        let node = frozen.walk(path).await.map_err(fail)?;
        let place = Point::of(&node).map(Point::place);
        match members_of(&node) {
            _ if place.is_some_and(|place| !place.below.is_empty()) => Ok(vec![Member::beneath(TreeId::SAME, node)]),
            members if members.is_empty() => Err(fail(Errno::ENOENT)),
            members => Ok(members),
        }
    }
}

/// The change that a mount makes.
pub(crate) fn mount(server: &str, spec: &str, root: NodeRef, old: &str, flags: Flags) -> Result<Change, Error> {
    let member = Member {
        id: TreeId::of(server, spec),
        node: root,
        create: flags.create,
        merge: flags.merge || flags.marks,
        mark: flags.marks,
        from: server.into(),
    };
    let path = split(old)?;
    let line = Line::Mount { flags, server: server.into(), old: clean("/", old), spec: spec.into() };
    Ok(Change { old: path, new: None, members: vec![member], original: None, flags, line })
}

/// Whether `change` may be made where `original` is.
fn fits(new: &str, change: &Change, original: Option<&Member>) -> Result<(), Error> {
    let Change { members, flags, line, .. } = change;
    if flags.before && flags.after {
        return Err(Error::Order(line.to_string()));
    }
    let is_dir = |member: &Member| member.node.qid().kind == FileKind::Dir;
    let dirs = members.iter().all(is_dir);
    // The root is a directory, whatever is mounted there.
    let there = original.map_or(change.old.is_empty().then_some(true), |original| Some(is_dir(original)));
    match there.is_none_or(|there| there == dirs) && (dirs || !flags.union()) {
        true => Ok(()),
        false => Err(Error::Kind { new: new.into(), old: line.old().into() }),
    }
}

/// Whether one more line may be added.
fn room(table: &Table) -> Result<(), Error> {
    if table.lines().len() < OWN_LINES { Ok(()) } else { Err(Error::Full(OWN_LINES)) }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.read().lines().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl Tree for Namespace {
    fn attach<'a>(&'a self, _who: &'a Who, aname: &'a [u8]) -> Reply<'a, NodeRef> {
        match aname {
            b"" | b"/" => Reply::ok(self.root()),
            path => Reply::later(self.walk_bytes(path)),
        }
    }
}

/// The names of an absolute path.
fn split(path: &str) -> Result<Vec<NameBuf>, Error> {
    let fail = |errno| Error::Path { path: path.to_string(), errno };
    if !path.starts_with('/') {
        return Err(fail(Errno::EINVAL));
    }
    let path = clean("/", path);
    let names = Name::split(path.as_bytes()).map_err(fail)?.into_iter().map(NameBuf::from);
    if names.len() > MAX_DEPTH { Err(fail(Errno::ENAMETOOLONG)) } else { Ok(names.collect()) }
}
