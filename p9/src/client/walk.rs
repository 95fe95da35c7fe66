//! Walks to a file of the server's, in as many messages as the protocol wants.
//!
//! Where fids are ordered all of them go out at once, with what is to be done at the end of the walk; a server that
//! knows no order is told one after another.

use std::sync::Arc;

use super::call::Calls;
use super::fid::Fid;
use super::node::{Message, Remote, handle, plain, take_attr};
use crate::wire::{R, STATS_ALL, Step, Steps, T};
use crate::{Errno, FileKind, Handle, How, Name, Qid, Reached, Walk, Want};

/// The steps of a walk, encoded in as many pieces as the protocol wants; one empty piece for a clone.
struct Pieces(Vec<(Vec<u8>, u16)>);

impl Pieces {
    /// The most pieces in one walk: as many names as the longest path has.
    const MAX: usize = 4096 / 2 / Steps::MAX as usize;

    fn of(names: &[Name<'_>]) -> Result<Self, Errno> {
        let encode = |names: &[Name<'_>]| {
            let steps: Vec<Step<'_>> = names.iter().map(|name| Step::Into(*name)).collect();
            (Steps::encode(&steps), names.len() as u16)
        };
        if names.is_empty() {
            return Ok(Self(vec![encode(names)]));
        }
        let pieces = names.chunks(Steps::MAX.into());
        if pieces.len() > Self::MAX { Err(Errno::ENAMETOOLONG) } else { Ok(Self(pieces.map(encode).collect())) }
    }

    /// The walks, each from one of `fids` to the next.
    fn walks(&self, fids: &[u32]) -> Vec<Message<'_>> {
        let hops = fids.windows(2).zip(&self.0);
        hops.map(|(hop, (bytes, count))| {
            plain(T::Walk { fid: hop[0], newfid: hop[1], steps: Steps::of(bytes, *count) })
        })
        .collect()
    }
}

/// How far a walk got.
pub(super) struct Walked {
    pub(super) qids: Vec<Qid>,
    /// What stopped it, where the server said so.
    stopped: Option<Errno>,
    /// What follows it, unless the walk failed where fids are not ordered.
    pub(super) calls: Option<Calls>,
}

impl Remote {
    /// Sends the walk of `names` to a new fid, then `more` on that fid: at once where fids are ordered, else once the
    /// walk has been answered. Gives how far it got, and the replies to `more`.
    pub(super) async fn walk_and(
        &self, names: &[Name<'_>], to: &Arc<Fid>, more: &[Message<'_>],
    ) -> Result<Walked, Errno> {
        let pieces = Pieces::of(names)?;
        let walked = match self.fid.link.ordered {
            true => self.walk_ordered(&pieces, to, more).await?,
            false => self.walk_plain(&pieces, to, more).await?,
        };
        if walked.qids.len() > names.len() { Err(Errno::EPROTO) } else { Ok(walked) }
    }

