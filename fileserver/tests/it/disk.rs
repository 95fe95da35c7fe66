//! A disk tree as its callers see it: every operation, and what a file is.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use bytes::Bytes;
use fileserver::{Disk, DiskOptions, Error};
use p9::{Errno, FileKind, Handle, How, New, SetAttr, SetTime, Time, Tree, Want, What, Who};

use crate::common::*;

#[tokio::test]
async fn a_regular_file_is_fetched_and_nothing_else_is_touched() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "text").unwrap();
    std::os::unix::fs::symlink("f", dir.path().join("l")).unwrap();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    let fifo = New { what: What::Device { kind: libc::S_IFIFO, rdev: 0 }, mode: 0o600, owner: None };
    let root = Disk::open(dir.path(), DiskOptions::new([7; 32])).unwrap().root();
    root.create(name("p"), fifo).await.unwrap();
    let walked = root.walk(&[name("f")], Want::ATTR).await.unwrap().reached().unwrap();
    assert_eq!(root.fetch(name("f"), 100).await.unwrap(), (walked.attr.unwrap().qid, "text".into()));
    assert_eq!(root.fetch(name("f"), 2).await.unwrap().1, "te");
    for other in ["l", "d", "p"] {
        assert_eq!(root.fetch(name(other), 100).await.err(), Some(Errno::EINVAL), "{other}");
    }
    assert_eq!(root.fetch(name("missing"), 100).await.err(), Some(Errno::ENOENT));
}

#[tokio::test]
async fn a_file_is_made_written_read_and_removed() {
    let (dir, root) = disk();
    let made = root.create(name("f"), file(0o640)).await.unwrap();
    let handle = made.handle.unwrap();
    assert_eq!(handle.write(0, Bytes::from_static(b"hello")).await.unwrap().count, 5);
    assert_eq!(handle.read(1, 3).await.unwrap(), "ell");
    let attr = made.node.attr().await.unwrap();
    assert_eq!((attr.size, attr.mode & 0o7777, attr.qid.path), (5, 0o640, made.node.qid().path));
    assert_eq!(walk(&root, "f").await.unwrap().qid().path, attr.qid.path);
    assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"hello");
    root.remove(name("f"), false).await.unwrap();
    assert_eq!(walk(&root, "f").await.err(), Some(Errno::ENOENT));
    // What is open and gone still answers.
    assert_eq!(handle.read(0, 9).await.unwrap(), "hello");
    assert_eq!(made.node.attr().await.unwrap().nlink, 0);
}

#[tokio::test]
async fn what_is_new_has_exactly_the_mode_asked_for() {
    let (_dir, root) = disk();
    for mode in [0o444, 0o666, 0o777, 0o600, 0o000] {
        let made = root.create(name(&format!("f{mode:o}")), file(mode)).await.unwrap();
        assert_eq!(made.attr.unwrap().mode & 0o7777, mode);
        // Also one that nobody may write: who makes it has it open.
        made.handle.unwrap().write(0, Bytes::from_static(b"x")).await.unwrap();
    }
    assert_eq!(root.create(name("d"), dir(0o777)).await.unwrap().attr.unwrap().mode, libc::S_IFDIR | 0o777);
}

#[tokio::test]
async fn creating_what_exists_opens_it_unless_exclusive() {
    let (_dir, root) = disk();
    put(&root, "f", "old").await.unwrap();
    let excl = New { what: What::File(How { excl: true, ..How::RDWR }), mode: 0o644, owner: None };
    assert_eq!(root.create(name("f"), excl).await.err(), Some(Errno::EEXIST));
    let opened = root.create(name("f"), file(0o600)).await.unwrap();
    assert_eq!(opened.handle.unwrap().read(0, 9).await.unwrap(), "old");
    assert_eq!(opened.attr.unwrap().mode & 0o777, 0o644);
    let truncate = New { what: What::File(How { truncate: true, ..How::WRITE }), mode: 0o644, owner: None };
    assert_eq!(root.create(name("f"), truncate).await.unwrap().attr.unwrap().size, 0);
    root.create(name("d"), dir(0o755)).await.unwrap();
    assert_eq!(root.create(name("d"), file(0o600)).await.err(), Some(Errno::EISDIR));
    assert_eq!(root.create(name("d"), dir(0o755)).await.err(), Some(Errno::EEXIST));
}

#[tokio::test]
async fn an_append_goes_to_the_end_whatever_the_offset() {
    let (_dir, root) = disk();
    put(&root, "log", "one").await.unwrap();
    let log = walk(&root, "log").await.unwrap().open(How { append: true, ..How::WRITE }).await.unwrap();
    assert_eq!(log.write(0, Bytes::from_static(b"two")).await.unwrap().offset, Some(3));
    assert_eq!(cat(&root, "log").await.unwrap(), "onetwo");
}

