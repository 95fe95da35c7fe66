//! The contract's writing half as diod 1.0 keeps it.
//!
//! What is left out, each with its reason:
//!
//! - an open file's attributes once it was removed: diod asks by path, and finds nothing or another file;
//! - special files: to open a FIFO waits for a writer at diod, where the contract refuses;
//! - extended attributes of no bytes: plain 9P2000.L means their removal by that.

use p9::{Errno, NodeRef};

use super::writing::{directories, files, names, put, sizes_and_times};
use super::{list, name, posix, walk};

/// Checks every change that diod can make in `dir`, which is empty.
pub async fn writing_at_diod(dir: NodeRef) {
    files(&dir).await;
    sizes_and_times(&dir, 123_456_789).await;
    directories(&dir).await;
    names(&dir).await;
    posix::any_name(&dir).await;
    posix::holes_and_great_lengths(&dir).await;
    posix::groups(&dir).await;
    xattrs(&dir).await;
    assert!(list(&dir, 100).await.unwrap().is_empty(), "all that was made is gone");
}

async fn xattrs(dir: &NodeRef) {
    put(dir, "x", "x").await;
    let node = walk(dir, "x").await.unwrap();
    assert_eq!(node.xattr(b"user.a").await.err(), Some(Errno::ENODATA));
    node.set_xattr(b"user.a", Some("one".into()), 0).await.unwrap();
    node.set_xattr(b"user.a", Some("two".into()), 0).await.unwrap();
    assert_eq!(node.xattr(b"user.a").await.unwrap(), "two");
    let large = vec![b'v'; 3_000];
    node.set_xattr(b"user.b", Some(large.clone().into()), 0).await.unwrap();
    assert_eq!(node.xattr(b"user.b").await.unwrap(), large);
    let listed = node.xattrs().await.unwrap();
    let mut listed: Vec<&[u8]> = listed.split(|byte| *byte == 0).collect();
    listed.sort_unstable();
    assert_eq!(listed, [b"".as_slice(), b"user.a", b"user.b"]);
    assert_eq!(node.set_xattr(b"user.a", Some("".into()), 0).await.err(), Some(Errno::EOPNOTSUPP));
    node.set_xattr(b"user.a", None, 0).await.unwrap();
    assert_eq!(node.xattr(b"user.a").await.err(), Some(Errno::ENODATA));
    dir.remove(name("x"), false).await.unwrap();
}
