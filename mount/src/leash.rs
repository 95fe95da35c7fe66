//! A lease on a directory, what of it is left, and what the kernel was told under it.
//!
//! Made as soon as a directory is opened, which is before it has been listed, and shared by the listing and whoever has
//! open what was fetched under it. It is broken by the task that reads from the server; the thread of [`crate::tell`]
//! then gives it back. Invariant: it is not given back, by a break or because nobody needs it any more, before the
//! kernel was told that what it was told under it may be old.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use p9::tree::{Lease, LeaseKind};
use p9::{Name, NameBuf};
use parking_lot::Mutex;

use crate::kept::File;
use crate::tell::Teller;

/// A lease on a directory.
pub(crate) struct Leash {
    lease: Lease,
    left: AtomicU8,
    teller: Teller,
    me: Weak<Self>,
    /// What the kernel calls the directory; 0 while it is not known to have asked about it.
    dir: AtomicU64,
    told: Mutex<Told>,
    /// Files that were fetched under it, by their place in the listing.
    fetched: Mutex<HashMap<usize, Weak<File>>>,
}

/// What the kernel was told, and when: files, by its number, and names.
#[derive(Default)]
struct Told {
    files: HashMap<u64, Instant>,
    names: HashMap<NameBuf, Instant>,
}

impl Told {
    fn is_empty(&self) -> bool {
        self.files.is_empty() && self.names.is_empty()
    }
}

/// The kernel counts from when it hears something, which may be a while after, and in ticks of up to 10 ms.
const HEARS: Duration = Duration::from_millis(100);

/// Whether the kernel may know yet what it was told at `when`, for `ttl`.
fn is_lately(when: &Instant, ttl: Duration) -> bool {
    when.elapsed() < ttl + HEARS
}

/// The later of two times.
fn later<K>(entry: Entry<'_, K, Instant>, when: Instant) {
    entry.and_modify(|there| *there = when.max(*there)).or_insert(when);
}

/// What the kernel was told lately, and may not know any more.
#[derive(Default)]
pub(crate) struct Old {
    /// What it calls the directory, if that is known.
    pub(crate) dir: Option<u64>,
    pub(crate) files: Vec<u64>,
    pub(crate) names: Vec<NameBuf>,
}

impl Leash {
    /// Breaks of `lease` are answered from now on, by `teller`.
    pub(crate) fn new(lease: Lease, teller: &Teller) -> Arc<Self> {
        let (left, dir) = (AtomicU8::new(lease.kind.to_wire()), AtomicU64::new(0));
        let (told, fetched) = (Mutex::default(), Mutex::default());
        let teller = teller.clone();
        let leash = Arc::new_cyclic(|me| Self { lease, left, teller, me: me.clone(), dir, told, fetched });
        // Not the leash itself, which owns whoever listens.
        let weak = Arc::downgrade(&leash);
        leash.lease.tell(Arc::new(move |keep: LeaseKind| {
            if let Some(leash) = weak.upgrade() {
                leash.left.fetch_min(keep.to_wire(), Ordering::SeqCst);
                leash.teller.dir_broken(leash.clone(), keep);
            }
        }));
        leash
    }

    /// The kernel calls the directory `id`.
    pub(crate) fn is_of(&self, id: u64) {
        self.dir.store(id, Ordering::SeqCst);
    }

    fn left(&self) -> LeaseKind {
        LeaseKind::from_wire(self.left.load(Ordering::SeqCst)).unwrap_or_default()
    }

    /// Whether this much may be kept.
    pub(crate) fn holds(&self, kind: LeaseKind) -> bool {
        self.left() >= kind && self.lease.holds()
    }

    /// Whether some of what it let be kept no longer may.
    pub(crate) fn is_broken(&self) -> bool {
        self.left() < self.lease.kind
    }

    /// The kernel is told the attributes of the directory itself.
    pub(crate) fn tells_own(&self) {
        self.note(None, self.dir.load(Ordering::SeqCst));
    }

    /// The kernel is told that `name` is the file that it calls `id`.
    pub(crate) fn tells(&self, name: Name<'_>, id: u64) {
        self.note(Some(name), id);
    }

    /// What it keeps for no time at all the kernel need not be told again.
    fn note(&self, name: Option<Name<'_>>, id: u64) {
        let ttl = self.teller.ttl();
        if ttl.is_zero() {
            return;
        }
        let (mut told, now) = (self.told.lock(), Instant::now());
        let begins = told.is_empty();
        told.files.insert(id, now);
        if let Some(name) = name {
            told.names.insert(name.into(), now);
        }
        drop(told);
        if begins {
            self.teller.forgets_in_time(self.me.clone());
        }
    }

