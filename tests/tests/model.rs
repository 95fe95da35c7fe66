//! Trees do what a tree in memory does, operation by operation: a disk, also under rules, and a namespace over it,
//! directly and in each dialect over two connections at a time, of which one is slower than the other; and in sessions
//! whose links delay, reorder, stall and are cut. Operations on several open files are under way together.
//! `SLASHN_SEED` tries one case again.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "it is a test: a failure here is the test's, which says what it did"
)]

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path as DiskPath;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use fileserver::{Access, Disk, DiskOptions, Ruled, Rules};
use futures_util::future::join_all;
use ns::{Flags, Namespace};
use p9::wire::Dialect;
use p9::{Attr, Errno, FileKind, Handle, How, New, NodeRef, SetAttr, SetTime, Time, TreeRef, What, Who};
use proptest::prelude::*;
use tests::campaign::search;
use tests::contract::{list, list_with_attributes, name, read, walk};
use tests::grid::{Grid, Millis};
use tests::model::{Kind, Model, Op, Outcome, Path, ROOT, SLOTS, ops};
use tests::rough::Rough;

/// How the tree is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Way {
    Direct,
    /// In our dialect, over links that are cut.
    Rough(u64),
    /// In this dialect, over links that are slow.
    Slow(Dialect),
}

impl Way {
    /// Whether it goes by 9P2000, which can say less.
    fn is_plan9(self) -> bool {
        self == Self::Slow(Dialect::Legacy)
    }
}

/// What stands between who asks and the disk.
#[derive(Clone, Copy, Debug)]
enum Over {
    Nothing,
    Rules,
    Namespace,
}

/// A tree beside its model.
struct Run<'a> {
    /// The root, as it is reached by each connection: they take turns.
    roots: Vec<NodeRef>,
    turn: usize,
    dir: &'a DiskPath,
    way: Way,
    model: Model,
    open: [Option<(NodeRef, Handle)>; SLOTS],
    /// Which qid each file of the model has, and which had which.
    paths: HashMap<u64, u64>,
    files: HashMap<u64, u64>,
}

/// What a tree answers: as [`Outcome`], but for files.
enum Answer {
    Plain(Outcome),
    File(Attr),
}

