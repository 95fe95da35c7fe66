//! A remote tree at a server that speaks 9P2000: ours, told to, and one that the test plays.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use p9::client::{Client, Options};
use p9::server::{self, Limits};
use p9::wire::legacy::Stat;
use p9::wire::{Counted, Data, Dialect, Field, NO_TAG, Qids, R, Str};
use p9::{Dir, Errno, FileKind, Handle, How, Name, New, NodeRef, Qid, SetAttr, SetTime, Time, Tree, Want, What, Who};
use tokio::io::AsyncWriteExt;

use crate::fake::{Fake, PATIENCE, ROOT};
use crate::ram::Ram;

fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

/// The root of `ram` at a server with which 9P2000 was agreed on.
async fn root(ram: &Ram, msize: u32) -> (Client, NodeRef) {
    let (near, far) = tokio::io::duplex(1 << 20);
    tokio::spawn(server::serve(far, Arc::new(ram.clone()), Arc::new(Who::owner()), Limits::default()));
    let options = Options { msize, dialect: Dialect::Legacy, ..Options::default() };
    let client = Client::connect(near, options).await.unwrap();
    assert_eq!(client.dialect(), Dialect::Legacy);
    let root = client.attach(&Who::owner(), b"").await.unwrap();
    (client, root)
}

/// What is agreed on with a server that answers each offer with the next of `answers`.
async fn agreed(answers: &[&str]) -> Result<Dialect, String> {
    let (near, mut far) = tokio::io::duplex(1 << 16);
    let mut fake = Vec::new();
    for answer in answers {
        match answer.strip_prefix("error ") {
            Some(text) => R::Error { ename: Str(text.as_bytes()) }.encode(NO_TAG, &mut fake),
            None => R::Version { msize: 8192, version: Str(answer.as_bytes()) }.encode(NO_TAG, &mut fake),
        }
    }
    far.write_all(&fake).await.unwrap();
    let client = tokio::time::timeout(PATIENCE, Client::connect(near, Options::default())).await.unwrap();
    client.map(|client| client.dialect()).map_err(|err| err.to_string())
}

#[tokio::test(start_paused = true)]
async fn the_richest_dialect_that_both_speak_is_found() {
    assert_eq!(agreed(&["unknown", "unknown", "9P2000"]).await, Ok(Dialect::Legacy));
    assert_eq!(agreed(&["9P2000", "9P2000"]).await, Ok(Dialect::Legacy), "a variant that is not known is 9P2000");
    assert_eq!(agreed(&["9P2000", "9P2000.L"]).await, Ok(Dialect::L), "which says nothing about another variant");
    assert_eq!(agreed(&["error bad version", "error bad version", "9P2000"]).await, Ok(Dialect::Legacy));
    let refused = agreed(&["unknown", "unknown", "unknown"]).await.unwrap_err();
    assert_eq!(refused, "the server speaks \"unknown\", not 9P2000");
    let refused = agreed(&["unknown", "9P2000.L.slashn"]).await.unwrap_err();
    assert!(refused.contains("slashn"), "what was not offered is not agreed on: {refused}");
}

async fn list(dir: &Arc<dyn Dir>, cookie: u64, most: usize) -> (Vec<String>, u64) {
    let (mut names, mut last) = (Vec::new(), cookie);
    let mut each = |entry: p9::Entry<'_>| {
        if names.len() == most {
            return ControlFlow::Break(());
        }
        assert!(entry.attr.is_some_and(|attr| attr.qid == entry.qid), "a listing brings the attributes along");
        names.push(entry.name.to_string());
        last = entry.cookie;
        ControlFlow::Continue(())
    };
    dir.list(cookie, &mut each).await.unwrap();
    (names, last)
}

#[tokio::test]
async fn a_directory_is_listed_from_any_cookie_and_by_several_at_once() {
    let ram = Ram::root();
    let dir = ram.dir("dir");
    let all: BTreeSet<String> = (0..150).map(|i| format!("file{i}")).collect();
    all.iter().for_each(|name| drop(dir.file(name, "")));
    let (_client, root) = root(&ram, 1024).await;
    let open = root.open_at(&[name("dir")], How::READ, Want::default()).await.unwrap();
    let Handle::Dir(open) = open.handle else { panic!("no directory") };
    let (first, middle) = list(&open, 0, 70).await;
    let (rest, end) = list(&open, middle, 1000).await;
    assert_eq!(first.iter().chain(&rest).cloned().collect::<BTreeSet<_>>(), all);
    assert_eq!(list(&open, middle, 1000).await.0, rest, "again from the middle");
    assert_eq!(list(&open, 0, 3).await.0, first[..3], "and from the start");
    assert!(list(&open, end, 1).await.0.is_empty());
    let both = tokio::join!(list(&open, 0, 1000), list(&open, middle, 1000));
    assert_eq!((both.0.0.len(), both.1.0), (150, rest));
}

