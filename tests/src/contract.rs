//! What every tree keeps, whatever stands behind it: run on disk, synthetic, union and namespace trees, and on each
//! again through client and server.
//!
//! [`reading`] asks only for what any tree can do, and walks the whole of it; [`writing`] makes and removes files of
//! its own in a directory that it is given. Both panic with the promise that was broken.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use bytes::Bytes;
use p9::{Digest, Entry, Errno, FileKind, Handle, How, Name, NameBuf, New, NodeRef, Qid, SetAttr, Want, What};

mod content;
mod diod;
mod legacy;
mod locks;
mod posix;
mod writing;
mod xattrs;

pub use diod::writing_at_diod;
pub use legacy::writing_over_9p2000;
pub use locks::locks_of_clients;
pub use writing::writing;

/// The name `text`.
pub fn name(text: &str) -> Name<'_> {
    Name::new(text.as_bytes()).unwrap_or_else(|err| panic!("{text:?} is no name: {err}"))
}

/// The file at `path` below `root`.
pub async fn walk(root: &NodeRef, path: &str) -> Result<NodeRef, Errno> {
    let names = Name::split(path.as_bytes())?;
    if names.is_empty() {
        return Ok(root.clone());
    }
    Ok(root.walk(&names, Want::default()).await?.reached()?.node)
}

/// All of the file at `path`, in pieces of `count` bytes.
pub async fn read(root: &NodeRef, path: &str, count: u32) -> Result<Vec<u8>, Errno> {
    let handle = walk(root, path).await?.open(How::READ).await?;
    let all = read_open(&handle, count).await;
    handle.close().await?;
    all
}

async fn read_open(handle: &Handle, count: u32) -> Result<Vec<u8>, Errno> {
    let mut all = Vec::new();
    loop {
        let piece: Bytes = handle.read(all.len() as u64, count).await?;
        assert!(piece.len() <= count as usize, "a read gives at most what was asked for");
        if piece.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&piece);
    }
}

/// The names in `dir`, taken `step` entries at a time, each with its qid.
pub async fn list(dir: &NodeRef, step: usize) -> Result<BTreeMap<NameBuf, Qid>, Errno> {
    Ok(list_with_attributes(dir, step).await?.into_iter().map(|(name, (qid, _))| (name, qid)).collect())
}

/// The same, and the attributes of those that come with them.
pub async fn list_with_attributes(
    dir: &NodeRef, step: usize,
) -> Result<BTreeMap<NameBuf, (Qid, Option<p9::Attr>)>, Errno> {
    let Handle::Dir(open) = dir.open(How { directory: true, ..How::READ }).await? else {
        panic!("an open directory is a directory");
    };
    let (mut all, mut cookie) = (BTreeMap::new(), 0);
    loop {
        let mut page = Vec::new();
        let mut take = |entry: Entry<'_>| {
            if page.len() == step {
                return ControlFlow::Break(());
            }
            assert_ne!(entry.cookie, 0, "no cookie is 0");
            page.push((NameBuf::from(entry.name), (entry.qid, entry.attr.copied()), entry.cookie));
            ControlFlow::Continue(())
        };
        open.list(cookie, &mut take).await?;
        let Some(&(_, _, last)) = page.last() else { return Ok(all) };
        cookie = last;
        for (name, is, _) in page {
            // The tree's own unions may repeat a name, which then is the same entry to whoever walks it.
            all.entry(name).or_insert(is);
        }
    }
}

/// Checks all of the tree below `root` that can be seen without waiting: `skip` names files that may block.
pub async fn reading(root: NodeRef, skip: &[&str]) {
    let mut dirs = vec![("".to_string(), root.clone())];
    let (mut files, mut seen) = (0, 0);
    while let Some((path, dir)) = dirs.pop() {
        let entries = list(&dir, usize::MAX).await.unwrap_or_else(|err| panic!("listing {path:?}: {err}"));
        assert_eq!(entries, list(&dir, 1).await.unwrap(), "{path:?} lists the same one entry at a time");
        missing_names(&dir).await;
        attributes_of_entries(&dir, &path).await;
        for (entry, listed) in entries {
            let (at, text) = (format!("{path}/{entry}"), entry.to_string());
            seen += 1;
            let node = one_file(&dir, &entry, listed, &at).await;
            match node.qid().kind {
                FileKind::Dir => dirs.push((at.clone(), node.clone())),
                FileKind::Link => assert!(!node.read_link().await.unwrap().is_empty(), "{at} leads somewhere"),
                FileKind::File if skip.contains(&text.as_str()) => continue,
                FileKind::File => files += contents(&node, &at).await,
            }
            fetched(&dir, &entry, &node, &at).await;
        }
    }
    assert!(files > 0 && seen > files, "the tree has files and directories to look at");
}

