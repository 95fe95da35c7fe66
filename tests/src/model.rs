//! A tree of files in memory that does what Linux says, for comparison: what each operation answers, and what is there
//! afterwards.
//!
//! Paths are lists of short names. A walk follows no links, as in 9P. Files are numbered; a number is never used again.

use std::collections::BTreeMap;

use p9::Errno;

mod ops;
mod plan9;
mod rename;

pub use ops::{LARGE, Op, Outcome, SLOTS, ops};

/// Names from the root.
pub type Path = Vec<&'static str>;

/// One file.
#[derive(Clone, Debug)]
pub struct File {
    /// What it is.
    pub kind: Kind,
    /// Its permissions; of no meaning to a link.
    pub mode: u32,
    /// Its names; not counted for a directory.
    pub links: u64,
    /// When it was changed, where that was set and nothing was done since.
    pub mtime: Option<i64>,
}

/// What a file is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A regular file.
    File(Vec<u8>),
    /// A directory: the numbers of its entries.
    Dir(BTreeMap<&'static str, u64>),
    /// A link to somewhere.
    Link(&'static str),
}

/// An open file.
#[derive(Clone, Copy, Debug)]
pub struct Open {
    /// Which file.
    pub file: u64,
    /// For writing, too.
    pub writes: bool,
    /// Always at the end.
    pub appends: bool,
}

/// The tree, and the files that are open in it.
#[derive(Clone, Debug)]
pub struct Model {
    /// All files that have a name or are open.
    pub files: BTreeMap<u64, File>,
    /// The open files.
    pub open: [Option<Open>; SLOTS],
    next: u64,
}

/// The root's number.
pub const ROOT: u64 = 0;

impl Model {
    /// A tree with nothing in it.
    pub fn new() -> Self {
        let root = File { kind: Kind::Dir(BTreeMap::new()), mode: 0o755, links: 1, mtime: None };
        Self { files: BTreeMap::from([(ROOT, root)]), open: [None; SLOTS], next: 1 }
    }

    /// The file at `path`.
    pub fn walk(&self, path: &[&'static str]) -> Result<u64, Errno> {
        path.iter().try_fold(ROOT, |at, name| self.dir(at)?.get(name).copied().ok_or(Errno::ENOENT))
    }

    fn dir(&self, file: u64) -> Result<&BTreeMap<&'static str, u64>, Errno> {
        match &self.files[&file].kind {
            Kind::Dir(entries) => Ok(entries),
            _ => Err(Errno::ENOTDIR),
        }
    }

    /// The directory that `path` is in, its last name, and what has that name.
    fn place(&self, path: &[&'static str]) -> Result<(u64, &'static str, Option<u64>), Errno> {
        let (name, above) = path.split_last().ok_or(Errno::EINVAL)?;
        let dir = self.walk(above)?;
        Ok((dir, name, self.dir(dir)?.get(name).copied()))
    }

    fn file(&mut self, file: u64) -> &mut File {
        self.files.get_mut(&file).expect("a file that is there")
    }

    fn enter(&mut self, dir: u64, name: &'static str, file: u64) {
        let Kind::Dir(entries) = &mut self.file(dir).kind else { panic!("{dir} is a directory") };
        assert!(entries.insert(name, file).is_none());
        self.file(file).links += 1;
    }

    fn leave(&mut self, dir: u64, name: &'static str) -> u64 {
        let Kind::Dir(entries) = &mut self.file(dir).kind else { panic!("{dir} is a directory") };
        let file = entries.remove(name).expect("an entry that is there");
        self.file(file).links -= 1;
        self.forget(file);
        file
    }

    /// Forgets a file that has no name and is not open.
    fn forget(&mut self, file: u64) {
        if self.files[&file].links == 0 && !self.open.iter().flatten().any(|open| open.file == file) {
            self.files.remove(&file);
        }
    }

    fn make(&mut self, path: &[&'static str], kind: Kind, mode: u32) -> Result<u64, Errno> {
        let (dir, name, there) = self.place(path)?;
        if there.is_some() {
            return Err(Errno::EEXIST);
        }
        let number = self.next;
        self.next += 1;
        self.files.insert(number, File { kind, mode, links: 0, mtime: None });
        self.enter(dir, name, number);
        Ok(number)
    }

    fn bytes(&mut self, file: u64) -> Result<&mut Vec<u8>, Errno> {
        let file = self.file(file);
        file.mtime = None;
        match &mut file.kind {
            Kind::File(bytes) => Ok(bytes),
            Kind::Dir(_) => Err(Errno::EISDIR),
            Kind::Link(_) => Err(Errno::ELOOP),
        }
    }

    fn put(&mut self, slot: usize, open: Open) {
        let before = self.open[slot].replace(open);
        if let Some(before) = before {
            self.forget(before.file);
        }
    }

    /// Whether `file` is `dir` or a directory above it.
    fn is_above(&self, file: u64, dir: u64) -> bool {
        file == dir
            || match self.files.get(&file).map(|file| &file.kind) {
                Some(Kind::Dir(entries)) => entries.values().any(|entry| self.is_above(*entry, dir)),
                _ => false,
            }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self::new()
    }
}
