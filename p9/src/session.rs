//! What makes a reliable stream of frames out of connections that break: numbers, what is kept, what is acknowledged.
//!
//! Used on both sides of a session (see `DIALECT.md`), one [`Ledger`] for each lane: by [`crate::server`] for the
//! replies that it sends and the requests that it takes, by [`crate::client`] the other way round. There is no I/O here
//! and no clock. Invariant: a frame that was sent is kept until the other side has said that it came, and what came is
//! counted once it was taken up for good; so that after a loss each side sends again exactly what the other has not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::writer::Outgoing;

/// How long a lease lasts when nothing is heard, unless a session says otherwise: a client uses what it kept for no
/// longer, a server waits for the answer to a break for as long.
pub const LEASE: Duration = Duration::from_secs(5);
/// Frames after which they are acknowledged.
const ACK_FRAMES: u64 = 64;
/// Bytes of frames after which they are acknowledged.
const ACK_BYTES: usize = 256 << 10;
/// How long a frame may wait for its acknowledgement.
pub(crate) const ACK_TIME: Duration = Duration::from_millis(100);
/// Unacknowledged bytes past which nothing new is sent.
pub(crate) const WINDOW: usize = 16 << 20;
/// What of these is left to frames that are not bulk.
const SMALL: usize = 1 << 20;
/// What a frame counts for besides its bytes, so that many small ones are bounded, too.
const OVERHEAD: usize = 64;
/// Messages of more bytes than this are bulk, which has a lane of its own.
pub(crate) const BULK: usize = 64 << 10;
/// What is "received" by a side that ends the session.
pub(crate) const FAREWELL: u64 = !0;
/// The `state` that a server's session is in which it has ended, to end itself.
pub(crate) const LEFT: u8 = 2;

/// What a frame of `bytes` bytes counts for.
pub(crate) fn cost(bytes: usize) -> usize {
    bytes + OVERHEAD
}

/// What all the sessions of a server may keep together.
pub(crate) struct Budget {
    used: AtomicUsize,
    most: usize,
}

impl Budget {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { used: AtomicUsize::new(0), most })
    }

    /// What they keep, in bytes.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn is_spent(&self) -> bool {
        self.used() >= self.most
    }
}

/// A number that the other side cannot mean.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("it acknowledges {received} frames, where {first} to {sent} can be meant")]
pub struct Impossible {
    received: u64,
    first: u64,
    sent: u64,
}

/// One side's account of a lane.
pub(crate) struct Ledger {
    /// Frames that were sent first so far.
    sent: u64,
    /// The last of them, as far as they are not acknowledged.
    kept: VecDeque<Outgoing>,
    /// What those count for.
    bytes: usize,
    budget: Arc<Budget>,
    /// Frames that were taken up.
    received: u64,
    /// What the other side was told of that.
    told: u64,
    /// What was taken up since counts for.
    untold: usize,
}

