//! Entries that were told with their attributes under a lease of their directory.
//!
//! A lease on the contents of a directory covers the attributes of what is listed. So whoever changes such an entry, by
//! whatever name, has the lease of the directory broken down to the names. Linked by listings, on the blocking pool, and
//! looked up by every operation that has to make others give something back. Invariant: an entry is linked before it
//! is looked at for the last time, and a claim is recorded before its links are looked up; so that either the claim
//! finds the link, or the listing finds the claim, or it looked after the change.

use std::sync::atomic::Ordering;

use p9::tree::LeaseKind;

use super::{Leases, SHARDS};

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

    /// Links the inode `key`, an entry of the directory `dir`, for `client`. Whether its attributes are covered from now
    /// on: not while another changes it.
    pub(crate) fn link(&self, client: u64, dir: u64, key: u64) -> bool {
        {
            let mut shard = self.shard(key).lock();
            if shard.entries.get(&key).is_some_and(|entry| entry.limit(client) < LeaseKind::Attr) {
                return false;
            }
            let dirs = shard.told.entry(key).or_default();
            if dirs.contains(&dir) {
                return true;
            }
            if self.linked.fetch_add(1, Ordering::SeqCst) >= MOST {
                self.linked.fetch_sub(1, Ordering::SeqCst);
                if dirs.is_empty() {
                    shard.told.remove(&key);
                }
                return false;
            }
            dirs.push(dir);
        }
        // Its lease may have gone meanwhile.
        let held = {
            let mut shard = self.shard(dir).lock();
            let entry = shard.entries.get_mut(&dir).filter(|entry| entry.most() >= LeaseKind::Read);
            entry.map(|entry| entry.told.push(key)).is_some()
        };
        if !held {
            self.unlink(dir, [key]);
        }
        held
    }

    /// The entries `keys` of `dir` are covered no more.
    pub(super) fn unlink(&self, dir: u64, keys: impl IntoIterator<Item = u64>) {
        for key in keys {
            let mut shard = self.shard(key).lock();
            let Some(dirs) = shard.told.get_mut(&key) else { continue };
            let before = dirs.len();
            dirs.retain(|there| *there != dir);
            self.linked.fetch_sub(before - dirs.len(), Ordering::SeqCst);
            if dirs.is_empty() {
                shard.told.remove(&key);
            }
        }
    }

    /// The directories whose leases cover the attributes of the inode `key`.
    pub(super) fn covering(&self, key: u64) -> Vec<u64> {
        if self.linked.load(Ordering::SeqCst) == 0 {
            return Vec::new();
        }
        self.shard(key).lock().told.get(&key).cloned().unwrap_or_default()
    }
}

const _: () = assert!(SHARDS > 1, "one lock is never taken under another");
