//! What our dialect adds for open files: room, holes, digests, copies, and appends that say where they went.

use bytes::Bytes;

use super::{Answer, File};
use crate::wire::{R, SEEK_DATA, SEEK_HOLE, T};
use crate::{Digest, Errno, Handle};

/// The most that one copy is given, which cannot be called back while it runs.
const COPY: u64 = 128 << 20;
/// The most that is hashed for one message, likewise: some milliseconds.
const DIGEST: u64 = 16 << 20;

/// Messages about one open file.
pub(super) async fn on_file(message: &T<'_>, open: &Handle) -> Result<Answer, Errno> {
    Ok(match *message {
        T::Allocate { mode, offset, length, .. } => {
            open.allocate(mode, offset, length).await?;
            R::Allocate {}.into()
        }
        T::Seek { offset, whence, .. } => {
            let hole = match whence {
                SEEK_DATA => false,
                SEEK_HOLE => true,
                _ => return Err(Errno::EINVAL),
            };
            R::Seek { offset: open.seek(offset, hole).await? }.into()
        }
        T::Digest { offset, count, .. } => {
            let Digest { count, hash } = open.digest(offset, count.min(DIGEST)).await?;
            R::Digest { count, hash }.into()
        }
        _ => return Err(Errno::EINVAL),
    })
}

/// Copies from one open file to another; as much as one message is given.
pub(super) async fn copy(message: &T<'_>, from: &File, to: &File) -> Result<Answer, Errno> {
    let T::Copy { offset, tooffset, length, .. } = *message else { return Err(Errno::EINVAL) };
    let (Some(from), Some(to)) = (&from.open, &to.open) else { return Err(Errno::EBADF) };
    let count = from.copy(offset, to, tooffset, length.min(COPY)).await?;
    Ok(R::Copy { count }.into())
}

/// Writes at the end, and says where that was.
pub(super) async fn append(file: &File, data: Bytes) -> Result<Answer, Errno> {
    let open = file.open.as_ref().filter(|_| file.appends).ok_or(Errno::EBADF)?;
    let written = open.write(0, data).await?;
    // A tree that does not tell where has written all the same.
    Ok(R::Append { count: written.count, offset: written.offset.unwrap_or(u64::MAX) }.into())
}
