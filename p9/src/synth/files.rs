//! The open files behind synthetic nodes.

use std::any::Any;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{Errno, How, Reply, Stream, Written};

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

/// Takes a value that was written.
type Set = Arc<dyn Fn(Bytes) -> Result<(), Errno> + Send + Sync>;

/// An open value.
pub(super) struct Value {
    how: How,
    set: Set,
    text: Mutex<Text>,
}

struct Text {
    /// What it was when it was opened; then, what was written since.
    bytes: Vec<u8>,
    /// Whether something was written, or is to be appended: the old text then counts no more, or stays.
    begun: bool,
}

impl Value {
    pub(super) fn new(how: How, text: Bytes, set: Set) -> Self {
        Self { how, set, text: Mutex::new(Text { bytes: text.into(), begun: how.append }) }
    }

    fn put(&self, offset: u64, data: &[u8]) -> Result<Written, Errno> {
        // Held while the value is set, which does not wait: so that values are set in the order of the writes.
        let mut text = self.text.lock();
        let mut bytes = if text.begun { text.bytes.clone() } else { Vec::new() };
        let offset = if self.how.append { bytes.len() as u64 } else { offset };
        let start = usize::try_from(offset).map_err(|_| Errno::EFBIG)?;
        let end = start.checked_add(data.len()).filter(|end| *end <= VALUE_MAX).ok_or(Errno::EFBIG)?;
        bytes.resize(end.max(bytes.len()), 0);
        bytes[start..end].copy_from_slice(data);
        // A value that is refused was never written.
        (self.set)(Bytes::copy_from_slice(&bytes))?;
        *text = Text { bytes, begun: true };
        Ok(Written { count: data.len() as u32, offset: self.how.append.then_some(offset) })
    }
}

impl Stream for Value {
    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        if !self.how.read {
            return Errno::EBADF.into();
        }
        let text = self.text.lock();
        let start = usize::try_from(offset).map_or(text.bytes.len(), |offset| offset.min(text.bytes.len()));
        let end = text.bytes.len().min(start.saturating_add(count as usize));
        Reply::ok(Bytes::copy_from_slice(&text.bytes[start..end]))
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        if !self.how.write {
            return Errno::EBADF.into();
        }
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
