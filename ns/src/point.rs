//! A place of the namespace that the table knows: a mount point, or a directory on the way to one.
//!
//! It holds its path, not what is mounted there, so that it shows changes; and what was found at that path in the trees
//! above. A walk goes on from place to place, and leaves the table behind ([`Under`]) where nothing further is mounted:
//! from there on it is one request to one tree. Through a mount point that hides what is beneath, it asks nobody.

use std::any::Any;
use std::sync::Arc;

use p9::layer::Layer;
use p9::{Attr, Created, Errno, FileKind, Handle, How, Name, New, NodeRef, Opened, Qid, Reached, Walk, Want, What};

use crate::absent::Absent;
use crate::lazy::Lazy;
use crate::list::Listing;
use crate::table::{Member, Place};
use crate::under::{At, Under, keyed, synthetic};

pub(crate) mod marks;
mod node;

/// A place.
pub(crate) struct Point {
    at: At,
    /// What the trees mounted further up have here.
    beneath: Vec<Member>,
}

/// How far the table knows a path.
struct Known<'a> {
    qids: Vec<Qid>,
    /// The last place that it knows; `None`: where the walk began.
    last: Option<Point>,
    rest: &'a [Name<'a>],
}

/// The trees that have the file `node`, and what it is in them.
pub(crate) fn members_of(node: &NodeRef) -> Vec<Member> {
    match (Under::of(node), Point::of(node)) {
        (Some(under), _) => vec![Member::beneath(under.layer.id, under.below.clone())],
        (_, Some(point)) => point.members(),
        _ => Vec::new(),
    }
}

/// The file `name` of the first of `members` that has it; one that cannot be asked has nothing. Errors: `EINTR`.
pub(crate) async fn first_with(members: &[Member], name: Name<'_>) -> Result<Option<Member>, Errno> {
    for member in members {
        match member.node.walk(&[name], Want::default()).await.and_then(Walk::reached) {
            Ok(reached) => return Ok(Some(Member::beneath(member.id, reached.node))),
            Err(Errno::EINTR) => return Err(Errno::EINTR),
            Err(_) => {}
        }
    }
    Ok(None)
}

/// What `name` is in `members`: the file of the first that has it, or, where that is a directory and its member merges,
/// those of all that do. Errors: `EINTR`.
async fn all_with(members: &[Member], name: Name<'_>) -> Result<Vec<Member>, Errno> {
    let (mut all, mut lacking): (Vec<Member>, Vec<(usize, &Member)>) = Default::default();
    for member in members {
        if all.is_empty() || member.merge {
            match first_with(std::slice::from_ref(member), name).await? {
                None => lacking.extend(member.merge.then_some((all.len(), member))),
                Some(mut found) if member.merge && found.node.qid().kind == FileKind::Dir => {
                    (found.create, found.merge, found.mark) = (member.create, true, member.mark);
                    all.push(found);
                }
                Some(found) if all.is_empty() => return Ok(vec![found]),
                // A file of that name hides what is behind it, as it is hidden itself.
                Some(_) => break,
            }
            if marks::hides(member, name).await? {
                break;
            }
        }
    }
    // New files and marks go into the members that take them, also where these do not have the directory yet.
    let Some(like) = all.first().map(|first| first.node.clone()) else { return Ok(all) };
    let mut takes = all.iter().any(|member| member.create);
    let mut wanted: Vec<(usize, Member)> = Vec::new();
    for (at, member) in lacking {
        let create = member.create && !takes;
        if create || member.mark {
            takes |= create;
            let node = Absent::node(member.node.clone(), name, like.clone());
            wanted.push((at, Member { node, create, ..member.clone() }));
        }
    }
    wanted.into_iter().rev().for_each(|(at, member)| all.insert(at, member));
    Ok(all)
}

/// The directory that the file `new_name` of `new_dir` is in, or is to be in, when it is moved there out of `from`.
pub(crate) async fn move_target(from: &Member, new_dir: &NodeRef, new_name: Name<'_>) -> Result<NodeRef, Errno> {
    let dir = target(from, new_dir, new_name).await?;
    Ok(Lazy::real(&Absent::made(&dir).await?))
}

