//! The answer to each message: what it means to a tree.
//!
//! Called by a request whose fids are claimed; nothing here knows of tags, order or flushes. One function a message,
//! or one arm where it is one call.

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::claim::{Claim, Held};
use super::connection::Context;
use super::fids::{File, Link, Place, Shared, State};
use crate::wire::{Data, Dirent, HEADER, NO_FID, Qids, R, Step, Steps, Str, T};
use crate::{Entry, Errno, Handle, How, Name, New, NodeRef, Qid, Want, What};
use std::ops::ControlFlow;
use std::sync::Arc;

/// `AT_REMOVEDIR`, in the flags of `Tunlinkat`.
const REMOVE_DIR: u32 = 0x200;
/// Bytes of an `Rread` or `Rreaddir` before its data.
const READ_HEADER: usize = HEADER + 4;

/// The most that one read of what does not seek is given.
const STREAM_READ: u32 = 128 << 10;
/// Reads below this count as part of their request.
const UNCOUNTED: u32 = 16 << 10;

/// A reply that is not sent yet.
pub(super) struct Answer {
    reply: Fields,
    /// What stopped a walk that is answered all the same, with the qids that it reached.
    pub(super) stopped: Option<Errno>,
}

/// The fields of a reply, owned.
enum Fields {
    Plain(R<'static>),
    Walk(Vec<Qid>),
    Link(Bytes),
    Read(Bytes),
    Dir(Vec<u8>),
}

impl From<R<'static>> for Answer {
    fn from(reply: R<'static>) -> Self {
        Fields::Plain(reply).into()
    }
}

impl From<Fields> for Answer {
    fn from(reply: Fields) -> Self {
        Self { reply, stopped: None }
    }
}

impl Answer {
    /// The reply's bytes; the data of a read apart, uncopied.
    pub(super) fn encode(self, tag: u16) -> (Vec<u8>, Bytes) {
        let mut head = Vec::with_capacity(32);
        let mut encode = |reply: R<'_>| {
            tracing::trace!(target: "p9::trace", "<- {tag} {reply:?}");
            reply.encode(tag, &mut head);
        };
        match self.reply {
            Fields::Plain(reply) => encode(reply),
            Fields::Walk(qids) => encode(R::Walk { qids: Qids::of(&Qids::encode(&qids)) }),
            Fields::Link(target) => encode(R::Readlink { target: Str(&target) }),
            Fields::Dir(entries) => encode(R::Readdir { data: Data(&entries) }),
            Fields::Read(data) => {
                encode(R::Read { data: Data(&[]) });
                // The data follows from where it lies: only the two counts in front of it change.
                head[..4].copy_from_slice(&((READ_HEADER + data.len()) as u32).to_le_bytes());
                head[HEADER..].copy_from_slice(&(data.len() as u32).to_le_bytes());
                return (head, data);
            }
        }
        (head, Bytes::new())
    }
}

