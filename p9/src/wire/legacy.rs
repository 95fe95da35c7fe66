//! What 9P2000 says otherwise than 9P2000.L: the stat structure, permissions with `DM` bits, modes of an open.
//!
//! Its messages are in the one table of [`super`]: no two dialects use a number for different things. Used by
//! [`crate::server`] to answer Plan 9's clients and by [`crate::client`] to ask Plan 9's servers. See stat(5) and
//! open(5) of Plan 9's manual.
//!
//! What 9P2000 knows of a file and Linux does not is kept in mode bits that mean nothing to Linux: an append-only file
//! has the sticky bit, one for exclusive use the setgid bit without the group's right to execute.

use super::{Field, Malformed, Str};
use crate::wire::field::sized;
use crate::{Attr, FileKind, How, Qid, Time};

mod errors;

pub use errors::{errno_of, text_of};

/// In `perm` and `mode`: a directory.
pub const DMDIR: u32 = 0x8000_0000;
/// In `perm` and `mode`: all writes go to the end.
pub const DMAPPEND: u32 = 0x4000_0000;
/// In `perm` and `mode`: open once at a time.
pub const DMEXCL: u32 = 0x2000_0000;
/// In `perm` and `mode`: not worth a backup. Accepted and forgotten.
pub const DMTMP: u32 = 0x0400_0000;

/// In the mode of an open: for reading (0), writing, both, or execution.
const ACCESS: u8 = 3;
const OWRITE: u8 = 1;
const ORDWR: u8 = 2;
const OEXEC: u8 = 3;
/// In the mode of an open: throw away the contents first.
pub const OTRUNC: u8 = 0x10;
/// In the mode of an open: remove the file when the fid is clunked.
pub const ORCLOSE: u8 = 0x40;

/// The name of a user or group that is not to be changed, and the name of a file.
const UNTOUCHED: Str<'static> = Str(b"");

