//! The connection that brings the caller's tree: dialled by the caller, served by it, walked by this node.
//!
//! It begins with the line `serve N NONCE`, which no 9P frame begins with; then the roles turn and this node is the
//! client. The node calls [`Cpu::serve_back`] from the task of that connection, once it has proven its key; a session
//! takes a tree only from its own owner, and only with its nonce, once. When the connection is lost the caller brings
//! another with the same words, on which the same 9P session goes on. Once there was bulk on it, the caller brings one
//! more beside it, with `bulk` after these words: that carries the session's lane for bulk, so that what is small never
//! waits.

use std::sync::Arc;
use std::time::Duration;

use p9::client::{self, Client, Dial, Resume};
use p9::transport::Io;
use p9::{Errno, Tree, Who};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::Cpu;
use crate::owner::Owner;
use crate::session::{Brought, Session};

/// The most that the first line may have, its newline included, in bytes.
pub const LINE_MAX: usize = 256;

/// Why a connection could not bring a tree. It is the peer's fault but for `Protocol`.
#[derive(Debug, thiserror::Error)]
pub enum ServeBackError {
    /// The line is not `serve N NONCE`, nor `serve N NONCE bulk`.
    #[error("the connection does not begin with `serve SESSION NONCE`")]
    Line,
    /// There is no such session of this peer, it has a tree, or the nonce is wrong: which, is not told.
    #[error("session {0}: not yours to serve, or not with this nonce")]
    Refused(u64),
    /// The 9P handshake failed.
    #[error("session {0}: the caller's tree: {1}")]
    Protocol(u64, client::Error),
    /// The tree could not be attached to.
    #[error("session {0}: the caller's tree: {1}")]
    Attach(u64, Errno),
}

impl Cpu {
    /// Whether a connection that begins with `bytes` is one for [`Cpu::serve_back`].
    pub fn is_serve_back(bytes: &[u8]) -> bool {
        bytes.starts_with(b"serv")
    }

    /// Takes the tree that the peer `who` serves on `io`, which began with `line`, for the session that the line names.
    /// Returns when the connection or the session ends; dropping the future closes the connection.
    pub async fn serve_back(self: &Arc<Self>, line: &str, io: Io, who: &Who) -> Result<(), ServeBackError> {
        let Line { id, nonce, bulk } = Line::parse(line).ok_or(ServeBackError::Line)?;
        let session = self.session(id, &Owner::from(who)).filter(|_| who.rights.may_run());
        let session = session.ok_or(ServeBackError::Refused(id))?;
        let io = session.wire.count(io);
        if let Some(again) = session.again(nonce) {
            // It is used by the task of the first.
            let brought = if bulk { Brought::Bulk(io) } else { Brought::First(io) };
            return again.try_send(brought).map_err(|_| ServeBackError::Refused(id));
        }
        let coming = if bulk { None } else { session.redeem(nonce) };
        let mut coming = coming.ok_or(ServeBackError::Refused(id))?;
        let (another, for_bulk) = (Arc::new(Another::default()), Arc::new(Another::default()));
        let (dial, bulk) = (another.dial(), Some(for_bulk.dial()));
        let resume = Resume { dial, linger: LINGER, patience: LINGER, bulk };
        let protocol = |err| ServeBackError::Protocol(id, err);
        let client = Client::resuming(io, client::Options::default(), resume).await.map_err(protocol)?;
        let root = client.attach(&Who::owner(), b"/").await.map_err(|errno| ServeBackError::Attach(id, errno))?;
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

/// How long a caller that was lost may take to come back. What the command asks of its files waits meanwhile.
const LINGER: Duration = Duration::from_secs(10);

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
    /// The session's number.
    id: u64,
    nonce: &'a str,
    /// Whether it is for bulk, beside the one that brought the tree.
    bulk: bool,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let rest = line.trim_end_matches('\n').strip_prefix("serve ")?;
        let (id, words) = rest.split_once(' ')?;
        let (nonce, bulk) = match words.strip_suffix(" bulk") {
            Some(nonce) => (nonce, true),
            None => (words, false),
        };
        let is_one = line.len() <= LINE_MAX && !nonce.is_empty() && !nonce.contains(' ');
        is_one.then_some(Self { id: id.parse().ok()?, nonce, bulk })
    }
}

/// The line that a connection begins with to bring the tree of session `id`.
pub fn line(id: u64, nonce: &str) -> String {
    format!("serve {id} {nonce}\n")
}

/// The line that one more connection begins with, for the bulk of that tree: taken once the tree was brought.
pub fn bulk_line(id: u64, nonce: &str) -> String {
    format!("serve {id} {nonce} bulk\n")
}

#[cfg(test)]
mod tests;
