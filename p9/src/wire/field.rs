//! The fields that messages are made of, each with its parser and its printer.
//!
//! Called by the message tables alone. Parsers are nom's, on complete input: what is not there is an error, and nothing
//! is allocated because of a number that a peer sent.

use std::fmt;

use bytes::BufMut;
use nom::bytes::complete::take;
use nom::number::complete::{le_u8, le_u16, le_u32, le_u64};
use nom::{IResult, Parser};

use crate::{Errno, FileKind, Name, Qid};

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Malformed {
    /// The frame ends before the message does.
    #[error("it ends too early")]
    TooShort,
    /// The frame goes on after the message's end.
    #[error("it has {0} bytes too many")]
    TooLong(usize),
    /// A name that cannot be one.
    #[error("it has a name that cannot be one ({0})")]
    Name(Errno),
    /// More steps in a walk than the protocol allows.
    #[error("it walks {0} names, more than {max}", max = Steps::MAX)]
    Steps(u16),
}

/// A field of a message.
pub trait Field<'a>: Sized {
    /// Takes the field off the front of `from`.
    fn read(from: &'a [u8]) -> Result<(&'a [u8], Self), Malformed>;
    /// Appends the field.
    fn write(&self, out: &mut Vec<u8>);
}

fn parsed<T>(parsed: IResult<&[u8], T, ()>) -> Result<(&[u8], T), Malformed> {
    parsed.map_err(|_| Malformed::TooShort)
}

