//! Streams to speak 9P on: TCP, unix sockets, TLS, any pair of descriptors.
//!
//! Nothing here listens. Every wait is bounded: a host that does not answer costs [`CONNECT`], no more.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Join};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::dial::HostPort;

pub mod tls;

/// How long connecting may take.
pub const CONNECT: Duration = Duration::from_secs(5);

/// A stream, whatever carries it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for S {}

/// Any stream.
pub type Io = Box<dyn Stream>;

/// Connects to `to`. Errors: those of connect(2); `TimedOut` after [`CONNECT`].
pub async fn tcp(to: &HostPort) -> io::Result<TcpStream> {
    let stream = timeout(CONNECT, TcpStream::connect((to.host.as_str(), to.port)))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {CONNECT:?}")))??;
    tune(&stream)?;
    Ok(stream)
}

/// What every TCP connection wants: no waiting to fill packets, and word when the other side is gone.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(15))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    Ok(())
}

/// Connects to the unix socket at `path`.
pub async fn unix(path: &std::path::Path) -> io::Result<UnixStream> {
    timeout(CONNECT, UnixStream::connect(path)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// One stream of a side to read and a side to write: pipes, the stdin and stdout of a program.
pub fn pair<R: AsyncRead + Send + Unpin, W: AsyncWrite + Send + Unpin>(reader: R, writer: W) -> Join<R, W> {
    tokio::io::join(reader, writer)
}
