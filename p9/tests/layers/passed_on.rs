//! Each method of a node, an open file and a directory reaches what is beneath a layer that changes nothing, also one
//! that was added to the traits today: their names are read from the source.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use p9::layer::{FileLayer, Layer, LayeredFile};
use p9::tree::{Lease, LeaseKind, Lock, LockKind, OnBreak};
use p9::{
    Attr, Created, Digest, Dir, DirSink, Errno, FileKind, Handle, How, Name, New, Node, NodeRef, Opened, Qid, Reply,
    SetAttr, StatFs, Stream, Walk, Want, What, Written,
};
use parking_lot::Mutex;

use super::name;

/// What no tree answers by itself.
const MARK: Errno = Errno::ENOTTY;

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<BTreeSet<&'static str>>>);

impl Seen {
    fn saw<T>(&self, method: &'static str) -> Reply<'static, T> {
        self.0.lock().insert(method);
        MARK.into()
    }
}

#[derive(Clone)]
struct PassOn;

impl Layer for PassOn {
    fn local(&self, below: &NodeRef) -> Option<OwnedFd> {
        below.local()
    }
}

impl FileLayer for PassOn {
    fn digest<'a>(&'a self, below: &'a Handle, offset: u64, count: u64) -> Reply<'a, Digest> {
        below.digest(offset, count)
    }
}

impl Node for Seen {
    fn qid(&self) -> Qid {
        self.0.lock().insert("qid");
        Qid { kind: FileKind::Dir, version: 0, path: 7 }
    }
    fn walk<'a>(&'a self, _: &'a [Name<'a>], _: Want) -> Reply<'a, Walk> {
        self.saw("walk")
    }
    fn open_at<'a>(&'a self, _: &'a [Name<'a>], _: How, _: Want) -> Reply<'a, Opened> {
        self.saw("open_at")
    }
    fn fetch<'a>(&'a self, _: Name<'a>, _: u32) -> Reply<'a, (Qid, Bytes)> {
        self.saw("fetch")
    }
    fn attr(&self) -> Reply<'_, Attr> {
        self.saw("attr")
    }
    fn open(&self, _: How) -> Reply<'_, Handle> {
        self.saw("open")
    }
    fn create<'a>(&'a self, _: Name<'a>, _: New<'a>) -> Reply<'a, Created> {
        self.saw("create")
    }
    fn create_leased<'a>(&'a self, _: Name<'a>, _: New<'a>) -> Reply<'a, Created> {
        self.saw("create_leased")
    }
    fn set_attr(&self, _: SetAttr) -> Reply<'_, Attr> {
        self.saw("set_attr")
    }
    fn remove<'a>(&'a self, _: Name<'a>, _: bool) -> Reply<'a, ()> {
        self.saw("remove")
    }
    fn rename<'a>(&'a self, _: Name<'a>, _: &'a NodeRef, _: Name<'a>, _: u32) -> Reply<'a, ()> {
        self.saw("rename")
    }
    fn link<'a>(&'a self, _: &'a NodeRef, _: Name<'a>) -> Reply<'a, ()> {
        self.saw("link")
    }
    fn read_link(&self) -> Reply<'_, Bytes> {
        self.saw("read_link")
    }
    fn stat_fs(&self) -> Reply<'_, StatFs> {
        self.saw("stat_fs")
    }
    fn sync(&self) -> Reply<'_, ()> {
        self.saw("sync")
    }
    fn xattr<'a>(&'a self, _: &'a [u8]) -> Reply<'a, Bytes> {
        self.saw("xattr")
    }
    fn xattrs(&self) -> Reply<'_, Bytes> {
        self.saw("xattrs")
    }
    fn set_xattr<'a>(&'a self, _: &'a [u8], _: Option<Bytes>, _: u32) -> Reply<'a, ()> {
        self.saw("set_xattr")
    }
    fn lock(&self, _: Lock, _: bool) -> Reply<'_, ()> {
        self.saw("lock")
    }
    fn conflicting_lock(&self, _: Lock) -> Reply<'_, Option<Lock>> {
        self.saw("conflicting_lock")
    }
    fn lease(&self, _: LeaseKind, _: OnBreak) -> Reply<'_, Option<Lease>> {
        self.saw("lease")
    }
    fn events(&self) -> Reply<'_, Arc<dyn Stream>> {
        self.saw("events")
    }
    fn local(&self) -> Option<OwnedFd> {
        self.0.lock().insert("local");
        None
    }
}