macro_rules! integers {
    ($($ty:ident $parser:ident)*) => {$(
        impl<'a> Field<'a> for $ty {
            fn read(from: &'a [u8]) -> Result<(&'a [u8], Self), Malformed> {
                parsed($parser(from))
            }

            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

integers! { u8 le_u8 u16 le_u16 u32 le_u32 u64 le_u64 }

/// A number that may be missing at the end of a message: `n_uname`, which 9P2000 does not have.
impl<'a> Field<'a> for Option<u32> {
    fn read(from: &'a [u8]) -> Result<(&'a [u8], Self), Malformed> {
        if from.is_empty() {
            return Ok((from, None));
        }
        let (rest, number) = u32::read(from)?;
        Ok((rest, Some(number)))
    }

    fn write(&self, out: &mut Vec<u8>) {
        if let Some(number) = self {
            number.write(out);
        }
    }
}

/// What follows a two-byte size, and what comes after that.
pub(super) fn sized(from: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    parsed(le_u16.flat_map(take::<u16, &[u8], ()>).parse(from))
}

/// A field with its size in two bytes before it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counted<T>(pub T);

impl<'a, T: Field<'a>> Field<'a> for Counted<T> {
    fn read(from: &'a [u8]) -> Result<(&'a [u8], Self), Malformed> {
        let (after, within) = sized(from)?;
        match T::read(within)? {
            ([], field) => Ok((after, Self(field))),
            (rest, _) => Err(Malformed::TooLong(rest.len())),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.put_u16_le(0);
        self.0.write(out);
        let size = (out.len() - start - 2) as u16;
        out[start..start + 2].copy_from_slice(&size.to_le_bytes());
    }
}

impl<'a, const N: usize> Field<'a> for [u8; N] {
    fn read(from: &'a [u8]) -> Result<(&'a [u8], Self), Malformed> {
        let (bytes, rest) = from.split_first_chunk().ok_or(Malformed::TooShort)?;
        Ok((rest, *bytes))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
}

/// A string: a two-byte count and that many bytes.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Str<'a>(pub &'a [u8]);

impl fmt::Debug for Str<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl<'a> Field<'a> for Str<'a> {
    fn read(from: &'a [u8]) -> Result<(&'a [u8], Self), Malformed> {
        let (rest, bytes) = sized(from)?;
        Ok((rest, Self(bytes)))
    }

    fn write(&self, out: &mut Vec<u8>) {
        // Whoever makes a message keeps its strings below 64 KiB: a longer one is cut rather than garbling the frame.
        let bytes = &self.0[..self.0.len().min(u16::MAX.into())];
        out.put_u16_le(bytes.len() as u16);
        out.extend_from_slice(bytes);
    }
}

impl<'a> Field<'a> for Name<'a> {
    fn read(from: &'a [u8]) -> Result<(&'a [u8], Self), Malformed> {
        let (rest, Str(bytes)) = Str::read(from)?;
        Ok((rest, Name::new(bytes).map_err(Malformed::Name)?))
    }

    fn write(&self, out: &mut Vec<u8>) {
        Str(self.as_bytes()).write(out);
    }
}

/// Bytes with a four-byte count: what is read or written.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Data<'a>(pub &'a [u8]);

impl fmt::Debug for Data<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl<'a> Field<'a> for Data<'a> {
    fn read(from: &'a [u8]) -> Result<(&'a [u8], Self), Malformed> {
        parsed(le_u32.flat_map(take::<u32, &'a [u8], ()>).map(Data).parse(from))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.put_u32_le(self.0.len() as u32);
        out.extend_from_slice(self.0);
    }
}

impl<'a> Field<'a> for Qid {
    fn read(from: &'a [u8]) -> Result<(&'a [u8], Self), Malformed> {
        let (rest, (kind, version, path)) = parsed((le_u8, le_u32, le_u64).parse(from))?;
        // Bits of the kind that have no meaning here (append-only, exclusive, ...) are dropped.
        Ok((rest, Self { kind: FileKind::from_wire(kind), version, path }))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(self.kind.to_wire());
        out.put_u32_le(self.version);
        out.put_u64_le(self.path);
    }
}

/// The steps of a walk: checked when they are decoded, read out as they are needed.
#[derive(Clone, Copy, PartialEq)]
pub struct Steps<'a> {
    count: u16,
    bytes: &'a [u8],
}

/// One step of a walk. The server itself goes up; trees are only asked for names.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step<'a> {
    /// To the parent, which `..` names on the wire.
    Up,
    /// To the entry of this name.
    Into(Name<'a>),
    /// Nowhere: what stands there cannot be a name. The walk fails with this, as any walk fails.
    Bad(Errno),
}

impl<'a> Steps<'a> {
    /// The most steps that one walk may take (`MAXWELEM`).
    pub const MAX: u16 = 16;

    /// The `count` steps that [`Steps::encode`] made `bytes` of.
    pub fn of(bytes: &'a [u8], count: u16) -> Self {
        Self { count, bytes }
    }

    /// The bytes of `steps`.
    pub fn encode(steps: &[Step<'_>]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for step in steps {
            match step {
                Step::Up => Str(b"..").write(&mut bytes),
                Step::Into(name) => name.write(&mut bytes),
                Step::Bad(_) => Str(b"").write(&mut bytes),
            }
        }
        bytes
    }

    /// How many there are.
    pub fn count(self) -> usize {
        self.count.into()
    }

    /// Each step in turn.
    pub fn iter(self) -> impl Iterator<Item = Step<'a>> {
        let mut rest = self.bytes;
        std::iter::from_fn(move || {
            let (after, step) = Step::read(rest).ok()?;
            rest = after;
            Some(step)
        })
    }
}

impl fmt::Debug for Steps<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> Step<'a> {
    fn read(from: &'a [u8]) -> Result<(&'a [u8], Self), Malformed> {
        let (rest, Str(name)) = Str::read(from)?;
        let step = match name {
            b".." => Self::Up,
            name => Name::new(name).map_or_else(Self::Bad, Self::Into),
        };
        Ok((rest, step))
    }
}

impl<'a> Field<'a> for Steps<'a> {
    fn read(from: &'a [u8]) -> Result<(&'a [u8], Self), Malformed> {
        let (all, count) = u16::read(from)?;
        if count > Self::MAX {
            return Err(Malformed::Steps(count));
        }
        let mut rest = all;
        for _ in 0..count {
            rest = Step::read(rest)?.0;
        }
        Ok((rest, Self { count, bytes: &all[..all.len() - rest.len()] }))
    }

    fn write(&self, out: &mut Vec<u8>) {
        self.count.write(out);
        out.extend_from_slice(self.bytes);
    }
}

/// The qids that a walk reached: checked when they are decoded, read out as they are needed.
#[derive(Clone, Copy, PartialEq)]
pub struct Qids<'a>(&'a [u8]);

impl<'a> Qids<'a> {
    const SIZE: usize = 13;

    /// Those that [`Qids::encode`] made `bytes` of.
    pub fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The bytes of `qids`.
    pub fn encode(qids: &[Qid]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(qids.len() * Self::SIZE);
        qids.iter().for_each(|qid| qid.write(&mut bytes));
        bytes
    }

    /// How many there are.
    pub fn count(self) -> usize {
        self.0.len() / Self::SIZE
    }

    /// Each in turn.
    pub fn iter(self) -> impl Iterator<Item = Qid> {
        self.0.chunks_exact(Self::SIZE).filter_map(|bytes| Qid::read(bytes).ok().map(|(_, qid)| qid))
    }
}

impl fmt::Debug for Qids<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a> Field<'a> for Qids<'a> {
    fn read(from: &'a [u8]) -> Result<(&'a [u8], Self), Malformed> {
        let (rest, count) = u16::read(from)?;
        if count > Steps::MAX {
            return Err(Malformed::Steps(count));
        }
        let (rest, bytes) = parsed(take(usize::from(count) * Self::SIZE)(rest))?;
        Ok((rest, Self(bytes)))
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.put_u16_le(self.count() as u16);
        out.extend_from_slice(self.0);
    }
}