impl Ledger {
    /// A new one, which keeps what `budget` allows.
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self { sent: 0, kept: VecDeque::new(), bytes: 0, budget, received: 0, told: 0, untold: 0 }
    }

    /// Whether one more frame may be sent. At least one may be under way whatever others keep, or nothing would go on.
    /// What is bulk leaves some room to what is small.
    pub(crate) fn has_room(&self, bulk: bool) -> bool {
        let window = if bulk { WINDOW - SMALL } else { WINDOW };
        self.kept.is_empty() || (self.bytes < window && !self.budget.is_spent())
    }

    /// Keeps `frame`, with the room that it takes; gives what is to be written of it now.
    pub(crate) fn sends(&mut self, frame: Outgoing) -> Outgoing {
        self.sent += 1;
        self.account(cost(frame.size()), true);
        let written = frame.clone();
        self.kept.push_back(frame);
        written
    }

    fn account(&mut self, cost: usize, more: bool) {
        let change = if more { AtomicUsize::fetch_add } else { AtomicUsize::fetch_sub };
        change(&self.budget.used, cost, Ordering::Relaxed);
        self.bytes = if more { self.bytes + cost } else { self.bytes - cost };
    }

    /// A frame of `bytes` bytes was taken up.
    pub(crate) fn takes(&mut self, bytes: usize) {
        self.received += 1;
        self.untold += cost(bytes);
    }

    /// Whether the other side is to be told without delay what was taken up.
    pub(crate) fn is_due(&self) -> bool {
        self.received - self.told >= ACK_FRAMES || self.untold >= ACK_BYTES
    }

    /// Whether anything was taken up of which the other side was not told.
    pub(crate) fn has_untold(&self) -> bool {
        self.received > self.told
    }

    /// What the other side is now told: how many frames were taken up.
    pub(crate) fn tells(&mut self) -> u64 {
        (self.told, self.untold) = (self.received, 0);
        self.received
    }

    /// Whether the other side has acknowledged more than `received` frames before.
    pub(crate) fn has_forgotten(&self, received: u64) -> bool {
        received < self.sent - self.kept.len() as u64
    }

    /// The other side has taken up `received` frames: those are not needed any more. They are given back, since what
    /// they hold may take a while to free.
    pub(crate) fn acknowledged(&mut self, received: u64) -> Result<Vec<Outgoing>, Impossible> {
        let first = self.sent - self.kept.len() as u64;
        if received < first || received > self.sent {
            return Err(Impossible { received, first, sent: self.sent });
        }
        let gone: Vec<_> = self.kept.drain(..(received - first) as usize).collect();
        self.account(gone.iter().map(|frame| cost(frame.size())).sum(), false);
        Ok(gone)
    }

    /// A new connection has taken the place of one that was lost, and the other side had taken up `received` frames:
    /// those that are to be sent again, in order.
    pub(crate) fn resumes(&mut self, received: u64) -> Result<impl Iterator<Item = Outgoing>, Impossible> {
        self.acknowledged(received)?;
        Ok(self.kept.iter().cloned())
    }

    /// What is kept counts for so many bytes.
    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn frame(number: u64, size: usize) -> Outgoing {
        Outgoing::new(number.to_le_bytes().to_vec(), Bytes::from(vec![0; size]))
    }

    fn number(frame: &Outgoing) -> u64 {
        u64::from_le_bytes(frame.head[..8].try_into().unwrap())
    }

    #[derive(Clone, Debug)]
    enum Step {
        Send,
        /// So many of what is under way arrive.
        Arrive(usize),
        Acknowledge,
        /// What is under way is lost; both sides agree anew.
        Cut,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Send),
            4 => (0..6_usize).prop_map(Step::Arrive),
            1 => Just(Step::Acknowledge),
            2 => Just(Step::Cut),
        ]
    }

    proptest! {
        #[test]
        fn each_frame_arrives_once_and_in_order_however_often_the_link_is_cut(
            steps in proptest::collection::vec(step(), 0..200),
        ) {
            let budget = Budget::new(usize::MAX);
            let (mut near, mut far) = (Ledger::new(budget.clone()), Ledger::new(budget.clone()));
            let (mut sent, mut arrived) = (0, Vec::new());
            let mut under_way: VecDeque<Outgoing> = VecDeque::new();
            for step in steps.into_iter().chain([Step::Cut, Step::Arrive(usize::MAX)]) {
                match step {
                    Step::Send => {
                        let frame = frame(sent, 10);
                        under_way.push_back(near.sends(frame));
                        sent += 1;
                    }
                    Step::Arrive(count) => {
                        for frame in under_way.drain(..count.min(under_way.len())) {
                            far.takes(frame.size());
                            arrived.push(number(&frame));
                        }
                    }
                    Step::Acknowledge => _ = near.acknowledged(far.tells()).unwrap(),
                    Step::Cut => under_way = near.resumes(far.tells()).unwrap().collect(),
                }
            }
            prop_assert_eq!(arrived, (0..sent).collect::<Vec<_>>());
            near.acknowledged(far.tells()).unwrap();
            prop_assert_eq!((near.bytes(), budget.used()), (0, 0));
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_one_frame_always_goes() {
        let budget = Budget::new(1000);
        let (mut one, mut other) = (Ledger::new(budget.clone()), Ledger::new(budget.clone()));
        assert!(one.has_room(true));
        one.sends(frame(0, 1000));
        assert!(!one.has_room(true), "the budget is spent");
        assert!(other.has_room(true), "the first frame of each goes");
        other.sends(frame(0, 0));
        assert!(!other.has_room(true));
        drop(one);
        assert!(other.has_room(true), "what is gone keeps nothing");
        let mut alone = Ledger::new(Budget::new(usize::MAX));
        let mut count = 0;
        while alone.has_room(true) {
            alone.sends(frame(0, 1 << 20));
            count += 1;
        }
        assert_eq!(count, 15);
        assert!(alone.has_room(false), "what is small still goes");
    }

    #[test]
    fn what_cannot_have_arrived_is_not_believed() {
        let mut ledger = Ledger::new(Budget::new(usize::MAX));
        ledger.sends(frame(0, 0));
        ledger.sends(frame(1, 0));
        assert!(ledger.acknowledged(3).is_err());
        assert_eq!(ledger.acknowledged(1).unwrap().len(), 1);
        assert!(ledger.acknowledged(0).is_err(), "it is not kept any more");
        assert_eq!(ledger.acknowledged(1).unwrap().len(), 0);
    }

    #[test]
    fn many_frames_or_many_bytes_are_acknowledged_without_delay() {
        let mut ledger = Ledger::new(Budget::new(usize::MAX));
        for _ in 0..ACK_FRAMES {
            assert!(!ledger.is_due());
            ledger.takes(10);
        }
        assert!(ledger.is_due());
        assert_eq!(ledger.tells(), ACK_FRAMES);
        assert!(!ledger.is_due() && !ledger.has_untold());
        ledger.takes(ACK_BYTES);
        assert!(ledger.is_due());
    }
}
