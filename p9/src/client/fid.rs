//! A fid of the server's, as long as somebody uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::bulk::Uses;
use super::link::Link;
use crate::Errno;

/// A fid. Dropping it clunks it, without waiting.
pub(super) struct Fid {
    pub(super) link: Arc<Link>,
    number: u32,
    /// Whether the server has it for certain: a plain server may get a clunk before the walk that makes the fid.
    settled: AtomicBool,
    /// Whether it was clunked already, or never was.
    gone: AtomicBool,
    /// What is under way of bulk: it need not go the way of all else, and is waited for by what must come after it.
    pub(super) uses: Uses,
}

impl Fid {
    pub(super) fn new(link: Arc<Link>, number: u32) -> Arc<Self> {
        let (settled, gone) = (AtomicBool::new(false), AtomicBool::new(false));
        Arc::new(Self { link, number, settled, gone, uses: Uses::default() })
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// The server has it.
    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    /// Nothing was ever sent that makes it.
    pub(super) fn never_made(&self) {
        if !self.gone.swap(true, Ordering::Relaxed) {
            self.link.wire.free_fid(self.number);
        }
    }

    /// The server answered that it does not have it. Where fids are ordered it is poisoned, and clunked all the same.
    pub(super) fn failed(&self) {
        if !self.link.ordered {
            self.never_made();
        }
    }

    /// Clunks it, without waiting.
    pub(super) fn let_go(&self) {
        if !self.gone.swap(true, Ordering::Relaxed) {
            let settled = self.link.ordered || self.settled.load(Ordering::Relaxed);
            self.link.wire.give_up(self.number, settled);
        }
    }

    /// Clunks it and waits for the answer.
    pub(super) async fn close(&self) -> Result<(), Errno> {
        self.uses.end().await;
        if self.gone.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        self.link.clunk(self.number).await
    }
}

impl Drop for Fid {
    fn drop(&mut self) {
        self.let_go();
    }
}
