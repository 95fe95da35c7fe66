//! What a caller tells of its files together with a command: gathered at the caller, read at the node.
//!
//! Gathered in the task of whoever serves the files, for each path that the command is about to walk and for all that
//! lies on the way: attributes or why there are none, where a link leads, what small files hold, if that node was not
//! told before and so may have kept it, and of large ones what they hash to. Said as the 9P replies that the node would
//! have been given, each after its path. The node takes it as a peer's: all of it is bounded, and what cannot be read
//! is no fact.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::Bytes;
use dashmap::{DashMap, DashSet};
use p9::wire::{Data, R, Str};
use p9::{Attr, Digest, Errno, FileKind, How, Name, NameBuf, NodeRef, Walk, Want};

/// The most bytes that are told.
pub(crate) const MOST: usize = 2 << 20;
/// The most files that are told of.
const FILES: usize = 2048;
/// The smallest file that is hashed, and the largest; what a smaller one holds is told.
const HASHED: RangeInclusive<u64> = 192 << 10..=16 << 20;
/// Bytes of a frame before its fields: size, type, tag.
const HEADER: usize = 7;

/// What is known of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Fact {
    pub(super) found: Result<Attr, Errno>,
    /// Where it leads, if it is a link.
    pub(super) target: Option<Bytes>,
    /// What all of it hashes to.
    pub(super) digest: Option<Digest>,
    /// All that it holds.
    pub(super) data: Option<Bytes>,
}

/// By its names from the root.
pub(super) type Facts = BTreeMap<Vec<NameBuf>, Fact>;

/// A file as it is: its identity, and what changes when its contents do.
type Version = (u64, u32, u64);

/// What whoever tells remembers.
#[derive(Debug, Default)]
pub struct Memory {
    /// What files hash to.
    hashes: DashMap<Version, Digest>,
    /// What nodes were told the contents of.
    known: DashSet<(String, Version)>,
}

/// What is known of `paths` below `root` and of all that lies on the way, for the node called `node`.
pub async fn gather(root: &NodeRef, paths: &[Vec<u8>], node: &str, memory: &Memory) -> Bytes {
    let mut all: BTreeMap<Vec<NameBuf>, Option<NodeRef>> = BTreeMap::new();
    for path in paths {
        let Ok(names) = Name::split(path) else { continue };
        let names: Vec<NameBuf> = names.into_iter().map(NameBuf::from).collect();
        (0..=names.len()).for_each(|length| _ = all.entry(names[..length].to_vec()).or_default());
    }
    all.entry(Vec::new()).insert_entry(Some(root.clone()));
    let mut told = Vec::new();
    // What lies above another comes before it.
    for path in all.keys().take(FILES).cloned().collect::<Vec<_>>() {
        let above = path.split_last().map(|(_, above)| above.to_vec());
        let from = match above {
            None => Some(root.clone()),
            Some(above) => all.get(&above).cloned().flatten(),
        };
        let Some(from) = from else { continue };
        let (fact, dir) = fact(&from, path.last(), node, memory).await;
        all.insert(path.clone(), dir);
        let before = told.len();
        write(&path, &fact, &mut told);
        if told.len() > MOST {
            told.truncate(before);
            break;
        }
    }
    told.into()
}

/// What is known of `name` in the directory `from`, or of that itself; and the file, if it is a directory.
async fn fact(from: &NodeRef, name: Option<&NameBuf>, to: &str, memory: &Memory) -> (Fact, Option<NodeRef>) {
    let node = match name {
        None => Ok(from.clone()),
        Some(name) => from.walk(&[name.as_name()], Want::default()).await.and_then(Walk::reached).map(|end| end.node),
    };
    let mut fact = Fact { found: Err(Errno::ENOENT), target: None, digest: None, data: None };
    let node = match node {
        Ok(node) => node,
        Err(errno) => return (Fact { found: Err(errno), ..fact }, None),
    };
    fact.found = node.attr().await;
    match fact.found.map(|attr| (attr.qid.kind, attr)) {
        Ok((FileKind::Dir, _)) => return (fact, Some(node)),
        Ok((FileKind::Link, _)) => fact.target = node.read_link().await.ok(),
        Ok((_, attr)) if attr.mode & libc::S_IFMT == libc::S_IFREG && attr.qid.version != 0 => {
            if HASHED.contains(&attr.size) {
                fact.digest = hash(&node, &attr, memory).await;
            } else if attr.size < *HASHED.start() {
                fact.data = contents(&node, &attr, to, memory).await;
            }
        }
        _ => {}
    }
    (fact, None)
}

fn version(attr: &Attr) -> Version {
    (attr.qid.path, attr.qid.version, attr.size)
}

/// Whether `node` still is what `attr` says.
async fn is_still(node: &NodeRef, attr: &Attr) -> bool {
    node.attr().await.is_ok_and(|now| version(&now) == version(attr) && now.mtime == attr.mtime)
}

async fn contents(node: &NodeRef, attr: &Attr, to: &str, memory: &Memory) -> Option<Bytes> {
    let key = (to.to_owned(), version(attr));
    if memory.known.contains(&key) {
        return None;
    }
    let data = node.open(How::READ).await.ok()?.read(0, attr.size as u32).await.ok()?;
    if data.len() as u64 != attr.size || !is_still(node, attr).await {
        return None;
    }
    if memory.known.len() >= FILES {
        memory.known.clear();
    }
    memory.known.insert(key);
    Some(data)
}

