//! The reader of one connection: takes messages in order of arrival, claims their fids, and sets them going.
//!
//! What can be answered at once is answered here; if not, it goes on in a task (see [`Runner`]).

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::AsyncRead;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::task::coop::consume_budget;

use super::claim::Claim;
use super::fids::{Fids, Made, State};
use super::leases::Leases;
use super::legacy;
use super::locks::Locks;
use super::pool::Share;
use super::quick;
use super::requests::{Push, Requests};
use super::runner::{Request, Runner};
use super::sessions::{Found, Sessions};
use super::{Error, Limits, agree, version_reply};
use crate::frame::{Frame, Frames};
use crate::wire::{self, Dialect, Malformed, NO_TAG, R, Str, T};
use crate::writer::Payload;
use crate::{Errno, TreeRef, Who};

/// What all requests of a connection share.
pub(super) struct Context {
    pub(super) tree: TreeRef,
    pub(super) who: Arc<Who>,
    pub(super) fids: Fids,
    pub(super) msize: u32,
    pub(super) dialect: Dialect,
    /// What the data of replies may still take, in bytes.
    pub(super) reading: Arc<Semaphore>,
    pub(super) leases: Leases,
    pub(super) locks: Locks,
    pub(super) push: Push,
    /// What of all that a server holds is its peer's.
    pub(super) share: Share,
}

impl Context {
    pub(super) fn new(
        tree: TreeRef, who: Arc<Who>, (msize, dialect): (u32, Dialect), limits: &Limits, push: Push,
    ) -> Self {
        let reading = Arc::new(Semaphore::new(limits.bytes_in_flight.max(Limits::MSIZE_MAX as usize)));
        let share = limits.pool.share(&who);
        Self {
            tree,
            who,
            fids: Fids::new(share.clone()),
            msize,
            dialect,
            reading,
            leases: Leases::default(),
            locks: Locks::default(),
            push,
            share,
        }
    }
}

/// What a peer asks that begins a session or resumes one.
pub(super) struct Hello {
    pub(super) id: [u8; 16],
    pub(super) lane: u8,
    pub(super) linger: Duration,
    /// The frames that it has taken up.
    pub(super) received: u64,
    pub(super) tag: u16,
    /// The agreed frame size.
    pub(super) msize: u32,
}

/// One connection, or a lane of a session.
pub(super) struct Connection {
    context: Arc<Context>,
    requests: Requests,
    runner: Runner,
    limits: Limits,
    versioned: bool,
    /// Nothing came since the version was agreed on.
    fresh: bool,
    /// Where sessions are to be found, if there are any.
    sessions: Option<Sessions>,
    /// The tag of the message in hand, for the refusal of a peer that breaks the protocol.
    tag: u16,
    /// The fid that the walk before makes, if that knows that its attributes are asked for.
    met: Option<u32>,
    /// Where the head of a reply is put together.
    head: Vec<u8>,
}

impl Connection {
    pub(super) fn new(
        tree: TreeRef, who: Arc<Who>, requests: Requests, limits: Limits, sessions: Option<Sessions>,
    ) -> Self {
        let context = Arc::new(Context::new(tree, who, (limits.msize, Dialect::default()), &limits, requests.pushes()));
        let runner = Runner::new(requests.clone());
        let (versioned, fresh, tag, met, head) = (false, false, NO_TAG, None, Vec::new());
        Self { context, requests, runner, limits, versioned, fresh, sessions, tag, met, head }
    }

    /// A lane of a session, whose version was agreed on.
    pub(super) fn of_lane(context: Arc<Context>, requests: Requests, limits: Limits) -> Self {
        let runner = Runner::new(requests.clone());
        let (versioned, fresh, sessions, tag, met, head) = (true, false, None, NO_TAG, None, Vec::new());
        Self { context, requests, runner, limits, versioned, fresh, sessions, tag, met, head }
    }

