//! Reading into room that holds nothing yet, which rustix has no call for: filling it with zeros first would cost as
//! much as the reading.

use std::os::fd::{AsFd, AsRawFd};

use bytes::BytesMut;
use rustix::io::Errno;

/// preadv2(2): appends up to `count` bytes from `offset` of `fd` to `buf`, as far as that has room, and says how many.
pub(super) fn pread(fd: impl AsFd, buf: &mut BytesMut, count: usize, offset: u64, flags: i32) -> Result<usize, Errno> {
    let room = buf.spare_capacity_mut();
    let part = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: room.len().min(count) };
    // SAFETY: the kernel writes within the one part, which is room that belongs to `buf` alone.
    let got = unsafe { libc::preadv2(fd.as_fd().as_raw_fd(), &raw const part, 1, offset as i64, flags) };
    let got = usize::try_from(got)
        .map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()))
        .map_err(|errno| errno.unwrap_or(Errno::IO))?;
    // SAFETY: of the room after what `buf` holds, the kernel has filled so much.
    unsafe { buf.set_len(buf.len() + got) };
    Ok(got)
}
