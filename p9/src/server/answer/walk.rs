//! Walking, and the places that fids are at.
//!
//! Called by the answer to a walk, and by those that need to know where a file is: its directory, its name. A tree
//! knows of neither; the server remembers the names by which a fid got where it is.

use std::sync::Arc;

use super::{Answer, Fields};
use crate::server::fids::{File, Link, Place, State};
use crate::server::legacy;
use crate::wire::{Step, Steps};
use crate::{Attr, Errno, FileKind, Name, NameBuf, NodeRef, Qid, Want};

/// Where a walk got.
pub(in crate::server) struct Walked {
    qids: Vec<Qid>,
    end: Result<(NodeRef, Place), Errno>,
    /// Of what it reached, where they were wanted and could be had in passing.
    attr: Option<Attr>,
}

impl Walked {
    /// Where `walk` got, of `names` from `place`; `None` if a link that it met is to be followed.
    pub(in crate::server) fn of(mut place: Place, names: &[Name<'_>], walk: crate::Walk) -> Option<Self> {
        if place.follows && walk.qids.iter().any(|qid| qid.kind == FileKind::Link) {
            return None;
        }
        let mut attr = None;
        let end = walk.end.map(|reached| {
            names.iter().for_each(|name| place.enter(*name));
            attr = reached.attr;
            (reached.node, place)
        });
        Some(Self { qids: walk.qids, end, attr })
    }

    /// Another fid for `node`, which is at `place`.
    pub(in crate::server) fn nowhere(node: NodeRef, place: Place) -> Self {
        Self { qids: Vec::new(), end: Ok((node, place)), attr: None }
    }

    pub(in crate::server) fn answer(self, made: &mut State) -> Answer {
        let stopped = match self.end {
            Ok((node, place)) => {
                *made = State::File(Box::new(File::new(node, place).with(self.attr)));
                None
            }
            Err(errno) => Some(errno),
        };
        Answer { reply: Fields::Walk(self.qids), stopped }
    }
}

/// Walks `steps` from `node`, which is at `place`.
pub(super) async fn walk(node: &NodeRef, place: &Place, steps: Steps<'_>, want: Want) -> Result<Walked, Errno> {
    let walked = match down(steps)? {
        Some(names) if names.is_empty() => Some(Walked::nowhere(node.clone(), place.clone())),
        Some(names) => Walked::of(place.clone(), &names, node.walk(&names, want).await?),
        None => None,
    };
    match walked {
        Some(walked) => Ok(walked),
        None => Box::pin(walk_each(node.clone(), place.clone(), steps)).await,
    }
}

/// The names of a walk that only leads down; `None` if it has a `..`.
pub(in crate::server) fn down<'a>(steps: Steps<'a>) -> Result<Option<Vec<Name<'a>>>, Errno> {
    let (mut names, mut up) = (Vec::with_capacity(steps.count()), false);
    for step in steps.iter() {
        match step {
            Step::Into(name) => names.push(name),
            Step::Up => up = true,
            Step::Bad(errno) => return Err(errno),
        }
    }
    Ok((!up).then_some(names))
}

/// A walk with `..` or with links to be followed: step by step, since a tree knows of no parent. At the attached root
/// `..` stays there.
async fn walk_each(mut node: NodeRef, mut place: Place, steps: Steps<'_>) -> Result<Walked, Errno> {
    let mut qids = Vec::with_capacity(steps.count());
    for step in steps.iter() {
        let reached = match step {
            Step::Into(name) => {
                place.enter(name);
                match node.walk(&[name], Want::default()).await.and_then(crate::Walk::reached) {
                    Ok(reached) if place.leads_on(&reached.node) => place.node().await,
                    reached => reached.map(|reached| reached.node),
                }
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
            Err(errno) => return Ok(Walked { qids, end: Err(errno), attr: None }),
        }
        qids.push(if place.follows { legacy::shown(node.qid()) } else { node.qid() });
    }
    Ok(Walked { qids, end: Ok((node, place)), attr: None })
}

impl Place {
    pub(in crate::server) fn enter(&mut self, name: Name<'_>) {
        self.path = Some(Arc::new(Link { name: name.into(), before: self.path.take() }));
    }

    pub(in crate::server) fn leave(&mut self) {
        self.path = self.path.take().and_then(|last| last.before.clone());
    }

    /// Whether `node`, found there, is a link that is to be followed.
    fn leads_on(&self, node: &NodeRef) -> bool {
        self.follows && node.qid().kind == FileKind::Link
    }

    /// The last of its names; `None` for what was attached to.
    pub(in crate::server) fn name(&self) -> Option<Name<'_>> {
        self.path.as_ref().map(|last| last.name.as_name())
    }

    /// What is there now.
    pub(in crate::server) async fn node(&self) -> Result<NodeRef, Errno> {
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
        let walked = self.root.walk(&names, Want::default()).await?;
        if self.follows && walked.qids.iter().any(|qid| qid.kind == FileKind::Link) {
            return legacy::follow(&self.root, &names).await;
        }
        Ok(walked.reached()?.node)
    }

    /// The directory that `node` is in, its name there, and what has that name: a link may have led to it. Errors:
    /// `EBUSY` for what was attached to; `ENOENT` if that name is another file's by now, or nobody's.
    pub(in crate::server) async fn entry(&self, node: &NodeRef) -> Result<(NodeRef, NameBuf, FileKind), Errno> {
        let last = self.path.as_ref().ok_or(Errno::EBUSY)?;
        let dir = Self { root: self.root.clone(), path: last.before.clone(), follows: self.follows }.node().await?;
        let there = dir.walk(&[last.name.as_name()], Want::default()).await?.reached()?.node;
        let same = self.leads_on(&there) || there.qid().path == node.qid().path;
        if same { Ok((dir, last.name.clone(), there.qid().kind)) } else { Err(Errno::ENOENT) }
    }
}
