//! Names that are about to be looked up, asked about before the kernel does.
//!
//! A program that has listed a directory often opens its files one after the other, as they were listed or in the order
//! of their names: `cat *`, `grep -r`, `tar`. Each name is a question that waits for its answer. From the third in order
//! on, the next ones are asked about together, in a task of their own, and the lookup that comes finds its answer there.
//! Used by lookups and listings, in the request's task. Invariant: no answer is given that is older than the kernel may
//! keep one, or than a change through this mount.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{Shared, join_all};
use p9::{Attr, Name, NameBuf, NodeRef, Walk, Want};
use parking_lot::Mutex;
use quick_cache::sync::Cache;
use tokio::runtime::Handle as Runtime;
use tokio::task::AbortHandle;

/// Directories whose listings are remembered.
const DIRECTORIES: usize = 32;
/// The most names that are remembered of one; a directory with more is not.
pub(crate) const NAMES: usize = 20_000;
/// Names that are asked about together.
const BATCH: usize = 32;
/// Lookups in order before anything is foreseen.
const RUN: u32 = 3;
/// Names that a lookup in order may leave out: the kernel knows some already.
const STEP: usize = 8;

/// What one mount foresees.
pub(crate) struct Foresight {
    dirs: Cache<u64, Arc<Listed>>,
    changes: AtomicU64,
    ttl: Duration,
    runtime: Runtime,
}

/// A directory that was listed.
struct Listed {
    /// As they were listed, and as they are sorted.
    orders: [Vec<NameBuf>; 2],
    /// Where a name is in each.
    places: HashMap<NameBuf, [usize; 2]>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    last: Option<[usize; 2]>,
    runs: [u32; 2],
    batches: VecDeque<Batch>,
}

/// Files by their place in the order that was followed.
type Answers = Arc<HashMap<usize, (NodeRef, Attr)>>;
type Asked = Shared<Pin<Box<dyn Future<Output = Answers> + Send>>>;

struct Batch {
    order: usize,
    from: usize,
    to: usize,
    begun: Instant,
    changes: u64,
    asked: Asked,
    task: AbortHandle,
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer that was foreseen.
pub(crate) struct Foreseen {
    place: usize,
    begun: Instant,
    changes: u64,
    asked: Asked,
}

impl Foresight {
    /// Answers are given for `ttl` after they were asked for.
    pub(crate) fn new(ttl: Duration, runtime: Runtime) -> Self {
        Self { dirs: Cache::new(DIRECTORIES), changes: AtomicU64::new(0), ttl, runtime }
    }

    /// The directory `id` was listed, whole or in part.
    pub(crate) fn listed(&self, id: u64, names: Vec<NameBuf>) {
        if (BATCH..=NAMES).contains(&names.len()) && !self.ttl.is_zero() {
            self.dirs.insert(id, Arc::new(Listed::new(names)));
        }
    }

    /// Something was changed through this mount: what was asked before is old.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// What was asked about `name` in the directory `id`, if it was; and asks about the names that seem to come next, of
    /// which `dir` is the directory.
    pub(crate) fn look(&self, id: u64, dir: &NodeRef, name: Name<'_>) -> Option<Foreseen> {
        let listed = self.dirs.get(&id)?;
        let places = *listed.places.get(name.as_bytes())?;
        let changes = self.changes.load(Ordering::Acquire);
        let mut state = listed.state.lock();
        state.batches.retain(|batch| batch.changes == changes && batch.begun.elapsed() < self.ttl);
        state.step(places);
        let found = state.batches.iter().find(|batch| batch.covers(places));
        let found = found.map(|batch| {
            let (place, asked) = (places[batch.order], batch.asked.clone());
            Foreseen { place, begun: batch.begun, changes, asked }
        });
        if let Some(order) = (0..2).find(|order| state.runs[*order] >= RUN) {
            let names = &listed.orders[order];
            let (from, to) = state.next(order, places[order], names.len());
            if from < to {
                let asked = ask(dir.clone(), from, names[from..to].to_vec()).boxed().shared();
                let task = self.runtime.spawn(asked.clone().map(drop)).abort_handle();
                let begun = Instant::now();
                state.batches.push_back(Batch { order, from, to, begun, changes, asked, task });
            }
        }
        found
    }

