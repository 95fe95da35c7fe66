//! The operations, and what the model answers to each.

use p9::Errno;
use proptest::prelude::*;

use super::rename::{EXCHANGE, NOREPLACE};
use super::{Kind, Model, Open, Path, ROOT};

/// How many files may be open.
pub const SLOTS: usize = 3;
/// The most bytes that are written at once.
pub const LARGE: usize = 150_000;

/// Modes of fallocate(2): the file is as long as the room, stays as long as it is, or has a hole there.
const ROOM: u32 = 0;
const KEEP_SIZE: u32 = 1;
const PUNCH: u32 = 3;

/// One operation. Slots are open files; an operation on one that is empty does nothing.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the fields are those of the system calls")]
pub enum Op {
    Create { path: Path, slot: usize, mode: u32, excl: bool, truncate: bool, append: bool },
    Open { path: Path, slot: usize, writes: bool, truncate: bool, append: bool },
    Close { slot: usize },
    Read { slot: usize, offset: u64, count: u32 },
    Write { slot: usize, offset: u64, data: Vec<u8> },
    Resize { slot: usize, size: u64 },
    StatOpen { slot: usize },
    Truncate { path: Path, size: u64 },
    Chmod { path: Path, mode: u32 },
    Utime { path: Path, mtime: i64 },
    Mkdir { path: Path, mode: u32 },
    Symlink { path: Path, target: &'static str },
    Readlink { path: Path },
    Link { target: Path, path: Path },
    Remove { path: Path, dir: bool },
    Rename { from: Path, to: Path, flags: u32 },
    List { path: Path, step: usize },
    Stat { path: Path },
    Fetch { path: Path, count: u32 },
    Allocate { slot: usize, mode: u32, offset: u64, length: u64 },
    Copy { from: usize, to: usize, offset: u64, to_offset: u64, length: u64 },
}

/// What an operation answers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// Bytes were read, or the target of a link.
    Bytes(Vec<u8>),
    /// The names in a directory.
    Names(Vec<String>),
    /// The number of a file.
    File(u64),
}

fn path() -> impl Strategy<Value = Path> {
    let names = |count: usize| prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), count);
    prop_oneof![5 => names(1), 4 => names(2), 1 => names(3)]
}

fn size() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![0_u64, 1, 3, 10, 5000, 20_000])
}

/// Any operation on an open file, but for its end.
fn on_open() -> impl Strategy<Value = Op> {
    let slot = 0..SLOTS;
    let data = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..20),
        3 => Just(vec![b'x'; 9000]),
        // So much that it may go another way than all else.
        1 => Just(vec![b'y'; LARGE]),
    ];
    let count = prop_oneof![4 => size(), 1 => Just(LARGE as u64)];
    prop_oneof![
        4 => (slot.clone(), size(), count).prop_map(|(slot, offset, count)| {
            Op::Read { slot, offset, count: count as u32 }
        }),
        6 => (slot.clone(), size(), data).prop_map(|(slot, offset, data)| Op::Write { slot, offset, data }),
        2 => (slot.clone(), size()).prop_map(|(slot, size)| Op::Resize { slot, size }),
        2 => slot.prop_map(|slot| Op::StatOpen { slot }),
    ]
}

/// Operations one after another; some of those on open files come together.
pub fn ops() -> impl Strategy<Value = Vec<Op>> {
    let some = prop_oneof![
        6 => op().prop_map(|op| vec![op]),
        2 => prop::collection::vec(on_open(), 2..5),
    ];
    prop::collection::vec(some, 1..25).prop_map(|some| some.concat())
}

/// Any operation.
fn op() -> impl Strategy<Value = Op> {
    let (slot, flag) = (0..SLOTS, any::<bool>);
    let mode = || prop::sample::select(vec![0o755_u32, 0o700, 0o744, 0o711]);
    prop_oneof![
        8 => (path(), slot.clone(), mode(), flag(), flag(), flag()).prop_map(
            |(path, slot, mode, excl, truncate, append)| Op::Create { path, slot, mode, excl, truncate, append }),
        5 => (path(), slot.clone(), flag(), flag(), flag()).prop_map(|(path, slot, writes, truncate, append)| {
            Op::Open { path, slot, writes, truncate: truncate && writes, append: append && writes }
        }),
        2 => slot.clone().prop_map(|slot| Op::Close { slot }),
        14 => on_open(),
        3 => (path(), size()).prop_map(|(path, size)| Op::Truncate { path, size }),
        2 => (path(), mode()).prop_map(|(path, mode)| Op::Chmod { path, mode }),
        2 => (path(), 1_i64..2_000_000_000).prop_map(|(path, mtime)| Op::Utime { path, mtime }),
        8 => (path(), mode()).prop_map(|(path, mode)| Op::Mkdir { path, mode }),
        3 => (path(), prop::sample::select(vec!["a", "..", "/b/c"])).prop_map(|(path, target)| {
            Op::Symlink { path, target }
        }),
        2 => path().prop_map(|path| Op::Readlink { path }),
        5 => (path(), path()).prop_map(|(target, path)| Op::Link { target, path }),
        6 => (path(), flag()).prop_map(|(path, dir)| Op::Remove { path, dir }),
        10 => (path(), path(), prop::sample::select(vec![0, 0, 0, NOREPLACE, EXCHANGE])).prop_map(
            |(from, to, flags)| Op::Rename { from, to, flags }),
        2 => (path(), 1_usize..4).prop_map(|(path, step)| Op::List { path, step }),
        2 => path().prop_map(|path| Op::Stat { path }),
        3 => (path(), size()).prop_map(|(path, count)| Op::Fetch { path, count: count as u32 }),
        2 => (slot.clone(), prop::sample::select(vec![ROOM, KEEP_SIZE, PUNCH]), size(), 1..30_000_u64).prop_map(
            |(slot, mode, offset, length)| Op::Allocate { slot, mode, offset, length }),
        6 => (slot.clone(), slot, size(), size(), size()).prop_map(|(from, to, offset, to_offset, length)| {
            Op::Copy { from, to, offset, to_offset, length }
        }),
    ]
}

