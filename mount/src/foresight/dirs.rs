//! Directories that are about to be listed, opened before the kernel does: each with a lease and its first entries.
//!
//! Whoever goes through a whole tree (`ls -R`, `find`, `tar`) lists the directories of each directory one after the
//! other. Once some came in order those that come next are opened together. Each is for one opening, and not for long.

use std::sync::Arc;
use std::time::Instant;

use p9::tree::LeaseKind;
use p9::{Attr, FileKind, How, Name, NodeRef, Opened, Want};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::order::State;
use super::{Foresight, OPENED, UNUSED};
use crate::leash::Leash;
use crate::listing::{Gathered, Listed, Places};
use crate::table::Inode;

/// Directories that were opened in order before anything is foreseen.
const OPENS: u32 = 2;
/// How much of each is asked for along with its opening, in bytes.
const FIRST_ENTRIES: u32 = 32 << 10;

/// A directory that was opened ahead.
pub(crate) struct Ahead {
    pub(crate) node: NodeRef,
    pub(crate) opened: Opened,
    /// Breaks are answered from the start: others wait for that.
    pub(crate) lease: Option<Arc<Leash>>,
    /// When it was asked for, and the count of [`crate::changes::Changes`] by then.
    pub(crate) begun: Instant,
    pub(crate) asked: u64,
}

/// What a directory that was opened ahead is, its attributes, and the lease that says so.
type Looked = (NodeRef, Attr, Option<Arc<Leash>>);

/// One that is on its way.
pub(super) struct Coming {
    begun: Instant,
    asked: u64,
    opening: JoinHandle<Option<Ahead>>,
    /// What it is, and its attributes, once that is known.
    looked: watch::Receiver<Option<Looked>>,
}

impl Foresight {
    /// A name is looked up in the directory `inode`, called `name` in `dir`, which the kernel calls `id`. If it was
    /// opened ahead, it is listed by what came along.
    pub(crate) async fn enter(self: &Arc<Self>, inode: &Arc<Inode>, (id, dir): (u64, &NodeRef), name: Name<'_>) {
        if self.knows(inode.id) || self.to_list.peek(&inode.id).is_some() {
            return;
        }
        let ahead = self.open_dir(id, dir, name).await.filter(|ahead| self.is_still(ahead, inode));
        if let Some(Ahead { node, opened, lease, begun, asked }) = ahead {
            let gathered = Gathered { begun, asked, lease, ..Gathered::new(&self.changes) };
            if let Some(gathered) = self.gather_all(opened, gathered).await {
                self.listed(inode.clone(), Some(&node), gathered);
            }
        }
    }

    /// The directory `name` of `listed`, if it was opened ahead: what it is, its attributes, the lease that says so,
    /// and when they were asked for and after how many changes.
    pub(super) async fn look_ahead(
        &self, listed: &Listed, name: Name<'_>,
    ) -> Option<(NodeRef, Attr, Option<Arc<Leash>>, (Instant, u64))> {
        let entry = listed.find(name)?[0];
        let (mut looked, asked) = {
            let state = listed.ways.lock();
            let coming = state.dirs_coming.get(&entry)?;
            (coming.looked.clone(), (coming.begun, coming.asked))
        };
        let (node, attr, lease) = looked.wait_for(Option::is_some).await.ok()?.clone()?;
        let is_old = lease.as_ref().is_some_and(|lease| lease.is_broken());
        (!is_old).then_some((node, attr, lease, asked))
    }

    /// Whether `ahead` is `inode`, and nobody has changed that since.
    pub(crate) fn is_still(&self, ahead: &Ahead, inode: &Inode) -> bool {
        let unbroken = match &ahead.lease {
            Some(lease) => !lease.is_broken(),
            None => ahead.begun.elapsed() < self.ttl / 2,
        };
        unbroken && inode.is(ahead.node.qid()) && !self.changes.is_old(ahead.asked, inode.qid_path)
    }

    /// The directory `name`, if it was opened ahead; it is in the directory `dir`, which the kernel calls `id`.
    pub(crate) async fn open_dir(&self, id: u64, dir: &NodeRef, name: Name<'_>) -> Option<Ahead> {
        let listed = self.dirs.get(&id)?;
        let places = listed.find(name)?;
        let coming = {
            let mut state = listed.ways.lock();
            let coming = state.dirs_coming.remove(&places[0]);
            if let Some(order) = state.dirs.step_anyhow(places, OPENS) {
                self.open_dirs(&listed, dir, &mut state, order, places);
            }
            coming
        };
        coming?.opening.await.ok()?
    }

    /// Opens the directories that come after `places` in `order`, if it is time to.
    fn open_dirs(&self, listed: &Arc<Listed>, dir: &NodeRef, state: &mut State, order: usize, places: Places) {
        let next = state.dirs.next(order, places[order], listed.len(), OPENED.1);
        if next.is_empty() {
            return;
        }
        // What was passed over is not asked for any more.
        state.dirs_coming.retain(|entry, _| listed.place_in(order, *entry) >= places[order]);
        let begun = Instant::now();
        for place in next {
            let (entry, seen) = listed.at(order, place);
            if seen.attr().is_none_or(|attr| attr.qid.kind != FileKind::Dir) {
                continue;
            }
            let (dir, name, asked) = (dir.clone(), seen.name.clone(), self.changes.count());
            let (teller, (tell, looked)) = (self.teller.clone(), watch::channel(None));
            let opening = self.runtime.spawn(async move {
                let how = How { directory: true, ..How::READ };
                let want = Want { attr: true, data: FIRST_ENTRIES, lease: LeaseKind::Read };
                let mut opened = dir.open_at(&[name.as_name()], how, want).await.ok()?;
                let lease = opened.lease.take().map(|lease| Leash::new(lease, &teller));
                let node = opened.node.clone()?;
                _ = tell.send(opened.attr.map(|attr| (node.clone(), attr, lease.clone())));
                Some(Ahead { node, opened, lease, begun, asked })
            });
            state.dirs_coming.insert(entry, Coming { begun, asked, opening, looked });
        }
        let listed = Arc::downgrade(listed);
        self.runtime.spawn(async move {
            tokio::time::sleep(UNUSED).await;
            if let Some(listed) = listed.upgrade() {
                let mut state = listed.ways.lock();
                let gone: Vec<_> = state.dirs_coming.extract_if(|_, coming| coming.begun == begun).collect();
                drop((state, gone));
            }
        });
    }
}
