//! An answer that is ready now, at no cost, or later.
//!
//! Dispatch through a ready reply costs about 15 ns, so a tree that answers from memory pays for no future, no box
//! and no task. Dropping a pending reply cancels the request: see [`crate::tree`] for what that promises.

use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::Errno;

/// An answer: ready now, or being worked on. Await it either way.
#[must_use = "dropping a reply cancels the request"]
pub enum Reply<'a, T> {
    /// Ready.
    Now(Ready<Result<T, Errno>>),
    /// Being worked on.
    Later(Pin<Box<dyn Future<Output = Result<T, Errno>> + Send + 'a>>),
}

impl<'a, T> Reply<'a, T> {
    /// An answer that has to be waited for.
    pub fn later(work: impl Future<Output = Result<T, Errno>> + Send + 'a) -> Self {
        Self::Later(Box::pin(work))
    }

    /// The answer `value`.
    pub fn ok(value: T) -> Self {
        Self::from(Ok(value))
    }

    /// Does `then` to the answer: at once if there is one.
    pub fn then<U>(self, then: impl FnOnce(Result<T, Errno>) -> Result<U, Errno> + Send + 'a) -> Reply<'a, U>
    where
        T: 'a,
    {
        match self {
            Self::Now(ready) => then(ready.into_inner()).into(),
            Self::Later(work) => Reply::later(async move { then(work.await) }),
        }
    }

    /// Does `then` to an answer that is no error.
    pub fn map<U>(self, then: impl FnOnce(T) -> U + Send + 'a) -> Reply<'a, U>
    where
        T: 'a,
    {
        self.then(|answer| answer.map(then))
    }
}

impl<T> From<Result<T, Errno>> for Reply<'_, T> {
    fn from(answer: Result<T, Errno>) -> Self {
        Self::Now(ready(answer))
    }
}

impl<T> From<Errno> for Reply<'_, T> {
    fn from(errno: Errno) -> Self {
        Self::from(Err(errno))
    }
}

impl<T> Future for Reply<'_, T> {
    type Output = Result<T, Errno>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Now(ready) => Pin::new(ready).poll(cx),
            Self::Later(work) => work.as_mut().poll(cx),
        }
    }
}

// Nothing in a reply is pinned in place: `Later` is a box.
impl<T> Unpin for Reply<'_, T> {}

impl<T> std::fmt::Debug for Reply<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Reply::Now",
            Self::Later(_) => "Reply::Later",
        })
    }
}
