//! Extended attributes, as setxattr(2) and its kin have them.

use bytes::Bytes;
use p9::{Errno, NodeRef};

use super::writing::put;
use super::{name, walk};

const CREATE: u32 = libc::XATTR_CREATE as u32;
const REPLACE: u32 = libc::XATTR_REPLACE as u32;

pub(super) async fn xattrs(dir: &NodeRef) {
    put(dir, "x", "x").await;
    let node = walk(dir, "x").await.unwrap();
    set_read_and_removed(&node).await;
    flags(&node).await;
    limits(&node).await;
    assert_eq!(listed(&node).await, [""; 0]);
    dir.remove(name("x"), false).await.unwrap();
}

async fn set_read_and_removed(node: &NodeRef) {
    let value = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    assert_eq!(node.xattr(b"user.a").await.err(), Some(Errno::ENODATA));
    node.set_xattr(b"user.a", value("one"), 0).await.unwrap();
    node.set_xattr(b"user.b", value(""), 0).await.unwrap();
    assert_eq!(node.xattr(b"user.a").await.unwrap(), "one");
    assert_eq!(node.xattr(b"user.b").await.unwrap(), "", "nothing is a value, too");
    assert_eq!(listed(node).await, ["user.a", "user.b"]);
    node.set_xattr(b"user.a", value("two"), 0).await.unwrap();
    assert_eq!(node.xattr(b"user.a").await.unwrap(), "two");
    // As large as a frame and more.
    let large = Bytes::from(vec![b'v'; 3_000]);
    node.set_xattr(b"user.a", Some(large.clone()), 0).await.unwrap();
    assert_eq!(node.xattr(b"user.a").await.unwrap(), large);
    for at in [b"user.a", b"user.b"] {
        node.set_xattr(at, None, 0).await.unwrap();
        assert_eq!(node.set_xattr(at, None, 0).await.err(), Some(Errno::ENODATA), "what is gone is gone");
    }
}

async fn flags(node: &NodeRef) {
    let set = |flags: u32, value: &'static str| node.set_xattr(b"user.f", Some(value.into()), flags);
    assert_eq!(set(REPLACE, "x").await.err(), Some(Errno::ENODATA));
    assert_eq!(set(REPLACE, "").await.err(), Some(Errno::ENODATA));
    set(CREATE, "made").await.unwrap();
    assert_eq!(set(CREATE, "again").await.err(), Some(Errno::EEXIST));
    assert_eq!(node.xattr(b"user.f").await.unwrap(), "made");
    set(REPLACE, "other").await.unwrap();
    assert_eq!(node.xattr(b"user.f").await.unwrap(), "other");
    set(REPLACE, "").await.unwrap();
    assert_eq!(node.xattr(b"user.f").await.unwrap(), "", "emptied, it is not removed");
    node.set_xattr(b"user.f", None, 0).await.unwrap();
    assert_eq!(set(8, "x").await.err(), Some(Errno::EINVAL));
}

async fn limits(node: &NodeRef) {
    let long = [b"user.".as_slice(), &[b'n'; 251]].concat();
    assert_eq!(node.xattr(&long).await.err(), Some(Errno::ERANGE), "a name has at most 255 bytes");
    assert_eq!(node.set_xattr(&long, Some(Bytes::new()), 0).await.err(), Some(Errno::ERANGE));
    let large = Bytes::from(vec![0; (64 << 10) + 1]);
    assert_eq!(node.set_xattr(b"user.l", Some(large), 0).await.err(), Some(Errno::E2BIG), "a value at most 64 KiB");
    assert_eq!(node.xattr(b"").await.err(), Some(Errno::ERANGE));
    // Of the kinds that are not served, the names of this machine's users are one.
    assert_eq!(node.xattr(b"system.posix_acl_access").await.err(), Some(Errno::EOPNOTSUPP));
}

async fn listed(node: &NodeRef) -> Vec<String> {
    let names = node.xattrs().await.unwrap();
    let mut names: Vec<String> =
        names.split(|&b| b == 0).map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    assert_eq!(names.pop().as_deref(), Some(""), "each name ends with NUL");
    // What the system itself puts on files is its own affair.
    names.retain(|name| name.starts_with("user."));
    names.sort();
    names
}
