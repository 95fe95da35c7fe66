//! How much of one mount's memory the bytes of files take that were asked for ahead, and that nobody has opened yet.
//!
//! Taken before they are asked for, in the request's task, and given back when what was asked is opened or forgotten.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What may be taken in all.
#[derive(Clone)]
pub(super) struct Rooms {
    left: Arc<AtomicU64>,
}

/// Some of it, until this is dropped.
pub(super) struct Room {
    rooms: Rooms,
    bytes: u64,
}

impl Rooms {
    /// Room for `bytes`.
    pub(super) fn new(bytes: u64) -> Self {
        Self { left: Arc::new(AtomicU64::new(bytes)) }
    }

    /// Room for `bytes`, if so much is left.
    pub(super) fn take(&self, bytes: u64) -> Option<Room> {
        let less = |left: u64| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).ok()?;
        Some(Room { rooms: self.clone(), bytes })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.rooms.left.fetch_add(self.bytes, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_there_again_once_it_is_given_back() {
        let rooms = Rooms::new(10);
        let (one, other) = (rooms.take(4), rooms.take(6));
        assert!(one.is_some() && other.is_some() && rooms.take(1).is_none());
        drop(one);
        assert!(rooms.take(5).is_none() && rooms.take(4).is_some());
    }
}
