//! What a command writes: kept until its reader has it.
//!
//! A read at offset n says that everything below n has arrived, and frees it; but only what was given out before can
//! have arrived, so that several reads may be in flight, each at the offset that the one before it would end at if it
//! came back full. What a detached command writes while nobody has the file open waits for nobody: the oldest makes
//! room. Files call [`OutputFile`], the job's task [`Output::fill`].

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use p9::{Errno, Reply, Stream};
use parking_lot::Mutex;
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use super::{Frame, until};

/// The most that is read from the pipe at once.
const CHUNK: usize = 256 << 10;

/// One of stdout and stderr.
pub(crate) struct Output {
    state: Mutex<State>,
    changed: Notify,
    limit: usize,
}

#[derive(Default)]
struct State {
    /// What is not acknowledged, and before that what is kept of a detached command; its first byte is at `base`.
    held: BytesMut,
    base: u64,
    /// Everything below has arrived.
    arrived: u64,
    /// Everything below was given to a reader.
    given: u64,
    /// What else was given: ranges above `given`, of reads that overtook others.
    ahead: Vec<(u64, u64)>,
    /// Nothing more will come.
    ended: bool,
    /// Whether the command goes on while nobody reads.
    detached: bool,
    /// Files that are open.
    readers: usize,
}

impl Output {
    /// A flow that holds about `limit` bytes.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: Notify::new(), limit })
    }

    /// Reads `source` (a pipe, or the master of a terminal) to its end, as fast as readers take it.
    pub(crate) async fn fill(&self, source: pipe::Receiver) {
        loop {
            let room = until(&self.changed, || self.room()).await;
            if source.readable().await.is_err() {
                break;
            }
            match self.take(&source, room) {
                Ok(0) => break,
                Ok(_) => self.changed.notify_waiters(),
                Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => {}
                // A terminal whose last process is gone says EIO.
                Err(_) => break,
            }
        }
        self.end();
    }

    /// Says that nothing more will come.
    pub(crate) fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_waiters();
    }

    /// From now on, what nobody reads keeps no writer waiting: only the last of it is kept.
    pub(crate) fn detach(&self) {
        self.state.lock().detached = true;
        self.changed.notify_waiters();
    }

    /// How many bytes the command has written so far.
    pub(crate) fn total(&self) -> u64 {
        self.state.lock().end()
    }

    fn room(&self) -> Option<usize> {
        let state = self.state.lock();
        // What comes then takes the place of the oldest.
        let waiting = (state.end() - state.arrived) as usize;
        let room = if state.waits_for_nobody() { CHUNK } else { self.limit.saturating_sub(waiting) };
        (room > 0 || state.ended).then_some(room.min(CHUNK))
    }

    fn take(&self, source: &pipe::Receiver, room: usize) -> std::io::Result<usize> {
        let mut state = self.state.lock();
        if state.ended {
            return Ok(0);
        }
        state.held.reserve(room);
        // The descriptor does not block, so the lock is not held for long.
        let read = source.try_read_buf(&mut (&mut state.held).limit(room));
        if state.detached {
            let over = state.held.len().saturating_sub(self.limit);
            let read = (state.arrived - state.base) as usize;
            let over = if state.waits_for_nobody() { over } else { over.min(read) };
            state.drop_oldest(over);
        }
        read
    }

    /// What a read at `place` gives now; `None` if it has to wait.
    fn try_read(&self, place: u64, count: u32) -> Option<Result<Bytes, Errno>> {
        let mut state = self.state.lock();
        let freed = state.acknowledge(place);
        let answer = state.read(place, count);
        drop(state);
        if freed {
            self.changed.notify_waiters();
        }
        answer
    }
}

impl State {
    fn end(&self) -> u64 {
        self.base + self.held.len() as u64
    }

    /// Frees what a reader at `place` must have; says whether that was anything.
    fn acknowledge(&mut self, place: u64) -> bool {
        let before = self.arrived;
        self.arrived = place.min(self.given).max(before);
        if !self.detached {
            self.drop_oldest((self.arrived - self.base) as usize);
        }
        self.arrived > before
    }