impl Op {
    /// The open file that it is about.
    fn slot(&self) -> Option<usize> {
        match self {
            Self::Read { slot, .. }
            | Self::Write { slot, .. }
            | Self::Resize { slot, .. }
            | Self::StatOpen { slot } => Some(*slot),
            _ => None,
        }
    }
}

impl Model {
    /// How many of `ops`, from the first on, may be done at the same time: all are on open files, and on different
    /// ones.
    pub fn at_once(&self, ops: &[Op]) -> usize {
        let mut busy = Vec::new();
        let free = |op: &&Op| match op.slot().and_then(|slot| self.open[slot]) {
            Some(open) if !busy.contains(&open.file) => {
                busy.push(open.file);
                true
            }
            _ => false,
        };
        ops.iter().take_while(free).count()
    }

    /// Does `op`.
    pub fn apply(&mut self, op: &Op) -> Result<Outcome, Errno> {
        match op {
            Op::Create { path, slot, mode, excl, truncate, append } => {
                let file = match self.place(path)?.2 {
                    None => self.make(path, Kind::File(Vec::new()), *mode)?,
                    Some(_) if *excl => return Err(Errno::EEXIST),
                    Some(file) => self.opened(file, true, *truncate)?,
                };
                self.put(*slot, Open { file, writes: true, appends: *append });
                return Ok(Outcome::File(file));
            }
            Op::Open { path, slot, writes, truncate, append } => {
                let file = self.walk(path)?;
                if let (Kind::Dir(_), false) = (&self.files[&file].kind, *writes) {
                    return Ok(Outcome::Done);
                }
                self.opened(file, *writes, *truncate)?;
                self.put(*slot, Open { file, writes: *writes, appends: *append });
                return Ok(Outcome::File(file));
            }
            Op::Mkdir { path, mode } => drop(self.make(path, Kind::Dir([].into()), *mode)?),
            Op::Symlink { path, target } => drop(self.make(path, Kind::Link(target), 0o777)?),
            Op::Link { target, path } => self.link(target, path)?,
            Op::Remove { path, dir } => self.remove(path, *dir)?,
            Op::Rename { from, to, flags } => self.rename(from, to, *flags)?,
            Op::Truncate { path, size } => {
                let file = self.walk(path)?;
                self.bytes(file)?.resize(*size as usize, 0);
            }
            Op::Chmod { path, mode } => {
                let file = self.walk(path)?;
                if matches!(self.files[&file].kind, Kind::Link(_)) {
                    return Err(Errno::EOPNOTSUPP);
                }
                self.file(file).mode = *mode;
            }
            Op::Utime { path, mtime } => {
                let file = self.walk(path)?;
                self.file(file).mtime = Some(*mtime);
            }
            Op::Readlink { path } => match &self.files[&self.walk(path)?].kind {
                Kind::Link(target) => return Ok(Outcome::Bytes(target.as_bytes().to_vec())),
                _ => return Err(Errno::EINVAL),
            },
            Op::List { path, .. } => {
                let names = self.dir(self.walk(path)?)?.keys().map(ToString::to_string).collect();
                return Ok(Outcome::Names(names));
            }
            Op::Stat { path } => return Ok(Outcome::File(self.walk(path)?)),
            Op::Fetch { path, count } => match &self.files[&self.walk(path)?].kind {
                Kind::File(bytes) => return Ok(Outcome::Bytes(bytes[..bytes.len().min(*count as usize)].to_vec())),
                _ => return Err(Errno::EINVAL),
            },
            Op::Allocate { slot, mode, offset, length } => self.allocate(*slot, *mode, *offset, *length)?,
            Op::Copy { from, to, offset, to_offset, length } => {
                let (Some(from), Some(to)) = (self.open[*from], self.open[*to]) else { return Ok(Outcome::Done) };
                self.copy((from, *offset), (to, *to_offset), *length)?;
            }
            _ => return self.on_open(op),
        }
        Ok(Outcome::Done)
    }

