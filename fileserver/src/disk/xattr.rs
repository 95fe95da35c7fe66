//! Extended attributes, passed through: `user.` and `security.`, as far as the kernel allows.
//!
//! Called by a node. Others (`trusted.`, the ACLs in `system.`, which name this machine's users)
//! are not supported.

use std::os::fd::{AsFd, BorrowedFd};

use bytes::Bytes;
use p9::{Errno, Name};
use rustix::fs::{XattrFlags, getxattr, listxattr, listxattr_query, removexattr, setxattr};

use super::inode::Reach;
use super::sys;
use super::sys::proc_path;

/// The most that a value or the list of names can be, by xattr(7).
const MAX: usize = 64 << 10;

fn served(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name.starts_with(b"security.")
}

/// Refuses what is no name, and what is not served.
fn check(name: &[u8]) -> Result<(), Errno> {
    p9::check_xattr(name)?;
    if served(name) { Ok(()) } else { Err(Errno::EOPNOTSUPP) }
}

/// Whether the file or directory `name` of `dir`, for which `place` stands, has none at all. If another has taken its
/// name since, it may be told of that one: a lease on `dir` does not outlast this.
pub(super) fn none(dir: BorrowedFd<'_>, name: Name<'_>, place: impl AsFd) -> bool {
    // The way to it by /proc takes three times as long.
    let by_proc = |_| listxattr_query(proc_path(place));
    sys::xattrs_length(dir, name).or_else(by_proc).is_ok_and(|length| length == 0)
}

/// The value of `name`.
pub(super) fn read(reach: &Reach, name: &[u8]) -> Result<Bytes, Errno> {
    check(name)?;
    let path = proc_path(reach);
    let mut value = vec![0; 256];
    let got = match getxattr(&path, name, &mut value) {
        Err(rustix::io::Errno::RANGE) => {
            value.resize(MAX, 0);
            getxattr(&path, name, &mut value)?
        }
        answer => answer?,
    };
    value.truncate(got);
    Ok(value.into())
}

/// The names that are served, each ended by NUL.
pub(super) fn list(reach: &Reach) -> Result<Bytes, Errno> {
    let mut names = vec![0; MAX];
    let got = listxattr(proc_path(reach), &mut names)?;
    let served = names[..got].split_inclusive(|&b| b == 0).filter(|name| served(name));
    Ok(served.flatten().copied().collect::<Vec<u8>>().into())
}

/// Sets `name`, or removes it.
pub(super) fn write(reach: &Reach, name: &[u8], value: Option<&[u8]>, flags: u32) -> Result<(), Errno> {
    check(name)?;
    match value {
        Some(value) => {
            let flags = XattrFlags::from_bits(flags).ok_or(Errno::EINVAL)?;
            Ok(setxattr(proc_path(reach), name, value, flags)?)
        }
        None => Ok(removexattr(proc_path(reach), name)?),
    }
}
