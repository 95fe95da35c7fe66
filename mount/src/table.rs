//! The files that the kernel knows, by node id, and how to reach each of them again.
//!
//! Called by the bridge, in whatever task a request runs. A file has one inode however many names it has, so that its
//! hard links share pages; a directory has one for each place where it is seen, so that what is mounted over one place
//! moves nobody who stands in another. An inode keeps its places (parent, name) and its qid. Its node is kept while it
//! is open, and otherwise in a bounded cache: what was dropped is walked to again from the nearest directory at hand,
//! and checked to be the same file (`ESTALE` if not: the kernel then looks its name up anew).
//!
//! A node id is the qid's path where that is free, so that `st_ino` outlives the mount; ids are never used for two
//! files.

mod inode;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use p9::{Errno, FileKind, Name, NameBuf, NodeRef, Qid, Reached, Want};
use parking_lot::Mutex;
use quick_cache::sync::Cache;

pub(crate) use inode::{Inode, Place, Version};

/// The id of the root, as FUSE fixes it.
pub(crate) const ROOT: u64 = 1;

/// All that the kernel knows.
pub(crate) struct Table {
    maps: Mutex<Maps>,
    held: Cache<u64, NodeRef>,
}

#[derive(Default)]
struct Maps {
    ids: HashMap<u64, Known>,
    /// Files that have another number than their qid's path.
    files: HashMap<(FileKind, u64), Arc<Inode>>,
    /// By what [`Maps::hash`] makes of a directory and a name: an inode knows its names itself.
    places: HashMap<u64, Arc<Inode>>,
    hashes: RandomState,
    spare: u64,
}

/// An inode, and how often it was handed to the kernel.
struct Known {
    inode: Arc<Inode>,
    lookups: u64,
}

impl Table {
    /// A table of `root` alone, that keeps at most `held` nodes which are not open.
    pub(crate) fn new(root: NodeRef, held: usize) -> Self {
        let inode = Arc::new(Inode::new(ROOT, root.qid()));
        inode.pin(Some(root));
        let mut maps = Maps::default();
        maps.ids.insert(ROOT, Known { inode, lookups: 1 });
        Self { maps: Mutex::new(maps), held: Cache::new(held.max(16)) }
    }

    /// The inode that the kernel calls `id`.
    pub(crate) fn get(&self, id: u64) -> Result<Arc<Inode>, Errno> {
        self.maps.lock().ids.get(&id).map(|known| known.inode.clone()).ok_or(Errno::ESTALE)
    }

    /// Takes note that the file `qid` is called `name` in `dir`, and that the kernel is told so; `node` is kept at
    /// hand.
    pub(crate) fn enter(&self, dir: &Arc<Inode>, name: Name<'_>, qid: Qid, node: Option<NodeRef>) -> Arc<Inode> {
        let mut maps = self.maps.lock();
        let inode = maps.at_place(dir, name, qid);
        if let Some(known) = maps.ids.get_mut(&inode.id) {
            known.lookups += 1;
        }
        if let Some(node) = node {
            self.held.insert(inode.id, node);
        }
        inode
    }

    /// The kernel forgot `count` of the times that it was told of `id`; whether it knows it no more.
    pub(crate) fn forget(&self, id: u64, count: u64) -> bool {
        if id == ROOT {
            return false;
        }
        let mut maps = self.maps.lock();
        let Some(known) = maps.ids.get_mut(&id) else { return false };
        known.lookups = known.lookups.saturating_sub(count);
        if known.lookups > 0 {
            return false;
        }
        let gone = maps.ids.remove(&id);
        if let Some(Known { inode, .. }) = gone {
            for place in inode.places() {
                maps.vacate(place.dir.id, place.name.as_name());
            }
            if maps.files.get(&inode.key()).is_some_and(|other| Arc::ptr_eq(other, &inode)) {
                maps.files.remove(&inode.key());
            }
        }
        // Under the lock, or a lookup that finds the same file again could lose what it just put there.
        self.held.remove(&id);
        true
    }

    /// What the kernel knows as `name` in `dir`.
    pub(crate) fn child(&self, dir: &Arc<Inode>, name: Name<'_>) -> Option<Arc<Inode>> {
        self.maps.lock().there(dir.id, name).cloned()
    }

    /// What the kernel knows in `dir`, by name.
    pub(crate) fn names_in(&self, dir: &Inode) -> Vec<NameBuf> {
        let maps = self.maps.lock();
        let places = maps.ids.values().flat_map(|known| known.inode.places());
        places.filter(|place| place.dir.id == dir.id).map(|place| place.name).collect()
    }