async fn hash(node: &NodeRef, attr: &Attr, memory: &Memory) -> Option<Digest> {
    let key = version(attr);
    if let Some(known) = memory.hashes.get(&key) {
        return Some(*known);
    }
    let digest = node.open(How::READ).await.ok()?.digest(0, attr.size).await.ok()?;
    // It may have been changed meanwhile.
    if digest.count != attr.size || !is_still(node, attr).await {
        return None;
    }
    if memory.hashes.len() >= FILES {
        memory.hashes.clear();
    }
    memory.hashes.insert(key, digest);
    Some(digest)
}

fn write(path: &[NameBuf], fact: &Fact, out: &mut Vec<u8>) {
    let path: Vec<&[u8]> = path.iter().map(|name| name.as_name().as_bytes()).collect();
    let path = path.join(&b'/');
    out.extend_from_slice(&(path.len() as u16).to_le_bytes());
    out.extend_from_slice(&path);
    let more = [fact.target.is_some(), fact.digest.is_some(), fact.data.is_some()];
    out.push(1 + more.into_iter().map(u8::from).sum::<u8>());
    match &fact.found {
        Ok(attr) => R::of_attr(attr, u64::MAX).encode(0, out),
        Err(errno) => R::Lerror { ecode: errno.code() as u32 }.encode(0, out),
    }
    if let Some(target) = &fact.target {
        R::Readlink { target: Str(target) }.encode(0, out);
    }
    if let Some(digest) = &fact.digest {
        R::Digest { count: digest.count, hash: digest.hash }.encode(0, out);
    }
    if let Some(data) = &fact.data {
        R::Read { data: Data(data) }.encode(0, out);
    }
}

/// The facts that `told` has, up to the first that is none.
pub(super) fn read(told: &[u8]) -> Facts {
    let (mut facts, mut rest) = (Facts::new(), told);
    while facts.len() < FILES
        && let Some((path, fact)) = read_one(&mut rest)
    {
        facts.insert(path, fact);
    }
    facts
}

fn read_one(rest: &mut &[u8]) -> Option<(Vec<NameBuf>, Fact)> {
    let length = u16::from_le_bytes(*rest.split_first_chunk()?.0);
    let (path, after) = rest[2..].split_at_checked(length.into())?;
    let path = Name::split(path).ok()?.into_iter().map(NameBuf::from).collect();
    let (&count, mut after) = after.split_first()?;
    let mut fact = Fact { found: Err(Errno::EIO), target: None, digest: None, data: None };
    for number in 0..count {
        let size = u32::from_le_bytes(*after.split_first_chunk()?.0) as usize;
        let (frame, behind) = after.split_at_checked(size.max(HEADER))?;
        after = behind;
        let reply = R::decode(frame[4], &frame[HEADER..]).ok()??;
        match reply {
            R::Lerror { ecode } if number == 0 => fact.found = Err(Errno::from_code(ecode as i32)),
            R::Getattr { .. } if number == 0 => fact.found = Ok(reply.to_attr()?),
            R::Readlink { target } => fact.target = Some(Bytes::copy_from_slice(target.0)),
            R::Read { data } => fact.data = Some(Bytes::copy_from_slice(data.0)),
            R::Digest { count, hash } => fact.digest = Some(Digest { count, hash }),
            _ => return None,
        }
    }
    *rest = after;
    Some((path, fact))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use fileserver::{Disk, DiskOptions};
    use p9::{Tree, Who};

    use super::*;

    #[tokio::test]
    async fn what_is_gathered_is_what_is_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/large"), vec![7; 300 << 10]).unwrap();
        fs::write(dir.path().join("d/small"), "small").unwrap();
        symlink("large", dir.path().join("d/link")).unwrap();
        let tree = Disk::open(dir.path(), DiskOptions::new([1; 32])).unwrap();
        let root = tree.attach(&Who::owner(), b"").await.unwrap();
        let paths = ["/d/large", "/d/small", "/d/link", "/d/none", "/none/more", "/d/../x"]
            .map(|path| path.as_bytes().to_vec());
        let memory = Memory::default();
        let told = gather(&root, &paths, "far", &memory).await;
        let facts = read(&told);
        let fact = |path: &str| {
            &facts[&Name::split(path.as_bytes()).unwrap().into_iter().map(NameBuf::from).collect::<Vec<_>>()]
        };
        assert_eq!(fact("").found.unwrap().qid.path, root.qid().path);
        assert_eq!(fact("d").found.unwrap().qid.kind, FileKind::Dir);
        assert_eq!(fact("d/large").found.unwrap().size, 300 << 10);
        assert_eq!(fact("d/large").digest, Some(Digest::of(&vec![7; 300 << 10], 0, u64::MAX)));
        assert_eq!(fact("d/link").target.as_deref(), Some(&b"large"[..]));
        assert_eq!((fact("d/none").found, fact("none").found), (Err(Errno::ENOENT), Err(Errno::ENOENT)));
        assert_eq!(facts.len(), 7, "{facts:?}");
        assert_eq!(fact("d/small").data.as_deref(), Some(&b"small"[..]));
        let small = Name::split(b"d/small").unwrap().into_iter().map(NameBuf::from).collect::<Vec<_>>();
        for (node, data) in [("far", None), ("other", Some(&b"small"[..]))] {
            let again = read(&gather(&root, &paths, node, &memory).await);
            assert_eq!(again[&small].data.as_deref(), data, "it is told each node once");
        }
    }

    #[test]
    fn what_cannot_be_read_is_no_fact() {
        let mut good = Vec::new();
        write(&[], &Fact { found: Err(Errno::ENOENT), target: None, digest: None, data: None }, &mut good);
        for end in 0..good.len() {
            assert!(read(&good[..end]).is_empty(), "{end}");
        }
        assert_eq!(read(&[&good[..], b"\xff\xff"].concat()).len(), 1);
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            read(&bad);
        }
    }
}
