//! Messages of a peer that may say anything: well-formed ones about fids that exist and others, and garbled ones.
//!
//! Each is made from one number, so that proptest makes a conversation smaller by leaving messages out. The table says
//! what fields each message has, written down from the protocol's description and not taken from the crate; numbers
//! that the crate knows and the table does not yet are given fields at random.

use std::fmt;
use std::ops::Range;

use p9::wire::{Dialect, HEADER, T};

/// The fids that conversations are about; others are used now and then.
pub const FIDS: u32 = 8;
/// The first of them are directories: [`AT_FIRST`] leads there.
const DIRS: u32 = 3;
/// Names of which most are there.
const USUAL: [&[u8]; 9] = [b"a", b"b", b"d", b"e", b"f", b"f", b"f", b"up", b"out"];

/// What is walked at first: from which fid, to which, by which names. The root is fid 0.
pub const AT_FIRST: [(u32, u32, &[&[u8]]); 6] =
    [(0, 1, &[b"d"]), (1, 2, &[b"e"]), (0, 3, &[b"f"]), (0, 4, &[b"a"]), (0, 5, &[]), (2, 6, &[b"f"])];

/// One message.
#[derive(Clone)]
pub struct Said {
    /// The whole frame, its tag still 0.
    pub frame: Vec<u8>,
    /// Whether a server may take it for the end of the conversation.
    pub ends: bool,
    /// Sent with the tag of an earlier message instead of a new one: so many messages ago.
    pub again: Option<u16>,
    /// Whether to wait for all answers before it.
    pub waits: bool,
    /// A fid that is clunked first, so that this can make it.
    pub clunks: Option<u32>,
}

impl fmt::Debug for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match T::decode(self.frame[4], &self.frame[HEADER..]) {
            Ok(Some(message)) => write!(f, "{message:?}")?,
            _ => write!(
                f,
                "{}: {}",
                self.frame[4],
                self.frame[HEADER..].iter().take(300).copied().collect::<Vec<u8>>().escape_ascii()
            )?,
        }
        if let Some(back) = self.again {
            write!(f, " with the tag of {back} before")?;
        }
        write!(f, "{}", if self.waits { ", after all answers" } else { "" })
    }
}

/// Each message: its type byte, how often it is said, and its fields. `f` a fid, `D` one that is a directory as long as
/// nothing was done to that, `F` one that anything is done to, `W` one that is made; `n` a name, `N` names to walk, `t`
/// the target of a link, `a` an aname, `x` the name of an attribute, `v` a version; `d` data, `S` a stat; `o` the flags
/// of an open, `m` permissions, `M` those with a type, `p` those of 9P2000, `b` a mode of 9P2000, `l` a length, `k` one
/// that is small, `A` the mode of fallocate(2), `h` what lseek(2) looks for, `K` and `B` the type and the flags of a
/// lock, `i` the name of a session, `c` a count, `g` an owner, `s` a set of flags, `r` a set of flags for a removal,
/// `1` a byte, `4` a number, `?` no fid, `T` an old tag.
const TABLE: &[(u8, u8, &str)] = &[
    (8, 1, "f"),
    (12, 16, "Fo"),
    (14, 8, "Fnomg"),
    (16, 4, "Dntg"),
    (18, 2, "DnM44g"),
    (20, 4, "FDn"),
    (22, 3, "f"),
    (24, 5, "fl"),
    (26, 3, "fsmgglllll"),
    (30, 2, "fWx"),
    (32, 2, "Fxl4"),
    (40, 8, "Flc"),
    (50, 3, "F4"),
    (52, 5, "FKBll4x"),
    (54, 2, "F1ll4x"),
    (70, 3, "Dfn"),
    (72, 3, "Dnmg"),
    (74, 5, "DnDn"),
    (76, 4, "Dnr"),
    (100, 1, "cv"),
    (102, 1, "fxag"),
    (104, 2, "W?xag"),
    (108, 6, "T"),
    (110, 36, "DWN"),
    (110, 4, "FFN"),
    (112, 16, "Fb"),
    (114, 8, "Fnpb"),
    (116, 10, "Flc"),
    (118, 8, "Fld"),
    (120, 2, "F"),
    (122, 2, "F"),
    (124, 4, "f"),
    (126, 6, "FS"),
    (200, 6, "i14l"),
    (202, 1, "l"),
    (204, 5, "Flc"),
    (206, 3, "DnDns"),
    (208, 3, "FAlk"),
    (210, 6, "Flh"),
    (212, 8, "FlFlk"),
    (214, 6, "Fd"),
    (216, 8, "f1"),
    (216, 4, "F1"),
    (220, 6, "Dnc"),
    (220, 1, "Fnc"),
    (222, 5, "Flk"),
];

