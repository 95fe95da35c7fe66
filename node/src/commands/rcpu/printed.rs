//! What several commands write, put together on this process's streams.
//!
//! One thread writes ([`Printer`]), so that lines of different commands are never mixed and a stream that nobody reads
//! keeps no signal waiting. Each command has a task ([`pump`]) that cuts its output into lines and puts a label before
//! each, or keeps all of it until it is the command's turn. On a terminal a line that says how far things are stays
//! below the output.

use std::io::{self, IsTerminal, Read, Seek, SeekFrom, Write};

use bytes::{Bytes, BytesMut};
use tempfile::SpooledTempFile;
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::{mpsc, watch};

/// A line that is longer is cut, and that is said.
const LINE: usize = 16 << 20;
/// What is kept in memory of one command's output until its turn: the rest is in a file.
const KEPT: usize = 1 << 20;
/// Messages on their way to the printer.
const QUEUE: usize = 64;

/// One of this process's output streams.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stream {
    Out,
    Err,
}

enum Message {
    Text(Stream, Bytes),
    /// Replaces the line that says how far things are.
    Progress(String),
}

/// Says things to the thread that writes.
#[derive(Clone)]
pub(super) struct Printer(mpsc::Sender<Message>);

/// The thread itself.
pub(super) struct Printing(std::thread::JoinHandle<io::Result<()>>);

impl Printer {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<(Self, Printing)> {
        let (sender, messages) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("print".into()).spawn(|| print(messages))?;
        Ok((Self(sender), Printing(thread)))
    }

    /// Writes `text`. Errors: nobody reads any more, or the stream has failed, which [`Printing::end`] tells.
    pub(super) async fn print(&self, stream: Stream, text: Bytes) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.0.send(Message::Text(stream, text)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// A line of our own, on standard error.
    pub(super) async fn note(&self, text: impl std::fmt::Display) {
        let _ = self.print(Stream::Err, format!("rcpu: {text}\n").into()).await;
    }

    /// Says how far things are. It is no matter if that is not seen.
    pub(super) fn progress(&self, text: String) {
        let _ = self.0.try_send(Message::Progress(text));
    }
}

impl Printing {
    /// Returns once all is written and no [`Printer`] is left. Errors: what write(2) answered.
    pub(super) fn end(self) -> io::Result<()> {
        self.0.join().unwrap_or_else(|_| Err(io::Error::other("the printer panicked")))
    }
}

fn print(mut messages: mpsc::Receiver<Message>) -> io::Result<()> {
    let mut progress = Progress { shown: String::new(), terminal: io::stderr().is_terminal() };
    while let Some(message) = messages.blocking_recv() {
        match message {
            Message::Progress(text) => progress.become_(text)?,
            Message::Text(stream, text) => {
                progress.erase()?;
                match stream {
                    Stream::Out => write(&mut io::stdout().lock(), &text)?,
                    Stream::Err => write(&mut io::stderr().lock(), &text)?,
                }
                progress.draw()?;
            }
        }
    }
    progress.erase()
}

fn write(stream: &mut impl Write, text: &[u8]) -> io::Result<()> {
    stream.write_all(text)?;
    stream.flush()
}

/// The line that says how far things are: on a terminal alone.
struct Progress {
    shown: String,
    terminal: bool,
}

impl Progress {
    fn become_(&mut self, text: String) -> io::Result<()> {
        self.erase()?;
        self.shown = text;
        self.draw()
    }

    fn erase(&self) -> io::Result<()> {
        if self.terminal && !self.shown.is_empty() { write(&mut io::stderr().lock(), b"\r\x1b[K") } else { Ok(()) }
    }

    fn draw(&self) -> io::Result<()> {
        let width = super::terminal::width().unwrap_or(80).saturating_sub(1).max(1);
        let text: String = self.shown.chars().take(width.into()).collect();
        if self.terminal { write(&mut io::stderr().lock(), text.as_bytes()) } else { Ok(()) }
    }
}

/// Cuts what one command writes into lines, each with its label.
struct Lines {
    label: String,
    partial: [BytesMut; 2],
    /// One was cut.
    has_cut: bool,
}

impl Lines {
    fn new(label: Option<&str>) -> Self {
        let label = label.map(|label| format!("{label}: ")).unwrap_or_default();
        Self { label, partial: [BytesMut::new(), BytesMut::new()], has_cut: false }
    }

    /// Takes in `bytes`; gives the lines that are whole.
    fn feed(&mut self, stream: Stream, bytes: &[u8]) -> Bytes {
        let partial = &mut self.partial[stream as usize];
        let before = partial.len();
        partial.extend_from_slice(bytes);
        let whole = match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(at) => partial.split_to(before + at + 1),
            None if partial.len() < LINE => return Bytes::new(),
            None => {
                let mut cut = partial.split();
                cut.extend_from_slice(b"\n");
                self.has_cut = true;
                cut
            }
        };
        self.labelled(&whole)
    }

    /// What is left at the end. With a label it gets a line end: the next one is another's.
    fn rest(&mut self, stream: Stream) -> Bytes {
        let rest = self.partial[stream as usize].split();
        if rest.is_empty() || self.label.is_empty() {
            return rest.freeze();
        }
        self.labelled(&[&rest[..], b"\n"].concat())
    }

    fn labelled(&self, lines: &[u8]) -> Bytes {
        if self.label.is_empty() {
            return Bytes::copy_from_slice(lines);
        }
        let label = self.label.as_bytes();
        lines.split_inclusive(|byte| *byte == b'\n').flat_map(|line| [label, line].concat()).collect()
    }
}

