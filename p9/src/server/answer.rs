//! The answer to each message: what it means to a tree.
//!
//! Called by a request whose fids are claimed; nothing here knows of tags, order or flushes. One function a message,
//! or one arm where it is one call.

use bytes::Bytes;

use super::claim::{Claim, Held};
use super::connection::Context;
use super::fids::{File, Place, Shared, State};
use super::legacy;
use crate::wire::{Data, Dialect, FSYNC_FLUSH, HEADER, NO_FID, Qids, R, Str, T};
use crate::writer::Payload;
use crate::{Errno, Handle, How, Qid, Want, What};

mod content;
mod lock;
mod names;
mod read;
pub(super) mod walk;
mod xattr;

use read::{fetch, list, read, wait};
use walk::walk;

/// Bytes of an `Rread` or `Rreaddir` before its data.
pub(super) const READ_HEADER: usize = HEADER + 4;
/// Bytes of a qid.
const QID: u32 = 13;

/// A reply that is not sent yet.
pub(super) struct Answer {
    reply: Fields,
    /// What stopped a walk that is answered all the same, with the qids that it reached.
    pub(super) stopped: Option<Errno>,
}

/// The fields of a reply, owned.
pub(super) enum Fields {
    Plain(R<'static>),
    /// A whole message, but for its tag.
    Whole(Vec<u8>),
    Walk(Vec<Qid>),
    Link(Bytes),
    Read(Payload),
    Dir(Payload),
    DirPlus(Payload),
    Fetch(Qid, Payload),
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

impl Fields {
    /// A reply that borrows what it says.
    pub(super) fn whole(reply: &R<'_>) -> Self {
        let mut bytes = Vec::new();
        reply.encode(0, &mut bytes);
        Self::Whole(bytes)
    }
}

impl Answer {
    /// Appends the reply to `head`, but for the data of a read, which it gives, uncopied.
    pub(super) fn encode(self, tag: u16, head: &mut Vec<u8>) -> Payload {
        let mut encode = |reply: R<'_>| {
            tracing::trace!(target: "p9::trace", "<- {tag} {reply:?}");
            reply.encode(tag, head);
        };
        match self.reply {
            Fields::Plain(reply) => encode(reply),
            Fields::Whole(mut whole) => {
                tracing::trace!(target: "p9::trace", "<- {tag} {:?}", R::decode(whole[4], &whole[HEADER..]));
                whole[5..HEADER].copy_from_slice(&tag.to_le_bytes());
                head.extend_from_slice(&whole);
            }
            Fields::Walk(qids) => encode(R::Walk { qids: Qids::of(&Qids::encode(&qids)) }),
            Fields::Link(target) => encode(R::Readlink { target: Str(&target) }),
            Fields::DirPlus(data) => {
                encode(R::Readdirplus { data: Data(&[]) });
                return followed(head, data);
            }
            Fields::Fetch(qid, data) => {
                encode(R::Fetch { qid, data: Data(&[]) });
                return followed(head, data);
            }
            Fields::Dir(data) => {
                encode(R::Readdir { data: Data(&[]) });
                return followed(head, data);
            }
            Fields::Read(data) => {
                encode(R::Read { data: Data(&[]) });
                return followed(head, data);
            }
        }
        Payload::default()
    }
}

/// `head`, which was encoded with no data, as what goes before `data`: that follows from where it lies, and only the
/// two counts in front of it change.
fn followed(head: &mut [u8], data: Payload) -> Payload {
    let count = data.bytes.len();
    let (at, size) = (head.len() - 4, head.len() + count);
    head[..4].copy_from_slice(&(size as u32).to_le_bytes());
    head[at..].copy_from_slice(&(count as u32).to_le_bytes());
    data
}

/// Answers a message that makes a fid, whose state is `made`; a walk keeps what it meets, if `met`.
pub(super) async fn make(
    context: &Context, message: &T<'_>, from: Option<Result<Shared, Errno>>, met: bool, made: &mut State,
) -> Result<Answer, Errno> {
    match (*message, from) {
        (T::Attach { afid, .. }, _) if afid != NO_FID => Err(Errno::EINVAL),
        (T::Attach { aname, .. }, _) => {
            let node = context.tree.attach(&context.who, aname.0).await?;
            let qid = node.qid();
            let place = Place { root: node.clone(), path: None, follows: context.dialect == Dialect::Legacy };
            *made = State::File(Box::new(File::new(node, place)));
            Ok(R::Attach { qid }.into())
        }
        (T::Walk { steps, .. }, Some(from)) => {
            let from = from?.come().await;
            let file = from.file()?;
            let walked = walk(&file.node, &file.place, steps, Want { attr: met, ..Want::default() }).await?;
            Ok(walked.answer(made))
        }
        (T::Xattrwalk { name, .. }, Some(from)) => {
            let from = from?.come().await;
            let (file, size) = xattr::walk(from.file()?, name.0).await?;
            *made = State::File(Box::new(file));
            Ok(R::Xattrwalk { size }.into())
        }
        _ => Err(Errno::EINVAL),
    }
}

/// Answers any other message; `body` is what it was decoded from. A getattr is answered by what the walk met that it
/// came along with, if `met`.
pub(super) async fn answer(
    context: &Context, message: &T<'_>, claim: Claim, met: bool, body: &Bytes,
) -> Result<Answer, Errno> {
    // Asked for before anything is waited for, and so in the order of arrival.
    let lease = if let T::Lease { fid, .. } = *message { Some(context.leases.place(fid)) } else { None };
    let held = match claim {
        Claim::Shared(turn) => Held::Shared(turn.come().await),
        Claim::Alone(turn) => Held::Alone(turn.come().await),
        Claim::Both(one, other) => {
            let one = one.come().await;
            Held::Both(one, other.come().await)
        }
        Claim::AloneAnd(one, other) => {
            let one = one.come().await;
            Held::AloneAnd(one, other.come().await)
        }
        Claim::Make(..) => return Err(Errno::EINVAL),
    };
    match held {
        // A lock may be long in coming: what comes later on this fid goes on meanwhile.
        Held::Shared(state) if matches!(message, T::Lock { .. }) => {
            let node = state.file()?.node.clone();
            drop(state);
            lock::lock(context, &node, message).await
        }
        Held::Shared(state) => {
            let file = state.file()?;
            match *message {
                T::Getattr { mask, .. } if met && let Some(attr) = file.take_met() => {
                    Ok(R::of_attr(&attr, mask).into())
                }
                _ => on_file(context, message, file, body).await,
            }
        }
        Held::Alone(mut state) => {
            if let (T::Lease { fid, kind }, Some(place)) = (*message, lease) {
                return context.leases.grant(fid, place, state.file()?, kind, &context.push).await;
            }
            on_fid(context, message, &mut state).await
        }
        Held::Both(from, to) if matches!(message, T::Copy { .. }) => {
            content::copy(message, from.file()?, to.file()?).await
        }
        Held::Both(one, other) => names::on_two(message, one.file()?, other.file()?).await,
        Held::AloneAnd(mut one, other) => Box::pin(names::rename(message, one.file_mut()?, other.file()?)).await,
    }
}

/// Messages that leave the fid as it is.
async fn on_file(context: &Context, message: &T<'_>, file: &File, body: &Bytes) -> Result<Answer, Errno> {
    let node = &file.node;
    let room = context.msize - READ_HEADER as u32;
    let open = || file.open.as_ref().ok_or(Errno::EBADF);
    Ok(match *message {
        T::Stat { .. } => legacy::stat(file).await?,
        T::Read { offset, count, .. } if file.extra.is_some() && matches!(file.open, Some(Handle::Dir(_))) => {
            let place = wait(context, count.min(room)).await?;
            let bytes = legacy::read_dir(file, offset, count.min(room) as usize).await?;
            Fields::Read(Payload { _room: place.shrunk(bytes.len()), bytes }).into()
        }
        T::Read { offset, count, .. } => Fields::Read(read(context, open()?, offset, count.min(room)).await?).into(),
        T::Write { offset, data, .. } => {
            let written = open()?.write(offset, body.slice_ref(data.0)).await?;
            R::Write { count: written.count }.into()
        }
        T::Readdir { offset, count, .. } => {
            let Handle::Dir(dir) = open()? else { return Err(Errno::ENOTDIR) };
            Fields::Dir(list(context, &**dir, offset, count.min(room), false).await?).into()
        }
        T::Readdirplus { offset, count, .. } => {
            let Handle::Dir(dir) = open()? else { return Err(Errno::ENOTDIR) };
            Fields::DirPlus(list(context, &**dir, offset, count.min(room), true).await?).into()
        }
        T::Fetch { name, count, .. } => fetch(context, node, name, count.min(room - QID)).await?.into(),
        T::Allocate { .. } | T::Seek { .. } | T::Digest { .. } => content::on_file(message, open()?).await?,
        T::Append { data, .. } => content::append(file, body.slice_ref(data.0)).await?,
        T::Getattr { mask, .. } => R::of_attr(&node.attr().await?, mask).into(),
        T::Statfs { .. } => R::of_stat_fs(&node.stat_fs().await?).into(),
        T::Getlock { .. } => lock::conflict(context, node, message).await?,
        T::Readlink { .. } => Fields::Link(node.read_link().await?).into(),
        T::Mkdir { .. } | T::Symlink { .. } | T::Mknod { .. } => names::make(node, message).await?.into(),
        T::Unlinkat { name, flags, .. } => {
            node.remove(name, flags & names::REMOVE_DIR != 0).await?;
            R::Unlinkat {}.into()
        }
        _ => return Err(Errno::EINVAL),
    })
}

/// A fid that is gone, either way; what closing met is still told.
async fn clunk(state: State) -> Result<Answer, Errno> {
    if let State::File(file) = state
        && let Some(open) = file.open
    {
        let closed = open.close().await;
        if let Some(extra) = file.extra {
            Box::pin(extra.close()).await?;
        }
        closed?;
    }
    Ok(R::Clunk {}.into())
}

/// Messages that change the fid, or wait for what came before on it.
async fn on_fid(context: &Context, message: &T<'_>, state: &mut State) -> Result<Answer, Errno> {
    if let T::Clunk { .. } = message {
        return clunk(std::mem::take(state)).await;
    }
    if let T::Remove { .. } = message {
        return Box::pin(names::remove(std::mem::take(state))).await;
    }
    let file = state.file_mut()?;
    Ok(match *message {
        T::Lopen { .. } | T::Lcreate { .. } | T::Xattrcreate { .. } => open(message, file).await?,
        T::Open { .. } | T::Create { .. } | T::Walk { .. } if file.open.is_some() => return Err(Errno::EBADF),
        T::Setattr { .. } => {
            let change = message.to_set_attr().ok_or(Errno::EINVAL)?;
            file.node.set_attr(change).await?;
            R::Setattr {}.into()
        }
        T::Fsync { datasync, .. } => {
            fsync(context, file, datasync).await?;
            R::Fsync {}.into()
        }
        T::Walk { steps, .. } => {
            let walked = walk(&file.node, &file.place, steps, Want::default()).await?;
            let mut moved = State::Coming;
            let answer = walked.answer(&mut moved);
            // Stopped on the way, it stays where it was.
            if answer.stopped.is_none() {
                *state = moved;
            }
            answer
        }
        T::Open { .. } | T::Create { .. } | T::Wstat { .. } => Box::pin(legacy::on_fid(context, message, file)).await?,
        _ => return Err(Errno::EINVAL),
    })
}

async fn fsync(context: &Context, file: &File, datasync: u32) -> Result<(), Errno> {
    match &file.open {
        Some(open) if datasync == FSYNC_FLUSH && context.dialect == Dialect::Slashn => open.flush().await,
        _ => file.sync(datasync != 0).await,
    }
}

/// Opens the file of a fid, or what is made in its directory, or an attribute. Open already, it would change under its
/// readers.
async fn open(message: &T<'_>, file: &mut File) -> Result<Answer, Errno> {
    if file.open.is_some() {
        return Err(Errno::EBADF);
    }
    Ok(match *message {
        T::Lopen { flags, .. } => {
            let how = How::from_wire(flags)?;
            let open = file.node.open(how).await?;
            opened(file, open, how)
        }
        T::Lcreate { name, flags, mode, gid, .. } => {
            let how = How::from_wire(flags)?;
            let made = file.node.create(name, names::new(What::File(how), mode, gid)).await?;
            let open = made.handle.ok_or(Errno::EIO)?;
            let qid = opened_qid(made.node.qid(), &open);
            (file.open, file.node, file.appends) = (Some(open), made.node, how.append);
            file.place.enter(name);
            R::Lcreate { qid, iounit: 0 }.into()
        }
        T::Xattrcreate { name, size, flags, .. } => {
            file.open = Some(xattr::create(&file.node, name.0, size, flags)?);
            R::Xattrcreate {}.into()
        }
        _ => return Err(Errno::EINVAL),
    })
}

/// The answer to the opening of `file` as `open`, which it has from now on.
pub(super) fn opened(file: &mut File, open: Handle, how: How) -> Answer {
    let qid = opened_qid(file.node.qid(), &open);
    (file.open, file.appends) = (Some(open), how.append);
    R::Lopen { qid, iounit: 0 }.into()
}

/// The qid in the answer to an open. Version 0 says, as everywhere in 9P, that what is read must not be kept: the file
/// makes its contents up as it is read, and its size says nothing.
pub(super) fn opened_qid(qid: Qid, open: &Handle) -> Qid {
    let kept = !matches!(open, Handle::Bytes(_)) && open.seekable();
    Qid { version: if kept { qid.version.max(1) } else { 0 }, ..qid }
}
