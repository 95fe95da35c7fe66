//! The writes of one file, one after another by one thread.
//!
//! The kernel lets one write of a file in at a time. Those that are under way together would each take a thread of the
//! blocking pool, which spins until its turn has come; so whoever finds a thread at it leaves its write to that.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Written;
use crate::Errno;

/// A write, and who wants to know what it did.
pub(super) struct Write {
    pub(super) offset: u64,
    pub(super) data: Bytes,
    pub(super) done: oneshot::Sender<Result<Written, Errno>>,
}

/// The writes that wait for their turn; `None` while no thread is at it.
#[derive(Default)]
pub(super) struct Line(Mutex<Option<VecDeque<Write>>>);

impl Line {
    /// Has `write` wait for its turn. Gives it back if no thread is at it: then one is to be, from now on.
    pub(super) fn join(&self, write: Write) -> Option<Write> {
        let mut line = self.0.lock();
        match &mut *line {
            Some(waiting) => {
                waiting.push_back(write);
                None
            }
            None => {
                *line = Some(VecDeque::new());
                Some(write)
            }
        }
    }

    /// The next write, for the thread that is at it; `None` once there is none, and that is at it no more.
    pub(super) fn next(&self) -> Option<Write> {
        let mut line = self.0.lock();
        let next = line.as_mut().and_then(VecDeque::pop_front);
        if next.is_none() {
            *line = None;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_is_at_it_and_takes_what_others_leave_it() {
        let line = Line::default();
        let write = |offset| Write { offset, data: Bytes::new(), done: oneshot::channel().0 };
        let offset = |write: Option<Write>| write.map(|write| write.offset);
        assert_eq!(offset(line.join(write(1))), Some(1), "nobody is at it");
        assert!(line.join(write(2)).is_none() && line.join(write(3)).is_none());
        assert_eq!((offset(line.next()), offset(line.next()), offset(line.next())), (Some(2), Some(3), None));
        assert_eq!(offset(line.join(write(4))), Some(4), "nobody is at it any more");
    }
}