async fn missing_names(dir: &NodeRef) {
    let missing = name("no such name");
    let err = dir.walk(&[missing], Want::default()).await.err();
    assert_eq!(err, Some(Errno::ENOENT), "a first name that is missing is the walk's error");
    let err = dir.walk(&[missing, name("more")], Want::default()).await.err();
    assert_eq!(err, Some(Errno::ENOENT), "so it is when more names follow");
}

/// What comes along with an entry is what is said of the file.
async fn attributes_of_entries(dir: &NodeRef, path: &str) {
    let Handle::Dir(open) = dir.open(How { directory: true, ..How::READ }).await.unwrap() else {
        panic!("no directory")
    };
    let mut brought = Vec::new();
    let mut take = |entry: Entry<'_>| {
        brought.extend(entry.attr.map(|attr| (NameBuf::from(entry.name), *attr)));
        ControlFlow::Continue(())
    };
    open.list(0, &mut take).await.unwrap();
    for (entry, brought) in brought {
        let node = dir.walk(&[entry.as_name()], Want::default()).await.unwrap().reached().unwrap().node;
        let attr = node.attr().await.unwrap();
        let told = |attr: p9::Attr| (attr.qid.path, attr.mode, attr.uid, attr.gid, attr.size, attr.mtime);
        assert_eq!(told(brought), told(attr), "{path}/{entry}: listed, and asked");
    }
}

async fn one_file(dir: &NodeRef, entry: &NameBuf, listed: Qid, at: &str) -> NodeRef {
    let walked = dir.walk(&[entry.as_name()], Want::ATTR).await.unwrap_or_else(|err| panic!("walking {at}: {err}"));
    assert_eq!(walked.qids.len(), 1, "{at}: one qid for each name");
    let reached = walked.reached().unwrap();
    let node = reached.node;
    assert_eq!(walked_kind(listed), node.qid().kind, "{at}: what a listing says is what a walk reaches");
    let attr = node.attr().await.unwrap();
    assert_eq!(attr.qid.path, node.qid().path, "{at}: attributes are those of the file");
    assert_eq!(FileKind::of_mode(attr.mode), node.qid().kind, "{at}: the mode says what the qid says");
    if let Some(brought) = reached.attr {
        assert_eq!((brought.qid.path, brought.mode), (attr.qid.path, attr.mode), "{at}: brought along, the same");
    }
    let again = dir.walk(&[entry.as_name()], Want::default()).await.unwrap().reached().unwrap().node;
    assert_eq!(again.qid().path, node.qid().path, "{at}: the same file has the same qid");
    let below = dir.walk(&[entry.as_name(), name("no such name")], Want::default()).await;
    let below = below.unwrap_or_else(|err| panic!("{at}: a later name that fails makes a partial walk, not {err}"));
    assert_eq!(below.qids.len(), 1, "{at}: a partial walk says how far it got");
    let expected = if node.qid().kind == FileKind::Dir { Errno::ENOENT } else { Errno::ENOTDIR };
    assert_eq!(below.end.err(), Some(expected), "{at}: and what stopped it");
    node
}

fn walked_kind(qid: Qid) -> FileKind {
    qid.kind
}