fn joined(path: &[&'static str]) -> String {
    path.join("/")
}

impl Run<'_> {
    fn root(&self) -> NodeRef {
        self.roots[self.turn % self.roots.len()].clone()
    }

    /// Does the first of `ops`, or several if they may come together; how many.
    async fn step(&mut self, ops: &[Op]) -> Result<usize, TestCaseError> {
        self.turn += 1;
        let together = &ops[..self.model.at_once(ops)];
        if together.len() > 1 {
            let all = join_all(together.iter().map(|op| self.on_open(op))).await;
            for (op, got) in together.iter().zip(all) {
                let mut after = self.model.clone();
                let expected = after.apply(op);
                self.compare(op, got, expected, after)?;
            }
            TOGETHER.fetch_add(1, Ordering::Relaxed);
        } else {
            let (op, mut after) = (&ops[0], self.model.clone());
            let expected = if self.way.is_plan9() { after.apply_over_9p2000(op) } else { after.apply(op) };
            let got = self.apply(op).await;
            self.compare(op, got, expected, after)?;
        }
        self.on_disk(ROOT, self.dir)?;
        let (root, path) = (self.root(), Vec::new());
        self.in_tree(root, ROOT, path).await?;
        Ok(together.len().max(1))
    }

    /// Whether `op` was answered as the model answers it, which then is as `after`.
    fn compare(
        &mut self, op: &Op, got: Result<Answer, Errno>, expected: Result<Outcome, Errno>, after: Model,
    ) -> Result<(), TestCaseError> {
        if let (Op::Rename { flags: 1.., .. }, Way::Slow(Dialect::L), Err(Errno::EINVAL)) = (op, self.way, &got) {
            // .L has no flags.
            return Ok(());
        }
        if let (Op::Allocate { .. } | Op::Copy { .. }, Way::Slow(_), Err(Errno::EOPNOTSUPP)) = (op, self.way, &got) {
            // What others have no words for, programs do themselves.
            return Ok(());
        }
        if let (Op::Copy { .. }, Way::Slow(_) | Way::Rough(_), Err(Errno::EXDEV)) = (op, self.way, &got) {
            // From what one client has open to what another has.
            return Ok(());
        }
        self.model = after;
        TALLY[usize::from(got.is_ok())].fetch_add(1, Ordering::Relaxed);
        match (got, expected) {
            (Ok(Answer::File(attr)), Ok(Outcome::File(file))) => self.same(&attr, file)?,
            (Ok(Answer::Plain(got)), expected) => prop_assert_eq!(Ok(got), expected, "{:?}", op),
            (Err(errno), expected) => prop_assert_eq!(Err(errno), expected, "{:?}", op),
            (Ok(Answer::File(_)), expected) => prop_assert!(false, "{:?} gives a file, not {:?}", op, expected),
        }
        Ok(())
    }

    /// Whether `attr` says what the model has of `file`, whose qid is nobody else's.
    fn same(&mut self, attr: &Attr, file: u64) -> Result<(), TestCaseError> {
        let is = &self.model.files[&file];
        let (kind, size, links) = match &is.kind {
            Kind::File(bytes) => (FileKind::File, Some(bytes.len()), Some(is.links)),
            Kind::Dir(_) => (FileKind::Dir, None, None),
            Kind::Link(target) => (FileKind::Link, Some(target.len()), Some(is.links)),
        };
        prop_assert_eq!(attr.qid.kind, kind);
        prop_assert_eq!(size.map_or(attr.size, |size| size as u64), attr.size);
        if !self.way.is_plan9() {
            prop_assert_eq!(links.unwrap_or(attr.nlink), attr.nlink, "links of {}", file);
        }
        if kind != FileKind::Link {
            prop_assert_eq!(attr.mode & 0o7777, is.mode);
        }
        if let (Some(mtime), true) = (is.mtime, kind != FileKind::Dir) {
            let nsec = if self.way.is_plan9() { 0 } else { 7 };
            prop_assert_eq!(attr.mtime, Time { sec: mtime, nsec });
        }
        let path = *self.paths.entry(file).or_insert(attr.qid.path);
        prop_assert_eq!(path, attr.qid.path, "a file keeps its qid");
        prop_assert_eq!(*self.files.entry(path).or_insert(file), file, "a qid is of one file for all time");
        Ok(())
    }

    /// Whether what the disk has is what the model has.
    fn on_disk(&self, file: u64, at: &DiskPath) -> Result<(), TestCaseError> {
        match &self.model.files[&file].kind {
            Kind::File(bytes) => prop_assert!(fs::read(at).unwrap() == *bytes, "{} has other bytes", at.display()),
            Kind::Link(target) => prop_assert_eq!(fs::read_link(at).unwrap(), DiskPath::new(target)),
            Kind::Dir(entries) => {
                let mut names: Vec<_> = fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
                names.sort();
                prop_assert_eq!(names, entries.keys().copied().collect::<Vec<_>>(), "in {}", at.display());
                for (name, entry) in entries {
                    self.on_disk(*entry, &at.join(name))?;
                }
            }
        }
        let is = fs::symlink_metadata(at).unwrap();
        prop_assert!(is.is_symlink() || is.mode() & 0o7777 == self.model.files[&file].mode);
        Ok(())
    }

    /// Whether the tree shows what the model has, too.
    async fn in_tree(&mut self, node: NodeRef, file: u64, path: Path) -> Result<(), TestCaseError> {
        let mut left = vec![(node, file, path)];
        while let Some((node, file, path)) = left.pop() {
            let at = joined(&path);
            if file != ROOT {
                self.same(&node.attr().await.unwrap(), file)?;
            }
            match self.model.files[&file].kind.clone() {
                Kind::File(bytes) => prop_assert!(read(&node, "", 1 << 18).await.unwrap() == bytes, "{} is read", at),
                Kind::Link(target) => prop_assert_eq!(node.read_link().await.unwrap(), target),
                Kind::Dir(entries) => {
                    let listed = list_with_attributes(&node, 2).await.unwrap();
                    let names: Vec<String> = listed.keys().map(ToString::to_string).collect();
                    prop_assert_eq!(&names, &entries.keys().map(ToString::to_string).collect::<Vec<_>>(), "in {}", at);
                    for (entry, file) in entries {
                        let there = walk(&node, entry).await.unwrap();
                        let (qid, attr) = listed.iter().find(|(name, _)| name.to_string() == entry).unwrap().1;
                        prop_assert_eq!(qid.path, there.qid().path, "a listing has the qid of {}/{}", at, entry);
                        if let Some(attr) = attr {
                            self.same(attr, file)?;
                        }
                        left.push((there, file, [&path[..], &[entry]].concat()));
                    }
                }
            }
        }
        Ok(())
    }

    async fn place(&self, path: &Path) -> Result<(NodeRef, &'static str), Errno> {
        let (last, above) = path.split_last().unwrap();
        Ok((walk(&self.root(), &joined(above)).await?, last))
    }

    async fn make(&self, path: &Path, what: What<'_>, mode: u32) -> Result<p9::Created, Errno> {
        let (dir, last) = self.place(path).await?;
        dir.create(name(last), New { what, mode, owner: None }).await
    }

    async fn put(&mut self, slot: usize, node: NodeRef, handle: Handle) -> Result<Answer, Errno> {
        if let Some((_, before)) = self.open[slot].take() {
            before.close().await?;
        }
        let attr = node.attr().await?;
        self.open[slot] = Some((node, handle));
        Ok(Answer::File(attr))
    }

    /// Does `op` to the tree.
    async fn apply(&mut self, op: &Op) -> Result<Answer, Errno> {
        let change = SetAttr::default();
        match op {
            Op::Create { path, slot, mode, excl, truncate, append } => {
                let how = How { excl: *excl, truncate: *truncate, append: *append, ..How::RDWR };
                let made = self.make(path, What::File(how), *mode).await?;
                return self.put(*slot, made.node, made.handle.unwrap()).await;
            }
            Op::Open { path, slot, writes, truncate, append } => {
                let how = How { write: *writes, truncate: *truncate, append: *append, ..How::READ };
                let node = walk(&self.root(), &joined(path)).await?;
                match node.open(how).await? {
                    Handle::Dir(_) => {}
                    handle => return self.put(*slot, node, handle).await,
                }
            }
            Op::Mkdir { path, mode } => drop(self.make(path, What::Dir, *mode).await?),
            Op::Symlink { path, target } => drop(self.make(path, What::Link(target.as_bytes()), 0o777).await?),
            Op::Link { target, path } => {
                let target = walk(&self.root(), &joined(target)).await?;
                let (dir, last) = self.place(path).await?;
                dir.link(&target, name(last)).await?;
            }
            Op::Remove { path, dir } => {
                let (at, last) = self.place(path).await?;
                at.remove(name(last), *dir).await?;
            }
            Op::Rename { from, to, flags } => {
                let ((old, from), (new, to)) = (self.place(from).await?, self.place(to).await?);
                old.rename(name(from), &new, name(to), *flags).await?;
            }
            Op::Truncate { path, size } => {
                let node = walk(&self.root(), &joined(path)).await?;
                node.set_attr(SetAttr { size: Some(*size), ..change }).await?;
            }
            Op::Chmod { path, mode } => {
                let node = walk(&self.root(), &joined(path)).await?;
                node.set_attr(SetAttr { mode: Some(*mode), ..change }).await?;
            }
            Op::Utime { path, mtime } => {
                let node = walk(&self.root(), &joined(path)).await?;
                let mtime = Some(SetTime::At(Time { sec: *mtime, nsec: 7 }));
                node.set_attr(SetAttr { mtime, ..change }).await?;
            }
            Op::Readlink { path } => {
                let target = walk(&self.root(), &joined(path)).await?.read_link().await?;
                return Ok(Answer::Plain(Outcome::Bytes(target.to_vec())));
            }
            Op::List { path, step } => {
                let node = walk(&self.root(), &joined(path)).await?;
                let names = list(&node, *step).await?.keys().map(ToString::to_string).collect();
                return Ok(Answer::Plain(Outcome::Names(names)));
            }
            Op::Stat { path } => return Ok(Answer::File(walk(&self.root(), &joined(path)).await?.attr().await?)),
            Op::Fetch { path, count } => {
                let (dir, last) = self.place(path).await?;
                let bytes = dir.fetch(name(last), *count).await?.1;
                return Ok(Answer::Plain(Outcome::Bytes(bytes.to_vec())));
            }
            Op::Allocate { .. } | Op::Copy { .. } => self.at_the_server(op).await?,
            Op::Close { slot } => {
                if let Some((_, handle)) = self.open[*slot].take() {
                    handle.close().await?;
                }
            }
            _ => return self.on_open(op).await,
        }
        Ok(Answer::Plain(Outcome::Done))
    }

    /// Does what changes open files without any bytes that go there.
    async fn at_the_server(&self, op: &Op) -> Result<(), Errno> {
        match op {
            Op::Allocate { slot, mode, offset, length } => {
                if let Some((_, open)) = &self.open[*slot] {
                    open.allocate(*mode, *offset, *length).await?;
                }
            }
            Op::Copy { from, to, offset, to_offset, length } => {
                if let (Some((_, from)), Some((_, to))) = (&self.open[*from], &self.open[*to]) {
                    from.copy(*offset, to, *to_offset, *length).await?;
                }
            }
            _ => panic!("{op:?} is something else"),
        }
        Ok(())
    }

    async fn on_open(&self, op: &Op) -> Result<Answer, Errno> {
        let (Op::Read { slot, .. } | Op::Write { slot, .. } | Op::Resize { slot, .. } | Op::StatOpen { slot }) = op
        else {
            panic!("{op:?} is about no open file")
        };
        let Some((node, handle)) = &self.open[*slot] else { return Ok(Answer::Plain(Outcome::Done)) };
        match op {
            Op::Read { offset, count, .. } => {
                let bytes = handle.read(*offset, *count).await?;
                return Ok(Answer::Plain(Outcome::Bytes(bytes.to_vec())));
            }
            Op::Write { offset, data, .. } => {
                let written = handle.write(*offset, Bytes::from(data.clone())).await?;
                assert_eq!(written.count as usize, data.len());
            }
            Op::Resize { size, .. } => drop(node.set_attr(SetAttr { size: Some(*size), ..SetAttr::default() }).await?),
            _ => return Ok(Answer::File(node.attr().await?)),
        }
        Ok(Answer::Plain(Outcome::Done))
    }
}

