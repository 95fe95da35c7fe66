//! A remote tree at a server of ours, in our dialect and in plain 9P2000.L: what it does, and in how many round trips.

use std::sync::Arc;

use bytes::Bytes;
use p9::client::{Client, Counts, Dial, Options, Resume, stream_at};
use p9::server::{self, Limits, SessionLimits, Sessions};
use p9::wire::{NO_TAG, R, Str, T, VERSION_L};
use p9::{
    Attr, Errno, FileKind, Handle, How, Name, New, Node, NodeRef, Qid, Reply, SetAttr, Stream, Tree, TreeRef, Walk,
    Want, What, Who,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};

use crate::fake::PATIENCE;
use crate::ram::Ram;

fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

/// A client of `tree`, and its root.
async fn client(tree: TreeRef, ordered: bool, msize: u32) -> (Client, NodeRef) {
    let (mut near, far) = tokio::io::duplex(1 << 20);
    tokio::spawn(server::serve(far, tree, Arc::new(Who::owner()), Limits::default()));
    if !ordered {
        // Whatever the client offers, the server hears of plain 9P2000.L alone.
        let (client, mut between) = tokio::io::duplex(1 << 20);
        let mut server = std::mem::replace(&mut near, client);
        tokio::spawn(async move {
            let size = between.read_u32_le().await.unwrap();
            between.read_exact(&mut vec![0; size as usize - 4]).await.unwrap();
            let mut version = Vec::new();
            T::Version { msize, version: Str(VERSION_L) }.encode(NO_TAG, &mut version);
            server.write_all(&version).await.unwrap();
            let _ = copy_bidirectional(&mut between, &mut server).await;
        });
    }
    let client = Client::connect(near, Options { msize, ..Options::default() }).await.unwrap();
    let root = client.attach(&Who::owner(), b"").await.unwrap();
    (client, root)
}

/// Both dialects on the same tree.
async fn both(tree: impl Tree) -> [(Client, NodeRef); 2] {
    let tree: TreeRef = Arc::new(tree);
    [client(tree.clone(), true, 8192 + 24).await, client(tree, false, 8192 + 24).await]
}

/// Round trips since `before`.
fn trips(client: &Client, before: Counts) -> u64 {
    client.counts().round_trips - before.round_trips
}

#[tokio::test]
async fn opening_and_reading_a_file_is_one_round_trip() {
    let ram = Ram::root();
    ram.dir("d").file("f", "contents");
    let want = Want { data: 100, ..Want::ATTR };
    for ((client, root), expected) in both(ram).await.into_iter().zip([1, 4]) {
        let before = client.counts();
        let opened = root.open_at(&[name("d"), name("f")], How::READ, want).await.unwrap();
        assert_eq!(trips(&client, before), expected);
        assert_eq!(opened.attr.unwrap().size, 8);
        if let Some(first) = opened.first {
            assert_eq!(first, "contents");
        }
        assert_eq!(opened.handle.read(3, 100).await.unwrap(), "tents");
    }
}

/// How to get back to nothing.
fn lost() -> Resume {
    let dial: Dial = Arc::new(|| Box::pin(async { Err(std::io::ErrorKind::NotFound.into()) }));
    let linger = std::time::Duration::from_secs(1);
    Resume { dial, linger, patience: linger, bulk: None }
}

#[tokio::test]
async fn what_is_asked_of_a_server_that_is_known_waits_for_nothing_before_it() {
    let ram = Ram::root();
    ram.dir("d").file("f", "contents");
    let (near, far) = tokio::io::duplex(1 << 20);
    let sessions = Sessions::new(SessionLimits::default());
    tokio::spawn(async move { sessions.serve(far, Arc::new(ram), Arc::new(Who::owner()), Limits::default()).await });
    let client = Client::assuming(near, Options::default(), lost());
    let qid = Qid { kind: FileKind::Dir, version: 0, path: 0 };
    let root = client.attach_to(&Who::owner(), b"", qid).await.unwrap();
    let file = stream_at(&root, &[name("d"), name("f")], How::READ).await.unwrap();
    let none = stream_at(&root, &[name("d"), name("none")], How::READ).await.unwrap();
    assert_eq!(client.counts().round_trips, 0);
    assert_eq!(file.read(0, 100).await.unwrap(), "contents");
    assert_eq!(client.counts().round_trips, 1);
    assert_eq!(none.read(0, 100).await.err(), Some(Errno::ENOENT));
    none.close().await.unwrap();
    assert_eq!(root.walk(&[name("d")], Want::default()).await.unwrap().qids.len(), 1);
}

