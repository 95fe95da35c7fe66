//! What was held back of a file and could not be written, because its lease was taken away.
//!
//! A server waits for whoever holds changes back, but not for ever: then it goes on without them, and refuses what they still
//! write to what was open. Called by [`crate::hold`], in the task that writes out. Where the file is what it was when it was
//! made, what was held is written to it after all; where somebody else has written it goes to a file of its own beside it, and the
//! log says so. Invariant: what was held is in one of the two, or the program and the log are told that it is lost.

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

/// Writes `data`, held back at `offset` of `inode`, which was `made` with these attributes: to the file, or beside it. Errors:
/// `ESTALE` unless the file has it.
pub(crate) async fn keep(
    table: &Table, changes: &Changes, (inode, made): (&Arc<Inode>, &Attr), offset: u64, data: Bytes,
) -> Result<(), Errno> {
    if let Ok(node) = table.walk_to(inode).await
        && node.attr().await.is_ok_and(|now| is_as_made(made, &now))
    {
        return write(&node.open_at(&[], How::WRITE, Want::default()).await?.handle, offset, data).await;
    }
    let Some(place) = inode.place() else {
        tracing::error!(
            "{} bytes that were written to a file without a name are lost: its lease was taken away",
            data.len()
        );
        return Err(Errno::ESTALE);
    };
    let count = data.len();
    match beside(table, changes, &place.dir, &place.name, offset, data).await {
        Ok(name) => tracing::error!(
            "{} was changed by another while this mount was not to be reached: {count} bytes that were written here are in {name}",
            place.name
        ),
        Err(errno) => tracing::error!("{count} bytes that were written to {} are lost: {errno}", place.name),
    }
    Err(Errno::ESTALE)
}

/// Whether nobody has written to a file since it was made.
fn is_as_made(made: &Attr, now: &Attr) -> bool {
    (now.qid, now.size, now.mtime) == (made.qid, made.size, made.mtime)
}

/// Makes a file for `data` beside the file `name` of `dir`. Gives what it is called.
async fn beside(
    table: &Table, changes: &Changes, dir: &Arc<Inode>, name: &NameBuf, offset: u64, data: Bytes,
) -> Result<NameBuf, Errno> {
    let (node, _) = table.node(dir).await?;
    for number in 1..=MOST {
        let called = called(name.as_name(), number)?;
        match make(&node, called.as_name()).await {
            Err(Errno::EEXIST) => {}
            handle => {
                changes.name(dir.qid_path, called.as_name());
                write(&handle?, offset, data).await?;
                return Ok(called);
            }
        }
    }
    Err(Errno::EEXIST)
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
    handle.flush().await?;
    handle.close().await
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
