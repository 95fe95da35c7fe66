//! The bytes of a session's stdin, stdout and stderr, on their way between the files and the command's pipes.
//!
//! A flow is bounded: a command that writes more than its readers take waits, and so does a writer whose bytes the
//! command does not take. Bytes are addressed by offset, so that requests may overtake one another and a client that
//! comes back knows where it was. The files' side runs in the tasks that answer requests, the pipes' side in a task of
//! the job. No lock is held while anything waits.
//!
//! An open file counts from its own first offset: one that lies in what is gone already means the oldest byte that is
//! still there, so that a second `cat N/stdout`, or a second `echo x >>N/stdin`, goes on where the first one stopped.

pub(crate) mod input;
pub(crate) mod output;

use std::pin::pin;
use std::sync::OnceLock;

use tokio::sync::Notify;

pub(crate) use input::Input;
pub(crate) use output::Output;

/// Waits until `look` finds something; whoever changes what it looks at calls `changed.notify_waiters()` afterwards.
pub(crate) async fn until<T>(changed: &Notify, mut look: impl FnMut() -> Option<T>) -> T {
    loop {
        let mut notified = pin!(changed.notified());
        // Registered before the look, so that no change is missed.
        notified.as_mut().enable();
        if let Some(found) = look() {
            return found;
        }
        notified.await;
    }
}

/// Where one open file's offsets are in the flow, fixed by the first of them.
#[derive(Default)]
struct Frame(OnceLock<u64>);

impl Frame {
    /// The place in the flow of this file's `offset`; `oldest` is the lowest place that still means something.
    fn place(&self, offset: u64, oldest: impl FnOnce() -> u64) -> u64 {
        offset.saturating_add(*self.0.get_or_init(|| oldest().saturating_sub(offset)))
    }
}
