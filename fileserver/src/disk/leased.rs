//! What a disk node does about leases: who has to give one back before an operation, and who gets one.
//!
//! Called by the node's operations. While nothing is leased, each of them is what it would be without leases; else what
//! is in the way is asked for and waited for first, in the operation's own future and holding nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use p9::cancel::blocking;
use p9::tree::{Lease, LeaseKind, OnBreak};
use p9::{Created, Errno, Handle, How, LocalFile, NameBuf, NodeRef, Opened, Reply, Stream, Want};
use rustix::fs::OFlags;

use super::change::{Made, Making};
use super::inode::{Inode, Reach, Seen};
use super::node::{DiskNode, Pace, first_bytes};
use super::sys;
use crate::Leases;
use crate::empty::Empty;
use crate::leases::{Claim, Place, Writer, fine_times, place_of};

/// Two ticks of the clock by which Linux before 6.13 stamps files.
const TWO_TICKS_NS: i128 = 20_000_000;

impl Inode {
    /// Whether another client than `client` holds changes of it back.
    pub(super) fn is_held_back(&self, client: u64) -> bool {
        self.disk.options.leases.in_the_way(client, self.key.path, LeaseKind::Read)
    }
}

impl DiskNode {
    fn leases(&self) -> &Arc<Leases> {
        &self.inode.disk.options.leases
    }

