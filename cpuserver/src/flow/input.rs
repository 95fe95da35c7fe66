//! What a command reads: taken from writers as fast as the command reads it.
//!
//! A write at offset n goes in when everything below n is there; what of it is there already is not taken twice. The
//! input ends when its last writer closes it, unless that one opened it to append (`>>`), or when someone says so. A
//! writer whose connection is lost does not end it. Files call [`InputFile`], the job's task [`Input::drain`].

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use p9::{Errno, Reply, Stream, Written};
use parking_lot::Mutex;
use tokio::net::unix::pipe;
use tokio::sync::Notify;

use super::{Frame, until};

/// A session's stdin.
pub(crate) struct Input {
    state: Mutex<State>,
    changed: Notify,
    limit: usize,
}

#[derive(Default)]
struct State {
    /// What the command has not read.
    held: BytesMut,
    /// How much was taken from writers so far.
    taken: u64,
    writers: usize,
    /// Nothing more will come.
    ended: bool,
    /// The command reads no more.
    broken: bool,
}

impl Input {
    /// A flow that holds at most `limit` bytes and one write.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changed: Notify::new(), limit })
    }

    /// Says that the input ends after what was written.
    pub(crate) fn end(&self) {
        self.change(|state| state.ended = true);
    }

    /// Says that the command reads no more: writers get `EPIPE`.
    pub(crate) fn break_off(&self) {
        self.change(|state| state.broken = true);
    }

    /// How many bytes were written to the command so far.
    pub(crate) fn total(&self) -> u64 {
        self.state.lock().taken
    }

    /// Writes to `sink` what comes, until the end, or until the command reads no more. `at_end` is typed into a
    /// terminal to end it (`^D`; twice, where a line has begun); a pipe is closed.
    pub(crate) async fn drain(&self, sink: pipe::Sender, at_end: Option<u8>) {
        let mut in_a_line = false;
        while until(&self.changed, || self.state.lock().has_work()).await {
            if sink.writable().await.is_err() {
                break;
            }
            match self.give(&sink, &mut in_a_line) {
                Ok(()) => self.changed.notify_waiters(),
                Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    self.break_off();
                    break;
                }
            }
        }
        if let Some(end) = at_end {
            // A terminal that is full or gone has no use for it.
            let _ = sink.try_write(&[end, end][..1 + usize::from(in_a_line)]);
            // The master is shared with the output: only the job's end closes it.
        }
    }

    fn give(&self, sink: &pipe::Sender, in_a_line: &mut bool) -> std::io::Result<()> {
        let mut state = self.state.lock();
        // The descriptor does not block, so the lock is not held for long.
        let count = sink.try_write(&state.held)?;
        if count > 0 {
            *in_a_line = state.held[count - 1] != b'\n';
        }
        state.held.advance(count);
        Ok(())
    }

    fn try_write(&self, place: Option<u64>, data: &Bytes) -> Option<Result<Written, Errno>> {
        let mut state = self.state.lock();
        if state.broken || state.ended {
            return Some(Err(Errno::EPIPE));
        }
        let place = place.unwrap_or(state.taken);
        if place > state.taken || state.held.len() >= self.limit {
            return None;
        }
        let known = (state.taken - place).min(data.len() as u64) as usize;
        state.held.extend_from_slice(&data[known..]);
        state.taken += (data.len() - known) as u64;
        drop(state);
        self.changed.notify_waiters();
        Some(Ok(Written::count(data.len())))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changed.notify_waiters();
    }
}

impl State {
    /// Whether there is something to give to the command (or nothing any more); `None` means wait.
    fn has_work(&self) -> Option<bool> {
        match (self.held.is_empty(), self.broken || self.ended) {
            (false, _) => Some(!self.broken),
            (true, true) => Some(false),
            (true, false) => None,
        }
    }
}

/// An open stdin.
pub(crate) struct InputFile {
    flow: Arc<Input>,
    frame: Frame,
    append: bool,
}

impl InputFile {
    pub(crate) fn open(flow: &Arc<Input>, append: bool) -> Arc<dyn Stream> {
        flow.state.lock().writers += 1;
        Arc::new(Self { flow: flow.clone(), frame: Frame::default(), append })
    }
}

