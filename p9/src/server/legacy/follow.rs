//! Symbolic links, which 9P2000 does not have: its walks follow them.
//!
//! A link is what it leads to, within what was attached to. One that leads nowhere, out of it, or to a directory on the
//! way to itself is shown as a file, which can be removed: so a client that goes through a whole tree comes to an end.
//! `..` undoes the last name of a walk, as in Plan 9, while within a link it is the parent, as in Linux.

use std::collections::VecDeque;

use crate::{Errno, FileKind, Name, NodeRef, Qid, Want};

/// Links that lead to links, at most: as Linux has it.
const LINKS: usize = 40;
/// Names in a path that has links in it, at most.
const NAMES: usize = 2048;

/// What `names` lead to from `root`, links followed. Errors: `ENAMETOOLONG` for a path that is too long for that.
pub(in crate::server) async fn follow(root: &NodeRef, names: &[Name<'_>]) -> Result<NodeRef, Errno> {
    if names.len() > NAMES {
        return Err(Errno::ENAMETOOLONG);
    }
    // The directories that hold each other down to where the names lead, and all that the names lead to on the way.
    let (mut real, mut seen) = (vec![root.clone()], vec![root.qid().path]);
    for name in names {
        let node = step(&real, *name).await?;
        let leads = if node.qid().kind == FileKind::Link { target(&real, &node).await } else { None };
        match leads {
            Some(there) if !there.last().is_none_or(|node| seen.contains(&node.qid().path)) => real = there,
            _ => real.push(node),
        }
        seen.extend(real.last().map(|node| node.qid().path));
    }
    real.pop().ok_or(Errno::EIO)
}

/// The qid that a client is shown: a link that is not followed is a file.
pub(in crate::server) fn shown(qid: Qid) -> Qid {
    let kind = if qid.kind == FileKind::Link { FileKind::File } else { qid.kind };
    Qid { kind, ..qid }
}

async fn step(real: &[NodeRef], name: Name<'_>) -> Result<NodeRef, Errno> {
    let dir = real.last().ok_or(Errno::EIO)?;
    Ok(dir.walk(&[name], Want::default()).await?.reached()?.node)
}

/// Where `link`, in the last of the directories `real`, leads; `None` for nowhere.
async fn target(real: &[NodeRef], link: &NodeRef) -> Option<Vec<NodeRef>> {
    let mut at = real.to_vec();
    let (mut left, mut links) = (VecDeque::new(), 0);
    let mut link = Some(link.clone());
    loop {
        if let Some(link) = link.take() {
            links += 1;
            let target = link.read_link().await.ok()?;
            if links > LINKS || target.is_empty() {
                return None;
            }
            if target.starts_with(b"/") {
                at.truncate(1);
            }
            for part in target.split(|byte| *byte == b'/').rev() {
                left.push_front(part.to_vec());
            }
        }
        let Some(part) = left.pop_front() else { return Some(at) };
        match &part[..] {
            b"" | b"." => {}
            b".." if at.len() > 1 => drop(at.pop()),
            b".." => return None,
            name => {
                let node = step(&at, Name::new(name).ok()?).await.ok()?;
                if node.qid().kind == FileKind::Link {
                    link = Some(node);
                } else if at.len() > NAMES {
                    return None;
                } else {
                    at.push(node);
                }
            }
        }
    }
}
