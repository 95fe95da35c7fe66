//! Paths that are about to be walked, all of them asked about together before anybody does.
//!
//! The start of a program is made of paths: where it is looked for, and what it is linked with. Name by name each of
//! them costs many round trips; together they cost three: the directories, with leases; then what each name in them
//! leads to; then the targets of links and the first bytes of files. Begun once for a mount, whose lookups wait for it
//! and then find their answers as if the directories had been listed. Invariant: what is told under a lease was asked
//! for after that was granted.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::join_all;
use p9::tree::LeaseKind;
use p9::{Attr, Errno, FileKind, How, Name, NameBuf, NodeRef, Walk, Want};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::room::Room;
use super::{Answer, FIRST_BYTES, Foreseen, Foresight, UNUSED, has_one_name, open};
use crate::kept::File;
use crate::listing::{Gathered, Seen};
use crate::table::Inode;

/// The most names that are asked about.
const NAMES: usize = 2048;

/// What was asked about, until it is looked up.
pub(super) struct Foretold {
    any: AtomicBool,
    /// By the paths of their qids.
    dirs: Mutex<HashMap<u64, Told>>,
    done: watch::Sender<bool>,
}

impl Default for Foretold {
    fn default() -> Self {
        Self { any: AtomicBool::new(false), dirs: Mutex::default(), done: watch::channel(true).0 }
    }
}

/// What is known of a directory.
struct Told {
    node: NodeRef,
    gathered: Gathered,
    /// Files that were opened, each by its place among what was gathered.
    files: Vec<(usize, Arc<File>, Room)>,
}

/// What a name led to.
struct Entry {
    name: NameBuf,
    /// Whether no path leads further.
    last: bool,
    found: Result<(NodeRef, Attr), Errno>,
}

async fn look(dir: &NodeRef, name: NameBuf, last: bool) -> Entry {
    let found = async {
        let reached = dir.walk(&[name.as_name()], Want::ATTR).await.and_then(Walk::reached)?;
        let attr = match reached.attr {
            Some(attr) => attr,
            None => reached.node.attr().await?,
        };
        Ok((reached.node, attr))
    };
    let found = found.await;
    Entry { name, last, found }
}

/// The names in each directory that `paths` lead through.
fn dirs_of(paths: &[Vec<NameBuf>]) -> BTreeMap<Vec<NameBuf>, BTreeSet<NameBuf>> {
    let mut dirs: BTreeMap<Vec<NameBuf>, BTreeSet<NameBuf>> = BTreeMap::new();
    let steps = paths.iter().flat_map(|path| (0..path.len()).map(move |at| (&path[..at], &path[at])));
    for (dir, name) in steps.take(NAMES) {
        dirs.entry(dir.to_vec()).or_default().insert(name.clone());
    }
    dirs
}

impl Foresight {
    /// Begins to ask about what `paths` lead through from `root`.
    pub(crate) fn foretell(self: &Arc<Self>, root: NodeRef, paths: &[Vec<NameBuf>]) {
        if paths.is_empty() {
            return;
        }
        let (foresight, dirs) = (self.clone(), dirs_of(paths));
        self.foretold.any.store(true, Ordering::SeqCst);
        self.foretold.done.send_replace(false);
        self.runtime.spawn(async move {
            let leads_on =
                |dir: &[NameBuf], name: &NameBuf| dirs.contains_key(&[dir, std::slice::from_ref(name)].concat());
            let all = dirs.iter().map(|(dir, names)| {
                let names = names.iter().map(|name| (name.clone(), !leads_on(dir, name))).collect();
                foresight.told(&root, dir.clone(), names)
            });
            let told: HashMap<u64, Told> = join_all(all).await.into_iter().flatten().collect();
            *foresight.foretold.dirs.lock() = told;
            foresight.foretold.done.send_replace(true);
            tokio::time::sleep(UNUSED).await;
            foresight.foretold.any.store(false, Ordering::SeqCst);
            let unused = std::mem::take(&mut *foresight.foretold.dirs.lock());
            drop(unused);
        });
    }

