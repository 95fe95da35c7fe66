//! A layer over an open file's bytes: for a trace, other contents, a limit.
//!
//! As [`Layer`](super::Layer) is to a node, [`FileLayer`] is to an open file: each method of [`Stream`] has its
//! namesake, which by default asks the file beneath. What has a layer over it must be asked, so a descriptor beneath
//! no longer shows; and first bytes that [`Layer::open_at`](super::Layer::open_at) brings along went past the layer.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Digest, Errno, Handle, Reply, Stream, Written};

/// What lies over an open file that is no directory.
pub trait FileLayer: Send + Sync + 'static {
    /// See [`Stream::seekable`].
    fn seekable(&self, below: &Handle) -> bool {
        below.seekable()
    }

    /// See [`Stream::read`].
    fn read<'a>(&'a self, below: &'a Handle, offset: u64, count: u32) -> Reply<'a, Bytes> {
        below.read(offset, count)
    }

    /// See [`Stream::write`].
    fn write<'a>(&'a self, below: &'a Handle, offset: u64, data: Bytes) -> Reply<'a, Written> {
        below.write(offset, data)
    }

    /// See [`Stream::sync`].
    fn sync<'a>(&'a self, below: &'a Handle, data_only: bool) -> Reply<'a, ()> {
        below.sync(data_only)
    }

    /// See [`Stream::flush`].
    fn flush<'a>(&'a self, below: &'a Handle) -> Reply<'a, ()> {
        below.flush()
    }

    /// See [`Stream::write_and_flush`]: of a layer that overrides one of the two, so must this be.
    fn write_and_flush<'a>(&'a self, below: &'a Handle, offset: u64, data: Bytes) -> Reply<'a, Written> {
        below.write_and_flush(offset, data)
    }

    /// See [`Stream::allocate`].
    fn allocate<'a>(&'a self, below: &'a Handle, mode: u32, offset: u64, length: u64) -> Reply<'a, ()> {
        below.allocate(mode, offset, length)
    }

    /// See [`Stream::copy`]. `to` has a layer of this kind over it; any other was refused with `EXDEV`.
    fn copy<'a>(
        &'a self, below: &'a Handle, offset: u64, to: &'a LayeredFile<Self>, to_offset: u64, length: u64,
    ) -> Reply<'a, u64>
    where
        Self: Sized,
    {
        below.copy(offset, &to.below, to_offset, length)
    }

    /// See [`Stream::seek`].
    fn seek<'a>(&'a self, below: &'a Handle, offset: u64, hole: bool) -> Reply<'a, u64> {
        below.seek(offset, hole)
    }

    /// See [`Stream::digest`]. A layer that shows the bytes as they are may ask the file beneath; by default nobody is,
    /// since it would tell of other bytes than are read.
    fn digest<'a>(&'a self, _below: &'a Handle, _offset: u64, _count: u64) -> Reply<'a, Digest> {
        Errno::EOPNOTSUPP.into()
    }

    /// See [`Stream::poll`].
    fn poll<'a>(&'a self, below: &'a Handle, events: u32) -> Reply<'a, u32> {
        below.poll(events)
    }

    /// See [`Stream::close`].
    fn close<'a>(&'a self, below: &'a Handle) -> Reply<'a, ()> {
        below.close()
    }
}

/// An open file of the tree beneath, with a layer over it.
pub struct LayeredFile<F> {
    /// What lies over it.
    pub layer: F,
    /// The open file beneath.
    pub below: Handle,
}

impl<F: FileLayer> LayeredFile<F> {
    /// `below` with `layer` over it.
    pub fn over(layer: F, below: Handle) -> Handle {
        Handle::Stream(Arc::new(Self { layer, below }))
    }

    /// `handle`, if it has a layer of this kind over it.
    pub fn of(handle: &Handle) -> Option<&Self> {
        let Handle::Stream(stream) = handle else { return None };
        let stream: &dyn Any = &**stream;
        stream.downcast_ref()
    }
}

impl<F: FileLayer> Stream for LayeredFile<F> {
    fn seekable(&self) -> bool {
        self.layer.seekable(&self.below)
    }

    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        self.layer.read(&self.below, offset, count)
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        self.layer.write(&self.below, offset, data)
    }

    fn sync(&self, data_only: bool) -> Reply<'_, ()> {
        self.layer.sync(&self.below, data_only)
    }

    fn flush(&self) -> Reply<'_, ()> {
        self.layer.flush(&self.below)
    }

    fn write_and_flush(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        self.layer.write_and_flush(&self.below, offset, data)
    }

    fn allocate(&self, mode: u32, offset: u64, length: u64) -> Reply<'_, ()> {
        self.layer.allocate(&self.below, mode, offset, length)
    }

    fn copy<'a>(&'a self, offset: u64, to: &'a Handle, to_offset: u64, length: u64) -> Reply<'a, u64> {
        match Self::of(to) {
            Some(to) => self.layer.copy(&self.below, offset, to, to_offset, length),
            None => Errno::EXDEV.into(),
        }
    }

    fn seek(&self, offset: u64, hole: bool) -> Reply<'_, u64> {
        self.layer.seek(&self.below, offset, hole)
    }

    fn digest(&self, offset: u64, count: u64) -> Reply<'_, Digest> {
        self.layer.digest(&self.below, offset, count)
    }

    fn poll(&self, events: u32) -> Reply<'_, u32> {
        self.layer.poll(&self.below, events)
    }

    fn close(&self) -> Reply<'_, ()> {
        self.layer.close(&self.below)
    }
}
