//! 9P2000.L on the wire: one table for each direction, and nothing said twice.
//!
//! Used by [`crate::server`] and [`crate::client`]. A message is decoded whole, borrowing from its frame: every field
//! is taken by a parser that cannot read past the frame, and a frame with bytes left over is refused. The numbers are
//! those of the Linux kernel's `include/net/9p/9p.h`; the fields are described in diod's protocol.md.

use bytes::BufMut;

use crate::{Name, Qid};

mod convert;
mod field;
pub mod legacy;

pub(crate) use convert::{ATTR_SIZE, STATS_ALL};
pub use field::{Counted, Data, Field, Malformed, Qids, Step, Steps, Str};

use legacy::Stat;

/// The version that Plan 9, 9front, Inferno and plan9port speak.
pub const VERSION_9P2000: &[u8] = b"9P2000";

/// The version that the Linux kernel, diod and every `.L` peer speak.
pub const VERSION_L: &[u8] = b"9P2000.L";
/// That, and the rule that fids are ordered: messages on one fid take effect as if one after another, and a walk that
/// failed leaves its newfid poisoned until it is clunked, so that a client may send what follows without waiting.
pub const VERSION_SLASHN: &[u8] = b"9P2000.L.slashn";
/// What a server answers that knows none of the client's versions.
pub const VERSION_UNKNOWN: &[u8] = b"unknown";

/// No tag: that of `Tversion`.
pub const NO_TAG: u16 = !0;
/// No fid: the `afid` of a client that does not authenticate in 9P.
pub const NO_FID: u32 = !0;
/// No user number: the user is named by `uname`.
pub const NO_UID: u32 = !0;
/// Bytes before a message's fields: size\[4\] type\[1\] tag\[2\].
pub const HEADER: usize = 7;
/// Bytes of an `Rread` or `Twrite` that are not data, and a few to spare: `IOHDRSZ` in Plan 9.
pub const IO_HEADER: u32 = 24;

/// `datasync` of a `Tfsync` in our dialect that asks only what is known to have gone wrong with what was written, as
/// close(2) does: nothing need be safe.
pub const FSYNC_FLUSH: u32 = 2;