    fn waits_for_nobody(&self) -> bool {
        self.detached && self.readers == 0
    }

    /// Frees the oldest `count` bytes, whoever has them.
    fn drop_oldest(&mut self, count: usize) {
        self.held.advance(count);
        self.base += count as u64;
        self.given = self.given.max(self.base);
        self.arrived = self.arrived.max(self.base);
    }

    fn read(&mut self, place: u64, count: u32) -> Option<Result<Bytes, Errno>> {
        let Some(skip) = place.checked_sub(self.base) else { return Some(Err(Errno::ESTALE)) };
        let held = self.held.get(skip as usize..).unwrap_or_default();
        if held.is_empty() && !self.ended {
            return (count == 0).then_some(Ok(Bytes::new()));
        }
        let bytes = Bytes::copy_from_slice(&held[..held.len().min(count as usize)]);
        self.give(place, place + bytes.len() as u64);
        Some(Ok(bytes))
    }

    /// Notes that the bytes from `from` to `to` were given out.
    fn give(&mut self, from: u64, to: u64) {
        self.ahead.push((from, to));
        self.ahead.sort_unstable();
        let given = &mut self.given;
        self.ahead.retain(|&(from, to)| {
            let touches = from <= *given;
            if touches {
                *given = to.max(*given);
            }
            !touches
        });
    }
}

/// An open stdout or stderr.
pub(crate) struct OutputFile {
    flow: Arc<Output>,
    frame: Frame,
}

impl OutputFile {
    pub(crate) fn open(flow: &Arc<Output>) -> Arc<dyn Stream> {
        flow.state.lock().readers += 1;
        Arc::new(Self { flow: flow.clone(), frame: Frame::default() })
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        self.flow.state.lock().readers -= 1;
        self.flow.changed.notify_waiters();
    }
}

