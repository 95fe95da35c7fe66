//! A fid of the server's, as long as somebody uses it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::link::Link;
use crate::Errno;
use crate::wire::T;

/// A fid. Dropping it clunks it, without waiting.
pub(super) struct Fid {
    pub(super) link: Arc<Link>,
    number: u32,
    /// Whether the server has it for certain: a plain server may get a clunk before the walk that makes the fid.
    settled: AtomicBool,
    /// Whether it was clunked already, or never was.
    gone: AtomicBool,
}

impl Fid {
    pub(super) fn new(link: Arc<Link>, number: u32) -> Arc<Self> {
        Arc::new(Self { link, number, settled: AtomicBool::new(false), gone: AtomicBool::new(false) })
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// The server has it.
    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::Relaxed);
    }

    /// The server answered that it does not have it. Where fids are ordered it is poisoned, and clunked all the same.
    pub(super) fn failed(&self) {
        if !self.link.ordered && !self.gone.swap(true, Ordering::Relaxed) {
            self.link.wire.free_fid(self.number);
        }
    }

    /// Clunks it and waits for the answer.
    pub(super) async fn close(&self) -> Result<(), Errno> {
        if self.gone.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let answer = self.link.call(T::Clunk { fid: self.number }).await?;
        self.link.wire.free_fid(self.number);
        answer.message().map(|_| ())
    }
}

impl Drop for Fid {
    fn drop(&mut self) {
        // One whose walk may still be under way at a plain server is given up: the number is not used again.
        let known = self.link.ordered || self.settled.load(Ordering::Relaxed);
        if known && !self.gone.load(Ordering::Relaxed) {
            self.link.wire.clunk(self.number);
        }
    }
}
