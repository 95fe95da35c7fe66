//! Reading files and directories, within what a frame and a connection have room for.

use std::ops::ControlFlow;

use super::Fields;
use crate::server::connection::Context;
use crate::server::pool::{COUNTED, Room};
use crate::wire::{ATTR_SIZE, Dirent, R, Str};
use crate::writer::Payload;
use crate::{Entry, Errno, Handle, Name, NodeRef, Qid, buffers};

/// The most that one read of what does not seek is given, and what it is given where many wait.
const STREAM_READ: u32 = 128 << 10;
const STREAM_READ_LEAST: u32 = COUNTED as u32;

/// Reads, within what the replies of the connection, and those of all, may take until they are sent.
pub(super) async fn read(context: &Context, open: &Handle, offset: u64, count: u32) -> Result<Payload, Errno> {
    if !open.seekable() {
        // It may wait for ever, and must not take room from others meanwhile; a short read is no end.
        let count = count.min(STREAM_READ);
        let held = if count < STREAM_READ_LEAST { None } else { context.share.awaited(count as usize) };
        let count = if held.is_some() { count } else { count.min(STREAM_READ_LEAST) };
        let bytes = open.read(offset, count).await?;
        return Ok(Payload { _room: Room { own: None, held }.shrunk(bytes.len()), bytes });
    }
    let room = wait(context, count).await?;
    let bytes = match open {
        Handle::Fd(file) => file.read_into(buffers::data, offset, count).await?,
        open => open.read(offset, count).await?,
    };
    Ok(Payload { _room: room.shrunk(bytes.len()), bytes })
}

/// The contents of the file `name` of the directory `dir`, as far as `count` bytes go.
pub(super) async fn fetch(context: &Context, dir: &NodeRef, name: Name<'_>, count: u32) -> Result<Fields, Errno> {
    let room = wait(context, count).await?;
    let (qid, bytes) = dir.fetch(name, count).await?;
    Ok(Fields::Fetch(qid, Payload { _room: room.shrunk(bytes.len()), bytes }))
}

/// Waits for room for `count` bytes of a reply: what is small counts as part of its request.
pub(super) async fn wait(context: &Context, count: u32) -> Result<Room, Errno> {
    if (count as usize) < COUNTED {
        return Ok(Room { own: None, held: None });
    }
    let own = context.reading.clone().acquire_many_owned(count).await.map_err(|_| Errno::EIO)?;
    Ok(Room { own: Some(own), held: context.share.answered(count as usize).await })
}

/// The entries that one reply gives, as [`read_dir`] has them.
pub(super) async fn list(
    context: &Context, dir: &dyn crate::Dir, cookie: u64, count: u32, plus: bool,
) -> Result<Payload, Errno> {
    let room = wait(context, count).await?;
    let entries = read_dir(dir, cookie, count as usize, plus).await?;
    Ok(Payload { _room: room.shrunk(entries.len()), bytes: entries.into() })
}

/// Entries from `cookie` on, as many as fit into `room` bytes, each followed by its attributes if `plus`. `.` and `..`
/// are not among them: a client knows both.
async fn read_dir(dir: &dyn crate::Dir, cookie: u64, room: usize, plus: bool) -> Result<Vec<u8>, Errno> {
    let (mut out, mut full, mut too_long) = (Vec::new(), false, false);
    let more = if plus { ATTR_SIZE } else { 0 };
    let mut take = |entry: Entry<'_>| {
        let name = entry.name.as_bytes();
        if out.len() + Dirent::size(name.len()) + more > room {
            (full, too_long) = (true, out.is_empty());
            return ControlFlow::Break(());
        }
        let kind = ((entry.kind & libc::S_IFMT) >> 12) as u8;
        Dirent { qid: entry.qid, offset: entry.cookie, kind, name: Str(name) }.write(&mut out);
        if plus {
            R::write_attr(entry.attr, &mut out);
        }
        ControlFlow::Continue(())
    };
    dir.list(cookie, &mut take).await?;
    if plus && !full && !out.is_empty() && out.len() + Dirent::size(0) + more <= room {
        // No name is empty: who sees this need not ask whether more follow.
        Dirent { qid: Qid::default(), offset: 0, kind: 0, name: Str(b"") }.write(&mut out);
        R::write_attr(None, &mut out);
    }
    // An empty answer would mean the end.
    if too_long { Err(Errno::EINVAL) } else { Ok(out) }
}
