//! A disk tree does what the system calls do: the same random operations on a tree and, by plain system calls, on a
//! directory beside it, with the same outcome each time and the same files at the end.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fileserver::{Disk, DiskOptions};
use p9::{Errno, How, New, NodeRef, SetAttr, What};
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};

use crate::common::*;

/// An entry: a directory, perhaps the root (`""`), and a name in it.
type At = (&'static str, &'static str);

#[derive(Clone, Debug)]
enum Op {
    Write { at: At, excl: bool, truncate: bool, append: bool, text: Vec<u8> },
    Dir(At, u32),
    Link(At),
    Remove(At, bool),
    Rename(At, At, u32),
    Hard(At, At),
    Truncate(At, u64),
    Chmod(At, u32),
    Read(At),
}

fn at() -> impl Strategy<Value = At> {
    let dirs = prop::sample::select(vec!["", "", "a", "b", "a/b", "c"]);
    (dirs, prop::sample::select(vec!["a", "b", "c", "d"]))
}

fn op() -> impl Strategy<Value = Op> {
    let write =
        (at(), any::<bool>(), any::<bool>(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(
            |(at, excl, truncate, append, text)| Op::Write { at, excl: excl && !truncate, truncate, append, text },
        );
    let flags = prop::sample::select(vec![0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE]);
    prop_oneof![
        4 => write,
        4 => (at(), prop::sample::select(vec![0o755, 0o777, 0o2750])).prop_map(|(at, mode)| Op::Dir(at, mode)),
        1 => at().prop_map(Op::Link),
        2 => (at(), any::<bool>()).prop_map(|(at, dir)| Op::Remove(at, dir)),
        4 => (at(), at(), flags).prop_map(|(from, to, flags)| Op::Rename(from, to, flags)),
        2 => (at(), at()).prop_map(|(target, at)| Op::Hard(target, at)),
        1 => (at(), 0u64..100).prop_map(|(at, size)| Op::Truncate(at, size)),
        1 => (at(), prop::sample::select(vec![0o600, 0o444, 0o755])).prop_map(|(at, mode)| Op::Chmod(at, mode)),
        2 => at().prop_map(Op::Read),
    ]
}

fn how(truncate: bool, append: bool, excl: bool) -> How {
    How { truncate, append, excl, ..How::RDWR }
}

/// Does `op` to the tree; gives what was read or written to, if anything was.
async fn to_tree(root: &NodeRef, op: &Op) -> Result<Bytes, Errno> {
    let entry = async |(dir, name): At| walk(root, &format!("{dir}/{name}")).await;
    let make = async |(dir, called): At, what, mode| {
        walk(root, dir).await?.create(name(called), New { what, mode, owner: None }).await
    };
    match *op {
        Op::Write { at, excl, truncate, append, ref text } => {
            let made = make(at, What::File(how(truncate, append, excl)), 0o640).await?;
            let handle = made.handle.unwrap();
            handle.write(3, text.clone().into()).await?;
            return handle.read(0, 1000).await;
        }
        Op::Dir(at, mode) => drop(make(at, What::Dir, mode).await?),
        Op::Link(at) => drop(make(at, What::Link(b"nowhere"), 0o777).await?),
        Op::Remove((dir, called), is_dir) => walk(root, dir).await?.remove(name(called), is_dir).await?,
        Op::Rename((from, called), (to, new), flags) => {
            walk(root, from).await?.rename(name(called), &walk(root, to).await?, name(new), flags).await?;
        }
        Op::Hard(target, (dir, called)) => {
            walk(root, dir).await?.link(&entry(target).await?, name(called)).await?;
        }
        Op::Truncate(at, size) => {
            entry(at).await?.set_attr(SetAttr { size: Some(size), ..SetAttr::default() }).await?;
        }
        Op::Chmod(at, mode) => {
            entry(at).await?.set_attr(SetAttr { mode: Some(mode), ..SetAttr::default() }).await?;
        }
        Op::Read(at) => return entry(at).await?.open(how(false, false, false)).await?.read(0, 1000).await,
    }
    Ok(Bytes::new())
}

/// Does `op` to the directory by system calls that follow no link at the end.
fn to_directory(root: &Path, op: &Op) -> Result<Bytes, Errno> {
    let path = |(dir, name): At| root.join(dir).join(name);
    let open = |at, flags: OFlags| {
        Ok::<_, Errno>(std::fs::File::from(rustix::fs::open(path(at), flags | OFlags::NOFOLLOW, Mode::from(0o640))?))
    };
    let read = |file: &std::fs::File| {
        let mut buf = vec![0; 1000];
        let got = std::os::unix::fs::FileExt::read_at(file, &mut buf, 0)?;
        Ok::<_, Errno>(Bytes::copy_from_slice(&buf[..got]))
    };
    match *op {
        Op::Write { at, excl, truncate, append, ref text } => {
            let flags = OFlags::from_bits_retain(how(truncate, append, excl).to_flags()) | OFlags::CREATE;
            let file = open(at, flags)?;
            std::os::unix::fs::FileExt::write_at(&file, text, 3)?;
            return read(&file);
        }
        Op::Dir(at, mode) => {
            rustix::fs::mkdir(path(at), Mode::from_raw_mode(mode))?;
            // mkdir(2) itself gives no directory another group.
            rustix::fs::chmod(path(at), Mode::from_raw_mode(mode & 0o777))?;
        }
        Op::Link(at) => rustix::fs::symlink("nowhere", path(at))?,
        Op::Remove(at, dir) => {
            rustix::fs::unlinkat(CWD, path(at), if dir { AtFlags::REMOVEDIR } else { AtFlags::empty() })?;
        }
        Op::Rename(from, to, flags) => {
            rustix::fs::renameat_with(CWD, path(from), CWD, path(to), RenameFlags::from_bits_retain(flags))?;
        }
        Op::Hard(target, at) => rustix::fs::link(path(target), path(at))?,
        Op::Truncate(at, size) => rustix::fs::ftruncate(open(at, OFlags::WRONLY)?, size)?,
        Op::Chmod(at, mode) => {
            if FileType::from_raw_mode(rustix::fs::lstat(path(at))?.st_mode) == FileType::Symlink {
                return Err(Errno::EOPNOTSUPP);
            }
            rustix::fs::chmod(path(at), Mode::from_raw_mode(mode))?;
        }
        Op::Read(at) => return read(&open(at, OFlags::RDWR)?),
    }
    Ok(Bytes::new())
}

/// Every path below `root`: type, mode, links, and contents or target.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, (u32, u64, Vec<u8>)> {
    let (mut all, mut dirs) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let stat = rustix::fs::lstat(&path).unwrap();
            let data = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => std::fs::read(&path).unwrap(),
                FileType::Symlink => std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes(),
                _ => {
                    dirs.push(path.clone());
                    Vec::new()
                }
            };
            all.insert(path.strip_prefix(root).unwrap().to_owned(), (stat.st_mode, stat.st_nlink as u64, data));
        }
    }
    all
}

/// What a peer sees of an error. A tree says `ENOTDIR` where a walk meets a link; system calls follow it nowhere.
fn outcome(result: Result<Bytes, Errno>) -> Result<Bytes, Errno> {
    result.map_err(|errno| if errno == Errno::ENOTDIR { Errno::ENOENT } else { errno })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_tree_does_what_the_system_calls_do(
        ops in prop::collection::vec(op(), 1..60), descriptors in prop::sample::select(vec![0usize, 3, 100]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (tree, plain) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = DiskOptions { descriptors, ..DiskOptions::new([7; 32]) };
        let root = Disk::open(tree.path(), options).unwrap().root();
        for op in ops {
            let (got, want) = (runtime.block_on(to_tree(&root, &op)), to_directory(plain.path(), &op));
            prop_assert_eq!(outcome(got), outcome(want), "{:?}", op);
        }
        prop_assert_eq!(snapshot(tree.path()), snapshot(plain.path()));
    }
}