    /// What of the directory at `path` is known by these names; those that lead no further are opened.
    async fn told(
        self: &Arc<Self>, root: &NodeRef, path: Vec<NameBuf>, names: Vec<(NameBuf, bool)>,
    ) -> Option<(u64, Told)> {
        let mut gathered = Gathered::new(&self.changes);
        let path: Vec<Name<'_>> = path.iter().map(NameBuf::as_name).collect();
        let node = if path.is_empty() {
            // That is at hand; and a namespace's has no lease.
            root.clone()
        } else {
            let want = Want { attr: true, data: 0, lease: LeaseKind::Read };
            let opened = root.open_at(&path, How { directory: true, ..How::READ }, want).await.ok()?;
            gathered.is_under(opened.lease, opened.attr, &self.teller);
            opened.node?
        };
        let found = join_all(names.into_iter().map(|(name, last)| look(&node, name, last))).await;
        // What has other names may leave this one without a word to who holds the file alone.
        let holds = gathered.lease.as_ref().is_some_and(|lease| lease.holds(LeaseKind::Attr));
        let asked = self.changes.count();
        let node = &node;
        let all = found.into_iter().map(|Entry { name, last, found }| async move {
            let file = match &found {
                Ok((link, attr)) if attr.qid.kind == FileKind::Link => {
                    _ = self.read_link(link).await;
                    None
                }
                Ok((_, attr)) if last && (holds || has_one_name(attr)) => self.opened(node, &name, attr, asked).await,
                _ => None,
            };
            (name, found, file)
        });
        let mut files = Vec::new();
        for (name, found, file) in join_all(all).await {
            let place = gathered.entries.len();
            match found {
                Ok((_, attr)) => gathered.entries.push(Seen::new(name, Some(&attr), None, place as u64 + 1)),
                Err(Errno::ENOENT) => gathered.missing.push(name),
                Err(_) => continue,
            }
            files.extend(file.map(|(file, room)| (place, file, room)));
        }
        Some((node.qid().path, Told { node: node.clone(), gathered, files }))
    }

    /// The file `name` of `dir`, opened, if it is one and still has these attributes.
    async fn opened(&self, dir: &NodeRef, name: &NameBuf, attr: &Attr, asked: u64) -> Option<(Arc<File>, Room)> {
        if attr.mode & libc::S_IFMT != libc::S_IFREG || attr.qid.version == 0 {
            return None;
        }
        let on_disk = self.disk.knows(attr.qid.path, attr.size, attr.ctime);
        let length = if on_disk { 0 } else { attr.size.min(FIRST_BYTES) };
        let room = self.rooms.take(length)?;
        let file = open(dir, name.as_name(), length as u32, (asked, &self.changes), &self.teller).await??;
        if let (Some(contents), Some(first)) = (self.disk.of(&file.attr), &file.first) {
            contents.keep(0, first);
        }
        (file.attr.qid == attr.qid).then_some((file, room))
    }

    /// A name is looked up in the directory `inode`: what was foretold of it is known from now on.
    pub(crate) async fn recall(self: &Arc<Self>, inode: &Arc<Inode>) {
        if !self.foretold.any.load(Ordering::SeqCst) {
            return;
        }
        // Not longer than whoever asks by itself would wait.
        _ = self.foretold.done.subscribe().wait_for(|done| *done).await;
        let told = self.foretold.dirs.lock().remove(&inode.qid_path);
        let Some(Told { node, gathered, files }) = told else { return };
        let (begun, count) = (gathered.begun, gathered.asked);
        self.table.hold(inode, &node);
        self.listed(inode.clone(), Some(&node), gathered);
        let Some(listed) = self.dirs.peek(&inode.id) else { return };
        let mut state = listed.ways.lock();
        for (place, file, room) in files {
            let answer = std::future::ready(Some(Answer::Opened(file))).boxed().shared();
            let room = Some(Arc::new(room));
            state.foreseen.insert(place, Foreseen { begun, count, opened: true, answer, _room: room });
        }
        let (listed, begun): (_, Instant) = (Arc::downgrade(&listed), begun);
        self.runtime.spawn(async move {
            tokio::time::sleep(UNUSED).await;
            let Some(listed) = listed.upgrade() else { return };
            let mut state = listed.ways.lock();
            let unused: Vec<_> = state.foreseen.extract_if(|_, there| there.begun == begun).collect();
            drop((state, unused));
        });
    }
}
