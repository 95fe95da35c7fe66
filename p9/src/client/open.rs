//! Open files of the server's.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Bytes, BytesMut};

use super::call::Answer;
use super::fid::Fid;
use super::node::take_data;
use crate::session::BULK;
use crate::wire::{Data, FSYNC_FLUSH, IO_HEADER, R, SEEK_DATA, SEEK_HOLE, T};
use crate::{Digest, Errno, Handle, How, Reply, Stream, Written};

/// The most messages that one read is made of.
const PIECES: u32 = 32;

/// An open file.
pub(super) struct RemoteFile {
    fid: Arc<Fid>,
    seekable: bool,
    how: How,
    /// Whether something may have been written of which no flush has told.
    written: AtomicBool,
}

impl RemoteFile {
    pub(super) fn new(fid: Arc<Fid>, seekable: bool, how: How) -> Self {
        Self { fid, seekable, how, written: AtomicBool::new(how.changes() && !how.excl) }
    }

    /// The most that one message carries.
    fn most(&self) -> u32 {
        self.fid.link.msize - IO_HEADER
    }

    async fn read_now(&self, offset: u64, count: u32) -> Result<Bytes, Errno> {
        let (fid, most) = (self.fid.number(), self.most());
        // What does not seek cannot be asked for the second piece before the first is there.
        let pieces = if self.seekable { count.div_ceil(most).clamp(1, PIECES) } else { 1 };
        let mut reads: Vec<(T<'_>, Bytes)> = Vec::with_capacity(pieces as usize);
        for piece in 0..pieces {
            let offset = offset.checked_add(u64::from(piece) * u64::from(most)).ok_or(Errno::EINVAL)?;
            let count = most.min(count - piece * most);
            reads.push((T::Read { fid, offset, count }, Bytes::new()));
        }
        let mut calls = self.fid.link.data(&self.fid, &reads, if self.seekable { count as usize } else { 0 }).await?;
        let mut all = BytesMut::new();
        for (read, _) in &reads {
            let T::Read { count, .. } = *read else { continue };
            let data = match take_data(&mut calls).await {
                Err(errno) if all.is_empty() => return Err(errno),
                // What was read before is good; the next read meets the same.
                Err(_) => break,
                Ok(data) if data.len() > count as usize => return Err(Errno::EPROTO),
                Ok(data) if pieces == 1 => return Ok(data),
                Ok(data) => data,
            };
            all.extend_from_slice(&data);
            if data.len() < count as usize {
                break;
            }
        }
        Ok(all.freeze())
    }

    async fn write_now(&self, offset: u64, data: Bytes) -> Result<Written, Errno> {
        let mut done = 0;
        // One after another: a piece that fails must not be followed by later ones.
        loop {
            let piece = data.slice(done..data.len().min(done + self.most() as usize));
            let asked = piece.len();
            let count = match self.write_piece(offset, done as u64, piece).await {
                Ok(count) => count,
                Err(errno) if done == 0 => return Err(errno),
                // The next write meets the same.
                Err(_) => return Ok(Written::count(done)),
            };
            done += count;
            if count < asked || done == data.len() {
                return Ok(Written::count(done));
            }
        }
    }

    /// As much as one message carries: two might have another's between them.
    async fn append_now(&self, mut data: Bytes) -> Result<Written, Errno> {
        data.truncate(self.most() as usize);
        let asked = data.len();
        let append = (T::Append { fid: self.fid.number(), data: Data(&[]) }, data);
        let answer = self.fid.link.data(&self.fid, &[append], asked).await?.next().await?;
        match answer.message()? {
            R::Append { count, offset } if count as usize <= asked => {
                Ok(Written { count, offset: (offset != u64::MAX).then_some(offset) })
            }
            _ => Err(Errno::EPROTO),
        }
    }

    async fn copy_now(&self, offset: u64, to: &Handle, tooffset: u64, length: u64) -> Result<u64, Errno> {
        let Handle::Stream(to) = to else { return Err(Errno::EXDEV) };
        let to: &dyn Any = &**to;
        let to = to.downcast_ref::<Self>().filter(|to| Arc::ptr_eq(&to.fid.link, &self.fid.link));
        let to = to.ok_or(Errno::EXDEV)?;
        to.written.store(true, Ordering::Relaxed);
        let (fid, tofid) = (self.fid.number(), to.fid.number());
        let answer = self.ours(T::Copy { fid, offset, tofid, tooffset, length })?.await?;
        match answer.message()? {
            R::Copy { count } if count <= length => Ok(count),
            _ => Err(Errno::EPROTO),
        }
    }

    /// The write and the flush in one go.
    async fn write_last(&self, offset: u64, data: Bytes) -> Result<Written, Errno> {
        let asked = data.len();
        if asked > self.most() as usize || asked > BULK || !self.fid.link.ordered || self.how.append {
            let written = self.write(offset, data).await?;
            if written.count as usize == asked {
                self.flush().await?;
            }
            return Ok(written);
        }
        self.fid.uses.end().await;
        let fid = self.fid.number();
        let write = (T::Write { fid, offset, data: Data(&[]) }, data);
        let flush = (T::Fsync { fid, datasync: FSYNC_FLUSH }, Bytes::new());
        self.written.store(true, Ordering::Relaxed);
        let mut calls = self.fid.link.calls(&[write, flush]).await?;
        let count = match calls.next().await?.message() {
            Ok(R::Write { count }) if count as usize <= asked => count as usize,
            Ok(_) => return Err(Errno::EPROTO),
            Err(errno) => {
                calls.rest().await;
                return Err(errno);
            }
        };
        calls.next().await?.message()?;
        if count == asked {
            self.written.store(false, Ordering::Relaxed);
        }
        Ok(Written::count(count))
    }

    /// Asks what only our dialect knows.
    fn ours<'a>(&'a self, message: T<'a>) -> Result<impl Future<Output = Result<Answer, Errno>> + 'a, Errno> {
        if self.fid.link.ordered { Ok(self.fid.link.call(message)) } else { Err(Errno::EOPNOTSUPP) }
    }

    async fn write_piece(&self, start: u64, done: u64, piece: Bytes) -> Result<usize, Errno> {
        let offset = start.checked_add(done).ok_or(Errno::EFBIG)?;
        let asked = piece.len();
        let write = (T::Write { fid: self.fid.number(), offset, data: Data(&[]) }, piece);
        let bulk = if self.seekable { asked } else { 0 };
        let answer = self.fid.link.data(&self.fid, &[write], bulk).await?.next().await?;
        match answer.message()? {
            R::Write { count } if count as usize <= asked => Ok(count as usize),
            _ => Err(Errno::EPROTO),
        }
    }
}

impl Stream for RemoteFile {
    fn seekable(&self) -> bool {
        self.seekable
    }

    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        Reply::later(async move {
            match self.read_now(offset, count).await {
                Err(Errno::EHOSTUNREACH | Errno::ESTALE | Errno::ECONNRESET) if self.fid.link.has_lost_bulk() => {
                    self.read_now(offset, count).await
                }
                read => read,
            }
        })
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        // Where the server says where an append went.
        let appends = self.how.append && self.fid.link.ordered;
        self.written.store(true, Ordering::Relaxed);
        if appends { Reply::later(self.append_now(data)) } else { Reply::later(self.write_now(offset, data)) }
    }

