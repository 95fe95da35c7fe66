//! Buffers that are used again once nobody has anything of them any more.
//!
//! What comes and goes with each message (the heads of replies, the data of reads and writes) is cut off one buffer
//! after another, and belongs to whoever uses it as [`bytes::Bytes`] for as long as that likes. Nothing is ever given
//! back: a buffer is free again when all that was cut off it has been dropped. Invariant: what is kept here for later
//! is bounded; what is in use is bounded elsewhere.

use std::collections::VecDeque;
use std::sync::LazyLock;

use bytes::BytesMut;
use parking_lot::Mutex;

/// For the data of messages, of all connections of this process.
static DATA: LazyLock<Mutex<Buffers>> = LazyLock::new(|| Mutex::new(Buffers::new(64 << 10, 16)));

/// An empty buffer with room for `count` bytes of a message's data.
pub(crate) fn data(count: usize) -> BytesMut {
    DATA.lock().take(count)
}

/// Buffers of one size, or of a multiple of it where more is asked for.
pub(crate) struct Buffers {
    /// What is left of the one that parts are cut off now.
    current: BytesMut,
    /// The same of those before it, the oldest first.
    before: VecDeque<BytesMut>,
    size: usize,
    /// How many are remembered besides the current one.
    most: usize,
}

impl Default for Buffers {
    /// For the heads of messages.
    fn default() -> Self {
        Self::new(4 << 10, 8)
    }
}

impl Buffers {
    /// None yet.
    pub(crate) fn new(size: usize, most: usize) -> Self {
        Self { current: BytesMut::new(), before: VecDeque::new(), size, most }
    }

    /// An empty buffer with room for `count` bytes.
    pub(crate) fn take(&mut self, count: usize) -> BytesMut {
        if !self.current.try_reclaim(count) {
            let size = count.next_multiple_of(self.size);
            let free = self.before.iter_mut().position(|buffer| buffer.try_reclaim(size));
            let next = free.and_then(|at| self.before.remove(at)).unwrap_or_else(|| BytesMut::with_capacity(size));
            if self.before.len() == self.most {
                // One that has been in use for long.
                self.before.pop_front();
            }
            self.before.push_back(std::mem::replace(&mut self.current, next));
        }
        let rest = self.current.split_off(count);
        std::mem::replace(&mut self.current, rest)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_was_dropped_is_used_again() {
        let mut buffers = Buffers::new(100, 8);
        let mut kept: VecDeque<_> = (0..10).map(|_| buffers.take(40)).collect();
        let mut seen: HashSet<_> = kept.iter().map(|part| part.as_ptr()).collect();
        for _ in 0..100 {
            kept.pop_front();
            kept.push_back(buffers.take(40));
            seen.insert(kept[9].as_ptr());
        }
        assert!(seen.len() <= 2 * 9, "{} places were used", seen.len());
    }

    #[test]
    fn what_is_in_use_is_left_alone() {
        let mut buffers = Buffers::new(100, 8);
        let mut kept: Vec<_> = (0..100).map(|_| buffers.take(40)).collect();
        kept.iter_mut().zip(0..).for_each(|(part, number)| part.resize(40, number));
        assert!(kept.iter().zip(0..).all(|(part, number)| part[..] == [number; 40]));
        assert!(buffers.take(1000).capacity() >= 1000, "more than one has is made for it");
    }
}
