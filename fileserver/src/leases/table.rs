//! Who holds what on one inode, and who stands in the way of whom: the rules alone, without I/O and without waiting.
//!
//! Changed under the lock of one shard of [`super::Leases`], by operations, grants and the thread that watches the
//! kernel. A *claim* is an operation under way or an open writer, and says what clients other than its own may keep; a
//! *held* lease is what a client was granted. Invariant: no lease of another client is granted past what a claim lets
//! it keep, so that a claim which has seen the last such lease go may act.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use p9::tree::{LeaseKind, OnBreak};
use tokio::sync::Notify;
use tokio::time::{Duration, Instant};

use super::grip::{KernelLease, Watched};

/// One inode on which something is held or claimed.
#[derive(Default)]
pub(super) struct Entry {
    held: Vec<Held>,
    claims: Vec<Claim>,
    /// Told whenever less is held.
    pub(super) less: Arc<Notify>,
    /// When an operation of ours last changed it, or may have.
    changed: Option<Instant>,
    /// What keeps local writers out while contents are held.
    pub(super) kernel: Option<KernelLease>,
    /// What tells of changes by local processes.
    pub(super) watch: Option<Watched>,
    /// Leases on a directory's contents that are no more, and the entries that each covered, to be unlinked once no
    /// lock is held.
    pub(super) untold: Vec<(u64, Vec<u64>)>,
    /// Holders that hold nothing any more, to be dropped once no lock is held.
    pub(super) gone: Vec<OnBreak>,
}

/// A lease that a client holds.
struct Held {
    id: u64,
    client: u64,
    kind: LeaseKind,
    on_break: OnBreak,
    /// What it was asked to go down to, and until when it may take.
    asked: Option<(LeaseKind, Instant)>,
    /// Of a directory, the entries that it covers.
    told: Vec<u64>,
}

impl Held {
    /// What may still be kept under it.
    fn left(&self) -> LeaseKind {
        self.asked.map_or(self.kind, |(asked, _)| asked.min(self.kind))
    }
}

/// What stands in the way of leases of others.
struct Claim {
    id: u64,
    client: u64,
    /// What others may keep.
    keep: LeaseKind,
    /// An open writer, and whether it was shut out.
    writer: Option<Arc<AtomicBool>>,
}

/// Holders that are to be told, once no lock is held any more.
#[must_use = "the holders are not told yet"]
#[derive(Default)]
pub(super) struct Calls(Vec<(OnBreak, LeaseKind)>);

impl Calls {
    /// Tells them.
    pub(super) fn call(self) {
        for (on_break, keep) in self.0 {
            on_break(keep);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How long a holder may take to answer a break.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) release: Duration,
    pub(super) write_back: Duration,
}

/// Whose leases a break is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Whose {
    /// Those of all clients but this.
    Others(u64),
    /// Those of this client.
    Own(u64),
    /// All: a local process is about to change something, or has.
    All,
}

impl Whose {
    fn is(self, client: u64) -> bool {
        match self {
            Self::Others(own) => client != own,
            Self::Own(own) => client == own,
            Self::All => true,
        }
    }
}

impl Entry {
    /// Whether nothing is held or claimed: the entry may go.
    pub(super) fn is_empty(&self) -> bool {
        self.held.is_empty() && self.claims.is_empty()
    }

    /// How many leases are held.
    pub(super) fn count(&self) -> usize {
        self.held.len()
    }

    /// Whether anything is held.
    pub(super) fn is_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// The most that any client holds, or is to give back.
    pub(super) fn most(&self) -> LeaseKind {
        self.held.iter().map(|held| held.kind).max().unwrap_or_default()
    }

    /// The latest lease by which `client` holds the contents, and may keep them.
    pub(super) fn covering(&self, client: u64) -> Option<u64> {
        let covers = |held: &&Held| held.client == client && held.left() >= LeaseKind::Read;
        self.held.iter().filter(covers).map(|held| held.id).max()
    }

    /// The most that `client` may be granted now.
    pub(super) fn limit(&self, client: u64) -> LeaseKind {
        let claims = self.claims.iter().filter(|claim| claim.client != client).map(|claim| claim.keep);
        let held = self.held.iter().filter(|held| held.client != client).map(|held| match held.kind {
            LeaseKind::Write => LeaseKind::None,
            _ => LeaseKind::Read,
        });
        claims.chain(held).min().unwrap_or(LeaseKind::Write)
    }

    /// Records a lease.
    pub(super) fn hold(&mut self, id: u64, client: u64, kind: LeaseKind, on_break: OnBreak) {
        self.held.push(Held { id, client, kind, on_break, asked: None, told: Vec::new() });
    }

    /// The lease `id` goes down to `kind`; gives what is left of it.
    pub(super) fn keep(&mut self, id: u64, kind: LeaseKind) -> LeaseKind {
        let Some(at) = self.held.iter().position(|held| held.id == id) else { return LeaseKind::None };
        let held = &mut self.held[at];
        held.kind = held.kind.min(kind);
        if held.asked.is_some_and(|(asked, _)| held.kind <= asked) {
            held.asked = None;
        }
        let left = held.kind;
        if left < LeaseKind::Read && !held.told.is_empty() {
            self.untold.push((id, std::mem::take(&mut held.told)));
        }
        if left == LeaseKind::None {
            let gone = self.held.swap_remove(at);
            self.gone.push(gone.on_break);
        }
        self.less.notify_waiters();
        left
    }

