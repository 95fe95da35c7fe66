//! Calls: one message or several that go out together, and their replies.
//!
//! A call that is dropped sends Tflush. One that is cancelled (see [`crate::cancel`]) does so, too, and then waits for
//! what the server says: the reply, if that was on its way, or the word that there will be none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::link::{Link, Wire};
use crate::frame::Frame;
use crate::wire::{R, T};
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
    pending: Vec<(u16, oneshot::Receiver<Frame>)>,
    /// Those before this one have their replies.
    at: usize,
    _permit: Option<OwnedSemaphorePermit>,
}

impl Link {
    /// One message and its reply.
    pub(super) async fn call(&self, message: T<'_>) -> Result<Answer, Errno> {
        self.calls(&[(message, Bytes::new())]).await?.next().await
    }

    /// Sends several messages together; their replies come in the same order.
    pub(super) async fn calls(&self, messages: &[(T<'_>, Bytes)]) -> Result<Calls, Errno> {
        let permit = self.wire.calls.clone().acquire_many_owned(messages.len() as u32).await.ok();
        self.wire.round_trips.fetch_add(1, Ordering::Relaxed);
        let pending = self.wire.send(messages)?;
        Ok(Calls { wire: self.wire.clone(), pending, at: 0, _permit: permit })
    }
}

impl Calls {
    /// The next reply. Errors: `EINTR` if it was cancelled; `EHOSTUNREACH` if the connection ended before.
    pub(super) async fn next(&mut self) -> Result<Answer, Errno> {
        let Some((tag, receiver)) = self.pending.get_mut(self.at) else { return Err(Errno::EPROTO) };
        let _hold = cancel::hold();
        let frame = tokio::select! {
            biased;
            frame = &mut *receiver => frame.ok(),
            () = cancel::asked() => {
                self.wire.flush(*tag);
                tokio::time::timeout(FLUSH, receiver).await.ok().and_then(Result::ok)
            }
        };
        self.at += 1;
        match frame {
            Some(frame) => Ok(Answer(frame)),
            None if self.wire.is_closed() => Err(Errno::EHOSTUNREACH),
            None => Err(Errno::EINTR),
        }
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        for (tag, _) in &self.pending[self.at..] {
            self.wire.flush(*tag);
        }
    }
}
