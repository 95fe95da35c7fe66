//! Reading files and directories, within what a frame and a connection have room for.

use std::ops::ControlFlow;

use crate::server::connection::Context;
use crate::wire::{ATTR_SIZE, Dirent, R, Str};
use crate::writer::Payload;
use crate::{Entry, Errno, Handle, buffers};

/// The most that one read of what does not seek is given.
const STREAM_READ: u32 = 128 << 10;
/// Reads below this count as part of their request.
const UNCOUNTED: u32 = 16 << 10;

/// Reads, within what the replies of the connection may take until they are sent.
pub(super) async fn read(context: &Context, open: &Handle, offset: u64, count: u32) -> Result<Payload, Errno> {
    if !open.seekable() {
        // It may wait for ever, and must not take room from others meanwhile; a short read is no end.
        return Ok(open.read(offset, count.min(STREAM_READ)).await?.into());
    }
    let room = match count {
        ..UNCOUNTED => None,
        _ => Some(context.reading.clone().acquire_many_owned(count).await.map_err(|_| Errno::EIO)?),
    };
    let bytes = match open {
        Handle::Fd(file) => file.read_into(buffers::data, offset, count).await?,
        open => open.read(offset, count).await?,
    };
    Ok(Payload { _room: room.filter(|_| bytes.len() >= UNCOUNTED as usize), bytes })
}

/// Entries from `cookie` on, as many as fit into `room` bytes, each followed by its attributes if `plus`. `.` and `..` are
/// not among them: a client knows both.
pub(super) async fn read_dir(dir: &dyn crate::Dir, cookie: u64, room: usize, plus: bool) -> Result<Vec<u8>, Errno> {
    let (mut out, mut too_long) = (Vec::new(), false);
    let more = if plus { ATTR_SIZE } else { 0 };
    let mut take = |entry: Entry<'_>| {
        let name = entry.name.as_bytes();
        if out.len() + Dirent::size(name.len()) + more > room {
            too_long = out.is_empty();
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
    // An empty answer would mean the end.
    if too_long { Err(Errno::EINVAL) } else { Ok(out) }
}