#[tokio::test]
async fn what_is_removed_is_not_clunked_and_every_fid_is_given_back() {
    let ram = Ram::root();
    let (client, root) = root(&ram, 8192).await;
    for _ in 0..50 {
        let new = New { what: What::File(How::RDWR), mode: 0o644, owner: None };
        let made = root.create(name("f"), new).await.unwrap();
        let handle = made.handle.unwrap();
        handle.write(0, Bytes::from_static(b"text")).await.unwrap();
        handle.close().await.unwrap();
        assert_eq!(made.node.attr().await.unwrap().size, 4);
        let again = root.create(name("f"), New { what: What::File(How { truncate: true, ..How::RDWR }), ..new }).await;
        assert_eq!(again.unwrap().attr.unwrap().size, 0, "what is there already is opened");
        let before = client.counts().requests;
        root.remove(name("f"), false).await.unwrap();
        root.attr().await.unwrap();
        assert_eq!(client.counts().requests, before + 3, "a walk, a remove, a stat");
        assert_eq!(root.remove(name("f"), false).await, Err(Errno::ENOENT));
    }
    assert_eq!(root.attr().await.unwrap().qid.path, 1);
    let holders = ram.holders();
    let before = holders();
    drop(root);
    let freed = async {
        while holders() >= before {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, freed).await.expect("the root's fid is given back");
}

#[tokio::test]
async fn an_append_goes_to_the_end_and_what_is_synced_is_asked_for() {
    let ram = Ram::root();
    let file = ram.file("log", "one");
    let (_client, root) = root(&ram, 8192).await;
    let how = How { append: true, sync: true, ..How::WRITE };
    let open = root.open_at(&[name("log")], how, Want::default()).await.unwrap().handle;
    let written = open.write(0, Bytes::from_static(b"two")).await.unwrap();
    assert_eq!((written.count, written.offset, &file.contents()[..]), (3, Some(3), &b"onetwo"[..]));
    open.sync(false).await.unwrap();
    let node = root.walk(&[name("log")], Want::default()).await.unwrap().reached().unwrap().node;
    let change = SetAttr { mode: Some(0o1600), ..SetAttr::default() };
    assert_eq!(node.set_attr(change).await.unwrap().mode, libc::S_IFREG | 0o1600, "append-only is a mode of its own");
}

/// What a listing comes to whose server gives `data`.
async fn listed(data: &[u8]) -> Result<usize, Errno> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut fake = Fake::of(far);
    let play = async {
        fake.hears("Version").await;
        fake.says(NO_TAG, R::Version { msize: 8192, version: Str(b"9P2000") }).await;
        let (tag, text) = fake.hears("Attach").await;
        assert!(text.contains("n_uname: None"), "{text}");
        fake.says(tag, R::Attach { qid: ROOT }).await;
        let (tag, _) = fake.hears("Walk").await;
        fake.says(tag, R::Walk { qids: Qids::of(&[]) }).await;
        let (tag, _) = fake.hears("Open").await;
        fake.says(tag, R::Open { qid: ROOT, iounit: 0 }).await;
        let (tag, _) = fake.hears("Read").await;
        fake.says(tag, R::Read { data: Data(data) }).await;
        if let Ok(Some((tag, _))) = tokio::time::timeout(PATIENCE, fake.hear()).await {
            fake.says(tag, R::Read { data: Data(b"") }).await;
        }
    };
    let ask = async {
        let options = Options { msize: 8192, dialect: Dialect::Legacy, ..Options::default() };
        let client = Client::connect(near, options).await.unwrap();
        let root = client.attach(&Who::owner(), b"").await.unwrap();
        let Handle::Dir(dir) = root.open(How::READ).await.unwrap() else { panic!("no directory") };
        let mut count = 0;
        let mut each = |_: p9::Entry<'_>| {
            count += 1;
            ControlFlow::Continue(())
        };
        dir.list(0, &mut each).await.map(|()| count)
    };
    tokio::join!(ask, play).0
}

