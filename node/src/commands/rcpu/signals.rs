//! Signals that are the commands', not this process's own.
//!
//! One task for each kind listens, for as long as the runtime lives, and hands what comes to every command that listens
//! then ([`Signals`]), or to the one that there is ([`forward`]).

use std::sync::Arc;

use cpuserver::client::Event;
use parking_lot::Mutex;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::terminal;

/// Signals that are the command's, and the terminal's size whenever it changes.
async fn forward(events: mpsc::Sender<Event>, terminal: bool) {
    let hangup = [SignalKind::hangup()];
    tokio::join!(signals(events.clone(), &hangup), forward_more(events, terminal));
}

/// The same, but for the terminal and its end.
pub(crate) async fn forward_but_hangup(events: mpsc::Sender<Event>) {
    forward_more(events, false).await;
}

async fn forward_more(events: mpsc::Sender<Event>, terminal: bool) {
    let kinds = [SignalKind::interrupt(), SignalKind::quit(), SignalKind::terminate()];
    let others = [SignalKind::user_defined1(), SignalKind::user_defined2()];
    let all = [&kinds[..], &others[..]].concat();
    let sizes = async {
        if terminal && let Ok(mut changes) = signal(SignalKind::window_change()) {
            while changes.recv().await.is_some() {
                let Some((rows, columns)) = terminal::size() else { continue };
                if events.send(Event::Winsize(rows, columns)).await.is_err() {
                    return;
                }
            }
        }
    };
    tokio::join!(signals(events.clone(), &all), sizes);
}

async fn signals(events: mpsc::Sender<Event>, kinds: &[SignalKind]) {
    let mut tasks = tokio::task::JoinSet::new();
    for kind in kinds.iter().copied() {
        let events = events.clone();
        tasks.spawn(async move {
            let Ok(mut signals) = signal(kind) else { return };
            while signals.recv().await.is_some() {
                if events.send(Event::Signal(kind.as_raw_value())).await.is_err() {
                    return;
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

/// What several commands are told, each that there is: the second signal that ends programs is SIGKILL to all.
#[derive(Clone)]
pub(super) struct Signals {
    listeners: Arc<Mutex<Vec<mpsc::Sender<Event>>>>,
    ended_by: watch::Sender<Option<i32>>,
    /// Whether the second signal that ends programs ends all for good.
    several: bool,
}

impl Signals {
    /// Begins to listen for several commands. Call it on the runtime.
    pub(super) fn listen() -> Self {
        Self::hear(false, true)
    }

    /// Begins to listen for one command after the other, which is told of its `terminal`, too, if it has one, and to
    /// which no signal means more than its own.
    pub(super) fn of_one(terminal: bool) -> Self {
        Self::hear(terminal, false)
    }

    fn hear(terminal: bool, several: bool) -> Self {
        let signals = Self { listeners: Arc::default(), ended_by: watch::Sender::new(None), several };
        let (events, mut received) = mpsc::channel(16);
        tokio::spawn(forward(events, terminal));
        let all = signals.clone();
        tokio::spawn(async move {
            while let Some(event) = received.recv().await {
                all.tell(event);
            }
        });
        signals
    }

    fn tell(&self, event: Event) {
        let ends = |signal: &i32| matches!(*signal, libc::SIGHUP | libc::SIGINT | libc::SIGQUIT | libc::SIGTERM);
        let event = match event {
            Event::Signal(signal) if ends(&signal) && self.several && self.ended_by.borrow().is_some() => {
                Event::Signal(libc::SIGKILL)
            }
            Event::Signal(signal) if ends(&signal) => {
                self.ended_by.send_replace(Some(signal));
                event
            }
            event => event,
        };
        // One that takes none has enough of them to think about.
        self.listeners
            .lock()
            .retain(|listener| !matches!(listener.try_send(event), Err(mpsc::error::TrySendError::Closed(_))));
    }

    /// What happens from now on, for one more command.
    pub(super) fn one_more(&self) -> mpsc::Receiver<Event> {
        let (events, received) = mpsc::channel(16);
        self.listeners.lock().push(events);
        received
    }

    /// The signal that all is to end by, if one came.
    pub(super) fn ended_by(&self) -> Option<i32> {
        *self.ended_by.borrow()
    }

    /// Returns once there is one.
    pub(super) async fn ended(&self) {
        // The sender is in here: it cannot be gone.
        let _ = self.ended_by.subscribe().wait_for(Option::is_some).await;
    }
}
