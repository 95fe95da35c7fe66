//! Attributes, times and errors between the tree's types and FUSE's.
//!
//! Pure functions, called on any thread. Nothing that a peer says can make them panic: what FUSE cannot express is
//! brought to the nearest value that it can.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use p9::{Attr, Errno, FileKind, SetTime, Time};

/// The attributes as the kernel wants them, of the file that it knows as `id`.
pub(crate) fn to_fuse(attr: &Attr, id: u64) -> FileAttr {
    FileAttr {
        ino: INodeNo(id),
        size: attr.size.min(i64::MAX as u64),
        blocks: attr.blocks,
        atime: time(attr.atime),
        mtime: time(attr.mtime),
        ctime: time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: file_type(type_bits(attr)),
        perm: (attr.mode & 0o7777) as u16,
        nlink: u32::try_from(attr.nlink).unwrap_or(u32::MAX),
        uid: attr.uid,
        gid: attr.gid,
        // The kernel's 32-bit form is the low half of makedev(3)'s.
        rdev: attr.rdev as u32,
        blksize: attr.blksize,
        flags: 0,
    }
}

/// An answer that there is no such name, which the kernel may remember.
pub(crate) fn missing() -> FileAttr {
    to_fuse(&Attr::default(), 0)
}

/// The type bits of the mode; the qid's kind where a tree left them out.
pub(crate) fn type_bits(attr: &Attr) -> u32 {
    match attr.mode & libc::S_IFMT {
        0 => attr.qid.kind.mode_bits(),
        bits => bits,
    }
}

/// What the type bits of a mode mean.
pub(crate) fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFSOCK => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

/// What a directory says of an entry: its type bits, or else its qid's kind.
pub(crate) fn entry_type(kind: u32, qid_kind: FileKind) -> FileType {
    file_type(if kind & libc::S_IFMT == 0 { qid_kind.mode_bits() } else { kind })
}

fn time(time: Time) -> SystemTime {
    let whole = Duration::from_secs(time.sec.unsigned_abs());
    let second = if time.sec < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    second.and_then(|s| s.checked_add(Duration::from_nanos(u64::from(time.nsec)))).unwrap_or(UNIX_EPOCH)
}

/// A time that a caller sets. fuser takes the nanoseconds of a time before 1970 off instead of adding them; taking
/// both parts as it made them gives what the caller said.
pub(crate) fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::At(match at.duration_since(UNIX_EPOCH) {
            Ok(since) => Time { sec: since.as_secs() as i64, nsec: since.subsec_nanos() },
            Err(before) => {
                let before = before.duration();
                Time { sec: -(before.as_secs() as i64), nsec: before.subsec_nanos() }
            }
        }),
    }
}

/// The error as fuser wants it.
pub(crate) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_time_that_a_server_tells_makes_it_panic() {
        for sec in [i64::MIN, -1, 0, 1, i64::MAX] {
            let _ = time(Time { sec, nsec: u32::MAX });
        }
        assert_eq!(time(Time { sec: -2, nsec: 250_000_000 }), UNIX_EPOCH - Duration::from_millis(1750));
    }

    #[test]
    fn a_mode_without_a_type_is_read_from_the_qid() {
        let mut attr = Attr::synthetic(p9::Qid { kind: FileKind::Dir, ..Default::default() }, 0o755);
        attr.mode = 0o755;
        assert_eq!(to_fuse(&attr, 7).kind, FileType::Directory);
        assert_eq!(entry_type(0, FileKind::Link), FileType::Symlink);
        assert_eq!(entry_type(libc::S_IFCHR, FileKind::File), FileType::CharDevice);
    }
}
