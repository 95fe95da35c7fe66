//! Answers what needs no waiting, on the spot.
//!
//! Called by the reader of a connection for each message, once its fids are claimed. Most are walks, looks, small reads
//! and clunks that a tree answers from memory: those never become requests that anybody could flush, and cost no more
//! than the answer itself. What has to wait, for its turn or for the tree, is left as it was and goes the long way (see
//! [`super::runner`]).

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::answer::walk::{self, Walked};
use super::answer::{self, Answer, Fields, READ_HEADER};
use super::claim::Claim;
use super::connection::Context;
use super::fids::{File, Turn};
use super::pool::COUNTED;
use super::runner::panicked;
use crate::wire::{R, Steps, T};
use crate::{Errno, Handle, How, Reply, Want, buffers};

/// The answer to `message`, if there is one already; `met` is that of [`super::runner::Request`]. With `None` nothing
/// was done.
pub(super) fn answer(
    context: &Context, message: &T<'_>, claim: &mut Claim, met: bool,
) -> Option<Result<Answer, Errno>> {
    match (*message, claim) {
        (T::Walk { steps, .. }, Claim::Make(Some(Ok(Turn::Now(from))), made)) => {
            let walked = walk(from.file().ok()?, steps, met)?;
            let answer = walked.map(|walked| walked.answer(&mut made.state));
            context.settle(made, answer.as_ref().map_or_else(|errno| Some(*errno), |answer| answer.stopped));
            Some(answer)
        }
        (T::Getattr { mask, .. }, Claim::Shared(Turn::Now(state))) => {
            let file = state.file().ok()?;
            let attr = match file.take_met().filter(|_| met) {
                Some(attr) => Ok(attr),
                None => now(|| file.node.attr())?,
            };
            Some(attr.map(|attr| R::of_attr(&attr, mask).into()))
        }
        (T::Read { offset, count, .. }, Claim::Shared(Turn::Now(state))) => {
            let Some(Handle::Fd(open)) = &state.file().ok()?.open else { return None };
            let count = count.min(context.msize - READ_HEADER as u32);
            // What is large needs room.
            let read = ((count as usize) < COUNTED).then(|| now(|| open.read_into(buffers::data, offset, count)))??;
            Some(read.map(|bytes| Fields::Read(bytes.into()).into()))
        }
        (T::Lopen { flags, .. }, Claim::Alone(Turn::Now(state))) => {
            let (file, how) = (state.file_mut().ok()?, How::from_wire(flags).ok()?);
            // One to change it has others give way, which is begun once.
            let how = Some(how).filter(|how| !how.changes())?;
            let open = if file.open.is_none() { now(|| file.node.open(how))? } else { return None };
            Some(open.map(|open| answer::opened(file, open, how)))
        }
        (T::Clunk { .. }, Claim::Alone(Turn::Now(state))) => {
            let closes = |file: &File| file.extra.is_none() && !matches!(file.open, Some(Handle::Stream(_)));
            state.file().ok().filter(|file| closes(file))?;
            let gone = std::mem::take(&mut **state);
            Some(caught(|| drop(gone)).map(|()| R::Clunk {}.into()))
        }
        _ => None,
    }
}

fn walk(file: &File, steps: Steps<'_>, met: bool) -> Option<Result<Walked, Errno>> {
    let names = walk::down(steps).ok()??;
    if names.is_empty() {
        return Some(Ok(Walked::nowhere(file.node.clone(), file.place.clone())));
    }
    match now(|| file.node.walk(&names, Want { attr: met, ..Want::default() }))? {
        Ok(walk) => Walked::of(file.place.clone(), &names, walk).map(Ok),
        Err(errno) => Some(Err(errno)),
    }
}

/// What `ask` gives, if that is there already.
fn now<'a, A>(ask: impl FnOnce() -> Reply<'a, A>) -> Option<Result<A, Errno>> {
    let asked = caught(|| match ask() {
        Reply::Now(ready) => Some(ready.into_inner()),
        // Nothing is done before it is waited for.
        Reply::Later(_) => None,
    });
    asked.unwrap_or_else(|errno| Some(Err(errno)))
}

/// What `work`, a tree's, gives; a tree that panics has failed this one request.
fn caught<A>(work: impl FnOnce() -> A) -> Result<A, Errno> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| panicked())
}
