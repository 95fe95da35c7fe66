//! A peer sees the exports that it was granted, as it was granted them.

use std::sync::Arc;

use fileserver::Exports;
use p9::who::Only;
use p9::{Errno, How, Rights, Who};
use tempfile::TempDir;

use crate::common::*;

fn exports() -> (TempDir, Arc<Exports>) {
    let dir = tempfile::tempdir().unwrap();
    let export = |name: &str, end: &str| {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("f"), name).unwrap();
        format!("{name}={}{end}", dir.path().join(name).display()).parse().unwrap()
    };
    let list = vec![export("a", ""), export("b", ":ro"), export("c", "")];
    (dir, Exports::open(list, [7; 32]).unwrap())
}

fn only(list: &[(&str, bool)]) -> Who {
    let list = list.iter().map(|&(export, read_only)| Only { export: export.to_owned(), read_only }).collect();
    Who { rights: Rights::Only(list), ..Who::owner() }
}

#[tokio::test]
async fn who_may_everything_sees_all_exports() {
    let (_dir, exports) = exports();
    let root = exports.tree().attach(&Who::owner(), b"").await.unwrap();
    assert_eq!(ls(&root).await.into_keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    put(&walk(&root, "a").await.unwrap(), "g", "new").await.unwrap();
    assert_eq!((cat(&root, "a/f").await.unwrap(), cat(&root, "a/g").await.unwrap()), ("a".into(), "new".into()));
    assert_eq!(walk(&root, "b/f").await.unwrap().open(How::WRITE).await.err(), Some(Errno::EROFS));
    assert_eq!(root.create(name("d"), file(0o644)).await.err(), Some(Errno::EROFS));
}

#[tokio::test]
async fn what_is_not_granted_looks_absent() {
    let (_dir, exports) = exports();
    let who = only(&[("c", true), ("nowhere", false)]);
    let root = exports.tree().attach(&who, b"").await.unwrap();
    assert_eq!(ls(&root).await.into_keys().collect::<Vec<_>>(), ["c"]);
    assert_eq!(walk(&root, "a/f").await.err(), Some(Errno::ENOENT));
    assert_eq!(exports.tree().attach(&who, b"a").await.err(), Some(Errno::ENOENT));
    assert_eq!(cat(&root, "c/f").await.unwrap(), "c");
    assert_eq!(put(&walk(&root, "c").await.unwrap(), "f", "x").await.err(), Some(Errno::EROFS));
}

#[test]
fn an_export_that_is_not_there_is_named() {
    let error = Exports::open(vec!["a=/no/such".parse().unwrap()], [7; 32]).err().unwrap();
    assert_eq!(error.to_string(), "/no/such: No such file or directory");
}
