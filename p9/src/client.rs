//! A 9P server at the other end of a stream, as a tree.
//!
//! Made by whoever dialled. Clones share the connection; nodes and open files keep it alive. Where the server agreed on
//! our dialect, what belongs together goes out at once: an open is Twalk, Tlopen, Tgetattr and Tread in one round trip.
//! To a plain `.L` server the same is said one message after another, and to one that speaks only 9P2000 in its words.
//!
//! Dropping a pending call, or cancelling the operation that it is part of, sends Tflush; a cancellation waits for the
//! server's word. Every wait is bounded by the server's liveness: it may take for ever to answer a read, but a server
//! from which nothing at all comes is asked for a sign of life, and given up without one.

use std::any::Any;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::server::{self, Limits};
use crate::wire::{self, Dialect, NO_FID, NO_TAG, NO_UID, R, Str, T};
use crate::{Errno, Handle, How, Name, NodeRef, Qid, Reply, Tree, Want, Who};

mod bulk;
mod call;
mod counted;
mod dir;
mod fid;
mod lease;
mod legacy;
mod link;
mod lock;
mod names;
mod node;
mod open;
mod resume;
mod waits;
mod walk;
mod xattr;

use counted::Traffic;
use legacy::Legacy;
use link::{Link, Pen};
use node::Remote;
use resume::Session;
pub use resume::{Dial, Resume};

pub use crate::session::LEASE;
pub use lease::Clock;

/// How to speak with a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// The largest frame to offer, in bytes.
    pub msize: u32,
    /// How long nothing may come from a server that owes an answer before it is asked for a sign of life, and again
    /// before it is given up.
    pub liveness: Duration,
    /// The richest dialect to offer. Poorer ones are offered when the server does not know it.
    pub dialect: Dialect,
    /// By what the end of leases is told.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        let (msize, liveness) = ((1 << 20) + wire::IO_HEADER, Duration::from_secs(15));
        Self { msize, liveness, dialect: Dialect::Slashn, clock: Clock::default() }
    }
}

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream failed or ended.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The server's frames are none.
    #[error("{0}")]
    Frame(#[from] server::Error),
    /// The server speaks no version that is spoken here.
    #[error("the server speaks {0:?}, not 9P2000")]
    Version(String),
    /// The server's answer to Tversion makes no sense.
    #[error("the server answered Tversion with {0}")]
    Answer(String),
}

/// A connection to a server. Cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<Link>);

/// What a connection has been used for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Messages sent, the agreement on a version not counted.
    pub requests: u64,
    /// Times that something was waited for, however many messages went out together.
    pub round_trips: u64,
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
}

impl Client {
    /// Agrees on a version with the server at the other end of `io`.
    pub async fn connect<S>(io: S, options: Options) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self::begin(io, options, None).await
    }

    /// The same, in a session, if the server has sessions: when the connection is lost, another is made and all goes on
    /// as if nothing had happened. What is asked meanwhile waits. The client ends as without a session once the server
    /// is not to be reached for as long as it keeps the session; with `ESTALE` if it has forgotten it, as one that was
    /// started anew has. What had been sent by then is answered with `ECONNRESET`: nobody knows whether it was done.
    pub async fn resuming<S>(io: S, options: Options, resume: Resume) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Self::begin(io, options, Some(resume)).await
    }

    /// The same for a server that is known to speak our dialect, and takes frames as large as `options` offers: nothing
    /// is waited for, and what is asked goes out together with the question for a version. A server that answers that
    /// in another way has broken the protocol: what was asked meets `EHOSTUNREACH`. If the connection turns out to be
    /// dead before anything was heard on it, another is made, for as long as `resume` has patience.
    pub fn assuming<S>(io: S, options: Options, resume: Resume) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (traffic, msize) = (Arc::new(Traffic::default()), options.msize);
        let (mut frames, writer) = resume::open(io, &traffic, msize, options.liveness);
        frames.agree(msize);
        let session = Session::new(resume, msize);
        let first = [link::one_way(&T::Version { msize, version: Str(wire::VERSION_SLASHN) })];
        let pen = Pen::new(Box::new(writer), first.into_iter().chain(session.as_ref().map(Session::begins)));
        Self(Link::start(frames, pen, traffic, (msize, Dialect::Slashn, true), options, session))
    }

    async fn begin<S>(io: S, options: Options, resume: Option<Resume>) -> Result<Self, Error>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let traffic = Arc::new(Traffic::default());
        let (mut frames, mut writer) = resume::open(io, &traffic, options.msize, options.liveness);
        for offer in Dialect::ALL.into_iter().filter(|dialect| *dialect >= options.dialect) {
            let mut message = Vec::new();
            T::Version { msize: options.msize, version: Str(offer.version()) }.encode(NO_TAG, &mut message);
            writer.write_all(&message).await?;
            writer.flush().await?;
            let frame = frames.next().await?.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            let (msize, version) = match R::decode(frame.code, &frame.body) {
                Ok(Some(R::Version { msize, version })) => (msize, version),
                // What diod says to a version that it does not know, where the protocol has "unknown".
                Ok(Some(R::Lerror { .. } | R::Error { .. })) if offer != Dialect::Legacy => continue,
                Ok(Some(R::Lerror { ecode })) => return Err(Error::Answer(Errno::from_code(ecode as i32).to_string())),
                other => return Err(Error::Answer(format!("{other:?}"))),
            };
            if msize > options.msize || msize < Limits::MSIZE_MIN {
                return Err(Error::Answer(format!("an msize of {msize} to an offer of {}", options.msize)));
            }
            match Dialect::of_version(version.0) {
                // 9P2000 is what the protocol wants of a server that does not know a variant: it may know another.
                Some(Dialect::Legacy) if offer == Dialect::Slashn => {}
                Some(agreed) if agreed >= offer => {
                    frames.agree(msize);
                    let session = resume.filter(|_| agreed == Dialect::Slashn);
                    let session = session.and_then(|resume| Session::new(resume, msize));
                    let pen = Pen::new(Box::new(writer), session.as_ref().map(Session::begins));
                    let link = Link::start(frames, pen, traffic, (msize, agreed, false), options, session);
                    return Ok(Self(link));
                }
                None if version.0 == wire::VERSION_UNKNOWN => {}
                _ => return Err(Error::Version(String::from_utf8_lossy(version.0).into_owned())),
            }
        }
        Err(Error::Version("unknown".into()))
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.0.wire.is_closed()
    }

    /// When the connection was lost, if there is none now.
    pub fn lost(&self) -> Option<std::time::Instant> {
        *self.0.wire.lost.lock()
    }

    /// For how long the server may be away which has said that it ends, if it has: then nobody need wait for it longer.
    pub fn left(&self) -> Option<Duration> {
        *self.0.wire.left.lock()
    }

    /// Returns when the connection has ended.
    pub async fn closed(&self) {
        self.0.wire.closed().await;
    }

    /// Gives up the connection that there is and dials, as if it were lost: for who knows of another before this side
    /// notices. Without a session, or while none is in use, nothing happens.
    pub fn redial(&self) {
        self.0.redial();
    }

    /// The same of the connection for bulk alone.
    pub fn redial_bulk(&self) {
        self.0.redial_bulk();
    }

    /// What it has been used for.
    pub fn counts(&self) -> Counts {
        self.0.counts()
    }

    /// The agreed dialect.
    pub fn dialect(&self) -> Dialect {
        self.0.dialect
    }

    /// The agreed frame size in bytes.
    pub fn msize(&self) -> u32 {
        self.0.msize
    }
}

