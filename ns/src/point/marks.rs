//! Marks of what was removed from a merging union: `.wh.NAME` in a member that says `-w` hides NAME of the members
//! behind it. They are those of layered images, are never listed, and stay when a NAME is made again in that member.
//!
//! Called by the place that is changed or looked at, in its task.

use std::ops::ControlFlow;

use p9::{Entry, Errno, Handle, How, Name, NameBuf, New, NodeRef, Walk, Want, What};

use super::{Point, move_target};
use crate::absent::Absent;
use crate::table::Member;

const MARK: &[u8] = b".wh.";
/// Of renameat2(2).
const NO_REPLACE: u32 = rustix::fs::RenameFlags::NOREPLACE.bits();

/// Whether `name` is that of a mark.
pub(crate) fn is_mark(name: Name<'_>) -> bool {
    name.as_bytes().starts_with(MARK)
}

/// What the mark `name` hides.
pub(crate) fn hidden_by(name: Name<'_>) -> Option<NameBuf> {
    NameBuf::new(name.as_bytes().strip_prefix(MARK)?).ok()
}

/// The mark that hides `name`. Errors: `ENAMETOOLONG`.
fn mark(name: Name<'_>) -> Result<NameBuf, Errno> {
    NameBuf::new([MARK, name.as_bytes()].concat()).map_err(|_| Errno::ENAMETOOLONG)
}

/// Whether one of `members` has marks.
pub(crate) fn any(members: &[Member]) -> bool {
    members.iter().any(|member| member.mark)
}

/// Whether `member` hides `name` of those behind it. Errors: those of asking it, since what was removed must not come
/// back.
pub(crate) async fn hides(member: &Member, name: Name<'_>) -> Result<bool, Errno> {
    let Ok(mark) = mark(name) else { return Ok(false) };
    if !member.mark {
        return Ok(false);
    }
    has(&member.node, mark.as_name()).await
}

async fn has(dir: &NodeRef, name: Name<'_>) -> Result<bool, Errno> {
    match dir.walk(&[name], Want::default()).await.and_then(Walk::reached) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Those of `members` that `name` is looked for in.
pub(crate) async fn shown<'m>(members: &'m [Member], name: Name<'_>) -> Result<&'m [Member], Errno> {
    for (index, member) in members.iter().enumerate() {
        if hides(member, name).await? {
            return Ok(&members[..=index]);
        }
    }
    Ok(members)
}

/// The member with marks before `having`, in which a file `name` would hide the one that `having` has. Errors: that is
/// a directory.
pub(super) async fn hiding<'m>(
    members: &'m [Member], having: &Member, name: Name<'_>,
) -> Result<Option<&'m Member>, Errno> {
    let before = members.iter().take_while(|member| !std::ptr::eq(*member, having));
    let Some(top) = before.into_iter().find(|member| member.mark) else { return Ok(None) };
    let file = having.node.walk(&[name], Want::default()).await?.reached()?.node;
    if file.qid().kind == p9::FileKind::Dir { Err(Errno::EISDIR) } else { Ok(Some(top)) }
}

impl Point {
    /// Removes `name` from a union with marks: from the member that has it, if that is no further back than the one
    /// that has marks, and what is further back is marked.
    pub(super) async fn remove_marked(&self, members: &[Member], name: Name<'_>, dir: bool) -> Result<(), Errno> {
        let (at, top) = self.found(members, name).await?;
        let kind = self.walk_on(&[name], Want::default()).await?.reached()?.node;
        let is_dir = kind.qid().kind == p9::FileKind::Dir;
        match (dir, is_dir) {
            (true, false) => return Err(Errno::ENOTDIR),
            (false, true) => return Err(Errno::EISDIR),
            _ => {}
        }
        if is_dir && !some_names(&kind, 1, |_| true).await?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        if at <= top {
            if is_dir {
                clear(&members[at].node, name).await?;
            }
            members[at].node.remove(name, dir).await?;
        }
        if at >= top { self.mark_rest(members, top, name).await } else { Ok(()) }
    }

    /// Moves `name` out of a union with marks: only what the member with marks has is moved, and leaves one.
    pub(super) async fn rename_marked(
        &self, members: &[Member], name: Name<'_>, new_dir: &NodeRef, new_name: Name<'_>, flags: u32,
    ) -> Result<(), Errno> {
        let (at, top) = self.found(members, name).await?;
        let from = &members[at];
        let file = from.node.walk(&[name], Want::default()).await?.reached()?.node;
        // A directory may be one with others; whoever moves it copies it then.
        if at != top || file.qid().kind == p9::FileKind::Dir {
            return Err(Errno::EXDEV);
        }
        if is_mark(new_name) || flags & !NO_REPLACE != 0 {
            return Err(Errno::EINVAL);
        }
        if flags & NO_REPLACE != 0 && has(new_dir, new_name).await? {
            return Err(Errno::EEXIST);
        }
        let to = move_target(from, new_dir, new_name).await?;
        from.node.rename(name, &to, new_name, 0).await?;
        self.mark_rest(members, top, name).await
    }

    /// Which of `members` has `name`, and which has marks.
    async fn found(&self, members: &[Member], name: Name<'_>) -> Result<(usize, usize), Errno> {
        let shown = shown(members, name).await?;
        let having = self.having(name, shown).await?;
        let at = shown.iter().position(|member| std::ptr::eq(member, having)).ok_or(Errno::ENOENT)?;
        Ok((at, members.iter().position(|member| member.mark).ok_or(Errno::EIO)?))
    }

    /// Marks `name` in the member `top`, if one behind it has it.
    async fn mark_rest(&self, members: &[Member], top: usize, name: Name<'_>) -> Result<(), Errno> {
        for member in &members[top + 1..] {
            if !has(&member.node, name).await? {
                continue;
            }
            let (mark, what) = (mark(name)?, New { what: What::File(How::WRITE), mode: 0o600, owner: None });
            let made = members[top].node.create(mark.as_name(), what).await?;
            return match made.handle {
                Some(handle) => handle.close().await,
                None => Ok(()),
            };
        }
        Ok(())
    }
}

/// Removes the marks from the directory `name` of `parent`, of which nothing else is left.
async fn clear(parent: &NodeRef, name: Name<'_>) -> Result<(), Errno> {
    let dir = Absent::made(parent).await?.walk(&[name], Want::default()).await?.reached()?.node;
    for mark in some_names(&dir, usize::MAX, is_mark).await? {
        dir.remove(mark.as_name(), false).await?;
    }
    Ok(())
}

/// The names in `dir` that are `wanted`, at most `most`.
async fn some_names(
    dir: &NodeRef, most: usize, wanted: impl Fn(Name<'_>) -> bool + Send + Sync,
) -> Result<Vec<NameBuf>, Errno> {
    let Handle::Dir(dir) = dir.open(How::READ).await? else { return Err(Errno::ENOTDIR) };
    let mut found = Vec::new();
    let mut each = |entry: Entry<'_>| {
        if wanted(entry.name) {
            found.push(NameBuf::from(entry.name));
        }
        if found.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    dir.list(0, &mut each).await?;
    Ok(found)
}
