//! Extended attributes: fids that are read like a file, or written and then set when they are clunked.
//!
//! The kernel's limits hold here, too, so that a tree never meets a name or a value that the kernel could not have
//! asked for.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::File;
use crate::{Errno, Handle, NodeRef, Reply, Stream, Written, check_xattr};

/// The most that a value or the list of names can be (`XATTR_SIZE_MAX`).
const SIZE_MAX: u64 = 64 << 10;
const CREATE: u32 = libc::XATTR_CREATE as u32;
const REPLACE: u32 = libc::XATTR_REPLACE as u32;

/// The attribute `name` of `file`, or without a name the list of them, to be read; and its size.
pub(super) async fn walk(file: &File, name: &[u8]) -> Result<(File, u64), Errno> {
    let value = if name.is_empty() {
        file.node.xattrs().await?
    } else {
        check_xattr(name)?;
        file.node.xattr(name).await?
    };
    let size = value.len() as u64;
    if size > SIZE_MAX {
        return Err(Errno::E2BIG);
    }
    let mut made = File::new(file.node.clone(), file.place.clone());
    made.open = Some(Handle::Bytes(value));
    Ok((made, size))
}

/// What is written to set the attribute `name` of `node` to `size` bytes, by `flags` of setxattr(2). Nothing at all in
/// place of what is there (`XATTR_REPLACE`) removes it: that is how Linux says so.
pub(super) fn create(node: &NodeRef, name: &[u8], size: u64, flags: u32) -> Result<Handle, Errno> {
    check_xattr(name)?;
    if size > SIZE_MAX {
        return Err(Errno::E2BIG);
    }
    if flags & !(CREATE | REPLACE) != 0 {
        return Err(Errno::EINVAL);
    }
    let (node, name, size) = (node.clone(), name.to_vec(), size as usize);
    Ok(Handle::Stream(Arc::new(Value { node, name, size, flags, written: Mutex::default() })))
}

/// A value that is being written.
struct Value {
    node: NodeRef,
    name: Vec<u8>,
    size: usize,
    flags: u32,
    written: Mutex<Filled>,
}

/// What of it was written.
#[derive(Default)]
struct Filled {
    bytes: Vec<u8>,
    count: usize,
}

impl Stream for Value {
    fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        let Some(end) = offset.checked_add(data.len() as u64).filter(|end| *end <= self.size as u64) else {
            return Errno::ENOSPC.into();
        };
        let (start, end) = (offset as usize, end as usize);
        let mut written = self.written.lock();
        if written.bytes.len() < end {
            written.bytes.resize(end, 0);
        }
        written.bytes[start..end].copy_from_slice(&data);
        written.count += data.len();
        Reply::ok(Written::count(data.len()))
    }

    /// Sets it, or removes it. Errors: `EINVAL` if not all was written that was announced.
    fn close(&self) -> Reply<'_, ()> {
        let written = std::mem::take(&mut *self.written.lock());
        if written.count != self.size || written.bytes.len() != self.size {
            return Errno::EINVAL.into();
        }
        if self.size == 0 && self.flags == REPLACE {
            return self.node.set_xattr(&self.name, None, 0);
        }
        self.node.set_xattr(&self.name, Some(written.bytes.into()), self.flags)
    }
}