    /// The answer, and how long the kernel may keep it; `None` if there is none after all.
    pub(crate) async fn answer(&self, foreseen: Foreseen) -> Option<(NodeRef, Attr, Duration)> {
        let answers = foreseen.asked.await;
        let left = self.ttl.checked_sub(foreseen.begun.elapsed())?;
        let (node, attr) = answers.get(&foreseen.place)?.clone();
        (foreseen.changes == self.changes.load(Ordering::Acquire)).then_some((node, attr, left))
    }
}

impl Listed {
    fn new(names: Vec<NameBuf>) -> Self {
        let mut sorted = names.clone();
        sorted.sort_unstable();
        let mut places: HashMap<NameBuf, [usize; 2]> = HashMap::with_capacity(names.len());
        for (order, names) in [&names, &sorted].into_iter().enumerate() {
            for (place, name) in names.iter().enumerate() {
                places.entry(name.clone()).or_default()[order] = place;
            }
        }
        Self { orders: [names, sorted], places, state: Mutex::default() }
    }
}

impl State {
    /// Takes note of a lookup, in whichever order it came.
    fn step(&mut self, places: [usize; 2]) {
        for order in 0..2 {
            let before = self.last.map(|last| last[order]);
            let follows = before.is_some_and(|before| before < places[order] && places[order] <= before + STEP);
            self.runs[order] = if follows { self.runs[order].saturating_add(1) } else { 0 };
        }
        self.last = Some(places);
    }

    /// Which names to ask about when `place` was looked up: none while enough are asked about already.
    fn next(&self, order: usize, place: usize, names: usize) -> (usize, usize) {
        let ahead = self.batches.iter().filter(|batch| batch.order == order && batch.to > place).map(|batch| batch.to);
        let from = ahead.max().unwrap_or(place + 1);
        if from > place + BATCH / 2 { (from, from) } else { (from.min(names), (from + BATCH).min(names)) }
    }
}

impl Batch {
    fn covers(&self, places: [usize; 2]) -> bool {
        (self.from..self.to).contains(&places[self.order])
    }
}

/// Asks about `names`, entries of `dir`, all at once; those that fail are left out, to be asked about again.
async fn ask(dir: NodeRef, from: usize, names: Vec<NameBuf>) -> Answers {
    let questions = names.iter().enumerate().map(async |(n, name)| {
        let reached = dir.walk(&[name.as_name()], Want::ATTR).await.and_then(Walk::reached).ok()?;
        let attr = match reached.attr {
            Some(attr) => attr,
            None => reached.node.attr().await.ok()?,
        };
        Some((from + n, (reached.node, attr)))
    });
    Arc::new(join_all(questions).await.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<NameBuf> {
        names.iter().map(|name| NameBuf::new(*name).unwrap()).collect()
    }

    #[test]
    fn both_orders_are_followed_and_a_jump_ends_a_run() {
        let listed = Listed::new(names(&["c", "a", "b"]));
        assert_eq!(listed.places[b"c".as_slice()], [0, 2]);
        let mut state = State::default();
        for places in [[0, 9], [1, 3], [4, 0], [5, 8]] {
            state.step(places);
        }
        assert_eq!(state.runs, [3, 1]);
        state.step([5 + STEP + 1, 9]);
        assert_eq!(state.runs, [0, 2]);
    }

    #[test]
    fn the_next_names_are_asked_about_when_few_are_left() {
        let state = State::default();
        assert_eq!(state.next(0, 10, 1000), (11, 11 + BATCH));
        assert_eq!(state.next(0, 999, 1000), (1000, 1000));
    }
}
