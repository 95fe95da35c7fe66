//! What was told is not asked for, and never passes for what is there once that is known to be otherwise.

use std::fs;
use std::path::Path;

use fileserver::{Disk, DiskOptions};
use p9::client::{Client, Options};
use p9::server::{self, Limits};
use p9::{Tree as _, Who};

use super::*;

const PATHS: [&str; 4] = ["/bin/tool", "/bin/none", "/lib/large", "/work"];

fn names(path: &str) -> Vec<Name<'_>> {
    Name::split(path.as_bytes()).unwrap()
}

/// A caller's files, and what was told of them.
struct Caller {
    dir: tempfile::TempDir,
    client: Client,
    root: NodeRef,
    told: Bytes,
}

impl Caller {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["bin", "lib", "work", "work/sub"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("bin/tool"), "tool").unwrap();
        fs::write(dir.path().join("lib/large"), vec![7; 300 << 10]).unwrap();
        let tree = Disk::open(dir.path(), DiskOptions::new([1; 32])).unwrap();
        let root = tree.attach(&Who::owner(), b"").await.unwrap();
        let told = gather(&root, &PATHS.map(|path| path.as_bytes().to_vec()), "far", &Memory::default()).await;
        let (near, far) = tokio::io::duplex(1 << 20);
        tokio::spawn(server::serve(far, tree, Arc::new(Who::owner()), Limits::default()));
        let client = Client::connect(near, Options::default()).await.unwrap();
        let root = client.attach(&Who::owner(), b"").await.unwrap();
        Self { dir, client, root, told }
    }

    fn told(&self) -> NodeRef {
        Facts::read(&self.told).unwrap().over(self.root.clone())
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join(Path::new(path).strip_prefix("/").unwrap())
    }
}

async fn text(root: &NodeRef, path: &str) -> Result<Bytes, Errno> {
    root.open_at(&names(path), How::READ, Want::default()).await?.handle.read(0, 100).await
}

#[tokio::test]
async fn what_was_told_is_not_asked_for_and_all_of_it_is_opened_in_one_round_trip() {
    let caller = Caller::new().await;
    let before = caller.client.counts().requests;
    let root = caller.told();
    // Nothing else runs before this task waits.
    let reached = root.walk(&names("/bin/tool"), Want::ATTR).await.unwrap();
    assert_eq!((reached.qids.len(), reached.end.ok().unwrap().attr.unwrap().size), (2, 4));
    assert_eq!(root.walk(&names("/bin/none"), Want::ATTR).await.unwrap().reached().err(), Some(Errno::ENOENT));
    assert_eq!(caller.client.counts().requests, before);
    let want = Want { attr: true, data: 0, lease: LeaseKind::Attr };
    let opened = root.open_at(&names("/lib/large"), How::READ, want).await.unwrap();
    assert!(opened.attr.is_some() && opened.lease.is_some());
    let asked = caller.client.counts();
    let (all, hash) = (300 << 10, Digest::of(&vec![7; 300 << 10], 0, u64::MAX));
    assert_eq!(opened.handle.digest(0, all).await.unwrap(), hash);
    let tool = root.open_at(&names("/bin/tool"), How::READ, want).await.unwrap();
    assert_eq!(tool.handle.read(1, 100).await.unwrap(), "ool");
    assert_eq!(caller.client.counts(), asked, "nothing more was asked");
    assert_eq!(opened.handle.read(0, 3).await.unwrap(), &[7; 3][..]);
}

#[tokio::test]
async fn what_the_command_changes_is_seen_at_once() {
    let caller = Caller::new().await;
    let root = caller.told();
    let bin = root.walk(&names("/bin"), Want::default()).await.unwrap().reached().unwrap().node;
    let new = New { what: p9::What::File(How::RDWR), mode: 0o644, owner: None };
    bin.create(names("none")[0], new).await.unwrap();
    assert!(root.walk(&names("/bin/none"), Want::ATTR).await.unwrap().reached().is_ok());
    // From a directory that was told of to one that was not, and back.
    let sub = root.walk(&names("/work/sub"), Want::default()).await.unwrap().reached().unwrap().node;
    bin.rename(names("tool")[0], &sub, names("moved")[0], 0).await.unwrap();
    assert_eq!(text(&root, "/bin/tool").await.err(), Some(Errno::ENOENT));
    sub.rename(names("moved")[0], &bin, names("back")[0], 0).await.unwrap();
    assert_eq!(text(&root, "/bin/back").await.unwrap(), "tool");
    let back = root.walk(&names("/bin/back"), Want::default()).await.unwrap().reached().unwrap().node;
    sub.link(&back, names("linked")[0]).await.unwrap();
    assert_eq!(fs::read(caller.at("/work/sub/linked")).unwrap(), b"tool");
}

#[tokio::test]
async fn a_file_that_was_changed_since_is_what_it_is_now() {
    let caller = Caller::new().await;
    fs::write(caller.at("/lib/large"), vec![8; 300 << 10]).unwrap();
    fs::write(caller.at("/bin/new"), "another tool").unwrap();
    fs::rename(caller.at("/bin/new"), caller.at("/bin/tool")).unwrap();
    let root = caller.told();
    let opened = root.open_at(&names("/lib/large"), How::READ, Want::default()).await.unwrap();
    assert_eq!(opened.handle.read(0, 3).await.unwrap(), &[8; 3][..]);
    assert_eq!(opened.handle.digest(0, 300 << 10).await.unwrap(), Digest::of(&vec![8; 300 << 10], 0, u64::MAX));
    assert_eq!(text(&root, "/bin/tool").await.unwrap(), "another tool");
}

#[tokio::test]
async fn without_anything_of_the_root_nothing_is_told() {
    assert!(Facts::read(b"").is_none() && Facts::read(b"\x01\x00x").is_none());
}