#[tokio::test]
async fn a_walk_says_how_far_it_came() {
    let (_dir, root) = disk();
    root.create(name("d"), dir(0o755)).await.unwrap();
    let walk = root.walk(&[name("d"), name("no"), name("x")], Want::ATTR).await.unwrap();
    assert_eq!((walk.qids.len(), walk.end.err()), (1, Some(Errno::ENOENT)));
    assert_eq!(root.walk(&[name("no"), name("d")], Want::ATTR).await.err(), Some(Errno::ENOENT));
}

#[tokio::test]
async fn an_open_at_brings_attributes_and_first_bytes() {
    let (_dir, root) = disk();
    root.create(name("d"), dir(0o755)).await.unwrap();
    put(&walk(&root, "d").await.unwrap(), "f", "hello world").await.unwrap();
    let want = Want { data: 5, ..Want::ATTR };
    let opened = root.open_at(&[name("d"), name("f")], How::READ, want).await.unwrap();
    assert_eq!(opened.first.unwrap(), "hello");
    assert_eq!(opened.attr.unwrap().size, 11);
    assert_eq!(opened.node.unwrap().qid().kind, FileKind::File);
}

#[tokio::test]
async fn attaching_at_a_name_gives_that_file() {
    let (dir, root) = disk();
    std::fs::create_dir(dir.path().join("d")).unwrap();
    put(&root, "f", "").await.unwrap();
    let tree = Disk::open(dir.path(), DiskOptions::new([7; 32])).unwrap();
    for path in ["d", "f"] {
        let qid = tree.attach(&Who::owner(), format!("/{path}").as_bytes()).await.unwrap().qid();
        assert_eq!(qid, walk(&root, path).await.unwrap().qid());
    }
    assert_eq!(tree.attach(&Who::owner(), b"").await.unwrap().qid().path, root.qid().path);
    assert_eq!(tree.attach(&Who::owner(), b"nowhere").await.err(), Some(Errno::ENOENT));
}

#[tokio::test]
async fn links_are_read_and_not_followed() {
    let (_dir, root) = disk();
    let link = New { what: What::Link(b"/etc/passwd"), mode: 0o777, owner: None };
    root.create(name("l"), link).await.unwrap();
    let node = walk(&root, "l").await.unwrap();
    assert_eq!((node.qid().kind, node.read_link().await.unwrap()), (FileKind::Link, Bytes::from("/etc/passwd")));
    assert_eq!(node.open(How::READ).await.err(), Some(Errno::ELOOP));
    assert_eq!(root.create(name("l"), file(0o644)).await.err(), Some(Errno::ELOOP));
    assert_eq!(root.read_link().await.err(), Some(Errno::EINVAL));
    // What is set on it is set on the link.
    let at = SetTime::At(Time { sec: 1000, nsec: 7 });
    let attr = node.set_attr(SetAttr { mtime: Some(at), ..SetAttr::default() }).await.unwrap();
    assert_eq!((attr.mtime, attr.qid.kind), (Time { sec: 1000, nsec: 7 }, FileKind::Link));
}

#[tokio::test]
async fn attributes_are_set_and_given_back() {
    let (_dir, root) = disk();
    put(&root, "f", "hello").await.unwrap();
    let node = walk(&root, "f").await.unwrap();
    let change = SetAttr {
        mode: Some(0o601),
        size: Some(2),
        atime: Some(SetTime::At(Time { sec: 5, nsec: 6 })),
        mtime: Some(SetTime::At(Time { sec: 7, nsec: 8 })),
        ..SetAttr::default()
    };
    let attr = node.set_attr(change).await.unwrap();
    assert_eq!((attr.mode & 0o7777, attr.size), (0o601, 2));
    assert_eq!((attr.atime, attr.mtime), (Time { sec: 5, nsec: 6 }, Time { sec: 7, nsec: 8 }));
    assert_eq!(node.attr().await.unwrap(), attr);
    let attr = node.set_attr(SetAttr { atime: Some(SetTime::Now), ..SetAttr::default() }).await.unwrap();
    assert!(attr.atime.sec > 1_000_000_000 && attr.mtime.sec == 7);
    assert_eq!(root.set_attr(SetAttr { size: Some(0), ..SetAttr::default() }).await.err(), Some(Errno::EISDIR));
}

