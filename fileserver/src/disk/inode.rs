//! One file of the disk, however many nodes stand for it, and how its descriptor is found again.
//!
//! Made by walks and creations, from any thread. An inode remembers where it was last seen (parent and name) and who it
//! is; its `O_PATH` descriptor lives in a bounded cache. When the descriptor was dropped, the names are walked again
//! from the nearest ancestor that still has one, and the file found there must be the same one: else `ESTALE`.
//! Invariant: the parents of an inode never form a ring, and `moves` is held by whoever changes where one was seen.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};

use p9::{Attr, Errno, FileKind, LocalFile, Name, NameBuf};
use parking_lot::Mutex;

use super::Shared;
use super::locks::FileLocks;
use super::mounts::Mount;
use super::sys::{self, FileHandle};

/// Which file: its qid path and the mount through which it was reached.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Key {
    pub(super) path: u64,
    pub(super) mount: u64,
}

/// One file.
pub(super) struct Inode {
    pub(super) key: Key,
    pub(super) kind: FileKind,
    /// The type bits of `st_mode`, which never change.
    pub(super) format: u32,
    pub(super) mount: Arc<Mount>,
    pub(super) disk: Arc<Shared>,
    spot: Mutex<Spot>,
    open: Mutex<Open>,
    locks: OnceLock<Arc<FileLocks>>,
}

/// Where an inode was last seen.
enum Spot {
    /// The root, whose descriptor is never dropped.
    Root(Arc<OwnedFd>),
    In(Arc<Inode>, NameBuf),
    /// Nowhere any more; its descriptor may still be cached.
    Lost,
}

/// The open files of an inode, and whether each is open for writing: as long as one lives, the file is reached through
/// it.
#[derive(Default)]
struct Open {
    files: Vec<(Weak<LocalFile>, bool)>,
    /// How many there may be before those that are closed are taken out.
    most: usize,
}

impl Open {
    fn add(&mut self, file: &Arc<LocalFile>, writes: bool) {
        if self.files.len() >= self.most {
            self.files.retain(|(file, _)| file.strong_count() > 0);
            self.most = (self.files.len() * 2).max(4);
        }
        self.files.push((Arc::downgrade(file), writes));
    }

    /// The latest of them; of those open for writing, if that is wanted.
    fn one(&self, to_write: bool) -> Option<Arc<LocalFile>> {
        self.files.iter().rev().filter(|(_, writes)| *writes || !to_write).find_map(|(file, _)| file.upgrade())
    }
}

/// A descriptor by which a file is reached.
pub(super) enum Reach {
    Place(Arc<OwnedFd>),
    Open(Arc<LocalFile>),
}

impl AsFd for Reach {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Place(fd) => fd.as_fd(),
            Self::Open(file) => file.as_fd(),
        }
    }
}

/// What a look at a descriptor finds.
pub(super) enum Seen {
    File {
        mount: Arc<Mount>,
        attr: Attr,
    },
    /// Something that is shown as an empty directory with this qid path.
    Hidden(u64),
}

/// More levels than any real tree has; a chain of parents longer than this is not walked again.
const DEPTH: usize = 4096;

impl Shared {
    /// Looks at the file open as `fd`, found in a directory on `mount`. With `cached`, `EAGAIN` where that might wait.
    pub(super) fn see(&self, fd: BorrowedFd<'_>, mount: Option<&Arc<Mount>>, cached: bool) -> Result<Seen, Errno> {
        let mut stat = sys::statx(fd, false)?;
        let mount = match mount {
            Some(mount) if mount.id == stat.stx_mnt_id => mount.clone(),
            _ => self.mounts.look(stat.stx_mnt_id, fd, cached)?,
        };
        let dev = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
        if mount.hidden {
            return Ok(Seen::Hidden(self.hash(b"hidden", &[mount.id, dev, stat.stx_ino], &[])));
        }
        if mount.remote {
            if cached {
                return Err(Errno::EAGAIN);
            }
            stat = sys::statx(fd, true)?;
        }
        let path = match FileHandle::of(fd) {
            Some(handle) => {
                let (kind, bytes) = handle.parts();
                self.hash(b"handle", &[dev, mount.fsid, kind as u64], bytes)
            }
            None => {
                let born = &stat.stx_btime;
                let numbers = [dev, mount.fsid, stat.stx_ino, born.tv_sec as u64, u64::from(born.tv_nsec)];
                self.hash(b"inode", &numbers, &[])
            }
        };
        Ok(Seen::File { mount, attr: sys::attr(&stat, path) })
    }

    /// The qid path of an entry that may not be looked at.
    pub(super) fn unseen(&self, dir: &Inode, name: &NameBuf) -> u64 {
        self.hash(b"unseen", &[dir.key.path], name.as_name().as_bytes())
    }

