//! Cancelling an operation so that nothing of it happens afterwards.
//!
//! Dropping a reply is enough for work that merely waits. Work that is under way elsewhere (a write on the blocking
//! pool, a request that another server has) cannot be called back by a drop, so it takes a [`Hold`]: whoever answers
//! the flush then waits until it has ended. Such work may watch [`asked`] to end sooner.
//!
//! The server loop runs each request in a [`Cancel`], the FUSE bridge each kernel request; a tree only ever calls
//! [`hold`] and [`asked`], which do nothing outside one.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;

use tokio::sync::Notify;

use crate::Errno;
pub use crate::brief::brief;

tokio::task_local! {
    static CURRENT: Cancel;
}

/// One operation that can be cancelled; clones are the same operation.
#[derive(Clone, Default)]
pub struct Cancel(Arc<State>);

#[derive(Default)]
struct State {
    asked: AtomicBool,
    /// Whether anything of it was ever under way elsewhere.
    held: AtomicBool,
    holds: AtomicUsize,
    changed: Notify,
}

impl Cancel {
    /// Asks the operation to end. [`Cancel::run`] returns once it has.
    pub fn cancel(&self) {
        self.0.asked.store(true, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    /// Whether it was asked to end.
    pub fn is_asked(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// The same for another operation, if nobody is left who has to do with this one.
    pub(crate) fn renewed(mut self) -> Option<Self> {
        *Arc::get_mut(&mut self.0)? = State::default();
        Some(self)
    }

    /// Runs `work` to its end, or until it was cancelled and holds nothing any more: then `EINTR`.
    pub async fn run<T>(&self, work: impl Future<Output = Result<T, Errno>>) -> Result<T, Errno> {
        let mut work = pin!(CURRENT.scope(self.clone(), work));
        loop {
            // Made before the look at the state, so that no change is missed; what is ready at once never waits for
            // one.
            let mut changed = pin!(self.0.changed.notified());
            let step = poll_fn(|cx| {
                // What merely waited takes nothing that comes after it was to end: no byte of a stream goes to nobody.
                if self.is_asked() && !self.0.held.load(Ordering::SeqCst) {
                    return Poll::Ready(Some(Err(Errno::EINTR)));
                }
                if let Poll::Ready(answer) = work.as_mut().poll(cx) {
                    return Poll::Ready(Some(answer));
                }
                if self.is_asked() && self.0.holds.load(Ordering::SeqCst) == 0 {
                    return Poll::Ready(Some(Err(Errno::EINTR)));
                }
                changed.as_mut().poll(cx).map(|()| None)
            });
            if let Some(answer) = step.await {
                return answer;
            }
        }
    }
}

/// While this lives, the operation is under way elsewhere and a cancellation waits for it.
#[derive(Default)]
pub struct Hold(Option<Cancel>);

/// Says that from now on the current operation is under way elsewhere.
#[must_use = "the hold ends when it is dropped"]
pub fn hold() -> Hold {
    let current = CURRENT.try_with(Cancel::clone).ok();
    if let Some(Cancel(state)) = &current {
        state.held.store(true, Ordering::SeqCst);
        state.holds.fetch_add(1, Ordering::SeqCst);
    }
    Hold(current)
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(Cancel(state)) = &self.0 {
            state.holds.fetch_sub(1, Ordering::SeqCst);
            state.changed.notify_waiters();
        }
    }
}

/// Returns when the current operation is asked to end: never, if nobody can ask.
pub async fn asked() {
    let Ok(current) = CURRENT.try_with(Cancel::clone) else { return std::future::pending().await };
    loop {
        let mut changed = pin!(current.0.changed.notified());
        changed.as_mut().enable();
        if current.is_asked() {
            return;
        }
        changed.await;
    }
}

/// Runs `work`, which blocks, on the blocking pool, as part of the current operation: a cancellation waits for it.
/// Errors: those of `work`; `EIO` if it panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Errno> + Send + 'static) -> Result<T, Errno> {
    let _hold = hold();
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Errno::EIO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_merely_waits_ends_at_once() {
        let cancel = Cancel::default();
        let run = cancel.run(std::future::pending::<Result<(), Errno>>());
        let (answer, ()) = tokio::join!(run, async { cancel.cancel() });
        assert_eq!(answer, Err(Errno::EINTR));
    }

    #[tokio::test]
    async fn what_waits_takes_nothing_that_comes_after_it_was_to_end() {
        let cancel = Cancel::default();
        let (sender, mut queue) = tokio::sync::mpsc::channel(1);
        let run = cancel.run(async { queue.recv().await.ok_or(Errno::EIO) });
        let (answer, ()) = tokio::join!(run, async {
            cancel.cancel();
            sender.send("to nobody").await.unwrap();
        });
        assert_eq!(answer, Err(Errno::EINTR));
        assert_eq!(queue.try_recv(), Ok("to nobody"));
    }

    #[tokio::test]
    async fn what_is_under_way_elsewhere_is_waited_for() {
        let cancel = Cancel::default();
        let (release, released) = tokio::sync::oneshot::channel();
        let run = cancel.run(async {
            let _hold = hold();
            asked().await;
            released.await.map_err(|_| Errno::EIO)
        });
        let (answer, ()) = tokio::join!(run, async {
            cancel.cancel();
            tokio::task::yield_now().await;
            release.send(7).unwrap();
        });
        assert_eq!(answer, Ok(7));
    }
}
