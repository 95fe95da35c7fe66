//! What can be done with the contents of a file beyond reading and writing; and renames that replace nothing.

use bytes::Bytes;
use p9::{Errno, How, NodeRef, SetAttr};

use super::writing::{FILE, put};
use super::{name, read, walk};

pub(super) async fn content(dir: &NodeRef) {
    appends(dir).await;
    room_and_holes(dir).await;
    copies(dir).await;
    renames(dir).await;
}

async fn appends(dir: &NodeRef) {
    put(dir, "log", "one\n").await;
    let node = walk(dir, "log").await.unwrap();
    let log = node.open(How { append: true, ..How::WRITE }).await.unwrap();
    let other = node.open(How { append: true, ..How::WRITE }).await.unwrap();
    assert_eq!(other.write(0, Bytes::from_static(b"two\n")).await.unwrap().offset, Some(4));
    assert_eq!(log.write(0, Bytes::from_static(b"three\n")).await.unwrap().offset, Some(8), "it says where it went");
    log.close().await.unwrap();
    other.close().await.unwrap();
    dir.remove(name("log"), false).await.unwrap();
}

async fn room_and_holes(dir: &NodeRef) {
    const FAR: u64 = 1 << 20;
    let made = dir.create(name("room"), FILE).await.unwrap();
    let open = made.handle.unwrap();
    open.allocate(0, 0, 5_000).await.unwrap();
    assert_eq!(made.node.attr().await.unwrap().size, 5_000);
    open.allocate(libc::FALLOC_FL_KEEP_SIZE as u32, 0, 9_000).await.unwrap();
    assert_eq!(made.node.attr().await.unwrap().size, 5_000);
    made.node.set_attr(SetAttr { size: Some(0), ..SetAttr::default() }).await.unwrap();
    made.node.set_attr(SetAttr { size: Some(4 * FAR), ..SetAttr::default() }).await.unwrap();
    open.write(FAR, Bytes::from_static(b"data")).await.unwrap();
    let data = open.seek(0, false).await.unwrap();
    assert!(data > 0 && data <= FAR, "data at {data}");
    assert_eq!(open.seek(0, true).await.unwrap(), 0);
    let hole = open.seek(FAR, true).await.unwrap();
    assert!(hole > FAR && hole < 2 * FAR, "a hole at {hole}");
    assert_eq!(open.seek(hole, false).await.err(), Some(Errno::ENXIO));
    assert_eq!(open.seek(4 * FAR, true).await.err(), Some(Errno::ENXIO));
    open.close().await.unwrap();
    dir.remove(name("room"), false).await.unwrap();
}

async fn copies(dir: &NodeRef) {
    put(dir, "from", "0123456789").await;
    put(dir, "to", "abc").await;
    let from = walk(dir, "from").await.unwrap().open(How::READ).await.unwrap();
    let to = walk(dir, "to").await.unwrap().open(How::RDWR).await.unwrap();
    assert_eq!(from.copy(2, &to, 1, 4).await.unwrap(), 4);
    assert_eq!(from.copy(8, &to, 5, 100).await.unwrap(), 2, "no more than there is");
    assert_eq!(to.read(0, 100).await.unwrap(), "a234589");
    assert_eq!(from.copy(10, &to, 0, 100).await.unwrap(), 0);
    for handle in [from, to] {
        handle.close().await.unwrap();
    }
    for at in ["from", "to"] {
        dir.remove(name(at), false).await.unwrap();
    }
}

async fn renames(dir: &NodeRef) {
    put(dir, "a", "of a").await;
    put(dir, "b", "of b").await;
    let rename = |from: &'static str, to: &'static str, flags: u32| dir.rename(name(from), dir, name(to), flags);
    assert_eq!(rename("a", "b", libc::RENAME_NOREPLACE).await.err(), Some(Errno::EEXIST));
    rename("a", "c", libc::RENAME_NOREPLACE).await.unwrap();
    rename("b", "c", libc::RENAME_EXCHANGE).await.unwrap();
    assert_eq!(read(dir, "b", 10).await.unwrap(), b"of a");
    assert_eq!(read(dir, "c", 10).await.unwrap(), b"of b");
    assert_eq!(rename("b", "c", 1 << 30).await.err(), Some(Errno::EINVAL));
    for at in ["b", "c"] {
        dir.remove(name(at), false).await.unwrap();
    }
}