    fn hash(&self, what: &[u8], numbers: &[u64], bytes: &[u8]) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.options.key);
        hasher.update(what);
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(bytes);
        let mut path = [0; 8];
        path.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(path)
    }

    /// The root, open as `fd`.
    pub(super) fn root(self: &Arc<Self>, fd: OwnedFd, mount: Arc<Mount>, attr: &Attr) -> Arc<Inode> {
        self.inode(mount, attr, || Spot::Root(Arc::new(fd)))
    }

    /// The inode seen as `name` in `parent`, whose `O_PATH` descriptor, if it has one, is `fd`.
    pub(super) fn seen(
        self: &Arc<Self>, parent: &Arc<Inode>, name: Name<'_>, mount: Arc<Mount>, attr: &Attr, fd: Option<Arc<OwnedFd>>,
    ) -> Arc<Inode> {
        let inode = self.inode(mount, attr, || Spot::In(parent.clone(), name.into()));
        if !inode.is_in(parent, name) {
            inode.moved(parent, name);
        }
        if let Some(fd) = fd {
            self.places.insert(inode.key, fd);
        }
        inode
    }

    fn inode(self: &Arc<Self>, mount: Arc<Mount>, attr: &Attr, spot: impl FnOnce() -> Spot) -> Arc<Inode> {
        let key = Key { path: attr.qid.path, mount: mount.id };
        let mut entry = self.inodes.entry(key).or_default();
        if let Some(inode) = entry.upgrade() {
            return inode;
        }
        let inode = Arc::new(Inode {
            key,
            kind: attr.qid.kind,
            format: attr.mode & libc::S_IFMT,
            mount,
            disk: self.clone(),
            spot: Mutex::new(spot()),
            open: Mutex::default(),
            locks: OnceLock::new(),
        });
        *entry = Arc::downgrade(&inode);
        inode
    }

    /// The inode of the file that `key` names, if any node stands for it.
    pub(super) fn known(&self, key: Key) -> Option<Arc<Inode>> {
        self.inodes.get(&key)?.upgrade()
    }
}

impl Inode {
    /// A descriptor by which the file is reached. With `cached`, `EAGAIN` where finding it might wait.
    /// Errors: `ESTALE` when it is not where it was.
    pub(super) fn reach(self: &Arc<Self>, cached: bool) -> Result<Reach, Errno> {
        if let Some(reach) = self.at_hand() {
            return Ok(reach);
        }
        // Up to an ancestor with a descriptor, then down again.
        let mut chain = vec![self.clone()];
        let mut reach = loop {
            let parent = chain.last().and_then(|inode| inode.parent());
            let (Some((parent, _)), ..DEPTH) = (parent, chain.len()) else { return Err(Errno::ESTALE) };
            match parent.at_hand() {
                Some(reach) => break reach,
                None => chain.push(parent),
            }
        };
        for inode in chain.iter().rev() {
            reach = inode.again(&reach, cached)?;
        }
        Ok(reach)
    }

