//! One lane of a session: a stream of numbered frames each way, over one connection after another.
//!
//! Run by the session's task, in a task of its own, which lives as long as the session does. What a connection carries
//! is taken up frame by frame, and what is answered is kept until the peer has it; so the end of a connection ends
//! nothing but itself. Three things go on side by side: frames are read into a backlog, so that an acknowledgement is
//! never stuck behind requests; the backlog is taken up, which may have to wait for room among the replies; replies are
//! written, as far as the peer acknowledges those before. A new connection takes the place of the one before at once.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep, timeout};

use super::connection::{Connection, Context};
use super::pool::{COUNTED, Held, Share};
use super::requests::Requests;
use super::sessions::{Connected, Registry};
use super::{Error, LAST_WORDS, Limits};
use crate::frame::{Frame, Frames};
use crate::session::{ACK_TIME, FAREWELL, LEFT, Ledger, WINDOW, cost};
use crate::wire::{NO_TAG, R, T};
use crate::writer::{Outgoing, Pieces};

/// The reading side of a connection.
pub(super) type Reader = Frames<Box<dyn AsyncRead + Send + Unpin>>;
/// The writing side of a connection.
pub(super) type Writer = Box<dyn AsyncWrite + Send + Unpin>;

/// A connection that carries the lane from now on.
pub(super) struct Arrival {
    pub(super) frames: Reader,
    pub(super) writer: Writer,
    /// The frames that the peer has taken up.
    pub(super) received: u64,
    /// The tag of its Tsession.
    pub(super) tag: u16,
    /// Its sender is gone once the connection is to be cut.
    pub(super) cut: oneshot::Receiver<()>,
    /// Is told how the connection ended.
    pub(super) done: oneshot::Sender<Result<(), Error>>,
    pub(super) connected: Connected,
}

/// What a lane of a session is told when it begins.
pub(super) struct Lane {
    pub(super) requests: Requests,
    pub(super) context: Arc<Context>,
    pub(super) limits: Limits,
    pub(super) registry: Registry,
    pub(super) linger: Duration,
    /// Whether it is the session's first.
    pub(super) first: bool,
}

/// How a connection ended.
enum Ended {
    /// Another may come.
    Lost(Result<(), Error>),
    /// The peer wants no more of the session.
    Farewell,
    /// The server is about to end, and has said so.
    Left,
    /// The peer broke the protocol, with the message of this tag: the session ends, too.
    Broken(Error, u16),
}

/// What the three parts of a lane share.
struct Shared {
    ledger: Mutex<Ledger>,
    backlog: Mutex<Backlog>,
    /// There is something in the backlog.
    filled: Sign,
    /// The writer has to look at the ledger.
    changed: Sign,
    share: Share,
    /// Who counts what goes by the first lane.
    counts: Option<Registry>,
}

/// What one part of a lane tells another, which has its turn after it: all are in one task, and to wake that while it
/// runs would have another thread take it up, which costs more than a small request does altogether.
#[derive(Default)]
struct Sign(AtomicBool);

