//! The contract's writing half: what a tree that can be changed keeps. Everything happens in one directory that is
//! empty before and afterwards.

use bytes::Bytes;
use p9::{Errno, FileKind, How, New, NodeRef, SetAttr, SetTime, Time, What};

use super::{content, list, locks, name, posix, read, walk, xattrs};

pub(super) const FILE: New<'static> = New { what: What::File(EXCL), mode: 0o644, owner: None };
const EXCL: How = How { excl: true, ..How::RDWR };
pub(super) const DIR: New<'static> = New { what: What::Dir, mode: 0o755, owner: None };

/// Checks every change that can be made in `dir`, which is empty.
pub async fn writing(dir: NodeRef) {
    files(&dir).await;
    sizes_and_times(&dir, 123_456_789).await;
    directories(&dir).await;
    names(&dir).await;
    posix::posix(&dir).await;
    content::content(&dir).await;
    xattrs::xattrs(&dir).await;
    locks::locks(&dir).await;
    assert!(list(&dir, 100).await.unwrap().is_empty(), "all that was made is gone");
}

pub(super) async fn put(dir: &NodeRef, at: &str, text: &'static str) {
    let made = dir.create(name(at), FILE).await.unwrap_or_else(|err| panic!("creating {at}: {err}"));
    let handle = made.handle.expect("a file that is created is open");
    let written = handle.write(0, Bytes::from_static(text.as_bytes())).await.unwrap();
    assert_eq!(written.count as usize, text.len());
    handle.sync(false).await.unwrap();
    handle.close().await.unwrap();
}

pub(super) async fn files(dir: &NodeRef) {
    put(dir, "a", "hello").await;
    assert_eq!(read(dir, "a", 1000).await.unwrap(), b"hello");
    assert_eq!(dir.create(name("a"), FILE).await.err(), Some(Errno::EEXIST), "exclusive means exclusive");
    let node = walk(dir, "a").await.unwrap();
    let handle = node.open(How::RDWR).await.unwrap();
    handle.write(3, Bytes::from_static(b"p!!")).await.unwrap();
    assert_eq!(handle.read(0, 100).await.unwrap(), "help!!", "a write is seen by the next read");
    handle.close().await.unwrap();
    let handle = node.open(How { append: true, ..How::WRITE }).await.unwrap();
    handle.write(0, Bytes::from_static(b"!")).await.unwrap();
    handle.close().await.unwrap();
    assert_eq!(read(dir, "a", 100).await.unwrap(), b"help!!!", "an append goes to the end, wherever it was aimed");
    let handle = node.open(How { truncate: true, ..How::WRITE }).await.unwrap();
    handle.close().await.unwrap();
    assert_eq!(node.attr().await.unwrap().size, 0, "opened to truncate, it is empty");

    let new = New { mode: 0o444, ..FILE };
    let handle = dir.create(name("git object"), new).await.unwrap().handle.unwrap();
    handle.write(0, Bytes::from_static(b"x")).await.expect("a new file of mode 0444 is written through its handle");
    handle.close().await.unwrap();
    assert_eq!(walk(dir, "git object").await.unwrap().attr().await.unwrap().mode & 0o7777, 0o444);

    // Removed while it is open, it goes on.
    let open = node.open(How::RDWR).await.unwrap();
    dir.remove(name("a"), false).await.unwrap();
    open.write(0, Bytes::from_static(b"still")).await.unwrap();
    assert_eq!(open.read(0, 100).await.unwrap(), "still");
    open.close().await.unwrap();
    assert_eq!(walk(dir, "a").await.err(), Some(Errno::ENOENT));
    dir.remove(name("git object"), false).await.unwrap();
    assert_eq!(dir.remove(name("a"), false).await.err(), Some(Errno::ENOENT));
}