    /// What the lease `id` may still be used for: what it is, unless it was asked to go down.
    pub(super) fn left(&self, id: u64) -> LeaseKind {
        self.held.iter().find(|held| held.id == id).map_or(LeaseKind::None, Held::left)
    }

    /// The lease `id` covers the entry `key`, too, if it still covers any; gives whether it does.
    pub(super) fn covers_also(&mut self, id: u64, key: u64) -> bool {
        let held = self.held.iter_mut().find(|held| held.id == id && held.kind >= LeaseKind::Read);
        held.map(|held| held.told.push(key)).is_some()
    }

    /// Records an operation or a writer.
    pub(super) fn claim(&mut self, id: u64, client: u64, keep: LeaseKind, writer: Option<Arc<AtomicBool>>) {
        self.claims.push(Claim { id, client, keep, writer });
    }

    /// The operation or writer `id` is done.
    pub(super) fn unclaim(&mut self, id: u64, now: Instant) {
        if let Some(at) = self.claims.iter().position(|claim| claim.id == id) {
            let claim = self.claims.swap_remove(at);
            if claim.keep == LeaseKind::None {
                self.changed = Some(now);
            }
        }
    }

    /// Whether `client` has it open for writing.
    pub(super) fn is_writer(&self, client: u64) -> bool {
        self.claims.iter().any(|claim| claim.client == client && claim.writer.is_some())
    }

    /// Whether an operation of ours is changing it, or did so within `grace`.
    pub(super) fn is_ours(&self, now: Instant, grace: Duration) -> bool {
        self.claims.iter().any(|claim| claim.keep == LeaseKind::None)
            || self.changed.is_some_and(|changed| now < changed + grace)
    }

    /// Whether leases of `whose` go beyond `keep`.
    pub(super) fn in_the_way(&self, whose: Whose, keep: LeaseKind) -> bool {
        self.held.iter().any(|held| whose.is(held.client) && held.kind > keep)
    }

    /// By when the leases of `whose` will have gone down to `keep`, or will be made to; `None` if none is beyond it.
    pub(super) fn wait_until(&self, whose: Whose, keep: LeaseKind) -> Option<Instant> {
        let beyond = self.held.iter().filter(|held| whose.is(held.client) && held.kind > keep);
        beyond.filter_map(|held| held.asked.map(|(_, until)| until)).max()
    }

    /// Asks the leases of `whose` to go down to `keep`. A holder has its time from when it was first asked.
    pub(super) fn ask(&mut self, whose: Whose, keep: LeaseKind, now: Instant, times: Times) -> Calls {
        let mut calls = Calls::default();
        for held in &mut self.held {
            if !whose.is(held.client) || held.kind <= keep || held.asked.is_some_and(|(asked, _)| asked <= keep) {
                continue;
            }
            let time = if held.kind == LeaseKind::Write { times.write_back } else { times.release };
            let until = held.asked.map_or(now + time, |(_, until)| until);
            held.asked = Some((keep, until));
            calls.0.push((held.on_break.clone(), keep));
        }
        calls
    }

    /// Takes from the leases of `whose` beyond `keep` what they were asked for and whose time is over; gives whose they
    /// were. Whoever held changes back is shut out: what it still writes would be older than what others write now.
    pub(super) fn force(&mut self, whose: Whose, keep: LeaseKind, now: Instant) -> Vec<u64> {
        let (mut forced, mut shut_out) = (Vec::new(), Vec::new());
        for held in &mut self.held {
            let Some((asked, until)) = held.asked else { continue };
            if !whose.is(held.client) || held.kind <= keep || now < until {
                continue;
            }
            forced.push(held.client);
            if held.kind == LeaseKind::Write {
                shut_out.push(held.client);
            }
            (held.kind, held.asked) = (asked, None);
            if held.kind < LeaseKind::Read && !held.told.is_empty() {
                self.untold.push((held.id, std::mem::take(&mut held.told)));
            }
        }
        let gone = self.held.extract_if(.., |held| held.kind == LeaseKind::None);
        self.gone.extend(gone.map(|held| held.on_break));
        for claim in self.claims.iter().filter(|claim| shut_out.contains(&claim.client)) {
            if let Some(writer) = &claim.writer {
                writer.store(true, Ordering::SeqCst);
            }
        }
        self.less.notify_waiters();
        forced
    }
}

/// How often the leases of one inode were broken lately. An inode that goes to and fro gets no write-back lease.
#[derive(Default)]
pub(super) struct Breaks {
    last: VecDeque<Instant>,
    calm: Option<Instant>,
}

impl Breaks {
    /// So many breaks ...
    const COUNT: usize = 3;
    /// ... in this time ...
    const WITHIN: Duration = Duration::from_secs(10);
    /// ... and there is no write-back lease for so long.
    const CALM: Duration = Duration::from_secs(60);