impl Stream for Seen {
    fn seekable(&self) -> bool {
        self.0.lock().insert("seekable")
    }
    fn read(&self, _: u64, _: u32) -> Reply<'_, Bytes> {
        self.saw("read")
    }
    fn write(&self, _: u64, _: Bytes) -> Reply<'_, Written> {
        self.saw("write")
    }
    fn sync(&self, _: bool) -> Reply<'_, ()> {
        self.saw("sync")
    }
    fn write_and_flush(&self, _: u64, _: Bytes) -> Reply<'_, Written> {
        self.saw("write_and_flush")
    }
    fn flush(&self) -> Reply<'_, ()> {
        self.saw("flush")
    }
    fn allocate(&self, _: u32, _: u64, _: u64) -> Reply<'_, ()> {
        self.saw("allocate")
    }
    fn copy<'a>(&'a self, _: u64, _: &'a Handle, _: u64, _: u64) -> Reply<'a, u64> {
        self.saw("copy")
    }
    fn seek(&self, _: u64, _: bool) -> Reply<'_, u64> {
        self.saw("seek")
    }
    fn digest(&self, _: u64, _: u64) -> Reply<'_, Digest> {
        self.saw("digest")
    }
    fn poll(&self, _: u32) -> Reply<'_, u32> {
        self.saw("poll")
    }
    fn close(&self) -> Reply<'_, ()> {
        self.saw("close")
    }
}

impl Dir for Seen {
    fn list<'a>(&'a self, _: u64, _: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        self.saw("list")
    }
}

/// The names of the methods of `item` in `source`.
fn methods<'s>(source: &'s str, item: &str) -> BTreeSet<&'s str> {
    let (_, from) = source.split_once(item).unwrap();
    let (body, _) = from.split_once("\n}\n").unwrap();
    let name = |line: &'s str| line.strip_prefix("    fn ")?.split(['(', '<']).next();
    body.lines().filter_map(name).collect()
}

#[tokio::test]
async fn every_method_of_a_node_is_passed_on() {
    let seen = Seen::default();
    let node = PassOn.over(Arc::new(seen.clone()));
    let (x, new) = (name("x"), New { what: What::Dir, mode: 0, owner: None });
    let lock = || Lock { kind: LockKind::Read, start: 0, length: 0, owner: 0, pid: 0 };
    assert_eq!(node.qid().path, 7);
    assert!(node.local().is_none());
    let answers = [
        node.walk(&[x], Want::default()).await.err(),
        node.open_at(&[], How::READ, Want::default()).await.err(),
        node.fetch(x, 1).await.err(),
        node.attr().await.err(),
        node.open(How::READ).await.err(),
        node.create(x, new).await.err(),
        node.create_leased(x, new).await.err(),
        node.set_attr(SetAttr::default()).await.err(),
        node.remove(x, false).await.err(),
        node.rename(x, &node, x, 0).await.err(),
        node.link(&node, x).await.err(),
        node.read_link().await.err(),
        node.stat_fs().await.err(),
        node.sync().await.err(),
        node.xattr(b"user.x").await.err(),
        node.xattrs().await.err(),
        node.set_xattr(b"user.x", None, 0).await.err(),
        node.lock(lock(), false).await.err(),
        node.conflicting_lock(lock()).await.err(),
        node.lease(LeaseKind::Read, Arc::new(|_| ())).await.err(),
        node.events().await.err(),
    ];
    assert_eq!(answers, [Some(MARK); 21]);
    let mut all = methods(include_str!("../../src/tree.rs"), "\npub trait Node:");
    assert!(all.remove("attr_if"), "which asks by attr");
    assert_eq!(*seen.0.lock(), all);
}

#[tokio::test]
async fn every_method_of_an_open_file_is_passed_on() {
    let seen = Seen::default();
    let file = LayeredFile::over(PassOn, Handle::Stream(Arc::new(seen.clone())));
    assert!(file.seekable());
    let answers = [
        file.read(0, 1).await.err(),
        file.write(0, Bytes::new()).await.err(),
        file.sync(true).await.err(),
        file.flush().await.err(),
        file.write_and_flush(0, Bytes::new()).await.err(),
        file.allocate(0, 0, 1).await.err(),
        file.copy(0, &file, 0, 1).await.err(),
        file.seek(0, true).await.err(),
        file.digest(0, 1).await.err(),
        file.poll(1).await.err(),
        file.close().await.err(),
    ];
    assert_eq!(answers, [Some(MARK); 11]);
    assert_eq!(*seen.0.lock(), methods(include_str!("../../src/handle.rs"), "\npub trait Stream:"));
    let foreign = Handle::Stream(Arc::new(seen));
    assert_eq!(file.copy(0, &foreign, 0, 1).await.err(), Some(Errno::EXDEV));
}

#[tokio::test]
async fn every_method_of_a_directory_is_passed_on() {
    let seen = Seen::default();
    let Handle::Dir(dir) = PassOn.handle(Handle::Dir(Arc::new(seen.clone()))) else { panic!("a directory") };
    assert_eq!(dir.list(0, &mut |_| ControlFlow::Continue(())).await.err(), Some(MARK));
    assert_eq!(*seen.0.lock(), methods(include_str!("../../src/handle.rs"), "\npub trait Dir:"));
}
