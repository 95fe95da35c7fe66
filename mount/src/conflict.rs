//! What was held back of a file and could not be written, because its lease was lost.
//!
//! A server waits for whoever holds changes back, but not for ever: then it goes on without them, and refuses what they
//! still write to what was open. One that was started anew knows of no lease at all. Called by [`crate::hold`], in the
//! task that writes out, one at a time for each open file. Where the file is what it was known to be, what was held is
//! written to it after all; where somebody else has written it all goes to one file beside it, and the log says so.
//! Invariant: what was held is in one of the two, or the program and the log are told that it is lost.

use std::sync::Arc;

use bytes::Bytes;
use p9::{Attr, Errno, Handle, How, Name, NameBuf, New, NodeRef, Want, What};

use crate::changes::Changes;
use crate::table::{Inode, Table};

/// What stands between a file's name and the number of the conflict.
const MARK: &str = ".conflict-";
/// How many conflicts of one file are kept apart.
const MOST: u32 = 1000;
/// The longest name that a file may have, in bytes.
const LONGEST: usize = 255;
/// So much of the start of a write is remembered.
const START: usize = 4 << 10;

/// Where what was held back goes.
pub(crate) enum Home {
    /// To the file.
    File(Handle),
    /// To one beside it.
    Beside(NameBuf, Handle),
}

/// What is known of a file that only this mount has written.
pub(crate) struct Known {
    /// Its attributes at some time.
    pub(crate) attr: Attr,
    /// What was written from about then on, of which each part may have been done or not.
    pub(crate) written: Vec<Written>,
}

/// Some bytes that were written.
#[derive(Clone)]
pub(crate) struct Written {
    pub(crate) offset: u64,
    pub(crate) length: usize,
    start: Bytes,
}

impl Written {
    pub(crate) fn of(offset: u64, data: &Bytes) -> Self {
        // A copy: the rest is not to stay.
        Self { offset, length: data.len(), start: Bytes::copy_from_slice(&data[..data.len().min(START)]) }
    }

    fn end(&self) -> u64 {
        self.offset.saturating_add(self.length as u64)
    }
}

/// Writes `data`, held back at `offset` of `inode`, to its `home`, which is found first by what is `known` of it.
/// Errors: `ESTALE` unless the file has it.
pub(crate) async fn keep(
    table: &Table, changes: &Changes, inode: &Arc<Inode>, (home, known): (&mut Option<Home>, Known), offset: u64,
    data: Bytes,
) -> Result<(), Errno> {
    let (count, name) =
        (data.len(), inode.place().map_or_else(|| "a file without a name".into(), |p| p.name.to_string()));
    if home.is_none() {
        match find(table, changes, inode, known).await {
            Ok(found) => *home = Some(found),
            Err(errno) => {
                tracing::error!("{count} bytes that were written to {name} are lost: {errno}");
                return Err(Errno::ESTALE);
            }
        }
    }
    match home {
        Some(Home::File(handle)) => write(handle, offset, data).await,
        Some(Home::Beside(called, handle)) => {
            match write(handle, offset, data).await {
                Ok(()) => tracing::error!(
                    "{name} was changed by another while this mount was not to be reached: {count} bytes that were written here are in {called}"
                ),
                Err(errno) => tracing::error!("{count} bytes that were written to {name} are lost: {errno}"),
            }
            Err(Errno::ESTALE)
        }
        None => Err(Errno::ESTALE),
    }
}

/// Where what was held back of `inode` goes.
async fn find(table: &Table, changes: &Changes, inode: &Arc<Inode>, known: Known) -> Result<Home, Errno> {
    if let Ok(node) = table.walk_to(inode).await
        && let Ok(now) = node.attr().await
        && is_known(&node, &known, &now).await
    {
        return Ok(Home::File(node.open_at(&[], How::WRITE, Want::default()).await?.handle));
    }
    let place = inode.place().ok_or(Errno::ENOENT)?;
    let (dir, _) = table.node(&place.dir).await?;
    for number in 1..=MOST {
        let called = called(place.name.as_name(), number)?;
        match make(&dir, called.as_name()).await {
            Err(Errno::EEXIST) => {}
            handle => {
                changes.name(place.dir.qid_path, called.as_name());
                return Ok(Home::Beside(called, handle?));
            }
        }
    }
    Err(Errno::EEXIST)
}

/// Whether nobody else seems to have written to the file `node`, whose attributes are `now`: it is as it was, or some
/// of what was written here is found in it and says why it is not.
pub(crate) async fn is_known(node: &NodeRef, known: &Known, now: &Attr) -> bool {
    let Known { attr, written } = known;
    if (now.size, now.mtime) == (attr.size, attr.mtime) {
        return true;
    }
    let Ok(opened) = node.open_at(&[], How::READ, Want::default()).await else { return false };
    let (mut found, mut end) = (false, attr.size);
    for Written { offset, start, .. } in written {
        let there = opened.handle.read(*offset, start.len() as u32).await;
        found |= there.is_ok_and(|there| there == *start);
    }
    end = written.iter().map(Written::end).fold(end, u64::max);
    found && (attr.size..=end).contains(&now.size)
}

/// What the file of conflict `number` of the file `name` is called.
fn called(name: Name<'_>, number: u32) -> Result<NameBuf, Errno> {
    let end = format!("{MARK}{number}");
    let start = &name.as_bytes()[..name.as_bytes().len().min(LONGEST - end.len())];
    NameBuf::new([start, end.as_bytes()].concat())
}

async fn make(dir: &NodeRef, name: Name<'_>) -> Result<Handle, Errno> {
    let how = How { excl: true, ..How::WRITE };
    let made = dir.create(name, New { what: What::File(how), mode: 0o600, owner: None }).await?;
    made.handle.ok_or(Errno::EIO)
}

async fn write(handle: &Handle, offset: u64, data: Bytes) -> Result<(), Errno> {
    let mut done = 0;
    while done < data.len() {
        let count = handle.write(offset + done as u64, data.slice(done..)).await?.count as usize;
        if count == 0 {
            return Err(Errno::EIO);
        }
        done += count;
    }
    handle.flush().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_as_long_as_can_be_has_room_for_its_conflicts() {
        let name = |name: &[u8]| called(Name::new(name).unwrap(), 7).unwrap().to_string();
        assert_eq!(name(b"notes.txt"), "notes.txt.conflict-7");
        assert_eq!(name(&[b'x'; 255]), "x".repeat(255 - 11) + ".conflict-7");
    }
}
