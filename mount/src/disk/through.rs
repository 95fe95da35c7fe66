//! An open file that is read from the disk of this machine, where that has it.
//!
//! Made when a file is opened for reading, over where its bytes are. Invariant: it is read so only while nothing has
//! made old what was read since it was opened.

use std::sync::Arc;

use bytes::Bytes;
use p9::{Digest, Handle, Reply, Stream, Written};

use super::{Contents, Twin};
use crate::table::Inode;

/// A file that is open for reading.
pub(crate) struct Through {
    below: Arc<dyn Stream>,
    contents: Option<Contents>,
    twin: Option<Twin>,
    inode: Arc<Inode>,
    /// [`Inode::writes`] as it was opened.
    writes: u64,
}

impl Through {
    /// `below`, which is `inode`, was opened when `contents` were what it holds and it may have had this `twin`, and
    /// [`Inode::writes`] was `writes`.
    pub(crate) fn over(
        below: Handle, contents: Option<Contents>, twin: Option<Twin>, inode: &Arc<Inode>, writes: u64,
    ) -> Handle {
        match below {
            Handle::Stream(below) if below.seekable() && (contents.is_some() || twin.is_some()) => {
                Handle::Stream(Arc::new(Self { below, contents, twin, inode: inode.clone(), writes }))
            }
            below => below,
        }
    }

    /// What this machine has of it.
    async fn here(&self, offset: u64, count: u32) -> Option<Bytes> {
        if let Some(contents) = &self.contents
            && let Some(bytes) = contents.read(offset, count.into()).await
        {
            return Some(bytes);
        }
        self.twin.as_ref()?.read(&*self.below, offset, count).await
    }

    fn is_same(&self) -> bool {
        self.inode.writes() == self.writes
    }
}

impl Stream for Through {
    fn seekable(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        Reply::later(async move {
            if self.is_same()
                && let Some(bytes) = self.here(offset, count).await
                && self.is_same()
            {
                return Ok(bytes);
            }
            let bytes = self.below.read(offset, count).await?;
            if let Some(contents) = &self.contents
                && self.is_same()
            {
                contents.keep(offset, &bytes);
            }
            Ok(bytes)
        })
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        self.below.write(offset, data)
    }

    fn sync(&self, data_only: bool) -> Reply<'_, ()> {
        self.below.sync(data_only)
    }

    fn flush(&self) -> Reply<'_, ()> {
        self.below.flush()
    }

    fn write_and_flush(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        self.below.write_and_flush(offset, data)
    }

    fn allocate(&self, mode: u32, offset: u64, length: u64) -> Reply<'_, ()> {
        self.below.allocate(mode, offset, length)
    }

    fn copy<'a>(&'a self, offset: u64, to: &'a Handle, to_offset: u64, length: u64) -> Reply<'a, u64> {
        self.below.copy(offset, to, to_offset, length)
    }

    fn seek(&self, offset: u64, hole: bool) -> Reply<'_, u64> {
        self.below.seek(offset, hole)
    }

    fn digest(&self, offset: u64, count: u64) -> Reply<'_, Digest> {
        self.below.digest(offset, count)
    }

    fn poll(&self, events: u32) -> Reply<'_, u32> {
        self.below.poll(events)
    }

    fn close(&self) -> Reply<'_, ()> {
        self.below.close()
    }
}
