//! Attributes and file system statistics as the protocol carries them, and back.
//!
//! Used by the server and the client, so that the numbers of the masks stand once. They are those of Linux's
//! `include/net/9p/9p.h` (`P9_STATS_*`, `P9_ATTR_*`).

use super::{HEADER, Malformed, R, T};
use crate::{Attr, Errno, How, Qid, SetAttr, SetTime, StatFs, Time};

/// `P9_STATS_BASIC`: everything that stat(2) has.
const STATS_BASIC: u64 = 0x7ff;
/// `P9_STATS_BTIME`.
const STATS_BTIME: u64 = 0x800;
/// `P9_STATS_DATA_VERSION`.
const STATS_DATA_VERSION: u64 = 0x2000;
/// `P9_STATS_ALL`.
pub(crate) const STATS_ALL: u64 = 0x3fff;

/// Ours, of entries of an `Rreaddirplus`: there are no extended attributes.
const BARE: u64 = 0x4000;

/// The type byte of an `Rgetattr`, and the bytes of its fields.
const GETATTR: u8 = 25;
pub(crate) const ATTR_SIZE: usize = 153;

const MODE: u32 = 0x1;
const UID: u32 = 0x2;
const GID: u32 = 0x4;
const SIZE: u32 = 0x8;
const ATIME: u32 = 0x10;
const MTIME: u32 = 0x20;
const ATIME_SET: u32 = 0x80;
const MTIME_SET: u32 = 0x100;

/// The flags of `Tlopen` and `Tlcreate` (`P9_DOTL_*`): those of open(2) on most machines that run Linux, but not on
/// all.
mod dotl {
    pub(super) const WRONLY: u32 = 0o1;
    pub(super) const RDWR: u32 = 0o2;
    pub(super) const ACCESS: u32 = 0o3;
    pub(super) const CREATE: u32 = 0o100;
    pub(super) const EXCL: u32 = 0o200;
    pub(super) const TRUNC: u32 = 0o1000;
    pub(super) const APPEND: u32 = 0o2000;
    pub(super) const NONBLOCK: u32 = 0o4000;
    pub(super) const DSYNC: u32 = 0o1_0000;
    pub(super) const DIRECTORY: u32 = 0o20_0000;
    pub(super) const SYNC: u32 = 0o400_0000;
    /// `__O_TMPFILE`: not of the protocol, but of open(2).
    pub(super) const TMPFILE: u32 = 0o2000_0000;
}

impl How {
    /// What the flags of a `Tlopen` or `Tlcreate` mean; flags without a meaning here are dropped. Errors: `EINVAL` for
    /// the access mode 3; `EOPNOTSUPP` for a file without a name.
    pub fn from_wire(flags: u32) -> Result<Self, Errno> {
        let has = |bit: u32| flags & bit != 0;
        if has(dotl::TMPFILE) {
            return Err(Errno::EOPNOTSUPP);
        }
        let (read, write) = match flags & dotl::ACCESS {
            0 => (true, false),
            dotl::WRONLY => (false, true),
            dotl::RDWR => (true, true),
            _ => return Err(Errno::EINVAL),
        };
        Ok(Self {
            read,
            write,
            exec: false,
            truncate: has(dotl::TRUNC),
            append: has(dotl::APPEND),
            excl: has(dotl::EXCL),
            sync: has(dotl::SYNC | dotl::DSYNC),
            nonblock: has(dotl::NONBLOCK),
            directory: has(dotl::DIRECTORY),
        })
    }

    /// The flags of a `Tlopen` that mean this; with `create`, of a `Tlcreate`.
    pub fn to_wire(self, create: bool) -> u32 {
        let flag = |on: bool, bit: u32| if on { bit } else { 0 };
        let access = match (self.read, self.write) {
            (true, true) => dotl::RDWR,
            (false, true) => dotl::WRONLY,
            _ => 0,
        };
        access
            | flag(create, dotl::CREATE)
            | flag(self.truncate, dotl::TRUNC)
            | flag(self.append, dotl::APPEND)
            | flag(self.excl, dotl::EXCL)
            | flag(self.sync, dotl::SYNC | dotl::DSYNC)
            | flag(self.nonblock, dotl::NONBLOCK)
            | flag(self.directory, dotl::DIRECTORY)
    }
}