async fn target(from: &Member, new_dir: &NodeRef, new_name: Name<'_>) -> Result<NodeRef, Errno> {
    let point = match Under::of(new_dir) {
        Some(under) => match under.layer.point(&under.below) {
            Some(point) => point,
            None if under.layer.id == from.id => return Ok(under.below.clone()),
            None => return Err(Errno::EXDEV),
        },
        None => Point::of(new_dir).ok_or(Errno::EXDEV)?.clone(),
    };
    let all = point.members();
    let members = marks::shown(&all, new_name).await?;
    let in_tree = |member: &&Member| member.id == from.id;
    if let ([only], None, [_]) = (members, point.place().child(new_name), &all[..])
        && only.create
    {
        return if in_tree(&only) { Ok(only.node.clone()) } else { Err(Errno::EXDEV) };
    }
    let target = match point.having(new_name, members).await {
        // What it replaces may be in another tree: then it cannot be done in one step, unless it is hidden by that.
        Ok(having) => {
            let hiding = marks::hiding(members, having, new_name).await?;
            hiding.or(Some(having)).filter(in_tree)
        }
        Err(Errno::ENOENT) => {
            let same = |member: &&Member| member.node.qid() == from.node.qid();
            let open = members.iter().filter(in_tree).find(|member| same(member) || member.create);
            let stays = members.iter().filter(in_tree).find(same);
            match stays.or(open) {
                None if members.is_empty() => return Err(Errno::EROFS),
                None if members.iter().any(|member| in_tree(&member)) => return Err(Errno::EACCES),
                found => found,
            }
        }
        Err(errno) => return Err(errno),
    };
    target.map(|member| member.node.clone()).ok_or(Errno::EXDEV)
}

/// A walk that came to `qid` and went on with `walk`.
fn onward(qid: Qid, walk: Result<Walk, Errno>) -> Walk {
    match walk {
        Ok(walk) => Walk { qids: [vec![qid], walk.qids].concat(), end: walk.end },
        Err(errno) => Walk { qids: vec![qid], end: Err(errno) },
    }
}

impl Clone for Point {
    fn clone(&self) -> Self {
        Self { at: self.at.clone(), beneath: self.beneath.clone() }
    }
}

impl Point {
    /// The place `at`, where the trees further up have `beneath`.
    pub(crate) fn new(at: At, beneath: Vec<Member>) -> Self {
        Self { at, beneath }
    }

    /// The place that `node` stands for, if it is one.
    pub(crate) fn of(node: &NodeRef) -> Option<&Self> {
        let node: &dyn Any = &**node;
        node.downcast_ref()
    }

    /// What lies over the files that `member` has here.
    fn over(&self, member: &Member) -> Under {
        Under { id: member.id, at: Some(self.at.clone()) }
    }

    /// The place in the table; an empty one if it was unmounted since.
    pub(crate) fn place(&self) -> Arc<Place> {
        self.at.place().unwrap_or_default()
    }

    /// What is here: what is mounted, else what the trees further up have.
    pub(crate) fn members(&self) -> Vec<Member> {
        self.members_in(&self.place())
    }

    fn members_in(&self, place: &Place) -> Vec<Member> {
        if place.members.is_empty() { self.beneath.clone() } else { place.members.clone() }
    }

    fn first(&self) -> Option<Member> {
        self.members().into_iter().find(|member| !Absent::is(&member.node))
    }

    /// The qid of what is here; of a directory that no tree has, a hash of its path.
    pub(crate) fn qid_here(&self) -> Qid {
        let made = || Qid { kind: FileKind::Dir, version: 0, path: keyed(self.at.path.names()) };
        self.first().map_or_else(made, |first| first.id.mix(first.node.qid()))
    }

    /// The place `name` below: `below` in the table. What the trees here have under that name is asked for only if it
    /// shows. Errors: `EINTR`; what cannot be asked is as if it were not there, or it would take the way to what is
    /// mounted below with it.
    async fn step(&self, name: Name<'_>, below: &Place, members: &[Member]) -> Result<Self, Errno> {
        let at = self.at.enter(&[name]);
        if !below.members.is_empty() {
            return Ok(Self::new(at, Vec::new()));
        }
        Ok(Self::new(at, all_with(members, name).await?))
    }