impl Sign {
    fn give(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Returns once it was given, when its task is polled next.
    async fn given(&self) {
        poll_fn(|_| if self.0.swap(false, Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }).await;
    }
}

/// Frames that were read and not taken up.
#[derive(Default)]
struct Backlog {
    frames: VecDeque<(Frame, Option<Held>)>,
    bytes: usize,
}

impl Lane {
    /// Goes on until the peer ends the session or breaks the protocol, or `arrivals` ends.
    pub(super) async fn run(self, mut arrivals: Receiver<Arrival>) {
        let Self { requests, context, limits, registry, linger, first } = self;
        let shared = Shared {
            ledger: Mutex::new(Ledger::new(registry.budget.clone())),
            backlog: Mutex::default(),
            filled: Sign::default(),
            changed: Sign::default(),
            share: context.share.clone(),
            counts: first.then(|| registry.clone()),
        };
        let mut connection = Connection::of_lane(context.clone(), requests.clone(), limits);
        let mut tasks = JoinSet::new();
        // Goes on through the loss of a connection: a frame that was taken up is done with in any case.
        let mut taking = pin!(shared.take_up(&mut connection, &mut tasks));
        let (mut next, mut state) = (None, 0);
        loop {
            let arrival = match next.take() {
                Some(arrival) => arrival,
                None => tokio::select! {
                    arrival = shared.arrival(&mut arrivals) => match arrival {
                        Some(arrival) => arrival,
                        None => return,
                    },
                    (err, _) = &mut taking => return tracing::debug!("the session ended: {err}"),
                },
            };
            let Arrival { mut frames, mut writer, received, tag, mut cut, done, connected } = arrival;
            let mut pieces = Pieces::default();
            // A peer that resumes what is not there any more learns it from the state.
            let received = if state == 0 { 0 } else { received };
            if let Err(err) = shared.resume(received, greeting(&registry, linger, (tag, state)), &mut pieces) {
                last_words(&context, &err, tag, &mut writer).await;
                let _ = done.send(Err(err));
                return;
            }
            state = 1;
            let reading = async {
                tokio::select! {
                    biased;
                    arrival = shared.arrival(&mut arrivals) => {
                        next = arrival;
                        next.is_some().then_some(Ended::Lost(Ok(())))
                    }
                    _ = &mut cut => Some(Ended::Lost(Ok(()))),
                    ended = shared.read(&mut frames) => Some(ended),
                    (err, tag) = &mut taking => Some(Ended::Broken(err, tag)),
                }
            };
            let writing = shared.write(pieces, &mut writer, &requests, &registry);
            let ended = match requests.in_turn(reading, writing).await {
                Either::Left(None) => return,
                Either::Left(Some(ended)) => ended,
                Either::Right(ended) => shared.last(ended, &mut frames).await,
            };
            let end = match ended {
                Ended::Lost(end) => {
                    drop((frames, writer, connected));
                    let _ = done.send(end);
                    continue;
                }
                Ended::Farewell | Ended::Left => Ok(()),
                Ended::Broken(err, tag) => {
                    last_words(&context, &err, tag, &mut writer).await;
                    Err(err)
                }
            };
            let _ = done.send(end);
            return;
        }
    }
}

/// Tells the peer why its session ends.
async fn last_words(context: &Context, err: &Error, tag: u16, writer: &mut Writer) {
    let Some(errno) = err.last_words() else { return };
    let mut pieces = Pieces::default();
    pieces.add(Outgoing::new(context.error_reply(0, tag, errno), Bytes::new()));
    // Who does not listen is not told.
    let _ = timeout(LAST_WORDS, poll_fn(|cx| pieces.poll_write(Pin::new(&mut *writer), cx))).await;
}

/// `Rsession`, but for what was received.
fn greeting(registry: &Registry, linger: Duration, (tag, state): (u16, u8)) -> impl FnOnce(u64) -> Outgoing + use<> {
    let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
    let (boot, linger, lease) = (registry.boot, ms(linger), ms(registry.limits.lease));
    move |received| encoded(&R::Session { boot, state, linger, lease, received }, tag)
}

/// The same from a server that is about to end, and may be away for `back`.
fn farewell(registry: &Registry, back: Duration) -> Outgoing {
    greeting(registry, back, (NO_TAG, LEFT))(0)
}

impl Shared {
    /// The next connection. One that comes so late that its peer has acknowledged more since on another was given up by
    /// it: that is closed, and changes nothing.
    async fn arrival(&self, arrivals: &mut Receiver<Arrival>) -> Option<Arrival> {
        loop {
            let arrival = arrivals.recv().await?;
            if !self.ledger.lock().has_forgotten(arrival.received) {
                return Some(arrival);
            }
            tracing::debug!("a connection came that its peer had given up");
            let _ = arrival.done.send(Ok(()));
        }
    }

    /// The first things that a new connection carries: `Rsession`, and what the peer has not received.
    fn resume(&self, received: u64, greeting: impl FnOnce(u64) -> Outgoing, pieces: &mut Pieces) -> Result<(), Error> {
        // What was read and not taken up will be sent again.
        *self.backlog.lock() = Backlog::default();
        let mut ledger = self.ledger.lock();
        pieces.add(greeting(ledger.tells()));
        ledger.resumes(received)?.for_each(|frame| pieces.add(frame));
        Ok(())
    }

    /// Reads frames into the backlog.
    async fn read(&self, frames: &mut Reader) -> Ended {
        loop {
            let frame = match frames.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ended::Lost(Ok(())),
                Err(err @ (Error::Io(_) | Error::TooSlow(..))) => return Ended::Lost(Err(err)),
                Err(err) => return Ended::Broken(err, NO_TAG),
            };
            self.count(frame.size());
            let (tag, is_ack) = (frame.tag, frame.code == T::Ack { received: 0 }.code());
            let read = match if is_ack { T::decode(frame.code, &frame.body) } else { Ok(None) } {
                Ok(Some(T::Ack { received: FAREWELL })) => return Ended::Farewell,
                Ok(Some(T::Ack { received })) => self.acknowledged(received),
                // What is garbled meets that when it is taken up.
                _ => self.backlog.lock().push(frame, &self.share),
            };
            match read {
                Ok(()) => {}
                // It may come again when there is.
                Err(err @ Error::NoRoom) => return Ended::Lost(Err(err)),
                Err(err) => return Ended::Broken(err, tag),
            }
            self.filled.give();
            consume_budget().await;
        }
    }

    /// How a connection ended, of which writing says that it `ended`: the last that the peer said may be there still.
    async fn last(&self, ended: Ended, frames: &mut Reader) -> Ended {
        match ended {
            Ended::Lost(Err(err)) => match timeout(LAST_WORDS, self.read(frames)).await {
                Ok(Ended::Farewell) => Ended::Farewell,
                _ => Ended::Lost(Err(err)),
            },
            ended => ended,
        }
    }

