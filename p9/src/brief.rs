//! Work that blocks, but as a rule for some microseconds: a change of a directory that the kernel has in memory, say.
//!
//! To hand it to the blocking pool and hear of its end costs several times the work. So it is done in place, in
//! whatever task asks, as long as nobody is kept waiting by it: by one task of the process at a time, only where the
//! runtime has another thread for the others, and not for a while after it slept for long (a disk that is busy, a file
//! of many extents). What only had to wait for a processor says nothing.

use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use crate::Errno;
use crate::cancel::blocking;

/// What took longer than this, and slept meanwhile, was not brief.
const LONG: Duration = Duration::from_millis(4);

/// How long the pool is used after something was not brief.
const AFTER_LONG: Duration = Duration::from_secs(10);

static TURN: Turns = Turns { taken: AtomicBool::new(false), pool_until: AtomicU64::new(0) };

/// From this moment on the process counts.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Who may do brief work in place.
struct Turns {
    taken: AtomicBool,
    /// Milliseconds after [`START`].
    pool_until: AtomicU64,
}

/// While this lives, its holder alone does brief work in place.
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    since: Instant,
    /// How often this thread had gone to sleep by then.
    slept: libc::c_long,
}

/// Does `work`, which blocks briefly as a rule, as part of the current operation: in place if that keeps nobody else
/// waiting, else as [`blocking`] does. Errors: those of `work`; `EIO` if it panicked.
pub async fn brief<T: Send + 'static>(work: impl FnOnce() -> Result<T, Errno> + Send + 'static) -> Result<T, Errno> {
    match turn() {
        Some(_turn) => catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(Errno::EIO)),
        None => blocking(work).await,
    }
}

/// The right to do brief work in place, if that keeps nobody else waiting.
pub(crate) fn turn() -> Option<Turn<'static>> {
    let others_run = Handle::try_current().is_ok_and(|runtime| runtime.metrics().num_workers() > 1);
    if others_run { TURN.take(Instant::now()) } else { None }
}

impl Turns {
    fn take(&self, now: Instant) -> Option<Turn<'_>> {
        let brief = self.pool_until.load(Ordering::Relaxed) <= since_start(now);
        (brief && !self.taken.swap(true, Ordering::Acquire)).then(|| Turn {
            turns: self,
            since: now,
            slept: times_slept(),
        })
    }

    fn give_back(&self, took: Duration, has_slept: bool, now: Instant) {
        if has_slept && took > LONG {
            self.pool_until.store(since_start(now + AFTER_LONG), Ordering::Relaxed);
        }
        self.taken.store(false, Ordering::Release);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        self.turns.give_back(now - self.since, times_slept() != self.slept, now);
    }
}

/// How often this thread has given its processor away, so as to wait for something: `ru_nvcsw` of getrusage(2).
fn times_slept() -> libc::c_long {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: it is given room for what it says, all of which may be zero.
    unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init().ru_nvcsw
    }
}

fn since_start(now: Instant) -> u64 {
    now.saturating_duration_since(*START).as_millis() as u64
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn turns() -> Turns {
        Turns { taken: AtomicBool::new(false), pool_until: AtomicU64::new(0) }
    }

    #[test]
    fn one_at_a_time_works_in_place() {
        let (turns, now) = (turns(), Instant::now());
        let first = turns.take(now);
        assert!(first.is_some() && turns.take(now).is_none());
        // As if it had taken no time, however loaded this machine is.
        turns.give_back(Duration::ZERO, false, now);
        std::mem::forget(first);
        assert!(turns.take(now).is_some());
    }

    #[test]
    fn after_work_that_slept_for_long_the_pool_is_used_for_a_while() {
        let (turns, now) = (turns(), *START);
        turns.give_back(2 * LONG, false, now);
        assert!(turns.take(now).is_some(), "it waited for a processor");
        turns.give_back(2 * LONG, true, now);
        assert!(turns.take(now).is_none() && turns.take(now + AFTER_LONG / 2).is_none());
        assert!(turns.take(now + AFTER_LONG).is_some());
    }

    #[test]
    fn who_waits_sleeps() {
        let before = times_slept();
        thread::sleep(Duration::from_millis(1));
        assert!(times_slept() > before);
    }

    #[tokio::test]
    async fn with_one_thread_for_all_nothing_is_done_in_place() {
        let here = thread::current().id();
        let there = brief(|| Ok(thread::current().id())).await.unwrap();
        assert_ne!(there, here);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn work_that_panics_fails_alone() {
        assert_eq!(brief::<()>(|| panic!("as it is to")).await, Err(Errno::EIO));
        assert_eq!(brief(|| Ok(7)).await, Ok(7));
    }
}
