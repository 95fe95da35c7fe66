//! Extended attributes of a file of the server's.
//!
//! A value is read through a fid of its own, and written through another that sets it when it is clunked; where fids
//! are ordered, what can be sent together is.

use bytes::{Bytes, BytesMut};

use super::node::{Message, Remote, plain, take_data};
use crate::Errno;
use crate::wire::{Data, IO_HEADER, R, Str, T};

/// The most that a value or the list of names can be (`XATTR_SIZE_MAX`).
const SIZE_MAX: usize = 64 << 10;
const REPLACE: u32 = libc::XATTR_REPLACE as u32;

impl Remote {
    /// The value of `name`, or without a name the list of names.
    pub(super) async fn read_xattr(&self, name: &[u8]) -> Result<Bytes, Errno> {
        let link = &self.fid.link;
        let to = link.fid()?;
        let (fid, count) = (to.number(), link.msize - IO_HEADER);
        let walk = plain(T::Xattrwalk { fid: self.fid.number(), newfid: fid, name: Str(name) });
        let both = [walk, plain(T::Read { fid, offset: 0, count })];
        let mut calls = link.calls(if link.ordered { &both } else { &both[..1] }).await?;
        let size = match calls.next().await?.message() {
            Ok(R::Xattrwalk { size }) => size,
            Ok(_) => return Err(Errno::EPROTO),
            Err(errno) => {
                to.failed();
                calls.rest().await;
                return Err(errno);
            }
        };
        to.settle();
        if size > SIZE_MAX as u64 {
            return Err(Errno::E2BIG);
        }
        let (size, mut value) = (size as usize, BytesMut::new());
        if link.ordered {
            value.extend_from_slice(&take_data(&mut calls).await?);
        }
        while value.len() < size {
            let next = plain(T::Read { fid, offset: value.len() as u64, count });
            let data = take_data(&mut link.calls(&[next]).await?).await?;
            if data.is_empty() {
                return Err(Errno::EPROTO);
            }
            value.extend_from_slice(&data);
        }
        value.truncate(size);
        Ok(value.freeze())
    }

    /// Sets `name`, or removes it.
    pub(super) async fn write_xattr(&self, name: &[u8], value: Option<Bytes>, flags: u32) -> Result<(), Errno> {
        let link = &self.fid.link;
        // An empty value in place of another is what says that the name is to go; a plain server may take any empty
        // value for that.
        let (value, flags) = match value {
            None => (Bytes::new(), REPLACE),
            Some(value) if value.len() > SIZE_MAX => return Err(Errno::E2BIG),
            Some(value) if value.is_empty() && !link.ordered => return Err(Errno::EOPNOTSUPP),
            Some(value) if value.is_empty() && flags == REPLACE => {
                self.read_xattr(name).await?;
                (value, 0)
            }
            Some(value) => (value, flags),
        };
        let to = link.fid()?;
        let fid = to.number();
        let mut all = vec![plain(T::Xattrcreate { fid, name: Str(name), size: value.len() as u64, flags })];
        let piece = (link.msize - IO_HEADER) as usize;
        let pieces = (0..value.len()).step_by(piece).map(|at| {
            let data = value.slice(at..value.len().min(at + piece));
            (T::Write { fid, offset: at as u64, data: Data(&[]) }, data) as Message<'_>
        });
        all.extend(pieces);
        // To a plain server one after another.
        let (together, later) = all.split_at(if link.ordered { all.len() } else { 1 });
        let mut calls = self.walk_and(&[], &to, together).await?.calls.ok_or(Errno::EPROTO)?;
        for _ in together {
            if let Err(errno) = calls.next().await?.message() {
                calls.rest().await;
                return Err(errno);
            }
        }
        for write in later {
            link.calls(std::slice::from_ref(write)).await?.next().await?.message()?;
        }
        to.close().await
    }
}