#[tokio::test]
async fn a_connection_that_was_dead_before_it_was_used_is_made_anew() {
    let ram = Ram::root();
    ram.file("f", "contents");
    let (tree, sessions): (TreeRef, _) = (Arc::new(ram), Sessions::new(SessionLimits::default()));
    let dial: Dial = Arc::new(move || {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (tree, sessions) = (tree.clone(), sessions.clone());
        tokio::spawn(async move { sessions.serve(far, tree, Arc::new(Who::owner()), Limits::default()).await });
        Box::pin(async move { Ok(Box::new(near) as p9::transport::Io) })
    });
    let (dead, _) = tokio::io::duplex(1 << 20);
    let client = Client::assuming(dead, Options::default(), Resume { dial, patience: PATIENCE, ..lost() });
    let qid = Qid { kind: FileKind::Dir, version: 0, path: 0 };
    let root = client.attach_to(&Who::owner(), b"", qid).await.unwrap();
    let file = stream_at(&root, &[name("f")], How::READ).await.unwrap();
    assert_eq!(file.read(0, 100).await.unwrap(), "contents");
}

#[tokio::test]
async fn a_server_that_was_taken_for_another_is_given_up() {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let mut answer = Vec::new();
    R::Version { msize: 8192, version: Str(VERSION_L) }.encode(NO_TAG, &mut answer);
    far.write_all(&answer).await.unwrap();
    let client = Client::assuming(near, Options::default(), lost());
    let qid = Qid { kind: FileKind::Dir, version: 0, path: 0 };
    let failed = match client.attach_to(&Who::owner(), b"", qid).await {
        Ok(root) => root.attr().await.err(),
        Err(errno) => Some(errno),
    };
    // It may have been sent by then.
    assert!(matches!(failed, Some(Errno::EHOSTUNREACH | Errno::ECONNRESET)), "{failed:?}");
    assert!(client.is_closed());
}

#[tokio::test]
async fn a_small_file_is_opened_read_and_closed_in_one_round_trip() {
    let ram = Ram::root();
    ram.file("f", "contents");
    let (client, root) = client(Arc::new(ram), true, 8192 + 24).await;
    let before = client.counts();
    let want = Want { data: 100, ..Want::default() };
    for _ in 0..3 {
        let opened = root.open_at(&[name("f")], How::READ, want).await.unwrap();
        assert_eq!(opened.first.unwrap(), "contents");
        opened.handle.close().await.unwrap();
    }
    assert_eq!(trips(&client, before), 3);
    // Each time a walk, an open and a read; the clunk goes along with what is asked next.
    assert!(client.counts().requests - before.requests <= 12);
}

#[tokio::test]
async fn what_belongs_together_is_one_round_trip() {
    let ram = Ram::root();
    ram.dir("d").file("f", "contents");
    let (client, root) = client(Arc::new(ram), true, 8192 + 24).await;
    let (file, missing) = ([name("d"), name("f")], [name("no"), name("more")]);
    let new = |what| New { what, mode: 0o644, owner: None };
    let mut before = client.counts();
    let mut one = |what: &str| {
        assert_eq!(trips(&client, before), 1, "{what}");
        before = client.counts();
    };
    let walked = root.walk(&file, Want::ATTR).await.unwrap().reached().unwrap();
    one("a walk with attributes");
    assert_eq!(walked.attr.unwrap().size, 8);
    assert_eq!(root.walk(&missing, Want::ATTR).await.err(), Some(Errno::ENOENT));
    one("a name that is not there");
    assert_eq!(root.open_at(&missing, How::READ, Want::ATTR).await.err(), Some(Errno::ENOENT));
    one("opening a name that is not there");
    let made = root.create(name("g"), new(What::File(How::RDWR))).await.unwrap();
    one("a file that is made");
    assert!(made.handle.is_some() && made.attr.is_some());
    let size = walked.node.set_attr(SetAttr { size: Some(2), ..SetAttr::default() }).await.unwrap().size;
    one("a change of attributes");
    assert_eq!(size, 2);
    assert_eq!(root.walk(&file[..1], Want::ATTR).await.unwrap().qids.len(), 1);
    one("a directory");
    // Nothing of what failed is still under way.
    let requests = client.counts().requests;
    walked.node.attr().await.unwrap();
    assert_eq!(client.counts().requests, requests + 1);
}

