//! Moves the bytes of stdin, stdout and stderr, and waits for the end.
//!
//! All in the one task of [`super::run`]. A stream that is busy has several requests in flight, at consecutive offsets,
//! so that distance costs no speed; one that is idle has one read waiting. A short answer is no end: what it left out
//! is asked for again, before what is in flight already.

use std::cell::Cell;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use p9::{Errno, Handle, How};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;

use super::{Ended, Error, Stdio, outcome, remote::Remote};

/// Bytes of one request.
const CHUNK: u32 = 128 << 10;

/// The most requests in flight of a stream that is busy.
const DEPTH: usize = 8;

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
    let read = |offset: u64, count: u32| async move { (offset, count, file.read(offset, count).await) };
    let broken = |error| Error::Stream { stream: name, error };
    let mut reads = FuturesOrdered::new();
    let mut depth = 1;
    let mut next = 0;
    loop {
        while reads.len() < depth {
            reads.push_back(read(next, CHUNK));
            next += u64::from(CHUNK);
        }
        let Some((offset, count, answer)) = reads.next().await else { return Ok(()) };
        let bytes = match answer {
            Ok(bytes) => bytes,
            Err(errno) => {
                // Why a command does not start, is for the answer to `exec` to say.
                let _ = running.subscribe().wait_for(|runs| *runs).await;
                return Err(Error::of(name, errno, true));
            }
        };
        let length = bytes.len() as u32;
        if length == 0 {
            return sink.flush().await.map_err(broken);
        }
        // It may be known by this before the answer to `exec` is here.
        running.send_if_modified(|runs| !std::mem::replace(runs, true));
        if length < count {
            reads.push_front(read(offset + u64::from(length), count - length));
        }
        depth = if length == CHUNK { (depth * 2).min(DEPTH) } else { 1 };
        sink.write_all(&bytes).await.map_err(broken)?;
        sink.flush().await.map_err(broken)?;
    }
}

/// Copies what the command reads until there is no more, or it reads no more. Errors: the source fails, which the
/// command must not take for its end.
async fn copy_in(mut source: impl AsyncRead + Unpin, file: &Handle) -> Result<(), Error> {
    let offset = Cell::new(0);
    let mut writes = FuturesUnordered::new();
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(CHUNK as usize);
        tokio::select! {
            Some(written) = writes.next() => {
                if written == Err(Errno::EPIPE) {
                    return Ok(());
                }
            }
            read = source.read_buf(&mut buffer), if writes.len() < DEPTH => match read {
                Ok(1..) => {
                    let data = buffer.split().freeze();
                    let at = offset.replace(offset.get() + data.len() as u64);
                    writes.push(write_all(file, at, data));
                }
                Ok(0) => break,
                Err(error) => return Err(Error::Stream { stream: "stdin", error }),
            },
        }
    }
    while writes.next().await.is_some() {}
    if let Err(errno) = file.close().await {
        tracing::debug!(%errno, "stdin was not closed");
    }
    Ok(())
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