    fn write_and_flush(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        Reply::later(self.write_last(offset, data))
    }

    fn allocate(&self, mode: u32, offset: u64, length: u64) -> Reply<'_, ()> {
        self.written.store(true, Ordering::Relaxed);
        let allocate = T::Allocate { fid: self.fid.number(), mode, offset, length };
        Reply::later(async move { self.ours(allocate)?.await?.message().map(|_| ()) })
    }

    fn copy<'a>(&'a self, offset: u64, to: &'a Handle, to_offset: u64, length: u64) -> Reply<'a, u64> {
        Reply::later(self.copy_now(offset, to, to_offset, length))
    }

    fn seek(&self, offset: u64, hole: bool) -> Reply<'_, u64> {
        let seek = T::Seek { fid: self.fid.number(), offset, whence: if hole { SEEK_HOLE } else { SEEK_DATA } };
        Reply::later(async move {
            match self.ours(seek)?.await?.message()? {
                R::Seek { offset } => Ok(offset),
                _ => Err(Errno::EPROTO),
            }
        })
    }

    fn digest(&self, offset: u64, count: u64) -> Reply<'_, Digest> {
        let digest = T::Digest { fid: self.fid.number(), offset, count };
        Reply::later(async move {
            match self.ours(digest)?.await?.message()? {
                R::Digest { count: hashed, hash } if hashed <= count => Ok(Digest { count: hashed, hash }),
                _ => Err(Errno::EPROTO),
            }
        })
    }

    fn sync(&self, data_only: bool) -> Reply<'_, ()> {
        let sync = T::Fsync { fid: self.fid.number(), datasync: data_only.into() };
        Reply::later(async move {
            self.fid.uses.end().await;
            self.fid.link.call(sync).await?.message().map(|_| ())
        })
    }

    fn flush(&self) -> Reply<'_, ()> {
        // A plain server knows nothing between this and the whole of fsync(2), which costs too much for each close(2).
        if !self.fid.link.ordered {
            return Reply::ok(());
        }
        let flush = T::Fsync { fid: self.fid.number(), datasync: FSYNC_FLUSH };
        Reply::later(async move {
            self.fid.uses.end().await;
            self.written.store(false, Ordering::Relaxed);
            let told = self.fid.link.call(flush).await.and_then(|answer| answer.message().map(|_| ()));
            if told.is_err() {
                self.written.store(true, Ordering::Relaxed);
            }
            told
        })
    }

    fn close(&self) -> Reply<'_, ()> {
        // The node or the lease that came along may go on using the fid, which goes with the last of them.
        let shared = Arc::strong_count(&self.fid) > 1;
        // Nothing can have gone wrong with what was only read, or was told. Our servers close in order of arrival: what
        // is asked next meets the file closed.
        let told = !self.how.changes() || !self.written.load(Ordering::Relaxed);
        if self.fid.link.ordered && self.seekable && told {
            if !shared {
                self.fid.let_go();
            }
            return Reply::ok(());
        }
        if shared { self.flush() } else { Reply::later(self.fid.close()) }
    }
}
