//! Moves the bytes of stdin, stdout and stderr, and waits for the end.
//!
//! All in the one task of [`super::run`]; a forwarded connection is carried in the same manner. A stream that is busy has several requests in flight, at consecutive offsets,
//! so that distance costs no speed; one that is idle has one read waiting. A short answer is no end: what it left out
//! is asked for again, before what is in flight already.

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use p9::{Errno, Handle, How};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::{Ended, Error, Stdio, outcome, remote::Remote};

/// Bytes of one request.
const CHUNK: u32 = 256 << 10;

/// The most requests in flight of a stream that is busy.
const DEPTH: usize = 16;

/// Opens the streams, moves their bytes, and returns how the command ended once all its output is here.
pub(super) async fn pump(remote: &Remote, stdio: Stdio, running: &watch::Sender<bool>) -> Result<Ended, Error> {
    let Stdio { stdin, stdout, stderr } = stdio;
    let output = async |name, sink| copy_out(name, &remote.file(name, How::READ).await?, sink, running).await;
    let ended = async {
        match ended(remote, || true).await {
            Err(Error::Lost { .. }) if !*running.borrow() => std::future::pending().await,
            ended => ended,
        }
    };
    let all_out = async { tokio::try_join!(output("stdout", stdout), output("stderr", stderr), ended) };
    let all_in = async {
        // What is to be read is left alone until somebody reads it: one that never starts takes nothing.
        if running.subscribe().wait_for(|runs| *runs).await.is_err() {
            std::future::pending::<()>().await;
        }
        copy_in(stdin, &remote.file("stdin", How::WRITE).await?).await?;
        // The command may go on for as long as it likes.
        std::future::pending::<Result<(), Error>>().await
    };
    tokio::select! {
        out = all_out => out.map(|((), (), ended)| ended),
        Err(err) = all_in => Err(err),
    }
}

/// How the command ends, once it has; `runs` says whether it runs.
pub(super) async fn ended(remote: &Remote, runs: impl Fn() -> bool) -> Result<Ended, Error> {
    let wait = remote.file("wait", How::READ).await?;
    let text = wait.read(0, CHUNK).await.map_err(|errno| Error::of("wait", errno, runs()))?;
    outcome::ended(&String::from_utf8_lossy(&text))
}

/// Copies what the command writes until its end.
async fn copy_out(
    name: &'static str, file: &Handle, mut sink: impl AsyncWrite + Unpin, running: &watch::Sender<bool>,
) -> Result<(), Error> {
    let broken = |error| Error::Stream { stream: name, error };
    let mut reads = Ahead::of(file);
    loop {
        let bytes = match reads.next().await {
            Ok(bytes) => bytes,
            Err(errno) => {
                // Why a command does not start, is for the answer to `exec` to say.
                let _ = running.subscribe().wait_for(|runs| *runs).await;
                return Err(Error::of(name, errno, true));
            }
        };
        if bytes.is_empty() {
            return sink.flush().await.map_err(broken);
        }
        // It may be known by this before the answer to `exec` is here.
        running.send_if_modified(|runs| !std::mem::replace(runs, true));
        sink.write_all(&bytes).await.map_err(broken)?;
        sink.flush().await.map_err(broken)?;
    }
}

/// Copies what the command reads until there is no more, or it reads no more. Errors: the source fails, which the
/// command must not take for its end.
async fn copy_in(source: impl AsyncRead + Unpin, file: &Handle) -> Result<(), Error> {
    match send(source, file).await {
        Ok((_, Ok(()))) => {}
        Ok((_, Err(error))) => return Err(Error::Stream { stream: "stdin", error }),
        // A command that reads no more may go on; a node that is lost is noticed by whoever waits for its end.
        Err(_) => return Ok(()),
    }
    if let Err(errno) = file.close().await {
        tracing::debug!(%errno, "stdin was not closed");
    }
    Ok(())
}

/// A read: where, how much, and what came.
type Read<'a> = BoxFuture<'a, (u64, u32, Result<Bytes, Errno>)>;

/// Reads of a file from its beginning to its end: several in flight while it has much to say.
pub(super) struct Ahead<'a> {
    file: &'a Handle,
    reads: FuturesOrdered<Read<'a>>,
    depth: usize,
    next: u64,
}

impl<'a> Ahead<'a> {
    pub(super) fn of(file: &'a Handle) -> Self {
        Self { file, reads: FuturesOrdered::new(), depth: 1, next: 0 }
    }

    fn read(&self, offset: u64, count: u32) -> Read<'a> {
        let file = self.file;
        Box::pin(async move { (offset, count, file.read(offset, count).await) })
    }

    /// The bytes that come next; none at the end.
    pub(super) async fn next(&mut self) -> Result<Bytes, Errno> {
        while self.reads.len() < self.depth {
            self.reads.push_back(self.read(self.next, CHUNK));
            self.next += u64::from(CHUNK);
        }
        let Some((offset, count, answer)) = self.reads.next().await else { return Ok(Bytes::new()) };
        let bytes = answer?;
        let length = bytes.len() as u32;
        if length > 0 && length < count {
            self.reads.push_front(self.read(offset + u64::from(length), count - length));
        }
        // It has more to say if that was all that was asked for.
        self.depth = if length == count { (self.depth * 2).min(DEPTH) } else { (self.depth / 2).max(1) };
        Ok(bytes)
    }
}

/// Writes what `source` gives to `file`, from its beginning, several messages at a time. Gives how much that was, once
/// all of it was taken, and whether the source ended well. Errors: the file takes no more.
pub(super) async fn send(
    mut source: impl AsyncRead + Unpin, file: &Handle,
) -> Result<(u64, std::io::Result<()>), Errno> {
    let (mut offset, mut writes, mut buffer) = (0, FuturesUnordered::new(), BytesMut::new());
    let ended = loop {
        buffer.reserve(CHUNK as usize);
        tokio::select! {
            Some(written) = writes.next() => written?,
            read = source.read_buf(&mut buffer), if writes.len() < DEPTH => match read {
                Ok(0) => break Ok(()),
                Ok(count) => {
                    writes.push(write_all(file, offset, buffer.split().freeze()));
                    offset += count as u64;
                }
                Err(error) => break Err(error),
            },
        }
    };
    while let Some(written) = writes.next().await {
        written?;
    }
    Ok((offset, ended))
}

/// Writes all of `data` at `offset`, in as many messages as it takes.
pub(super) async fn write_all(file: &Handle, mut offset: u64, mut data: Bytes) -> Result<(), Errno> {
    while !data.is_empty() {
        let written = file.write(offset, data.clone()).await?.count;
        if written == 0 {
            return Err(Errno::EIO);
        }
        offset += u64::from(written);
        data = data.split_off((written as usize).min(data.len()));
    }
    Ok(())
}