    fn count(&self, bytes: usize) {
        if let Some(registry) = &self.counts {
            registry.carries(bytes);
        }
    }

    fn acknowledged(&self, received: u64) -> Result<(), Error> {
        let gone = self.ledger.lock().acknowledged(received)?;
        drop(gone);
        self.changed.give();
        Ok(())
    }

    /// Takes up what is in the backlog. It returns when the peer breaks the protocol: how, and by which message.
    async fn take_up(&self, connection: &mut Connection, tasks: &mut JoinSet<()>) -> (Error, u16) {
        loop {
            let Some((frame, asked)) = self.backlog.lock().pop() else {
                self.filled.given().await;
                continue;
            };
            {
                let mut ledger = self.ledger.lock();
                let first = !ledger.has_untold();
                ledger.takes(frame.size());
                if first || ledger.is_due() {
                    self.changed.give();
                }
            }
            let message = T::decode(frame.code, &frame.body);
            if let Err(err) = connection.take(&frame, message, asked, tasks).await {
                return (err, frame.tag);
            }
            consume_budget().await;
        }
    }

    /// Writes `pieces`, then replies and acknowledgements.
    async fn write(&self, mut pieces: Pieces, writer: &mut Writer, requests: &Requests, registry: &Registry) -> Ended {
        let (mut timer, mut armed, mut leaves) = (pin!(sleep(ACK_TIME)), false, pin!(registry.leaves()));
        loop {
            self.fill(&mut pieces, requests);
            if !pieces.is_empty() {
                if let Err(err) = poll_fn(|cx| pieces.poll_write(Pin::new(&mut *writer), cx)).await {
                    return Ended::Lost(Err(err.into()));
                }
                continue;
            }
            let (small, bulk, untold) = {
                let ledger = self.ledger.lock();
                (ledger.has_room(false), ledger.has_room(true), ledger.has_untold())
            };
            if !bulk {
                registry.make_room();
            }
            if untold && !armed {
                timer.as_mut().reset(Instant::now() + ACK_TIME);
                armed = true;
            }
            tokio::select! {
                biased;
                more = requests.ready(small, bulk) => if !more {
                    return Ended::Lost(Ok(()));
                },
                () = self.changed.given() => {}
                () = &mut timer, if armed => {
                    armed = false;
                    let mut ledger = self.ledger.lock();
                    if ledger.has_untold() {
                        pieces.add(acknowledgement(&mut ledger));
                    }
                }
                back = &mut leaves => {
                    pieces.add(farewell(registry, back));
                    let _ = poll_fn(|cx| pieces.poll_write(Pin::new(&mut *writer), cx)).await;
                    return Ended::Left;
                }
            }
        }
    }

    /// Adds what may be sent now.
    fn fill(&self, pieces: &mut Pieces, requests: &Requests) {
        let mut ledger = self.ledger.lock();
        if ledger.is_due() {
            pieces.add(acknowledgement(&mut ledger));
        }
        // Each that is sent changes what may be sent after it.
        let ledger = RefCell::new(ledger);
        let room = |bulk| ledger.borrow().has_room(bulk);
        requests.take(room, |reply| {
            self.count(reply.size());
            pieces.add(ledger.borrow_mut().sends(reply));
        });
    }
}

impl Backlog {
    /// Errors: more than the peer may have under way; `NoRoom` for more than all peers may.
    fn push(&mut self, frame: Frame, share: &Share) -> Result<(), Error> {
        if self.bytes >= WINDOW {
            return Err(Error::Session("it sends more than may be unacknowledged"));
        }
        let cost = cost(frame.size());
        // What is large is counted already.
        let held = match self.bytes > UNCOUNTED && frame.size() < COUNTED {
            true => Some(share.asked_now(cost).ok_or(Error::NoRoom)?),
            false => None,
        };
        self.bytes += cost;
        self.frames.push_back((frame, held));
        Ok(())
    }

    /// The next, and the fid whose attributes the one after that asks for, if it does so.
    fn pop(&mut self) -> Option<(Frame, Option<u32>)> {
        let (frame, _) = self.frames.pop_front()?;
        self.bytes -= cost(frame.size());
        Some((frame, self.frames.front().and_then(|(next, _)| next.asks_about())))
    }
}

fn encoded(message: &R<'_>, tag: u16) -> Outgoing {
    let mut head = Vec::with_capacity(64);
    message.encode(tag, &mut head);
    tracing::trace!(target: "p9::trace", "<- {tag} {message:?}");
    Outgoing::new(head, Bytes::new())
}

fn acknowledgement(ledger: &mut Ledger) -> Outgoing {
    encoded(&R::Ack { received: ledger.tells() }, NO_TAG)
}

/// Where the connections of a lane go.
pub(super) type ToLane = Sender<Arrival>;

/// Bytes of small requests in a backlog that are not counted among those of all.
const UNCOUNTED: usize = 64 << 10;