#[tokio::test(start_paused = true)]
async fn a_listing_that_lies_is_refused() {
    let attr = p9::Attr::synthetic(Qid { kind: FileKind::File, version: 0, path: 3 }, 0o644);
    let stat = |name: &[u8]| {
        let mut data = Vec::new();
        Stat::of(&attr, name, b"glenda", b"").write(&mut data);
        data
    };
    assert_eq!(listed(&stat(b"motd")).await, Ok(1));
    assert_eq!(listed(&[stat(b"motd"), stat(b"a/b")].concat()).await, Err(Errno::EPROTO));
    assert_eq!(listed(&stat(b"..")).await, Err(Errno::EPROTO));
    assert_eq!(listed(&stat(b"motd")[..40]).await, Err(Errno::EPROTO));
    assert_eq!(listed(&[0, 0]).await, Err(Errno::EPROTO));
}

/// A file at a server that the test plays, whose qid is `qid`.
async fn one_file(qid: Qid) -> (NodeRef, Fake) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let mut fake = Fake::of(far);
    let play = async {
        fake.hears("Version").await;
        fake.says(NO_TAG, R::Version { msize: 8192, version: Str(b"9P2000") }).await;
        let (tag, _) = fake.hears("Attach").await;
        fake.says(tag, R::Attach { qid }).await;
    };
    let ask = async {
        let options = Options { msize: 8192, dialect: Dialect::Legacy, ..Options::default() };
        Client::connect(near, options).await.unwrap().attach(&Who::owner(), b"").await.unwrap()
    };
    let (node, ()) = tokio::join!(ask, play);
    (node, fake)
}

/// What Plan 9's servers have where ours has a version: none.
const PLAIN: Qid = Qid { kind: FileKind::File, version: 0, path: 3 };

async fn says_stat(fake: &mut Fake, size: u64) {
    let (tag, _) = fake.hears("Stat").await;
    let attr = p9::Attr { size, ..p9::Attr::synthetic(PLAIN, 0o644) };
    fake.says(tag, R::Stat { stat: Counted(Stat::of(&attr, b"f", b"glenda", b"glenda")) }).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_without_a_version_is_a_device_if_it_has_no_length() {
    for (size, seekable) in [(0, false), (5, true)] {
        let (node, mut fake) = one_file(PLAIN).await;
        let play = async {
            let (tag, _) = fake.hears("Walk").await;
            fake.says(tag, R::Walk { qids: Qids::of(&[]) }).await;
            let (tag, _) = fake.hears("Open").await;
            fake.says(tag, R::Open { qid: PLAIN, iounit: 0 }).await;
            says_stat(&mut fake, size).await;
        };
        let (handle, ()) = tokio::join!(node.open(How::RDWR), play);
        assert_eq!(handle.unwrap().seekable(), seekable);
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_sets_no_time_of_access_is_asked_for_the_rest() {
    let (node, mut fake) = one_file(PLAIN).await;
    let at = |sec| Some(SetTime::At(Time { sec, nsec: 0 }));
    let play = async {
        let (tag, text) = fake.hears("Wstat").await;
        assert!(text.contains("atime: 7, mtime: 9"), "{text}");
        fake.says(tag, R::Error { ename: Str(b"wstat prohibited") }).await;
        let (tag, text) = fake.hears("Wstat").await;
        assert!(text.contains("atime: 4294967295, mtime: 9"), "{text}");
        fake.says(tag, R::Wstat {}).await;
        says_stat(&mut fake, 5).await;
        let (tag, _) = fake.hears("Wstat").await;
        fake.says(tag, R::Error { ename: Str(b"wstat prohibited") }).await;
    };
    let change = SetAttr { atime: at(7), mtime: at(9), ..SetAttr::default() };
    let ask = async {
        assert_eq!(node.set_attr(change).await.unwrap().size, 5);
        let refused = node.set_attr(SetAttr { mtime: None, ..change }).await;
        assert_eq!(refused.err(), Some(Errno::EPERM), "nothing else was asked for");
    };
    tokio::join!(ask, play);
}