    /// Serves until the stream ends, its peer breaks the protocol, or the connection goes over to a session.
    pub(super) async fn run<S: AsyncRead + Unpin>(
        &mut self, frames: &mut Frames<S>, tasks: &mut JoinSet<()>,
    ) -> Result<Option<(Hello, Found)>, Error> {
        while let Some(frame) = frames.next().await? {
            match T::decode(frame.code, &frame.body) {
                Ok(Some(T::Version { msize, version })) => {
                    self.tag = frame.tag;
                    tracing::trace!(target: "p9::trace", "-> {} Version {msize} {version:?}", frame.tag);
                    // What is under way ends first, as if each request had been flushed.
                    self.requests.cancel_all();
                    while tasks.join_next().await.is_some() {}
                    let agreed = self.version(frame.tag, msize, version).await?;
                    frames.agree(agreed);
                    self.fresh = true;
                    self.tag = NO_TAG;
                }
                Ok(Some(T::Session { id, lane, linger, received })) if self.sessions.is_some() => {
                    let linger = Duration::from_millis(linger.into());
                    let hello = Hello { id, lane, linger, received, tag: frame.tag, msize: self.context.msize };
                    match self.find(&hello) {
                        Ok(found) => return Ok(Some((hello, found))),
                        Err(errno) => self.refuse(frame.code, frame.tag, errno).await?,
                    }
                }
                message => self.take(&frame, message, frames.asks_about(), tasks).await?,
            }
            self.pause().await;
        }
        Ok(None)
    }

    /// Between two messages: leaves the thread to others now and then, however much the peer sends, and lets the writer
    /// send what there is, so that the peer is at work on that meanwhile.
    async fn pause(&mut self) {
        let mut due = self.requests.is_due();
        // The writer has its turn as soon as this is pending, and then it goes on.
        poll_fn(|_| if std::mem::take(&mut due) { Poll::Pending } else { Poll::Ready(()) }).await;
        consume_budget().await;
    }

    /// The session that `hello` asks for. Errors are the answer.
    fn find(&self, hello: &Hello) -> Result<Found, Errno> {
        tracing::trace!(target: "p9::trace", "-> {} Session lane {}, {} received", hello.tag, hello.lane, hello.received);
        let Context { tree, who, dialect, .. } = &*self.context;
        match &self.sessions {
            Some(sessions) if *dialect == Dialect::Slashn => match self.fresh {
                true => sessions.find(hello, tree, who, &self.limits),
                false => Err(Errno::EINVAL),
            },
            _ => Err(Errno::EOPNOTSUPP),
        }
    }

    /// Takes up one message. The next asks for the attributes of `asked`, if it has come and does so.
    pub(super) async fn take(
        &mut self, frame: &Frame, message: Result<Option<T<'_>>, Malformed>, asked: Option<u32>,
        tasks: &mut JoinSet<()>,
    ) -> Result<(), Error> {
        while !tasks.is_empty() && tasks.try_join_next().is_some() {}
        let Frame { code, tag, .. } = *frame;
        self.tag = tag;
        self.fresh = false;
        if let Ok(Some(message)) = &message {
            tracing::trace!(target: "p9::trace", "-> {tag} {message:?}");
        }
        match message {
            Ok(Some(T::Version { .. })) => return Err(Error::Session("Tversion within a session")),
            _ if !self.versioned => return Err(Error::NoVersion(code)),
            Ok(Some(T::Flush { oldtag })) => self.requests.flush(tag, oldtag).await?,
            // Given back, whatever else waits: others may wait for just that.
            Ok(Some(T::Lease { fid, kind })) if self.context.leases.lower(fid, kind) => {
                let _begun = self.requests.begin(tag, 0)?;
                let mut head = Vec::new();
                R::Lease { kind }.encode(tag, &mut head);
                self.requests.end(tag, &head, Payload::default()).await;
            }
            Ok(Some(T::Session { .. } | T::Ack { .. })) => self.refuse(code, tag, Errno::EOPNOTSUPP).await?,
            Ok(Some(message)) if self.context.dialect.has(code) => {
                self.request(&message, frame, asked, tasks).await?;
            }
            Ok(_) => self.refuse(code, tag, Errno::EOPNOTSUPP).await?,
            Err(Malformed::Name(errno)) => self.refuse(code, tag, errno).await?,
            Err(why) => return Err(Error::Malformed { code, why }),
        }
        self.tag = NO_TAG;
        Ok(())
    }

    /// Agrees on a version and forgets all that was before.
    async fn version(&mut self, tag: u16, msize: u32, version: Str<'_>) -> Result<u32, Error> {
        let (msize, dialect) = agree(msize, version.0, &self.limits);
        if msize < Limits::MSIZE_MIN {
            return Err(Error::TooSmall(msize));
        }
        self.requests.clear();
        self.context.fids.clear();
        // Before the same client takes others.
        self.context.locks.give_back().await;
        let (tree, who, reading) = (self.context.tree.clone(), self.context.who.clone(), self.context.reading.clone());
        let (leases, push, share) = (Leases::default(), self.context.push.clone(), self.context.share.clone());
        self.versioned = dialect.is_some();
        let spoken = dialect.unwrap_or_default();
        self.context = Arc::new(Context {
            tree,
            who,
            fids: Fids::new(share.clone()),
            msize,
            dialect: spoken,
            reading,
            leases,
            locks: Locks::default(),
            push,
            share,
        });
        let version = dialect.map_or(wire::VERSION_UNKNOWN, Dialect::version);
        self.requests.end(tag, &version_reply(tag, msize, version), Payload::default()).await;
        Ok(msize)
    }

