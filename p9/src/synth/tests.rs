//! What synthetic trees hold to.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::*;
use crate::{Name, NameBuf, New, What, Who, Written};

fn text(text: &'static str) -> NodeRef {
    file(move || Ok(Bytes::from_static(text.as_bytes())))
}

fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap()
}

async fn open(node: &NodeRef, path: &str, how: How) -> Result<Handle, Errno> {
    let names = Name::split(path.as_bytes()).unwrap();
    Ok(node.open_at(&names, how, Want::default()).await?.handle)
}

#[tokio::test]
async fn a_file_reads_as_its_closure_says_at_open() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let root = dir([("n", file(move || Ok(counted.fetch_add(1, Ordering::SeqCst).to_string().into())))]);
    let first = open(&root, "n", How::READ).await.unwrap();
    let second = open(&root, "n", How::READ).await.unwrap();
    assert_eq!(first.read(0, 9).await.unwrap(), "0");
    assert_eq!(first.read(0, 9).await.unwrap(), "0");
    assert_eq!(second.read(0, 9).await.unwrap(), "1");
    assert_eq!(open(&root, "n", How::WRITE).await.err(), Some(Errno::EACCES));
    assert_eq!(open(&root, "m", How::READ).await.err(), Some(Errno::ENOENT));
    assert_eq!(open(&root, "n/x", How::READ).await.err(), Some(Errno::ENOTDIR));
}

#[tokio::test]
async fn a_write_to_a_ctl_file_is_one_command_and_has_its_answer() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = seen.clone();
    let node = ctl(move |command| {
        sink.lock().push(command.clone());
        if command == "bad" { Errno::EINVAL.into() } else { Reply::ok(()) }
    });
    let how = How { truncate: true, ..How::WRITE };
    let handle = node.open(how).await.unwrap();
    assert_eq!(handle.write(0, Bytes::from_static(b"kill TERM\n")).await, Ok(Written::count(10)));
    assert_eq!(handle.write(10, Bytes::from_static(b"bad")).await, Err(Errno::EINVAL));
    assert_eq!(*seen.lock(), ["kill TERM", "bad"]);
    assert_eq!(node.open(How::READ).await.err(), Some(Errno::EACCES));
    assert!(node.set_attr(SetAttr { size: Some(0), ..SetAttr::default() }).await.is_ok());
    assert_eq!(node.set_attr(SetAttr { mode: Some(0o644), ..SetAttr::default() }).await, Err(Errno::EPERM));
}

#[tokio::test]
async fn a_value_is_set_by_what_is_written_and_its_refusal_reaches_the_writer() {
    let held = Arc::new(Mutex::new(Bytes::from_static(b"old")));
    let (get, set) = (held.clone(), held.clone());
    let node = value(
        move || Ok(get.lock().clone()),
        move |value| {
            if value.starts_with(b"!") {
                return Err(Errno::EINVAL);
            }
            *set.lock() = value;
            Ok(())
        },
    );
    let put = async |how, offset, text: &'static str| {
        node.open(how).await?.write(offset, Bytes::from_static(text.as_bytes())).await
    };
    let append = How { append: true, ..How::WRITE };
    assert_eq!(put(append, 77, "er").await, Ok(Written { count: 2, offset: Some(3) }));
    assert_eq!(*held.lock(), "older");
    assert_eq!(put(How::WRITE, 0, "!").await, Err(Errno::EINVAL));
    assert_eq!(put(How::WRITE, u64::MAX, "x").await, Err(Errno::EFBIG));
    assert_eq!(*held.lock(), "older");
    let handle = node.open(How::RDWR).await.unwrap();
    handle.write(0, Bytes::from_static(b"ne")).await.unwrap();
    handle.write(2, Bytes::from_static(b"w")).await.unwrap();
    assert_eq!(handle.read(0, 9).await.unwrap(), "new");
    assert_eq!(*held.lock(), "new");
    assert_eq!(handle.write(3, vec![0; (4 << 20) - 2].into()).await, Err(Errno::EFBIG));
}

#[tokio::test]
async fn what_a_clone_file_makes_lives_as_long_as_the_open_file() {
    let alive = Arc::new(());
    let made = alive.clone();
    let node = clone_file(move || Reply::ok((Bytes::from_static(b"7\n"), Box::new(made.clone()))));
    let handle = node.open(How::READ).await.unwrap();
    assert_eq!(handle.read(0, 9).await.unwrap(), "7\n");
    assert_eq!(Arc::strong_count(&alive), 3);
    drop(handle);
    assert_eq!(Arc::strong_count(&alive), 2);
}