/// Messages that are never garbled, nor come of it: those that take room on the disk by a number alone (`Tallocate`,
/// `Tcopy`), and those by which a session is known (`Tsession`, `Tack`).
const CLEAN: [u8; 4] = [208, 212, 200, 202];

/// What lies about in the place that the conversation is about.
#[derive(Clone, Debug)]
pub struct Words {
    /// Names, good and bad.
    names: Vec<Vec<u8>>,
    /// Targets of links, and anames.
    targets: Vec<Vec<u8>>,
}

impl Words {
    /// The usual ones, those `more`, and `targets` of links.
    pub fn new(more: Vec<Vec<u8>>, targets: Vec<Vec<u8>>) -> Self {
        let usual = "a b d e f d f out up file root proc loop around parent inner outside wait .. .. . x/y";
        let mut names: Vec<Vec<u8>> = usual.split(' ').map(|name| name.as_bytes().to_vec()).collect();
        names.extend([b"".to_vec(), b"x\0".to_vec(), b"\xff\n".to_vec(), vec![b'n'; 255], vec![b'n'; 256]]);
        names.extend(more);
        Self { names, targets }
    }

    /// The message that `number` makes: mostly one that `dialect` has.
    pub fn said(&self, number: u64, dialect: Dialect) -> Said {
        let mut dice = Dice(number);
        let mut said = Said { frame: vec![0; HEADER], ends: false, again: None, waits: dice.one_in(4), clunks: None };
        let (code, fields, proper) = dice.message(dialect);
        said.ends = !proper;
        said.frame[4] = code;
        for field in fields {
            let at = said.frame.len();
            self.field(field, &mut dice, &mut said.frame);
            if let (b'W', Some(fid)) = (field, said.frame[at..].first_chunk()) {
                said.clunks = (!dice.one_in(8)).then(|| u32::from_le_bytes(*fid));
            }
        }
        if let 100 | 202 = code {
            // Too small an msize, or no version that is known: nothing more is answered. Or what no session allows.
            said.ends = true;
        }
        if dice.one_in(150) {
            said.again = Some(dice.below(8) as u16);
            said.ends = true;
        }
        if dice.one_in(150) && !CLEAN.contains(&code) {
            garble(&mut said.frame, &mut dice);
            said.ends = true;
        }
        let size = said.frame.len() as u32;
        said.frame[..4].copy_from_slice(&size.to_le_bytes());
        said
    }

