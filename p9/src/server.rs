//! Answers 9P on one connection from any tree.
//!
//! Called by whoever accepted the stream, once per connection, in a task of its own. One reader takes messages in order
//! of arrival and claims their fids; what can be answered at once is answered in place, everything else in a task of
//! the connection; one writer sends what is ready in as few calls as it can, small replies before bulk.
//!
//! - **Order**: open, create, setattr, fsync, clunk and a walk onto its own fid are barriers on that fid: they wait for
//!   what came before, and what comes later waits for them. Everything else on a fid runs at the same time. A newfid
//!   belongs to the walk that makes it from the moment the walk arrives; if that fails, the fid answers the same error
//!   until it is clunked (where the dialect was agreed on; a plain `.L` peer has it free again).
//! - **Flush**: answered once the request has ended, after its reply: nothing of it happens later.
//! - **Limits**: a peer that exceeds one gets an error; one that breaks the protocol loses its connection, alone.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::TryFutureExt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tracing::{Instrument, Span};

use crate::frame::Frames;
use crate::wire::{self, Dialect, Malformed, R, Str};
use crate::writer::Pieces;
use crate::{Errno, TreeRef, Who};

mod answer;
mod claim;
mod connection;
mod fids;
mod lane;
mod leases;
mod legacy;
mod locks;
pub(crate) mod pool;
mod quick;
mod replies;
mod requests;
mod runner;
mod sessions;

use connection::Connection;
pub use pool::{Pool, PoolLimits};
use requests::Requests;
pub use sessions::{SessionLimits, Sessions};

use crate::session::Impossible;

/// What one connection may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The largest frame in bytes, offered in `Rversion`; at most 4 MiB.
    pub msize: u32,
    /// Fids at once; one more is `EMFILE`.
    pub fids: usize,
    /// Requests at once; one more is `EAGAIN`, unless it is a clunk or a flush.
    pub in_flight: usize,
    /// Bytes of requests at once, past which one more is `EAGAIN`; and of the data of replies, past which a read waits.
    pub bytes_in_flight: usize,
    /// How long a peer may take to send its first message.
    pub version_time: Duration,
    /// How long a frame may take from its first byte to its last; a large one may take longer, at 4 KiB a second.
    pub frame_time: Duration,
    /// What all connections may hold together.
    pub pool: Pool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            msize: (1 << 20) + wire::IO_HEADER,
            fids: 1 << 20,
            in_flight: 4096,
            bytes_in_flight: 128 << 20,
            version_time: Duration::from_secs(10),
            frame_time: Duration::from_secs(30),
            pool: Pool::of_process(),
        }
    }
}

impl Limits {
    /// The largest msize that is ever agreed on.
    pub const MSIZE_MAX: u32 = (4 << 20) + wire::IO_HEADER;
    /// The smallest msize with which a client can work.
    pub const MSIZE_MIN: u32 = 512;
}