#[tokio::test]
async fn a_partial_walk_says_how_far_it_got() {
    let root = dir([("a", dir([("b", text("x"))])), ("l", link("a/b"))]);
    let walk = root.walk(&[name("a"), name("c")], Want::ATTR).await.unwrap();
    assert_eq!(walk.qids.len(), 1);
    assert_eq!(walk.end.err(), Some(Errno::ENOENT));
    let reached = root.walk(&[name("a"), name("b")], Want::ATTR).await.unwrap().reached().unwrap();
    assert_eq!(reached.attr.unwrap().mode, libc::S_IFREG | 0o444);
    let linked = root.walk(&[name("l")], Want::ATTR).await.unwrap().reached().unwrap();
    assert_eq!(linked.attr.unwrap().size, 3);
    assert_eq!(linked.node.read_link().await.unwrap(), "a/b");
    assert_eq!(linked.node.open(How::READ).await.err(), Some(Errno::ELOOP));
}

#[tokio::test]
async fn a_tree_attaches_at_a_path_and_asks_who() {
    let root = dir([("a", dir([("b", text("x"))]))]);
    let tree = tree_for(move |who| if who.user.is_empty() { Err(Errno::EACCES) } else { Ok(root.clone()) });
    let at = async |who: &Who, aname: &[u8]| Ok::<_, Errno>(tree.attach(who, aname).await?.qid().kind);
    assert_eq!(at(&Who::owner(), b"").await, Ok(FileKind::Dir));
    assert_eq!(at(&Who::owner(), b"/a/b").await, Ok(FileKind::File));
    assert_eq!(at(&Who::owner(), b"a/x").await, Err(Errno::ENOENT));
    assert_eq!(at(&Who::owner(), b"a/..").await, Err(Errno::EINVAL));
    assert_eq!(at(&Who { user: "".into(), ..Who::owner() }, b"").await, Err(Errno::EACCES));
}

/// A directory whose entries a test changes.
#[derive(Default)]
struct Changing(Mutex<BTreeMap<NameBuf, NodeRef>>);

impl Listing for Changing {
    fn lookup<'a>(&'a self, name: Name<'a>) -> Reply<'a, Option<NodeRef>> {
        Reply::ok(self.0.lock().get(name.as_bytes()).cloned())
    }

    fn list(&self) -> Reply<'_, Vec<(NameBuf, NodeRef)>> {
        Reply::ok(self.0.lock().iter().map(|(name, node)| (name.clone(), node.clone())).collect())
    }
}

/// Up to `count` entries after `cookie`, and the last cookie.
async fn some(handle: &Handle, cookie: u64, count: usize) -> (Vec<String>, u64) {
    let Handle::Dir(dir) = handle else { panic!("no directory") };
    let (mut names, mut last) = (Vec::new(), cookie);
    let mut each = |entry: crate::Entry<'_>| {
        if names.len() == count {
            return ControlFlow::Break(());
        }
        assert_ne!(entry.cookie, 0);
        last = entry.cookie;
        names.push(entry.name.to_string());
        ControlFlow::Continue(())
    };
    dir.list(cookie, &mut each).await.unwrap();
    (names, last)
}

#[tokio::test]
async fn a_cookie_stays_good_when_entries_come_and_go_even_in_another_opening() {
    let changing = Arc::new(Changing::default());
    // All are one file: a cookie must tell them apart all the same.
    let node = text("x");
    for i in 0..100 {
        changing.0.lock().insert(NameBuf::new(format!("f{i}")).unwrap(), node.clone());
    }
    let root = directory(changing.clone());
    let (first, cookie) = some(&root.open(How::READ).await.unwrap(), 0, 40).await;
    for gone in &first[..20] {
        changing.0.lock().remove(gone.as_bytes());
    }
    let (second, _) = some(&root.open(How::READ).await.unwrap(), cookie, 100).await;
    let mut all = [first, second].concat();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 100);
}

#[tokio::test]
async fn creating_what_is_there_opens_it_and_nothing_else_can_be_made() {
    let root = dir([("a", text("x"))]);
    let make = async |at: &'static str, what| {
        let made = root.create(name(at), New { what, mode: 0o644, owner: None }).await?;
        Ok::<_, Errno>(made.handle.is_some())
    };
    assert_eq!(make("a", What::File(How::READ)).await, Ok(true));
    assert_eq!(make("a", What::File(How { excl: true, ..How::READ })).await, Err(Errno::EEXIST));
    assert_eq!(make("a", What::Dir).await, Err(Errno::EEXIST));
    assert_eq!(make("b", What::File(How::WRITE)).await, Err(Errno::EROFS));
}
