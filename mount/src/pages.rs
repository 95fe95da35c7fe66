//! Pages of a file, given to the kernel before it asks for them.
//!
//! What is given takes the place of what the kernel has there. So nothing is given while somebody may change the file
//! through this mount, whose changes the kernel may not have sent yet, and whoever begins to waits until what is being
//! given has arrived; so does whoever has the kernel drop its pages, once what they hold is old. Asked in the requests'
//! tasks, and by the threads that tell the kernel. To give may wait for reads of the same pages. Invariant: whoever
//! waits for pages to be given is the only one who gives any of that file: those whose reads are waited for never wait
//! so themselves.

use std::sync::Arc;

use bytes::Bytes;
use fuser::INodeNo;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::kept::File;
use crate::table::Inode;
use crate::tell::Kernel;

/// Who gives pages of one file, and who keeps them away.
#[derive(Default)]
pub(crate) struct Pages {
    state: Mutex<State>,
    settled: Notify,
}

#[derive(Default)]
struct State {
    away: usize,
    giving: bool,
}

/// While this lives, the kernel is given no pages of the file.
pub(crate) struct Away(Arc<Inode>);

/// Pages of the file are being given.
struct Giving<'a>(&'a Pages);

impl Pages {
    fn give(&self) -> Option<Giving<'_>> {
        let mut state = self.state.lock();
        (state.away == 0 && !state.giving).then(|| {
            state.giving = true;
            Giving(self)
        })
    }

    /// Returns when no pages are being given that were fetched before.
    pub(crate) async fn settled(&self) {
        loop {
            let settled = self.settled.notified();
            if !self.state.lock().giving {
                return;
            }
            settled.await;
        }
    }
}

impl Away {
    /// The kernel is given no pages of `inode` from now on.
    pub(crate) async fn from(inode: &Arc<Inode>) -> Self {
        inode.pages().state.lock().away += 1;
        let away = Self(inode.clone());
        inode.pages().settled().await;
        away
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        self.0.pages().state.lock().away -= 1;
    }
}

impl Drop for Giving<'_> {
    fn drop(&mut self) {
        self.0.state.lock().giving = false;
        self.0.settled.notify_waiters();
    }
}

/// Pages of one file for the kernel.
pub(crate) struct Gift {
    inode: Arc<Inode>,
    /// Of which they were read.
    file: Arc<File>,
    /// [`Inode::writes`] by then.
    writes: u64,
    /// Each with its offset. What does not end the file is of whole pages.
    pages: Vec<(u64, Bytes)>,
}

impl Gift {
    /// These `pages` of `inode`, each with its offset, which were read of `file` when [`Inode::writes`] was `writes`.
    /// What does not end the file is of whole pages.
    pub(crate) fn of(inode: &Arc<Inode>, file: &Arc<File>, writes: u64, pages: Vec<(u64, Bytes)>) -> Self {
        Self { inode: inode.clone(), file: file.clone(), writes, pages }
    }

    /// All of `file`, which was fetched and is `inode`; `None` if somebody has opened it meanwhile.
    pub(crate) fn whole(inode: &Arc<Inode>, file: &Arc<File>) -> Option<Self> {
        let bytes = file.as_fetched().and(file.first.clone()).filter(|_| !file.was_opened())?;
        Some(Self::of(inode, file, inode.writes(), vec![(0, bytes)]))
    }

    /// Gives it, unless it may be old, or somebody else is giving pages of the file. It blocks.
    pub(crate) fn give(&self, kernel: &Kernel) {
        let Self { inode, file, writes, pages } = self;
        // In this order: whoever makes them old from here on has what was given dropped.
        let Some(_giving) = inode.pages().give() else { return };
        if !file.is_filled_as(inode) || inode.writes() != *writes {
            return;
        }
        for (offset, bytes) in pages.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            if let Err(err) = kernel.store(INodeNo(inode.id), *offset, bytes) {
                tracing::debug!(%err, "the kernel was not given pages");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn nothing_is_given_while_somebody_may_change_the_file_and_who_begins_to_waits() {
        let inode = Inode::root_for_tests();
        let cx = &mut Context::from_waker(Waker::noop());
        let giving = inode.pages().give();
        assert!(giving.is_some() && inode.pages().give().is_none(), "one at a time");
        let mut begins = pin!(Away::from(&inode));
        assert!(begins.as_mut().poll(cx).is_pending(), "something is being given");
        assert!(inode.pages().give().is_none(), "somebody is about to change the file");
        drop(giving);
        let Poll::Ready(away) = begins.poll(cx) else { panic!("nothing is being given") };
        assert!(inode.pages().give().is_none());
        drop(away);
        assert!(inode.pages().give().is_some());
    }

    #[test]
    fn who_gives_up_to_begin_keeps_nothing_away() {
        let inode = Inode::root_for_tests();
        let giving = inode.pages().give();
        {
            let mut begins = pin!(Away::from(&inode));
            assert!(begins.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        drop(giving);
        assert!(inode.pages().give().is_some());
    }
}
