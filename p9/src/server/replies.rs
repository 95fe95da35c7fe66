//! The replies of a connection, or of a lane of a session, that wait for its writer.
//!
//! Put in by requests, and by those who tell what was not asked for; taken out by the one writer. What is small goes
//! before what is bulk, however long that has waited: an answer of a few bytes never waits for more than the one message
//! of bulk that is being written. Invariant: what is told goes before every reply that is put in after it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::writer::{Outgoing, Pieces};

/// Small replies, and as many of bulk, that wait for the writer; past it, requests wait.
const ROOM: usize = 256;
/// Small replies taken at a time.
pub(super) const BATCH: usize = 64;

/// Where replies are put. The writer ends once it is gone and all was written.
pub(super) struct Replies(Arc<Shared>);

/// Where the writer takes them from. Once it is gone there is no room for any more.
pub(super) struct ToWrite(Arc<Shared>);

struct Shared {
    queues: Mutex<Queues>,
    filled: Notify,
    small: Arc<Semaphore>,
    bulk: Arc<Semaphore>,
}

#[derive(Default)]
struct Queues {
    small: VecDeque<Queued>,
    bulk: VecDeque<Queued>,
    /// Nothing more comes.
    ended: bool,
}

struct Queued {
    message: Outgoing,
    /// Gives room for another when this is taken.
    _room: Option<OwnedSemaphorePermit>,
}

/// Room for one reply of the kind that it was asked for.
pub(super) struct Room(OwnedSemaphorePermit);

/// A queue, and its two ends.
pub(super) fn queue() -> (Replies, ToWrite) {
    queue_of(ROOM)
}

fn queue_of(room: usize) -> (Replies, ToWrite) {
    let room = || Arc::new(Semaphore::new(room));
    let (small, bulk) = (room(), room());
    let shared = Arc::new(Shared { queues: Mutex::default(), filled: Notify::new(), small, bulk });
    (Replies(shared.clone()), ToWrite(shared))
}

impl Replies {
    /// Waits until there is room for one more like `reply`. None once nobody writes any more.
    pub(super) async fn room(&self, reply: &Outgoing) -> Option<Room> {
        let room = if reply.is_bulk() { &self.0.bulk } else { &self.0.small };
        room.clone().acquire_owned().await.ok().map(Room)
    }

    /// Puts in the reply for which there is `room`.
    pub(super) fn put(&self, message: Outgoing, Room(room): Room) {
        self.put_in(Queued { message, _room: Some(room) });
    }

    /// Puts in what answers nothing, whatever room there is.
    pub(super) fn tell(&self, message: Outgoing) {
        self.put_in(Queued { message, _room: None });
    }

    fn put_in(&self, queued: Queued) {
        let mut queues = self.0.queues.lock();
        if queued.message.is_bulk() {
            queues.bulk.push_back(queued)
        } else {
            queues.small.push_back(queued)
        }
        drop(queues);
        self.0.filled.notify_one();
    }
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.0.queues.lock().ended = true;
        self.0.filled.notify_one();
    }
}

impl ToWrite {
    /// Returns once there is something to take, of what is small if `small`, of bulk if `bulk`. False once nothing more
    /// comes.
    pub(super) async fn ready(&mut self, small: bool, bulk: bool) -> bool {
        loop {
            {
                let queues = self.0.queues.lock();
                if (small && !queues.small.is_empty()) || (bulk && !queues.bulk.is_empty()) {
                    return true;
                }
                if queues.ended && queues.small.is_empty() && queues.bulk.is_empty() {
                    return false;
                }
            }
            self.0.filled.notified().await;
        }
    }

    /// The next that is small.
    pub(super) fn take_small(&mut self) -> Option<Outgoing> {
        let taken = self.0.queues.lock().small.pop_front();
        taken.map(|queued| queued.message)
    }

    /// The next that is bulk.
    pub(super) fn take_bulk(&mut self) -> Option<Outgoing> {
        let taken = self.0.queues.lock().bulk.pop_front();
        taken.map(|queued| queued.message)
    }

    /// Writes what is put in until nothing more comes; gives the stream back.
    pub(super) async fn write<W: AsyncWrite + Unpin>(mut self, mut stream: W) -> io::Result<W> {
        let mut pieces = Pieces::default();
        while self.ready(true, true).await {
            // All that is small, in one call if possible, but no more than one message of bulk: what comes meanwhile goes
            // before the next.
            (0..BATCH).map_while(|_| self.take_small()).for_each(|reply| pieces.add(reply));
            self.take_bulk().into_iter().for_each(|reply| pieces.add(reply));
            poll_fn(|cx| pieces.poll_write(Pin::new(&mut stream), cx)).await?;
        }
        Ok(stream)
    }
}

impl Drop for ToWrite {
    fn drop(&mut self) {
        self.0.small.close();
        self.0.bulk.close();
        let gone = {
            let mut queues = self.0.queues.lock();
            (std::mem::take(&mut queues.small), std::mem::take(&mut queues.bulk))
        };
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt;

    use super::*;

    fn small(name: u8) -> Outgoing {
        Outgoing::new(vec![name], Bytes::new())
    }

    fn bulk(name: u8) -> Outgoing {
        Outgoing::new(vec![name], Bytes::from(vec![0; 1 << 16]))
    }

    async fn put(replies: &Replies, message: Outgoing) {
        let room = replies.room(&message).await.unwrap();
        replies.put(message, room);
    }

    /// Takes all, as the writer does.
    fn names(to_write: &mut ToWrite) -> Vec<u8> {
        let mut next = || to_write.take_small().or_else(|| to_write.take_bulk());
        std::iter::from_fn(|| next().map(|message| message.head[0])).collect()
    }

    #[tokio::test]
    async fn what_is_small_goes_before_bulk_that_waits() {
        let (replies, mut to_write) = queue();
        for message in [bulk(1), bulk(2), small(3), bulk(4), small(5)] {
            put(&replies, message).await;
        }
        assert_eq!(names(&mut to_write), [3, 5, 1, 2, 4]);
        drop(replies);
        assert!(!to_write.ready(true, true).await, "nothing more comes");
    }

    #[tokio::test]
    async fn bulk_without_room_keeps_nothing_small_from_its_own() {
        let (replies, mut to_write) = queue_of(1);
        put(&replies, bulk(1)).await;
        let second = bulk(2);
        let mut waits = Box::pin(replies.room(&second));
        assert!(waits.as_mut().now_or_never().is_none());
        put(&replies, small(3)).await;
        assert!(to_write.ready(true, false).await);
        assert_eq!(names(&mut to_write), [3, 1]);
        assert!(waits.await.is_some(), "there is room again");
    }

    #[tokio::test]
    async fn what_is_told_goes_before_a_reply_that_waited_for_room_already() {
        let (replies, mut to_write) = queue_of(1);
        put(&replies, small(1)).await;
        let other = small(2);
        let mut waits = Box::pin(replies.room(&other));
        assert!(waits.as_mut().now_or_never().is_none(), "there is no room");
        replies.tell(small(7));
        assert_eq!(names(&mut to_write), [1, 7]);
        let room = waits.await.unwrap();
        replies.put(other, room);
        assert_eq!(names(&mut to_write), [2]);
    }

    #[tokio::test]
    async fn nobody_waits_for_a_writer_that_is_gone() {
        let (replies, to_write) = queue_of(1);
        put(&replies, small(1)).await;
        drop(to_write);
        assert!(replies.room(&small(2)).await.is_none());
    }
}