impl R<'_> {
    /// `Rgetattr` with all of `attr`, of which that is valid which `mask` asks for and the tree knows.
    pub fn of_attr(attr: &Attr, mask: u64) -> Self {
        let known = |bit: u64, is: bool| if is { bit } else { 0 };
        let btime = known(STATS_BTIME, attr.btime != Time::default());
        let version = known(STATS_DATA_VERSION, attr.qid.version != 0);
        Self::Getattr {
            valid: mask & (STATS_BASIC | btime | version | known(BARE, attr.bare)),
            qid: attr.qid,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            nlink: attr.nlink,
            rdev: attr.rdev,
            size: attr.size,
            blksize: attr.blksize.into(),
            blocks: attr.blocks,
            atime_sec: attr.atime.sec as u64,
            atime_nsec: attr.atime.nsec.into(),
            mtime_sec: attr.mtime.sec as u64,
            mtime_nsec: attr.mtime.nsec.into(),
            ctime_sec: attr.ctime.sec as u64,
            ctime_nsec: attr.ctime.nsec.into(),
            btime_sec: attr.btime.sec as u64,
            btime_nsec: attr.btime.nsec.into(),
            generation: 0,
            data_version: attr.qid.version.into(),
        }
    }

    /// Appends the fields of an `Rgetattr` alone, all that is known of `attr`; without one, as much with nothing valid.
    pub fn write_attr(attr: Option<&Attr>, out: &mut Vec<u8>) {
        let start = out.len();
        match attr {
            Some(attr) => Self::of_attr(attr, STATS_ALL | BARE).encode(0, out),
            None => Self::of_attr(&Attr::default(), 0).encode(0, out),
        }
        out.drain(start..start + HEADER);
    }

    /// Takes the fields of an `Rgetattr` off `data`; no attributes unless all that stat(2) has are valid.
    pub fn read_attr(data: &[u8]) -> Result<(&[u8], Option<Attr>), Malformed> {
        let (fields, rest) = data.split_at_checked(ATTR_SIZE).ok_or(Malformed::TooShort)?;
        let message = R::decode(GETATTR, fields)?.ok_or(Malformed::TooShort)?;
        let known = matches!(message, R::Getattr { valid, .. } if valid & STATS_BASIC == STATS_BASIC);
        Ok((rest, if known { message.to_attr() } else { None }))
    }

    /// The attributes that an `Rgetattr` carries; `None` for any other message.
    pub fn to_attr(&self) -> Option<Attr> {
        let &Self::Getattr { qid, mode, uid, gid, nlink, rdev, size, blksize, blocks, .. } = self else { return None };
        let &Self::Getattr { atime_sec, atime_nsec, mtime_sec, mtime_nsec, ctime_sec, ctime_nsec, .. } = self else {
            return None;
        };
        let &Self::Getattr { btime_sec, btime_nsec, valid, .. } = self else { return None };
        let blksize = u32::try_from(blksize).unwrap_or(4096);
        let btime = if valid & STATS_BTIME != 0 { time(btime_sec, btime_nsec) } else { Time::default() };
        let (atime, mtime) = (time(atime_sec, atime_nsec), time(mtime_sec, mtime_nsec));
        let ctime = time(ctime_sec, ctime_nsec);
        let bare = valid & BARE != 0;
        Some(Attr { qid, mode, uid, gid, nlink, rdev, size, blksize, blocks, atime, mtime, ctime, btime, bare })
    }

    /// `Rstatfs`.
    pub fn of_stat_fs(stat: &StatFs) -> Self {
        let &StatFs { kind, bsize, blocks, bfree, bavail, files, ffree, fsid, namelen } = stat;
        Self::Statfs { kind, bsize, blocks, bfree, bavail, files, ffree, fsid, namelen }
    }

    /// The statistics that an `Rstatfs` carries; `None` for any other message.
    pub fn to_stat_fs(&self) -> Option<StatFs> {
        let &Self::Statfs { kind, bsize, blocks, bfree, bavail, files, ffree, fsid, namelen } = self else {
            return None;
        };
        Some(StatFs { kind, bsize, blocks, bfree, bavail, files, ffree, fsid, namelen })
    }

    /// The qid of a message that carries one of its own.
    pub fn qid(&self) -> Option<Qid> {
        match *self {
            Self::Attach { qid }
            | Self::Lopen { qid, .. }
            | Self::Lcreate { qid, .. }
            | Self::Open { qid, .. }
            | Self::Create { qid, .. }
            | Self::Mkdir { qid }
            | Self::Mknod { qid }
            | Self::Symlink { qid } => Some(qid),
            _ => None,
        }
    }
}