    /// Finds the file again in its parent, which is reached by `dir`.
    fn again(self: &Arc<Self>, dir: &Reach, cached: bool) -> Result<Reach, Errno> {
        let (parent, name) = self.parent().ok_or(Errno::ESTALE)?;
        let stale = |errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR => Errno::ESTALE,
            other => other,
        };
        let fd = self.disk.patient(|| sys::place(dir.as_fd(), name.as_name(), cached)).map_err(stale)?;
        match self.disk.see(fd.as_fd(), Some(&parent.mount), cached)? {
            Seen::File { mount, attr } if (Key { path: attr.qid.path, mount: mount.id }) == self.key => {}
            _ => return Err(Errno::ESTALE),
        }
        let fd = Arc::new(fd);
        self.disk.places.insert(self.key, fd.clone());
        Ok(Reach::Place(fd))
    }

    /// A descriptor that needs no looking for.
    fn at_hand(&self) -> Option<Reach> {
        if let Spot::Root(fd) = &*self.spot.lock() {
            return Some(Reach::Place(fd.clone()));
        }
        if let Some(fd) = self.disk.places.get(&self.key) {
            return Some(Reach::Place(fd));
        }
        self.open.lock().one(false).map(Reach::Open)
    }

    fn parent(&self) -> Option<(Arc<Self>, NameBuf)> {
        match &*self.spot.lock() {
            Spot::In(parent, name) => Some((parent.clone(), name.clone())),
            Spot::Root(_) | Spot::Lost => None,
        }
    }

    fn is_in(&self, parent: &Arc<Self>, name: Name<'_>) -> bool {
        match &*self.spot.lock() {
            Spot::In(was, called) => Arc::ptr_eq(was, parent) && called.as_name() == name,
            Spot::Root(_) => true,
            Spot::Lost => false,
        }
    }

    /// Remembers that the file is now `name` in `parent`.
    pub(super) fn moved(self: &Arc<Self>, parent: &Arc<Self>, name: Name<'_>) {
        let _moves = self.disk.moves.lock();
        // An ancestor of `parent` that was last seen here cannot be here any more: its place is what is outdated.
        let mut above = parent.clone();
        loop {
            let Some((next, _)) = above.parent() else { break };
            if Arc::ptr_eq(&next, self) {
                above.put(Spot::Lost);
                break;
            }
            above = next;
        }
        if !Arc::ptr_eq(parent, self) {
            self.put(Spot::In(parent.clone(), name.into()));
        }
    }

    fn put(&self, spot: Spot) {
        let mut at = self.spot.lock();
        if matches!(*at, Spot::Root(_)) {
            return;
        }
        let was = std::mem::replace(&mut *at, spot);
        drop(at);
        // The last reference to a parent may go here, and with it those above: not under the lock.
        drop(was);
    }

    /// Remembers that `file` is open on this inode.
    pub(super) fn opened(&self, file: &Arc<LocalFile>, writes: bool) {
        self.open.lock().add(file, writes);
    }

    /// The locks on it.
    pub(super) fn locks(&self) -> &Arc<FileLocks> {
        self.locks.get_or_init(|| self.disk.locks_of(self.key.path))
    }

    /// A file open for writing, if there is one.
    pub(super) fn writer(&self) -> Option<Arc<LocalFile>> {
        self.open.lock().one(true)
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        self.disk.inodes.remove_if(&self.key, |_, inode| inode.strong_count() == 0);
        self.disk.places.remove(&self.key);
        // A chain of parents as long as a peer cares to make it is let go one by one, not by recursion.
        let mut spot = std::mem::replace(self.spot.get_mut(), Spot::Lost);
        while let Spot::In(parent, _) = spot {
            let Some(mut parent) = Arc::into_inner(parent) else { break };
            spot = std::mem::replace(parent.spot.get_mut(), Spot::Lost);
        }
    }
}

#[cfg(test)]
mod tests {
    use p9::{How, Name, Node, Want};

    use crate::{Disk, DiskOptions};

    #[tokio::test]
    async fn directories_turned_inside_out_make_no_ring() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let disk = Disk::open(dir.path(), DiskOptions::new([7; 32])).unwrap();
        let (root, name) = (disk.root(), |text: &'static str| Name::new(text.as_bytes()).unwrap());
        let walk = async |from: &dyn Node, names: &[&'static str]| {
            let names: Vec<_> = names.iter().map(|text| name(text)).collect();
            from.walk(&names, Want::default()).await.unwrap().reached().unwrap().node
        };
        let (a, b) = (walk(&*root, &["a"]).await, walk(&*root, &["a", "b"]).await);
        // Behind the tree's back, b comes out of a and a goes into b.
        std::fs::rename(dir.path().join("a/b"), dir.path().join("b")).unwrap();
        std::fs::rename(dir.path().join("a"), dir.path().join("b/a")).unwrap();
        // Found by way of a node that was last seen in a itself.
        assert_eq!(walk(&*b, &["a"]).await.qid().path, a.qid().path);
        disk.root.disk.places.clear();
        // Nobody knows where b is now.
        assert_eq!(a.open(How::READ).await.err(), Some(p9::Errno::ESTALE));
        // From the root it is found, and with it what is in it.
        assert_eq!(walk(&*root, &["b"]).await.qid().path, b.qid().path);
        disk.root.disk.places.clear();
        assert!(a.attr().await.is_ok() && b.attr().await.is_ok());
    }

    #[tokio::test]
    async fn a_file_without_a_name_is_reached_through_any_that_has_it_open() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "text").unwrap();
        let disk = Disk::open(dir.path(), DiskOptions::new([7; 32])).unwrap();
        let (root, name) = (disk.root(), Name::new(b"f").unwrap());
        let node = root.walk(&[name], Want::default()).await.unwrap().reached().unwrap().node;
        let first = node.open(How::RDWR).await.unwrap();
        drop(node.open(How::RDWR).await.unwrap());
        drop(node.open(How::READ).await.unwrap());
        root.remove(name, false).await.unwrap();
        disk.root.disk.places.clear();
        let shorter = p9::SetAttr { size: Some(2), ..p9::SetAttr::default() };
        assert_eq!(node.set_attr(shorter).await.unwrap().size, 2);
        drop(first);
        assert_eq!(node.attr().await.err(), Some(p9::Errno::ESTALE));
    }
}
