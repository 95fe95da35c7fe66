//! The connections of a link, one after another: reading and writing on one, and getting back to the server when it is
//! lost.
//!
//! Run in the link's one task. Without a session the first loss ends the link. With one, the server is dialled again,
//! soon and then ever more rarely, until it has given the session back, or cannot have it any more; meanwhile those who
//! call wait. What each side has not received of what the other sent goes out again first, so nothing is lost and
//! nothing is done twice.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, WriteHalf};
use tokio::task::coop::consume_budget;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::counted::{Counted, Traffic};
use super::link::{Pen, Wire, one_way};
use crate::Errno;
use crate::frame::{Frame, Frames};
use crate::server::{self, Limits};
use crate::session::{ACK_TIME, Budget, LEFT, Ledger};
use crate::transport::{Io, tls};
use crate::wire::{NO_TAG, R, Str, T, VERSION_SLASHN};
use crate::writer::Outgoing;

/// The reading side of a connection.
pub(super) type Reader = Frames<Box<dyn AsyncRead + Send + Unpin>>;

/// How long to wait after the first loss, and at most, before the server is dialled.
pub(super) const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How long a server may be refusing connections before it is taken to have ended, and its sessions with it.
const REFUSED: Duration = Duration::from_secs(2);

/// How long a server is dialled of which nothing was heard yet.
const UNHEARD: Duration = Duration::from_secs(5);

/// Makes one more connection to the same server. An error of the kind `PermissionDenied` or `NotFound` says that there
/// will be none.
pub type Dial = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<Io>> + Send>> + Send + Sync>;

/// How to get back to a server after a connection is lost.
#[derive(Clone)]
pub struct Resume {
    /// How to reach it.
    pub dial: Dial,
    /// How long the server is asked to keep what I have there; it may keep it for a shorter time.
    pub linger: Duration,
    /// How long the server may be away before what is then asked is refused at once, with `EHOSTUNREACH`. What was
    /// asked before goes on waiting.
    pub patience: Duration,
    /// How to make one more connection beside the first, for bulk data alone; none where there can be one at a time.
    pub bulk: Option<Dial>,
}

/// What a session is to its client.
pub(super) struct Session {
    pub(super) resume: Resume,
    id: [u8; 16],
    msize: u32,
    /// What the server granted, in milliseconds; none before it answered.
    granted: AtomicU32,
}

/// Why a connection is over.
pub(super) enum Lost {
    /// It failed.
    Connection(String),
    /// The server broke the protocol: there is no use in going on.
    Protocol(String),
    /// The server has ended the session, as it is about to end itself, and may be back within this time.
    Left(Duration),
}

impl Session {
    /// A new one, if there are random numbers to name it by.
    pub(super) fn new(resume: Resume, msize: u32) -> Option<Self> {
        let mut id = [0; 16];
        match getrandom::fill(&mut id) {
            Ok(()) => Some(Self { resume, id, msize, granted: AtomicU32::new(0) }),
            Err(err) => {
                tracing::warn!("no session: {err}");
                None
            }
        }
    }

    /// The account of a new session. What is kept is bounded by the window alone.
    pub(super) fn ledger() -> Ledger {
        Ledger::new(Budget::new(usize::MAX))
    }

    /// What begins it, ahead of all else; the answer is waited for by nobody.
    pub(super) fn begins(&self) -> Outgoing {
        one_way(&self.hello(0, 0))
    }

    fn hello(&self, lane: u8, received: u64) -> T<'static> {
        let linger = u32::try_from(self.resume.linger.as_millis()).unwrap_or(u32::MAX);
        T::Session { id: self.id, lane, linger, received }
    }

    pub(super) fn granted(&self) -> Option<Duration> {
        match self.granted.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(Duration::from_millis(ms.into())),
        }
    }
}

/// The two sides of a connection whose bytes are counted.
pub(super) fn open<S>(io: S, traffic: &Arc<Traffic>, msize: u32, liveness: Duration) -> (Reader, WriteHalf<Counted<S>>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (reader, writer) = tokio::io::split(Counted::new(io, traffic.clone()));
    let limits =
        Limits { msize, version_time: liveness * 2, frame_time: Duration::from_secs(120), ..Limits::default() };
    (Frames::new(reader, limits, None).boxed(), writer)
}