/// Answers a message that makes a fid, whose state is `made`.
pub(super) async fn make(
    context: &Context, message: &T<'_>, from: Option<Result<Shared, Errno>>, made: &mut State,
) -> Result<Answer, Errno> {
    match (*message, from) {
        (T::Attach { afid, .. }, _) if afid != NO_FID => Err(Errno::EINVAL),
        (T::Attach { aname, .. }, _) => {
            let node = context.tree.attach(&context.who, aname.0).await?;
            let qid = node.qid();
            let place = Place { root: node.clone(), path: None };
            *made = State::File(Box::new(File { node, place, open: None }));
            Ok(R::Attach { qid }.into())
        }
        (T::Walk { steps, .. }, Some(from)) => {
            let from = from?.come().await;
            let file = from.file()?;
            let walked = walk(&file.node, &file.place, steps).await?;
            Ok(walked.answer(made))
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Answers any other message; `body` is what it was decoded from.
pub(super) async fn answer(context: &Context, message: &T<'_>, claim: Claim, body: &Bytes) -> Result<Answer, Errno> {
    let held = match claim {
        Claim::Shared(turn) => Held::Shared(turn.come().await),
        Claim::Alone(turn) => Held::Alone(turn.come().await),
        Claim::Both(one, other) => {
            let one = one.come().await;
            Held::Both(one, other.come().await)
        }
        Claim::Make(..) => return Err(Errno::EINVAL),
    };
    match held {
        Held::Shared(state) => on_file(context, message, state.file()?, body).await,
        Held::Alone(mut state) => on_fid(message, &mut state).await,
        Held::Both(one, other) => on_two(message, one.file()?, other.file()?).await,
    }
}

/// Messages that leave the fid as it is.
async fn on_file(context: &Context, message: &T<'_>, file: &File, body: &Bytes) -> Result<Answer, Errno> {
    let node = &file.node;
    let room = context.msize - READ_HEADER as u32;
    let new = |what, mode: u32| New { what, mode: mode & 0o7777, owner: None };
    let open = || file.open.as_ref().ok_or(Errno::EBADF);
    Ok(match *message {
        T::Read { offset, count, .. } => Fields::Read(read(context, open()?, offset, count.min(room)).await?).into(),
        T::Write { offset, data, .. } => {
            let written = open()?.write(offset, body.slice_ref(data.0)).await?;
            R::Write { count: written.count }.into()
        }
        T::Readdir { offset, count, .. } => {
            let Handle::Dir(dir) = open()? else { return Err(Errno::ENOTDIR) };
            Fields::Dir(read_dir(&**dir, offset, count.min(room) as usize).await?).into()
        }
        T::Getattr { .. } => R::of_attr(&node.attr().await?).into(),
        T::Statfs { .. } => R::of_stat_fs(&node.stat_fs().await?).into(),
        T::Readlink { .. } => Fields::Link(node.read_link().await?).into(),
        T::Mkdir { name, mode, .. } => {
            R::Mkdir { qid: node.create(name, new(What::Dir, mode)).await?.node.qid() }.into()
        }
        T::Symlink { name, target, .. } => {
            R::Symlink { qid: node.create(name, new(What::Link(target.0), 0o777)).await?.node.qid() }.into()
        }
        T::Unlinkat { name, flags, .. } => {
            node.remove(name, flags & REMOVE_DIR != 0).await?;
            R::Unlinkat {}.into()
        }
        _ => return Err(Errno::EINVAL),
    })
}

/// Reads, within what the replies of the connection may take until they are sent.
async fn read(context: &Context, open: &Handle, offset: u64, count: u32) -> Result<Bytes, Errno> {
    if !open.seekable() {
        // It may wait for ever, and must not take room from others meanwhile; a short read is no end.
        return open.read(offset, count.min(STREAM_READ)).await;
    }
    if count < UNCOUNTED {
        return open.read(offset, count).await;
    }
    let room = context.reading.clone().acquire_many_owned(count).await.map_err(|_| Errno::EIO)?;
    let data = open.read(offset, count).await?;
    Ok(if data.len() < UNCOUNTED as usize { data } else { Bytes::from_owner(Counted { data, _room: room }) })
}

/// The data of a read, and its part of what replies may take.
struct Counted {
    data: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// Messages that change the fid, or wait for what came before on it.
async fn on_fid(message: &T<'_>, state: &mut State) -> Result<Answer, Errno> {
    if let T::Clunk { .. } = message {
        // The fid is gone either way; what closing met is still told.
        if let State::File(file) = std::mem::take(state)
            && let Some(open) = file.open
        {
            open.close().await?;
        }
        return Ok(R::Clunk {}.into());
    }
    let file = state.file_mut()?;
    Ok(match *message {
        // Open, it would change under its readers.
        T::Lopen { .. } | T::Lcreate { .. } | T::Walk { .. } if file.open.is_some() => return Err(Errno::EBADF),
        T::Lopen { flags, .. } => {
            let open = file.node.open(How::from_flags(flags)?).await?;
            let qid = opened_qid(file.node.qid(), &open);
            file.open = Some(open);
            R::Lopen { qid, iounit: 0 }.into()
        }
        T::Lcreate { name, flags, mode, .. } => {
            let new = New { what: What::File(How::from_flags(flags)?), mode: mode & 0o7777, owner: None };
            let made = file.node.create(name, new).await?;
            let open = made.handle.ok_or(Errno::EIO)?;
            let qid = opened_qid(made.node.qid(), &open);
            (file.open, file.node) = (Some(open), made.node);
            file.place.enter(name);
            R::Lcreate { qid, iounit: 0 }.into()
        }
        T::Setattr { .. } => {
            let change = message.to_set_attr().ok_or(Errno::EINVAL)?;
            file.node.set_attr(change).await?;
            R::Setattr {}.into()
        }
        T::Fsync { datasync, .. } => {
            match &file.open {
                Some(open) if !matches!(open, Handle::Dir(_)) => open.sync(datasync != 0).await?,
                _ => file.node.sync().await?,
            }
            R::Fsync {}.into()
        }
        T::Walk { steps, .. } => {
            let walked = walk(&file.node, &file.place, steps).await?;
            let mut moved = State::Coming;
            let answer = walked.answer(&mut moved);
            // Stopped on the way, it stays where it was.
            if answer.stopped.is_none() {
                *state = moved;
            }
            answer
        }
        _ => return Err(Errno::EINVAL),
    })
}

/// The qid in the answer to an open. Version 0 says, as everywhere in 9P, that what is read must not be kept: the file
/// makes its contents up as it is read, and its size says nothing.
fn opened_qid(qid: Qid, open: &Handle) -> Qid {
    let kept = !matches!(open, Handle::Bytes(_)) && open.seekable();
    Qid { version: if kept { qid.version.max(1) } else { 0 }, ..qid }
}

/// Messages about two files.
async fn on_two(message: &T<'_>, one: &File, other: &File) -> Result<Answer, Errno> {
    match *message {
        T::Link { name, .. } => {
            one.node.link(&other.node, name).await?;
            Ok(R::Link {}.into())
        }
        T::Renameat { oldname, newname, .. } => {
            one.node.rename(oldname, &other.node, newname, 0).await?;
            Ok(R::Renameat {}.into())
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Where a walk got.
struct Walked {
    qids: Vec<Qid>,
    end: Result<(NodeRef, Place), Errno>,
}

impl Walked {
    fn answer(self, made: &mut State) -> Answer {
        let stopped = match self.end {
            Ok((node, place)) => {
                *made = State::File(Box::new(File { node, place, open: None }));
                None
            }
            Err(errno) => Some(errno),
        };
        Answer { reply: Fields::Walk(self.qids), stopped }
    }
}

async fn walk(node: &NodeRef, place: &Place, steps: Steps<'_>) -> Result<Walked, Errno> {
    let mut place = place.clone();
    if steps.count() == 0 {
        return Ok(Walked { qids: Vec::new(), end: Ok((node.clone(), place)) });
    }
    let (mut names, mut up) = (Vec::with_capacity(steps.count()), false);
    for step in steps.iter() {
        match step {
            Step::Into(name) => names.push(name),
            Step::Up => up = true,
            Step::Bad(errno) => return Err(errno),
        }
    }
    if up {
        return walk_up(node.clone(), place, steps).await;
    }
    let walked = node.walk(&names, Want::default()).await?;
    let end = walked.end.map(|reached| {
        names.iter().for_each(|name| place.enter(*name));
        (reached.node, place)
    });
    Ok(Walked { qids: walked.qids, end })
}

/// A walk with `..` in it: step by step, since a tree knows of no parent. At the attached root `..` stays there.
async fn walk_up(mut node: NodeRef, mut place: Place, steps: Steps<'_>) -> Result<Walked, Errno> {
    let mut qids = Vec::with_capacity(steps.count());
    for step in steps.iter() {
        let reached = match step {
            Step::Into(name) => {
                place.enter(name);
                node.walk(&[name], Want::default()).await.and_then(crate::Walk::reached).map(|reached| reached.node)
            }
            Step::Up => {
                place.leave();
                place.node().await
            }
            Step::Bad(errno) => Err(errno),
        };
        match reached {
            Ok(reached) => node = reached,
            Err(errno) if qids.is_empty() => return Err(errno),
            Err(errno) => return Ok(Walked { qids, end: Err(errno) }),
        }
        qids.push(node.qid());
    }
    Ok(Walked { qids, end: Ok((node, place)) })
}

impl Place {
    fn enter(&mut self, name: Name<'_>) {
        self.path = Some(Arc::new(Link { name: name.into(), before: self.path.take() }));
    }

    fn leave(&mut self) {
        self.path = self.path.take().and_then(|last| last.before.clone());
    }

    /// What is there now.
    async fn node(&self) -> Result<NodeRef, Errno> {
        let mut links = Vec::new();
        let mut at = self.path.as_deref();
        while let Some(link) = at {
            links.push(link);
            at = link.before.as_deref();
        }
        if links.is_empty() {
            return Ok(self.root.clone());
        }
        let names: Vec<Name<'_>> = links.iter().rev().map(|link| link.name.as_name()).collect();
        Ok(self.root.walk(&names, Want::default()).await?.reached()?.node)
    }
}

/// Entries from `cookie` on, as many as fit into `room` bytes. `.` and `..` are not among them: a client knows both.
async fn read_dir(dir: &dyn crate::Dir, cookie: u64, room: usize) -> Result<Vec<u8>, Errno> {
    let (mut out, mut too_long) = (Vec::new(), false);
    let mut take = |entry: Entry<'_>| {
        let name = entry.name.as_bytes();
        if out.len() + Dirent::size(name.len()) > room {
            too_long = out.is_empty();
            return ControlFlow::Break(());
        }
        let kind = ((entry.kind & libc::S_IFMT) >> 12) as u8;
        Dirent { qid: entry.qid, offset: entry.cookie, kind, name: Str(name) }.write(&mut out);
        ControlFlow::Continue(())
    };
    dir.list(cookie, &mut take).await?;
    // An empty answer would mean the end.
    if too_long { Err(Errno::EINVAL) } else { Ok(out) }
}
