//! What all tests of trees say: names, files to make, walks, listings.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use fileserver::{Disk, DiskOptions};
use p9::{Created, Errno, Handle, How, Name, New, NodeRef, Want, What};
use tempfile::TempDir;

/// A fresh directory, and the root of a tree of it.
pub(crate) fn disk() -> (TempDir, NodeRef) {
    let dir = tempfile::tempdir().unwrap();
    let root = Disk::open(dir.path(), DiskOptions::new([7; 32])).unwrap().root();
    (dir, root)
}

pub(crate) fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

/// A file to make, open for reading and writing.
pub(crate) fn file(mode: u32) -> New<'static> {
    New { what: What::File(How::RDWR), mode, owner: None }
}

pub(crate) fn dir(mode: u32) -> New<'static> {
    New { what: What::Dir, mode, owner: None }
}

/// Makes an empty file.
pub(crate) async fn touch(dir: &NodeRef, called: &str) -> Created {
    dir.create(name(called), file(0o644)).await.unwrap()
}

/// The node at `path` below `from`.
pub(crate) async fn walk(from: &NodeRef, path: &str) -> Result<NodeRef, Errno> {
    let names = Name::split(path.as_bytes()).unwrap();
    if names.is_empty() {
        return Ok(from.clone());
    }
    Ok(from.walk(&names, Want::ATTR).await?.reached()?.node)
}

/// What is in the file at `path`.
pub(crate) async fn cat(from: &NodeRef, path: &str) -> Result<Bytes, Errno> {
    walk(from, path).await?.open(How::READ).await?.read(0, 1 << 16).await
}

/// Makes or replaces what is in the file at `path`, which has one name.
pub(crate) async fn put(dir: &NodeRef, called: &str, text: &'static str) -> Result<(), Errno> {
    let how = How { truncate: true, ..How::WRITE };
    let made = dir.create(name(called), New { what: What::File(how), mode: 0o644, owner: None }).await?;
    made.handle.unwrap().write(0, Bytes::from_static(text.as_bytes())).await.map(drop)
}

/// The entries of an open directory after `cookie`, `most` of them: name, cookie, qid path.
pub(crate) async fn part(handle: &Handle, cookie: u64, most: usize) -> Vec<(String, u64, u64)> {
    let Handle::Dir(dir) = handle else { panic!("not a directory") };
    let mut found = Vec::new();
    dir.list(cookie, &mut |entry| {
        if found.len() == most {
            return ControlFlow::Break(());
        }
        found.push((entry.name.to_string(), entry.cookie, entry.qid.path));
        ControlFlow::Continue(())
    })
    .await
    .unwrap();
    found
}

/// All names in `dir`, with their qid paths.
pub(crate) async fn ls(dir: &NodeRef) -> BTreeMap<String, u64> {
    let handle = dir.open(How::READ).await.unwrap();
    part(&handle, 0, usize::MAX).await.into_iter().map(|(name, _, path)| (name, path)).collect()
}
