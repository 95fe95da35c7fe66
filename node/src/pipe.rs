//! The way from an `rcpu` to a node by way of the agent, which has connections at hand ([`crate::pool`]).
//!
//! On the agent's control socket a connection that begins with the line `dial NODE` is answered with one line, `ok` or
//! why there is none, and is from then on one to that node: bytes go both ways as they are. When the process that asked
//! has ended, and not just its connection, the agent says so to the node, as a session's farewell (p9/DIALECT.md): what
//! it had there ends at once, while what a lost link had waits for another.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use p9::client;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, copy_buf};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::dial::Dialer;
use crate::pool::Pool;

/// What a connection begins with that is to be one to a node.
pub const DIAL: &[u8; 5] = b"dial ";

/// The longest line.
const LINE: u64 = 4096;
/// Bytes that are moved at a time.
const CHUNK: usize = 256 << 10;
/// How long the agent may take that has to dial first, and a process to end whose connection has ended.
const DIALLED: Duration = Duration::from_secs(20);
const ENDED: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// A connection to the node called `name` by the agent that answers at `socket`. Errors: `NotConnected` with the
/// agent's words if it could not reach the node; those of the socket.
pub async fn dial(socket: &Path, name: &str) -> io::Result<UnixStream> {
    let dialled = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream.write_all(&[DIAL, name.as_bytes(), b"\n"].concat()).await?;
        let line = line(&mut stream).await?;
        match line.as_str() {
            "ok" => Ok(stream),
            why => Err(io::Error::new(io::ErrorKind::NotConnected, why.to_owned())),
        }
    };
    timeout(DIALLED, dialled).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The line that comes next. Byte by byte: what follows it is not ours.
async fn line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    while (line.len() as u64) < LINE {
        match stream.read_u8().await? {
            b'\n' => return String::from_utf8(line).map_err(io::Error::other),
            byte => line.push(byte),
        }
    }
    Err(io::Error::other("the line is too long"))
}

/// Serves `stream`, which begins with [`DIAL`], to its end.
pub async fn serve(mut stream: UnixStream, dialer: &Dialer, pool: &Pool) -> io::Result<()> {
    let line = line(&mut stream).await?;
    let name = line.strip_prefix("dial ").unwrap_or_default();
    let reached = match dialer.find(name) {
        Ok(node) => pool.take(&node).await,
        Err(err) => Err(err),
    };
    let io = match reached {
        Ok(io) => io,
        Err(err) => {
            let why = err.to_string().replace(char::is_control, " ");
            return stream.write_all(format!("{why}\n").as_bytes()).await;
        }
    };
    // Before it is told anything, after which it may end at any moment.
    let asked = stream.peer_cred().ok().and_then(|peer| peer.pid()).and_then(Pid::from_raw);
    let asked = asked.and_then(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK).ok());
    stream.write_all(b"ok\n").await?;
    let ((mut from, mut to), (mut far, mut near)) = (stream.split(), tokio::io::split(io));
    let (mut up, mut down) = (BufReader::with_capacity(CHUNK, &mut from), BufReader::with_capacity(CHUNK, &mut far));
    let copied = tokio::select! {
        up = copy_buf(&mut up, &mut near) => up,
        // Who has ended takes nothing, either, which may be what shows first.
        down = copy_buf(&mut down, &mut to) => match down {
            Err(err) if matches!(err.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => Err(err),
            down => return down.map(drop),
        }
    };
    if has_ended(asked).await {
        near.write_all(&client::farewell()).await?;
        near.flush().await?;
    }
    near.shutdown().await?;
    copied.map(drop)
}

/// Whether the process ends that this stands for, or does so soon.
async fn has_ended(process: Option<OwnedFd>) -> bool {
    let Some(process) = process else { return false };
    let look = move || poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&ENDED));
    tokio::task::spawn_blocking(look).await.is_ok_and(|ended| ended == Ok(1))
}