impl Wire {
    /// Goes on until the link ends.
    pub(super) async fn run(self: Arc<Self>, mut frames: Reader, liveness: Duration, session: Option<Arc<Session>>) {
        let verdict = loop {
            let lost = self.converse(&mut frames, liveness, session.as_deref()).await;
            *self.lost.lock() = Some(std::time::Instant::now());
            self.pen.lock().put_down();
            drop(frames);
            let why = match lost {
                Lost::Connection(why) => why,
                Lost::Protocol(why) => {
                    tracing::warn!("the server is given up: {why}");
                    break Errno::EHOSTUNREACH;
                }
                Lost::Left(back) => {
                    tracing::info!("the server has left");
                    *self.left.lock() = Some(back);
                    break Errno::EHOSTUNREACH;
                }
            };
            // A connection that was at hand may have been dead, and then nothing of this has reached the server.
            let unheard = self.assumed.swap(false, Ordering::Relaxed);
            let known = session.as_deref().and_then(|session| match session.granted() {
                None if unheard => Some((session, session.resume.patience.min(UNHEARD))),
                granted => granted.map(|linger| (session, linger)),
            });
            let Some((session, linger)) = known else {
                tracing::debug!("the connection ended: {why}");
                break Errno::EHOSTUNREACH;
            };
            tracing::info!("the connection is lost and made again: {why}");
            let impatience = async {
                sleep(session.resume.patience).await;
                self.away(true);
                std::future::pending().await
            };
            let again = tokio::select! {
                again = self.again(session, liveness, linger, !unheard) => again,
                never = impatience => never,
            };
            self.away(false);
            match again {
                Ok(resumed) => {
                    frames = resumed;
                    *self.lost.lock() = None;
                }
                Err(errno) => break errno,
            }
        };
        self.close(verdict);
    }

    /// Reads and writes until the connection is lost.
    pub(super) async fn converse(&self, frames: &mut Reader, liveness: Duration, session: Option<&Session>) -> Lost {
        tokio::select! {
            lost = self.read(frames, session) => lost,
            err = self.write() => Lost::Connection(err.to_string()),
            () = self.acknowledge() => Lost::Connection(String::new()),
            () = self.write_rest() => Lost::Connection(String::new()),
            () = self.redial.notified(), if session.is_some() => Lost::Connection("another is at hand".into()),
            () = self.watch(liveness) => Lost::Connection(format!("nothing came for {:?}", liveness * 2)),
        }
    }

