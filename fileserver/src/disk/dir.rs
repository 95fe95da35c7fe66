//! An open directory of the disk: its entries, with attributes.
//!
//! Listed by the server loop and the FUSE bridge, in any task. Cookies are the file system's own (`d_off`), which it
//! keeps good while entries come and go. A part of the directory is read on the blocking pool, each entry looked at
//! there; what the taker had no room for is kept for its next call.

use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use p9::cancel::blocking;
use p9::tree::LeaseKind;
use p9::{Attr, Dir, DirSink, Entry, Errno, NameBuf, Qid, Reply};
use parking_lot::Mutex;
use rustix::fs::{RawDir, SeekFrom};

use super::inode::{Inode, Seen};
use super::{sys, xattr};
use crate::empty::Empty;

/// An open directory.
pub(super) struct DiskDir(Arc<Reading>);

struct Reading {
    fd: OwnedFd,
    inode: Arc<Inode>,
    /// Who opened it.
    client: u64,
    /// The part read last. Also: only who holds this moves the descriptor's offset.
    part: Mutex<Part>,
}

/// Some entries that follow each other, and the lease on the directory's contents under which they were read.
#[derive(Clone, Default)]
struct Part {
    entries: Arc<[Found]>,
    lease: Option<u64>,
}

struct Found {
    cookie: u64,
    name: NameBuf,
    qid: Qid,
    kind: u32,
    attr: Option<Attr>,
}

/// Bytes of directory read at once: some 500 entries.
const PART: usize = 16 << 10;

impl DiskDir {
    pub(super) fn of(fd: OwnedFd, inode: Arc<Inode>, client: u64) -> Arc<Self> {
        Arc::new(Self(Arc::new(Reading { fd, inode, client, part: Mutex::default() })))
    }
}

impl Reading {
    /// The rest of the part that `cookie` is in, if it is the one read last: its entries, from that index.
    fn kept(&self, cookie: u64) -> Option<(Part, usize)> {
        // While the pool reads a part, nothing is waited for here.
        let part = self.part.try_lock()?;
        let last = part.entries.iter().position(|found| found.cookie == cookie)?;
        // A later lease does not cover what was read before it.
        (last + 1 < part.entries.len() && part.lease == self.lease()).then(|| (part.clone(), last + 1))
    }

    /// The lease under which entries are read now.
    fn lease(&self) -> Option<u64> {
        self.inode.disk.options.leases.covered(self.client, self.inode.key.path)
    }

    /// Reads the part after `cookie`; it is empty at the end only.
    fn read(&self, cookie: u64) -> Result<Part, Errno> {
        let mut part = self.part.lock();
        let (mut after, lease) = (cookie, self.lease());
        loop {
            rustix::fs::seek(&self.fd, SeekFrom::Start(after))?;
            let mut buf = vec![MaybeUninit::uninit(); PART];
            let mut raw = RawDir::new(&self.fd, &mut buf);
            let (mut entries, mut end) = (Vec::new(), true);
            while let Some(entry) = raw.next() {
                let entry = entry?;
                (end, after) = (false, entry.next_entry_cookie());
                let name = entry.file_name().to_bytes();
                if !matches!(name, b"." | b"..") {
                    let kind = entry.file_type().as_raw_mode();
                    entries.extend(self.look(name, after, kind, lease)?);
                }
                if raw.is_buffer_empty() {
                    break;
                }
            }
            if end || !entries.is_empty() {
                *part = Part { entries: entries.into(), lease };
                return Ok(part.clone());
            }
        }
    }

    /// The entry `name`; `None` if it has gone in the meantime. Who holds the contents of this directory by `lease` may
    /// keep what is told here of all but directories: see `leases::told`.
    fn look(&self, name: &[u8], cookie: u64, kind: u32, lease: Option<u64>) -> Result<Option<Found>, Errno> {
        let name = NameBuf::new(name)?;
        let disk = &self.inode.disk;
        let place = match disk.patient(|| sys::place(self.fd.as_fd(), name.as_name(), false)) {
            Ok(place) => place,
            Err(Errno::ENOENT) => return Ok(None),
            // A directory that may be read but not searched still tells the names.
            Err(_) => {
                let qid = Qid { kind: p9::FileKind::of_mode(kind), version: 0, path: disk.unseen(&self.inode, &name) };
                return Ok(Some(Found { cookie, name, qid, kind, attr: None }));
            }
        };
        let (leases, dir) = (&disk.options.leases, self.inode.key.path);
        let bare = || xattr::none(self.fd.as_fd(), name.as_name(), &place);
        let see = || match disk.see(place.as_fd(), Some(&self.inode.mount), false)? {
            // What is told of a directory is told for a moment alone.
            Seen::File { mut attr, mount } => {
                attr.bare = attr.qid.kind == p9::FileKind::Dir && !mount.remote && bare();
                Ok(attr)
            }
            Seen::Hidden(path) => Ok::<_, Errno>(Empty::attr_of(path)),
        };
        let ended = leases.ended();
        let mut attr = see()?;
        let mut known = true;
        if let Some(lease) = lease
            && attr.qid.kind != p9::FileKind::Dir
        {
            known = leases.link(self.client, dir, lease, attr.qid.path);
            let is_bare = known && attr.mode & libc::S_IFMT == libc::S_IFREG && bare();
            if known && leases.ended() != ended {
                attr = see()?;
            } else {
                attr.bare = is_bare;
            }
        }
        // Those that another client holds back have to be asked for.
        let known = known && !leases.in_the_way(self.client, attr.qid.path, LeaseKind::Read);
        let kind = attr.mode & libc::S_IFMT;
        Ok(Some(Found { cookie, name, qid: attr.qid, kind, attr: known.then_some(attr) }))
    }
}

/// Gives `each` what is in `part` from `at` on, and the cookie to go on from; breaks with it.
fn give(part: &[Found], at: usize, each: &mut DirSink<'_>) -> ControlFlow<(), u64> {
    let mut next = 0;
    for found in &part[at..] {
        let Found { cookie, qid, kind, .. } = *found;
        each(Entry { cookie, qid, kind, attr: found.attr.as_ref(), name: found.name.as_name() })?;
        next = cookie;
    }
    ControlFlow::Continue(next)
}

impl Dir for DiskDir {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        let mut next = cookie;
        if let Some((part, at)) = self.0.kept(cookie) {
            match give(&part.entries, at, each) {
                ControlFlow::Break(()) => return Reply::ok(()),
                ControlFlow::Continue(after) => next = after,
            }
        }
        Reply::later(async move {
            loop {
                let reading = self.0.clone();
                let part = blocking(move || reading.read(next)).await?;
                if part.entries.is_empty() {
                    return Ok(());
                }
                match give(&part.entries, 0, each) {
                    ControlFlow::Break(()) => return Ok(()),
                    ControlFlow::Continue(after) => next = after,
                }
            }
        })
    }
}
