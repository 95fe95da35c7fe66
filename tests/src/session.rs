//! The client's side of a session, written down from the protocol's description: one lane, over connections that are
//! cut.
//!
//! [`Wanted::lane`] gives a stream that is the same to a conversation as a connection is: it says Tsession after the
//! first Tversion, acknowledges what came, and sends again what the server has not. A Tsession that is said on the
//! stream later is no message but an accident, of the kind that its lane says; a Tack goes out as it is.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use p9::wire::{HEADER, NO_TAG, R, T};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, WriteHalf};
use tokio::sync::mpsc::{self, Receiver, UnboundedReceiver};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Frames after which they are acknowledged.
const ACKNOWLEDGED: u64 = 16;
/// How long the server is asked to keep a session without a connection, in milliseconds: longer than anybody waits for
/// one to end, so that one that nobody wants is seen.
const LINGER: u32 = 600_000;
/// What is "received" by a side that ends the session.
const FAREWELL: u64 = !0;

/// How often a lane dials in vain before it gives up.
const ATTEMPTS: usize = 20;

/// A session that a client wants. Clones are the same.
#[derive(Clone)]
pub struct Wanted {
    id: [u8; 16],
    dial: Arc<dyn Fn() -> DuplexStream + Send + Sync>,
    /// Set once the server may end it, whatever the conversation says.
    pub may_end: Arc<AtomicBool>,
    /// At the end nothing is said: the last connections are just lost.
    vanishes: bool,
    /// Whether the first lane has begun.
    begun: Arc<watch::Sender<bool>>,
    /// The lanes that still have something to say.
    talking: Arc<watch::Sender<usize>>,
}

impl Wanted {
    /// One of `lanes` lanes, over connections that `dial` makes.
    pub fn new(lanes: usize, vanishes: bool, dial: impl Fn() -> DuplexStream + Send + Sync + 'static) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = u128::from(NEXT.fetch_add(1, Ordering::Relaxed)).to_le_bytes();
        let (begun, talking) = (Arc::new(watch::Sender::new(false)), Arc::new(watch::Sender::new(lanes)));
        Self { id, dial: Arc::new(dial), may_end: Arc::default(), vanishes, begun, talking }
    }

    /// A lane of it: a stream for one conversation.
    pub fn lane(&self, number: u8) -> DuplexStream {
        let (near, far) = tokio::io::duplex(1 << 16);
        let wanted = self.clone();
        tokio::spawn(async move {
            let (mut from, to) = tokio::io::split(far);
            let (sender, said) = mpsc::channel(1);
            let saying = tokio::spawn(async move {
                while let Ok(frame) = frame(&mut from).await {
                    if sender.send(frame).await.is_err() {
                        return;
                    }
                }
            });
            let (version, kept) = (Vec::new(), VecDeque::new());
            let lane = Lane { wanted, number, version, begun: false, sent: 0, kept, received: 0, to };
            // Whether it may end like this is for the conversation to judge.
            if let Err(err) = lane.run(said).await {
                tracing::debug!("lane {number} ended: {err}");
            }
            saying.abort();
        });
        near
    }
}

struct Lane {
    wanted: Wanted,
    number: u8,
    /// The Tversion that each connection begins with.
    version: Vec<u8>,
    /// Whether the server has ever granted it.
    begun: bool,
    /// Frames that were sent so far, and the last of them, which were not acknowledged.
    sent: u64,
    kept: VecDeque<Vec<u8>>,
    received: u64,
    to: WriteHalf<DuplexStream>,
}

/// One connection.
struct Connection {
    to: WriteHalf<DuplexStream>,
    /// All that comes is read, whatever else is done: the server never waits for us.
    from: UnboundedReceiver<Vec<u8>>,
    reading: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

async fn frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    from.read_exact(&mut frame).await?;
    let size = u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
    frame.resize(size.clamp(HEADER, 8 << 20), 0);
    from.read_exact(&mut frame[4..]).await?;
    Ok(frame)
}

impl Connection {
    fn of(stream: DuplexStream) -> Self {
        let (mut reader, to) = tokio::io::split(stream);
        let (sender, from) = mpsc::unbounded_channel();
        let reading = tokio::spawn(async move {
            while let Ok(frame) = frame(&mut reader).await {
                if sender.send(frame).is_err() {
                    return;
                }
            }
        });
        Self { to, from, reading }
    }

    /// What comes next, if it is not lost before.
    async fn next(&mut self) -> Option<Vec<u8>> {
        self.from.recv().await
    }

    /// Sends something. That it was lost is told by what comes, or does not.
    async fn say(&mut self, frame: &[u8]) {
        let _ = self.to.write_all(frame).await;
    }

    async fn ack(&mut self, received: u64) {
        self.say(&encoded(&T::Ack { received })).await;
    }
}

fn encoded(message: &T<'_>) -> Vec<u8> {
    let mut frame = Vec::new();
    message.encode(NO_TAG, &mut frame);
    frame
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::other(what.into())
}