#[tokio::test]
async fn a_node_outlives_the_open_file_that_it_came_with() {
    let ram = Ram::root();
    ram.dir("d").file("f", "contents");
    for (_client, root) in both(ram).await {
        let opened = root.open_at(&[name("d"), name("f")], How::READ, Want::default()).await.unwrap();
        opened.handle.close().await.unwrap();
        let node = opened.node.unwrap();
        assert_eq!(node.attr().await.unwrap().size, 8);
        let again = node.open(How::READ).await.unwrap();
        assert_eq!(again.read(0, 8).await.unwrap(), "contents");
        let made = root.create(name("g"), New { what: What::File(How::RDWR), mode: 0o644, owner: None }).await;
        let made = made.unwrap();
        made.handle.unwrap().close().await.unwrap();
        assert_eq!(made.node.attr().await.unwrap().size, 0);
        root.remove(name("g"), false).await.unwrap();
    }
}

#[tokio::test]
async fn a_path_of_many_names_is_walked_whatever_one_message_holds() {
    let ram = Ram::root();
    let mut dir = ram.clone();
    for _ in 0..40 {
        dir = dir.dir("d");
    }
    dir.file("f", "deep");
    let mut names = vec![name("d"); 40];
    names.push(name("f"));
    for ((client, root), expected) in both(ram).await.into_iter().zip([1, 4]) {
        let before = client.counts();
        let walk = root.walk(&names, Want::ATTR).await.unwrap();
        assert_eq!((walk.qids.len(), trips(&client, before)), (41, expected));
        assert_eq!(walk.reached().unwrap().attr.unwrap().size, 4);
        names[30] = name("x");
        let walk = root.walk(&names, Want::ATTR).await.unwrap();
        assert_eq!((walk.qids.len(), walk.end.err()), (30, Some(Errno::ENOENT)));
        names[30] = name("d");
        names[0] = name("x");
        assert_eq!(root.walk(&names, Want::ATTR).await.err(), Some(Errno::ENOENT));
        names[0] = name("d");
        names.push(name("x"));
        let walk = root.walk(&names, Want::default()).await.unwrap();
        assert_eq!((walk.qids.len(), walk.end.err()), (41, Some(Errno::ENOTDIR)));
        names.pop();
        let path = vec![name("d"); 5000];
        assert_eq!(root.walk(&path, Want::default()).await.err(), Some(Errno::ENAMETOOLONG));
    }
}

/// A file whose contents stay, as its version says: alone in its tree.
struct Kept(Bytes);

impl Tree for Kept {
    fn attach<'a>(&'a self, _who: &'a Who, _aname: &'a [u8]) -> Reply<'a, NodeRef> {
        Reply::ok(Arc::new(Self(self.0.clone())))
    }
}

impl Node for Kept {
    fn qid(&self) -> Qid {
        Qid { kind: FileKind::File, version: 1, path: 1 }
    }

    fn walk<'a>(&'a self, _names: &'a [Name<'a>], _want: Want) -> Reply<'a, Walk> {
        Errno::ENOTDIR.into()
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(Attr { size: self.0.len() as u64, ..Attr::synthetic(self.qid(), 0o444) })
    }

    fn open(&self, _how: How) -> Reply<'_, Handle> {
        Reply::ok(Handle::Stream(Arc::new(Self(self.0.clone()))))
    }
}

impl Stream for Kept {
    fn seekable(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        let start = self.0.len().min(offset as usize);
        Reply::ok(self.0.slice(start..self.0.len().min(start + count as usize)))
    }
}

