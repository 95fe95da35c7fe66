//! Open files and directories of the server's.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;

use super::fid::Fid;
use super::node::take_data;
use crate::wire::{Data, Dirent, FSYNC_FLUSH, IO_HEADER, R, T};
use crate::{Dir, DirSink, Entry, Errno, Name, Reply, Stream, Written};

/// The most messages that one read is made of.
const PIECES: u32 = 32;

/// An open file.
pub(super) struct RemoteFile {
    fid: Arc<Fid>,
    seekable: bool,
}

impl RemoteFile {
    pub(super) fn new(fid: Arc<Fid>, seekable: bool) -> Self {
        Self { fid, seekable }
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
        let mut calls = self.fid.link.calls(&reads).await?;
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

    async fn write_piece(&self, start: u64, done: u64, piece: Bytes) -> Result<usize, Errno> {
        let offset = start.checked_add(done).ok_or(Errno::EFBIG)?;
        let asked = piece.len();
        let write = (T::Write { fid: self.fid.number(), offset, data: Data(&[]) }, piece);
        let answer = self.fid.link.calls(&[write]).await?.next().await?;
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
        Reply::later(self.read_now(offset, count))
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        Reply::later(self.write_now(offset, data))
    }

    fn sync(&self, data_only: bool) -> Reply<'_, ()> {
        let sync = T::Fsync { fid: self.fid.number(), datasync: data_only.into() };
        Reply::later(async move { self.fid.link.call(sync).await?.message().map(|_| ()) })
    }

    fn flush(&self) -> Reply<'_, ()> {
        // A plain server knows nothing between this and the whole of fsync(2), which costs too much for each close(2).
        if !self.fid.link.ordered {
            return Reply::ok(());
        }
        let flush = T::Fsync { fid: self.fid.number(), datasync: FSYNC_FLUSH };
        Reply::later(async move { self.fid.link.call(flush).await?.message().map(|_| ()) })
    }

    fn close(&self) -> Reply<'_, ()> {
        Reply::later(self.fid.close())
    }
}

/// An open directory, and the entries that came with the last answer but were not asked for yet.
pub(super) struct RemoteDir {
    fid: Arc<Fid>,
    left: Mutex<Left>,
}

#[derive(Default)]
struct Left {
    /// Where the first of `entries` follows.
    after: u64,
    entries: Bytes,
}

impl RemoteDir {
    pub(super) fn new(fid: Arc<Fid>) -> Arc<Self> {
        Arc::new(Self { fid, left: Mutex::default() })
    }

    async fn list_now(&self, mut cookie: u64, each: &mut DirSink<'_>) -> Result<(), Errno> {
        loop {
            let kept = std::mem::take(&mut *self.left.lock());
            let mut entries = kept.entries;
            if entries.is_empty() || kept.after != cookie {
                let count = self.fid.link.msize - IO_HEADER;
                let read = (T::Readdir { fid: self.fid.number(), offset: cookie, count }, Bytes::new());
                entries = take_data(&mut self.fid.link.calls(&[read]).await?).await?;
            }
            if entries.is_empty() {
                return Ok(());
            }
            let from = cookie;
            while !entries.is_empty() {
                let (rest, entry) = Dirent::read(&entries).map_err(|_| Errno::EPROTO)?;
                let rest = rest.len();
                // Such a cookie would lead back here for ever.
                if entry.offset == 0 || entry.offset == from {
                    return Err(Errno::EPROTO);
                }
                if !matches!(entry.name.0, b"." | b"..") {
                    let name = Name::new(entry.name.0).map_err(|_| Errno::EPROTO)?;
                    let kind = u32::from(entry.kind) << 12;
                    let entry = Entry { cookie: entry.offset, qid: entry.qid, kind, attr: None, name };
                    if let ControlFlow::Break(()) = each(entry) {
                        *self.left.lock() = Left { after: cookie, entries };
                        return Ok(());
                    }
                }
                cookie = entry.offset;
                entries.advance(entries.len() - rest);
            }
        }
    }
}

impl Dir for RemoteDir {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        Reply::later(self.list_now(cookie, each))
    }
}
