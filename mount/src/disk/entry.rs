//! What the index of a segment says of one unit, in 64 bytes.
//!
//! Each entry has a hash of its own, so that one that was not written to its end, or has been garbled since, is left
//! out whatever stands around it.

use super::FileId;

/// The length of an entry.
pub(super) const LENGTH: usize = 64;
/// The offset of what another entry has already.
const ELSEWHERE: u64 = u64::MAX;
const FORMAT: &[u8; 4] = b"/n 1";

/// The hash of a unit's bytes.
pub(super) type Hash = u128;

/// A unit of a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    pub(super) id: FileId,
    /// The page of the file that it begins with.
    pub(super) page: u32,
    pub(super) length: u32,
    pub(super) hash: Hash,
    /// Where its bytes are in the segment; `None` if they were kept before.
    pub(super) offset: Option<u64>,
}

impl Entry {
    /// format\[4] page\[4] file\[8] version\[8] offset\[8] hash\[16] length\[4] zero\[4] check\[8], the lowest byte
    /// first.
    pub(super) fn encode(&self, key: &[u8; 32]) -> [u8; LENGTH] {
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(FORMAT);
        bytes[4..8].copy_from_slice(&self.page.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.id.file.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.id.version.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.offset.unwrap_or(ELSEWHERE).to_le_bytes());
        bytes[32..48].copy_from_slice(&self.hash.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.length.to_le_bytes());
        let check = check(&bytes, key);
        bytes[56..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// The entry that `bytes` are; `None` if they are none that was written with `key`.
    pub(super) fn decode(bytes: &[u8; LENGTH], key: &[u8; 32]) -> Option<Self> {
        fn part<const N: usize>(bytes: &[u8; LENGTH], at: usize) -> [u8; N] {
            let mut part = [0; N];
            part.copy_from_slice(&bytes[at..at + N]);
            part
        }
        if &bytes[..4] != FORMAT || check(bytes, key).to_le_bytes() != part(bytes, 56) {
            return None;
        }
        let offset = u64::from_le_bytes(part(bytes, 24));
        Some(Self {
            id: FileId { file: u64::from_le_bytes(part(bytes, 8)), version: u64::from_le_bytes(part(bytes, 16)) },
            page: u32::from_le_bytes(part(bytes, 4)),
            length: u32::from_le_bytes(part(bytes, 48)),
            hash: u128::from_le_bytes(part(bytes, 32)),
            offset: (offset != ELSEWHERE).then_some(offset),
        })
    }
}

fn check(bytes: &[u8; LENGTH], key: &[u8; 32]) -> u64 {
    start_of(&blake3::keyed_hash(key, &bytes[..56]))
}

/// The hash of a unit's bytes. With the key nobody can make two that are alike.
pub(super) fn hash(bytes: &[u8], key: &[u8; 32]) -> Hash {
    let mut half = [0; 16];
    half.copy_from_slice(&blake3::keyed_hash(key, bytes).as_bytes()[..16]);
    u128::from_le_bytes(half)
}

pub(super) fn start_of(hash: &blake3::Hash) -> u64 {
    let mut start = [0; 8];
    start.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(start)
}
