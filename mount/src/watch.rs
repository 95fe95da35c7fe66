//! Frees callers that wait and are asked to end: FUSE's own interrupts do not reach the daemon.
//!
//! A request that is not answered at once is parked here by the bridge until it is. One thread per mount looks at the
//! signals that wait for each parked caller, first after 5 ms, then ever more rarely, and cancels the requests of those
//! that are dying or asked to end; it sleeps while nothing is parked. The cancelled request answers `EINTR` by itself
//! once nothing of it happens any more.

mod signals;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use p9::cancel::Cancel;
use parking_lot::{Condvar, Mutex};

/// A request is looked at when it is this old.
const FIRST_LOOK: Duration = Duration::from_millis(5);
/// Then at growing intervals: a look costs about 20 microseconds.
const SECOND_LOOK: Duration = Duration::from_millis(20);
const RAREST_LOOK: Duration = Duration::from_millis(100);

/// The parked requests of one mount.
#[derive(Clone)]
pub(crate) struct Watch(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    parked: HashMap<u64, Request>,
    next_key: u64,
    /// When the thread looks next; `None` while it sleeps until there is something.
    wakes: Option<Instant>,
    ended: bool,
}

struct Request {
    /// Thread id of the caller; 0 where the kernel asks for itself, or for a process that cannot be seen from here.
    caller: u32,
    cancel: Cancel,
    look: Instant,
    pause: Duration,
}

/// A parked request; dropped when it was answered.
pub(crate) struct Parked {
    watch: Watch,
    key: u64,
}

impl Watch {
    /// Starts the thread.
    pub(crate) fn start() -> io::Result<Self> {
        let watch = Self(Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() }));
        let shared = watch.0.clone();
        std::thread::Builder::new().name("fuse-watch".into()).spawn(move || shared.run())?;
        Ok(watch)
    }

    /// Watches over the request that thread `caller` waits for, until the result is dropped.
    pub(crate) fn park(&self, caller: u32, cancel: Cancel) -> Parked {
        let mut state = self.0.state.lock();
        let key = state.next_key;
        state.next_key += 1;
        let parked = Parked { watch: self.clone(), key };
        if state.ended {
            drop(state);
            cancel.cancel();
            return parked;
        }
        let look = Instant::now() + FIRST_LOOK;
        state.parked.insert(key, Request { caller, cancel, look, pause: SECOND_LOOK });
        // One waking serves all that are parked within these 5 ms.
        if state.wakes.is_none_or(|wakes| wakes > look) {
            state.wakes = Some(look);
            self.0.changed.notify_one();
        }
        parked
    }

    /// Cancels every request, now and from now on, and ends the thread.
    pub(crate) fn end(&self) {
        let parked: Vec<Cancel> = {
            let mut state = self.0.state.lock();
            state.ended = true;
            state.parked.values().map(|request| request.cancel.clone()).collect()
        };
        self.0.changed.notify_one();
        // Nothing is locked: where the runtime is ending, whoever is woken is dropped here and now.
        parked.iter().for_each(Cancel::cancel);
    }
}

impl Drop for Parked {
    fn drop(&mut self) {
        self.watch.0.state.lock().parked.remove(&self.key);
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        while !state.ended {
            match state.wakes {
                None => self.changed.wait(&mut state),
                Some(at) if at > Instant::now() => _ = self.changed.wait_until(&mut state, at),
                Some(_) => {
                    let due = state.due();
                    // Nobody who parks or is answered waits while signals are read.
                    parking_lot::MutexGuard::unlocked(&mut state, || {
                        for (caller, cancel) in due {
                            if signals::wants_to_end(caller) {
                                cancel.cancel();
                            }
                        }
                    });
                    state.wakes = state.parked.values().map(|request| request.look).min();
                }
            }
        }
    }
}

impl State {
    /// Those to look at now, each put off until its next look.
    fn due(&mut self) -> Vec<(u32, Cancel)> {
        let now = Instant::now();
        let due = self.parked.values_mut().filter(|request| request.look <= now);
        due.filter_map(|request| {
            request.look = now + request.pause;
            request.pause = RAREST_LOOK.min(request.pause * 2);
            (request.caller != 0).then(|| (request.caller, request.cancel.clone()))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Wake, Waker};

    use super::*;

    /// Drops a request when it is woken, as a runtime does that has ended.
    struct Drops(Mutex<Option<Parked>>);

    impl Wake for Drops {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().take());
        }
    }

    #[test]
    fn a_request_may_be_dropped_by_its_end() {
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let (watch, cancel) = (Watch::start().unwrap(), Cancel::default());
            let parked = watch.park(0, cancel.clone());
            let waker = Waker::from(Arc::new(Drops(Mutex::new(Some(parked)))));
            let mut waits = Box::pin(cancel.run(std::future::pending::<Result<(), p9::Errno>>()));
            assert!(waits.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            watch.end();
            _ = done.send(watch.0.state.lock().parked.len());
        });
        assert_eq!(ended.recv_timeout(Duration::from_secs(30)), Ok(0));
    }

    #[tokio::test]
    async fn a_request_whose_caller_is_gone_is_cancelled_and_others_stay() {
        let watch = Watch::start().unwrap();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let (gone, here) = (Cancel::default(), Cancel::default());
        let _here = watch.park(std::process::id(), here.clone());
        let _gone = watch.park(child.id(), gone.clone());
        let waited = gone.run(std::future::pending::<Result<(), p9::Errno>>());
        let answer = tokio::time::timeout(Duration::from_secs(30), waited).await.unwrap();
        assert_eq!(answer, Err(p9::Errno::EINTR));
        assert!(!here.is_asked());
        watch.end();
        assert!(here.is_asked());
    }
}