impl Lane {
    async fn run(mut self, mut said: Receiver<Vec<u8>>) -> io::Result<()> {
        let Some(version) = said.recv().await else { return Ok(()) };
        self.version = version;
        if self.number > 0 {
            // A lane of no session cannot be had.
            let _ = self.wanted.begun.subscribe().wait_for(|begun| *begun).await;
        }
        let (mut connection, agreed) = self.greet(self.received).await?;
        self.wanted.begun.send_replace(true);
        self.to.write_all(&agreed).await?;
        loop {
            tokio::select! {
                biased;
                heard = connection.next() => match heard {
                    Some(heard) => self.hears(heard, &mut connection).await?,
                    None => connection = self.greet(self.received).await?.0,
                },
                frame = said.recv() => match frame {
                    None => break,
                    Some(frame) if frame[4] == 200 => connection = self.accident(&frame, connection).await?,
                    Some(frame) if frame[4] == 202 => connection.say(&frame).await,
                    Some(frame) => {
                        self.sent += 1;
                        self.kept.push_back(frame.clone());
                        connection.say(&frame).await;
                    }
                },
            }
        }
        self.wanted.talking.send_modify(|talking| *talking -= 1);
        if !self.wanted.vanishes {
            // The end of one lane would be that of all.
            let mut talking = self.wanted.talking.subscribe();
            let others = talking.wait_for(|talking| *talking == 0);
            let lost = async { while connection.from.recv().await.is_some() {} };
            tokio::select! {
                _ = others => {}
                () = lost => return Ok(()),
            }
            connection.ack(FAREWELL).await;
            // Read by the server before it is lost.
            while connection.next().await.is_some() {}
        }
        Ok(())
    }

    fn hello(&self, received: u64) -> Vec<u8> {
        let session = T::Session { id: self.wanted.id, lane: self.number, linger: LINGER, received };
        [&self.version[..], &encoded(&session)].concat()
    }

    /// A connection on which the lane goes on, and what the server answered to Tversion. It is told that `received`
    /// frames were received.
    async fn greet(&mut self, received: u64) -> io::Result<(Connection, Vec<u8>)> {
        for _ in 0..ATTEMPTS {
            let mut connection = Connection::of((self.wanted.dial)());
            connection.say(&self.hello(received)).await;
            // Another that was dialled before may take its place.
            let (Some(agreed), Some(greeting)) = (connection.next().await, connection.next().await) else { continue };
            let expected = u8::from(self.begun);
            match R::decode(greeting[4], &greeting[HEADER..]) {
                Ok(Some(R::Session { state, received, .. })) if state == expected => self.acknowledged(received)?,
                Ok(Some(R::Session { state: 0, .. })) => {
                    // Another session, which nobody wants.
                    connection.ack(FAREWELL).await;
                    while connection.next().await.is_some() {}
                    return Err(wrong("the session is gone"));
                }
                other => return Err(wrong(format!("no session: {other:?}"))),
            }
            self.begun = true;
            for frame in &self.kept {
                connection.say(frame).await;
            }
            return Ok((connection, agreed));
        }
        Err(wrong("no connection lasts"))
    }

    fn acknowledged(&mut self, received: u64) -> io::Result<()> {
        let first = self.sent - self.kept.len() as u64;
        if !(first..=self.sent).contains(&received) {
            return Err(wrong(format!("{received} were received, of {} that were sent", self.sent)));
        }
        self.kept.drain(..(received - first) as usize);
        Ok(())
    }

    async fn hears(&mut self, heard: Vec<u8>, connection: &mut Connection) -> io::Result<()> {
        let untagged = heard[5..HEADER] == NO_TAG.to_le_bytes();
        match R::decode(heard[4], &heard[HEADER..]) {
            Ok(Some(R::Ack { received })) if untagged => return self.acknowledged(received),
            // The server's last words.
            Ok(Some(R::Lerror { .. })) if untagged => {}
            _ => self.received += 1,
        }
        if self.received.is_multiple_of(ACKNOWLEDGED) {
            connection.ack(self.received).await;
        }
        self.to.write_all(&heard).await
    }

    /// The connection `old` is lost, as the Tsession `how` says; gives the next.
    async fn accident(&mut self, how: &[u8], mut old: Connection) -> io::Result<Connection> {
        let (kind, impossible) = (how[HEADER + 16], how.ends_with(&[0xff; 8]));
        match kind {
            // In the middle of a message.
            0 => old.say(&[100, 0, 0]).await,
            1 => old.ack(self.received).await,
            // The next is lost, too, before it is of any use.
            2 => Connection::of((self.wanted.dial)()).say(&self.hello(self.received)).await,
            _ => {}
        }
        // Or it is there still when the next comes.
        let _old = (kind == 3).then_some(old);
        let received = if impossible {
            self.wanted.may_end.store(true, Ordering::SeqCst);
            1 << 40
        } else {
            self.received
        };
        Ok(self.greet(received).await?.0)
    }
}
