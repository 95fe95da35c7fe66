//! Marks in a merging union (`-w`): what is removed is not there any more, and those behind stay what they are.

use std::collections::BTreeMap;

use ns::Namespace;
use p9::{Errno, FileKind, How, Name, New, What};
use proptest::prelude::*;

use crate::support::{Files, create, name, names, ns, read, refused, walk, write};

/// Makes a directory.
async fn make_dir(ns: &Namespace, dir: &str, new: &str) -> Result<(), Errno> {
    walk(ns, dir).await?.create(name(new), New { what: What::Dir, mode: 0o755, owner: None }).await.map(|_| ())
}

#[tokio::test]
async fn what_is_removed_from_a_union_with_marks_is_gone_and_stays_where_it_was() {
    let (top, behind) = (Files::new(&["d/mine", "both"]), Files::new(&["d/e/f", "d/g", "both", "x/y/z"]));
    let ns = ns([("-cw", "top", &top, "/u"), ("-am", "behind", &behind, "/u")]).await;
    let remove = async |dir: &str, file: &str, is_dir| walk(&ns, dir).await.unwrap().remove(name(file), is_dir).await;
    // Of a file, of one that both have, and of one in a directory that the top does not have.
    remove("/u/d", "g", false).await.unwrap();
    remove("/u", "both", false).await.unwrap();
    remove("/u/x/y", "z", false).await.unwrap();
    for gone in ["/u/d/g", "/u/both", "/u/x/y/z"] {
        assert_eq!(refused(&ns, gone).await, Errno::ENOENT, "{gone}");
    }
    assert_eq!(remove("/u", "both", false).await, Err(Errno::ENOENT));
    assert!(behind.has("d/g") && behind.has("both") && behind.has("x/y/z"));
    assert!(top.has(".wh.both") && top.has("d/.wh.g") && top.has("x/y/.wh.z"));
    // Marks are not there, by any way.
    let mut listed = names(&ns, "/u").await;
    listed.sort_unstable();
    assert_eq!((listed, names(&ns, "/u/x/y").await), (vec!["d".into(), "x".into()], vec![]));
    assert_eq!(refused(&ns, "/u/.wh.both").await, Errno::ENOENT);
    assert_eq!(create(&ns, "/u", ".wh.d").await, Err(Errno::EINVAL));
    // A directory goes when nothing is in it, and comes back empty.
    assert_eq!(remove("/u", "x", true).await, Err(Errno::ENOTEMPTY));
    assert_eq!(remove("/u/x", "y", false).await, Err(Errno::EISDIR));
    remove("/u/x", "y", true).await.unwrap();
    remove("/u", "x", true).await.unwrap();
    assert!(behind.has("x/y/z") && !top.has("x"));
    make_dir(&ns, "/u", "x").await.unwrap();
    assert_eq!(names(&ns, "/u/x").await, [] as [&str; 0]);
    assert_eq!(make_dir(&ns, "/u", "x").await, Err(Errno::EEXIST));
    write(&ns, "/u", "both", "new").await.unwrap();
    assert_eq!((read(&ns, "/u/both").await.unwrap(), behind.text("both")), ("new".into(), "both".into()));
    // What the top has is moved, and leaves a mark; what is behind is for who copies.
    let rename = async |from: &str, to: &str| {
        let dir = walk(&ns, "/u").await.unwrap();
        dir.rename(name(from), &dir, name(to), 0).await
    };
    rename("both", "moved").await.unwrap();
    assert_eq!((read(&ns, "/u/moved").await.unwrap(), refused(&ns, "/u/both").await), ("new".into(), Errno::ENOENT));
    assert_eq!(rename("d", "dir").await, Err(Errno::EXDEV));
    // So is what is put over something that is behind.
    write(&ns, "/u", "put", "put").await.unwrap();
    std::fs::write(behind.path().join("over"), "over").unwrap();
    rename("put", "over").await.unwrap();
    assert_eq!((read(&ns, "/u/over").await.unwrap(), behind.text("over")), ("put".into(), "over".into()));
    std::fs::create_dir(behind.path().join("dir")).unwrap();
    assert_eq!(rename("over", "dir").await, Err(Errno::EISDIR));
    // The text says so, and a union without `-w` has none of it.
    assert_eq!(ns.to_text(), "mount -cw top /u\nmount -am behind /u\n");
}