    /// Follows `names` as far as the table knows them.
    async fn known<'a>(&self, names: &'a [Name<'a>]) -> Result<Known<'a>, (Vec<Qid>, Errno)> {
        let mut known = Known { qids: Vec::new(), last: None, rest: names };
        while let Some((&name, rest)) = known.rest.split_first() {
            let here = known.last.as_ref().unwrap_or(self);
            let place = here.place();
            let Some(below) = place.child(name) else { break };
            match here.step(name, below, &here.members_in(&place)).await {
                Ok(next) => {
                    known.qids.push(next.qid_here());
                    known.last = Some(next);
                }
                Err(errno) => return Err((known.qids, errno)),
            }
            known.rest = rest;
        }
        Ok(known)
    }

    pub(crate) async fn walk_on(&self, names: &[Name<'_>], want: Want) -> Result<Walk, Errno> {
        let Known { mut qids, last, rest } = match self.known(names).await {
            Ok(known) => known,
            Err((qids, errno)) if qids.is_empty() => return Err(errno),
            Err((qids, errno)) => return Ok(Walk { qids, end: Err(errno) }),
        };
        let walked = match last {
            Some(last) if rest.is_empty() => {
                let attr = if want.attr { last.attr_here().await.ok() } else { None };
                return Ok(Walk { qids, end: Ok(Reached { node: Arc::new(last), attr, lease: None }) });
            }
            Some(last) => last.beyond(rest, want).await,
            None => return self.beyond(rest, want).await,
        };
        match walked {
            Ok(walk) => {
                qids.extend(walk.qids);
                Ok(Walk { qids, end: walk.end })
            }
            Err(errno) => Ok(Walk { qids, end: Err(errno) }),
        }
    }

    /// Walks names of which the table knows nothing: the first tree that has the first of them is the one that counts,
    /// whatever becomes of the rest.
    async fn beyond(&self, names: &[Name<'_>], want: Want) -> Result<Walk, Errno> {
        let mut missing = Errno::ENOENT;
        let members = self.members();
        if let Some((first, rest)) = names.split_first()
            && members.iter().any(|member| member.merge)
        {
            if marks::any(&members) && marks::is_mark(*first) {
                return Err(Errno::ENOENT);
            }
            return self.merged(&members, *first, rest, want).await;
        }
        for member in members {
            match member.node.walk(names, want).await {
                Ok(walk) => return Ok(self.over(&member).walked(names, walk)),
                Err(Errno::EINTR) => return Err(Errno::EINTR),
                Err(Errno::ENOENT) => {}
                // A member that is dead hides nothing that others have.
                Err(errno) => missing = errno,
            }
        }
        Err(missing)
    }

    /// The same where members merge: what is one directory of several is a place, further down, too.
    async fn merged(&self, members: &[Member], first: Name<'_>, rest: &[Name<'_>], want: Want) -> Result<Walk, Errno> {
        let all = all_with(members, first).await?;
        let Some(one) = all.first() else {
            // A member that cannot be asked may have it.
            let members = marks::shown(members, first).await?;
            return Err(self.having(first, members).await.err().unwrap_or(Errno::ENOENT));
        };
        if !one.merge {
            let under = self.over(one).enter(&[first]);
            let (qid, node) = (under.qid(one.node.qid()), under.over(one.node.clone()));
            if rest.is_empty() {
                let attr = node.attr_if(want.attr).await?;
                return Ok(Walk { qids: vec![qid], end: Ok(Reached { node, attr, lease: None }) });
            }
            return Ok(onward(qid, node.walk(rest, want).await));
        }
        let point = Self::new(self.at.enter(&[first]), all);
        let qid = point.qid_here();
        if rest.is_empty() {
            let attr = if want.attr { Some(point.attr_here().await?) } else { None };
            return Ok(Walk { qids: vec![qid], end: Ok(Reached { node: Arc::new(point), attr, lease: None }) });
        }
        Ok(onward(qid, Box::pin(point.walk_on(rest, want)).await))
    }

    pub(crate) async fn open_on(&self, names: &[Name<'_>], how: How, want: Want) -> Result<Opened, Errno> {
        let Known { last, rest, .. } = self.known(names).await.map_err(|(_, errno)| errno)?;
        let here = last.as_ref().unwrap_or(self);
        let opened = |node, handle, attr| Opened { node, attr, handle, first: None, lease: None };
        if rest.is_empty() {
            let handle = here.open_here(how).await?;
            let attr = if want.attr { here.attr_here().await.ok() } else { None };
            return Ok(opened(last.map(|last| Arc::new(last) as NodeRef), handle, attr));
        }
        match &here.members()[..] {
            // One tree and nothing mounted further down: one request.
            [only] if !only.merge => {
                let opened = only.node.open_at(rest, how, want).await?;
                Ok(here.over(only).opened(rest, opened))
            }
            _ => {
                let Reached { node, .. } = here.beyond(rest, Want::default()).await?.reached()?;
                let opened = node.open_at(&[], how, want).await?;
                Ok(Opened { node: Some(node), ..opened })
            }
        }
    }

    pub(crate) async fn open_here(&self, how: How) -> Result<Handle, Errno> {
        let place = self.place();
        let members = self.members_in(&place);
        match members.first() {
            Some(first) if first.node.qid().kind != FileKind::Dir => return first.node.open(how).await,
            _ if how.changes() => return Err(Errno::EISDIR),
            _ => {}
        }
        let below = |name: Name<'_>| Self::new(self.at.enter(&[name]), Vec::new()).qid_here();
        Ok(Handle::Dir(Arc::new(Listing::open(&place, members, how, &below).await?)))
    }

    async fn attr_here(&self) -> Result<Attr, Errno> {
        let place = self.place();
        let members = self.members_in(&place);
        let here = members.iter().find(|member| !Absent::is(&member.node));
        let Some(first) = here else { return Ok(synthetic(self.qid_here())) };
        let attr = first.id.attr(first.node.attr().await?);
        let more = members.len() > 1 || !place.below.is_empty();
        // Its links are not those of one directory: 1 says that their number tells nothing.
        Ok(if more { Attr { nlink: 1, ..attr } } else { attr })
    }

    /// The member that has `name`. Errors: `ENOENT`; what the others answered, if none has it; `EBUSY` for what is
    /// mounted.
    async fn having<'m>(&self, name: Name<'_>, members: &'m [Member]) -> Result<&'m Member, Errno> {
        if self.place().child(name).is_some() {
            return Err(Errno::EBUSY);
        }
        let mut missing = Errno::ENOENT;
        for member in members {
            match member.node.walk(&[name], Want::default()).await {
                Ok(_) => return Ok(member),
                Err(Errno::EINTR) => return Err(Errno::EINTR),
                Err(Errno::ENOENT) => {}
                Err(errno) => missing = errno,
            }
        }
        Err(missing)
    }

    /// The member out of which `name` is removed or moved; a single one is not asked first.
    pub(crate) async fn holder(&self, name: Name<'_>) -> Result<Member, Errno> {
        let members = self.members();
        match &members[..] {
            [] => Err(if self.place().child(name).is_some() { Errno::EBUSY } else { Errno::ENOENT }),
            [only] if self.place().child(name).is_none() => Ok(only.clone()),
            _ => self.having(name, &members).await.cloned(),
        }
    }

    pub(crate) async fn create_in(&self, name: Name<'_>, what: New<'_>) -> Result<Created, Errno> {
        let place = self.place();
        if place.child(name).is_some() {
            return self.open_mounted(name, what).await;
        }
        let all = self.members_in(&place);
        if marks::any(&all) && marks::is_mark(name) {
            return Err(Errno::EINVAL);
        }
        let members = marks::shown(&all, name).await?;
        let made = |member: &Member, created| self.over(member).created(name, created);
        let open = members.iter().position(|member| member.create);
        if let ([only], Some(_), [_]) = (members, open, &all[..]) {
            return Ok(made(only, only.node.create(name, what).await?));
        }
        for (index, member) in members.iter().enumerate() {
            match member.node.walk(&[name], Want::default()).await {
                // An existing file is opened where it is, and any other thing is in the way.
                Ok(_) => return Ok(made(member, member.node.create(name, what).await?)),
                Err(Errno::ENOENT) => {}
                // What cannot be asked may hold what would hide the new file; what it would hide does not matter.
                Err(errno) if errno == Errno::EINTR || open.is_none_or(|open| index < open) => return Err(errno),
                Err(_) => {}
            }
        }
        match open {
            Some(open) => Ok(made(&members[open], members[open].node.create(name, what).await?)),
            None if all.is_empty() => Err(Errno::EROFS),
            // "Mounted directory forbids creation."
            None => Err(Errno::EACCES),
        }
    }

    /// Opens the mounted file `name`, if that is what `what` allows.
    async fn open_mounted(&self, name: Name<'_>, what: New<'_>) -> Result<Created, Errno> {
        let What::File(how) = what.what else { return Err(Errno::EEXIST) };
        if how.excl {
            return Err(Errno::EEXIST);
        }
        let Opened { node, attr, handle, .. } = self.open_on(&[name], how, Want::ATTR).await?;
        Ok(Created { node: node.ok_or(Errno::EIO)?, attr, handle: Some(handle), lease: None })
    }

    pub(crate) async fn remove_in(&self, name: Name<'_>, dir: bool) -> Result<(), Errno> {
        let members = self.members();
        if marks::any(&members) {
            return self.remove_marked(&members, name, dir).await;
        }
        self.holder(name).await?.node.remove(name, dir).await
    }

    pub(crate) async fn link_in(&self, linked: &Member, name: Name<'_>) -> Result<(), Errno> {
        let members = self.members();
        if marks::any(&members) && marks::is_mark(name) {
            return Err(Errno::EINVAL);
        }
        match self.having(name, marks::shown(&members, name).await?).await {
            Ok(_) | Err(Errno::EBUSY) => return Err(Errno::EEXIST),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
        let in_tree = |member: &&Member| member.id == linked.id;
        match members.iter().filter(in_tree).find(|member| member.create) {
            Some(member) => member.node.link(&linked.node, name).await,
            None if members.iter().any(|member| in_tree(&member)) => Err(Errno::EACCES),
            None => Err(Errno::EXDEV),
        }
    }
}
