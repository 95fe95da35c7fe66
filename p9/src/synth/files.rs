//! The open files behind synthetic nodes.

use std::any::Any;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use crate::{Errno, Reply, Stream, Written};

/// The most that is collected of what is written to a value.
const VALUE_MAX: usize = 4 << 20;

/// An open control file.
pub(super) struct Ctl<F>(pub(super) Arc<F>);

impl<F: Fn(Bytes) -> Reply<'static, ()> + Send + Sync + 'static> Stream for Ctl<F> {
    fn write(&self, _offset: u64, data: Bytes) -> Reply<'_, Written> {
        let written = Written::count(data.len());
        let command = match data.last() {
            Some(b'\n') => data.slice(..data.len() - 1),
            _ => data,
        };
        (self.0)(command).map(move |()| written)
    }
}

/// An open value: what it was when it was opened, and what was written since.
pub(super) struct Value {
    text: Mutex<BytesMut>,
    set: Arc<dyn Fn(Bytes) -> Result<(), Errno> + Send + Sync>,
    /// Whether something was written: the old text then counts no more.
    written: Mutex<bool>,
}

impl Value {
    pub(super) fn new(text: Bytes, set: Arc<dyn Fn(Bytes) -> Result<(), Errno> + Send + Sync>) -> Self {
        Self { text: Mutex::new(BytesMut::from(&text[..])), set, written: Mutex::new(false) }
    }

    fn put(&self, offset: u64, data: &[u8]) -> Result<Written, Errno> {
        let mut text = self.text.lock();
        if !std::mem::replace(&mut *self.written.lock(), true) {
            text.clear();
        }
        let start = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let end = start.checked_add(data.len()).filter(|end| *end <= VALUE_MAX).ok_or(Errno::EFBIG)?;
        if text.len() < end {
            text.resize(end, 0);
        }
        text[start..end].copy_from_slice(data);
        (self.set)(Bytes::copy_from_slice(&text))?;
        Ok(Written::count(data.len()))
    }
}

impl Stream for Value {
    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        let text = self.text.lock();
        let start = usize::try_from(offset).map_or(text.len(), |offset| offset.min(text.len()));
        let end = text.len().min(start.saturating_add(count as usize));
        Reply::ok(Bytes::copy_from_slice(&text[start..end]))
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        self.put(offset, &data).into()
    }
}

/// An open clone file: the name of what it made, and what keeps that alive.
pub(super) struct Made {
    pub(super) text: Bytes,
    pub(super) _guard: Box<dyn Any + Send + Sync>,
}

impl Stream for Made {
    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        let start = usize::try_from(offset).map_or(self.text.len(), |offset| offset.min(self.text.len()));
        let end = self.text.len().min(start.saturating_add(count as usize));
        Reply::ok(self.text.slice(start..end))
    }
}
