//! /cpu/connect: sockets that a node connects to for whoever may run commands there.
//!
//! Each open file is one connection: the first write says where to, in Plan 9's form (`tcp!HOST!PORT`, `unix!PATH`),
//! and is answered once it stands; what is written from then on goes there, what comes from there is read, and a write
//! of nothing says that no more will come. It lasts as long as the file is open. What this node's user can reach, a
//! command of the same peer could reach as well, so no right is given by it. Used by `rcpu -L`; answered in the tasks
//! of requests. A session's file `accept` is the same the other way round ([`streams`]): the first write says which of
//! the places where the command is to find its caller, and is answered once somebody has connected there.
//!
//! Who says `placed` on the line after the address has several reads and writes under way, each at the offset that it
//! has in its direction, from 0: each waits for those before it. Without, as for a shell whose one descriptor has one
//! offset for both, offsets mean nothing.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::{Buf, Bytes, BytesMut};
use p9::dial::Address;
use p9::{Errno, NodeRef, Reply, Stream, Written, synth, transport};
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::flow::until;

/// Connections of one peer.
const MOST: usize = 1024;
/// Bytes of one read.
const CHUNK: usize = 256 << 10;

/// The file, for one peer.
pub(crate) fn file() -> NodeRef {
    streams(|address| Box::pin(Socket::connect(address)))
}

/// A connection that is being made, by what was written first.
pub(crate) type Making = Pin<Box<dyn Future<Output = Result<Socket, Errno>> + Send>>;

/// A file of which each that is open is one connection, which `make` makes by what is written first.
pub(crate) fn streams(make: impl Fn(Bytes) -> Making + Send + Sync + 'static) -> NodeRef {
    let (room, make) = (Arc::new(Semaphore::new(MOST)), Arc::new(make));
    synth::stream(0o666, move |_| match room.clone().try_acquire_owned() {
        Ok(permit) => {
            let (made, make) = (OnceLock::new(), make.clone());
            Reply::ok(Arc::new(Connection { made, make, _permit: permit }) as Arc<dyn Stream>)
        }
        Err(_) => Errno::EMFILE.into(),
    })
}

struct Connection<M> {
    made: OnceLock<Made>,
    make: Arc<M>,
    _permit: OwnedSemaphorePermit,
}

/// What is said first for a connection to `address` whose reads and writes have places.
pub(crate) fn placed(address: &str) -> Bytes {
    format!("{address}{PLACED}").into()
}

const PLACED: &str = "\nplaced";

/// A connection that stands.
struct Made {
    socket: Socket,
    /// Whose turn it is to read and to write, where offsets say so.
    turns: Option<[Turn; 2]>,
}

impl Made {
    fn turn(&self, writes: bool) -> Option<&Turn> {
        self.turns.as_ref().map(|turns| &turns[usize::from(writes)])
    }
}

/// How far one direction is.
#[derive(Default)]
struct Turn {
    at: AtomicU64,
    changed: Notify,
}

impl Turn {
    /// Returns once all before `offset` is done. Errors: `ESTALE` for what is done already.
    async fn comes(&self, offset: u64) -> Result<(), Errno> {
        let comes = || match self.at.load(Ordering::SeqCst).cmp(&offset) {
            std::cmp::Ordering::Less => None,
            std::cmp::Ordering::Equal => Some(Ok(())),
            std::cmp::Ordering::Greater => Some(Err(Errno::ESTALE)),
        };
        until(&self.changed, comes).await
    }

    fn passes(&self, count: usize) {
        self.at.fetch_add(count as u64, Ordering::SeqCst);
        self.changed.notify_waiters();
    }
}

/// What a connection is here.
pub(crate) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    async fn connect(text: Bytes) -> Result<Self, Errno> {
        let text = std::str::from_utf8(text.trim_ascii()).map_err(|_| Errno::EINVAL)?;
        match text.parse().map_err(|_| Errno::EINVAL)? {
            Address::Tcp(to) => Ok(Self::Tcp(transport::tcp(&to).await?)),
            Address::Unix(path) => Ok(Self::Unix(transport::unix(&path).await?)),
            Address::Tls(_) => Err(Errno::EINVAL),
        }
    }

    async fn ready(&self, interest: Interest) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.ready(interest).await.map(drop),
            Self::Unix(socket) => socket.ready(interest).await.map(drop),
        }
    }

    fn try_read(&self, buffer: &mut BytesMut) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.try_read_buf(buffer),
            Self::Unix(socket) => socket.try_read_buf(buffer),
        }
    }

    fn try_write(&self, data: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.try_write(data),
            Self::Unix(socket) => socket.try_write(data),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

impl<M: Fn(Bytes) -> Making + Send + Sync + 'static> Stream for Connection<M> {
    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        let Some(made) = self.made.get() else { return Errno::ENOTCONN.into() };
        Reply::later(async move {
            if let Some(turn) = made.turn(false) {
                turn.comes(offset).await?;
            }
            let mut buffer = BytesMut::with_capacity((count as usize).clamp(1, CHUNK));
            loop {
                made.socket.ready(Interest::READABLE).await?;
                match made.socket.try_read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => {
                        read?;
                        buffer.truncate(count as usize);
                        if let Some(turn) = made.turn(false) {
                            turn.passes(buffer.len());
                        }
                        return Ok(buffer.freeze());
                    }
                }
            }
        })
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        Reply::later(async move {
            let Some(made) = self.made.get() else {
                let (address, turns) = match data.trim_ascii().strip_suffix(PLACED.as_bytes()) {
                    Some(address) => (data.slice_ref(address), Some(Default::default())),
                    None => (data.clone(), None),
                };
                let socket = (self.make)(address).await?;
                // Two who dial at once are two writers of one file: the second is refused.
                self.made.set(Made { socket, turns }).map_err(|_| Errno::EBUSY)?;
                return Ok(Written::count(data.len()));
            };
            if let Some(turn) = made.turn(true) {
                turn.comes(offset).await?;
            }
            if data.is_empty() {
                rustix::net::shutdown(&made.socket, rustix::net::Shutdown::Write)?;
                return Ok(Written::count(0));
            }
            let mut rest = data.clone();
            while !rest.is_empty() {
                made.socket.ready(Interest::WRITABLE).await?;
                match made.socket.try_write(&rest) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    written => {
                        let count = written?;
                        rest.advance(count);
                        if let Some(turn) = made.turn(true) {
                            turn.passes(count);
                        }
                    }
                }
            }
            Ok(Written::count(data.len()))
        })
    }
}