impl Drop for InputFile {
    fn drop(&mut self) {
        self.flow.state.lock().writers -= 1;
    }
}

impl Stream for InputFile {
    fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        if data.is_empty() {
            self.flow.end();
            return Reply::ok(Written::count(0));
        }
        let place = (!self.append).then(|| self.frame.place(offset, || self.flow.total()));
        if let Some(answer) = self.flow.try_write(place, &data) {
            return answer.into();
        }
        Reply::later(until(&self.flow.changed, move || self.flow.try_write(place, &data)))
    }

    fn close(&self) -> Reply<'_, ()> {
        if !self.append && self.flow.state.lock().writers == 1 {
            self.flow.end();
        }
        Reply::ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn flow(limit: usize) -> (Arc<Input>, std::io::PipeReader, tokio::task::JoinHandle<()>) {
        let (reader, writer) = std::io::pipe().unwrap();
        let sender = pipe::Sender::from_owned_fd(writer.into()).unwrap();
        let flow = Input::new(limit);
        let draining = flow.clone();
        (flow, reader, tokio::spawn(async move { draining.drain(sender, None).await }))
    }

    async fn all(mut reader: std::io::PipeReader) -> String {
        let read = move || std::io::read_to_string(&mut reader).unwrap();
        tokio::task::spawn_blocking(read).await.unwrap()
    }

    #[tokio::test]
    async fn writes_go_in_by_offset_and_closing_ends_them() {
        let (flow, reader, drained) = flow(100);
        let file = InputFile::open(&flow, false);
        let mut later = file.write(6, "world".into());
        assert!(matches!(later, Reply::Later(_)));
        // The first offset says where the file counts from.
        assert_eq!(file.write(0, "hello ".into()).await.unwrap(), Written::count(6));
        assert_eq!((&mut later).await.unwrap(), Written::count(5));
        assert_eq!(file.write(6, "world!".into()).await.unwrap(), Written::count(6));
        file.close().await.unwrap();
        assert_eq!(all(reader).await, "hello world!");
        drained.await.unwrap();
        assert_eq!(file.write(12, "more".into()).await, Err(Errno::EPIPE));
    }

    #[tokio::test]
    async fn appending_leaves_it_open_and_goes_on() {
        let (flow, reader, _drained) = flow(100);
        for word in ["one ", "two "] {
            let file = InputFile::open(&flow, true);
            file.write(0, word.into()).await.unwrap();
            file.close().await.unwrap();
        }
        let file = InputFile::open(&flow, false);
        file.write(0, "three".into()).await.unwrap();
        file.close().await.unwrap();
        assert_eq!(all(reader).await, "one two three");
    }

    #[tokio::test]
    async fn a_lost_writer_does_not_end_it_but_a_write_of_nothing_does() {
        let (flow, mut reader, _drained) = flow(100);
        let lost = InputFile::open(&flow, false);
        lost.write(0, "a".into()).await.unwrap();
        drop(lost);
        assert!(!flow.state.lock().ended);
        let file = InputFile::open(&flow, false);
        file.write(1, Bytes::new()).await.unwrap();
        assert_eq!(all(reader.try_clone().unwrap()).await, "a");
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test]
    async fn a_full_flow_makes_the_writer_wait_and_a_command_that_is_gone_breaks_it() {
        let (flow, reader, drained) = flow(1000);
        let file = InputFile::open(&flow, false);
        let piece = Bytes::from(vec![b'x'; 1000]);
        let mut offset = 0;
        // The pipe holds some, the flow one piece more.
        let mut waiting = loop {
            tokio::task::yield_now().await;
            let write = file.write(offset, piece.clone());
            if flow.state.lock().held.len() >= 1000 && matches!(write, Reply::Later(_)) {
                break write;
            }
            write.await.unwrap();
            offset += 1000;
        };
        drop(reader);
        assert_eq!((&mut waiting).await, Err(Errno::EPIPE));
        drained.await.unwrap();
    }
}
