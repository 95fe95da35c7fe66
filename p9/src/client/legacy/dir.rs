//! An open directory of a 9P2000 server: stats one after another, from the start or from where the last read ended.
//!
//! A cookie is the place of an entry in the bytes that the server gives. Who goes on from where the last answer ended
//! costs nothing; who goes on from elsewhere has the directory read from its start, since the server knows no other
//! way.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use parking_lot::Mutex;

use super::{Legacy, attr_of};
use crate::client::fid::Fid;
use crate::client::node::take_data;
use crate::wire::legacy::Stat;
use crate::wire::{Field, IO_HEADER, T};
use crate::{Dir, DirSink, Entry, Errno, Name, Reply};

/// An open directory.
pub(super) struct LegacyDir {
    /// The directory, not open.
    node: Legacy,
    /// Taken by whoever reads: two at once read from fids of their own.
    reader: Mutex<Option<Reader>>,
}

/// One that reads on.
struct Reader {
    fid: Arc<Fid>,
    /// Where the server goes on.
    at: u64,
    /// The place of the first of `entries`.
    after: u64,
    /// What came and was not asked for yet.
    entries: Bytes,
}

impl LegacyDir {
    /// The directory `node`, which is open as `fid`.
    pub(super) fn new(node: Legacy, fid: Arc<Fid>) -> Arc<Self> {
        Arc::new(Self { node, reader: Mutex::new(Some(Reader::at_start(fid))) })
    }

    async fn list_now(&self, cookie: u64, each: &mut DirSink<'_>) -> Result<(), Errno> {
        let reader = self.reader.lock().take();
        let mut reader = match reader {
            Some(reader) if reader.after == cookie => reader,
            Some(reader) => Reader::at_start(reader.fid),
            None => Reader::at_start(self.open().await?),
        };
        while let Some((stat, next)) = reader.peek().await? {
            if next > cookie {
                let name = Name::new(stat.name.0).map_err(|_| Errno::EPROTO)?;
                let attr = attr_of(&stat);
                let kind = attr.mode & libc::S_IFMT;
                if each(Entry { cookie: next, qid: attr.qid, kind, attr: Some(&attr), name }).is_break() {
                    break;
                }
            }
            reader.advance(next);
        }
        *self.reader.lock() = Some(reader);
        Ok(())
    }

    async fn open(&self) -> Result<Arc<Fid>, Errno> {
        let fid = self.node.clone().await?;
        fid.link.call(T::Open { fid: fid.number(), mode: 0 }).await?.message()?;
        Ok(fid)
    }
}

impl Reader {
    fn at_start(fid: Arc<Fid>) -> Self {
        Self { fid, at: 0, after: 0, entries: Bytes::new() }
    }

    /// The next entry, and the place after it.
    async fn peek(&mut self) -> Result<Option<(Stat<'_>, u64)>, Errno> {
        if self.entries.is_empty() {
            let count = self.fid.link.msize - IO_HEADER;
            let read = (T::Read { fid: self.fid.number(), offset: self.at, count }, Bytes::new());
            self.entries = take_data(&mut self.fid.link.calls(&[read]).await?).await?;
            if self.entries.len() > count as usize {
                return Err(Errno::EPROTO);
            }
            self.at += self.entries.len() as u64;
        }
        if self.entries.is_empty() {
            return Ok(None);
        }
        let (rest, stat) = Stat::read(&self.entries).map_err(|_| Errno::EPROTO)?;
        Ok(Some((stat, self.after + (self.entries.len() - rest.len()) as u64)))
    }

    fn advance(&mut self, next: u64) {
        self.entries.advance((next - self.after) as usize);
        self.after = next;
    }
}

impl Dir for LegacyDir {
    fn list<'a>(&'a self, cookie: u64, each: &'a mut DirSink<'a>) -> Reply<'a, ()> {
        Reply::later(self.list_now(cookie, each))
    }
}