    /// `name` is no longer in `dir`.
    pub(crate) fn removed(&self, dir: &Arc<Inode>, name: Name<'_>) {
        self.maps.lock().vacate(dir.id, name);
    }

    /// `inode` is no longer at `place`.
    pub(crate) fn left(&self, inode: &Arc<Inode>, place: &Place) {
        let mut maps = self.maps.lock();
        let (dir, name) = (place.dir.id, place.name.as_name());
        if maps.there(dir, name).is_some_and(|there| Arc::ptr_eq(there, inode)) {
            maps.vacate(dir, name);
        }
    }

    /// What was `name` in `dir` is now `new_name` in `new_dir`; with `exchange`, the other way round too.
    pub(crate) fn renamed(&self, from: (&Arc<Inode>, Name<'_>), to: (&Arc<Inode>, Name<'_>), exchange: bool) {
        let mut maps = self.maps.lock();
        let moved = maps.vacate(from.0.id, from.1);
        let other = maps.vacate(to.0.id, to.1);
        if let Some(inode) = moved {
            maps.occupy(to.0, to.1, &inode);
        }
        if let Some(inode) = other.filter(|_| exchange) {
            maps.occupy(from.0, from.1, &inode);
        }
    }

    /// The node of `inode`, and whether it was walked to just now.
    pub(crate) async fn node(&self, inode: &Arc<Inode>) -> Result<(NodeRef, bool), Errno> {
        match self.at_hand(inode) {
            Some(node) => Ok((node, false)),
            None => Ok((self.walk_to(inode).await?, true)),
        }
    }

    /// The node of `inode`, if it is at hand.
    pub(crate) fn at_hand(&self, inode: &Inode) -> Option<NodeRef> {
        inode.pinned().or_else(|| self.held.get(&inode.id))
    }

    /// Walks to `inode` from the nearest directory at hand.
    pub(crate) async fn walk_to(&self, inode: &Arc<Inode>) -> Result<NodeRef, Errno> {
        Ok(self.walk_for(inode, Want::default()).await?.node)
    }

    /// The same, and brings along what is wanted.
    pub(crate) async fn walk_for(&self, inode: &Arc<Inode>, want: Want) -> Result<Reached, Errno> {
        if inode.id == ROOT {
            let node = inode.pinned().ok_or(Errno::ESTALE)?;
            return Ok(Reached { node, attr: None, lease: None });
        }
        // The latest name first: the others may be gone.
        for place in inode.places().into_iter().rev() {
            let Some((from, names)) = self.way_to(place) else { continue };
            let names: Vec<_> = names.iter().map(NameBuf::as_name).collect();
            let reached = match from.walk(&names, want).await.and_then(p9::Walk::reached) {
                Ok(reached) => reached,
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ESTALE) => continue,
                Err(errno) => return Err(errno),
            };
            if inode.is(reached.node.qid()) {
                self.hold(inode, &reached.node);
                return Ok(reached);
            }
        }
        Err(Errno::ESTALE)
    }

    /// The nearest directory at hand above `place`, and the names from there.
    fn way_to(&self, place: Place) -> Option<(NodeRef, Vec<NameBuf>)> {
        let (mut dir, mut names) = (place.dir, vec![place.name]);
        let from = loop {
            if let Some(node) = self.at_hand(&dir) {
                break node;
            }
            let up = dir.places().pop()?;
            names.push(up.name);
            dir = up.dir;
        };
        names.reverse();
        Some((from, names))
    }

    /// Keeps `node` at hand, if the kernel still knows its inode.
    pub(crate) fn hold(&self, inode: &Arc<Inode>, node: &NodeRef) {
        let maps = self.maps.lock();
        if maps.ids.get(&inode.id).is_some_and(|known| Arc::ptr_eq(&known.inode, inode)) {
            self.held.insert(inode.id, node.clone());
        }
    }

    /// The node of `inode` turned out to be dead: neither it nor the directories above it are used again.
    pub(crate) fn lost(&self, inode: &Arc<Inode>) {
        let mut at = inode.clone();
        while at.id != ROOT {
            self.held.remove(&at.id);
            at.unpin_lost();
            let Some(place) = at.places().pop() else { return };
            at = place.dir;
        }
    }

    /// How many inodes the kernel knows.
    pub(crate) fn len(&self) -> usize {
        self.maps.lock().ids.len()
    }
}

impl Maps {
    /// The inode of the file `qid` seen as `name` in `dir`, made if need be.
    fn at_place(&mut self, dir: &Arc<Inode>, name: Name<'_>, qid: Qid) -> Arc<Inode> {
        if let Some(inode) = self.there(dir.id, name)
            && inode.is(qid)
        {
            return inode.clone();
        }
        self.vacate(dir.id, name);
        let known = (qid.kind != FileKind::Dir).then(|| self.file(qid)).flatten();
        let inode = known.unwrap_or_else(|| self.make(qid));
        self.occupy(dir, name, &inode);
        inode
    }

