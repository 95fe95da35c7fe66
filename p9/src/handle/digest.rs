//! What some bytes of a file are known by.

use std::os::fd::AsFd;

use rustix::io::{Errno, pread, retry_on_intr};

/// How much of a file is hashed at a time.
const PIECE: u64 = 256 << 10;

/// A BLAKE3 hash of part of a file. Two parts with the same digest hold the same bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Digest {
    /// How many bytes it is of: fewer than asked for where the file ends, or for some other reason.
    pub count: u64,
    /// Their hash: BLAKE3 without a key (O'Connor, Aumasson, Neves, Wilcox-O'Hearn, 2020).
    pub hash: [u8; 32],
}

impl Digest {
    /// Of up to `count` bytes from `offset` in `bytes`.
    pub fn of(bytes: &[u8], offset: u64, count: u64) -> Self {
        let within = |at: u64| usize::try_from(at).map_or(bytes.len(), |at| at.min(bytes.len()));
        let part = &bytes[within(offset)..within(offset.saturating_add(count))];
        Self { count: part.len() as u64, hash: *blake3::hash(part).as_bytes() }
    }

    /// Of up to `count` bytes from `offset` of the file that is open as `fd`. It blocks. Errors: as pread(2).
    pub fn of_file(fd: impl AsFd, offset: u64, count: u64) -> Result<Self, Errno> {
        let mut hasher = blake3::Hasher::new();
        let mut piece = vec![0; count.min(PIECE) as usize];
        let mut done = 0;
        while done < count {
            let wanted = (count - done).min(PIECE) as usize;
            let at = offset.checked_add(done).ok_or(Errno::INVAL)?;
            match retry_on_intr(|| pread(&fd, &mut piece[..wanted], at))? {
                0 => break,
                got => {
                    hasher.update(&piece[..got]);
                    done += got as u64;
                }
            }
        }
        Ok(Self { count: done, hash: *hasher.finalize().as_bytes() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_file_is_known_by_the_same_as_those_bytes_elsewhere() {
        let bytes: Vec<u8> = (0..600_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        for (offset, count, there) in
            [(0, 0, 0), (0, 5, 5), (7, 1 << 20, 1 << 20), (2_399_999, 9, 1), (2_400_000, 9, 0), (1 << 40, 9, 0)]
        {
            let digest = Digest::of_file(&file, offset, count).unwrap();
            assert_eq!((digest, digest.count), (Digest::of(&bytes, offset, count), there));
        }
        assert_ne!(Digest::of(&bytes, 0, 5), Digest::of(&bytes, 5, 5));
        assert_eq!(Digest::of(&bytes, u64::MAX, u64::MAX).count, 0);
    }
}
