//! Runs requests, each to its end: in place as far as that goes, else in a task of its own.
//!
//! Called by the reader of a connection, in order, for each request that was not answered on the spot. The runner is
//! one future that answers request after request, so that what is answered when it is first looked at costs no task, no
//! box and no other allocation. A request that has to wait takes that future along into a task, and the next gets
//! another.

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tracing::{Instrument, Span};

use super::answer;
use super::claim::Claim;
use super::connection::Context;
use super::requests::Requests;
use crate::Errno;
use crate::cancel::Cancel;
use crate::wire::T;
use crate::writer::Payload;

/// A request whose fids are claimed.
pub(super) struct Request {
    pub(super) context: Arc<Context>,
    pub(super) cancel: Cancel,
    pub(super) claim: Claim,
    pub(super) code: u8,
    pub(super) tag: u16,
    pub(super) body: Bytes,
    /// A walk keeps what it meets for a getattr that came along with it; that takes it.
    pub(super) met: bool,
}

/// Runs the requests of one connection.
pub(super) struct Runner {
    requests: Requests,
    next: Arc<Mutex<Next>>,
    running: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// What the running future has to do.
enum Next {
    Nothing,
    This(Request),
    /// It is at it.
    Taken,
}

impl Runner {
    pub(super) fn new(requests: Requests) -> Self {
        let next = Arc::new(Mutex::new(Next::Nothing));
        let running = Box::pin(run(requests.clone(), next.clone()));
        Self { requests, next, running }
    }

    /// Runs `request`: to its end, if it need not wait, else as one of `tasks`.
    pub(super) fn run(&mut self, request: Request, tasks: &mut JoinSet<()>) -> impl Future<Output = ()> {
        let span = tracing::debug_span!("req", tag = request.tag);
        // At once, so that it is moved no more than once.
        *self.next.lock() = Next::This(request);
        self.go(span, tasks)
    }

    async fn go(&mut self, span: Span, tasks: &mut JoinSet<()>) {
        let waits = poll_fn(|cx| {
            let _never_ends = span.in_scope(|| self.running.as_mut().poll(cx));
            Poll::Ready(!matches!(*self.next.lock(), Next::Nothing))
        });
        if waits.await {
            let waiting = std::mem::replace(self, Self::new(self.requests.clone()));
            tasks.spawn(waiting.running.instrument(span.or_current()));
        }
    }
}

/// Answers one request after another, until there is nobody who would give it any more.
async fn run(requests: Requests, next: Arc<Mutex<Next>>) {
    let mut head = Vec::new();
    let more = || {
        let mut state = next.lock();
        match std::mem::replace(&mut *state, Next::Taken) {
            Next::This(request) => return Poll::Ready(Some(request)),
            _ if Arc::strong_count(&next) == 1 => return Poll::Ready(None),
            _ => *state = Next::Nothing,
        }
        Poll::Pending
    };
    while let Some(request) = poll_fn(|_| more()).await {
        let tag = request.tag;
        let data = request.answer(&mut head).await;
        requests.end(tag, &head, data).await;
    }
}

impl Request {
    /// Makes the reply: its head in `head`, and the data that follows.
    async fn answer(self, head: &mut Vec<u8>) -> Payload {
        let Self { context, cancel, claim, code, tag, body, met } = self;
        head.clear();
        // Each future is pinned where it is made and passed on by reference: who takes one by value keeps it twice.
        let answered = match claim {
            Claim::Make(from, mut made) => {
                let made_it = {
                    let making = pin!(async {
                        let message = decoded(code, &body)?;
                        let answer = answer::make(&context, &message, from, met, &mut made.state).await?;
                        Ok((answer.stopped, answer.encode(tag, head)))
                    });
                    cancel.run(caught(making)).await
                };
                context.settle(&mut made, made_it.as_ref().map_or_else(|errno| Some(*errno), |(stopped, _)| *stopped));
                made_it.map(|(_, data)| data)
            }
            claim => {
                let answering = pin!(async {
                    let message = decoded(code, &body)?;
                    Ok(answer::answer(&context, &message, claim, met, &body).await?.encode(tag, head))
                });
                cancel.run(caught(answering)).await
            }
        };
        answered.unwrap_or_else(|errno| {
            tracing::trace!(target: "p9::trace", "<- {tag} {errno:?}");
            *head = context.error_reply(code, tag, errno);
            Payload::default()
        })
    }
}

/// The message of a frame: decoded once more, since it borrows from what a request owns.
fn decoded(code: u8, body: &[u8]) -> Result<T<'_>, Errno> {
    T::decode(code, body).ok().flatten().ok_or(Errno::EPROTO)
}

/// A tree that panics has failed this one request: it is answered, like any other.
async fn caught<A>(answer: Pin<&mut impl Future<Output = Result<A, Errno>>>) -> Result<A, Errno> {
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|_| Err(panicked()))
}

/// What a request is answered whose tree panicked.
pub(super) fn panicked() -> Errno {
    tracing::error!("a tree panicked");
    Errno::EIO
}