/// Why a connection ended before its peer closed it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// A frame larger than was agreed on, or too small to be one.
    #[error("the peer sent a frame of {size} bytes, where 7 to {msize} were agreed on")]
    FrameSize {
        /// What the frame says of itself.
        size: u32,
        /// The most that it may be.
        msize: u32,
    },
    /// A message that is none.
    #[error("the peer sent a garbled message of type {code}: {why}")]
    Malformed {
        /// The message's type byte.
        code: u8,
        /// What is wrong with it.
        why: Malformed,
    },
    /// A tag that is in use.
    #[error("the peer used tag {0} for two requests at once")]
    DuplicateTag(u16),
    /// More flushes and clunks at once than can be meant.
    #[error("the peer has more than {0} requests and flushes of them at once")]
    TooMany(usize),
    /// A first message that is not `Tversion`.
    #[error("the peer did not begin with Tversion, but with a message of type {0}")]
    NoVersion(u8),
    /// The peer offered an msize that is too small to work with.
    #[error("the peer offered an msize of {0}, less than {min}", min = Limits::MSIZE_MIN)]
    TooSmall(u32),
    /// What no session allows.
    #[error("the peer broke the rules of sessions: {0}")]
    Session(&'static str),
    /// A number of frames that cannot be meant.
    #[error("the peer broke the rules of sessions: {0}")]
    Impossible(#[from] Impossible),
    /// More than can be kept for it now.
    #[error("there is no room for more requests of the peer")]
    NoRoom,
    /// The peer began something and did not go on.
    #[error("the peer took more than {0:?} for {1}")]
    TooSlow(Duration, &'static str),
}

impl Error {
    /// What the peer is told, if it broke the protocol: `Rlerror`, with the tag of the message at fault if it had one.
    fn last_words(&self) -> Option<Errno> {
        match self {
            Self::Io(_) | Self::NoRoom => None,
            Self::FrameSize { .. } => Some(Errno::EMSGSIZE),
            Self::TooSlow(..) => Some(Errno::ETIMEDOUT),
            Self::TooMany(_) => Some(Errno::EMFILE),
            Self::Malformed { .. }
            | Self::DuplicateTag(_)
            | Self::NoVersion(_)
            | Self::TooSmall(_)
            | Self::Session(_)
            | Self::Impossible(_) => Some(Errno::EPROTO),
        }
    }
}

/// Serves `tree` on `stream`, as `who`, until the peer closes it or breaks the protocol. Dropping the future ends the
/// connection and frees all that it holds: fids, open files, requests.
pub async fn serve<S>(stream: S, tree: TreeRef, who: Arc<Who>, limits: Limits) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let span = span(&who);
    converse(stream, tree, who.numbered(), limits, None)
        .inspect_err(|err| tracing::debug!("the connection ended: {err}"))
        .instrument(span)
        .await
}

/// What the log says about a connection of `who`.
fn span(who: &Who) -> Span {
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    tracing::info_span!("conn", id, peer = %who.key, user = %who.user)
}

async fn converse<S>(
    stream: S, tree: TreeRef, who: Arc<Who>, limits: Limits, sessions: Option<&Sessions>,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (reader, to_peer) = tokio::io::split(stream);
    let share = limits.pool.share(&who);
    let requests = Requests::new(&limits, share.clone());
    let mut writing = pin!(write(requests.clone(), to_peer));
    let mut frames = Frames::new(reader, limits.clone(), Some(share));
    let mut tasks = JoinSet::new();
    let mut connection = Connection::new(tree, who, requests.clone(), limits, sessions.cloned());
    let ended = {
        let mut reading = pin!(connection.run(&mut frames, &mut tasks));
        poll_fn(|cx| {
            loop {
                // The writer ends by itself only when it cannot write.
                if let Poll::Ready(written) = writing.as_mut().poll(cx) {
                    return Poll::Ready(Err(written.map(drop)));
                }
                // By turns and not by waking: another thread would take it up, which costs more than a small request
                // does altogether.
                match requests.turn(|| reading.as_mut().poll(cx)) {
                    (Poll::Ready(ended), _) => return Poll::Ready(Ok(ended)),
                    (Poll::Pending, false) => return Poll::Pending,
                    (Poll::Pending, true) => {}
                }
            }
        })
        .await
    };
    let ended = match ended {
        Err(written) => return written.map_err(Error::Io),
        Ok(Ok(Some((hello, session)))) => {
            drop(connection);
            requests.close();
            // The version has been answered once the writer has nothing more to do.
            let to_peer = writing.await?;
            return session.hand(hello, frames.boxed(), Box::new(to_peer)).await;
        }
        Ok(Ok(None)) => Ok(()),
        Ok(Err(err)) => Err(err),
    };
    // Requests that are under way are cancelled by their drop; the fids go with the connection.
    tasks.shutdown().await;
    let refusal = ended.as_ref().err().and_then(Error::last_words);
    let farewell = async move {
        if let Some(errno) = refusal {
            connection.last_words(errno).await;
        }
        requests.close();
    };
    // What was answered still goes out, to a peer that reads it.
    let last = async {
        if let ((), Ok(mut to_peer)) = tokio::join!(farewell, writing) {
            let _ = to_peer.shutdown().await;
        }
    };
    let _ = tokio::time::timeout(LAST_WORDS, last).await;
    ended
}

/// Writes replies until there are no more; gives the stream back.
async fn write<W: AsyncWrite + Unpin>(requests: Requests, mut stream: W) -> io::Result<W> {
    let mut pieces = Pieces::default();
    while requests.ready(true, true).await {
        requests.take(|_| true, |reply| pieces.add(reply));
        if let Err(err) = poll_fn(|cx| pieces.poll_write(Pin::new(&mut stream), cx)).await {
            // Nobody need wait for it any more.
            requests.close();
            return Err(err);
        }
    }
    Ok(stream)
}

/// The number of the next connection, in the log.
static NEXT: AtomicU64 = AtomicU64::new(1);
/// How long the last replies may take.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The msize that is answered to a `Tversion`, and the dialect, if there is one that both speak: the one asked for, or
/// the one of which it is a variant.
fn agree(msize: u32, version: &[u8], limits: &Limits) -> (u32, Option<Dialect>) {
    let msize = msize.min(limits.msize).min(Limits::MSIZE_MAX);
    let variant_of = |base: &[u8]| version.strip_prefix(base).is_some_and(|rest| matches!(rest, b"" | [b'.', ..]));
    let dialect = Dialect::of_version(version).or_else(|| match () {
        () if variant_of(wire::VERSION_L) => Some(Dialect::L),
        () if variant_of(wire::VERSION_9P2000) => Some(Dialect::Legacy),
        () => None,
    });
    (msize, dialect)
}

/// `Rversion`, encoded.
fn version_reply(tag: u16, msize: u32, version: &'static [u8]) -> Vec<u8> {
    let mut out = Vec::new();
    R::Version { msize, version: Str(version) }.encode(tag, &mut out);
    out
}
