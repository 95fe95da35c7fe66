//! Trees for tests, and what is done with a namespace of them. Included by the test files of this package.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use fileserver::{Disk, DiskOptions};
use ns::Namespace;
use ns::text::{Flags, Line, PEER_LINES, parse};
use p9::{
    Attr, Dir, Entry, Errno, FileKind, Handle, How, Name, New, Node, NodeRef, Opened, Qid, Reply, Tree, Walk, Want,
    What, Who,
};

/// A directory of this machine, gone with the test.
pub(crate) struct Files {
    dir: tempfile::TempDir,
    disk: Arc<Disk>,
}

impl Files {
    /// These files, each with its path as its contents; what ends in `/` is a directory.
    pub(crate) fn new(paths: &[&str]) -> Self {
        Self::with(paths, false)
    }

    /// The same, in which nothing can be changed.
    pub(crate) fn read_only(paths: &[&str]) -> Self {
        Self::with(paths, true)
    }

    fn with(paths: &[&str], read_only: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for path in paths {
            let at = dir.path().join(path);
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            std::fs::write(at, path).unwrap();
        }
        let disk = Disk::open(dir.path(), DiskOptions::new([7; 32]).read_only(read_only)).unwrap();
        Self { dir, disk }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) async fn root(&self) -> NodeRef {
        self.disk.attach(&Who::owner(), b"").await.unwrap()
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.path().join(path).exists()
    }

    pub(crate) fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.path().join(path)).unwrap()
    }
}

/// The name `text`.
pub(crate) fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

/// `-abcC` as flags.
pub(crate) fn flags(text: &str) -> Flags {
    let has = |letter| text.contains(letter);
    let (before, after, create, cache) = (has('b'), has('a'), has('c'), has('C'));
    Flags { before, after, create, cache, merge: has('m'), marks: has('w'), quiet: has('q') }
}

/// The lines of a namespace file without variables.
pub(crate) fn lines(text: &str) -> Vec<Line> {
    parse(text, PEER_LINES, &|_| None).unwrap()
}

/// A namespace of (flags, server, tree, old), mounted in order.
pub(crate) async fn ns<const N: usize>(mounts: [(&str, &str, &Files, &str); N]) -> Namespace {
    let ns = Namespace::new();
    for (letters, server, files, old) in mounts {
        ns.mount(server, "", files.root().await, old, flags(letters)).await.unwrap();
    }
    ns
}

pub(crate) async fn walk(ns: &Namespace, path: &str) -> Result<NodeRef, Errno> {
    ns.attach(&Who::owner(), path.as_bytes()).await
}

/// What stops a walk to `path`.
pub(crate) async fn refused(ns: &Namespace, path: &str) -> Errno {
    match walk(ns, path).await {
        Ok(_) => panic!("{path} is there"),
        Err(errno) => errno,
    }
}

/// The contents of a short file.
pub(crate) async fn read(ns: &Namespace, path: &str) -> Result<String, Errno> {
    read_of(&walk(ns, "/").await?, path).await
}

pub(crate) async fn read_of(dir: &NodeRef, path: &str) -> Result<String, Errno> {
    let names = Name::split(path.as_bytes())?;
    let bytes = dir.open_at(&names, How::READ, Want::default()).await?.handle.read(0, 4096).await?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Makes an empty file.
pub(crate) async fn create(ns: &Namespace, dir: &str, file: &str) -> Result<(), Errno> {
    write(ns, dir, file, "").await
}

/// Opens a file to be written, as a shell's `>` does, and writes `text`.
pub(crate) async fn write(ns: &Namespace, dir: &str, file: &str, text: &str) -> Result<(), Errno> {
    let what = What::File(How { truncate: true, ..How::WRITE });
    let made = walk(ns, dir).await?.create(name(file), New { what, mode: 0o644, owner: None }).await?;
    let handle = made.handle.unwrap();
    handle.write(0, bytes::Bytes::copy_from_slice(text.as_bytes())).await?;
    handle.close().await
}

/// The names in a directory, as listed; those of each tree sorted, since a disk has no order.
pub(crate) async fn names(ns: &Namespace, path: &str) -> Vec<String> {
    names_of(&walk(ns, path).await.unwrap()).await.unwrap()
}

pub(crate) async fn names_of(dir: &NodeRef) -> Result<Vec<String>, Errno> {
    let Handle::Dir(open) = dir.open(How::READ).await? else { panic!("no directory") };
    Ok(entries(&*open, 0, usize::MAX).await?.into_iter().map(|(name, _)| name).collect())
}

/// At most `count` entries after `cookie`, each with its own cookie.
pub(crate) async fn entries(dir: &dyn Dir, cookie: u64, count: usize) -> Result<Vec<(String, u64)>, Errno> {
    let mut all = Vec::new();
    let mut take = |entry: Entry<'_>| {
        if all.len() == count {
            return ControlFlow::Break(());
        }
        all.push((entry.name.to_string(), entry.cookie));
        ControlFlow::Continue(())
    };
    dir.list(cookie, &mut take).await?;
    Ok(all)
}