async fn run(way: Way, over: Over, ops: &[Op]) -> Result<(), TestCaseError> {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    // So few descriptors that files are looked for again.
    let options = DiskOptions { descriptors: 3, ..DiskOptions::new([7; 32]) };
    let disk = Disk::open(dir.path(), options).unwrap();
    let tree: TreeRef = match over {
        Over::Nothing => disk,
        Over::Rules => Ruled::new(disk, Rules::new(Access::ReadWrite).rule("/hidden", Access::Absent)),
        Over::Namespace => {
            let over = Namespace::new();
            over.mount("disk", "", disk.root_for(1), "/", Flags { create: true, ..Flags::default() }).await.unwrap();
            Arc::new(over)
        }
    };
    let mut links = None;
    let roots = match way {
        Way::Direct => vec![tree.attach(&Who::owner(), b"").await.unwrap()],
        Way::Slow(dialect) => {
            let grid = Grid::new().serve("a", tree.clone()).serve("b", tree).link("a", 2.ms()).link("b", 9.ms());
            let grid = grid.dialect(dialect);
            vec![grid.root("a").await.unwrap(), grid.root("b").await.unwrap()]
        }
        Way::Rough(seed) => {
            let rough = Rough::new(tree, seed);
            let roots = [rough.root().await.unwrap(), rough.root().await.unwrap()];
            links = Some(rough);
            roots.into()
        }
    };
    let (open, paths, files) = (Default::default(), HashMap::new(), HashMap::new());
    let mut run = Run { roots, turn: 0, dir: dir.path(), way, model: Model::new(), open, paths, files };
    let mut left = ops;
    while !left.is_empty() {
        left = &left[run.step(left).await?..];
    }
    if let Some(rough) = links {
        LINKS.fetch_max(rough.links(), Ordering::Relaxed);
    }
    Ok(())
}

