//! Entries that were told with their attributes under a lease of their directory.
//!
//! A lease on the contents of a directory covers the attributes of what is listed. So whoever changes such an entry, by
//! whatever name, has the lease of the directory broken down to the names. Linked by listings, on the blocking pool,
//! and looked up by every operation that has to make others give something back. Invariant: an entry is linked before
//! it is looked at for the last time, and a claim is recorded before its links are looked up; so that either the claim
//! finds the link, or the listing finds the claim, or it looked after the change.

use std::sync::atomic::Ordering;

use p9::tree::LeaseKind;

use super::Leases;

/// Entries that may be linked in all; those beyond it are not covered.
const MOST: usize = 256 << 10;

impl Leases {
    /// The latest lease that `client` holds on the contents of the directory `dir`.
    pub(crate) fn covered(&self, client: u64, dir: u64) -> Option<u64> {
        if self.is_quiet() {
            return None;
        }
        self.shard(dir).lock().entries.get(&dir).and_then(|entry| entry.covering(client))
    }

    /// How many operations have ended: those that were over when this was less were seen by whoever looks now.
    pub(crate) fn ended(&self) -> u64 {
        self.ended.load(Ordering::SeqCst)
    }

    /// Links the inode `key`, an entry of the directory `dir`, to the lease `lease` of `client`. Whether its attributes
    /// are covered from now on: not while another changes it.
    pub(crate) fn link(&self, client: u64, dir: u64, lease: u64, key: u64) -> bool {
        {
            let mut shard = self.shard(key).lock();
            if shard.entries.get(&key).is_some_and(|entry| entry.limit(client) < LeaseKind::Attr) {
                return false;
            }
            let by = shard.told.entry(key).or_default();
            if by.contains(&(dir, lease)) {
                return true;
            }
            if self.linked.fetch_add(1, Ordering::SeqCst) >= MOST {
                self.linked.fetch_sub(1, Ordering::SeqCst);
                if by.is_empty() {
                    shard.told.remove(&key);
                }
                return false;
            }
            by.push((dir, lease));
        }
        // The lease may have gone meanwhile. No lock is taken under another.
        let held = {
            let mut shard = self.shard(dir).lock();
            shard.entries.get_mut(&dir).is_some_and(|entry| entry.covers_also(lease, key))
        };
        if !held {
            self.unlink(dir, lease, [key]);
        }
        held
    }

    /// The entries `keys` of `dir` are covered by `lease` no more.
    pub(super) fn unlink(&self, dir: u64, lease: u64, keys: impl IntoIterator<Item = u64>) {
        for key in keys {
            let mut shard = self.shard(key).lock();
            let Some(by) = shard.told.get_mut(&key) else { continue };
            let before = by.len();
            by.retain(|there| *there != (dir, lease));
            self.linked.fetch_sub(before - by.len(), Ordering::SeqCst);
            if by.is_empty() {
                shard.told.remove(&key);
            }
        }
    }

    /// The directories whose leases cover the attributes of the inode `key`.
    pub(super) fn covering(&self, key: u64) -> Vec<u64> {
        if self.linked.load(Ordering::SeqCst) == 0 {
            return Vec::new();
        }
        let shard = self.shard(key).lock();
        let mut dirs: Vec<u64> = shard.told.get(&key).into_iter().flatten().map(|(dir, _)| *dir).collect();
        dirs.dedup();
        dirs
    }
}