#[tokio::test]
async fn a_rename_moves_replaces_exchanges_and_refuses() {
    let (_dir, root) = disk();
    root.create(name("d"), dir(0o755)).await.unwrap();
    let sub = walk(&root, "d").await.unwrap();
    put(&root, "a", "a").await.unwrap();
    put(&root, "b", "b").await.unwrap();
    root.rename(name("a"), &sub, name("c"), 0).await.unwrap();
    assert_eq!(cat(&root, "d/c").await.unwrap(), "a");
    assert_eq!(root.rename(name("b"), &sub, name("c"), libc::RENAME_NOREPLACE).await.err(), Some(Errno::EEXIST));
    root.rename(name("b"), &sub, name("c"), libc::RENAME_EXCHANGE).await.unwrap();
    assert_eq!((cat(&root, "b").await.unwrap(), cat(&root, "d/c").await.unwrap()), ("a".into(), "b".into()));
    root.rename(name("b"), &sub, name("c"), 0).await.unwrap();
    assert_eq!((cat(&root, "b").await.err(), cat(&root, "d/c").await.unwrap()), (Some(Errno::ENOENT), "a".into()));
    let (_other, foreign) = disk();
    assert_eq!(sub.rename(name("c"), &foreign, name("c"), 0).await.err(), Some(Errno::EXDEV));
    assert_eq!(root.remove(name("d"), true).await.err(), Some(Errno::ENOTEMPTY));
    assert_eq!(root.remove(name("d"), false).await.err(), Some(Errno::EISDIR));
    sub.remove(name("c"), false).await.unwrap();
    root.remove(name("d"), true).await.unwrap();
}

#[tokio::test]
async fn hard_links_are_one_file() {
    let (_dir, root) = disk();
    put(&root, "a", "same").await.unwrap();
    let node = walk(&root, "a").await.unwrap();
    root.link(&node, name("b")).await.unwrap();
    let other = walk(&root, "b").await.unwrap();
    assert_eq!((other.qid(), other.attr().await.unwrap().nlink), (walk(&root, "a").await.unwrap().qid(), 2));
    root.remove(name("a"), false).await.unwrap();
    assert_eq!(cat(&root, "b").await.unwrap(), "same");
    let (_other, foreign) = disk();
    assert_eq!(foreign.link(&node, name("c")).await.err(), Some(Errno::EXDEV));
}

#[tokio::test]
async fn a_recreated_file_is_another_file() {
    let (_dir, root) = disk();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..20 {
        // ext4 gives the same inode number again at once.
        assert!(seen.insert(touch(&root, "f").await.node.qid().path));
        root.remove(name("f"), false).await.unwrap();
    }
}

#[tokio::test]
async fn a_qid_is_the_same_after_a_restart_and_another_under_another_key() {
    let (dir, root) = disk();
    put(&root, "f", "x").await.unwrap();
    let qid = |key: u8| {
        let root = Disk::open(dir.path(), DiskOptions::new([key; 32])).unwrap().root();
        async move { walk(&root, "f").await.unwrap().qid() }
    };
    assert_eq!(qid(7).await, walk(&root, "f").await.unwrap().qid());
    assert_ne!(qid(8).await.path, qid(7).await.path);
}

#[tokio::test]
async fn a_listing_names_each_file_as_a_walk_does() {
    let (dir, root) = disk();
    std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
    std::fs::create_dir(dir.path().join("dir")).unwrap();
    for index in 0..300 {
        std::fs::write(dir.path().join(format!("file{index}")), b"").unwrap();
    }
    let listed = ls(&root).await;
    assert_eq!(listed.len(), 302);
    for (name, path) in listed {
        assert_eq!(walk(&root, &name).await.unwrap().qid().path, path, "{name}");
    }
}

#[tokio::test]
async fn cookies_stay_good_while_entries_come_and_go() {
    let (_dir, root) = disk();
    for index in 0..1000 {
        touch(&root, &format!("stays{index}")).await;
        touch(&root, &format!("goes{index}")).await;
    }
    let handle = root.open(How::READ).await.unwrap();
    let (mut seen, mut cookie, mut round) = (Vec::new(), 0, 0);
    loop {
        let some = part(&handle, cookie, 7).await;
        let Some(last) = some.last() else { break };
        cookie = last.1;
        seen.extend(some.into_iter().map(|(name, ..)| name).filter(|name| name.starts_with("stays")));
        // Behind and before the reader, entries vanish and appear.
        if round < 1000 {
            root.remove(name(&format!("goes{round}")), false).await.unwrap();
            touch(&root, &format!("comes{round}")).await;
            round += 1;
        }
    }
    seen.sort();
    assert_eq!(seen.len(), 1000);
    seen.dedup();
    assert_eq!(seen.len(), 1000);
}

