//! A slow link in user space: what one side writes, the other reads a while later.
//!
//! Tests put one between a client and a server, in memory or as a TCP proxy; the benchmarks put both us and the peer
//! behind the same proxy. Rate is not limited; order is kept; an end of file travels like data.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Pieces under way on one direction of a link; past it the writer waits.
const UNDER_WAY: usize = 4096;

/// Two ends of a link on which each byte takes `delay` each way.
pub fn slow(delay: Duration) -> (DuplexStream, DuplexStream) {
    let (near, near_far) = tokio::io::duplex(1 << 20);
    let (far_near, far) = tokio::io::duplex(1 << 20);
    tokio::spawn(relay(near_far, far_near, delay));
    (near, far)
}

/// Carries bytes both ways between `a` and `b`, each `delay` late, until both have ended.
pub async fn relay(a: impl AsyncRead + AsyncWrite + Unpin, b: impl AsyncRead + AsyncWrite + Unpin, delay: Duration) {
    let ((ar, aw), (br, bw)) = (tokio::io::split(a), tokio::io::split(b));
    tokio::join!(pump(ar, bw, delay), pump(br, aw, delay));
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let write = async move {
        while let Some((due, bytes)) = receiver.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await;
    };
    let read = async move {
        let mut buf = vec![0; 1 << 16];
        while let Ok(got @ 1..) = from.read(&mut buf).await {
            if sender.send((Instant::now() + delay, buf[..got].to_vec())).await.is_err() {
                break;
            }
        }
    };
    tokio::join!(read, write);
}

/// A TCP proxy on loopback in front of `to`. Dropping it ends its connections.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    accepting: JoinHandle<()>,
    cut: Arc<Notify>,
}

impl Proxy {
    /// Starts one that holds each byte for `delay` each way.
    pub async fn start(to: SocketAddr, delay: Duration) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let cut = Arc::new(Notify::new());
        let cuts = cut.clone();
        let accepting = tokio::spawn(async move {
            let mut links = tokio::task::JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let cuts = cuts.clone();
                links.spawn(async move {
                    let cut = cuts.notified();
                    // The proxy's own connection costs a round trip, as the real one would.
                    tokio::time::sleep(delay * 2).await;
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    tokio::select! {
                        () = relay(near, far, delay) => {}
                        () = cut => {}
                    }
                });
            }
        });
        Ok(Self { address, accepting, cut })
    }

    /// Cuts the connections that there are; others may be made.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_byte_takes_the_links_delay_each_way() {
        let (mut near, mut far) = slow(Duration::from_millis(25));
        let start = Instant::now();
        near.write_all(b"ping").await.unwrap();
        let mut buf = [0; 4];
        far.read_exact(&mut buf).await.unwrap();
        far.write_all(&buf).await.unwrap();
        near.read_exact(&mut buf).await.unwrap();
        assert_eq!(&buf, b"ping");
        // The clock is paused: this is the link's arithmetic, not a timing.
        assert_eq!(start.elapsed().as_millis() / 10, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_of_file_travels() {
        let (near, mut far) = slow(Duration::from_millis(5));
        drop(near);
        assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
