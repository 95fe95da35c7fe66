//! Connections to and from a node: sockets that it can reach, and sockets of its commands that lead here.
//!
//! The files are `connect` and a session's `accept`; the bytes go over the connection that the command has in any case.
//! What connects there is taken in the task of [`super::run`], and carried in tasks that end with that.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use p9::{Errno, Handle, How, Name, NodeRef, Want};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::remote::Remote;
use super::streams;
use crate::connect;

/// Bytes of a connection on their way to whoever carries it.
const PIPE: usize = 256 << 10;
/// Connections at once that lead here from one place of a command.
const MOST: usize = 256;

/// A connection that was made there, here: what is written to it goes there, and dropping it ends it.
pub type Taken = DuplexStream;

type Carry = Arc<dyn Fn(Taken) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// A place where a command finds its caller: see [`Command::accept`](crate::Command::accept).
#[derive(Clone)]
pub struct Accept {
    pub(crate) address: String,
    carry: Carry,
}

impl Accept {
    /// What connects to `address` there (`unix!PATH`, as its namespace has it, or `tcp!HOST!PORT`) is given to `carry`.
    pub fn new<F>(address: impl Into<String>, carry: impl Fn(Taken) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self { address: address.into(), carry: Arc::new(move |taken| Box::pin(carry(taken))) }
    }
}

/// Connects the node whose root is `node` to `to` (`tcp!HOST!PORT` or `unix!PATH`, there), and carries what goes
/// between that and `local`, both ways, until both have ended or one of them is broken off. Errors: it could not
/// connect.
pub async fn forward(node: NodeRef, to: &str, local: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), Errno> {
    let names = [Name::new(b"cpu")?, Name::new(b"connect")?];
    let there = node.open_at(&names, How::RDWR, Want::default()).await?.handle;
    there.write(0, connect::placed(to)).await?;
    carry(there, to, local).await;
    Ok(())
}

/// Takes what connects to any of `accepts` of the session of `remote`, as soon as its command runs, for ever.
pub(super) async fn take_all(remote: &Remote, accepts: &[Accept], mut runs: watch::Receiver<bool>) -> Infallible {
    if !accepts.is_empty() && runs.wait_for(|runs| *runs).await.is_ok() {
        futures_util::future::join_all(accepts.iter().map(|accept| take(remote, accept))).await;
    }
    std::future::pending().await
}

/// Takes what connects to `accept`, until the command or the way to it has ended.
async fn take(remote: &Remote, accept: &Accept) {
    let (room, mut carried) = (Arc::new(Semaphore::new(MOST)), JoinSet::new());
    let address = &accept.address;
    let ended = loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let taken = async {
            let there = remote.file("accept", How::RDWR).await.map_err(|error| error.to_string())?;
            there.write(0, connect::placed(address)).await.map_err(|errno| errno.to_string())?;
            Ok::<_, String>(there)
        };
        let there = match taken.await {
            Ok(there) => there,
            Err(reason) => break reason,
        };
        while carried.try_join_next().is_some() {}
        let (near, far) = tokio::io::duplex(PIPE);
        let (local, said) = ((accept.carry)(near), address.clone());
        carried.spawn(async move {
            tokio::join!(carry(there, &said, far), local);
            drop(permit);
        });
    };
    tracing::debug!(address, ended, "no more connections are taken");
    while carried.join_next().await.is_some() {}
}

/// Carries what goes between the connection `there`, to or from `name`, and `local`: in each direction as much is under
/// way as it takes to keep the way busy.
async fn carry(there: Handle, name: &str, local: impl AsyncRead + AsyncWrite + Unpin) {
    let (reader, mut writer) = tokio::io::split(local);
    let up = async {
        // One that fails has no more to say.
        let (end, _) = streams::send(reader, &there).await?;
        there.write(end, Bytes::new()).await.map(drop)
    };
    let down = async {
        let mut reads = streams::Ahead::of(&there);
        loop {
            let bytes = reads.next().await?;
            let written = if bytes.is_empty() { writer.shutdown().await } else { writer.write_all(&bytes).await };
            if bytes.is_empty() || written.is_err() {
                return written.map_err(Errno::from);
            }
        }
    };
    if let Err(errno) = tokio::try_join!(up, down) {
        tracing::debug!(%errno, name, "a forwarded connection was broken off");
    }
    let _ = there.close().await;
}
