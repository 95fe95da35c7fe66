//! A slow link in user space: what one side writes, the other reads a while later.
//!
//! Tests put one between a client and a server, in memory or as a TCP proxy; the benchmarks put both us and the peer
//! behind the same proxy. Order is kept; an end of file travels like data.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Pieces under way on one direction of a link; past it the writer waits.
const UNDER_WAY: usize = 4096;

/// More bytes than are under way at a time: nobody waits for room.
const NOBODY_WAITS: usize = 64 << 20;

/// What a link does to what it carries, each way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Link {
    /// How long a byte is under way, at least.
    pub delay: Duration,
    /// How much longer at most: another time for each piece. Order is kept.
    pub jitter: Duration,
    /// Bytes a second, if they are limited.
    pub rate: Option<u64>,
}

impl Link {
    /// One on which a byte takes `delay` each way, however many there are.
    pub fn of(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// How much later than others the piece `number` of a link arrives: anything up to the jitter, and the same each
    /// time. (Multiplied by 2^64 over the golden ratio, numbers in sequence spread evenly.)
    fn late(&self, number: u64) -> Duration {
        self.jitter.mul_f64((number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

/// What a link of limited rate takes up before it is to go out: past it the writer waits.
const QUEUE: Duration = Duration::from_millis(20);

/// Two ends of a link on which each byte takes `delay` each way.
pub fn slow(delay: Duration) -> (DuplexStream, DuplexStream) {
    slow_with(delay, 1 << 20)
}

/// The same with `room` for bytes under way.
fn slow_with(delay: Duration, room: usize) -> (DuplexStream, DuplexStream) {
    let (near, near_far) = tokio::io::duplex(room);
    let (far_near, far) = tokio::io::duplex(room);
    tokio::spawn(relay(near_far, far_near, Link::of(delay)));
    (near, far)
}

/// A link whose near end hears nothing while the gate is shut, and how many bytes it has said.
pub fn gated() -> (DuplexStream, DuplexStream, watch::Sender<bool>, Arc<AtomicU64>) {
    let (near, near_far) = tokio::io::duplex(NOBODY_WAITS);
    let (far_near, far) = tokio::io::duplex(NOBODY_WAITS);
    let ((shut, mut is_shut), said) = (watch::channel(false), Arc::new(AtomicU64::new(0)));
    let counted = said.clone();
    let (mut near_read, mut near_write) = tokio::io::split(near_far);
    let (mut far_read, mut far_write) = tokio::io::split(far_near);
    tokio::spawn(async move {
        let mut buf = vec![0; 1 << 16];
        while let Ok(got @ 1..) = near_read.read(&mut buf).await {
            counted.fetch_add(got as u64, Ordering::SeqCst);
            if far_write.write_all(&buf[..got]).await.is_err() {
                break;
            }
        }
        let _ = far_write.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buf = vec![0; 1 << 16];
        while let Ok(got @ 1..) = far_read.read(&mut buf).await {
            // Without whoever could shut it, it is open.
            _ = is_shut.wait_for(|shut| !shut).await;
            if near_write.write_all(&buf[..got]).await.is_err() {
                break;
            }
        }
        let _ = near_write.shutdown().await;
    });
    (near, far, shut, said)
}

/// Two ends of a slow link, and how often the near end said something after it had heard something: how often it may
/// have waited, if `delay` is longer than what goes on at either end.
pub fn turns(delay: Duration) -> (DuplexStream, DuplexStream, Arc<AtomicU64>) {
    let (near, mut near_far) = tokio::io::duplex(NOBODY_WAITS);
    let (far_near, far) = slow_with(delay, NOBODY_WAITS);
    let turns = Arc::new(AtomicU64::new(0));
    let counted = turns.clone();
    tokio::spawn(async move {
        let (mut far_read, mut far_write) = tokio::io::split(far_near);
        let (mut near_read, mut near_write) = tokio::io::split(&mut near_far);
        let heard = AtomicBool::new(true);
        let say = async {
            let mut buf = vec![0; 1 << 16];
            while let Ok(got @ 1..) = near_read.read(&mut buf).await {
                if heard.swap(false, Ordering::Relaxed) {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                if far_write.write_all(&buf[..got]).await.is_err() {
                    break;
                }
            }
            let _ = far_write.shutdown().await;
        };
        let hear = async {
            let mut buf = vec![0; 1 << 16];
            while let Ok(got @ 1..) = far_read.read(&mut buf).await {
                heard.store(true, Ordering::Relaxed);
                if near_write.write_all(&buf[..got]).await.is_err() {
                    break;
                }
            }
            let _ = near_write.shutdown().await;
        };
        tokio::join!(say, hear);
    });
    (near, far, turns)
}

/// Carries bytes both ways between `a` and `b`, as `link` does, until both have ended.
pub async fn relay(a: impl AsyncRead + AsyncWrite + Unpin, b: impl AsyncRead + AsyncWrite + Unpin, link: Link) {
    relay_unless(a, b, link, Arc::default(), Arc::default()).await;
}

/// The same, but what `b` says is dropped while it is `lost`; and counts the bytes in `carried`.
async fn relay_unless(
    a: impl AsyncRead + AsyncWrite + Unpin, b: impl AsyncRead + AsyncWrite + Unpin, link: Link, lost: Arc<AtomicBool>,
    carried: Arc<AtomicU64>,
) {
    let ((ar, aw), (br, bw)) = (tokio::io::split(a), tokio::io::split(b));
    tokio::join!(pump(ar, bw, link, (Arc::default(), &carried)), pump(br, aw, link, (lost, &carried)));
}

async fn pump(
    mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, link: Link,
    (lost, carried): (Arc<AtomicBool>, &AtomicU64),
) {
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
        let (mut buf, mut free, mut number) = (vec![0; 1 << 16], Instant::now(), 0);
        while let Ok(got @ 1..) = from.read(&mut buf).await {
            if lost.load(Ordering::SeqCst) {
                continue;
            }
            carried.fetch_add(got as u64, Ordering::Relaxed);
            // When the last byte of this has gone out.
            free = free.max(Instant::now());
            free += link.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(got as f64 / rate as f64));
            number += 1;
            // Pieces go out one after another: none overtakes another that is later still.
            if sender.send((free + link.delay + link.late(number), buf[..got].to_vec())).await.is_err() {
                break;
            }
            if free > Instant::now() + QUEUE {
                sleep_until(free - QUEUE).await;
            }
        }
    };
    tokio::join!(read, write);
}

/// A TCP proxy on loopback in front of `to`. Dropping it ends its connections.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    /// In front of what.
    pub to: SocketAddr,
    /// What the far end says is lost.
    deaf: Arc<AtomicBool>,
    carried: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
    cut: Arc<Notify>,
    /// While it is shut: how many it has turned away.
    shut: Arc<Mutex<Option<usize>>>,
}

impl Proxy {
    /// Starts one that holds each byte for `delay` each way.
    pub async fn start(to: SocketAddr, delay: Duration) -> io::Result<Self> {
        Self::over(to, Link::of(delay)).await
    }

    /// Starts one that does what `link` does.
    pub async fn over(to: SocketAddr, link: Link) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let cut = Arc::new(Notify::new());
        let (cuts, shut) = (cut.clone(), Arc::<Mutex<Option<usize>>>::default());
        let (turned_away, deaf) = (shut.clone(), Arc::<AtomicBool>::default());
        let (lost, carried) = (deaf.clone(), Arc::<AtomicU64>::default());
        let count = carried.clone();
        let accepting = tokio::spawn(async move {
            let mut links = tokio::task::JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                if let Some(count) = &mut *turned_away.lock() {
                    *count += 1;
                    continue;
                }
                let (cuts, lost, count) = (cuts.clone(), lost.clone(), count.clone());
                links.spawn(async move {
                    let cut = cuts.notified();
                    // The proxy's own connection costs a round trip, as the real one would.
                    tokio::time::sleep(link.delay * 2).await;
                    let Ok(far) = TcpStream::connect(to).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    tokio::select! {
                        () = relay_unless(near, far, link, lost, count) => {}
                        () = cut => {}
                    }
                });
            }
        });
        Ok(Self { address, to, deaf, carried, accepting, cut, shut })
    }

    /// Cuts the connections that there are, and those that are made from now on.
    pub fn shut(&self) {
        *self.shut.lock() = Some(0);
        self.cut();
    }

    /// From now on nothing that the far end says arrives; what the near end says does.
    pub fn deafen(&self) {
        self.deaf.store(true, Ordering::SeqCst);
    }

    /// How many bytes went either way so far.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    /// How many connections were cut as they were made since it was shut.
    pub fn turned_away(&self) -> usize {
        self.shut.lock().unwrap_or_default()
    }

    /// Lets connections through again.
    pub fn open(&self) {
        self.deaf.store(false, Ordering::SeqCst);
        *self.shut.lock() = None;
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
    async fn jitter_makes_bytes_late_and_keeps_their_order() {
        let link = Link { jitter: Duration::from_millis(100), ..Link::of(Duration::from_millis(10)) };
        let (mut near, near_far) = tokio::io::duplex(1 << 10);
        let (far_near, mut far) = tokio::io::duplex(1 << 10);
        tokio::spawn(relay(near_far, far_near, link));
        let (mut took, mut sent) = (Vec::new(), Instant::now());
        for byte in 0..50 {
            near.write_all(&[byte]).await.unwrap();
            assert_eq!(far.read_u8().await.unwrap(), byte);
            took.push(sent.elapsed());
            sent = Instant::now();
        }
        // The clock is paused: this is the link's arithmetic, not a timing.
        let (least, most) = (took.iter().min().unwrap(), took.iter().max().unwrap());
        assert!(*least >= link.delay && *most <= link.delay + link.jitter + Duration::from_millis(1));
        assert!(*most - *least > link.jitter * 4 / 5, "{least:?} to {most:?}");
        near.write_all(&(0..200).collect::<Vec<u8>>()).await.unwrap();
        drop(near);
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, (0..200).collect::<Vec<u8>>());
    }

    #[tokio::test(start_paused = true)]
    async fn an_end_of_file_travels() {
        let (near, mut far) = slow(Duration::from_millis(5));
        drop(near);
        assert_eq!(far.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