/// Operations that were refused, and done.
static TALLY: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
/// How often several were under way together.
static TOGETHER: AtomicUsize = AtomicUsize::new(0);
/// The most links that one case has had.
static LINKS: AtomicUsize = AtomicUsize::new(0);

fn compare(what: &str, way: impl Fn(u64) -> Way) {
    let over = prop::sample::select(vec![Over::Nothing, Over::Rules, Over::Namespace]);
    let cases = (over, 1..u64::MAX, ops());
    search(what, 2, &cases, |(over, seed, ops)| {
        // The clock stands still while anything is done: what links wait for costs nothing.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(run(way(seed), over, &ops))
    });
    eprintln!("{what}: refused and done {TALLY:?}, together {TOGETHER:?} times");
}

#[test]
fn a_disk_under_rules_and_in_a_namespace_does_what_the_model_does() {
    compare("model", |_| Way::Direct);
}

#[test]
fn so_it_does_over_a_slow_link() {
    compare("model, slow", |_| Way::Slow(Dialect::L));
}

#[test]
fn so_it_does_over_9p2000_as_far_as_that_can_say_it() {
    compare("model, 9P2000", |_| Way::Slow(Dialect::Legacy));
}

#[test]
fn so_it_does_over_links_that_reorder_stall_and_are_cut() {
    compare("model, rough", Way::Rough);
    eprintln!("model, rough: up to {LINKS:?} links");
}