#[derive(Clone, Debug)]
enum Step {
    File(String),
    Dir(String),
    Remove(String),
    RemoveDir(String),
}

fn step() -> impl Strategy<Value = Step> {
    let path = prop::collection::vec(prop::sample::select(vec!["a", "b"]), 1..4).prop_map(|names| names.join("/"));
    (0..4, path).prop_map(|(kind, path)| match kind {
        0 => Step::File(path),
        1 => Step::Dir(path),
        2 => Step::Remove(path),
        _ => Step::RemoveDir(path),
    })
}

/// A tree: what is a directory.
type Model = BTreeMap<String, bool>;

/// Whether `step` can be done to `model`; it is.
fn expected(model: &mut Model, step: &Step) -> bool {
    let within = |model: &Model, path: &str| model.keys().any(|other| other.starts_with(&format!("{path}/")));
    let parent = |model: &Model, path: &str| path.rsplit_once('/').is_none_or(|(dir, _)| model.get(dir) == Some(&true));
    match step {
        Step::File(path) | Step::Dir(path) => {
            let can = parent(model, path) && !model.contains_key(path);
            if can {
                model.insert(path.clone(), matches!(step, Step::Dir(_)));
            }
            can
        }
        Step::Remove(path) => model.get(path) == Some(&false) && model.remove(path).is_some(),
        Step::RemoveDir(path) => model.get(path) == Some(&true) && !within(model, path) && model.remove(path).is_some(),
    }
}

async fn done(ns: &Namespace, step: &Step) -> Result<(), Errno> {
    let (Step::File(path) | Step::Dir(path) | Step::Remove(path) | Step::RemoveDir(path)) = step;
    let (dir, file) = path.rsplit_once('/').unwrap_or(("", path));
    let dir = walk(ns, &format!("/u/{dir}")).await?;
    if dir.qid().kind != FileKind::Dir {
        return Err(Errno::ENOTDIR);
    }
    let file = Name::new(file.as_bytes()).unwrap();
    match step {
        Step::File(_) => {
            let what = What::File(How { excl: true, ..How::WRITE });
            dir.create(file, New { what, mode: 0o644, owner: None }).await?.handle.unwrap().close().await
        }
        Step::Dir(_) => dir.create(file, New { what: What::Dir, mode: 0o755, owner: None }).await.map(|_| ()),
        Step::Remove(_) => dir.remove(file, false).await,
        Step::RemoveDir(_) => dir.remove(file, true).await,
    }
}

/// What can be seen below `dir`.
async fn seen(ns: &Namespace, dir: &str, model: &mut Model) {
    for name in names(ns, &format!("/u/{dir}")).await {
        let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
        let is_dir = walk(ns, &format!("/u/{path}")).await.unwrap().qid().kind == FileKind::Dir;
        assert_eq!(model.insert(path.clone(), is_dir), None, "{path} is listed once");
        if is_dir {
            Box::pin(seen(ns, &path, model)).await;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_union_with_marks_is_one_tree_over_another_that_never_changes(steps in prop::collection::vec(step(), 0..30)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let all = ["a/a/a", "a/b", "b/a"];
            let (top, behind) = (Files::new(&["a/b"]), Files::new(&all));
            let ns = ns([("-cw", "top", &top, "/u"), ("-am", "behind", &behind, "/u")]).await;
            let mut model: Model = ["a", "a/a", "b"].into_iter().map(|dir| (dir.to_string(), true)).collect();
            model.extend(all.into_iter().map(|file| (file.to_string(), false)));
            for step in steps {
                let (can, did) = (expected(&mut model, &step), done(&ns, &step).await);
                assert_eq!(did.is_ok(), can, "{step:?}: {did:?}");
                let mut now = Model::new();
                seen(&ns, "", &mut now).await;
                assert_eq!(now, model, "{step:?}");
                assert!(all.iter().all(|file| behind.text(file) == *file));
            }
        });
    }
}
