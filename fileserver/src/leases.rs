//! One lease authority: who may keep what of which inode, and who has to wait until it was given back.
//!
//! Shared by all disk trees of a node, keyed by the qid path; a client is the [`p9::Who::client`] that a tree was
//! attached for. An operation that would make what others keep wrong says so first (`Leases::claim`), waits until they
//! have given it back (`Claim::settle`), then acts, then drops its claim. While it waits it holds no lock, no thread
//! and no descriptor, and dropping the wait ends it. A holder has 5 s, one that holds changes back 30 s; then it has
//! lost the lease, by its own clock too, and what it held back is refused with `ESTALE`.
//!
//! While nothing is leased an operation costs one counter (`Leases::quick`). Invariant: a lease is counted in `live`
//! before its grant looks for quick operations, and waits for those that are under way.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::join_all;
use p9::tree::LeaseKind;
use p9::{Errno, Stream};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

mod claim;
mod events;
mod grant;
mod grip;
mod record;
mod sys;
mod table;
mod told;
mod watch;

use grip::KernelLease;
use table::{Breaks, Calls, Entry, Times, Whose};
use watch::{Target, Watch};

pub(crate) use claim::{Claim, Writer};
pub(crate) use events::take;
pub(crate) use grant::Place;
pub(crate) use watch::{fine_times, place_of};

/// How a lease authority is run.
#[derive(Clone, Debug)]
pub struct LeaseOptions {
    /// How long a holder may take to give a lease back: at least as long as it may use it unheard, which is
    /// [`p9::client::LEASE`] unless it has a session that says otherwise.
    pub release: Duration,
    /// The same for one that holds changes back.
    pub write_back: Duration,
    /// How many inodes may be leased or watched at once. Each may cost a descriptor, and one more while contents are
    /// leased.
    pub most: usize,
    /// By what changes of local processes are noticed.
    pub source: Source,
}

impl Default for LeaseOptions {
    /// 5 s, 30 s, a sixteenth of the descriptors that this process may have, at most 4096.
    fn default() -> Self {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(8192);
        let most = (limit / 16).clamp(16, 4096) as usize;
        let (release, write_back) = (p9::client::LEASE, Duration::from_secs(30));
        Self { release, write_back, most, source: Source::Best }
    }
}

/// By what changes of local processes are noticed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// fanotify(7) where it is allowed and the file system can, else inotify(7).
    Best,
    /// inotify(7): it does not say who changed something, so that own changes break own leases, too.
    Inotify,
}

/// A lease authority.
pub struct Leases {
    options: LeaseOptions,
    shards: Box<[Mutex<Shard>]>,
    /// Leases that are held, and grants under way.
    live: AtomicUsize,
    /// Operations under way that found `live` to be 0.
    quick: AtomicUsize,
    /// Told when the last quick operation ends while there are grants.
    drained: Notify,
    /// Operations that have ended: see `told`.
    ended: AtomicU64,
    /// Entries of directories that are covered by leases on those.
    linked: AtomicUsize,
    next: AtomicU64,
    /// Clients that did not answer a break in time, and until when they are granted nothing.
    silent: Mutex<HashMap<u64, Instant>>,
    /// Held by whoever takes a kernel lease or a watch: on the blocking pool, and never while it waits for a peer.
    gripping: Mutex<()>,
    watch: Mutex<Option<Arc<Watch>>>,
}

#[derive(Default)]
struct Shard {
    entries: HashMap<u64, Entry>,
    breaks: HashMap<u64, Breaks>,
    /// By inode, the directories whose leases cover its attributes, and those leases.
    told: HashMap<u64, Vec<(u64, u64)>>,
}

/// Inodes are spread over so many locks.
const SHARDS: usize = 64;
/// How long after an operation of ours an event of this process may be due to it.
const GRACE: Duration = Duration::from_secs(2);
/// How long a client gets no lease that did not answer a break in time.
const SILENT: Duration = Duration::from_secs(60);
/// Inodes of a shard whose breaks are remembered before those that say nothing any more are forgotten.
const REMEMBERED: usize = 256;

impl Leases {
    /// An authority of its own.
    pub fn new(options: LeaseOptions) -> Arc<Self> {
        Arc::new(Self {
            options,
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            live: AtomicUsize::new(0),
            quick: AtomicUsize::new(0),
            drained: Notify::new(),
            ended: AtomicU64::new(0),
            linked: AtomicUsize::new(0),
            next: AtomicU64::new(1),
            silent: Mutex::default(),
            gripping: Mutex::new(()),
            watch: Mutex::default(),
        })
    }