    async fn read(&self, frames: &mut Reader, session: Option<&Session>) -> Lost {
        loop {
            let frame = match frames.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => return Lost::Connection("the server closed it".into()),
                Err(err @ (server::Error::Io(_) | server::Error::TooSlow(..))) => {
                    return Lost::Connection(err.to_string());
                }
                Err(err) => return Lost::Protocol(err.to_string()),
            };
            if self.assumed.swap(false, Ordering::Relaxed) {
                match frame.reply() {
                    Some(R::Version { msize, version: Str(VERSION_SLASHN) })
                        if session.is_none_or(|session| session.msize == msize) => {}
                    other => return Lost::Protocol(format!("it answered Tversion with {other:?}")),
                }
                continue;
            }
            let taken = match session {
                Some(session) if is_own(&frame) => match frame.reply() {
                    Some(R::Session { state: LEFT, linger, .. }) => {
                        return Lost::Left(Duration::from_millis(linger.into()));
                    }
                    _ => self.take_own(&frame, session),
                },
                _ => self.take(frame).map_err(|tag| format!("it answered tag {tag}, which is not in use")),
            };
            if let Err(why) = taken {
                return Lost::Protocol(why);
            }
            consume_budget().await;
        }
    }

    /// Takes what the server says about the session itself.
    fn take_own(&self, frame: &Frame, session: &Session) -> Result<(), String> {
        match R::decode(frame.code, &frame.body) {
            Ok(Some(R::Session { linger, lease, received: 0, .. })) => {
                session.granted.store(linger, Ordering::Relaxed);
                self.leases.last(Duration::from_millis(lease.into()));
            }
            // A server without sessions, or without room for one more: then there is this connection alone.
            Ok(Some(R::Lerror { .. })) if session.granted().is_none() => {
                let kept = self.ledger.lock().take();
                drop(kept);
                self.filled.notify_one();
            }
            Ok(Some(R::Ack { received })) => {
                let acknowledged = match &mut *self.ledger.lock() {
                    Some(ledger) => ledger.acknowledged(received),
                    None => Ok(Vec::new()),
                };
                drop(acknowledged.map_err(|err| err.to_string())?);
                self.filled.notify_one();
            }
            other => return Err(format!("it said {other:?}")),
        }
        Ok(())
    }

    /// Sees to it that the server is told in time what came. It never returns.
    async fn acknowledge(&self) {
        loop {
            self.untold.notified().await;
            sleep(ACK_TIME).await;
            self.acknowledge_now();
        }
    }

    /// Gets back to the server, or to it at last if the session was not `begun` for certain. Errors: `ESTALE` if it has
    /// forgotten the session, `EHOSTUNREACH` if it was not to be reached for as long as it may have kept it.
    async fn again(
        &self, session: &Session, liveness: Duration, linger: Duration, begun: bool,
    ) -> Result<Reader, Errno> {
        let (lost, mut pause) = (Instant::now(), PAUSES.0);
        let until = lost + linger;
        loop {
            match timeout_at(until, self.attempt(&session.resume.dial, session, liveness, begun)).await {
                Ok(Ok(Some(frames))) => {
                    tracing::info!("the session goes on after {:?}", lost.elapsed());
                    return Ok(frames);
                }
                Ok(Ok(None)) => {
                    tracing::warn!("the server has forgotten the session");
                    return Err(Errno::ESTALE);
                }
                Ok(Err(err)) if is_final(&err, lost) => {
                    tracing::info!("the server is not to be reached again: {err}");
                    return Err(Errno::EHOSTUNREACH);
                }
                Ok(Err(err)) => tracing::debug!("the server is not reached: {err}"),
                Err(_) => {}
            }
            if Instant::now() >= until {
                tracing::warn!("the server was not reached for {linger:?}");
                return Err(Errno::EHOSTUNREACH);
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Dials once, and goes on with the lane on that connection, or begins it if it was not `begun`; gives none if the
    /// server has the session no more.
    pub(super) async fn attempt(
        &self, dial: &Dial, session: &Session, liveness: Duration, begun: bool,
    ) -> io::Result<Option<Reader>> {
        let io = dial().await?;
        let greeted = timeout(liveness, self.greet(io, session, liveness, begun)).await??;
        Ok(greeted.map(|(frames, pen)| {
            *self.pen.lock() = pen;
            frames
        }))
    }

    /// Asks for the lane on a new connection.
    async fn greet(
        &self, io: Io, session: &Session, liveness: Duration, begun: bool,
    ) -> io::Result<Option<(Reader, Pen)>> {
        let (mut frames, mut writer) = open(io, &self.traffic, session.msize, liveness);
        let received = match &mut *self.ledger.lock() {
            Some(ledger) => ledger.tells(),
            None => return Ok(None),
        };
        let mut hello = Vec::new();
        T::Version { msize: session.msize, version: Str(VERSION_SLASHN) }.encode(NO_TAG, &mut hello);
        session.hello(self.lane, received).encode(NO_TAG, &mut hello);
        writer.write_all(&hello).await?;
        writer.flush().await?;
        match next(&mut frames).await?.reply() {
            Some(R::Version { msize, version: Str(VERSION_SLASHN) }) if msize == session.msize => frames.agree(msize),
            _ => return Ok(None),
        }
        match next(&mut frames).await?.reply() {
            Some(R::Session { state, received, linger, lease, .. }) if state == 1 || !begun => {
                if !begun && self.lane == 0 {
                    session.granted.store(linger, Ordering::Relaxed);
                    self.leases.last(Duration::from_millis(lease.into()));
                }
                let rest: Vec<Outgoing> = match &mut *self.ledger.lock() {
                    Some(ledger) => ledger.resumes(received).map_err(io::Error::other)?.collect(),
                    None => return Ok(None),
                };
                Ok(Some((frames, Pen::new(Box::new(writer), rest))))
            }
            Some(R::Session { .. }) if self.lane == 0 => {
                // There is a new one now, which nobody wants.
                let _ = writer.write_all(&one_way(&T::Ack { received: crate::session::FAREWELL }).head).await;
                let _ = writer.flush().await;
                Ok(None)
            }
            Some(R::Session { .. }) => Ok(None),
            Some(R::Lerror { ecode }) => {
                tracing::warn!("the server refuses the session: {}", Errno::from_code(ecode as i32));
                Ok(None)
            }
            other => Err(io::Error::other(format!("the server answered Tsession with {other:?}"))),
        }
    }
}

/// Whether `frame` is about the session itself, and not one of those that are counted.
fn is_own(frame: &Frame) -> bool {
    frame.tag == NO_TAG && matches!(frame.reply(), Some(R::Session { .. } | R::Ack { .. } | R::Lerror { .. }))
}

async fn next(frames: &mut Reader) -> io::Result<Frame> {
    match frames.next().await {
        Ok(frame) => frame.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()),
        Err(server::Error::Io(err)) => Err(err),
        Err(err) => Err(io::Error::other(err)),
    }
}

impl Frame {
    fn reply(&self) -> Option<R<'_>> {
        R::decode(self.code, &self.body).ok().flatten()
    }
}

/// Whether dialling again is of no use.
pub(super) fn is_final(err: &io::Error, lost: Instant) -> bool {
    match err.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound => true,
        // Where nothing listens there is no server, but perhaps one that is just being reached another way.
        io::ErrorKind::ConnectionRefused => lost.elapsed() >= REFUSED,
        _ => tls::is_refusal(err),
    }
}

/// Between half of `pause` and all of it, so that many clients do not come at once.
pub(super) fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause / 2 + (pause / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
}