    /// One more.
    pub(super) fn add(&mut self, now: Instant) {
        self.last.push_back(now);
        if self.last.len() > Self::COUNT {
            self.last.pop_front();
        }
        if self.last.len() == Self::COUNT && self.last.front().is_some_and(|first| now <= *first + Self::WITHIN) {
            self.calm = Some(now + Self::CALM);
        }
    }

    /// Whether there may be a write-back lease.
    pub(super) fn allow(&self, now: Instant) -> bool {
        self.calm.is_none_or(|calm| now >= calm)
    }

    /// Whether it says nothing any more.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.allow(now) && self.last.back().is_none_or(|last| now > *last + Self::WITHIN)
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    const TIMES: Times = Times { release: Duration::from_secs(5), write_back: Duration::from_secs(30) };

    type Told = Arc<Mutex<Vec<(u64, LeaseKind)>>>;

    /// An entry with these leases, and who is told what.
    fn entry(held: &[(u64, LeaseKind)]) -> (Entry, Told) {
        let (mut entry, told) = (Entry::default(), Told::default());
        for (id, (client, kind)) in held.iter().enumerate() {
            let (told, client) = (told.clone(), *client);
            entry.hold(id as u64, client, *kind, Arc::new(move |keep| told.lock().push((client, keep))));
        }
        (entry, told)
    }

    #[test]
    fn own_operations_break_no_own_leases() {
        let (mut entry, told) = entry(&[(1, LeaseKind::Read), (2, LeaseKind::Attr)]);
        entry.ask(Whose::Others(1), LeaseKind::None, Instant::now(), TIMES).call();
        assert_eq!(*told.lock(), [(2, LeaseKind::None)]);
        assert!(entry.in_the_way(Whose::Others(1), LeaseKind::None));
        assert_eq!(entry.keep(1, LeaseKind::None), LeaseKind::None);
        assert!(!entry.in_the_way(Whose::Others(1), LeaseKind::None));
        assert_eq!(entry.left(0), LeaseKind::Read);
    }

    #[test]
    fn a_claim_limits_what_others_are_granted() {
        let mut entry = Entry::default();
        assert_eq!(entry.limit(1), LeaseKind::Write);
        entry.claim(7, 1, LeaseKind::None, None);
        assert_eq!((entry.limit(1), entry.limit(2)), (LeaseKind::Write, LeaseKind::None));
        entry.unclaim(7, Instant::now());
        entry.hold(8, 1, LeaseKind::Read, Arc::new(|_| {}));
        assert_eq!((entry.limit(1), entry.limit(2)), (LeaseKind::Write, LeaseKind::Read));
        entry.hold(9, 1, LeaseKind::Write, Arc::new(|_| {}));
        assert_eq!(entry.limit(2), LeaseKind::None);
    }

    #[test]
    fn a_holder_is_told_again_only_when_less_is_left_to_it_and_has_the_time_that_it_had() {
        let (mut entry, told) = entry(&[(1, LeaseKind::Write)]);
        let now = Instant::now();
        entry.ask(Whose::Others(2), LeaseKind::Attr, now, TIMES).call();
        entry.ask(Whose::Others(3), LeaseKind::Read, now, TIMES).call();
        entry.ask(Whose::Others(2), LeaseKind::None, now + TIMES.release, TIMES).call();
        assert_eq!(*told.lock(), [(1, LeaseKind::Attr), (1, LeaseKind::None)]);
        assert_eq!(entry.wait_until(Whose::All, LeaseKind::None), Some(now + TIMES.write_back));
    }

    #[test]
    fn who_does_not_answer_loses_the_lease_when_its_time_is_over_and_its_writers_are_shut_out() {
        let (mut entry, _) = entry(&[(1, LeaseKind::Write)]);
        let (now, own, other) = (Instant::now(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        entry.claim(10, 1, LeaseKind::None, Some(own.clone()));
        entry.claim(11, 2, LeaseKind::None, Some(other.clone()));
        entry.ask(Whose::Others(2), LeaseKind::None, now, TIMES).call();
        entry.force(Whose::Others(2), LeaseKind::None, now + TIMES.write_back - Duration::from_millis(1));
        assert!(entry.is_held() && !own.load(Ordering::SeqCst));
        entry.force(Whose::Others(2), LeaseKind::None, now + TIMES.write_back);
        assert!(!entry.is_held() && own.load(Ordering::SeqCst) && !other.load(Ordering::SeqCst));
    }

    #[test]
    fn three_breaks_in_ten_seconds_and_there_is_no_write_back_lease_for_a_minute() {
        let (mut breaks, start) = (Breaks::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for seconds in [0, 4, 11] {
            breaks.add(at(seconds));
            assert!(breaks.allow(at(seconds)), "not three of them in ten seconds");
        }
        breaks.add(at(14));
        assert!(!breaks.allow(at(14)) && !breaks.allow(at(73)));
        assert!(breaks.allow(at(74)) && breaks.is_over(at(74)));
    }
}
