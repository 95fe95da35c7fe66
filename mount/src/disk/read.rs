//! Reading what is kept.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use bytes::{Bytes, BytesMut};

use super::Contents;
use super::entry::hash;
use super::index::Unit;

impl Contents {
    /// What is kept of `range`, as [`Contents::read`]. It blocks.
    pub(super) fn read_now(&self, range: Range<u64>) -> Option<Bytes> {
        let (mut whole, mut at, mut open) = (Bytes::new(), range.start, None);
        while at < range.end
            && let Some(unit) = self.store.index.find(self.id, at)
            && let Some(bytes) = self.read_unit(&unit, &mut open)
        {
            let end = unit.end().min(range.end);
            let piece = bytes.slice((at - unit.start) as usize..(end - unit.start) as usize);
            at = end;
            whole = joined(whole, piece, (range.end - range.start) as usize);
        }
        (!whole.is_empty()).then_some(whole)
    }

    /// The bytes of `unit`. `open` is the segment that was read last.
    fn read_unit(&self, unit: &Unit, open: &mut Option<(u32, File)>) -> Option<Bytes> {
        let (store, number) = (&self.store, unit.spot.segment);
        if open.as_ref().is_none_or(|(last, _)| *last != number) {
            *open = store.segments.reads(number).map(|file| (number, file));
        }
        let mut bytes = BytesMut::zeroed(unit.length as usize);
        let read = open.as_ref().is_some_and(|(_, file)| file.read_exact_at(&mut bytes, unit.spot.offset).is_ok());
        if read && hash(&bytes, &store.key) == unit.hash {
            return Some(bytes.freeze());
        }
        // Another process has removed it, or it is garbled; then the rest is not to be trusted, either.
        tracing::debug!(number, "a segment of what was kept on disk is dropped");
        store.segments.drop_one(number, &store.index);
        None
    }
}

/// One after the other, where there will be `length` bytes in the end.
fn joined(first: Bytes, second: Bytes, length: usize) -> Bytes {
    if first.is_empty() {
        return second;
    }
    let mut both = first.try_into_mut().unwrap_or_else(|shared| {
        let mut both = BytesMut::with_capacity(length);
        both.extend_from_slice(&shared);
        both
    });
    both.extend_from_slice(&second);
    both.freeze()
}
