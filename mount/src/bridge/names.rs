//! Names: looking them up, making, moving and removing them.
//!
//! Called through `fs`, in the request's own task. The kernel holds the directory's lock meanwhile, so each of these is
//! bounded. Modes arrive with the caller's umask taken off: the kernel does it, since `FUSE_DONT_MASK` is not asked
//! for.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use fuser::{FileAttr, INodeNo};
use p9::tree::LeaseKind;
use p9::{Attr, Created, Errno, How, Name, New, NodeRef, Walk, Want, What};

use super::Bridge;
use crate::attr::{missing, to_fuse, type_bits};
use crate::foresight::Found;
use crate::open::Open;
use crate::table::Inode;

/// To whom what is made is given: user and group; `None` for whoever mounted.
pub(super) type Owner = Option<(u32, u32)>;

/// What a change that may have been done, and may not be done twice, ends with.
const EIO: Option<Errno> = Some(Errno::EIO);

impl Bridge {
    /// The file called `name` in `parent`, or that there is none; and how long the kernel may keep that.
    pub(super) async fn lookup(
        &self, parent: INodeNo, name: &[u8], caller: u32,
    ) -> Result<(FileAttr, Duration), Errno> {
        let (dir, name) = (self.inode(parent)?, Name::new(name)?);
        dir.look_in();
        if let Some(inode) = self.table.child(&dir, name) {
            self.settle(&inode).await;
        }
        // What it leads to is kept at hand then, wherever it is moved to.
        let anew = self.looks_again(caller);
        if let Some(inode) = self.table.child(&dir, name).filter(|_| !anew)
            && let Some(attr) = self.foresight.own_at(dir.id, name, inode.id)
        {
            let inode = self.table.enter(&dir, name, attr.qid, None);
            inode.learn(&attr);
            return Ok((to_fuse(&attr, inode.id), self.options.ttl));
        }
        if let Some(place) = dir.place()
            && let Some(above) = self.table.at_hand(&place.dir)
        {
            self.foresight.enter(&dir, (place.dir.id, &above), place.name.as_name()).await;
        }
        let known = self.foresight.look(&dir, self.table.at_hand(&dir).as_ref(), name).await;
        match known.filter(|found| !anew && !self.is_old(&dir, name, found)) {
            Some(Found::Looked(node, attr, ttl)) => return Ok((self.entry(&dir, name, node, &attr).1, ttl)),
            Some(Found::Opened(file)) => {
                let inode = self.table.enter(&dir, name, file.attr.qid, None);
                if file.is_known_as(&inode) && file.is_still(dir.qid_path, name) {
                    inode.learn(&file.attr);
                    return Ok((to_fuse(&file.attr, inode.id), self.options.ttl));
                }
                self.table.forget(inode.id, 1);
            }
            Some(Found::Listed(listed, attr, ttl)) => {
                let inode = self.table.enter(&dir, name, attr.qid, None);
                listed.tells(name, inode.id);
                // Asked again, now that whoever changes it knows that the kernel was told.
                if self.foresight.attr(dir.id, name).is_some() {
                    inode.learn(&attr);
                    return Ok((to_fuse(&attr, inode.id), ttl));
                }
                self.table.forget(inode.id, 1);
            }
            Some(Found::Ahead(listed, node, attr, lease)) => {
                let (inode, shown) = self.entry(&dir, name, node, &attr);
                lease.is_of(inode.id);
                lease.tells_own();
                listed.tells(name, inode.id);
                // Likewise.
                if lease.holds(LeaseKind::Read) && listed.still_leads(name, attr.qid) {
                    return Ok((shown, self.options.ttl));
                }
                self.table.forget(inode.id, 1);
            }
            // Asked each time, which is cheap: the kernel would have to be told of a name that somebody makes.
            Some(Found::Missing) => return Ok((missing(), Duration::ZERO)),
            None => {}
        }
        let found = self.look_at(&dir, name).await;
        let found = found.map(|(node, attr)| self.entry(&dir, name, node, &attr));
        if anew {
            self.looked(caller, found.as_ref().ok().map(|(inode, _)| inode.id));
        }
        match found {
            Ok((_, attr)) => Ok((attr, self.options.ttl)),
            // Whoever makes it could not tell the kernel.
            Err(Errno::ENOENT) => Ok((missing(), Duration::ZERO)),
            Err(errno) => Err(errno),
        }
    }

