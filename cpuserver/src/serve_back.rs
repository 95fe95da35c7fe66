//! The connection that brings the caller's tree: dialled by the caller, served by it, walked by this node.
//!
//! It begins with the line `serve N NONCE`, which no 9P frame begins with; then the roles turn and this node is the
//! client. The node calls [`Cpu::serve_back`] from the task of that connection, once it has proven its key; a session
//! takes a tree only from its own owner, and only with its nonce, once. When the connection is lost the caller brings
//! another with the same words, on which the same 9P session goes on. Once there was bulk on it, the caller brings one
//! more beside it, with `bulk` after these words: that carries the session's lane for bulk, so that what is small never
//! waits.

use std::fmt::Display;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use p9::client::{self, Client, Dial, Resume};
use p9::transport::Io;
use p9::{Errno, Tree, Who};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::Cpu;
use crate::owner::Owner;
use crate::session::{Brought, Session};
use crate::told::{Facts, MOST};

/// How long what a caller tells may take to come.
const TELLING: Duration = Duration::from_secs(30);

/// The most that the first line may have, its newline included, in bytes.
pub const LINE_MAX: usize = 256;

/// Why a connection could not bring a tree. It is the peer's fault but for `Protocol`.
#[derive(Debug, thiserror::Error)]
pub enum ServeBackError {
    /// The line is not `serve N NONCE`, with `bulk`, `told COUNT` or `away SECONDS` after it.
    #[error("the connection does not begin with `serve SESSION NONCE`")]
    Line,
    /// There is no such session of this peer, it has a tree, or the nonce is wrong: which, is not told.
    #[error("session {0}: not yours to serve, or not with this nonce")]
    Refused(String),
    /// What it was to tell did not come.
    #[error("session {0}: what the caller tells: {1}")]
    Told(String, std::io::Error),
    /// The 9P handshake failed.
    #[error("session {0}: the caller's tree: {1}")]
    Protocol(String, client::Error),
    /// The tree could not be attached to.
    #[error("session {0}: the caller's tree: {1}")]
    Attach(String, Errno),
}

impl Cpu {
    /// Whether a connection that begins with `bytes` is one for [`Cpu::serve_back`].
    pub fn is_serve_back(bytes: &[u8]) -> bool {
        bytes.starts_with(b"serv")
    }

    /// Takes the tree that the peer `who` serves on `io`, which began with `line`, for the session that the line names.
    /// Returns when the connection or the session ends; dropping the future closes the connection.
    pub async fn serve_back(self: &Arc<Self>, line: &str, io: Io, who: &Who) -> Result<(), ServeBackError> {
        let Line { name, nonce, kind, away } = Line::parse(line).ok_or(ServeBackError::Line)?;
        let refused = || ServeBackError::Refused(name.to_owned());
        let session = if who.rights.may_run() { self.session(name, &Owner::from(who)) } else { Err(Errno::ENOENT) };
        let (session, _) = session.map_err(|_| refused())?;
        let mut io = session.wire.count(io);
        if let Some(again) = session.again(nonce) {
            // It is used by the task of the first.
            let brought = if kind == Kind::Bulk { Brought::Bulk(io) } else { Brought::First(io) };
            return again.try_send(brought).map_err(|_| refused());
        }
        let coming = if kind == Kind::Bulk { None } else { session.redeem(nonce) };
        let mut coming = coming.ok_or_else(refused)?;
        let (another, for_bulk) = (Arc::new(Another::default()), Arc::new(Another::default()));
        let (dial, bulk) = (another.dial(), Some(for_bulk.dial()));
        let resume = Resume { dial, linger: away, patience: away, bulk };
        let attach = |errno| ServeBackError::Attach(name.to_owned(), errno);
        let (client, root) = match kind {
            // One that tells of its files is one of ours.
            Kind::Told(count) => {
                let mut told = vec![0; count];
                let read = timeout(TELLING, io.read_exact(&mut told)).await.unwrap_or(Err(ErrorKind::TimedOut.into()));
                read.map_err(|err| ServeBackError::Told(name.to_owned(), err))?;
                let client = Client::assuming(io, client::Options::default(), resume);
                let root = match Facts::read(&told) {
                    Some(facts) => {
                        let root = client.attach_to(&Who::owner(), b"/", facts.root()).await;
                        root.map(|root| facts.over(root)).map_err(attach)?
                    }
                    None => client.attach(&Who::owner(), b"/").await.map_err(attach)?,
                };
                (client, root)
            }
            _ => {
                let client = Client::resuming(io, client::Options::default(), resume).await;
                let client = client.map_err(|err| ServeBackError::Protocol(name.to_owned(), err))?;
                let root = client.attach(&Who::owner(), b"/").await.map_err(attach)?;
                (client, root)
            }
        };
        session.set_caller(client.clone(), root);
        let lasts = Lasts(session.clone());
        loop {
            tokio::select! {
                _ = client.closed() => break,
                () = session.over() => break,
                // The one before may seem to be well still.
                Some(brought) = coming.recv() => match brought {
                    Brought::First(io) => {
                        another.came(io);
                        client.redial();
                    }
                    Brought::Bulk(io) => {
                        for_bulk.came(io);
                        client.redial_bulk();
                    }
                },
            }
        }
        drop(lasts);
        Ok(())
    }
}