#[tokio::test]
async fn a_large_read_is_one_round_trip_of_many_messages() {
    let contents: Bytes = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    let (client, root) = client(Arc::new(Kept(contents.clone())), true, 8192 + 24).await;
    let handle = root.open(How::READ).await.unwrap();
    assert!(handle.seekable());
    let before = client.counts();
    assert_eq!(handle.read(5, 100_000).await.unwrap(), contents[5..100_005]);
    assert_eq!(trips(&client, before), 1);
    assert_eq!(handle.read(190_000, 100_000).await.unwrap(), contents[190_000..]);
    assert_eq!(handle.read(300_000, 100_000).await.unwrap(), "");
    // More than is asked for at a time: some of it comes, and the rest when it is asked for.
    let (mut all, mut asked) = (Vec::new(), 0);
    while all.len() < contents.len() {
        let piece = handle.read(all.len() as u64, u32::MAX).await.unwrap();
        assert!(!piece.is_empty());
        all.extend_from_slice(&piece);
        asked += 1;
    }
    assert!(all == contents && asked == 1);
}

#[tokio::test]
async fn a_large_write_goes_in_pieces_and_lands_whole() {
    let ram = Ram::root();
    let file = ram.file("f", "");
    let contents: Bytes = (0..100_000u32).map(|i| (i % 251) as u8).collect();
    for (_client, root) in both(ram).await {
        let handle = root.open_at(&[name("f")], How::RDWR, Want::default()).await.unwrap().handle;
        assert_eq!(handle.write(0, contents.clone()).await.unwrap().count, 100_000);
        assert_eq!(file.contents(), contents);
        assert_eq!(handle.write(0, Bytes::new()).await.unwrap().count, 0);
    }
}

#[tokio::test]
async fn what_closing_met_is_told_to_who_closes() {
    let ram = Ram::root();
    ram.bad_close("bad");
    // Only our dialect can ask before.
    for ((_client, root), before) in both(ram).await.into_iter().zip([Err(Errno::EDQUOT), Ok(())]) {
        let handle = root.open_at(&[name("bad")], How::READ, Want::default()).await.unwrap().handle;
        assert_eq!(handle.flush().await, before);
        assert_eq!(handle.close().await, Err(Errno::EDQUOT));
        assert_eq!(handle.close().await, Ok(()));
    }
}

#[tokio::test]
async fn files_of_two_connections_are_of_two_trees() {
    let ram = Ram::root();
    ram.file("f", "");
    let [(_, one), (_, other)] = both(ram).await;
    assert_eq!(one.rename(name("f"), &other, name("g"), 0).await, Err(Errno::EXDEV));
    let file = other.walk(&[name("f")], Want::default()).await.unwrap().reached().unwrap().node;
    assert_eq!(one.link(&file, name("g")).await, Err(Errno::EXDEV));
    assert_eq!(other.link(&file, name("g")).await, Ok(()));
    assert_eq!(other.rename(name("g"), &other, name("h"), 0).await, Ok(()));
    assert_eq!(other.rename(name("h"), &other, name("i"), libc::RENAME_NOREPLACE).await, Err(Errno::EINVAL));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_nodes_dropped_at_once_are_in_nobodys_way() {
    let ram = Ram::root();
    let file = ram.file("f", "contents");
    let holders = file.holders();
    for (client, root) in both(ram).await {
        let names = [name("f")];
        let before = holders();
        let walks = futures_util::future::join_all((0..5000).map(|_| root.walk(&names, Want::default()))).await;
        let nodes: Vec<NodeRef> = walks.into_iter().map(|walk| walk.unwrap().reached().unwrap().node).collect();
        assert_eq!(holders(), before + 5000);
        drop(nodes);
        for _ in 0..100 {
            root.attr().await.unwrap();
        }
        let freed = async {
            while holders() > before {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, freed).await.expect("every fid is given back");
        assert!(!client.is_closed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_blocked_reads_are_cancelled_and_stall_nobody() {
    let ram = Ram::root();
    ram.pipe("pipe");
    for (client, root) in both(ram).await {
        let handle = root.open_at(&[name("pipe")], How::RDWR, Want::default()).await.unwrap().handle;
        for _ in 0..20 {
            let reads = futures_util::future::join_all((0..400).map(|_| handle.read(0, 10)));
            tokio::select! {
                biased;
                _ = reads => panic!("there was nothing to read"),
                attr = root.attr() => assert!(attr.is_ok()),
            }
        }
        assert!(!client.is_closed());
        let (read, written) = tokio::join!(handle.read(0, 10), handle.write(0, Bytes::from_static(b"at last")));
        assert_eq!((read.unwrap(), written.unwrap().count), (Bytes::from_static(b"at last"), 7));
    }
}