impl Client {
    /// Attaches as [`Tree::attach`] does, without waiting for the answer, to what is known to have this `qid`: what
    /// goes wrong is told by what is asked first. A server that does not speak our dialect is waited for.
    pub async fn attach_to(&self, who: &Who, aname: &[u8], qid: Qid) -> Result<NodeRef, Errno> {
        if !self.0.ordered {
            return self.attach(who, aname).await;
        }
        let fid = self.0.fid()?;
        let (uname, n_uname) = (Str(who.user.as_bytes()), Some(who.uid.unwrap_or(NO_UID)));
        let attach = T::Attach { fid: fid.number(), afid: NO_FID, uname, aname: Str(aname), n_uname };
        self.0.wire.say(&[(attach, Bytes::new())]).await?;
        Ok(Remote::node(fid, qid))
    }
}

/// What ends the session of whoever said what came before on a connection, in its place: for who passes on the bytes of
/// one who was killed.
pub fn farewell() -> Vec<u8> {
    let mut message = Vec::new();
    T::Ack { received: crate::session::FAREWELL }.encode(NO_TAG, &mut message);
    message
}

/// Opens the stream at `names` below `root`: a file whose contents are made as they are read or written. If `root` is
/// of a server that speaks our dialect, its answer is not waited for, and what goes wrong is told by what is asked of
/// the stream first.
pub async fn stream_at(root: &NodeRef, names: &[Name<'_>], how: How) -> Result<Handle, Errno> {
    let node: &dyn Any = &**root;
    match node.downcast_ref::<Remote>() {
        Some(remote) if remote.fid.link.ordered => remote.walk_to_stream(names, how).await,
        _ => Ok(root.open_at(names, how, Want::default()).await?.handle),
    }
}

impl Tree for Client {
    fn attach<'a>(&'a self, who: &'a Who, aname: &'a [u8]) -> Reply<'a, NodeRef> {
        Reply::later(async move {
            let (fid, legacy) = (self.0.fid()?, self.0.dialect == Dialect::Legacy);
            let attach = T::Attach {
                fid: fid.number(),
                afid: NO_FID,
                uname: Str(who.user.as_bytes()),
                aname: Str(aname),
                n_uname: if legacy { None } else { Some(who.uid.unwrap_or(NO_UID)) },
            };
            let answer = self.0.call(attach).await?;
            fid.settle();
            let qid = answer.message()?.qid().ok_or(Errno::EPROTO)?;
            Ok(if legacy { Legacy::node(fid, qid) } else { Remote::node(fid, qid) })
        })
    }
}

/// The data of a reply, uncopied.
fn data_of(frame: &Bytes, data: wire::Data<'_>) -> Bytes {
    frame.slice_ref(data.0)
}