    fn field(&self, field: u8, dice: &mut Dice, out: &mut Vec<u8>) {
        match field {
            b'f' => out.extend(dice.fid(0..FIDS).to_le_bytes()),
            b'D' => out.extend(dice.fid(0..DIRS).to_le_bytes()),
            b'F' | b'W' => out.extend(dice.fid(DIRS..FIDS).to_le_bytes()),
            b'n' => string(self.name(dice), out),
            b'N' => {
                let count = dice.of(&[0, 0, 1, 1, 1, 1, 2, 3, 5]);
                out.extend((count as u16).to_le_bytes());
                (0..count).for_each(|_| string(self.name(dice), out));
            }
            b't' => {
                let from = if dice.one_in(4) { &self.names } else { &self.targets };
                string(dice.of(from), out);
            }
            b'a' => {
                let from = if dice.one_in(4) { &self.targets } else { &self.names };
                let name = if dice.one_in(2) { b"" } else { &dice.of(from)[..] };
                string(name, out);
            }
            b'x' => {
                string(dice.of(&[&b"user.a"[..], b"", b"user.b", b"trusted.a", b"system.posix_acl_access", b"me"]), out)
            }
            b'v' => string(dice.of(&[&b"9P2000.L.slashn"[..], b"9P2000.L", b"9P2000", b"9P2000.u", b"8P"]), out),
            b'd' => {
                let data = vec![b'w'; dice.of(&[0, 1, 5, 100, 5000])];
                out.extend((data.len() as u32).to_le_bytes());
                out.extend(data);
            }
            b'S' => self.stat(dice, out),
            b'T' => out.extend((dice.below(16) as u16).to_le_bytes()),
            b'1' => out.push(dice.below(5) as u8),
            b'K' => out.push(dice.of(&[0, 1, 1, 1, 2, 3])),
            b'b' => out.push(dice.of(&[0, 0, 1, 2, 2, 3, 0x10, 0x11, 0x12, 0x40, 0x42, 0xff])),
            b'?' => out.extend(dice.of(&[!0, !0, !0, 0_u32, 1]).to_le_bytes()),
            b'l' => out.extend(dice.length().to_le_bytes()),
            b'k' => out.extend(dice.of(&[0_u64, 1, 100, 4096, 1 << 16]).to_le_bytes()),
            b'i' => out.extend([dice.roll(), dice.roll()].map(u64::to_le_bytes).concat()),
            _ => out.extend(dice.number(field).to_le_bytes()),
        }
    }

    fn name(&self, dice: &mut Dice) -> Vec<u8> {
        if dice.one_in(4) { dice.of(&self.names) } else { dice.of(&USUAL).to_vec() }
    }

    /// A stat of 9P2000 in which some is to be changed.
    fn stat(&self, dice: &mut Dice, out: &mut Vec<u8>) {
        let mut stat = vec![0xff; 39];
        if dice.one_in(3) {
            stat[19..23].copy_from_slice(&dice.number(b'p').to_le_bytes());
        }
        if dice.one_in(3) {
            stat[31..39].copy_from_slice(&dice.length().to_le_bytes());
        }
        let name = if dice.one_in(2) { dice.of(&self.names) } else { Vec::new() };
        for text in [&name[..], b"", b"", b""] {
            string(text, &mut stat);
        }
        let size = stat.len() as u16;
        out.extend((size + 2).to_le_bytes());
        out.extend(size.to_le_bytes());
        out.extend(stat);
    }
}

fn string(text: impl AsRef<[u8]>, out: &mut Vec<u8>) {
    let text = text.as_ref();
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text);
}

/// Changes bytes of a frame, its length, or both; never into one of those that are clean.
fn garble(frame: &mut Vec<u8>, dice: &mut Dice) {
    let code = frame[4];
    for _ in 0..dice.below(4) {
        let at = 4 + dice.below(frame.len() as u64 - 4) as usize;
        frame[at] = dice.roll() as u8;
    }
    if CLEAN.contains(&frame[4]) {
        frame[4] = code;
    }
    match dice.below(4) {
        0 => frame.truncate(HEADER + dice.below(frame.len() as u64 - 6) as usize),
        1 => frame.extend([dice.roll() as u8].repeat(1 + dice.below(9) as usize)),
        _ => {}
    }
}

