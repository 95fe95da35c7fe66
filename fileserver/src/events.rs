//! A file in which changes of directories are read as lines, for scripts and editors.
//!
//! The node shows one over its exports. Written to it is the path of a directory to watch, one a write; what is read is
//! what happened in those, `KIND PATH`, as [`p9::Node::events`] of a directory of the disk tells it, with the
//! directory's path before the name. Who reads without having written anything watches what the root has in it. A read
//! waits until something happens.

use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::select_all;
use p9::{Entry, Errno, Handle, How, Name, NameBuf, NodeRef, Reply, Stream, Want, Written, synth};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::leases::take;

/// The most directories that one open file watches.
const MOST: usize = 256;
/// Bytes of lines taken from a directory at a time.
const PART: u32 = 4096;

/// The file over the directories below `root`.
pub fn file(root: NodeRef) -> NodeRef {
    synth::stream(0o666, move |how| {
        let open = Open { root: root.clone(), how, state: Mutex::default(), more: Notify::new() };
        Reply::ok(Arc::new(open) as Arc<dyn Stream>)
    })
}

struct Open {
    root: NodeRef,
    how: How,
    state: Mutex<State>,
    /// Told when there is one directory more.
    more: Notify,
}

#[derive(Default)]
struct State {
    watched: Vec<Watched>,
    /// Lines for which the last read had no room.
    left: BytesMut,
}

/// A directory that is watched: its path, with a `/` at the end, and what happens in it.
#[derive(Clone)]
struct Watched(Arc<[u8]>, Arc<dyn Stream>);

impl Open {
    async fn watch(&self, path: &[u8]) -> Result<(), Errno> {
        let names = Name::split(path)?;
        let node = match names.is_empty() {
            true => self.root.clone(),
            false => self.root.walk(&names, Want::default()).await?.reached()?.node,
        };
        let events = node.events().await?;
        let prefix: Vec<u8> = names.iter().flat_map(|name| name.as_bytes().iter().chain(b"/")).copied().collect();
        let mut state = self.state.lock();
        if state.watched.len() >= MOST {
            return Err(Errno::ENOSPC);
        }
        state.watched.push(Watched(prefix.into(), events));
        drop(state);
        self.more.notify_waiters();
        Ok(())
    }

    /// Watches all directories of the root that can be.
    async fn watch_all(&self) -> Result<(), Errno> {
        let Handle::Dir(root) = self.root.open(How::READ).await? else { return Err(Errno::ENOTDIR) };
        let mut names = Vec::new();
        let mut each = |entry: Entry<'_>| {
            names.push(NameBuf::from(entry.name));
            ControlFlow::Continue(())
        };
        root.list(0, &mut each).await?;
        let mut last = Ok(());
        for name in names {
            last = self.watch(name.as_name().as_bytes()).await;
        }
        if self.state.lock().watched.is_empty() { last.and(Err(Errno::ENOENT)) } else { Ok(()) }
    }

    async fn read_now(&self, count: usize) -> Result<Bytes, Errno> {
        if self.state.lock().watched.is_empty() {
            self.watch_all().await?;
        }
        loop {
            let mut more = pin!(self.more.notified());
            more.as_mut().enable();
            let watched = {
                let mut state = self.state.lock();
                let lines = take(&mut state.left, count);
                if !lines.is_empty() {
                    return Ok(lines);
                }
                state.watched.clone()
            };
            // None of them loses anything by being asked again.
            let reads = select_all(watched.iter().map(|Watched(_, events)| events.read(0, PART)));
            tokio::select! {
                (lines, which, _) = reads => {
                    let (lines, Watched(prefix, _)) = (lines?, &watched[which]);
                    let mut state = self.state.lock();
                    lines.split_inclusive(|&b| b == b'\n').for_each(|line| put(&mut state.left, prefix, line));
                }
                () = more => {}
            }
        }
    }
}

/// Adds `line`, about something below `prefix`.
fn put(out: &mut BytesMut, prefix: &[u8], line: &[u8]) {
    let kind = line.iter().position(|&b| b == b' ').map_or(line.len(), |space| space + 1);
    out.extend_from_slice(&line[..kind]);
    if kind < line.len() {
        // A path is written as a name is: see `Node::events`.
        for &byte in prefix {
            match byte {
                b'\n' => out.extend_from_slice(b"\\012"),
                b'\\' => out.extend_from_slice(b"\\134"),
                byte => out.extend_from_slice(&[byte]),
            }
        }
        out.extend_from_slice(&line[kind..]);
    }
}

impl Stream for Open {
    fn read(&self, _offset: u64, count: u32) -> Reply<'_, Bytes> {
        if !self.how.read {
            return Errno::EBADF.into();
        }
        if count == 0 {
            return Reply::ok(Bytes::new());
        }
        Reply::later(self.read_now(count as usize))
    }

    fn write(&self, _offset: u64, data: Bytes) -> Reply<'_, Written> {
        if !self.how.write {
            return Errno::EBADF.into();
        }
        Reply::later(async move {
            let path = data.strip_suffix(b"\n").unwrap_or(&data);
            self.watch(path).await?;
            Ok(Written::count(data.len()))
        })
    }
}
