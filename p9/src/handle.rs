//! An open file: where its bytes are.
//!
//! The common cases cost no call at all: contents fixed at open are a [`Handle::Bytes`], a file on this machine's disk
//! is a descriptor that the holder reads straight into its own buffer. Only what must be asked (another machine, a
//! device, a waiting process) is a [`Stream`]. The methods of [`Handle`] hide the difference from those who do not
//! care.

use std::any::Any;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{Attr, Errno, Name, Qid, Reply};

pub use digest::Digest;
use line::Line;

mod digest;
mod line;
mod local;
mod sys;

/// An open file.
#[derive(Clone)]
pub enum Handle {
    /// In this machine's kernel: the holder reads and writes the descriptor itself; a FUSE mount may pass it through.
    Fd(Arc<LocalFile>),
    /// In memory, fixed when the file was opened.
    Bytes(Bytes),
    /// In a directory.
    Dir(Arc<dyn Dir>),
    /// Somewhere that must be asked.
    Stream(Arc<dyn Stream>),
}

/// An open regular file of this machine. It seeks, and reads past the end give nothing.
pub struct LocalFile {
    fd: OwnedFd,
    /// Taken by each append, so that the file's own offset says where that one went.
    append: Option<Mutex<()>>,
    line: Line,
    token: Option<Box<dyn Token>>,
}

/// What a lease authority gives to whoever opens a file for writing; dropped when the file is closed.
pub trait Token: Send + Sync + 'static {
    /// Whether the file may be written. Errors: `ESTALE` once its writer was forced to give up a lease under which it
    /// held changes back: they are older than what others wrote since.
    fn may_write(&self) -> Result<(), Errno>;
}

impl LocalFile {
    /// The file open as `fd`. `append` says that `fd` has `O_APPEND`; `token` is what the inode's lease authority
    /// gave a writer, held until the file is closed.
    pub fn new(fd: OwnedFd, append: bool, token: Option<Box<dyn Token>>) -> Arc<Self> {
        Arc::new(Self { fd, append: append.then(Mutex::default), line: Line::default(), token })
    }
}

impl AsFd for LocalFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a write did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Written {
    /// Bytes written; fewer than asked only with a reason that the next write meets.
    pub count: u32,
    /// Where they went, when that was the server's choice (append).
    pub offset: Option<u64>,
}

impl Written {
    /// `count` bytes, written where they were asked to be.
    pub fn count(count: usize) -> Self {
        Self { count: count as u32, offset: None }
    }
}

/// An open file that answers for itself.
pub trait Stream: Any + Send + Sync + 'static {
    /// Whether offsets mean something: a file, not a pipe. What does not seek is never read ahead or cached.
    fn seekable(&self) -> bool {
        false
    }

    /// Up to `count` bytes from `offset`; none at the end of the file. A short read is not an end. Cancellable.
    fn read(&self, _offset: u64, _count: u32) -> Reply<'_, Bytes> {
        Errno::EBADF.into()
    }

    /// Writes `data` at `offset` (at the end, if opened to append). Cancellable.
    fn write(&self, _offset: u64, _data: Bytes) -> Reply<'_, Written> {
        Errno::EBADF.into()
    }

    /// Returns once everything written so far is safe; with `data_only`, as fdatasync(2).
    fn sync(&self, _data_only: bool) -> Reply<'_, ()> {
        Reply::ok(())
    }

    /// What is known to have gone wrong with what was written so far, as each close(2) of a descriptor tells it:
    /// nothing need be safe yet, and more may be written.
    fn flush(&self) -> Reply<'_, ()> {
        Reply::ok(())
    }

    /// Writes `data` at `offset`, then does as [`Stream::flush`]: both in one round trip, where that can be. A write of
    /// less than `data` is told as such, and then nothing was flushed.
    fn write_and_flush(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        Reply::later(async move {
            let asked = data.len();
            let written = self.write(offset, data).await?;
            if written.count as usize == asked {
                self.flush().await?;
            }
            Ok(written)
        })
    }

    /// fallocate(2).
    fn allocate(&self, _mode: u32, _offset: u64, _length: u64) -> Reply<'_, ()> {
        Errno::EOPNOTSUPP.into()
    }

    /// Copies `length` bytes from `offset` to `to_offset` in `to`, at the server, as copy_file_range(2); gives how
    /// many.
    fn copy<'a>(&'a self, _offset: u64, _to: &'a Handle, _to_offset: u64, _length: u64) -> Reply<'a, u64> {
        Errno::EOPNOTSUPP.into()
    }

    /// The next data (`SEEK_DATA`) or hole (`SEEK_HOLE`) from `offset`: lseek(2).
    fn seek(&self, _offset: u64, _hole: bool) -> Reply<'_, u64> {
        Errno::EOPNOTSUPP.into()
    }

    /// What the `count` bytes from `offset` are known by, so that whoever has the same need not read them. Errors:
    /// `EOPNOTSUPP` where reading is all there is.
    fn digest(&self, _offset: u64, _count: u64) -> Reply<'_, Digest> {
        Errno::EOPNOTSUPP.into()
    }

    /// Waits until one of `events` (poll(2) bits) is so, and gives those that are. What never waits is always ready.
    fn poll(&self, events: u32) -> Reply<'_, u32> {
        Reply::ok(events)
    }

    /// Closes the file and says whether all went well. Nothing else is called afterwards.
    fn close(&self) -> Reply<'_, ()> {
        Reply::ok(())
    }
}

/// An open directory.
pub trait Dir: Send + Sync + 'static {
    /// Gives `each` the entries after `cookie` (0: from the start) until it breaks or there are no more. The entry at
    /// which `each` breaks was not taken. A cookie stays good after any change of the directory: each entry that was
    /// there all along is given once.
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()>;
}