/// How long a caller that was lost may take to come back, where it does not say, and at most. What the command asks of
/// its files waits meanwhile; the command ends with its session, which may be over before.
const AWAY: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(86_400));

/// The connection that comes next. The caller dials every one: to get back to it is to wait for it.
#[derive(Default)]
struct Another {
    io: Mutex<Option<Io>>,
    came: Notify,
}

impl Another {
    fn came(&self, io: Io) {
        *self.io.lock() = Some(io);
        self.came.notify_one();
    }

    async fn comes(&self) -> Io {
        loop {
            if let Some(io) = self.io.lock().take() {
                return io;
            }
            self.came.notified().await;
        }
    }

    fn dial(self: &Arc<Self>) -> Dial {
        let another = self.clone();
        Arc::new(move || {
            let another = another.clone();
            Box::pin(async move { Ok(another.comes().await) })
        })
    }
}

/// While this lives the session has the tree.
struct Lasts(Arc<Session>);

impl Drop for Lasts {
    fn drop(&mut self) {
        self.0.drop_caller();
    }
}

/// The first line of a connection.
#[derive(Debug, Eq, PartialEq)]
struct Line<'a> {
    /// The session's number, or the name that its caller chose.
    name: &'a str,
    nonce: &'a str,
    kind: Kind,
    away: Duration,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    /// It brings the tree.
    First,
    /// The same, after so many bytes of what [`crate::gather`] found.
    Told(usize),
    /// It is for bulk, beside the one that brought the tree.
    Bulk,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let rest = line.trim_end_matches('\n').strip_prefix("serve ")?;
        let mut words = rest.split(' ');
        let (name, nonce) = (words.next()?, words.next()?);
        let (mut kind, mut away) = (Kind::First, AWAY.0);
        while let Some(word) = words.next() {
            match word {
                "bulk" if kind == Kind::First => kind = Kind::Bulk,
                "told" if kind == Kind::First => {
                    kind = Kind::Told(words.next()?.parse().ok().filter(|count| *count <= MOST)?);
                }
                "away" => {
                    away = Duration::from_secs(words.next()?.parse().ok()?);
                }
                _ => return None,
            }
        }
        let is_one = line.len() <= LINE_MAX && !nonce.is_empty() && !name.is_empty() && away <= AWAY.1;
        is_one.then_some(Self { name, nonce, kind, away })
    }
}

/// The line that a connection begins with to bring the tree of the session called `name`.
pub fn line(name: impl Display, nonce: &str) -> String {
    format!("serve {name} {nonce}\n")
}

/// The same for one that is followed by `count` bytes of what [`crate::gather`] found.
pub fn told_line(name: impl Display, nonce: &str, count: usize) -> String {
    format!("serve {name} {nonce} told {count}\n")
}

/// `line`, from a caller that may be away for so long before the command is lost.
pub fn away(line: &str, time: Duration) -> String {
    format!("{} away {}\n", line.trim_end_matches('\n'), time.as_secs())
}

/// The line that one more connection begins with, for the bulk of that tree: taken once the tree was brought.
pub fn bulk_line(name: impl Display, nonce: &str) -> String {
    format!("serve {name} {nonce} bulk\n")
}

#[cfg(test)]
mod tests;
