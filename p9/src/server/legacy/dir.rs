//! Reading a directory: whole stat entries, from the start or from where the last read ended.

use std::ops::ControlFlow;

use bytes::Bytes;
use futures_util::future::join_all;

use crate::server::fids::File;
use crate::wire::Field;
use crate::wire::legacy::Stat;
use crate::{Attr, Dir, Entry, Errno, FileKind, Handle, NameBuf, Want, names};

/// Entries whose attributes are asked for at a time.
const AT_ONCE: usize = 64;

/// Where a directory was read to.
#[derive(Clone, Copy, Default)]
pub(super) struct Listed {
    /// Where the client goes on, in the bytes that it was given.
    offset: u64,
    /// The same to the tree.
    cookie: u64,
}

/// An entry on its way to the client.
struct Taken {
    cookie: u64,
    name: NameBuf,
    is_link: bool,
    attr: Option<Attr>,
}

/// Entries from `offset` on, as many as fit into `room` bytes. Errors: `ESPIPE` for any other offset than 0 and where
/// the last read ended; `EINVAL` where not one entry fits.
pub(in crate::server) async fn read_dir(file: &File, offset: u64, room: usize) -> Result<Bytes, Errno> {
    let (Some(Handle::Dir(dir)), Some(extra)) = (&file.open, &file.extra) else { return Err(Errno::EBADF) };
    let mut cookie = match *extra.listed.lock() {
        _ if offset == 0 => 0,
        listed if listed.offset == offset => listed.cookie,
        _ => return Err(Errno::ESPIPE),
    };
    let mut out = Vec::new();
    'full: loop {
        let some = take(&**dir, cookie, room - out.len()).await?;
        if some.is_empty() {
            break;
        }
        for some in some.chunks(AT_ONCE) {
            let attrs = join_all(some.iter().map(|taken| attr(file, taken))).await;
            for (taken, attr) in some.iter().zip(attrs) {
                let before = out.len();
                // One that has gone meanwhile is none.
                if let Some(attr) = attr? {
                    write(&taken.name, &attr, &mut out);
                }
                if out.len() > room {
                    out.truncate(before);
                    if before == 0 {
                        return Err(Errno::EINVAL);
                    }
                    break 'full;
                }
                cookie = taken.cookie;
            }
        }
    }
    *extra.listed.lock() = Listed { offset: offset + out.len() as u64, cookie };
    Ok(out.into())
}

/// The entries after `cookie` that could fit into `room` bytes, and always one if there is one.
async fn take(dir: &dyn Dir, cookie: u64, mut room: usize) -> Result<Vec<Taken>, Errno> {
    let mut some: Vec<Taken> = Vec::new();
    let mut each = |entry: Entry<'_>| {
        let size = Stat::size(entry.name.as_bytes().len());
        if size > room && !some.is_empty() {
            return ControlFlow::Break(());
        }
        room = room.saturating_sub(size);
        let is_link = entry.kind & libc::S_IFMT == libc::S_IFLNK;
        some.push(Taken { cookie: entry.cookie, name: entry.name.into(), is_link, attr: entry.attr.copied() });
        ControlFlow::Continue(())
    };
    dir.list(cookie, &mut each).await?;
    Ok(some)
}

/// The entry's attributes: those of what a link leads to. `None` if it is gone.
async fn attr(file: &File, taken: &Taken) -> Result<Option<Attr>, Errno> {
    let attr = async {
        let is_link = match taken.attr {
            Some(attr) if FileKind::of_mode(attr.mode) != FileKind::Link => return Ok(attr),
            Some(_) => true,
            None => taken.is_link,
        };
        if !is_link {
            let reached = file.node.walk(&[taken.name.as_name()], Want::ATTR).await?.reached()?;
            match reached.attr {
                Some(attr) if attr.qid.kind != FileKind::Link => return Ok(attr),
                None if reached.node.qid().kind != FileKind::Link => return reached.node.attr().await,
                _ => {}
            }
        }
        let mut place = file.place.clone();
        place.enter(taken.name.as_name());
        place.node().await?.attr().await
    };
    match attr.await {
        Ok(attr) => Ok(Some(attr)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn write(name: &NameBuf, attr: &Attr, out: &mut Vec<u8>) {
    let (uid, gid) = (names::user(attr.uid), names::group(attr.gid));
    Stat::of(attr, name.as_name().as_bytes(), uid.as_bytes(), gid.as_bytes()).write(out);
}