    /// The inode of the file `qid`, whatever it is called.
    fn file(&self, qid: Qid) -> Option<Arc<Inode>> {
        let by_number = self.ids.get(&qid.path).map(|known| &known.inode).filter(|inode| inode.is(qid));
        by_number.or_else(|| self.files.get(&(qid.kind, qid.path))).cloned()
    }

    fn make(&mut self, qid: Qid) -> Arc<Inode> {
        let mut id = qid.path;
        while id <= ROOT || id == u64::MAX || self.ids.contains_key(&id) {
            self.spare += 1;
            id = mix(qid.path ^ mix(self.spare));
        }
        let inode = Arc::new(Inode::new(id, qid));
        self.ids.insert(id, Known { inode: inode.clone(), lookups: 0 });
        if qid.kind != FileKind::Dir && id != qid.path {
            self.files.insert(inode.key(), inode.clone());
        }
        inode
    }

    fn occupy(&mut self, dir: &Arc<Inode>, name: Name<'_>, inode: &Arc<Inode>) {
        self.places.insert(self.hash(dir.id, name), inode.clone());
        inode.add_place(Place { dir: dir.clone(), name: name.into() });
    }

    fn vacate(&mut self, dir: u64, name: Name<'_>) -> Option<Arc<Inode>> {
        self.there(dir, name)?;
        let inode = self.places.remove(&self.hash(dir, name))?;
        inode.remove_place(dir, name);
        Some(inode)
    }

    /// What is known as `name` in `dir`.
    fn there(&self, dir: u64, name: Name<'_>) -> Option<&Arc<Inode>> {
        self.places.get(&self.hash(dir, name)).filter(|inode| inode.is_at(dir, name))
    }

    fn hash(&self, dir: u64, name: Name<'_>) -> u64 {
        self.hashes.hash_one((dir, name.as_bytes()))
    }
}

/// The finalizer of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use p9::synth;

    use super::*;

    fn name(text: &str) -> Name<'_> {
        Name::new(text.as_bytes()).unwrap()
    }

    fn file() -> NodeRef {
        synth::file(|| Ok("".into()))
    }

    fn enter(table: &Table, as_name: &str, node: &NodeRef) -> Arc<Inode> {
        table.enter(&table.get(ROOT).unwrap(), name(as_name), node.qid(), Some(node.clone()))
    }

    fn table() -> (Table, Arc<Inode>) {
        let table = Table::new(synth::dir([]), 16);
        let root = table.get(ROOT).unwrap();
        (table, root)
    }

    #[test]
    fn a_file_is_forgotten_when_all_its_lookups_are() {
        let (table, _) = table();
        let node = file();
        let once = enter(&table, "a", &node);
        let again = enter(&table, "b", &node);
        assert_eq!(once.id, again.id);
        table.forget(once.id, 1);
        assert!(table.get(once.id).is_ok());
        table.forget(once.id, 1);
        assert_eq!(table.get(once.id).err(), Some(Errno::ESTALE));
        assert_eq!(table.len(), 1);
        assert!(table.maps.lock().places.is_empty() && table.maps.lock().files.is_empty());
        let again = enter(&table, "a", &node);
        assert_eq!(again.id, once.id, "the number of a file outlives what the kernel knows");
    }

    #[test]
    fn a_directory_moves_with_its_name_and_another_in_its_place_is_another() {
        let (table, root) = table();
        let (one, two) = (synth::dir([]), synth::dir([]));
        let first = enter(&table, "a", &one);
        table.renamed((&root, name("a")), (&root, name("b")), false);
        assert_eq!(enter(&table, "b", &one).id, first.id);
        assert_ne!(enter(&table, "a", &one).id, first.id);
        assert_ne!(enter(&table, "b", &two).id, first.id);
        assert!(first.places().is_empty());
        let second = enter(&table, "b", &two);
        table.renamed((&root, name("a")), (&root, name("b")), true);
        assert_eq!(second.places().pop().unwrap().name, name("a").into());
    }

    #[test]
    fn a_hostile_number_is_not_the_roots() {
        let (table, root) = table();
        for path in [0, ROOT, u64::MAX] {
            let inode = table.maps.lock().make(Qid { kind: FileKind::File, version: 0, path });
            assert!(inode.id > ROOT && inode.id < u64::MAX && inode.id != root.id);
        }
    }
}
