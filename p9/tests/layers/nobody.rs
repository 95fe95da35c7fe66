//! A layer that changes attributes: every file shows nobody as its owner, and none is given away.

use std::ops::ControlFlow;
use std::sync::Arc;

use p9::layer::{self, Layer};
use p9::{Attr, Entry, Errno, Handle, How, New, NodeRef, Reply, SetAttr, Want, What, Who};

use super::name;
use super::ram::Ram;

const NOBODY: u32 = 65534;

#[derive(Clone)]
struct Nobody;

impl Layer for Nobody {
    fn attr(&self, attr: Attr) -> Attr {
        Attr { uid: NOBODY, gid: NOBODY, ..attr }
    }

    fn set_attr<'a>(&'a self, below: &'a NodeRef, change: SetAttr) -> Reply<'a, Attr> {
        if change.uid.is_some() || change.gid.is_some() {
            return Errno::EPERM.into();
        }
        below.set_attr(change).map(|attr| self.attr(attr))
    }
}

#[tokio::test]
async fn attributes_are_the_layers_by_whatever_way_they_come() {
    let ram = Ram::root();
    ram.dir("d").file("f", "text");
    let root = layer::tree(Arc::new(ram), Nobody).attach(&Who::owner(), b"").await.unwrap();
    let mut seen = vec![("attr", root.attr().await.unwrap())];
    let path = [name("d"), name("f")];
    let reached = root.walk(&path, Want::ATTR).await.unwrap().reached().unwrap();
    seen.push(("walk", reached.attr.unwrap()));
    seen.push(("beyond", reached.node.attr().await.unwrap()));
    let opened = root.open_at(&path, How::READ, Want::ATTR).await.unwrap();
    seen.push(("open", opened.attr.unwrap()));
    seen.push(("opened", opened.node.unwrap().attr().await.unwrap()));
    let (what, chmod) = (What::File(How::WRITE), SetAttr { mode: Some(0o600), ..SetAttr::default() });
    let made = root.create(name("new"), New { what, mode: 0o644, owner: None }).await.unwrap();
    seen.push(("create", made.attr.unwrap()));
    seen.push(("chmod", made.node.set_attr(chmod).await.unwrap()));
    let Handle::Dir(open) = root.open(How::READ).await.unwrap() else { panic!("a directory") };
    let mut take = |entry: Entry<'_>| {
        seen.extend(entry.attr.map(|attr| ("list", *attr)));
        ControlFlow::Continue(())
    };
    open.list(0, &mut take).await.unwrap();
    assert!(seen.iter().any(|(how, _)| *how == "list"), "the tree beneath brings attributes along");
    for (how, attr) in seen {
        assert_eq!((attr.uid, attr.gid), (NOBODY, NOBODY), "{how}");
    }
    let chown = SetAttr { uid: Some(0), ..SetAttr::default() };
    assert_eq!(reached.node.set_attr(chown).await.err(), Some(Errno::EPERM));
}

#[tokio::test]
async fn names_are_moved_and_linked_between_files_of_the_layer_alone() {
    let ram = Ram::root();
    ram.dir("d").file("f", "text");
    let bare: NodeRef = Arc::new(ram);
    let root = Nobody.over(bare.clone());
    let walk = async |path: &str| root.walk(&[name(path)], Want::default()).await.unwrap().reached().unwrap().node;
    let dir = walk("d").await;
    dir.rename(name("f"), &root, name("g"), 0).await.unwrap();
    dir.link(&walk("g").await, name("h")).await.unwrap();
    assert_eq!(root.rename(name("g"), &bare, name("x"), 0).await.err(), Some(Errno::EXDEV));
    assert_eq!(root.link(&bare, name("x")).await.err(), Some(Errno::EXDEV));
    let gone = dir.walk(&[name("f")], Want::default()).await.err();
    assert_eq!(gone, Some(Errno::ENOENT), "it was moved");
}

#[tokio::test]
async fn what_is_ready_beneath_is_ready_through_the_layer() {
    let ram = Ram::root();
    ram.file("f", "text");
    let root = Nobody.over(Arc::new(ram));
    assert!(matches!(root.walk(&[name("f")], Want::ATTR), Reply::Now(_)));
    assert!(matches!(root.attr(), Reply::Now(_)));
    assert!(matches!(root.open(How::READ), Reply::Now(_)));
}