    /// What is done to an open file.
    fn on_open(&mut self, op: &Op) -> Result<Outcome, Errno> {
        let (Op::Close { slot }
        | Op::Read { slot, .. }
        | Op::Write { slot, .. }
        | Op::Resize { slot, .. }
        | Op::StatOpen { slot }) = op
        else {
            panic!("{op:?} is about no open file")
        };
        let Some(open) = self.open[*slot] else { return Ok(Outcome::Done) };
        match op {
            Op::Close { .. } => {
                self.open[*slot] = None;
                self.forget(open.file);
            }
            Op::Read { offset, count, .. } => {
                let Kind::File(bytes) = &self.files[&open.file].kind else { panic!("it is a file") };
                let start = bytes.len().min(*offset as usize);
                let end = bytes.len().min(start + *count as usize);
                return Ok(Outcome::Bytes(bytes[start..end].to_vec()));
            }
            Op::Write { .. } if !open.writes => return Err(Errno::EBADF),
            Op::Write { offset, data, .. } if !data.is_empty() => {
                let bytes = self.bytes(open.file)?;
                let start = if open.appends { bytes.len() } else { *offset as usize };
                bytes.resize(bytes.len().max(start + data.len()), 0);
                bytes[start..start + data.len()].copy_from_slice(data);
            }
            Op::Resize { size, .. } => self.bytes(open.file)?.resize(*size as usize, 0),
            Op::StatOpen { .. } => return Ok(Outcome::File(open.file)),
            _ => {}
        }
        Ok(Outcome::Done)
    }

    /// fallocate(2).
    fn allocate(&mut self, slot: usize, mode: u32, offset: u64, length: u64) -> Result<(), Errno> {
        let Some(open) = self.open[slot] else { return Ok(()) };
        if !open.writes {
            return Err(Errno::EBADF);
        }
        let (bytes, start, end) = (self.bytes(open.file)?, offset as usize, (offset + length) as usize);
        match mode {
            ROOM => bytes.resize(bytes.len().max(end), 0),
            PUNCH => {
                let end = end.min(bytes.len());
                bytes[start.min(end)..end].fill(0);
            }
            _ => {}
        }
        Ok(())
    }

    /// All that copy_file_range(2) copies.
    fn copy(&mut self, (from, offset): (Open, u64), (to, to_offset): (Open, u64), length: u64) -> Result<(), Errno> {
        if !to.writes || to.appends {
            return Err(Errno::EBADF);
        }
        let Kind::File(bytes) = &self.files[&from.file].kind else { panic!("it is a file") };
        let start = bytes.len().min(offset as usize);
        let copied = bytes[start..bytes.len().min(start + length as usize)].to_vec();
        let (count, start) = (copied.len() as u64, to_offset as usize);
        if from.file == to.file && to_offset + count > offset && to_offset < offset + count {
            return Err(Errno::EINVAL);
        }
        if count > 0 {
            let bytes = self.bytes(to.file)?;
            bytes.resize(bytes.len().max(start + copied.len()), 0);
            bytes[start..start + copied.len()].copy_from_slice(&copied);
        }
        Ok(())
    }

    fn opened(&mut self, file: u64, writes: bool, truncate: bool) -> Result<u64, Errno> {
        match &self.files[&file].kind {
            Kind::Dir(_) => return Err(Errno::EISDIR),
            Kind::Link(_) => return Err(Errno::ELOOP),
            Kind::File(_) if writes && truncate => self.bytes(file)?.clear(),
            Kind::File(_) => {}
        }
        Ok(file)
    }

    fn link(&mut self, target: &Path, path: &Path) -> Result<(), Errno> {
        let file = self.walk(target)?;
        let (dir, name, there) = self.place(path)?;
        match (there, &self.files[&file].kind) {
            (Some(_), _) => Err(Errno::EEXIST),
            (None, Kind::Dir(_)) => Err(Errno::EPERM),
            (None, _) => {
                self.enter(dir, name, file);
                Ok(())
            }
        }
    }

    fn remove(&mut self, path: &Path, dir: bool) -> Result<(), Errno> {
        let (at, name, there) = self.place(path)?;
        let file = there.ok_or(Errno::ENOENT)?;
        assert_ne!(file, ROOT);
        match &self.files[&file].kind {
            Kind::Dir(_) if !dir => return Err(Errno::EISDIR),
            Kind::Dir(entries) if !entries.is_empty() => return Err(Errno::ENOTEMPTY),
            Kind::Dir(_) => {}
            _ if dir => return Err(Errno::ENOTDIR),
            _ => {}
        }
        self.leave(at, name);
        Ok(())
    }
}