#[tokio::test]
async fn a_read_only_tree_refuses_every_change() {
    let (dir, root) = disk();
    put(&root, "f", "x").await.unwrap();
    let root = Disk::open(dir.path(), DiskOptions::new([7; 32]).read_only(true)).unwrap().root();
    let node = walk(&root, "f").await.unwrap();
    assert_eq!(cat(&root, "f").await.unwrap(), "x");
    let refused = [
        node.open(How::WRITE).await.err(),
        node.open(How { truncate: true, ..How::READ }).await.err(),
        root.create(name("f"), file(0o644)).await.err(),
        root.create(name("g"), file(0o644)).await.err(),
        root.create(name("g"), self::dir(0o755)).await.err(),
        node.set_attr(SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.err(),
        root.remove(name("f"), false).await.err(),
        root.rename(name("f"), &root, name("g"), 0).await.err(),
        root.link(&node, name("g")).await.err(),
        node.set_xattr(b"user.a", Some(Bytes::new()), 0).await.err(),
    ];
    assert_eq!(refused, [Some(Errno::EROFS); 10]);
    assert!(node.local().is_none());
}

#[tokio::test]
async fn what_would_wait_or_is_no_file_is_not_opened() {
    let (dir, root) = disk();
    let fifo = New { what: What::Device { kind: libc::S_IFIFO, rdev: 0 }, mode: 0o644, owner: None };
    assert_eq!(root.create(name("fifo"), fifo).await.unwrap().attr.unwrap().mode, libc::S_IFIFO | 0o644);
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("sock")).unwrap();
    for path in ["fifo", "sock"] {
        assert_eq!(walk(&root, path).await.unwrap().open(How::READ).await.err(), Some(Errno::ENXIO), "{path}");
    }
    assert_eq!(root.create(name("fifo"), file(0o644)).await.err(), Some(Errno::ENXIO));
    let device = New { what: What::Device { kind: libc::S_IFCHR, rdev: 0x103 }, mode: 0o644, owner: None };
    // Made by who may; opened by nobody.
    match root.create(name("null"), device).await {
        Ok(made) => assert_eq!(made.node.open(How::READ).await.err(), Some(Errno::EACCES)),
        Err(errno) => assert_eq!(errno, Errno::EPERM),
    }
    let rules = fileserver::Rules::new(fileserver::Access::ReadWrite);
    let ruled = fileserver::Ruled::new(Disk::open(dir.path(), DiskOptions::new([7; 32])).unwrap(), rules);
    let ruled = ruled.attach(&Who::owner(), b"").await.unwrap();
    assert_eq!(ruled.create(name("other"), device).await.err(), Some(Errno::EPERM), "through rules not at all");
}

#[tokio::test]
async fn a_directory_opens_only_as_one() {
    let (_dir, root) = disk();
    put(&root, "f", "").await.unwrap();
    assert_eq!(root.open(How::WRITE).await.err(), Some(Errno::EISDIR));
    let directory = How { directory: true, ..How::READ };
    assert_eq!(walk(&root, "f").await.unwrap().open(directory).await.err(), Some(Errno::ENOTDIR));
    assert!(matches!(root.open(directory).await, Ok(Handle::Dir(_))));
    root.sync().await.unwrap();
    assert!(root.stat_fs().await.unwrap().blocks > 0);
}

#[tokio::test]
async fn who_has_a_file_open_for_writing_may_truncate_it() {
    let (dir, root) = disk();
    let made = root.create(name("f"), file(0o444)).await.unwrap();
    made.handle.as_ref().unwrap().write(0, Bytes::from_static(b"hello")).await.unwrap();
    let attr = made.node.set_attr(SetAttr { size: Some(3), ..SetAttr::default() }).await.unwrap();
    assert_eq!(attr.size, 3);
    let meta = std::fs::metadata(dir.path().join("f")).unwrap();
    assert_eq!((meta.len(), meta.permissions().mode() & 0o777, meta.nlink()), (3, 0o444, 1));
}

#[tokio::test]
async fn extended_attributes_pass_through() {
    let (_dir, root) = disk();
    put(&root, "f", "").await.unwrap();
    let node = walk(&root, "f").await.unwrap();
    node.set_xattr(b"user.colour", Some(Bytes::from_static(b"blue")), 0).await.unwrap();
    assert_eq!(node.xattr(b"user.colour").await.unwrap(), "blue");
    assert_eq!(node.xattrs().await.unwrap(), "user.colour\0");
    node.set_xattr(b"user.colour", None, 0).await.unwrap();
    assert_eq!(node.xattr(b"user.colour").await.err(), Some(Errno::ENODATA));
    assert_eq!(node.xattr(b"system.posix_acl_access").await.err(), Some(Errno::EOPNOTSUPP));
}

#[tokio::test]
async fn what_cannot_be_served_is_refused_with_its_name() {
    let open = |path: &str| Disk::open(path.as_ref(), DiskOptions::new([0; 32])).map(drop);
    assert!(matches!(open("/proc"), Err(Error::Hidden { .. })));
    assert_eq!(open("/no/such").unwrap_err().to_string(), "/no/such: No such file or directory");
    assert!(matches!(open("/etc/passwd"), Err(Error::Open { reason: Errno::ENOTDIR, .. })));
}
