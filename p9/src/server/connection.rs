//! The reader of one connection: takes messages in order of arrival, claims their fids, and sets them going.
//!
//! A request is a future that owns its frame. It is polled once here; if that finishes it, it has cost no task.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use tokio::io::AsyncRead;
use tokio::task::JoinSet;

use super::answer::{self, Answer};
use super::claim::Claim;
use super::fids::{Fids, State};
use super::requests::{Permit, Requests};
use super::{Error, Limits, agree, version_reply};
use crate::cancel::Cancel;
use crate::frame::{Frame, Frames};
use crate::wire::{Malformed, R, Str, T};
use crate::{Errno, TreeRef, Who};

/// What all requests of a connection share.
pub(super) struct Context {
    pub(super) tree: TreeRef,
    pub(super) who: Arc<Who>,
    pub(super) fids: Fids,
    pub(super) msize: u32,
    /// Whether a fid whose walk failed stays, poisoned.
    pub(super) poisons: bool,
}

/// One connection.
pub(super) struct Connection {
    context: Arc<Context>,
    requests: Requests,
    limits: Limits,
    versioned: bool,
}

impl Connection {
    pub(super) fn new(tree: TreeRef, who: Arc<Who>, requests: Requests, limits: Limits) -> Self {
        let context = Context { tree, who, fids: Fids::new(), msize: limits.msize, poisons: false };
        Self { context: Arc::new(context), requests, limits, versioned: false }
    }

    /// Serves until the stream ends or its peer breaks the protocol.
    pub(super) async fn run<S: AsyncRead + Unpin>(
        &mut self, frames: &mut Frames<S>, tasks: &mut JoinSet<()>,
    ) -> Result<(), Error> {
        while let Some(frame) = frames.next().await? {
            while tasks.try_join_next().is_some() {}
            let Frame { code, tag, body } = frame;
            match T::decode(code, &body) {
                Ok(Some(T::Version { msize, version })) => {
                    tasks.abort_all();
                    while tasks.join_next().await.is_some() {}
                    let agreed = self.version(tag, msize, version).await?;
                    frames.agree(agreed);
                }
                _ if !self.versioned => return Err(Error::NoVersion(code)),
                Ok(Some(T::Flush { oldtag })) => self.requests.flush(tag, oldtag).await?,
                Ok(Some(message)) => {
                    tracing::trace!(target: "p9::trace", "-> {tag} {message:?}");
                    self.request(&message, code, tag, body.clone(), tasks).await?;
                }
                Ok(None) => self.refuse(tag, Errno::EOPNOTSUPP).await?,
                Err(Malformed::Name(errno)) => self.refuse(tag, errno).await?,
                Err(why) => return Err(Error::Malformed { code, why }),
            }
        }
        Ok(())
    }

    /// Agrees on a version and forgets all that was before.
    async fn version(&mut self, tag: u16, msize: u32, version: Str<'_>) -> Result<u32, Error> {
        let (msize, version, poisons) = agree(msize, version.0, &self.limits);
        if msize < Limits::MSIZE_MIN {
            return Err(Error::TooSmall(msize));
        }
        self.requests.clear();
        self.context.fids.clear();
        let (tree, who) = (self.context.tree.clone(), self.context.who.clone());
        self.context = Arc::new(Context { tree, who, fids: Fids::new(), msize, poisons });
        self.versioned = version != crate::wire::VERSION_UNKNOWN;
        self.requests.end(tag, version_reply(tag, msize, version), Bytes::new()).await;
        Ok(msize)
    }

    /// Answers a message that is not even begun.
    async fn refuse(&self, tag: u16, errno: Errno) -> Result<(), Error> {
        // Begun all the same, so that the tag is found to be free.
        let _permit = self.requests.begin(tag, 0)?;
        self.requests.end(tag, error_reply(tag, errno), Bytes::new()).await;
        Ok(())
    }

    async fn request(
        &self, message: &T<'_>, code: u8, tag: u16, body: Bytes, tasks: &mut JoinSet<()>,
    ) -> Result<(), Error> {
        let answered = match *message {
            T::Read { count, .. } | T::Readdir { count, .. } => count.min(self.context.msize) as usize,
            _ => 0,
        };
        let (cancel, permit) = match self.requests.begin(tag, body.len() + answered)? {
            Ok(begun) => begun,
            Err(errno) => {
                self.requests.end(tag, error_reply(tag, errno), Bytes::new()).await;
                return Ok(());
            }
        };
        let claim = match Claim::of(message, &self.context.fids, self.limits.fids).await {
            Ok(claim) => claim,
            Err(errno) => {
                self.requests.end(tag, error_reply(tag, errno), Bytes::new()).await;
                return Ok(());
            }
        };
        let (context, requests) = (self.context.clone(), self.requests.clone());
        let request = Request { context, requests, cancel, _permit: permit, claim, code, tag, body };
        let mut running = Box::pin(request.run());
        if poll_fn(|cx| Poll::Ready(running.as_mut().poll(cx))).await.is_pending() {
            tasks.spawn(running);
        }
        Ok(())
    }
}

/// `Rlerror`, encoded.
fn error_reply(tag: u16, errno: Errno) -> Vec<u8> {
    let mut head = Vec::new();
    R::Lerror { ecode: errno.code() as u32 }.encode(tag, &mut head);
    head
}

/// A request under way.
struct Request {
    context: Arc<Context>,
    requests: Requests,
    cancel: Cancel,
    _permit: Permit,
    claim: Claim,
    code: u8,
    tag: u16,
    body: Bytes,
}

impl Request {
    async fn run(self) {
        let Self { context, requests, cancel, _permit, claim, code, tag, body } = self;
        // Checked when it arrived; decoded again because a message borrows from its frame.
        let Ok(Some(message)) = T::decode(code, &body) else { return };
        let answer = match claim {
            Claim::Make(from, mut made) => {
                let answer = cancel.run(answer::make(&context, &message, from, &mut made.state)).await;
                let failed = match &answer {
                    Ok(Answer { stopped, .. }) => *stopped,
                    Err(errno) => Some(*errno),
                };
                if let Some(errno) = failed {
                    *made.state = State::Poisoned(errno);
                    if !context.poisons {
                        context.fids.unmake(made.number, &made.fid);
                    }
                }
                answer
            }
            claim => cancel.run(answer::answer(&context, &message, claim, &body)).await,
        };
        let (head, data) = match answer {
            Ok(answer) => answer.encode(tag),
            Err(errno) => {
                tracing::trace!(target: "p9::trace", "<- {tag} {errno:?}");
                (error_reply(tag, errno), Bytes::new())
            }
        };
        requests.end(tag, head, data).await;
    }
}
