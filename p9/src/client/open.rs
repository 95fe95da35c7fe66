//! Open files and directories of the server's.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;

use super::fid::Fid;
use super::node::take_data;
use crate::wire::{Data, Dirent, IO_HEADER, R, T};
use crate::{Dir, DirSink, Entry, Errno, Name, Reply, Stream, Written};

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
        if count <= most || !self.seekable {
            let read = (T::Read { fid, offset, count: count.min(most) }, Bytes::new());
            let data = take_data(&mut self.fid.link.calls(&[read]).await?).await?;
            return if data.len() <= count as usize { Ok(data) } else { Err(Errno::EPROTO) };
        }
        let starts = (0..count).step_by(most as usize);
        let reads: Vec<_> = starts
            .map(|at| (T::Read { fid, offset: offset + u64::from(at), count: most.min(count - at) }, Bytes::new()))
            .collect();
        let mut calls = self.fid.link.calls(&reads).await?;
        let mut all = BytesMut::new();
        for (read, _) in &reads {
            let T::Read { count, .. } = *read else { continue };
            let data = take_data(&mut calls).await?;
            all.extend_from_slice(&data);
            if data.len() < count as usize {
                break;
            }
        }
        Ok(all.freeze())
    }

    async fn write_now(&self, offset: u64, data: Bytes) -> Result<Written, Errno> {
        let (fid, most) = (self.fid.number(), self.most() as usize);
        let mut done = 0;
        // One after another: a piece that fails must not be followed by later ones.
        while done == 0 || done < data.len() {
            let piece = data.slice(done..data.len().min(done + most));
            let write = (T::Write { fid, offset: offset + done as u64, data: Data(&[]) }, piece.clone());
            let answer = self.fid.link.calls(&[write]).await?.next().await?;
            let R::Write { count } = answer.message()? else { return Err(Errno::EPROTO) };
            let count = count as usize;
            if count > piece.len() {
                return Err(Errno::EPROTO);
            }
            done += count;
            if count < piece.len() || piece.is_empty() {
                break;
            }
        }
        Ok(Written::count(done))
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
            while !entries.is_empty() {
                let (rest, entry) = Dirent::read(&entries).map_err(|_| Errno::EPROTO)?;
                let rest = rest.len();
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
