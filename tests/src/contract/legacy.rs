//! The contract's writing half as a tree keeps it that is reached over 9P2000.
//!
//! What is left out, since 9P2000 cannot say it: links, devices, FIFOs and sockets, moves between directories, times
//! below a second, the number of links and of blocks, groups other than the directory's, extended attributes. Each of
//! them is refused clearly where it is asked for.

use p9::{Errno, FileKind, New, NodeRef, SetAttr, What};

use super::posix::any_name;
use super::writing::{DIR, directories, files, put, sizes_and_times};
use super::{list, name, read, walk};

/// Checks every change that 9P2000 can make in `dir`, which is empty.
pub async fn writing_over_9p2000(dir: NodeRef) {
    files(&dir).await;
    sizes_and_times(&dir, 0).await;
    directories(&dir).await;
    any_name(&dir).await;
    names(&dir).await;
    lacking(&dir).await;
    assert!(list(&dir, 100).await.unwrap().is_empty(), "all that was made is gone");
}

async fn names(dir: &NodeRef) {
    put(dir, "one", "1").await;
    put(dir, "two", "2").await;
    let before = walk(dir, "one").await.unwrap().qid().path;
    let refused = dir.rename(name("one"), dir, name("two"), libc::RENAME_NOREPLACE).await;
    assert_eq!(refused, Err(Errno::EEXIST), "a name that is taken stays whose it is, if that is asked for");
    let refused = dir.rename(name("one"), dir, name("one"), libc::RENAME_NOREPLACE).await;
    assert_eq!(refused, Err(Errno::EEXIST), "its own name is taken, too");
    dir.rename(name("one"), dir, name("two"), 0).await.unwrap();
    assert_eq!(walk(dir, "one").await.err(), Some(Errno::ENOENT));
    assert_eq!(walk(dir, "two").await.unwrap().qid().path, before, "a rename keeps the file");
    assert_eq!(read(dir, "two", 10).await.unwrap(), b"1", "and replaces what was there");
    dir.create(name("sub"), DIR).await.unwrap();
    assert_eq!(dir.rename(name("two"), dir, name("sub"), 0).await, Err(Errno::EISDIR));
    assert_eq!(dir.rename(name("sub"), dir, name("two"), 0).await, Err(Errno::ENOTDIR));
    dir.rename(name("sub"), dir, name("dir"), 0).await.unwrap();
    let sub = walk(dir, "dir").await.unwrap();
    assert_eq!(sub.qid().kind, FileKind::Dir);
    let empty = SetAttr { size: Some(0), ..SetAttr::default() };
    assert_eq!(sub.set_attr(empty).await.err(), Some(Errno::EISDIR), "a directory has no length to set");
    assert_eq!(dir.rename(name("two"), &sub, name("two"), 0).await, Err(Errno::EXDEV), "it is for the caller to copy");
    dir.remove(name("dir"), true).await.unwrap();
    dir.remove(name("two"), false).await.unwrap();
}

async fn lacking(dir: &NodeRef) {
    put(dir, "f", "x").await;
    let file = walk(dir, "f").await.unwrap();
    for what in [What::Link(b"x"), What::Device { kind: libc::S_IFIFO, rdev: 0 }] {
        let made = dir.create(name("l"), New { what, mode: 0o644, owner: None }).await;
        assert_eq!(made.err(), Some(Errno::EOPNOTSUPP), "{what:?}");
    }
    assert_eq!(dir.link(&file, name("l")).await, Err(Errno::EOPNOTSUPP));
    assert_eq!(file.xattr(b"user.x").await.err(), Some(Errno::EOPNOTSUPP));
    let owner = file.attr().await.unwrap().uid;
    let change = |uid| SetAttr { uid: Some(uid), ..SetAttr::default() };
    assert_eq!(file.set_attr(change(owner + 1)).await.err(), Some(Errno::EPERM), "nobody gives files away");
    file.set_attr(change(owner)).await.unwrap();
    dir.remove(name("f"), false).await.unwrap();
}