/// Declares a structure of fields that follow each other, with its size in two bytes before it.
macro_rules! record {
    ($(#[$doc:meta])* pub struct $Record:ident { $($(#[$field_doc:meta])* $field:ident: $ty:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub struct $Record<'a> { $($(#[$field_doc])* pub $field: $ty),* }

        impl<'a> Field<'a> for $Record<'a> {
            fn read(from: &'a [u8]) -> Result<(&'a [u8], Self), Malformed> {
                let (after, rest) = sized(from)?;
                $(let (rest, $field) = <$ty as Field<'a>>::read(rest)?;)*
                if rest.is_empty() { Ok((after, Self { $($field),* })) } else { Err(Malformed::TooLong(rest.len())) }
            }

            fn write(&self, out: &mut Vec<u8>) {
                let start = out.len();
                0_u16.write(out);
                $(self.$field.write(out);)*
                let size = (out.len() - start - 2) as u16;
                out[start..start + 2].copy_from_slice(&size.to_le_bytes());
            }
        }
    };
}

record! {
    /// stat(5). In a `Twstat` all ones, or no name, leave as it is what they stand for.
    pub struct Stat {
        /// For the client's kernel.
        kind: u16,
        /// For the client's kernel.
        dev: u32,
        /// The upper eight bits of `mode`.
        qid_type: u8,
        /// `Qid::version`.
        qid_version: u32,
        /// `Qid::path`.
        qid_path: u64,
        /// Permissions and `DM` bits.
        mode: u32,
        /// Last access, in seconds since 1970.
        atime: u32,
        /// Last change of the contents.
        mtime: u32,
        /// Bytes; of a directory 0.
        length: u64,
        /// `/` for the root.
        name: Str<'a>,
        /// Owner.
        uid: Str<'a>,
        /// Group.
        gid: Str<'a>,
        /// Who changed the contents last.
        muid: Str<'a>,
    }
}

impl<'a> Stat<'a> {
    /// The bytes of one whose four strings have `strings` bytes together.
    pub fn size(strings: usize) -> usize {
        2 + 2 + 4 + 13 + 4 + 4 + 4 + 8 + 4 * 2 + strings
    }

    /// That of a file called `name` whose owner and group are called `uid` and `gid`.
    pub fn of(attr: &Attr, name: &'a [u8], uid: &'a [u8], gid: &'a [u8]) -> Self {
        let mode = perm_of(attr.mode);
        Self {
            kind: 0,
            dev: 0,
            qid_type: (mode >> 24) as u8,
            qid_version: attr.qid.version,
            qid_path: attr.qid.path,
            mode,
            atime: seconds(attr.atime),
            mtime: seconds(attr.mtime),
            length: if mode & DMDIR == 0 { attr.size } else { 0 },
            name: Str(name),
            uid: Str(uid),
            gid: Str(gid),
            // Nobody here keeps who that was.
            muid: UNTOUCHED,
        }
    }

    /// The attributes that it says, of a file owned by `uid` and `gid`.
    pub fn to_attr(&self, uid: u32, gid: u32) -> Attr {
        let time = |sec: u32| Time { sec: sec.into(), nsec: 0 };
        let (atime, mtime) = (time(self.atime), time(self.mtime));
        let kind = if self.mode & DMDIR == 0 { FileKind::File } else { FileKind::Dir };
        let qid = Qid { kind, version: self.qid_version, path: self.qid_path };
        Attr {
            uid,
            gid,
            size: self.length,
            blocks: self.length.div_ceil(512),
            atime,
            mtime,
            ctime: mtime,
            ..Attr::synthetic(qid, mode_of(self.mode))
        }
    }

    /// One that changes nothing: with some of it replaced, what a `Twstat` changes.
    pub fn untouched() -> Self {
        Self {
            kind: !0,
            dev: !0,
            qid_type: !0,
            qid_version: !0,
            qid_path: !0,
            mode: !0,
            atime: !0,
            mtime: !0,
            length: !0,
            name: UNTOUCHED,
            uid: UNTOUCHED,
            gid: UNTOUCHED,
            muid: UNTOUCHED,
        }
    }
}

/// A moment in seconds, as far as 9P2000 can say it: all ones would mean something else.
pub fn seconds(time: Time) -> u32 {
    time.sec.clamp(0, i64::from(u32::MAX - 1)) as u32
}

/// What `st_mode` means, as `mode` says it.
pub fn perm_of(mode: u32) -> u32 {
    let bits = match mode & libc::S_IFMT {
        libc::S_IFDIR => DMDIR,
        libc::S_IFREG => {
            let append = if mode & libc::S_ISVTX == 0 { 0 } else { DMAPPEND };
            append | if mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID { DMEXCL } else { 0 }
        }
        _ => 0,
    };
    bits | mode & 0o777
}

/// The permission bits of `st_mode` that mean what `perm` says.
pub fn mode_of(perm: u32) -> u32 {
    let flag = |dm: u32, bit: u32| if perm & (DMDIR | dm) == dm { bit } else { 0 };
    // Both would say something else where the group may execute: that right goes.
    let lost = if perm & (DMDIR | DMEXCL) == DMEXCL { libc::S_IXGRP } else { 0 };
    perm & 0o777 & !lost | flag(DMAPPEND, libc::S_ISVTX) | flag(DMEXCL, libc::S_ISGID)
}

/// How an open of this mode opens.
pub fn how_of(mode: u8) -> How {
    let access = match mode & ACCESS {
        OWRITE => How::WRITE,
        ORDWR => How::RDWR,
        OEXEC => How { exec: true, ..How::READ },
        _ => How::READ,
    };
    How { truncate: mode & OTRUNC != 0, ..access }
}

/// The mode of an open that opens like this, as far as it can say it.
pub fn mode_of_open(how: How) -> u8 {
    let access = match (how.read, how.write) {
        (true, true) => ORDWR,
        (false, true) => OWRITE,
        _ if how.exec => OEXEC,
        _ => 0,
    };
    access | if how.truncate { OTRUNC } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{Counted, HEADER, R, T};

    prop_compose! {
        fn stats()(
            (kind, dev, qid_type, qid_version, qid_path, mode, atime, mtime, length) in any::<(u16, u32, u8, u32, u64, u32, u32, u32, u64)>(),
            strings in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 4),
        ) -> Vec<u8> {
            let mut out = Vec::new();
            let [name, uid, gid, muid] = [0, 1, 2, 3].map(|i: usize| Str(&strings[i]));
            Stat { kind, dev, qid_type, qid_version, qid_path, mode, atime, mtime, length, name, uid, gid, muid }.write(&mut out);
            out
        }
    }

    proptest! {
        #[test]
        fn a_stat_decodes_and_encodes_to_the_same_bytes(bytes in stats(), after: [u8; 3]) {
            let (mut again, mut followed) = (Vec::new(), bytes.clone());
            followed.extend(after);
            let (rest, stat) = Stat::read(&followed).unwrap();
            prop_assert_eq!(rest, after);
            stat.write(&mut again);
            prop_assert_eq!(&again, &bytes);
            prop_assert_eq!(bytes.len(), Stat::size(stat.name.0.len() + stat.uid.0.len() + stat.gid.0.len() + stat.muid.0.len()));
        }

        #[test]
        fn a_stat_with_any_byte_changed_is_refused_or_is_another(mut bytes in stats(), at: prop::sample::Index, to: u8) {
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok((rest, stat)) = Stat::read(&bytes) {
                let mut again = Vec::new();
                stat.write(&mut again);
                prop_assert_eq!(&again[..], &bytes[..bytes.len() - rest.len()]);
            }
        }

        #[test]
        fn modes_that_9p2000_can_say_survive_it(mode in 0_u32..0o2000, exclusive: bool) {
            let mode = if exclusive { mode & !0o010 | 0o2000 } else { mode };
            prop_assert_eq!(mode_of(perm_of(libc::S_IFREG | mode)), mode);
        }
    }

    #[test]
    fn sizes_that_lie_are_refused() {
        let mut whole = Vec::new();
        Counted(Stat { name: Str(b"motd"), ..Stat::untouched() }).write(&mut whole);
        let body = |outer: u16, inner: u16, name: u16| {
            let mut body = [&[1, 0, 0, 0][..], &whole].concat();
            body[4..6].copy_from_slice(&outer.to_le_bytes());
            body[6..8].copy_from_slice(&inner.to_le_bytes());
            body[47..49].copy_from_slice(&name.to_le_bytes());
            body
        };
        let (outer, inner) = (whole.len() as u16 - 2, whole.len() as u16 - 4);
        assert!(matches!(T::decode(126, &body(outer, inner, 4)), Ok(Some(T::Wstat { fid: 1, .. }))));
        for (outer, inner, name) in [
            (outer + 1, inner, 4),
            (outer - 1, inner, 4),
            (outer, inner + 1, 4),
            (outer, inner - 1, 4),
            (outer, inner, 5),
            (outer, inner, 3),
            (outer, inner, u16::MAX),
            (u16::MAX, u16::MAX, 4),
            (0, 0, 0),
            (outer, 0, 4),
        ] {
            let body = body(outer, inner, name);
            assert!(T::decode(126, &body).is_err(), "{outer} {inner} {name}");
            assert!(R::decode(125, &body[4..]).is_err(), "{outer} {inner} {name}");
        }
        assert!(T::decode(126, &body(outer, inner, 4)[..HEADER]).is_err());
    }

    #[test]
    fn directories_have_no_length_and_keep_their_kind() {
        let qid = Qid { kind: FileKind::Dir, version: 3, path: 4 };
        let attr = Attr { size: 4096, mtime: Time { sec: -5, nsec: 1 }, ..Attr::synthetic(qid, 0o2775) };
        let stat = Stat::of(&attr, b"d", b"u", b"g");
        assert_eq!((stat.mode, stat.qid_type, stat.length, stat.mtime), (DMDIR | 0o775, 0x80, 0, 0));
        let back = stat.to_attr(1, 2);
        assert_eq!((back.qid, back.mode, back.uid, back.gid), (qid, libc::S_IFDIR | 0o775, 1, 2));
    }
}