/// `nsec`: 0 where times are whole seconds.
pub(super) async fn sizes_and_times(dir: &NodeRef, nsec: u32) {
    put(dir, "s", "0123456789").await;
    let node = walk(dir, "s").await.unwrap();
    let attr = node.set_attr(SetAttr { size: Some(4), ..SetAttr::default() }).await.unwrap();
    assert_eq!(attr.size, 4, "a change gives the attributes afterwards");
    node.set_attr(SetAttr { size: Some(6), ..SetAttr::default() }).await.unwrap();
    assert_eq!(read(dir, "s", 100).await.unwrap(), b"0123\0\0", "what grows is filled with zeros");
    node.set_attr(SetAttr { mode: Some(0o640), ..SetAttr::default() }).await.unwrap();
    let when = Time { sec: 1_000_000_000, nsec };
    let change = SetAttr { mtime: Some(SetTime::At(when)), atime: Some(SetTime::Now), ..SetAttr::default() };
    node.set_attr(change).await.unwrap();
    let attr = node.attr().await.unwrap();
    assert_eq!((attr.mode & 0o7777, attr.mtime), (0o640, when));
    assert!(attr.atime.sec > when.sec, "now is later than 2001");
    let nobody = SetAttr { uid: Some(u32::MAX), size: Some(0), ..SetAttr::default() };
    assert!(node.set_attr(nobody).await.is_err(), "there is no owner of that number");
    dir.remove(name("s"), false).await.unwrap();
}

pub(super) async fn directories(dir: &NodeRef) {
    dir.create(name("d"), DIR).await.unwrap();
    assert_eq!(dir.create(name("d"), DIR).await.err(), Some(Errno::EEXIST));
    let d = walk(dir, "d").await.unwrap();
    assert_eq!(d.qid().kind, FileKind::Dir);
    assert_eq!(d.open(How::WRITE).await.err(), Some(Errno::EISDIR), "a directory is not opened for writing");
    put(&d, "f", "x").await;
    assert_eq!(dir.remove(name("d"), true).await.err(), Some(Errno::ENOTEMPTY));
    assert_eq!(dir.remove(name("d"), false).await.err(), Some(Errno::EISDIR));
    assert_eq!(d.remove(name("f"), true).await.err(), Some(Errno::ENOTDIR));
    d.remove(name("f"), false).await.unwrap();
    dir.remove(name("d"), true).await.unwrap();
    assert_eq!(walk(dir, "d").await.err(), Some(Errno::ENOENT));
}

pub(super) async fn names(dir: &NodeRef) {
    put(dir, "one", "1").await;
    dir.create(name("sub"), DIR).await.unwrap();
    let sub = walk(dir, "sub").await.unwrap();
    let before = walk(dir, "one").await.unwrap().qid().path;
    dir.rename(name("one"), &sub, name("moved"), 0).await.unwrap();
    assert_eq!(walk(dir, "one").await.err(), Some(Errno::ENOENT));
    let moved = walk(dir, "sub/moved").await.unwrap();
    assert_eq!(moved.qid().path, before, "a rename keeps the file");
    dir.link(&moved, name("other")).await.unwrap();
    let other = walk(dir, "other").await.unwrap();
    assert_eq!((other.qid().path, other.attr().await.unwrap().nlink), (before, 2), "a link is the same file");
    put(dir, "over", "2").await;
    dir.rename(name("over"), dir, name("other"), 0).await.unwrap();
    assert_eq!(read(dir, "other", 10).await.unwrap(), b"2", "a rename replaces what was there");
    assert_eq!(read(dir, "sub/moved", 10).await.unwrap(), b"1");

    let link = New { what: What::Link(b"../to/nowhere"), mode: 0o777, owner: None };
    dir.create(name("l"), link).await.unwrap();
    let l = walk(dir, "l").await.unwrap();
    assert_eq!(l.qid().kind, FileKind::Link, "a walk does not follow a link");
    assert_eq!(l.read_link().await.unwrap(), "../to/nowhere");
    for (at, is_dir) in [("sub/moved", false), ("sub", true), ("other", false), ("l", false)] {
        let (parent, last) = at.rsplit_once('/').unwrap_or(("", at));
        walk(dir, parent).await.unwrap().remove(name(last), is_dir).await.unwrap();
    }
}