/// Whose turn it is to be printed, of commands that keep an order.
#[derive(Clone)]
pub(super) struct Turns(std::sync::Arc<watch::Sender<usize>>);

impl Turns {
    /// The first one's.
    pub(super) fn new() -> Self {
        Self(std::sync::Arc::new(watch::Sender::new(0)))
    }

    /// Returns when it is the turn of number `index`.
    async fn of(&self, index: usize) {
        // The sender is in here: it cannot be gone.
        let _ = self.0.subscribe().wait_for(|turn| *turn >= index).await;
    }

    /// Number `index` has printed everything, or has nothing to print; returns when its turn is over.
    pub(super) async fn pass(&self, index: usize) {
        self.of(index).await;
        self.0.send_modify(|turn| *turn = (*turn).max(index + 1));
    }
}

/// What is kept of a command's output, in order, until it is its turn.
struct Held(SpooledTempFile);

impl Held {
    fn keep(&mut self, stream: Stream, text: &[u8]) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.0.write_all(&[stream as u8])?;
        self.0.write_all(&(text.len() as u32).to_ne_bytes())?;
        self.0.write_all(text)
    }

    async fn give(mut self, printer: &Printer) -> io::Result<()> {
        self.0.seek(SeekFrom::Start(0))?;
        let mut head = [0; 5];
        while self.0.read(&mut head[..1])? == 1 {
            self.0.read_exact(&mut head[1..])?;
            let length = u32::from_ne_bytes([head[1], head[2], head[3], head[4]]);
            let mut text = vec![0; length as usize];
            self.0.read_exact(&mut text)?;
            let stream = if head[0] == Stream::Out as u8 { Stream::Out } else { Stream::Err };
            printer.print(stream, text.into()).await?;
        }
        Ok(())
    }
}

/// Prints what comes from a command's two streams, until both end. `order`, if the commands keep one, is the place of
/// this one.
pub(super) async fn pump(
    [mut out, mut err]: [DuplexStream; 2], label: Option<&str>, printer: &Printer, order: Option<(Turns, usize)>,
) -> io::Result<()> {
    const CHUNK: usize = 64 << 10;
    let mut lines = Lines::new(label);
    let mut held = order.as_ref().map(|_| Held(SpooledTempFile::new(KEPT)));
    let turn = async {
        if let Some((turns, index)) = &order {
            turns.of(*index).await;
        }
    };
    let mut turn = std::pin::pin!(turn);
    let mut buffers = [BytesMut::with_capacity(CHUNK), BytesMut::with_capacity(CHUNK)];
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        let [out_buffer, err_buffer] = &mut buffers;
        let (stream, count) = tokio::select! {
            count = out.read_buf(out_buffer), if out_open => (Stream::Out, count?),
            count = err.read_buf(err_buffer), if err_open => (Stream::Err, count?),
            () = &mut turn, if held.is_some() => {
                if let Some(held) = held.take() {
                    held.give(printer).await?;
                }
                continue;
            }
        };
        let bytes = buffers[stream as usize].split();
        let text = if count == 0 { lines.rest(stream) } else { lines.feed(stream, &bytes) };
        if count == 0 {
            *(if stream == Stream::Out { &mut out_open } else { &mut err_open }) = false;
        }
        match &mut held {
            Some(held) => held.keep(stream, &text)?,
            None => printer.print(stream, text).await?,
        }
        buffers[stream as usize].reserve(CHUNK);
    }
    if let Some(held) = held {
        turn.await;
        held.give(printer).await?;
    }
    if lines.has_cut {
        printer.note(format_args!("{}a line of more than {} MiB was cut", lines.label, LINE >> 20)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_before_each_line_and_no_line_is_cut_but_a_very_long_one() {
        let mut lines = Lines::new(Some("pi"));
        assert_eq!(lines.feed(Stream::Out, b"one\ntw"), "pi: one\n");
        assert_eq!(lines.feed(Stream::Err, b"apart\n"), "pi: apart\n");
        assert_eq!(lines.feed(Stream::Out, b"o\nthree\nfo"), "pi: two\npi: three\n");
        assert_eq!(lines.rest(Stream::Out), "pi: fo\n");
        assert_eq!(lines.rest(Stream::Out), "");
        let long = lines.feed(Stream::Out, &[b'x'; LINE]);
        assert_eq!((long.len(), lines.has_cut), (LINE + "pi: \n".len(), true));
        let mut plain = Lines::new(None);
        assert_eq!(plain.feed(Stream::Out, b"one\ntwo"), "one\n");
        assert_eq!(plain.rest(Stream::Out), "two");
    }

    #[test]
    fn what_is_held_comes_back_in_order() {
        let (sender, mut messages) = mpsc::channel(8);
        let mut held = Held(SpooledTempFile::new(4));
        held.keep(Stream::Out, b"a\n").unwrap();
        held.keep(Stream::Err, b"b\n").unwrap();
        held.keep(Stream::Out, b"").unwrap();
        held.keep(Stream::Out, b"c\n").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(held.give(&Printer(sender))).unwrap();
        let mut all = Vec::new();
        while let Ok(Message::Text(stream, text)) = messages.try_recv() {
            all.push((stream, text));
        }
        assert_eq!(all, [(Stream::Out, "a\n".into()), (Stream::Err, "b\n".into()), (Stream::Out, "c\n".into())]);
    }
}
