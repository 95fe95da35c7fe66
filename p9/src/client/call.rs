//! Calls: one message or several that go out together, and their replies.
//!
//! A call that is dropped sends Tflush. One that is cancelled (see [`crate::cancel`]) does so, too, and then waits for
//! what the server says: the reply, if that was on its way, or the word that there will be none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::fid::Fid;
use super::link::{CALLS, Link, Wire};
use super::waits::Ticket;
use crate::frame::Frame;
use crate::wire::{R, T, legacy};
use crate::{Errno, cancel};

/// How long a server may take to answer a flush before the caller goes on without it.
const FLUSH: Duration = Duration::from_secs(10);

/// A reply.
pub(super) struct Answer(Frame);

impl Answer {
    /// The message. Errors: what an `Rlerror` says; `EPROTO` for what is none.
    pub(super) fn message(&self) -> Result<R<'_>, Errno> {
        match R::decode(self.0.code, &self.0.body) {
            Ok(Some(R::Lerror { ecode })) => Err(Errno::from_code(ecode as i32)),
            Ok(Some(R::Error { ename })) => Err(legacy::errno_of(ename.0)),
            Ok(Some(message)) => Ok(message),
            _ => Err(Errno::EPROTO),
        }
    }

    /// The frame that the message borrows from.
    pub(super) fn frame(&self) -> &Bytes {
        &self.0.body
    }
}

/// Messages that are under way.
pub(super) struct Calls {
    wire: Arc<Wire>,
    pending: Vec<(Ticket, oneshot::Receiver<Frame>)>,
    /// Those before this one have their replies.
    at: usize,
}

impl Link {
    /// One message and its reply.
    pub(super) async fn call(&self, message: T<'_>) -> Result<Answer, Errno> {
        self.calls(&[(message, Bytes::new())]).await?.next().await
    }

    /// Sends several messages together; their replies come in the same order.
    pub(super) async fn calls(&self, messages: &[(T<'_>, Bytes)]) -> Result<Calls, Errno> {
        self.wire.calls(messages, None).await
    }

    /// Clunks `fid` and waits for the answer. A clunk is never flushed: whoever gives up on it lets it go its way.
    pub(super) async fn clunk(&self, fid: u32) -> Result<(), Errno> {
        let mut answer = self.wire.clunk(fid)?;
        self.wire.round_trips.fetch_add(1, Ordering::Relaxed);
        self.wire.reply(&mut answer, || {}).await?.message().map(|_| ())
    }
}

impl Wire {
    /// Sends several messages together, which are bulk of `fid` if there is one.
    pub(super) async fn calls(
        self: &Arc<Self>, messages: &[(T<'_>, Bytes)], fid: Option<&Arc<Fid>>,
    ) -> Result<Calls, Errno> {
        let count = messages.len();
        if count > CALLS {
            return Err(Errno::E2BIG);
        }
        let permit = self.calls.clone().acquire_many_owned(count as u32).await;
        let pending = self.send(messages, permit.map_err(|_| self.verdict())?, fid)?;
        self.round_trips.fetch_add(1, Ordering::Relaxed);
        Ok(Calls { wire: self.clone(), pending, at: 0 })
    }

    /// Sends several messages together whose answers nobody wants: what goes wrong is met by what follows them.
    pub(super) async fn say(self: &Arc<Self>, messages: &[(T<'_>, Bytes)]) -> Result<(), Errno> {
        let permit = self.calls.clone().acquire_many_owned(messages.len() as u32).await;
        self.send(messages, permit.map_err(|_| self.verdict())?, None).map(drop)
    }

    /// Waits for a reply; a caller that is asked to end calls `stop` and waits a while longer. Errors: `EINTR` if there
    /// will be none; `EHOSTUNREACH` if the link ended before, `ECONNRESET` if a session did.
    async fn reply(&self, receiver: &mut oneshot::Receiver<Frame>, stop: impl FnOnce()) -> Result<Answer, Errno> {
        let _hold = cancel::hold();
        let frame = tokio::select! {
            biased;
            frame = &mut *receiver => frame.ok(),
            () = cancel::asked() => {
                stop();
                tokio::time::timeout(FLUSH, receiver).await.ok().and_then(Result::ok)
            }
        };
        match frame {
            Some(frame) => Ok(Answer(frame)),
            None if self.is_closed() => Err(self.unproven()),
            None => Err(Errno::EINTR),
        }
    }
}

impl Calls {
    /// The next reply. Errors: `EINTR` if it was cancelled; `EHOSTUNREACH` if the connection ended before.
    pub(super) async fn next(&mut self) -> Result<Answer, Errno> {
        let Some((request, receiver)) = self.pending.get_mut(self.at) else { return Err(Errno::EPROTO) };
        let answer = self.wire.reply(receiver, || self.wire.flush(*request)).await;
        self.at += 1;
        answer
    }

    /// Waits for the replies that are still to come, where one before failed and so they are sure to come at once.
    pub(super) async fn rest(&mut self) {
        while self.at < self.pending.len() && self.next().await.is_ok() {}
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        for (request, _) in &self.pending[self.at..] {
            self.wire.flush(*request);
        }
    }
}
