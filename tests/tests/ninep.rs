//! 9P2000 with ninep, an implementation that others wrote: its client at our server, its server behind our client.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::collections::BTreeSet;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use fileserver::{Disk, DiskOptions};
use ninep::fs::{Mode, Perm, WStat};
use ninep::sync::client::Client;
use ninep::sync::server::Server;
use ninep::util::ram::RamFs;
use p9::client::Options;
use p9::server::{self, Limits};
use p9::wire::Dialect;
use p9::{Errno, How, New, NodeRef, Tree, What, Who};
use tests::contract::{list, name, read, walk};

/// ninep's client of the directory `path`. It blocks, and so does its user.
async fn at_ours(path: &Path, ask: impl FnOnce(Client) + Send + 'static) {
    let tree = Disk::open(path, DiskOptions::new([7; 32])).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let far = tokio::net::UnixStream::from_std(far).unwrap();
    let served = tokio::spawn(server::serve(far, tree, Arc::new(Who::owner()), Limits::default()));
    let asked = tokio::task::spawn_blocking(move || ask(Client::new_from_unix_stream("glenda", "", near).unwrap()));
    asked.await.unwrap();
    served.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nineps_client_reads_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    let long: Vec<u8> = (0..300_000_u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(dir.path().join("d/long"), &long).unwrap();
    std::os::unix::fs::symlink("d/long", dir.path().join("link")).unwrap();
    (0..2000).for_each(|i| std::fs::write(dir.path().join(format!("d/file{i}")), "").unwrap());
    at_ours(dir.path(), move |client| {
        let stat = client.stat("link").unwrap();
        assert_eq!((stat.name.as_str(), stat.n_bytes), ("link", 300_000));
        assert!(client.read("link").unwrap() == long);
        client.clunk_path("link").unwrap();
        let entries = client.read_dir("d").unwrap();
        let names: BTreeSet<&str> = entries.iter().map(|stat| stat.name.as_str()).collect();
        assert_eq!((entries.len(), names.len(), names.contains("file1999")), (2001, 2001, true));
        let missing = client.stat("none").unwrap_err().to_string();
        assert!(missing.contains("file does not exist"), "{missing}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nineps_client_makes_changes_and_removes_files() {
    let dir = tempfile::tempdir().unwrap();
    at_ours(dir.path(), |client| {
        client.create("", "made", Perm::from_bits_retain(0o600), Mode::READ_WRITE).unwrap();
        client.clunk_path("made").unwrap();
        client.write("made", 0, b"some text").unwrap();
        client.clunk_path("made").unwrap();
        assert_eq!(client.read_str("made").unwrap(), "some text");
        client.clunk_path("made").unwrap();
        let qid = client.stat("made").unwrap().qid;
        let to = WStat { name: Some("other".into()), n_bytes: Some(4), ..WStat::commit(qid) };
        client.write_stat("made", to).unwrap();
        let stat = client.stat("other").unwrap();
        assert_eq!((stat.n_bytes, stat.qid.path), (4, qid.path));
        client.create("", "dir", Perm::DIRECTORY | Perm::from_bits_retain(0o755), Mode::READ).unwrap();
        client.create("dir", "inner", Perm::from_bits_retain(0o644), Mode::WRITE).unwrap();
        let full = client.remove("dir").unwrap_err().to_string();
        assert!(full.contains("not empty"), "{full}");
        client.remove("dir/inner").unwrap();
        client.remove("other").unwrap();
    })
    .await;
    let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["dir"]);
}

/// The root of ninep's file system in memory, through our client. It is asked for no wstat: it wants the file's qid in
/// one, where stat(5) has "don't touch".
async fn at_theirs() -> NodeRef {
    let (near, far) = UnixStream::pair().unwrap();
    std::thread::spawn(move || Server::new(RamFs::new("glenda", "glenda")).handle_single_client_stream(far));
    near.set_nonblocking(true).unwrap();
    let near = tokio::net::UnixStream::from_std(near).unwrap();
    let client = p9::client::Client::connect(near, Options::default()).await.unwrap();
    assert_eq!(client.dialect(), Dialect::Legacy);
    let who = Who { user: "glenda".into(), ..Who::owner() };
    client.attach(&who, b"").await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_client_reads_and_changes_what_nineps_server_has() {
    let root = at_theirs().await;
    let new = |what| New { what, mode: 0o755, owner: None };
    root.create(name("dir"), new(What::Dir)).await.unwrap();
    let dir = walk(&root, "dir").await.unwrap();
    let contents: Bytes = (0..200_000_u32).map(|i| (i % 251) as u8).collect();
    let made = dir.create(name("f"), new(What::File(How { excl: true, ..How::RDWR }))).await.unwrap();
    let handle = made.handle.unwrap();
    assert_eq!(handle.write(0, contents.clone()).await.unwrap().count, 200_000);
    handle.close().await.unwrap();
    assert!(read(&root, "dir/f", 70_000).await.unwrap() == contents);
    let again = dir.create(name("f"), new(What::File(How { excl: true, ..How::RDWR }))).await;
    assert_eq!(again.err(), Some(Errno::EEXIST));
    let names: Vec<String> = list(&dir, 1).await.unwrap().keys().map(ToString::to_string).collect();
    assert_eq!(names, ["f"]);
    assert_eq!(walk(&dir, "none").await.err(), Some(Errno::ENOENT));
    assert_eq!(walk(&dir, "f").await.unwrap().attr().await.unwrap().mode, libc::S_IFREG | 0o755);
    assert_eq!(root.remove(name("dir"), true).await, Err(Errno::ENOTEMPTY));
    dir.remove(name("f"), false).await.unwrap();
    root.remove(name("dir"), true).await.unwrap();
    assert!(list(&root, 10).await.unwrap().is_empty());
}
