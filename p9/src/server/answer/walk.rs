//! Walking, and the places that fids are at.
//!
//! Called by the answer to a walk, and by those that need to know where a file is: its directory, its name. A tree knows
//! of neither; the server remembers the names by which a fid got where it is.

use std::sync::Arc;

use super::{Answer, Fields};
use crate::server::fids::{File, Link, Place, State};
use crate::server::legacy;
use crate::wire::{Step, Steps};
use crate::{Errno, FileKind, Name, NameBuf, NodeRef, Qid, Want};

/// Where a walk got.
pub(super) struct Walked {
    qids: Vec<Qid>,
    end: Result<(NodeRef, Place), Errno>,
}

impl Walked {
    pub(super) fn answer(self, made: &mut State) -> Answer {
        let stopped = match self.end {
            Ok((node, place)) => {
                *made = State::File(Box::new(File::new(node, place)));
                None
            }
            Err(errno) => Some(errno),
        };
        Answer { reply: Fields::Walk(self.qids), stopped }
    }
}

/// Walks `steps` from `node`, which is at `place`.
pub(super) async fn walk(node: &NodeRef, place: &Place, steps: Steps<'_>) -> Result<Walked, Errno> {
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
        return Box::pin(walk_each(node.clone(), place, steps)).await;
    }
    let walked = node.walk(&names, Want::default()).await?;
    if place.follows && walked.qids.iter().any(|qid| qid.kind == FileKind::Link) {
        return Box::pin(walk_each(node.clone(), place, steps)).await;
    }
    let end = walked.end.map(|reached| {
        names.iter().for_each(|name| place.enter(*name));
        (reached.node, place)
    });
    Ok(Walked { qids: walked.qids, end })
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
            Err(errno) => return Ok(Walked { qids, end: Err(errno) }),
        }
        qids.push(if place.follows { legacy::shown(node.qid()) } else { node.qid() });
    }
    Ok(Walked { qids, end: Ok((node, place)) })
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

    /// The directory that `node` is in, its name there, and what has that name: a link may have led to it. Errors: `EBUSY` for what was attached to; `ENOENT` if that
    /// name is another file's by now, or nobody's.
    pub(in crate::server) async fn entry(&self, node: &NodeRef) -> Result<(NodeRef, NameBuf, FileKind), Errno> {
        let last = self.path.as_ref().ok_or(Errno::EBUSY)?;
        let dir = Self { root: self.root.clone(), path: last.before.clone(), follows: self.follows }.node().await?;
        let there = dir.walk(&[last.name.as_name()], Want::default()).await?.reached()?.node;
        let same = self.leads_on(&there) || there.qid().path == node.qid().path;
        if same { Ok((dir, last.name.clone(), there.qid().kind)) } else { Err(Errno::ENOENT) }
    }
}