    /// Tells the peer why its connection ends.
    pub(super) async fn last_words(&mut self, errno: Errno) {
        self.requests.end(self.tag, &self.context.error_reply(0, self.tag, errno), Payload::default()).await;
    }

    /// Answers a message that is not even begun.
    async fn refuse(&mut self, code: u8, tag: u16, errno: Errno) -> Result<(), Error> {
        // Begun all the same, so that the tag is found to be free.
        let _begun = self.requests.begin(tag, 0)?;
        self.cannot(code, tag, errno).await
    }

    /// Answers a request that was begun and cannot be done.
    async fn cannot(&mut self, code: u8, tag: u16, errno: Errno) -> Result<(), Error> {
        self.requests.end(tag, &self.context.error_reply(code, tag, errno), Payload::default()).await;
        Ok(())
    }

    async fn request(
        &mut self, message: &T<'_>, frame: &Frame, asked: Option<u32>, tasks: &mut JoinSet<()>,
    ) -> Result<(), Error> {
        let Frame { code, tag, ref body } = *frame;
        let before = self.met.take();
        let met = match *message {
            T::Walk { fid, newfid, .. } => fid != newfid && asked == Some(newfid),
            T::Getattr { fid, .. } => before == Some(fid),
            _ => false,
        };
        let begun = self.requests.begin(tag, body.len())?;
        // What frees is never refused.
        if begun.full && !frees(message) {
            return self.cannot(code, tag, Errno::EAGAIN).await;
        }
        if let T::Clunk { fid } | T::Remove { fid } = message {
            self.context.leases.forget(*fid);
        }
        match Claim::of(message, &self.context.fids, self.limits.fids) {
            Ok(mut claim) => {
                self.met = asked.filter(|_| met && matches!(message, T::Walk { .. }));
                if begun.room && self.answer(message, frame, &mut claim, met).await {
                    return Ok(());
                }
                let (context, cancel) = (self.context.clone(), self.requests.cancel_of(tag));
                let request = Request { context, cancel, claim, code, tag, body: body.clone(), met };
                self.runner.run(request, tasks).await;
                Ok(())
            }
            Err(errno) => self.cannot(code, tag, errno).await,
        }
    }

    /// Answers it on the spot, if that can be done: whether it was.
    async fn answer(&mut self, message: &T<'_>, frame: &Frame, claim: &mut Claim, met: bool) -> bool {
        let Frame { code, tag, .. } = *frame;
        let span = tracing::debug_span!("req", tag);
        let Some(answer) = span.in_scope(|| quick::answer(&self.context, message, claim, met)) else { return false };
        self.head.clear();
        match answer {
            Ok(answer) => {
                let data = answer.encode(tag, &mut self.head);
                self.requests.end(tag, &self.head, data).await;
            }
            Err(errno) => {
                tracing::trace!(target: "p9::trace", "<- {tag} {errno:?}");
                self.requests.end(tag, &self.context.error_reply(code, tag, errno), Payload::default()).await;
            }
        }
        true
    }
}

impl Context {
    /// Ends the making of a fid: what stopped it, poisons it.
    pub(super) fn settle(&self, made: &mut Made, stopped: Option<Errno>) {
        let Some(errno) = stopped else { return };
        *made.state = State::Poisoned(errno);
        if self.dialect != Dialect::Slashn {
            self.fids.unmake(made.number, &made.fid);
        }
    }

    /// `Rlerror`, or 9P2000's `Rerror`, to a message of type `code`.
    pub(super) fn error_reply(&self, code: u8, tag: u16, errno: Errno) -> Vec<u8> {
        let mut head = Vec::new();
        match self.dialect {
            Dialect::Legacy => {
                R::Error { ename: Str(legacy::refusal(code, errno).as_bytes()) }.encode(tag, &mut head);
            }
            _ => R::Lerror { ecode: errno.code() as u32 }.encode(tag, &mut head),
        }
        head
    }
}

/// Whether others may wait for what this gives back.
fn frees(message: &T<'_>) -> bool {
    matches!(message, T::Clunk { .. } | T::Remove { .. } | T::Lock { kind: wire::lock::UNLCK, .. })
}