/// A directory with this qid path and the files `x`, `y` and `z` numbered on from it, listed in that order.
pub(crate) struct Numbered {
    qid: Qid,
    text: &'static str,
}

impl Numbered {
    pub(crate) fn root(path: u64) -> NodeRef {
        Arc::new(Self { qid: Qid { kind: FileKind::Dir, version: 0, path }, text: "" })
    }

    fn file(&self, text: &'static str) -> Option<NodeRef> {
        let at = ["x", "y", "z"].iter().position(|name| *name == text)? as u64;
        Some(Arc::new(Self { qid: Qid { path: self.qid.path + 1 + at, ..Qid::default() }, text }))
    }
}

impl Node for Numbered {
    fn qid(&self) -> Qid {
        self.qid
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], _want: Want) -> Reply<'a, Walk> {
        let file = ["x", "y", "z"].into_iter().find(|text| names[0].as_bytes() == text.as_bytes());
        match file.and_then(|text| self.file(text)).filter(|_| self.qid.kind == FileKind::Dir) {
            Some(file) => Reply::ok(Walk::one(file, None)),
            None => Errno::ENOENT.into(),
        }
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(Attr::synthetic(self.qid, 0o555))
    }

    fn open(&self, _how: How) -> Reply<'_, Handle> {
        Reply::ok(match self.qid.kind {
            FileKind::Dir => Handle::Dir(Arc::new(Self { qid: self.qid, text: "" })),
            _ => Handle::Bytes(self.text.into()),
        })
    }
}

impl Dir for Numbered {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut p9::DirSink<'a>) -> Reply<'a, ()> {
        for (at, text) in ["x", "y", "z"].into_iter().enumerate().skip(cookie as usize) {
            let qid = Qid { path: self.qid.path + 1 + at as u64, ..Qid::default() };
            let entry = Entry { cookie: at as u64 + 1, qid, kind: 0o100_000, attr: None, name: name(text) };
            if each(entry).is_break() {
                break;
            }
        }
        Reply::ok(())
    }
}

/// The root of a server that does not answer any more.
pub(crate) struct Dead(Errno);

impl Dead {
    pub(crate) fn node() -> NodeRef {
        Self::of(Errno::EHOSTUNREACH)
    }

    /// One that answers `errno`.
    pub(crate) fn of(errno: Errno) -> NodeRef {
        Arc::new(Self(errno))
    }
}

impl Node for Dead {
    fn qid(&self) -> Qid {
        Qid { kind: FileKind::Dir, version: 0, path: 1 }
    }

    fn walk<'a>(&'a self, _names: &'a [Name<'a>], _want: Want) -> Reply<'a, Walk> {
        self.0.into()
    }

    fn attr(&self) -> Reply<'_, Attr> {
        self.0.into()
    }

    fn open(&self, _how: How) -> Reply<'_, Handle> {
        self.0.into()
    }
}

/// A root that counts what it is asked.
#[derive(Clone)]
pub(crate) struct Asked(Arc<(NodeRef, AtomicUsize)>);

impl Asked {
    pub(crate) fn new(root: NodeRef) -> Self {
        Self(Arc::new((root, AtomicUsize::new(0))))
    }

    pub(crate) fn root(&self) -> NodeRef {
        Arc::new(self.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.1.load(Ordering::SeqCst)
    }

    fn ask(&self) -> &NodeRef {
        self.0.1.fetch_add(1, Ordering::SeqCst);
        &self.0.0
    }
}

impl Node for Asked {
    fn qid(&self) -> Qid {
        self.0.0.qid()
    }

    fn walk<'a>(&'a self, names: &'a [Name<'a>], want: Want) -> Reply<'a, Walk> {
        self.ask().walk(names, want)
    }

    fn open_at<'a>(&'a self, names: &'a [Name<'a>], how: How, want: Want) -> Reply<'a, Opened> {
        self.ask().open_at(names, how, want)
    }

    fn attr(&self) -> Reply<'_, Attr> {
        self.ask().attr()
    }

    fn open(&self, how: How) -> Reply<'_, Handle> {
        self.ask().open(how)
    }
}