    /// Does `work`, which changes the inodes that `keys` finds (`EAGAIN` where that would wait and is not to), once
    /// other clients have given their leases on them back.
    pub(super) fn changing<'a, T: Send + 'static>(
        &self, pace: Pace, keys: impl Fn(&Self, bool) -> Result<Vec<u64>, Errno> + Send + 'static,
        work: impl FnOnce(Self) -> Result<T, Errno> + Send + 'static,
    ) -> Reply<'a, T> {
        let node = self.clone();
        if let Some(quick) = self.leases().quick() {
            return Reply::later(node.at(pace, move |node| {
                let _quick = quick;
                work(node)
            }));
        }
        Reply::later(async move {
            let keys = match keys(&node, true) {
                Err(Errno::EAGAIN) => {
                    let looks = node.clone();
                    blocking(move || keys(&looks, false)).await?
                }
                found => found?,
            };
            let claim = node.leases().claim(node.client, LeaseKind::None, &keys);
            claim.settle().await;
            node.at(pace, move |node| {
                let _claim = claim;
                work(node)
            })
            .await
        })
    }

    /// The directories and those of their entries, so far as they are there. With `cached`, `EAGAIN` where that might
    /// wait.
    pub(super) fn keys(entries: &[(&Self, &NameBuf)], cached: bool) -> Result<Vec<u64>, Errno> {
        let mut keys = Vec::with_capacity(2 * entries.len());
        for (dir, name) in entries {
            keys.push(dir.inode.key.path);
            match dir.look(name, cached) {
                Ok(Some((_, Seen::File { attr, .. }))) => keys.push(attr.qid.path),
                Err(Errno::EAGAIN) if cached => return Err(Errno::EAGAIN),
                _ => {}
            }
        }
        keys.sort_unstable();
        keys.dedup();
        Ok(keys)
    }

    /// What is called `name` in this directory.
    pub(super) fn look(&self, name: &NameBuf, cached: bool) -> Result<Option<(OwnedFd, Seen)>, Errno> {
        let reach = self.inode.reach(cached)?;
        match self.inode.disk.patient(|| sys::place(reach.as_fd(), name.as_name(), cached)) {
            Ok(fd) => {
                let seen = self.inode.disk.see(fd.as_fd(), Some(&self.inode.mount), cached)?;
                Ok(Some((fd, seen)))
            }
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The entry `name`, if it is there and a file of the disk.
    fn entry_named(&self, name: &NameBuf) -> Option<Self> {
        match self.look(name, false).ok()?? {
            (fd, Seen::File { mount, attr }) => {
                let fd = Some(Arc::new(fd));
                let inode = self.inode.disk.seen(&self.inode, name.as_name(), mount, &attr, fd);
                Some(Self::of(inode, attr.qid.version, self.locker.clone()))
            }
            (_, Seen::Hidden(_)) => None,
        }
    }

    /// Says that others may keep no more than `keep`, and waits until they do not.
    pub(super) async fn claimed(&self, keep: LeaseKind) -> Claim {
        let claim = self.leases().claim(self.client, keep, &[self.inode.key.path]);
        claim.settle().await;
        claim
    }

    /// What opening it like this needs, and whether others have to give something back first.
    fn opening(&self, how: How) -> (Option<Writer>, bool) {
        if self.inode.format != libc::S_IFREG {
            return (None, false);
        }
        let (leases, client, key) = (self.leases(), self.client, self.inode.key.path);
        if how.changes() && self.inode.disk.writable().is_ok() {
            let writer = leases.writer(client, key);
            let wait = leases.in_the_way(client, key, LeaseKind::None);
            return (Some(writer), wait);
        }
        let wait = leases.in_the_way(client, key, LeaseKind::Read)
            || leases.is_sole(key) && leases.in_the_way(client, key, LeaseKind::Attr);
        (None, wait)
    }

    /// Waits for what [`DiskNode::opening`] found in the way; the claim is to last until it is open.
    async fn opening_settled(&self, writer: Option<&Writer>) -> Option<Claim> {
        match writer {
            Some(writer) => {
                writer.settle().await;
                None
            }
            None => Some(self.claimed(LeaseKind::Attr).await),
        }
    }

    /// Has the contents leased by nobody, so that the file can be opened for its locks.
    pub(super) async fn unleased(&self) -> Option<Claim> {
        if self.leases().is_quiet() || self.inode.format != libc::S_IFREG {
            return None;
        }
        let claim = self.claimed(LeaseKind::Attr).await;
        self.leases().make_way(self.client, self.inode.key.path, true);
        Some(claim)
    }

    /// Lets go of what keeps local processes from opening it like this, and so us, too.
    pub(super) fn make_way(&self, how: How) {
        let (leases, key) = (self.leases(), self.inode.key.path);
        if how.changes() || leases.is_sole(key) {
            leases.make_way(self.client, key, !how.write);
        }
    }

    /// The file opened as `fd`, as `how` says.
    pub(super) fn handle(&self, fd: OwnedFd, how: How, writer: Option<Writer>) -> Handle {
        if !how.write {
            let file = LocalFile::new(fd, how.append, None);
            self.inode.opened(&file, false);
            return Handle::Fd(file);
        }
        let (leases, key) = (self.leases(), self.inode.key.path);
        let writer = writer.unwrap_or_else(|| leases.writer(self.client, key));
        let file = LocalFile::new(fd, how.append, Some(Box::new(writer)));
        self.inode.opened(&file, true);
        leases.regrip(self.client, key, || Ok(file.as_fd().try_clone_to_owned()?));
        Handle::Fd(file)
    }

    /// Opens it, and brings along what is wanted.
    pub(super) fn open_and<'a>(&self, how: How, want: Want) -> Reply<'a, Opened> {
        let (writer, wait) = self.opening(how);
        let waiter = writer.clone();
        let open = move |node: &Self, cached| {
            let handle = node.open_now(how, writer.clone(), cached)?;
            let first = match &handle {
                Handle::Fd(open) if want.data > 0 && how.read => first_bytes(open, want.data, cached),
                _ => None,
            };
            // After the open, so that a truncation shows.
            let attr = if want.attr { Some(node.attr_now(cached)?) } else { None };
            Ok(Opened { node: None, attr, handle, first, lease: None })
        };
        if !wait {
            return self.soon(open);
        }
        let node = self.clone();
        Reply::later(async move {
            let _claim = node.opening_settled(waiter.as_ref()).await;
            drop(waiter);
            node.soon(open).await
        })
    }

    /// Opens `node`, which a walk from here reached.
    pub(super) fn open_reached<'a>(&self, node: NodeRef, how: How, want: Want) -> Reply<'a, Opened> {
        let Some(file) = self.ours(&node) else {
            let attr = want.attr.then(|| Empty::attr_of(node.qid().path));
            let opened = |handle| Opened { node: Some(node), attr, handle, first: None, lease: None };
            return Empty::handle(how).map(opened).into();
        };
        file.open_and(how, want).map(|opened| Opened { node: Some(node), ..opened })
    }

    fn made(&self, made: Made, writer: Option<Writer>) -> Created {
        let node = Self::of(made.inode, made.attr.qid.version, self.locker.clone());
        let handle = made.open.map(|(fd, how)| node.handle(fd, how, writer));
        Created { node: Arc::new(node), attr: Some(made.attr), handle, lease: None }
    }

    pub(super) fn create_soon<'a>(&self, name: NameBuf, making: Making) -> Reply<'a, Created> {
        if let Some(quick) = self.leases().quick() {
            let pace = if making.opens().is_none() { Pace::Brief } else { Pace::Slow };
            let create = move |node: Self| {
                let _quick = quick;
                Ok(node.made(node.create_now(name.as_name(), &making)?, None))
            };
            return Reply::later(self.clone().at(pace, create));
        }
        Reply::later(self.clone().create_leased(name, making))
    }

    async fn create_leased(self, name: NameBuf, making: Making) -> Result<Created, Errno> {
        let (looks, called) = (self.clone(), name.clone());
        let there = match making.opens() {
            Some(how) => {
                looks.at(Pace::Brief, move |looks| Ok(looks.entry_named(&called))).await?.map(|file| (file, how))
            }
            None => None,
        };
        // To open what is there changes nothing in the directory.
        let (mut writer, mut claim) = (None, None);
        match &there {
            Some((file, how)) => {
                let (opens, wait) = file.opening(*how);
                if wait {
                    claim = file.opening_settled(opens.as_ref()).await;
                }
                writer = opens;
            }
            None => claim = Some(self.claimed(LeaseKind::None).await),
        }
        let expected = there.is_none();
        let kept = writer.clone();
        let create = move |node: Self| {
            let made = node.create_now(name.as_name(), &making)?;
            let fresh = made.fresh;
            Ok((node.made(made, kept), fresh, claim))
        };
        // What is there may be large, or leased to somebody on this machine: to open it to change it waits.
        let pace = if expected { Pace::Brief } else { Pace::Slow };
        let (created, fresh, claim) = self.clone().at(pace, create).await?;
        drop(claim);
        if fresh != expected {
            // Somebody made or removed the name meanwhile: who holds what is now wrong is waited for afterwards.
            drop(self.claimed(LeaseKind::None).await);
            let key = created.node.qid().path;
            self.leases().claim(self.client, LeaseKind::None, &[key]).settle().await;
        }
        Ok(created)
    }

    pub(super) fn lease_soon<'a>(&self, want: LeaseKind, on_break: OnBreak) -> Reply<'a, Option<Lease>> {
        // What a file system with a server of its own changes is not told here; and where several spellings are one
        // name, a listing does not say which names are missing.
        let folds = self.inode.mount.folds && self.inode.format == libc::S_IFDIR;
        if self.inode.mount.remote || folds || want == LeaseKind::None {
            return Reply::ok(None);
        }
        let node = self.clone();
        Reply::later(async move {
            let (leases, client, key) = (node.leases().clone(), node.client, node.inode.key.path);
            Ok(leases.grant(client, key, want, on_break, node).await)
        })
    }

    pub(super) fn events_now(&self) -> Result<Arc<dyn Stream>, Errno> {
        match self.inode.format {
            libc::S_IFDIR if !self.inode.mount.remote => self.leases().events(self.place(false)?),
            libc::S_IFDIR => Err(Errno::EOPNOTSUPP),
            _ => Err(Errno::ENOTDIR),
        }
    }
}

impl Place for DiskNode {
    fn place(&self, cached: bool) -> Result<Arc<OwnedFd>, Errno> {
        match self.inode.reach(cached)? {
            Reach::Place(fd) => Ok(fd),
            // Not the open file itself: it would stay open for writing.
            Reach::Open(file) => Ok(Arc::new(place_of(file.as_fd())?)),
        }
    }

    fn is_dir(&self) -> bool {
        self.inode.format == libc::S_IFDIR
    }

    fn reader(&self) -> Result<OwnedFd, Errno> {
        if self.inode.format != libc::S_IFREG {
            return Err(Errno::EINVAL);
        }
        let reach = self.inode.reach(false)?;
        self.inode.disk.patient(|| sys::reopen(&reach, OFlags::RDONLY | OFlags::NONBLOCK))
    }

    fn writer(&self) -> Result<OwnedFd, Errno> {
        let writer = self.inode.writer().ok_or(Errno::EAGAIN)?;
        Ok(writer.as_fd().try_clone_to_owned()?)
    }

    fn is_settled(&self) -> bool {
        if fine_times() {
            return true;
        }
        let nanos = |time: p9::Time| i128::from(time.sec) * 1_000_000_000 + i128::from(time.nsec);
        let age = self.attr_now(false).map(|attr| nanos(p9::Time::now()) - nanos(attr.ctime));
        age.is_ok_and(|age| age > TWO_TICKS_NS)
    }
}