/// Takes one directory entry; breaks when it has no room for it.
pub type DirSink<'a> = dyn FnMut(Entry<'_>) -> ControlFlow<()> + Send + 'a;

/// A directory entry. There is none for `.` and `..`.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'a> {
    /// Where to go on from, after this entry. Opaque, and never 0.
    pub cookie: u64,
    /// Which file; a tree that would have to look gives kind and version as the directory tells them.
    pub qid: Qid,
    /// `st_mode`'s type bits, as the directory tells them (`DT_*` << 12).
    pub kind: u32,
    /// Its attributes, where they were at hand.
    pub attr: Option<&'a Attr>,
    /// What it is called here.
    pub name: Name<'a>,
}

impl Handle {
    /// Whether offsets mean something.
    pub fn seekable(&self) -> bool {
        match self {
            Self::Fd(_) | Self::Bytes(_) | Self::Dir(_) => true,
            Self::Stream(stream) => stream.seekable(),
        }
    }

    /// Up to `count` bytes from `offset`; none at the end of the file. Cancellable.
    pub fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        match self {
            Self::Fd(file) => file.read(offset, count),
            Self::Bytes(bytes) => Reply::ok(window(bytes, offset, count)),
            Self::Dir(_) => Errno::EISDIR.into(),
            Self::Stream(stream) => stream.read(offset, count),
        }
    }

    /// Writes `data` at `offset`. Cancellable: once dropped, it never starts.
    pub fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        match self {
            Self::Fd(file) => file.write(offset, data),
            Self::Bytes(_) => Errno::EBADF.into(),
            Self::Dir(_) => Errno::EISDIR.into(),
            Self::Stream(stream) => stream.write(offset, data),
        }
    }

    /// Returns once everything written so far is safe.
    pub fn sync(&self, data_only: bool) -> Reply<'_, ()> {
        match self {
            Self::Fd(file) => file.sync(data_only),
            Self::Bytes(_) | Self::Dir(_) => Reply::ok(()),
            Self::Stream(stream) => stream.sync(data_only),
        }
    }

    /// fallocate(2).
    pub fn allocate(&self, mode: u32, offset: u64, length: u64) -> Reply<'_, ()> {
        match self {
            Self::Fd(file) => file.allocate(mode, offset, length),
            Self::Bytes(_) | Self::Dir(_) => Errno::EOPNOTSUPP.into(),
            Self::Stream(stream) => stream.allocate(mode, offset, length),
        }
    }

    /// Copies `length` bytes from `offset` to `to_offset` in `to`, where both are; gives how many. Errors:
    /// `EOPNOTSUPP` and `EXDEV` where reading and writing must do.
    pub fn copy<'a>(&'a self, offset: u64, to: &'a Self, to_offset: u64, length: u64) -> Reply<'a, u64> {
        match (self, to) {
            (Self::Stream(stream), to) => stream.copy(offset, to, to_offset, length),
            (Self::Fd(file), Self::Fd(to)) => file.copy(offset, to, to_offset, length),
            _ => Errno::EOPNOTSUPP.into(),
        }
    }

    /// The next data or hole from `offset`: lseek(2). Errors: `EOPNOTSUPP` where it cannot be told.
    pub fn seek(&self, offset: u64, hole: bool) -> Reply<'_, u64> {
        match self {
            Self::Fd(file) => file.seek(offset, hole),
            Self::Bytes(_) | Self::Dir(_) => Errno::EOPNOTSUPP.into(),
            Self::Stream(stream) => stream.seek(offset, hole),
        }
    }

    /// What the `count` bytes from `offset` are known by: see [`Stream::digest`].
    pub fn digest(&self, offset: u64, count: u64) -> Reply<'_, Digest> {
        match self {
            Self::Fd(file) => file.digest(offset, count),
            Self::Bytes(bytes) => Reply::ok(Digest::of(bytes, offset, count)),
            Self::Dir(_) => Errno::EISDIR.into(),
            Self::Stream(stream) => stream.digest(offset, count),
        }
    }

    /// Waits until one of `events` (poll(2) bits) is so, and gives those that are.
    pub fn poll(&self, events: u32) -> Reply<'_, u32> {
        match self {
            Self::Fd(_) | Self::Bytes(_) | Self::Dir(_) => Reply::ok(events),
            Self::Stream(stream) => stream.poll(events),
        }
    }

    /// What is known to have gone wrong with what was written so far.
    pub fn flush(&self) -> Reply<'_, ()> {
        match self {
            Self::Fd(file) => file.flush(),
            Self::Bytes(_) | Self::Dir(_) => Reply::ok(()),
            Self::Stream(stream) => stream.flush(),
        }
    }

    /// Writes `data` at `offset`, then says what is known to have gone wrong: see [`Stream::write_and_flush`].
    pub fn write_and_flush(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        match self {
            Self::Stream(stream) => stream.write_and_flush(offset, data),
            _ => Reply::later(async move {
                let written = self.write(offset, data).await?;
                self.flush().await?;
                Ok(written)
            }),
        }
    }

    /// Closes the file and says whether all went well.
    pub fn close(&self) -> Reply<'_, ()> {
        match self {
            Self::Fd(_) | Self::Bytes(_) | Self::Dir(_) => Reply::ok(()),
            Self::Stream(stream) => stream.close(),
        }
    }
}

fn window(bytes: &Bytes, offset: u64, count: u32) -> Bytes {
    let start = usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()));
    bytes.slice(start..bytes.len().min(start.saturating_add(count as usize)))
}
