//! 9P for a grid of Linux machines: what a served file is, and how it travels.
//!
//! Everything served implements [`Tree`] and [`Node`]: a disk directory, a synthetic tree, a union, a namespace, and
//! [`client::Client`], which is a server at the other end of a stream. [`server::serve`] answers 9P from any tree, so
//! client and server compose without limit.
//!
//! Nothing in this crate listens, daemonises, reads the environment or installs a log subscriber: the caller hands
//! in the stream, the limits and the shutdown.

mod brief;
mod buffers;
mod errno;
mod frame;
mod name;
mod names;
mod reply;
mod session;
mod writer;

pub mod cancel;
pub mod client;
pub mod dial;
pub mod file;
pub mod handle;
pub mod layer;
pub mod locks;
pub mod server;
pub mod synth;
pub mod transport;
pub mod tree;
pub mod who;
pub mod wire;

pub use errno::Errno;
pub use file::{Attr, FileKind, Qid, SetAttr, SetTime, StatFs, Time};
pub use handle::{Digest, Dir, DirSink, Entry, Handle, LocalFile, Stream, Written};
pub use name::{Name, NameBuf, check_xattr};
pub use reply::Reply;
pub use tree::{Created, How, New, Node, NodeRef, Opened, Reached, Tree, TreeRef, Walk, Want, What};
pub use who::{Rights, Who};
