//! Changes of a directory as lines that a script can read.
//!
//! Opened by [`super::Leases::events`], filled by the thread in [`super::watch`], read by whoever has the stream. A
//! line is what happened, a space, and the name (a directory's with `/` at its end); in names a backslash and a line
//! end are written as `\134` and `\012`. What nobody reads in time is dropped, and said to be: `overflow`.

use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use p9::{Reply, Stream};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::watch::Mark;

/// Bytes of lines that wait for a reader.
const MOST: usize = 256 << 10;

/// What happened, in the order in which it must have when it is told together.
const WORDS: [(u64, &str); 6] = [
    (libc::FAN_CREATE, "create"),
    (libc::FAN_MOVED_TO, "moved_to"),
    (libc::FAN_ATTRIB, "attrib"),
    (libc::FAN_MODIFY, "modify"),
    (libc::FAN_MOVED_FROM, "moved_from"),
    (libc::FAN_DELETE, "delete"),
];

/// Lines that wait for their reader.
#[derive(Default)]
pub(super) struct Lines {
    queue: Mutex<Queue>,
    more: Notify,
}

#[derive(Default)]
struct Queue {
    text: BytesMut,
    lost: bool,
}

impl Lines {
    /// What `mask` says happened to the entry `name`.
    pub(super) fn add(&self, mask: u64, name: &[u8]) {
        let slash = if mask & libc::FAN_ONDIR != 0 { "/" } else { "" };
        for (_, word) in WORDS.iter().filter(|(bit, _)| mask & bit != 0) {
            let mut line = Vec::with_capacity(word.len() + name.len() + 3);
            line.extend_from_slice(word.as_bytes());
            line.push(b' ');
            for &byte in name {
                match byte {
                    b'\n' => line.extend_from_slice(b"\\012"),
                    b'\\' => line.extend_from_slice(b"\\134"),
                    byte => line.push(byte),
                }
            }
            line.extend_from_slice(slash.as_bytes());
            line.push(b'\n');
            self.put(&line);
        }
    }

    fn put(&self, line: &[u8]) {
        let mut queue = self.queue.lock();
        if queue.text.len() + line.len() > MOST {
            queue.lost = true;
        } else {
            queue.text.extend_from_slice(line);
        }
        drop(queue);
        self.more.notify_waiters();
    }

    /// Events were lost.
    pub(super) fn lost(&self) {
        self.queue.lock().lost = true;
        self.more.notify_waiters();
    }

    /// At most `count` bytes; none if there are none.
    fn take(&self, count: usize) -> Bytes {
        let mut queue = self.queue.lock();
        if queue.text.is_empty() && std::mem::take(&mut queue.lost) {
            queue.text.extend_from_slice(b"overflow\n");
        }
        take(&mut queue.text, count)
    }
}

/// Takes at most `count` bytes off `text`: whole lines, if there is room for one. A shell reads one byte at a time.
pub(crate) fn take(text: &mut BytesMut, count: usize) -> Bytes {
    let room = text.len().min(count);
    let end = text[..room].iter().rposition(|&b| b == b'\n').map_or(room, |at| at + 1);
    text.split_to(end).freeze()
}

/// An open stream of lines.
pub(super) struct Events {
    pub(super) lines: Arc<Lines>,
    pub(super) _mark: Mark,
}

impl Stream for Events {
    fn read(&self, _offset: u64, count: u32) -> Reply<'_, Bytes> {
        let lines = self.lines.take(count as usize);
        if !lines.is_empty() || count == 0 {
            return Reply::ok(lines);
        }
        Reply::later(async move {
            loop {
                let mut more = pin!(self.lines.more.notified());
                // Registered before the look, so that no line is missed.
                more.as_mut().enable();
                let lines = self.lines.take(count as usize);
                if !lines.is_empty() {
                    return Ok(lines);
                }
                more.await;
            }
        })
    }
}
