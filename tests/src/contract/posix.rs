//! What POSIX says of files beyond the everyday: any name, gone names, holes and great lengths, special files, groups.

use bytes::Bytes;
use p9::{Errno, FileKind, How, Name, NameBuf, New, NodeRef, SetAttr, What};

use super::writing::{FILE, put};
use super::{list, name, walk};

pub(super) async fn posix(dir: &NodeRef) {
    any_name(dir).await;
    unlinked(dir).await;
    holes_and_great_lengths(dir).await;
    special(dir).await;
    groups(dir).await;
}

pub(super) async fn any_name(dir: &NodeRef) {
    let longest = vec![b'n'; Name::MAX];
    let odd: [&[u8]; 8] = [b"\x01", b"\xff\xfe", b"\n", b" ", b"...", b"\\", b"*?[", &longest];
    let mut made: Vec<NameBuf> = odd.iter().map(|odd| NameBuf::new(*odd).unwrap()).collect();
    for odd in &made {
        let created = dir.create(odd.as_name(), FILE).await.unwrap_or_else(|err| panic!("creating {odd}: {err}"));
        created.handle.unwrap().close().await.unwrap();
    }
    made.sort();
    let listed: Vec<NameBuf> = list(dir, 3).await.unwrap().into_keys().collect();
    assert_eq!(listed, made, "any bytes but / and NUL are a name");
    for odd in &made {
        dir.remove(odd.as_name(), false).await.unwrap();
    }
}

async fn unlinked(dir: &NodeRef) {
    put(dir, "gone", "0123456789").await;
    let node = walk(dir, "gone").await.unwrap();
    let open = node.open(How::RDWR).await.unwrap();
    dir.remove(name("gone"), false).await.unwrap();
    put(dir, "gone", "another").await;
    let attr = node.attr().await.expect("an open file has attributes, whatever became of its name");
    assert_eq!((attr.nlink, attr.size), (0, 10));
    let change = SetAttr { size: Some(4), mode: Some(0o600), ..SetAttr::default() };
    let attr = node.set_attr(change).await.expect("and they can be changed");
    assert_eq!((attr.size, attr.mode & 0o7777), (4, 0o600));
    open.write(4, Bytes::from_static(b"!")).await.unwrap();
    open.sync(true).await.unwrap();
    assert_eq!(open.read(0, 100).await.unwrap(), "0123!");
    open.close().await.unwrap();
    assert_eq!(super::read(dir, "gone", 100).await.unwrap(), b"another", "who has the name now is another file");
    dir.remove(name("gone"), false).await.unwrap();
}

pub(super) async fn holes_and_great_lengths(dir: &NodeRef) {
    const FAR: u64 = 5 << 30;
    let made = dir.create(name("sparse"), FILE).await.unwrap();
    let open = made.handle.unwrap();
    open.write(FAR, Bytes::from_static(b"end")).await.unwrap();
    assert_eq!(open.read(FAR - 2, 100).await.unwrap(), b"\0\0end"[..], "a file may be longer than 4 GiB");
    assert_eq!(open.read(FAR + 3, 100).await.unwrap(), "");
    let attr = made.node.attr().await.unwrap();
    assert_eq!(attr.size, FAR + 3);
    assert!(attr.blocks < 1 << 11, "what was not written takes no room, not {} blocks", attr.blocks);
    let longer = SetAttr { size: Some(FAR * 2), ..SetAttr::default() };
    assert_eq!(made.node.set_attr(longer).await.unwrap().size, FAR * 2);
    open.close().await.unwrap();
    dir.remove(name("sparse"), false).await.unwrap();
}

async fn special(dir: &NodeRef) {
    for (at, kind) in [("fifo", libc::S_IFIFO), ("socket", libc::S_IFSOCK)] {
        let new = New { what: What::Device { kind, rdev: 0 }, mode: 0o640, owner: None };
        let made = dir.create(name(at), new).await.unwrap_or_else(|err| panic!("making a {at}: {err}"));
        assert!(made.handle.is_none(), "a {at} is made, not opened");
        let node = walk(dir, at).await.unwrap();
        assert_eq!((node.qid().kind, node.attr().await.unwrap().mode), (FileKind::File, kind | 0o640));
        assert_eq!(node.open(How::READ).await.err(), Some(Errno::ENXIO), "a {at} is no file to read");
        assert_eq!(dir.create(name(at), new).await.err(), Some(Errno::EEXIST));
        dir.remove(name(at), false).await.unwrap();
    }
    let new = New { what: What::Device { kind: libc::S_IFCHR, rdev: 0x103 }, mode: 0o600, owner: None };
    match dir.create(name("device"), new).await {
        Err(errno) => assert_eq!(errno, Errno::EPERM, "a device is made by who may"),
        Ok(made) => {
            let attr = made.node.attr().await.unwrap();
            assert_eq!((attr.mode, attr.rdev), (libc::S_IFCHR | 0o600, 0x103));
            dir.remove(name("device"), false).await.unwrap();
        }
    }
}

/// Whoever may give files away gives them to the owner and group that are asked for; everybody else keeps them, and
/// gives them to a group of theirs.
pub(super) async fn groups(dir: &NodeRef) {
    let root = rustix::process::geteuid().is_root();
    let own = dir.attr().await.unwrap().gid;
    let (uid, gid) = if root { (12_346, 12_345) } else { (u32::MAX, own) };
    let owner = Some((uid, gid));
    let made = [("f", FILE.what), ("d", What::Dir), ("l", What::Link(b"x")), ("p", fifo())];
    for (at, what) in made {
        dir.create(name(at), New { what, mode: 0o750, owner }).await.unwrap();
        let attr = walk(dir, at).await.unwrap().attr().await.unwrap();
        assert_eq!(attr.gid, gid, "{at} is made for the group that was asked for");
        assert!(attr.uid == uid || !root, "{at} is made for the owner that was asked for");
    }
    let again = New { what: What::File(How::RDWR), mode: 0o600, owner: Some((0, 0)) };
    dir.create(name("f"), again).await.unwrap().handle.unwrap().close().await.unwrap();
    let attr = walk(dir, "f").await.unwrap().attr().await.unwrap();
    assert!(attr.uid == uid || !root, "what is there already stays whose it is");
    let mode = New { mode: 0o6755, owner, ..FILE };
    match dir.create(name("s"), mode).await {
        // Under rules nothing acts as its owner.
        Err(Errno::EPERM) => assert_eq!(walk(dir, "s").await.err(), Some(Errno::ENOENT)),
        made => {
            drop(made.unwrap());
            let attr = walk(dir, "s").await.unwrap().attr().await.unwrap();
            assert_eq!(attr.mode & 0o7777, 0o6755, "given away, it has the mode that was asked for");
            dir.remove(name("s"), false).await.unwrap();
        }
    }
    let inherits = SetAttr { gid: Some(own), mode: Some(0o2750), ..SetAttr::default() };
    let d = walk(dir, "d").await.unwrap();
    d.set_attr(SetAttr { mode: None, ..inherits }).await.unwrap();
    d.set_attr(SetAttr { gid: None, ..inherits }).await.unwrap();
    d.create(name("f"), New { owner, ..FILE }).await.unwrap();
    assert_eq!(walk(&d, "f").await.unwrap().attr().await.unwrap().gid, own, "a directory may pass on its own group");
    d.remove(name("f"), false).await.unwrap();
    for (at, what) in made {
        dir.remove(name(at), matches!(what, What::Dir)).await.unwrap();
    }
}

fn fifo() -> What<'static> {
    What::Device { kind: libc::S_IFIFO, rdev: 0 }
}
