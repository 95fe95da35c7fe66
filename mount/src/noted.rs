//! Attributes that are noted of what was listed, in little room: there may be very many.
//!
//! Made when a directory is listed, read whenever one of its names is looked up. What does not fit, a device say, is
//! not noted, and is asked about; when a file was made is left out, since a mount tells nobody.

use p9::{Attr, FileKind, Qid, Time};

/// The attributes of one file.
pub(crate) struct Noted {
    path: u64,
    size: u64,
    blocks: u64,
    kind: FileKind,
    bare: bool,
    version: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    blksize: u32,
    atime: Moment,
    mtime: Moment,
    ctime: Moment,
}

/// A time without gaps after it: the halves of the seconds, and the rest.
#[derive(Clone, Copy)]
struct Moment([u32; 3]);

impl Moment {
    fn of(time: Time) -> Self {
        Self([time.sec as u32, (time.sec >> 32) as u32, time.nsec])
    }

    fn time(self) -> Time {
        let [low, high, nsec] = self.0;
        Time { sec: i64::from(high as i32) << 32 | i64::from(low), nsec }
    }
}

impl Noted {
    /// `attr`, if it is of a file that has nothing out of the ordinary.
    pub(crate) fn of(attr: &Attr) -> Option<Self> {
        let &Attr { qid, mode, uid, gid, nlink, rdev, size, blksize, blocks, atime, mtime, ctime, btime: _, bare } =
            attr;
        let Qid { kind, version, path } = qid;
        let [atime, mtime, ctime] = [atime, mtime, ctime].map(Moment::of);
        let nlink = u32::try_from(nlink).ok().filter(|_| rdev == 0)?;
        Some(Self { path, size, blocks, kind, bare, version, mode, uid, gid, nlink, blksize, atime, mtime, ctime })
    }

    /// The attributes.
    pub(crate) fn attr(&self) -> Attr {
        let &Self { path, size, blocks, kind, bare, version, mode, uid, gid, nlink, blksize, atime, mtime, ctime } =
            self;
        let [atime, mtime, ctime] = [atime, mtime, ctime].map(Moment::time);
        let (qid, nlink, btime) = (Qid { kind, version, path }, nlink.into(), Time::default());
        Attr { qid, mode, uid, gid, nlink, rdev: 0, size, blksize, blocks, atime, mtime, ctime, btime, bare }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_noted_is_what_it_was_and_takes_little_room() {
        let qid = Qid { kind: FileKind::File, version: 7, path: u64::MAX - 1 };
        let times = [(-5, 1), (i64::MAX, 2), (1 << 40, 999_999_999)].map(|(sec, nsec)| Time { sec, nsec });
        let [atime, mtime, ctime] = times;
        let attr = Attr {
            qid,
            mode: 0o100_644,
            uid: 1,
            gid: 2,
            nlink: 1,
            size: 1 << 50,
            atime,
            mtime,
            ctime,
            ..Attr::default()
        };
        let attr = Attr { blksize: 4096, blocks: 9, bare: true, ..attr };
        assert_eq!(Noted::of(&attr).map(|noted| noted.attr()), Some(attr));
        assert!(Noted::of(&Attr { rdev: 5, ..attr }).is_none());
        assert!(size_of::<Option<Noted>>() <= 96, "{}", size_of::<Option<Noted>>());
    }
}