impl T<'_> {
    /// Whether it changes what a directory holds.
    pub(crate) fn changes_names(&self) -> bool {
        matches!(
            self,
            Self::Lcreate { .. }
                | Self::Create { .. }
                | Self::Mkdir { .. }
                | Self::Mknod { .. }
                | Self::Symlink { .. }
                | Self::Link { .. }
                | Self::Rename { .. }
                | Self::Renameat { .. }
                | Self::Rename2 { .. }
                | Self::Unlinkat { .. }
                | Self::Remove { .. }
                | Self::Wstat { .. }
        )
    }

    /// `Tsetattr` of what changes.
    pub fn of_set_attr(fid: u32, change: &SetAttr) -> Self {
        let mut valid = 0;
        let mut field = |bit: u32, on: bool| valid |= if on { bit } else { 0 };
        field(MODE, change.mode.is_some());
        field(UID, change.uid.is_some());
        field(GID, change.gid.is_some());
        field(SIZE, change.size.is_some());
        field(ATIME, change.atime.is_some());
        field(MTIME, change.mtime.is_some());
        field(ATIME_SET, matches!(change.atime, Some(SetTime::At(_))));
        field(MTIME_SET, matches!(change.mtime, Some(SetTime::At(_))));
        let at = |time: Option<SetTime>| match time {
            Some(SetTime::At(time)) => time,
            _ => Time::default(),
        };
        let (atime, mtime) = (at(change.atime), at(change.mtime));
        Self::Setattr {
            fid,
            valid,
            mode: change.mode.unwrap_or_default(),
            uid: change.uid.unwrap_or_default(),
            gid: change.gid.unwrap_or_default(),
            size: change.size.unwrap_or_default(),
            atime_sec: atime.sec as u64,
            atime_nsec: atime.nsec.into(),
            mtime_sec: mtime.sec as u64,
            mtime_nsec: mtime.nsec.into(),
        }
    }

    /// What a `Tsetattr` changes; `None` for any other message.
    pub fn to_set_attr(&self) -> Option<SetAttr> {
        let &Self::Setattr { valid, mode, uid, gid, size, atime_sec, atime_nsec, mtime_sec, mtime_nsec, .. } = self
        else {
            return None;
        };
        let has = |bit: u32| valid & bit != 0;
        let when = |now_bit: u32, set_bit: u32, sec: u64, nsec: u64| match (has(now_bit), has(set_bit)) {
            (false, _) => None,
            (true, false) => Some(SetTime::Now),
            (true, true) => Some(SetTime::At(time(sec, nsec))),
        };
        Some(SetAttr {
            mode: has(MODE).then_some(mode & 0o7777),
            uid: has(UID).then_some(uid),
            gid: has(GID).then_some(gid),
            size: has(SIZE).then_some(size),
            atime: when(ATIME, ATIME_SET, atime_sec, atime_nsec),
            mtime: when(MTIME, MTIME_SET, mtime_sec, mtime_nsec),
        })
    }
}

/// A time off the wire; nanoseconds that are none become 0.
fn time(sec: u64, nsec: u64) -> Time {
    Time { sec: sec as i64, nsec: u32::try_from(nsec).ok().filter(|nsec| *nsec < 1_000_000_000).unwrap_or(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_and_changes_survive_the_wire() {
        let at = |sec| Time { sec, nsec: 999_999_999 };
        let (atime, mtime, ctime, btime) = (at(-1), at(2), at(3), at(4));
        let attr = Attr {
            mode: 0o100644,
            uid: 1,
            gid: 2,
            nlink: 3,
            size: 1 << 40,
            atime,
            mtime,
            ctime,
            btime,
            ..Attr::default()
        };
        assert_eq!(R::of_attr(&attr, STATS_ALL).to_attr(), Some(Attr { bare: false, ..attr }));
        let mut out = vec![1];
        R::write_attr(Some(&attr), &mut out);
        R::write_attr(None, &mut out);
        assert_eq!(out.len(), 1 + 2 * ATTR_SIZE);
        let (rest, first) = R::read_attr(&out[1..]).unwrap();
        assert_eq!((first, R::read_attr(rest)), (Some(attr), Ok((&[][..], None))));
        let change = SetAttr {
            size: Some(0),
            atime: Some(SetTime::Now),
            mtime: Some(SetTime::At(at(-5))),
            ..SetAttr::default()
        };
        assert_eq!(T::of_set_attr(1, &change).to_set_attr(), Some(change));
        let how = How { write: true, read: false, append: true, sync: true, ..How::READ };
        assert_eq!(How::from_wire(how.to_wire(true)), Ok(how));
        let stat = StatFs { kind: 1, blocks: 2, namelen: 255, ..StatFs::default() };
        assert_eq!(R::of_stat_fs(&stat).to_stat_fs(), Some(stat));
    }
}