    /// The one that all disk trees of this process share.
    pub fn of_process() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Leases>> = OnceLock::new();
        SHARED.get_or_init(|| Self::new(LeaseOptions::default())).clone()
    }

    /// How many leases are held or being granted.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    /// Returns once no client holds changes back: those that do are asked for them.
    pub async fn written_back(self: &Arc<Self>) {
        let holds_back = |shard: &Mutex<Shard>| {
            let held = |(key, entry): (&u64, &Entry)| (entry.most() == LeaseKind::Write).then_some(*key);
            shard.lock().entries.iter().filter_map(held).collect::<Vec<_>>()
        };
        let held: Vec<u64> = self.shards.iter().flat_map(holds_back).collect();
        // Nobody is this client.
        let all = Whose::Others(u64::MAX);
        join_all(held.into_iter().map(|key| self.settle(key, all, LeaseKind::Read))).await;
    }

    /// How long a holder has to give a lease back: what a session is to say that a lease is good for.
    pub fn release(&self) -> Duration {
        self.options.release
    }

    /// Whether nothing is leased: who only looks need not ask any further.
    pub(crate) fn is_quiet(&self) -> bool {
        self.live.load(Ordering::SeqCst) == 0
    }

    /// Whether clients other than `client` hold more than `keep` of the inode `key`.
    pub(crate) fn in_the_way(&self, client: u64, key: u64, keep: LeaseKind) -> bool {
        if self.is_quiet() {
            return false;
        }
        let holds = |key, keep| {
            let shard = self.shard(key).lock();
            shard.entries.get(&key).is_some_and(|entry| entry.in_the_way(Whose::Others(client), keep))
        };
        holds(key, keep)
            || keep == LeaseKind::None && self.covering(key).into_iter().any(|dir| holds(dir, LeaseKind::Attr))
    }

    /// Whether the inode `key` cannot be opened because it is kept open by one writer alone.
    pub(crate) fn is_sole(&self, key: u64) -> bool {
        if self.is_quiet() {
            return false;
        }
        let shard = self.shard(key).lock();
        shard.entries.get(&key).and_then(|entry| entry.kernel.as_ref()).is_some_and(KernelLease::is_sole)
    }

    /// A stream of lines: what happens to the entries of the directory that `place` stands for.
    pub(crate) fn events(self: &Arc<Self>, place: Arc<OwnedFd>) -> Result<Arc<dyn Stream>, Errno> {
        let lines = Arc::new(events::Lines::default());
        let mark = self.watch()?.add(place, Target::Lines(lines.clone()))?;
        Ok(Arc::new(events::Events { lines, _mark: mark }))
    }

    /// What watches local processes, started when it is first needed.
    fn watch(self: &Arc<Self>) -> Result<Arc<Watch>, Errno> {
        let mut watch = self.watch.lock();
        if let Some(watch) = &*watch {
            return Ok(watch.clone());
        }
        // What fails now, for want of descriptors perhaps, may not fail the next time.
        Ok(watch.insert(Watch::start(Arc::downgrade(self), self.options.source, self.options.most)?).clone())
    }

    fn id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn times(&self) -> Times {
        Times { release: self.options.release, write_back: self.options.write_back }
    }

    fn shard(&self, key: u64) -> &Mutex<Shard> {
        &self.shards[key as usize % SHARDS]
    }

    /// Changes the entry of `key`, which is made for it if need be and goes again once it is empty.
    fn with<T>(&self, key: u64, change: impl FnOnce(&mut Entry) -> T) -> T {
        let mut shard = self.shard(key).lock();
        let entry = shard.entries.entry(key).or_default();
        let before = entry.count();
        let answer = change(entry);
        let after = entry.count();
        // Dropped outside the lock: each is a system call, or another's code.
        let kernel = if entry.most() < LeaseKind::Read { entry.kernel.take() } else { None };
        let watch = if entry.is_held() { None } else { entry.watch.take() };
        let untold = std::mem::take(&mut entry.untold);
        let gone = std::mem::take(&mut entry.gone);
        if entry.is_empty() {
            shard.entries.remove(&key);
        }
        drop(shard);
        untold.into_iter().for_each(|(lease, keys)| self.unlink(key, lease, keys));
        match after.checked_sub(before) {
            Some(more) => self.live.fetch_add(more, Ordering::SeqCst),
            None => self.live.fetch_sub(before - after, Ordering::SeqCst),
        };
        drop((kernel, watch, gone));
        answer
    }

    /// Asks the leases of `whose` on `key` to go down to `keep`, and those that cover it to cover it no more.
    fn ask(&self, key: u64, whose: Whose, keep: LeaseKind) {
        if self.is_quiet() {
            return;
        }
        self.ask_holders(key, whose, keep);
        if keep == LeaseKind::None {
            self.covering(key).into_iter().for_each(|dir| self.ask_holders(dir, whose, LeaseKind::Attr));
        }
    }

    fn ask_holders(&self, key: u64, whose: Whose, keep: LeaseKind) {
        let (now, times) = (Instant::now(), self.times());
        let calls = {
            let mut shard = self.shard(key).lock();
            let calls = shard.entries.get_mut(&key).map_or_else(Calls::default, |e| e.ask(whose, keep, now, times));
            if !calls.is_empty() {
                shard.breaks.entry(key).or_default().add(now);
                if shard.breaks.len() > REMEMBERED {
                    shard.breaks.retain(|_, breaks| !breaks.is_over(now));
                }
            }
            calls
        };
        calls.call();
    }

    /// Whether the leases on `key` were not broken so often that one on changes, or on a directory's entries, is not
    /// worth it.
    fn calm(&self, key: u64) -> bool {
        self.shard(key).lock().breaks.get(&key).is_none_or(|breaks| breaks.allow(Instant::now()))
    }

    /// Waits until the leases of `whose` on `key` have gone down to `keep`, or were made to, and none covers it.
    async fn settle(&self, key: u64, whose: Whose, keep: LeaseKind) {
        self.settle_holders(key, whose, keep).await;
        if keep == LeaseKind::None {
            for dir in self.covering(key) {
                self.settle_holders(dir, whose, LeaseKind::Attr).await;
            }
        }
    }

    async fn settle_holders(&self, key: u64, whose: Whose, keep: LeaseKind) {
        loop {
            let Some(less) = self.shard(key).lock().entries.get(&key).map(|entry| entry.less.clone()) else { return };
            let mut less = pin!(less.notified());
            // Registered before the look, so that nothing is missed.
            less.as_mut().enable();
            self.ask_holders(key, whose, keep);
            let until = {
                let shard = self.shard(key).lock();
                shard.entries.get(&key).and_then(|entry| entry.wait_until(whose, keep))
            };
            let Some(until) = until else { return };
            if timeout_at(until, less).await.is_err() {
                tracing::debug!("a lease was not given back in time");
                self.force(key, whose, keep);
            }
        }
    }

    /// Takes the leases of `whose` on `key` beyond `keep` whose time is over. Whose they were keeps nobody else waiting
    /// for a while.
    fn force(&self, key: u64, whose: Whose, keep: LeaseKind) {
        let now = Instant::now();
        let forced = self.with(key, |entry| entry.force(whose, keep, now));
        if !forced.is_empty() {
            let mut silent = self.silent.lock();
            silent.retain(|_, until| now < *until);
            silent.extend(forced.into_iter().map(|client| (client, now + SILENT)));
        }
    }

    /// Whether `client` answers breaks.
    fn answers(&self, client: u64) -> bool {
        self.silent.lock().get(&client).is_none_or(|until| Instant::now() >= *until)
    }

    /// A process of this machine, or this one (`own`), changed the inode `key`.
    fn changed(&self, key: u64, own: bool) {
        let ours = own && {
            let shard = self.shard(key).lock();
            shard.entries.get(&key).is_some_and(|entry| entry.is_ours(Instant::now(), GRACE))
        };
        if !ours {
            self.ask(key, Whose::All, LeaseKind::None);
        }
    }

    /// A process of this machine, or this one (`own`), changed an entry of the directory `key`, not its name. What this
    /// one does was asked for by a client, and broke what it had to break.
    fn entry_changed(&self, key: u64, own: bool) {
        if !own {
            self.ask_holders(key, Whose::All, LeaseKind::Attr);
        }
    }

    /// A local process opens the inode `key` and waits until its contents are leased no more; gives by when that is.
    fn kernel_broken(&self, key: u64) -> Option<std::time::Instant> {
        self.with(key, |entry| entry.kernel.as_ref().map(KernelLease::broken))?;
        self.ask(key, Whose::All, LeaseKind::Attr);
        let until = self.with(key, |entry| entry.wait_until(Whose::All, LeaseKind::Attr))?;
        Some(std::time::Instant::now() + until.saturating_duration_since(Instant::now()))
    }

    /// The local process has waited for long enough.
    fn kernel_expired(&self, key: u64) {
        self.force(key, Whose::All, LeaseKind::Attr);
    }

    /// Breaks all leases.
    fn break_all(&self) {
        for shard in &self.shards {
            let keys: Vec<u64> = shard.lock().entries.keys().copied().collect();
            keys.into_iter().for_each(|key| self.ask(key, Whose::All, LeaseKind::None));
        }
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("live", &self.live()).finish_non_exhaustive()
    }
}

impl Drop for Leases {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.get_mut() {
            watch.end();
        }
    }
}