    /// Sends the walk of `names`, which are no more than go into one message, to a new fid, and then the opening of
    /// what is there; the answers are not waited for.
    pub(super) async fn walk_to_stream(&self, names: &[Name<'_>], how: How) -> Result<Handle, Errno> {
        if names.len() > Steps::MAX.into() {
            return Err(Errno::ENAMETOOLONG);
        }
        let (pieces, to) = (Pieces::of(names)?, self.fid.link.fid()?);
        let mut all = pieces.walks(&[self.fid.number(), to.number()]);
        all.push(plain(T::Lopen { fid: to.number(), flags: how.to_wire(false) }));
        self.fid.link.wire.say(&all).await?;
        Ok(handle(to, Qid { kind: FileKind::File, version: 0, path: 0 }, how))
    }

    async fn walk_ordered(&self, pieces: &Pieces, to: &Arc<Fid>, more: &[Message<'_>]) -> Result<Walked, Errno> {
        let link = &self.fid.link;
        // A fid for each piece: those after a walk that failed are poisoned by it, a fid that walks itself is not.
        let between = (1..pieces.0.len()).map(|_| link.fid()).collect::<Result<Vec<_>, _>>()?;
        let mut fids = vec![self.fid.number()];
        fids.extend(between.iter().chain([to]).map(|fid| fid.number()));
        let mut all = pieces.walks(&fids);
        let walks = all.len();
        all.extend_from_slice(more);
        let mut calls = link.calls(&all).await?;
        let (mut qids, mut stopped) = (Vec::new(), None);
        for i in 0..walks {
            match take_qids(&mut calls, &mut qids).await {
                Err(errno) if i == 0 => {
                    calls.rest().await;
                    return Err(errno);
                }
                Err(errno) => stopped = stopped.or(Some(errno)),
                Ok(()) => {}
            }
        }
        Ok(Walked { qids, stopped, calls: Some(calls) })
    }

    async fn walk_plain(&self, pieces: &Pieces, to: &Arc<Fid>, more: &[Message<'_>]) -> Result<Walked, Errno> {
        let link = &self.fid.link;
        let mut fids = vec![to.number(); pieces.0.len() + 1];
        fids[0] = self.fid.number();
        let mut qids = Vec::new();
        for (i, (walk, (_, count))) in pieces.walks(&fids).into_iter().zip(&pieces.0).enumerate() {
            let before = qids.len();
            let stopped = match link.calls(&[walk]).await {
                Ok(mut calls) => take_qids(&mut calls, &mut qids).await.err(),
                Err(errno) => Some(errno),
            };
            let whole = stopped.is_none() && qids.len() - before == usize::from(*count);
            match (i, whole) {
                (_, true) => to.settle(),
                // Flushed, it may have been made all the same.
                (0, false) if stopped != Some(Errno::EINTR) => to.failed(),
                _ => {}
            }
            match stopped {
                Some(errno) if i == 0 => return Err(errno),
                _ if !whole => return Ok(Walked { qids, stopped, calls: None }),
                _ => {}
            }
        }
        let calls = if more.is_empty() { None } else { Some(link.calls(more).await?) };
        Ok(Walked { qids, stopped: None, calls })
    }

    pub(super) async fn walk_now(&self, names: &[Name<'_>], want: Want) -> Result<Walk, Errno> {
        let to = self.fid.link.fid()?;
        let getattr = plain(T::Getattr { fid: to.number(), mask: STATS_ALL });
        let more = if want.attr { std::slice::from_ref(&getattr) } else { &[] };
        let Walked { qids, mut stopped, calls } = self.walk_and(names, &to, more).await?;
        let mut attr = None;
        if let Some(mut calls) = calls
            && want.attr
        {
            match take_attr(&mut calls).await {
                Ok(taken) => attr = Some(taken),
                // What the walk poisoned its fid with.
                Err(errno) => stopped = stopped.or(Some(errno)),
            }
        }
        if qids.len() < names.len() {
            let errno = match stopped {
                Some(errno) => errno,
                None => self.why_stopped(&to, qids.last()).await,
            };
            return if qids.is_empty() { Err(errno) } else { Ok(Walk { qids, end: Err(errno) }) };
        }
        let qid = *qids.last().ok_or(Errno::EPROTO)?;
        Ok(Walk { qids, end: Ok(Reached { node: Self::node(to, qid), attr, lease: None }) })
    }

    /// The errno of a walk that stopped after `last`. A poisoned fid answers it; a plain server does not say.
    async fn why_stopped(&self, to: &Fid, last: Option<&Qid>) -> Errno {
        if self.fid.link.ordered {
            let poison = self.fid.link.call(T::Getattr { fid: to.number(), mask: 0 }).await;
            return poison.and_then(|answer| answer.message().map(drop)).err().unwrap_or(Errno::EPROTO);
        }
        match last.unwrap_or(&self.qid).kind {
            FileKind::Dir => Errno::ENOENT,
            _ => Errno::ENOTDIR,
        }
    }
}

async fn take_qids(calls: &mut Calls, qids: &mut Vec<Qid>) -> Result<(), Errno> {
    match calls.next().await?.message()? {
        R::Walk { qids: walked } => {
            qids.extend(walked.iter());
            Ok(())
        }
        _ => Err(Errno::EPROTO),
    }
}