impl Stream for OutputFile {
    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        let place = self.frame.place(offset, || self.flow.state.lock().base);
        if let Some(answer) = self.flow.try_read(place, count) {
            return answer.into();
        }
        Reply::later(until(&self.flow.changed, move || self.flow.try_read(place, count)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn flow(limit: usize) -> (Arc<Output>, std::io::PipeWriter, tokio::task::JoinHandle<()>) {
        let (reader, writer) = std::io::pipe().unwrap();
        let receiver = pipe::Receiver::from_owned_fd(reader.into()).unwrap();
        let flow = Output::new(limit);
        let filling = flow.clone();
        (flow, writer, tokio::spawn(async move { filling.fill(receiver).await }))
    }

    #[tokio::test]
    async fn a_read_waits_for_bytes_and_then_for_the_end() {
        let (flow, mut writer, filled) = flow(100);
        let file = OutputFile::open(&flow);
        let mut read = file.read(0, 10);
        assert!(matches!(read, Reply::Later(_)));
        writer.write_all(b"hello").unwrap();
        assert_eq!((&mut read).await.unwrap(), "hello");
        drop(writer);
        assert_eq!(file.read(5, 10).await.unwrap(), "");
        filled.await.unwrap();
    }

    #[tokio::test]
    async fn what_was_not_acknowledged_can_be_read_again() {
        let (flow, mut writer, _filled) = flow(100);
        let file = OutputFile::open(&flow);
        writer.write_all(b"hello").unwrap();
        assert_eq!(file.read(0, 5).await.unwrap(), "hello");
        assert_eq!(file.read(0, 5).await.unwrap(), "hello");
        writer.write_all(b"world").unwrap();
        assert_eq!(file.read(5, 5).await.unwrap(), "world");
        assert_eq!(file.read(0, 5).await, Err(Errno::ESTALE));
    }

    #[tokio::test]
    async fn a_read_sent_ahead_frees_nothing_that_was_not_given() {
        let (flow, mut writer, filled) = flow(100);
        let file = OutputFile::open(&flow);
        let mut ahead = file.read(8, 8);
        writer.write_all(b"0123456789").unwrap();
        assert_eq!((&mut ahead).await.unwrap(), "89");
        assert_eq!(file.read(0, 4).await.unwrap(), "0123");
        assert_eq!(file.read(4, 4).await.unwrap(), "4567");
        drop(writer);
        // Now all ten are given, whatever the order.
        assert_eq!(file.read(10, 4).await.unwrap(), "");
        assert_eq!(flow.state.lock().base, 10);
        filled.await.unwrap();
    }

    #[tokio::test]
    async fn a_second_open_goes_on_where_the_first_one_stopped() {
        let (flow, mut writer, _filled) = flow(100);
        writer.write_all(b"one").unwrap();
        let first = OutputFile::open(&flow);
        assert_eq!(first.read(0, 9).await.unwrap(), "one");
        let mut end = first.read(3, 9);
        writer.write_all(b"two").unwrap();
        assert_eq!((&mut end).await.unwrap(), "two");
        writer.write_all(b"three").unwrap();
        assert_eq!(first.read(6, 9).await.unwrap(), "three");
        let second = OutputFile::open(&flow);
        assert_eq!(second.read(0, 9).await.unwrap(), "three");
    }

    #[tokio::test]
    async fn what_nobody_reads_of_a_detached_command_makes_room() {
        let (flow, mut writer, filled) = flow(1000);
        flow.detach();
        let wrote = tokio::task::spawn_blocking(move || {
            (0..100_000).for_each(|n| writeln!(writer, "{n:05}").unwrap());
            writer
        });
        let mut writer = wrote.await.unwrap();
        until(&flow.changed, || (flow.total() == 600_000).then_some(())).await;
        let file = OutputFile::open(&flow);
        let last = file.read(0, 4000).await.unwrap();
        assert!(last.len() <= 1000 && last.ends_with(b"\n99998\n99999\n"), "{last:?}");
        // Whoever has it open misses nothing.
        let more = tokio::task::spawn_blocking(move || writer.write_all(&[b'x'; 5000]).unwrap());
        let (mut offset, mut all) = (last.len() as u64, 0);
        while all < 5000 {
            let bytes = file.read(offset, 4000).await.unwrap();
            (offset, all) = (offset + bytes.len() as u64, all + bytes.len());
        }
        more.await.unwrap();
        assert_eq!(file.read(offset, 10).await.unwrap(), "");
        filled.await.unwrap();
    }

    #[tokio::test]
    async fn what_was_read_of_a_detached_command_is_there_for_the_next_one_too() {
        let (flow, mut writer, filled) = flow(1000);
        flow.detach();
        writer.write_all(b"first\n").unwrap();
        let (one, other) = (OutputFile::open(&flow), OutputFile::open(&flow));
        for file in [&one, &other] {
            assert_eq!(file.read(0, 9).await.unwrap(), "first\n");
        }
        let mut more = one.read(6, 9);
        writer.write_all(b"second\n").unwrap();
        assert_eq!((&mut more).await.unwrap(), "second\n");
        drop((more, writer));
        assert_eq!(one.read(13, 9).await.unwrap(), "");
        drop((one, other));
        let again = OutputFile::open(&flow);
        assert_eq!(again.read(0, 99).await.unwrap(), "first\nsecond\n");
        assert_eq!(again.read(13, 99).await.unwrap(), "");
        filled.await.unwrap();
    }

    #[tokio::test]
    async fn a_full_flow_makes_the_command_wait() {
        let (flow, mut writer, filled) = flow(1000);
        let written = std::thread::spawn(move || writer.write_all(&[b'x'; 1 << 20]).map(|()| 1u64 << 20));
        let file = OutputFile::open(&flow);
        let mut offset = 0;
        loop {
            let bytes = file.read(offset, 333).await.unwrap();
            assert!(flow.state.lock().held.len() <= 1000);
            if bytes.is_empty() {
                break;
            }
            offset += bytes.len() as u64;
        }
        assert_eq!(written.join().unwrap().unwrap(), offset);
        filled.await.unwrap();
    }
}
