//! Attributes of files and of the file system, rights, and extended attributes.
//!
//! Called through `fs`, in the request's own task. The kernel checks no rights itself (`default_permissions` is not
//! asked for): who serves the tree does, by whom it serves. access(2) is answered from the attributes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fuser::{AccessFlags, FileAttr, INodeNo};
use p9::{Attr, Errno, FileKind, SetAttr, StatFs, Want};

use super::Bridge;
use crate::attr::to_fuse;
use crate::table::Inode;

/// Who asks, for access(2).
#[derive(Clone, Copy)]
pub(super) struct Caller {
    pub(super) pid: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

impl Bridge {
    /// The attributes of a file, and how long the kernel may keep them.
    pub(super) async fn attr(&self, id: INodeNo) -> Result<(FileAttr, Duration), Errno> {
        let inode = self.inode(id)?;
        let (attr, ttl) = self.attr_of(&inode).await?;
        inode.learn(&attr);
        Ok((to_fuse(&attr, inode.id), ttl))
    }

    async fn attr_of(&self, inode: &Arc<Inode>) -> Result<(Attr, Duration), Errno> {
        self.settle(inode).await;
        if let Some(file) = self.kept.get(inode.id) {
            return Ok((file.attr, self.options.ttl));
        }
        if let Some((listed, attr)) = self.foresight.own(inode.id) {
            listed.tells_own();
            // Asked again, now that whoever changes it knows that the kernel was told.
            if self.foresight.own(inode.id).is_some() {
                return Ok((attr, self.options.ttl));
            }
        }
        if let Some(place) = inode.place()
            && let name = place.name.as_name()
            && let Some((listed, attr, ttl)) = self.foresight.attr(place.dir.id, name)
            && inode.is(attr.qid)
            && !inode.knows_better(&attr)
        {
            listed.tells(name, inode.id);
            if self.foresight.attr(place.dir.id, name).is_some() {
                return Ok((attr, ttl));
            }
        }
        if self.table.at_hand(inode).is_none() {
            match (self.table.walk_for(inode, Want::ATTR).await, inode.fetched()) {
                // Whoever has it open still has what it was.
                (Err(Errno::ESTALE), Some(file)) => return Ok((Attr { nlink: 0, ..file.attr }, self.options.ttl)),
                (reached, _) => {
                    if let Some(attr) = reached?.attr {
                        return Ok((attr, self.options.ttl));
                    }
                }
            }
        }
        Ok((ask!(self, inode, |node| node.attr().await)?, self.options.ttl))
    }

    /// Changes attributes of a file; gives what they are then, and how long the kernel may keep that.
    pub(super) async fn set_attr(&self, id: INodeNo, change: SetAttr) -> Result<(FileAttr, Duration), Errno> {
        if change == SetAttr::default() {
            return self.attr(id).await;
        }
        let inode = self.inode(id)?;
        if let Some(attr) = inode.hold().and_then(|hold| hold.set(change)) {
            inode.learn(&attr);
            return Ok((to_fuse(&attr, inode.id), Duration::ZERO));
        }
        self.settle(&inode).await;
        let attr = {
            let _away = self.keeps_away(&inode, change.size.is_some()).await;
            let _changing = self.changing(&inode);
            change!(self, None, [&inode], |nodes| nodes[0].set_attr(change).await)?
        };
        // It has lost its name, of which the kernel may not have heard, and nobody here has it open: what was meant is
        // what has the name now, which the kernel then looks for. (A tree may count no links of any file.)
        let nameless = attr.nlink == 0 && attr.qid.kind != FileKind::Dir;
        if nameless && !self.options.single_writer && !self.opens.has(&inode) {
            self.table.walk_to(&inode).await?;
        }
        if let Some(hold) = inode.hold() {
            hold.saw(&attr);
        }
        inode.learn(&attr);
        Ok((to_fuse(&attr, inode.id), self.options.ttl))
    }

    pub(super) async fn access(&self, id: INodeNo, mask: AccessFlags, caller: Caller) -> Result<(), Errno> {
        let inode = self.inode(id)?;
        let attr = self.attr_of(&inode).await?.0;
        if mask.contains(AccessFlags::W_OK) {
            self.writable()?;
        }
        if permits(&attr, mask, caller) { Ok(()) } else { Err(Errno::EACCES) }
    }

    pub(super) async fn stat_fs(&self, id: INodeNo) -> Result<StatFs, Errno> {
        let inode = self.inode(id)?;
        ask!(self, &inode, |node| node.stat_fs().await)
    }