/// Splitmix64: each number makes one message, whatever became of others.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, most: u64) -> u64 {
        self.roll() % most.max(1)
    }

    fn one_in(&mut self, most: u64) -> bool {
        self.below(most) == 0
    }

    fn of<V: Clone>(&mut self, values: &[V]) -> V {
        values[self.below(values.len() as u64) as usize].clone()
    }

    /// The type and the fields of a message, and whether those are its fields.
    fn message(&mut self, dialect: Dialect) -> (u8, Vec<u8>, bool) {
        if self.one_in(150) {
            let code = self.of(T::CODES);
            if !CLEAN.contains(&code) {
                let fields = (0..self.below(5)).map(|_| self.of(b"fn4l")).collect();
                return (code, fields, false);
            }
        }
        let any = self.one_in(25);
        let said = || TABLE.iter().filter(move |(code, ..)| any || dialect.has(*code));
        let mut at = self.below(said().map(|(_, weight, _)| u64::from(*weight)).sum());
        for (code, weight, fields) in said() {
            match at.checked_sub((*weight).into()) {
                None => return (*code, fields.as_bytes().to_vec(), true),
                Some(rest) => at = rest,
            }
        }
        (120, b"f".to_vec(), true)
    }

    fn fid(&mut self, among: Range<u32>) -> u32 {
        match self.below(40) {
            0 => self.of(&[!0, 77, 1 << 31]),
            1..=3 => self.below(FIDS.into()) as u32,
            _ => among.start + self.below(among.len() as u64) as u32,
        }
    }

    fn length(&mut self) -> u64 {
        self.of(&[0, 0, 0, 1, 5, 100, 4096, 0x3fff, 1 << 33, 1 << 40, i64::MAX as u64, !0])
    }

    fn number(&mut self, field: u8) -> u32 {
        match field {
            b'o' => {
                let (access, flags) = (
                    self.of(&[0, 0, 1, 2, 2, 3]),
                    [0o100, 0o200, 0o1000, 0o2000, 0o2000, 0o2000, 0o20_0000, 0o40_0000],
                );
                access | if self.one_in(3) { self.of(&flags) } else { 0 }
            }
            b'm' => self.of(&[0o755, 0o644, 0o600, 0o777, 0o7777, 0]),
            b'M' => self.of(&[0o755, 0o100_644, 0o10_600, 0o140_600, 0o20_666, 0o60_600, 0o40_755]),
            b'p' => self.of(&[0o644, 0o755, 0x8000_01ff, 0x4000_01a4, 0x2000_01a4, 0x1000_0000, 0o7777]),
            b'B' => self.of(&[0, 1, 1, 1, 2, !0]),
            b'h' => self.of(&[3, 3, 4, 4, 0, !0]),
            b'A' => self.of(&[0, 0, 1, 3, 8, 0x10, 0x11, 0x20, !0]),
            b'c' => self.of(&[0, 1, 30, 100, 511, 512, 8192, 1 << 20, !0]),
            b'g' => self.of(&[!0, !0, 0, 1, 12345]),
            b's' => self.of(&[0, 1, 2, 4, 8, 9, 0x30, 0x1b0, 0x1ff, !0]),
            b'r' => self.of(&[0, 0, 0x200, 1, !0]),
            _ => self.of(&[0, 1, 2, 3, 4, 100, 1 << 30, !0]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_message_that_there_is_is_said_as_it_should_be() {
        let words = Words::new(Vec::new(), vec![b"target".to_vec()]);
        let mut said = BTreeSet::new();
        for number in 0..50_000 {
            let Said { frame, .. } = words.said(number, Dialect::ALL[number as usize % 3]);
            if let Ok(Some(message)) = T::decode(frame[4], &frame[HEADER..]) {
                said.insert(message.code());
            }
        }
        // Those that were put in the table, not those that were made at random.
        let listed: BTreeSet<u8> = TABLE.iter().map(|(code, ..)| *code).collect();
        assert_eq!(said, T::CODES.iter().copied().collect());
        assert_eq!(listed, said);
    }
}