    /// What `name` in `dir` leads to, which is asked about. Where that has to be waited for, other names of the directory
    /// may soon be, too.
    async fn look_at(&self, dir: &Arc<Inode>, name: Name<'_>) -> Result<(NodeRef, Attr), Errno> {
        let at_hand = self.table.at_hand(dir);
        let mut look = pin!(async {
            ask!(self, dir, |node| {
                let reached = node.walk(&[name], Want::ATTR).await.and_then(Walk::reached)?;
                let attr = attr_of(&reached.node, reached.attr).await?;
                Ok((reached.node, attr))
            })
        });
        if let Poll::Ready(found) = poll_fn(|cx| Poll::Ready(look.as_mut().poll(cx))).await {
            return found;
        }
        if let Some(node) = &at_hand {
            self.foresight.count(dir, node);
        }
        look.await
    }

    /// Whether more is known of `name` in `dir` than what was `found`, which may have been asked for a while ago.
    fn is_old(&self, dir: &Arc<Inode>, name: Name<'_>, found: &Found) -> bool {
        let attr = match found {
            Found::Looked(_, attr, _) => attr,
            Found::Listed(_, attr, _) | Found::Ahead(_, _, attr, _) => &**attr,
            Found::Opened(_) | Found::Missing => return false,
        };
        self.table.child(dir, name).is_some_and(|inode| inode.is(attr.qid) && inode.knows_better(attr))
    }

    /// Takes note of what the kernel is about to be told.
    pub(super) fn entry(&self, dir: &Arc<Inode>, name: Name<'_>, node: NodeRef, attr: &Attr) -> (Arc<Inode>, FileAttr) {
        let inode = self.table.enter(dir, name, node.qid(), Some(node));
        inode.learn(attr);
        let attr = to_fuse(attr, inode.id);
        (inode, attr)
    }

    /// Makes a directory, a symbolic link or a special file.
    pub(super) async fn make(
        &self, parent: INodeNo, name: &[u8], what: What<'_>, mode: u32, owner: Owner,
    ) -> Result<FileAttr, Errno> {
        let (dir, name) = (self.inode(parent)?, Name::new(name)?);
        let wanted = match what {
            What::Dir => libc::S_IFDIR,
            What::Link(_) => libc::S_IFLNK,
            What::File(_) => libc::S_IFREG,
            What::Device { kind, .. } => kind,
        };
        let created = self.create_in(&dir, name, New { what, mode: mode & 0o7777, owner }, false, EIO).await?;
        if let Some(handle) = &created.handle {
            handle.close().await?;
        }
        let attr = attr_of(&created.node, created.attr).await?;
        // Another may have moved something else there meanwhile: the kernel takes no other kind for what it asked for.
        if type_bits(&attr) != wanted {
            return Err(Errno::ENOENT);
        }
        Ok(self.entry(&dir, name, created.node, &attr).1)
    }

    /// Makes `name` in `dir`; ends with `unproven` where it may have been made, and nobody knows.
    async fn create_in(
        &self, dir: &Arc<Inode>, name: Name<'_>, new: New<'_>, leased: bool, unproven: Option<Errno>,
    ) -> Result<Created, Errno> {
        let _changing = self.changing_name(dir, name);
        change!(self, unproven, [dir], |nodes| match leased {
            true => nodes[0].create_leased(name, new).await,
            false => nodes[0].create(name, new).await,
        })
    }

    /// Makes a file and opens it, in one step. The kernel asks for this only where it knows of no file: where it checks
    /// the rights, one that is there all the same is not opened behind its back.
    pub(super) async fn create(
        &self, parent: INodeNo, name: &[u8], mode: u32, flags: i32, owner: Owner,
    ) -> Result<(FileAttr, u64, fuser::FopenFlags), Errno> {
        let (dir, name) = (self.inode(parent)?, Name::new(name)?);
        let asked = How::from_flags(flags as u32)?;
        // It is certain to be new, then.
        let how = How { excl: true, ..asked };
        let new = |how| New { what: What::File(how), mode: mode & 0o7777, owner };
        let leased = self.holds(how);
        // What may have been made by a server that has gone is there, as if another had made it.
        let unproven = if asked.excl { EIO } else { Some(Errno::EEXIST) };
        let (created, made) = match self.create_in(&dir, name, new(how), leased, unproven).await {
            // The kernel then looks again, and opens what it finds by its own rules.
            Err(Errno::EEXIST) if !asked.excl && owner.is_some() => return Err(Errno::ESTALE),
            Err(Errno::EEXIST) if !asked.excl => (self.create_in(&dir, name, new(asked), false, None).await?, false),
            created => (created?, true),
        };
        let Created { node, attr, handle, lease } = created;
        let (handle, attr) = (handle.ok_or(Errno::EIO)?, attr_of(&node, attr).await?);
        // What is at hand would keep the file open.
        let at_hand = Some(node.clone()).filter(|_| !(made && leased));
        let inode = self.table.enter(&dir, name, node.qid(), at_hand);
        inode.learn(&attr);
        if made {
            inode.is_made(self.changes.count());
        } else if how.truncate {
            drop(self.changing(&inode));
        }
        let handle = self.lasting(&inode, Some(&node), handle, how);
        let made = Some(node.clone()).filter(|_| made);
        let (shown, about) = (to_fuse(&attr, inode.id), (inode.clone(), attr, handle.clone(), made));
        let away = self.keeps_away(&inode, how.changes()).await;
        let (mut open, flags) = Open::new(inode, Some(node), handle, how, &attr, None, None);
        open.away = away;
        open.hold = self.hold(about, lease.filter(|_| !open.direct));
        Ok((shown, self.opens.add(open), flags))
    }