/// Declares the messages of one direction: the enum, its codes, its decoder and its encoder.
macro_rules! messages {
    ($(#[$doc:meta])* $vis:vis enum $Set:ident {
        $($(#[$message_doc:meta])* $code:literal $Message:ident { $($field:ident: $ty:ty),* })*
    }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq)]
        #[allow(missing_docs, reason = "the fields are those of the protocol's own description")]
        $vis enum $Set<'a> {
            $($(#[$message_doc])* $Message { $($field: $ty),* },)*
        }

        impl<'a> $Set<'a> {
            /// The type byte of every message in this table.
            pub const CODES: &'static [u8] = &[$($code),*];

            /// The message's type byte.
            pub fn code(&self) -> u8 {
                match self { $(Self::$Message { .. } => $code,)* }
            }

            /// Decodes the fields of a message of type `code`: all of `body`, and nothing after it. `None`: no message
            /// of this table has that type.
            pub fn decode(code: u8, body: &'a [u8]) -> Result<Option<Self>, Malformed> {
                let rest = body;
                let (rest, message) = match code {
                    $($code => {
                        $(let (rest, $field) = <$ty as Field<'a>>::read(rest)?;)*
                        (rest, Self::$Message { $($field),* })
                    })*
                    _ => return Ok(None),
                };
                if rest.is_empty() { Ok(Some(message)) } else { Err(Malformed::TooLong(rest.len())) }
            }

            /// Appends the whole message to `out`, its size, type and tag first.
            pub fn encode(&self, tag: u16, out: &mut Vec<u8>) {
                let start = out.len();
                out.put_u32_le(0);
                out.push(self.code());
                out.put_u16_le(tag);
                match *self { $(Self::$Message { $($field),* } => { $($field.write(out);)* })* }
                let size = (out.len() - start) as u32;
                out[start..start + 4].copy_from_slice(&size.to_le_bytes());
            }
        }
    };
}

messages! {
    /// What a client asks.
    pub enum T {
          8 Statfs { fid: u32 }
         12 Lopen { fid: u32, flags: u32 }
         14 Lcreate { fid: u32, name: Name<'a>, flags: u32, mode: u32, gid: u32 }
         16 Symlink { fid: u32, name: Name<'a>, target: Str<'a>, gid: u32 }
         18 Mknod { dfid: u32, name: Name<'a>, mode: u32, major: u32, minor: u32, gid: u32 }
         20 Rename { fid: u32, dfid: u32, name: Name<'a> }
         22 Readlink { fid: u32 }
         24 Getattr { fid: u32, mask: u64 }
         26 Setattr { fid: u32, valid: u32, mode: u32, uid: u32, gid: u32, size: u64,
                      atime_sec: u64, atime_nsec: u64, mtime_sec: u64, mtime_nsec: u64 }
         30 Xattrwalk { fid: u32, newfid: u32, name: Str<'a> }
         32 Xattrcreate { fid: u32, name: Str<'a>, size: u64, flags: u32 }
         40 Readdir { fid: u32, offset: u64, count: u32 }
         50 Fsync { fid: u32, datasync: u32 }
         52 Lock { fid: u32, kind: u8, flags: u32, start: u64, length: u64, proc_id: u32, client_id: Str<'a> }
         54 Getlock { fid: u32, kind: u8, start: u64, length: u64, proc_id: u32, client_id: Str<'a> }
         70 Link { dfid: u32, fid: u32, name: Name<'a> }
         72 Mkdir { dfid: u32, name: Name<'a>, mode: u32, gid: u32 }
         74 Renameat { olddirfid: u32, oldname: Name<'a>, newdirfid: u32, newname: Name<'a> }
         76 Unlinkat { dirfid: u32, name: Name<'a>, flags: u32 }
        100 Version { msize: u32, version: Str<'a> }
        102 Auth { afid: u32, uname: Str<'a>, aname: Str<'a>, n_uname: Option<u32> }
        104 Attach { fid: u32, afid: u32, uname: Str<'a>, aname: Str<'a>, n_uname: Option<u32> }
        108 Flush { oldtag: u16 }
        110 Walk { fid: u32, newfid: u32, steps: Steps<'a> }
        112 Open { fid: u32, mode: u8 }
        114 Create { fid: u32, name: Name<'a>, perm: u32, mode: u8 }
        116 Read { fid: u32, offset: u64, count: u32 }
        118 Write { fid: u32, offset: u64, data: Data<'a> }
        120 Clunk { fid: u32 }
        122 Remove { fid: u32 }
        124 Stat { fid: u32 }
        126 Wstat { fid: u32, stat: Counted<Stat<'a>> }
        200 Session { id: [u8; 16], lane: u8, linger: u32, received: u64 }
        202 Ack { received: u64 }
        204 Readdirplus { fid: u32, offset: u64, count: u32 }
        206 Rename2 { olddirfid: u32, oldname: Name<'a>, newdirfid: u32, newname: Name<'a>, flags: u32 }
        208 Allocate { fid: u32, mode: u32, offset: u64, length: u64 }
        210 Seek { fid: u32, offset: u64, whence: u32 }
        212 Copy { fid: u32, offset: u64, tofid: u32, tooffset: u64, length: u64 }
        214 Append { fid: u32, data: Data<'a> }
        216 Lease { fid: u32, kind: u8 }
        220 Fetch { fid: u32, name: Name<'a>, count: u32 }
        222 Digest { fid: u32, offset: u64, count: u64 }
    }
}

messages! {
    /// What a server answers.
    pub enum R {
          7 Lerror { ecode: u32 }
          9 Statfs { kind: u32, bsize: u32, blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, fsid: u64,
                     namelen: u32 }
         13 Lopen { qid: Qid, iounit: u32 }
         15 Lcreate { qid: Qid, iounit: u32 }
         17 Symlink { qid: Qid }
         19 Mknod { qid: Qid }
         21 Rename {}
         23 Readlink { target: Str<'a> }
         25 Getattr { valid: u64, qid: Qid, mode: u32, uid: u32, gid: u32, nlink: u64, rdev: u64, size: u64,
                      blksize: u64, blocks: u64, atime_sec: u64, atime_nsec: u64, mtime_sec: u64, mtime_nsec: u64,
                      ctime_sec: u64, ctime_nsec: u64, btime_sec: u64, btime_nsec: u64, generation: u64, data_version: u64 }
         27 Setattr {}
         31 Xattrwalk { size: u64 }
         33 Xattrcreate {}
         41 Readdir { data: Data<'a> }
         51 Fsync {}
         53 Lock { status: u8 }
         55 Getlock { kind: u8, start: u64, length: u64, proc_id: u32, client_id: Str<'a> }
         71 Link {}
         73 Mkdir { qid: Qid }
         75 Renameat {}
         77 Unlinkat {}
        101 Version { msize: u32, version: Str<'a> }
        105 Attach { qid: Qid }
        107 Error { ename: Str<'a> }
        109 Flush {}
        111 Walk { qids: Qids<'a> }
        113 Open { qid: Qid, iounit: u32 }
        115 Create { qid: Qid, iounit: u32 }
        117 Read { data: Data<'a> }
        119 Write { count: u32 }
        121 Clunk {}
        123 Remove {}
        125 Stat { stat: Counted<Stat<'a>> }
        127 Wstat {}
        201 Session { boot: u64, state: u8, linger: u32, lease: u32, received: u64 }
        203 Ack { received: u64 }
        205 Readdirplus { data: Data<'a> }
        207 Rename2 {}
        209 Allocate {}
        211 Seek { offset: u64 }
        213 Copy { count: u64 }
        215 Append { count: u32, offset: u64 }
        217 Lease { kind: u8 }
        219 Break { fid: u32, keep: u8 }
        221 Fetch { qid: Qid, data: Data<'a> }
        223 Digest { count: u64, hash: [u8; 32] }
    }
}

/// What two peers have agreed to speak, the richest first.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub enum Dialect {
    /// 9P2000.L with ordered fids.
    #[default]
    Slashn,
    /// Plain 9P2000.L.
    L,
    /// Plain 9P2000.
    Legacy,
}

impl Dialect {
    /// All of them, the richest first.
    pub const ALL: [Self; 3] = [Self::Slashn, Self::L, Self::Legacy];

    /// The dialect that `version` names.
    pub fn of_version(version: &[u8]) -> Option<Self> {
        match version {
            VERSION_SLASHN => Some(Self::Slashn),
            VERSION_L => Some(Self::L),
            VERSION_9P2000 => Some(Self::Legacy),
            _ => None,
        }
    }

    /// Its version.
    pub fn version(self) -> &'static [u8] {
        match self {
            Self::Slashn => VERSION_SLASHN,
            Self::L => VERSION_L,
            Self::Legacy => VERSION_9P2000,
        }
    }

    /// Whether it has requests of type `code`.
    pub fn has(self, code: u8) -> bool {
        match self {
            Self::Legacy => (100..128).contains(&code),
            // Numbers that no other 9P has are those of our dialect.
            Self::L => code < 128 && Self::Slashn.has(code),
            // Open, create, stat and wstat have others in their place.
            Self::Slashn => !matches!(code, 112 | 114 | 124 | 126),
        }
    }
}

/// The numbers of `Tlock` and its kin (`P9_LOCK_*`).
pub mod lock {
    /// Shared, for readers.
    pub const RDLCK: u8 = 0;
    /// Exclusive, for a writer.
    pub const WRLCK: u8 = 1;
    /// None.
    pub const UNLCK: u8 = 2;
    /// A flag: wait for it.
    pub const BLOCK: u32 = 1;
    /// A flag: it was held before the server restarted.
    pub const RECLAIM: u32 = 2;
    /// A status: done.
    pub const SUCCESS: u8 = 0;
    /// A status: another holds it.
    pub const BLOCKED: u8 = 1;
    /// A status: there can be no more locks.
    pub const ERROR: u8 = 2;
    /// A status: not yet, so soon after the server's restart.
    pub const GRACE: u8 = 3;
}

/// `SEEK_DATA` and `SEEK_HOLE` of lseek(2), in the whence of `Tseek`.
pub const SEEK_DATA: u32 = 3;
/// See [`SEEK_DATA`].
pub const SEEK_HOLE: u32 = 4;

/// One entry in the data of an `Rreaddir`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dirent<'a> {
    /// Which file.
    pub qid: Qid,
    /// Where to go on from, after this entry.
    pub offset: u64,
    /// `DT_*` of readdir(3).
    pub kind: u8,
    /// What it is called.
    pub name: Str<'a>,
}

impl<'a> Dirent<'a> {
    /// The bytes that an entry with a name of `name` bytes takes.
    pub fn size(name: usize) -> usize {
        13 + 8 + 1 + 2 + name
    }

    /// Takes the first entry off `data`.
    pub fn read(data: &'a [u8]) -> Result<(&'a [u8], Self), Malformed> {
        let (rest, qid) = Qid::read(data)?;
        let (rest, offset) = u64::read(rest)?;
        let (rest, kind) = u8::read(rest)?;
        let (rest, name) = Str::read(rest)?;
        Ok((rest, Self { qid, offset, kind, name }))
    }

    /// Appends the entry to `out`.
    pub fn write(&self, out: &mut Vec<u8>) {
        self.qid.write(out);
        self.offset.write(out);
        self.kind.write(out);
        self.name.write(out);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whether `$body`, or as much of it as is wanted, is a message of type `$code`; what decodes must encode to the
    /// same bytes.
    macro_rules! identity {
        ($Set:ident, $code:expr, $body:expr) => {{
            let mut body: &[u8] = $body;
            if let Err(Malformed::TooLong(rest)) = $Set::decode($code, body) {
                body = &body[..body.len() - rest];
            }
            let decoded = $Set::decode($code, body);
            if let Ok(Some(message)) = decoded {
                let mut out = vec![9];
                message.encode(7, &mut out);
                let size = (HEADER + body.len()) as u32;
                assert_eq!((&out[1..5], out[5], &out[6..8]), (&size.to_le_bytes()[..], $code, &[7, 0][..]));
                assert_eq!($Set::decode($code, &out[1 + HEADER..]), Ok(Some(message)));
                // Of the kind in a qid, bits without a meaning are dropped.
                if !format!("{message:?}").contains("Qid {") {
                    assert_eq!(&out[1 + HEADER..], body, "{message:?}");
                }
            }
            matches!(decoded, Ok(Some(_)))
        }};
    }

    #[test]
    fn every_message_that_decodes_encodes_to_the_same() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        for code in T::CODES.iter().chain(R::CODES).copied() {
            let mut decoded = 0;
            for _ in 0..2_000 {
                // Numbers, short strings and stats in any order: a message is somewhere at the front.
                let mut body = Vec::new();
                while body.len() < 200 {
                    match random() % 5 {
                        0..=2 => body.extend([random() as u8 % 4, 0, 0, 0]),
                        3 => Counted(Stat { mode: random() as u32, ..Stat::untouched() }).write(&mut body),
                        _ => Str(&b"name"[..1 + random() as usize % 4]).write(&mut body),
                    }
                }
                decoded += usize::from(identity!(T, code, &body) || identity!(R, code, &body));
            }
            assert!(decoded > 20, "message {code} was decoded {decoded} times");
        }
    }

    proptest! {
        #[test]
        fn whatever_decodes_encodes_to_the_same_bytes(code: u8, body: Vec<u8>) {
            identity!(T, code, &body);
            identity!(R, code, &body);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(code: u8, body: Vec<u8>) {
            let _ = T::decode(code, &body).map(|message| format!("{message:?}"));
            let _ = R::decode(code, &body).map(|message| format!("{message:?}"));
        }
    }

    #[test]
    fn a_walk_gives_back_its_steps() {
        let mut out = Vec::new();
        let steps = [Step::Up, Step::Into(Name::new(b"bc").unwrap())];
        let bytes = Steps::encode(&steps);
        T::Walk { fid: 1, newfid: 2, steps: Steps::of(&bytes, 2) }.encode(3, &mut out);
        let Ok(Some(T::Walk { steps: decoded, .. })) = T::decode(110, &out[HEADER..]) else { panic!("no walk") };
        assert_eq!(decoded.iter().collect::<Vec<_>>(), steps);
    }

    #[test]
    fn nothing_is_made_called_dot_dot() {
        let body = [1, 0, 0, 0, 2, 0, b'.', b'.', 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(matches!(T::decode(72, &body), Err(Malformed::Name(_))));
    }

    #[test]
    fn a_frame_with_something_after_it_is_refused() {
        assert_eq!(T::decode(120, &[1, 0, 0, 0, 9]), Err(Malformed::TooLong(1)));
        assert_eq!(T::decode(120, &[1, 0, 0]), Err(Malformed::TooShort));
    }
}
