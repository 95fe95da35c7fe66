//! Opening what a name leads to now.
//!
//! Called when a file is opened, in the request's task. The kernel opens by the names that it knows, which may be a
//! second old where there is no lease: by now another file may have taken the name, or none has it any more. So what is
//! opened is looked for by its name, in the same round trip. If it has gone from there the answer is `ESTALE`, upon
//! which the kernel looks the name up anew, and asks once more: if it has gone again meanwhile, what it led to when it
//! was looked up is opened, as a local file system would. Invariant: what has no name left is opened as it is at hand,
//! as through /proc/self/fd.

use std::sync::Arc;
use std::time::{Duration, Instant};

use p9::{Attr, Errno, How, NodeRef, Opened, Walk, Want};

use super::names::attr_of;
use super::{Bridge, is_lost};
use crate::table::{Inode, Place};

/// A thread was told to look a name up anew.
pub(super) struct LookAgain {
    when: Instant,
    /// What the name led to, once it was looked up.
    found: Option<u64>,
}

/// Who opens something.
#[derive(Clone, Copy)]
pub(super) struct Opener {
    caller: u32,
    /// Whether it was told to look the name up anew, and has.
    again: bool,
}

impl Opener {
    /// The mount itself, for whoever had the file open before it was.
    pub(super) const ITSELF: Self = Self { caller: 0, again: true };

    /// The answer to an open of what is at hand: the kernel looks no third time at what has gone twice.
    pub(super) fn found<T>(self, answer: Result<T, Errno>) -> Result<T, Errno> {
        answer.map_err(|errno| if self.again && errno == Errno::ESTALE { Errno::ENOENT } else { errno })
    }
}

/// How soon a thread that was told to look again asks again, and how many are told so at a time.
const AGAIN: Duration = Duration::from_secs(2);
const MANY: usize = 4096;

impl Bridge {
    /// The thread `caller` opens `inode`.
    pub(super) fn opener(&self, caller: u32, inode: &Inode) -> Opener {
        let told = self.look_again.lock().remove(&caller);
        let again = told.is_some_and(|told| told.found == Some(inode.id) && told.when.elapsed() < AGAIN);
        Opener { caller, again }
    }

    /// Whether `caller` was told to look a name up anew.
    pub(super) fn looks_again(&self, caller: u32) -> bool {
        self.look_again.lock().contains_key(&caller)
    }

    /// `caller` has looked a name up; it leads to what the kernel calls `found`.
    pub(super) fn looked(&self, caller: u32, found: Option<u64>) {
        if let Some(told) = self.look_again.lock().get_mut(&caller) {
            told.found = found;
        }
    }

    /// Opens `inode` for `opener` where its name leads to it; `None` if it is to be opened as it is at hand. Errors:
    /// `ESTALE` if no name leads to it.
    pub(super) async fn open_by_name(
        &self, inode: &Arc<Inode>, opener: Opener, how: How, want: Want,
    ) -> Result<Option<(NodeRef, Opened, Attr)>, Errno> {
        let Opener { caller, again } = opener;
        let places = inode.places();
        for place in places.iter().rev() {
            let dir = match self.table.at_hand(&place.dir) {
                Some(dir) => dir,
                // Whoever walks to the file comes by its name.
                None if self.table.at_hand(inode).is_none() => return Ok(None),
                None => match self.table.walk_to(&place.dir).await {
                    Err(Errno::ESTALE | Errno::ENOENT | Errno::ENOTDIR) => {
                        self.table.left(inode, place);
                        continue;
                    }
                    dir => dir?,
                },
            };
            // What is opened to be changed is opened where it is known to be the very file.
            let opened = match how.changes() {
                true => self.open_to_change(inode, (&dir, place), how, want).await,
                false => open_in(inode, (&dir, place), how, want).await,
            };
            match opened {
                Err(Errno::ENOENT | Errno::ENOTDIR) => self.table.left(inode, place),
                Err(errno) if is_lost(errno) => return Ok(None),
                opened => return opened.map(Some),
            }
        }
        if places.is_empty() || again {
            return Ok(None);
        }
        let mut look_again = self.look_again.lock();
        look_again.retain(|_, told| told.when.elapsed() < AGAIN);
        // Threads of another pid namespace have no number here.
        if caller != 0 && look_again.len() < MANY {
            look_again.insert(caller, LookAgain { when: Instant::now(), found: None });
        }
        Err(Errno::ESTALE)
    }

    async fn open_to_change(
        &self, inode: &Arc<Inode>, (dir, place): (&NodeRef, &Place), how: How, want: Want,
    ) -> Result<(NodeRef, Opened, Attr), Errno> {
        let walk = async {
            let reached = dir.walk(&[place.name.as_name()], Want::default()).await.and_then(Walk::reached)?;
            if inode.is(reached.node.qid()) { Ok(reached.node) } else { Err(Errno::ENOENT) }
        };
        let open = async |node: NodeRef| {
            let opened = node.open_at(&[], how, want).await?;
            let attr = attr_of(&node, opened.attr).await?;
            Ok((node, opened, attr))
        };
        match self.table.at_hand(inode).filter(|_| !how.truncate) {
            Some(node) => {
                let (found, opened) = tokio::join!(walk, open(node));
                found.and(opened)
            }
            None => open(walk.await?).await,
        }
    }
}

/// Opens what is found at `place`; `ENOENT` if that is not `inode`.
async fn open_in(
    inode: &Inode, (dir, place): (&NodeRef, &Place), how: How, want: Want,
) -> Result<(NodeRef, Opened, Attr), Errno> {
    let mut opened = dir.open_at(&[place.name.as_name()], how, want).await?;
    let node = opened.node.take().filter(|node| inode.is(node.qid())).ok_or(Errno::ENOENT)?;
    let attr = attr_of(&node, opened.attr).await?;
    Ok((node, opened, attr))
}
