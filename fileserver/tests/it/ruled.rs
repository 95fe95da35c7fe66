//! A tree with rules around it shows and allows what they say, and nothing gets around them.

use std::sync::Arc;

use bytes::Bytes;
use fileserver::{Access, Disk, DiskOptions, Ruled, Rules};
use p9::client::{Client, Options};
use p9::server::{Limits, serve};
use p9::wire::Dialect;
use p9::{Errno, Handle, How, New, NodeRef, SetAttr, Tree, Want, What, Who};
use tempfile::TempDir;

use crate::common::*;

/// A home with a key, a start-up file and work in it.
fn home() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in [("u/.ssh/id", "secret"), ("u/.bashrc", "start"), ("u/work/src", "source"), ("other/x", "x")] {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

async fn ruled(dir: &TempDir, rules: Rules) -> NodeRef {
    let disk = Disk::open(dir.path(), DiskOptions::new([7; 32])).unwrap();
    Ruled::new(disk, rules).attach(&Who::owner(), b"").await.unwrap()
}

/// Everything may be changed, but for the key and the start-up file.
fn open_house() -> Rules {
    Rules::new(Access::ReadWrite).rule("/u/.ssh", Access::Absent).rule("/u/.bashrc", Access::ReadOnly)
}

#[tokio::test]
async fn what_is_absent_is_neither_walked_to_nor_listed_nor_made() {
    let dir = home();
    let root = ruled(&dir, open_house()).await;
    let user = walk(&root, "u").await.unwrap();
    for path in ["u/.ssh", "u/.ssh/id"] {
        assert_eq!(walk(&root, path).await.err(), Some(Errno::ENOENT), "{path}");
        let names = p9::Name::split(path.as_bytes()).unwrap();
        assert_eq!(root.open_at(&names, How::READ, Want::ATTR).await.err(), Some(Errno::ENOENT));
    }
    let partial = root.walk(&[name("u"), name(".ssh"), name("id")], Want::ATTR).await.unwrap();
    assert_eq!((partial.qids.len(), partial.end.err()), (1, Some(Errno::ENOENT)));
    assert_eq!(ls(&user).await.into_keys().collect::<Vec<_>>(), [".bashrc", "work"]);
    let link = New { what: What::Link(b"work"), mode: 0o777, owner: None };
    for what in [file(0o644), self::dir(0o755), link] {
        assert_eq!(user.create(name(".ssh"), what).await.err(), Some(Errno::EACCES));
    }
    assert_eq!(user.remove(name(".ssh"), true).await.err(), Some(Errno::EACCES));
    assert!(
        Ruled::new(Disk::open(dir.path(), DiskOptions::new([7; 32])).unwrap(), open_house())
            .attach(&Who::owner(), b"/u/.ssh")
            .await
            .is_err()
    );
}

#[tokio::test]
async fn a_link_that_a_9p2000_walk_follows_leads_around_no_rule() {
    let dir = home();
    for (link, target) in [("key", "../.ssh/id"), ("start", "/u/.bashrc"), ("real", "src")] {
        std::os::unix::fs::symlink(target, dir.path().join("u/work").join(link)).unwrap();
    }
    let disk = Disk::open(dir.path(), DiskOptions::new([7; 32])).unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    tokio::spawn(serve(far, Ruled::new(disk, open_house()), Arc::new(Who::owner()), Limits::default()));
    let options = Options { dialect: Dialect::Legacy, ..Options::default() };
    let root = Client::connect(near, options).await.unwrap().attach(&Who::owner(), b"").await.unwrap();
    assert_eq!(cat(&root, "u/work/real").await, Ok(Bytes::from("source")));
    assert_eq!(cat(&root, "u/work/start").await, Ok(Bytes::from("start")));
    let start = walk(&root, "u/work/start").await.unwrap();
    assert_eq!(start.open(How::WRITE).await.err(), Some(Errno::EROFS));
    assert!(cat(&root, "u/work/key").await.is_err());
    let key = walk(&root, "u/work/key").await.unwrap().attr().await.unwrap();
    assert_eq!(key.size, "../.ssh/id".len() as u64, "what is shown is the link itself");
}

#[tokio::test]
async fn no_rename_or_link_leads_around_a_rule() {
    let dir = home();
    let root = ruled(&dir, open_house()).await;
    let (user, other) = (walk(&root, "u").await.unwrap(), walk(&root, "other").await.unwrap());
    // An ancestor of what is hidden stays where it is.
    assert_eq!(root.rename(name("u"), &root, name("v"), 0).await.err(), Some(Errno::EBUSY));
    assert_eq!(root.rename(name("other"), &root, name("u"), libc::RENAME_EXCHANGE).await.err(), Some(Errno::EBUSY));
    // So does what is hidden, and nothing takes its place.
    assert_eq!(user.rename(name(".ssh"), &other, name("s"), 0).await.err(), Some(Errno::EACCES));
    assert_eq!(user.rename(name("work"), &user, name(".ssh"), 0).await.err(), Some(Errno::EACCES));
    // What may only be read does not move, and gets no other name.
    assert_eq!(user.rename(name(".bashrc"), &other, name("b"), 0).await.err(), Some(Errno::EROFS));
    assert_eq!(other.rename(name("x"), &user, name(".bashrc"), 0).await.err(), Some(Errno::EROFS));
    let start = walk(&root, "u/.bashrc").await.unwrap();
    assert_eq!(other.link(&start, name("b")).await.err(), Some(Errno::EROFS));
    // All else does.
    user.rename(name("work"), &other, name("w"), 0).await.unwrap();
    assert_eq!(cat(&root, "other/w/src").await.unwrap(), "source");
    // A node of the tree beneath is not one of this tree.
    let beneath = Disk::open(dir.path(), DiskOptions::new([7; 32])).unwrap().root();
    assert_eq!(other.rename(name("x"), &beneath, name("y"), 0).await.err(), Some(Errno::EXDEV));
    assert_eq!(other.link(&walk(&beneath, "u/.ssh/id").await.unwrap(), name("y")).await.err(), Some(Errno::EXDEV));
}

#[tokio::test]
async fn what_may_only_be_read_refuses_every_change() {
    let dir = home();
    let root = ruled(&dir, open_house()).await;
    let node = walk(&root, "u/.bashrc").await.unwrap();
    assert_eq!(cat(&root, "u/.bashrc").await.unwrap(), "start");
    let user = walk(&root, "u").await.unwrap();
    let refused = [
        node.open(How::WRITE).await.err(),
        node.open(How { truncate: true, ..How::READ }).await.err(),
        user.open_at(&[name(".bashrc")], How::RDWR, Want::ATTR).await.err(),
        user.create(name(".bashrc"), file(0o644)).await.err(),
        node.set_attr(SetAttr { mode: Some(0o777), ..SetAttr::default() }).await.err(),
        node.set_attr(SetAttr { size: Some(0), ..SetAttr::default() }).await.err(),
        node.set_xattr(b"user.a", Some(Bytes::new()), 0).await.err(),
        user.remove(name(".bashrc"), false).await.err(),
    ];
    assert_eq!(refused, [Some(Errno::EROFS); 8]);
    // Nor may one that does not exist be made.
    std::fs::remove_file(dir.path().join("u/.bashrc")).unwrap();
    assert_eq!(user.create(name(".bashrc"), file(0o644)).await.err(), Some(Errno::EROFS));
    put(&user, "made", "made").await.unwrap();
    assert_eq!(cat(&root, "u/made").await.unwrap(), "made");
}

#[tokio::test]
async fn what_only_leads_somewhere_shows_only_the_way() {
    let dir = home();
    let rules = Rules::new(Access::Absent).rule("/u/work", Access::ReadWrite).rule("/other", Access::Empty);
    let root = ruled(&dir, rules).await;
    assert_eq!(ls(&root).await.into_keys().collect::<Vec<_>>(), ["other", "u"]);
    let user = walk(&root, "u").await.unwrap();
    assert_eq!(ls(&user).await.into_keys().collect::<Vec<_>>(), ["work"]);
    assert_eq!(user.create(name("f"), file(0o644)).await.err(), Some(Errno::EROFS));
    assert_eq!(walk(&root, "u/.bashrc").await.err(), Some(Errno::ENOENT));
    put(&walk(&root, "u/work").await.unwrap(), "f", "f").await.unwrap();
    let other = walk(&root, "other").await.unwrap();
    assert!(ls(&other).await.is_empty());
    assert_eq!(walk(&root, "other/x").await.err(), Some(Errno::ENOENT));
    assert_eq!(other.create(name("y"), file(0o644)).await.err(), Some(Errno::EROFS));
    // A file in place of such a directory is not read.
    let rules = Rules::new(Access::Absent).rule("/u/.bashrc", Access::Empty);
    let start = walk(&ruled(&dir, rules).await, "u/.bashrc").await.unwrap();
    assert_eq!(start.open(How::READ).await.err(), Some(Errno::EACCES));
}

#[tokio::test]
async fn a_link_cannot_stand_where_a_rule_goes_on() {
    let dir = home();
    let rules = Rules::new(Access::ReadWrite).rule("/other/secret/key", Access::Absent);
    let other = walk(&ruled(&dir, rules).await, "other").await.unwrap();
    let link = New { what: What::Link(b"../u"), mode: 0o777, owner: None };
    assert_eq!(other.create(name("secret"), link).await.err(), Some(Errno::EACCES));
    other.create(name("secret"), self::dir(0o755)).await.unwrap();
}

#[tokio::test]
async fn a_protected_file_is_protected_under_every_name() {
    let dir = home();
    for (from, to) in [("u/.ssh/id", "other/id"), ("u/.bashrc", "other/start")] {
        std::fs::hard_link(dir.path().join(from), dir.path().join(to)).unwrap();
    }
    let rules = open_house().rule("/u/.ssh/id", Access::Absent);
    let root = ruled(&dir, rules).await;
    let other = walk(&root, "other").await.unwrap();
    assert_eq!(walk(&root, "other/id").await.err(), Some(Errno::ENOENT));
    assert_eq!(other.open_at(&[name("id")], How::READ, Want::ATTR).await.err(), Some(Errno::ENOENT));
    assert_eq!(other.create(name("id"), file(0o644)).await.err(), Some(Errno::EACCES));
    assert_eq!(ls(&other).await.into_keys().collect::<Vec<_>>(), ["start", "x"]);
    let start = walk(&other, "start").await.unwrap();
    assert_eq!(start.open(How::WRITE).await.err(), Some(Errno::EROFS));
    assert_eq!(put(&other, "start", "x").await.err(), Some(Errno::EROFS));
    assert_eq!(other.link(&start, name("more")).await.err(), Some(Errno::EROFS));
    assert_eq!(other.rename(name("x"), &other, name("start"), 0).await.err(), Some(Errno::EROFS));
    assert_eq!(other.remove(name("start"), false).await.err(), Some(Errno::EROFS));
    assert_eq!(other.rename(name("id"), &other, name("y"), 0).await.err(), Some(Errno::EACCES));
    assert_eq!(cat(&root, "other/start").await.unwrap(), "start");
}

#[tokio::test]
async fn a_file_cannot_be_made_to_act_as_its_owner() {
    let dir = home();
    let root = ruled(&dir, Rules::new(Access::ReadWrite)).await;
    assert_eq!(root.create(name("su"), file(0o4755)).await.err(), Some(Errno::EPERM));
    let node = touch(&root, "f").await.node;
    for mode in [0o4755, 0o2755] {
        let change = SetAttr { mode: Some(mode), ..SetAttr::default() };
        assert_eq!(node.set_attr(change).await.err(), Some(Errno::EPERM));
    }
    let capability = node.set_xattr(b"security.capability", Some(Bytes::from_static(&[0; 20])), 0).await;
    assert_eq!(capability.err(), Some(Errno::EPERM));
    // A directory that hands on its group is nobody's program.
    root.create(name("shared"), self::dir(0o2775)).await.unwrap();
}

#[tokio::test]
async fn the_owners_files_show_the_owners_group() {
    let dir = home();
    let uid = rustix::process::geteuid().as_raw();
    let root = ruled(&dir, Rules::new(Access::ReadWrite).owner(uid, 4242)).await;
    assert_eq!(root.attr().await.unwrap().gid, 4242);
    assert_eq!(touch(&root, "f").await.attr.unwrap().gid, 4242);
    let reached = root.walk(&[name("u")], Want::ATTR).await.unwrap().reached().unwrap();
    assert_eq!(reached.attr.unwrap().gid, 4242);
    let Handle::Dir(open) = root.open(How::READ).await.unwrap() else { panic!("not a directory") };
    let mut groups = Vec::new();
    open.list(0, &mut |entry| {
        groups.push(entry.attr.unwrap().gid);
        std::ops::ControlFlow::Continue(())
    })
    .await
    .unwrap();
    assert_eq!(groups, [4242; 3]);
}