    /// Makes `name` in `parent` another name of `target`; gives what the kernel is told of it, and how long it may keep
    /// that.
    pub(super) async fn link(
        &self, target: INodeNo, parent: INodeNo, name: &[u8],
    ) -> Result<(FileAttr, Duration), Errno> {
        let (target, dir, name) = (self.inode(target)?, self.inode(parent)?, Name::new(name)?);
        self.settle(&target).await;
        {
            let _changing = (self.changing(&target), self.changing_name(&dir, name));
            change!(self, EIO, [&dir, &target], |nodes| nodes[0].link(&nodes[1], name).await)?;
        }
        // Asked for anew: the number of links has changed, and the node should be the one at this place, unless another
        // has moved it on meanwhile.
        let reached = ask!(self, &dir, |node| node.walk(&[name], Want::ATTR).await.and_then(Walk::reached));
        let (node, attr, ttl) = match reached {
            Ok(reached) if target.is(reached.node.qid()) => (reached.node, reached.attr, self.options.ttl),
            Ok(_) | Err(Errno::ENOENT) => (self.table.node(&target).await?.0, None, Duration::ZERO),
            Err(errno) => return Err(errno),
        };
        let gone = |errno| if errno == Errno::ESTALE { Errno::ENOENT } else { errno };
        let attr = attr_of(&node, attr).await.map_err(gone)?;
        Ok((self.entry(&dir, name, node, &attr).1, ttl))
    }

    /// Removes `name` from `parent`: an empty directory, if `directory`.
    pub(super) async fn remove(self: &Arc<Self>, parent: INodeNo, name: &[u8], directory: bool) -> Result<(), Errno> {
        let (dir, name) = (self.inode(parent)?, Name::new(name)?);
        let target = self.table.child(&dir, name);
        self.open_nameless(target.as_ref()).await;
        open_fetched(target.as_ref()).await;
        let _changing = (self.changing_name(&dir, name), target.as_ref().map(|inode| self.changing(inode)));
        change!(self, EIO, [&dir], |nodes| nodes[0].remove(name, directory).await)?;
        self.table.removed(&dir, name);
        Ok(())
    }

    /// Moves a name; `flags` are those of renameat2(2).
    pub(super) async fn rename(
        self: &Arc<Self>, from: (INodeNo, &[u8]), to: (INodeNo, &[u8]), flags: u32,
    ) -> Result<(), Errno> {
        let (dir, name) = (self.inode(from.0)?, Name::new(from.1)?);
        let (new_dir, new_name) = (self.inode(to.0)?, Name::new(to.1)?);
        let (moved, met) = (self.table.child(&dir, name), self.table.child(&new_dir, new_name));
        open_fetched(moved.as_ref()).await;
        self.open_nameless(met.as_ref()).await;
        open_fetched(met.as_ref()).await;
        let _names = (self.changing_name(&dir, name), self.changing_name(&new_dir, new_name));
        let _files = [&moved, &met].map(|inode| inode.as_ref().map(|inode| self.changing(inode)));
        change!(self, EIO, [&dir, &new_dir], |nodes| nodes[0].rename(name, &nodes[1], new_name, flags).await)?;
        self.table.renamed((&dir, name), (&new_dir, new_name), flags & libc::RENAME_EXCHANGE != 0);
        Ok(())
    }
}

/// Opens `inode`, which is about to lose its name, if somebody has it open that was only fetched.
async fn open_fetched(inode: Option<&Arc<Inode>>) {
    let file = inode.and_then(|inode| inode.fetched());
    if let Some(fetched) = file.as_ref().and_then(|file| file.as_fetched()) {
        // Where that fails it has what was fetched.
        _ = fetched.opened().await;
    }
}

/// The attributes that came along, or those that `node` has now.
pub(super) async fn attr_of(node: &NodeRef, along: Option<Attr>) -> Result<Attr, Errno> {
    match along {
        Some(attr) => Ok(attr),
        None => node.attr().await,
    }
}