    pub(super) async fn read_link(&self, id: INodeNo) -> Result<Bytes, Errno> {
        let inode = self.inode(id)?;
        if let Some(target) = self.foresight.link(inode.qid_path) {
            return Ok(target);
        }
        ask!(self, &inode, |node| self.foresight.read_link(node).await)
    }

    /// The value of an extended attribute; without a name, the list of names.
    pub(super) async fn xattr(&self, id: INodeNo, name: Option<&[u8]>) -> Result<Bytes, Errno> {
        let inode = self.inode(id)?;
        // The kernel asks for it before the first write, and what was just made has none.
        let made = || inode.made(self.options.ttl / 2).is_some_and(|asked| !self.changes.is_old(asked, inode.qid_path));
        if name == Some(b"security.capability") && made() {
            return Err(Errno::ENODATA);
        }
        if self.is_bare(&inode) {
            return match name {
                None => Ok(Bytes::new()),
                // Not that it has none: programs then ask no more, where ls(1) would ask about each file.
                Some(b"security.selinux") => Err(Errno::EOPNOTSUPP),
                Some(name) if name.starts_with(b"user.") || name.starts_with(b"security.") => Err(Errno::ENODATA),
                Some(_) => Err(Errno::EOPNOTSUPP),
            };
        }
        let answer = ask!(self, &inode, |node| match name {
            Some(name) => node.xattr(name).await,
            // What has none lists none.
            None => match node.xattrs().await {
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(Bytes::new()),
                answer => answer,
            },
        });
        answer.map_err(never_enosys)
    }

    /// Whether it is known to have no extended attributes: as its directory was listed, or is just being.
    fn is_bare(&self, inode: &Inode) -> bool {
        if inode.bare(self.options.ttl / 2).is_some_and(|asked| !self.changes.is_old(asked, inode.qid_path)) {
            return true;
        }
        let known = inode.place().and_then(|place| self.foresight.attr(place.dir.id, place.name.as_name()));
        known.is_some_and(|(_, attr, _)| attr.bare && inode.is(attr.qid))
    }

    /// Sets an extended attribute, or removes it.
    pub(super) async fn set_xattr(
        &self, id: INodeNo, name: &[u8], value: Option<Bytes>, flags: u32,
    ) -> Result<(), Errno> {
        let inode = self.inode(id)?;
        // A write takes some of them away.
        self.settle(&inode).await;
        // To set it whatever there is may be done twice.
        let unproven = (value.is_none() || flags != 0).then_some(Errno::EIO);
        let _changing = self.changing(&inode);
        change!(self, unproven, [&inode], |nodes| nodes[0].set_xattr(name, value.clone(), flags).await)
            .map_err(never_enosys)
    }
}

/// The kernel takes `ENOSYS` as said for the whole mount, for ever; a tree says it for one of its parts.
pub(super) fn never_enosys(errno: Errno) -> Errno {
    if errno == Errno::ENOSYS { Errno::EOPNOTSUPP } else { errno }
}

/// What the permission bits allow `caller`, as path_resolution(7) has it.
fn permits(attr: &Attr, mask: AccessFlags, caller: Caller) -> bool {
    let wanted = mask.bits() as u32 & 0o7;
    if caller.uid == 0 {
        let is_dir = attr.mode & libc::S_IFMT == libc::S_IFDIR;
        return wanted & 1 == 0 || is_dir || attr.mode & 0o111 != 0;
    }
    let granted = if caller.uid == attr.uid {
        attr.mode >> 6
    } else if caller.gid == attr.gid || groups(caller.pid).contains(&attr.gid) {
        attr.mode >> 3
    } else {
        attr.mode
    };
    granted & wanted == wanted
}

/// The supplementary groups of a thread; none where it cannot be seen.
fn groups(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
    line.split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_class_that_fits_decides() {
        let attr = Attr { mode: 0o100_467, uid: 10, gid: 20, ..Attr::default() };
        let may = |uid, gid, mask| permits(&attr, mask, Caller { pid: u32::MAX, uid, gid });
        assert!(may(10, 20, AccessFlags::R_OK) && !may(10, 20, AccessFlags::W_OK));
        assert!(may(11, 20, AccessFlags::W_OK) && !may(11, 20, AccessFlags::X_OK));
        assert!(may(11, 21, AccessFlags::X_OK));
        assert!(may(0, 0, AccessFlags::W_OK | AccessFlags::X_OK));
        let plain = Attr { mode: 0o100_666, ..attr };
        assert!(!permits(&plain, AccessFlags::X_OK, Caller { pid: 0, uid: 0, gid: 0 }));
    }
}
