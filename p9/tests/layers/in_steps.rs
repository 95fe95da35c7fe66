//! What trees do that answer one call by others.

use std::sync::Arc;

use bytes::Bytes;
use p9::tree::fetch_in_steps;
use p9::{Attr, Errno, FileKind, Handle, How, Name, Node, Qid, Reached, Reply, Walk, Want};
use parking_lot::Mutex;

/// A directory of one file of this type; it takes note of each opening.
struct One {
    kind: u32,
    opened: Arc<Mutex<u32>>,
    is_file: bool,
}

impl Node for One {
    fn qid(&self) -> Qid {
        Qid { kind: if self.is_file { FileKind::File } else { FileKind::Dir }, version: 1, path: 7 }
    }
    fn walk<'a>(&'a self, names: &'a [Name<'a>], _: Want) -> Reply<'a, Walk> {
        let file = Arc::new(Self { kind: self.kind, opened: self.opened.clone(), is_file: true });
        let qids = names.iter().map(|_| file.qid()).collect();
        Reply::ok(Walk { qids, end: Ok(Reached { node: file, attr: None, lease: None }) })
    }
    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(Attr { qid: self.qid(), mode: self.kind, size: 4, ..Attr::default() })
    }
    fn open(&self, _: How) -> Reply<'_, Handle> {
        *self.opened.lock() += 1;
        Reply::ok(Handle::Bytes(Bytes::from_static(b"text")))
    }
}

#[tokio::test]
async fn what_is_no_regular_file_is_not_opened_to_be_fetched() {
    let name = Name::new(b"x").unwrap();
    for (kind, expected) in [
        (libc::S_IFREG, Ok(Bytes::from_static(b"tex"))),
        (libc::S_IFIFO, Err(Errno::EINVAL)),
        (libc::S_IFCHR, Err(Errno::EINVAL)),
        (libc::S_IFSOCK, Err(Errno::EINVAL)),
    ] {
        let dir = One { kind, opened: Arc::default(), is_file: false };
        let fetched = fetch_in_steps(&dir, name, 3).await.map(|(_, bytes)| bytes);
        assert_eq!((fetched.as_ref(), *dir.opened.lock()), (expected.as_ref(), u32::from(expected.is_ok())));
    }
}