/// Checks what can be read of a file; 1 if it could be.
async fn contents(node: &NodeRef, at: &str) -> usize {
    assert_eq!(
        node.walk(&[name("x")], Want::default()).await.err(),
        Some(Errno::ENOTDIR),
        "{at}: a file has no entries"
    );
    assert_eq!(node.read_link().await.err(), Some(Errno::EINVAL), "{at}: a file is no link");
    let handle = match node.open(How::READ).await {
        Ok(handle) => handle,
        Err(Errno::EACCES | Errno::EPERM) => return 0,
        Err(err) => panic!("opening {at}: {err}"),
    };
    assert!(!matches!(handle, Handle::Dir(_)), "{at}: an open file is no directory");
    if !handle.seekable() {
        handle.close().await.unwrap();
        return 1;
    }
    let whole = read_open(&handle, 1 << 20).await.unwrap();
    assert_eq!(whole, read_open(&handle, 7).await.unwrap(), "{at}: reads the same in small pieces");
    assert!(handle.read(1 << 40, 10).await.unwrap().is_empty(), "{at}: past the end there is nothing");
    match handle.digest(1, 1 << 20).await {
        Ok(digest) => assert_eq!(digest, Digest::of(&whole, 1, 1 << 20), "{at}: what it is known by is of its bytes"),
        Err(errno) => assert_eq!(errno, Errno::EOPNOTSUPP, "{at}"),
    }
    handle.close().await.unwrap();
    let opened = node.open_at(&[], How::READ, Want { data: 64, ..Want::ATTR }).await.unwrap();
    if let Some(first) = opened.first {
        assert!(whole.starts_with(&first), "{at}: the first bytes are the file's");
    }
    opened.handle.close().await.unwrap();
    1
}

/// Checks that what is fetched by its name is what is there: the bytes of a regular file alone.
async fn fetched(dir: &NodeRef, entry: &NameBuf, node: &NodeRef, at: &str) {
    let fetch = async |count| dir.fetch(entry.as_name(), count).await;
    let open = match node.qid().kind {
        FileKind::File => node.open(How::READ).await,
        _ => return assert_eq!(fetch(9).await.err(), Some(Errno::EINVAL), "{at}: only files are fetched"),
    };
    match open {
        Ok(open) if open.seekable() => {
            let whole = read_open(&open, 1 << 20).await.unwrap();
            for count in [0, 7, 1 << 16] {
                let (qid, bytes) = fetch(count).await.unwrap();
                assert_eq!(qid.path, node.qid().path, "{at}: what is fetched says which file it is");
                assert!(whole.starts_with(&bytes) && bytes.len() == whole.len().min(count as usize), "{at}: {count}");
            }
            open.close().await.unwrap();
        }
        // Whether it has a place to begin is known to its server.
        Ok(_) => assert!(matches!(fetch(9).await.err(), None | Some(Errno::EINVAL)), "{at}: it is fetched, or is none"),
        Err(errno) => assert_eq!(fetch(9).await.err(), Some(errno), "{at}: what cannot be opened cannot be fetched"),
    }
    assert_eq!(dir.fetch(name("no such name"), 9).await.err(), Some(Errno::ENOENT));
}

/// Checks that a tree that is not to be written refuses each change.
pub async fn read_only(dir: &NodeRef, file: &str) {
    let new = New { what: What::Dir, mode: 0o755, owner: None };
    let refused = |what: &str, err: Option<Errno>| {
        assert!(matches!(err, Some(Errno::EROFS | Errno::EACCES | Errno::EPERM)), "{what} is refused, not {err:?}");
    };
    refused("mkdir", dir.create(name("made"), new).await.err());
    refused("create", dir.create(name("made"), New { what: What::File(How::WRITE), ..new }).await.err());
    let refused_link = |what: &str, err: Option<Errno>| {
        if err != Some(Errno::EOPNOTSUPP) {
            refused(what, err);
        }
    };
    refused_link("symlink", dir.create(name("made"), New { what: What::Link(b"x"), ..new }).await.err());
    refused("remove", dir.remove(name(file), false).await.err());
    refused("rename", dir.rename(name(file), dir, name("other"), 0).await.err());
    let node = walk(dir, file).await.unwrap();
    refused("chmod", node.set_attr(SetAttr { mode: Some(0o600), ..SetAttr::default() }).await.err());
    refused("truncate", node.set_attr(SetAttr { size: Some(0), ..SetAttr::default() }).await.err());
    refused_link("link", dir.link(&node, name("other")).await.err());
    refused("open for writing", node.open(How::WRITE).await.err());
    assert_eq!(walk(dir, "made").await.err(), Some(Errno::ENOENT), "nothing was made");
    walk(dir, file).await.unwrap();
}