    /// How many files and names the kernel was told of.
    pub(crate) fn told(&self) -> usize {
        let told = self.told.lock();
        told.files.len() + told.names.len()
    }

    /// Forgets what the kernel was told longer than `ttl` ago. Whether anything is left.
    pub(crate) fn forgets_old(&self, ttl: Duration) -> bool {
        let mut told = self.told.lock();
        told.files.retain(|_, when| is_lately(when, ttl));
        told.names.retain(|_, when| is_lately(when, ttl));
        if told.is_empty() {
            *told = Told::default();
        }
        !told.is_empty()
    }

    /// The kernel was told `what` by an answer that has gone out now. If there was a break meanwhile it came before
    /// that, and was told too early.
    pub(crate) fn has_told(self: &Arc<Self>, what: &[(NameBuf, u64)]) {
        if self.is_broken() {
            what.iter().for_each(|(name, id)| self.tells(name.as_name(), *id));
            self.teller.dir_broken(self.clone(), self.left());
        }
    }

    /// What the kernel was told under `other`, an older lease on the directory, is covered by this one from now on.
    /// One that is broken takes it back by itself.
    pub(crate) fn takes_from(&self, other: &Self) {
        if other.is_broken() {
            return;
        }
        let Told { files, names } = std::mem::take(&mut *other.told.lock());
        let begins = {
            let mut told = self.told.lock();
            let begins = told.is_empty();
            files.into_iter().for_each(|(id, when)| later(told.files.entry(id), when));
            names.into_iter().for_each(|(name, when)| later(told.names.entry(name), when));
            begins && !told.is_empty()
        };
        if begins {
            self.teller.forgets_in_time(self.me.clone());
        }
        // A break of either, meanwhile, may have told the kernel of less.
        if self.is_broken() || other.is_broken() {
            let left = self.left().min(other.left());
            self.left.fetch_min(left.to_wire(), Ordering::SeqCst);
            if let Some(me) = self.me.upgrade() {
                self.teller.dir_broken(me, left);
            }
        }
    }

    /// What the kernel was told is covered by another lease.
    pub(crate) fn forgets(&self) {
        *self.told.lock() = Told::default();
    }

    /// What the kernel was told within `ttl` and may not know any more: files, and names unless `keep` lets it.
    pub(crate) fn told_lately(&self, ttl: Duration, keep: LeaseKind) -> Old {
        let mut told = self.told.lock();
        let lately = |when: &Instant| is_lately(when, ttl);
        let files = std::mem::take(&mut told.files).into_iter().filter(|(_, when)| lately(when));
        let files = files.map(|(id, _)| id).collect();
        let names = if keep < LeaseKind::Attr { std::mem::take(&mut told.names) } else { HashMap::new() };
        let names = names.into_iter().filter(|(_, when)| lately(when)).map(|(name, _)| name).collect();
        let dir = Some(self.dir.load(Ordering::SeqCst)).filter(|dir| *dir != 0);
        Old { dir, files, names }
    }

    /// `file`, the entry at `entry` in the listing, was fetched under the lease.
    pub(crate) fn covers(&self, entry: usize, file: &Arc<File>) {
        self.fetched.lock().insert(entry, Arc::downgrade(file));
    }

    /// What was fetched as the entry at `entry` in the listing.
    pub(crate) fn fetched(&self, entry: usize) -> Option<Arc<File>> {
        self.fetched.lock().get(&entry).and_then(Weak::upgrade)
    }

    /// What was fetched under the lease, and is not good any more.
    pub(crate) fn uncovered(&self) -> Vec<Arc<File>> {
        let fetched = std::mem::take(&mut *self.fetched.lock());
        fetched.values().filter_map(Weak::upgrade).collect()
    }

    /// Gives back all but `keep`.
    pub(crate) fn let_go(&self, keep: LeaseKind) {
        self.lease.keep(keep);
    }
}

impl Drop for Leash {
    fn drop(&mut self) {
        let old = self.told_lately(self.teller.ttl(), LeaseKind::None);
        if !old.files.is_empty() || !old.names.is_empty() {
            self.teller.dir_gone(self.lease.clone(), old);
        }
    }
}
