//! Any tree shown by FUSE: a thin translation of kernel requests into questions to [`p9::Node`]s.
//!
//! [`mount`] puts a tree at a path of this machine, as root or as an ordinary user; [`serve`] answers on a FUSE
//! descriptor that is mounted already, as the root of a job is. Both give a [`Mount`], which unmounts when dropped.
//! A mount of a daemon that was killed is found by [`stale`] and taken away by [`clean`].
//!
//! What holds: no waiting caller is stuck. A request that is not answered at once is watched, and ends with `EINTR`
//! when its caller is dying or asked to end; names and attributes are answered within a time-out in any case. The
//! process that serves a mount never touches it.

mod ahead;
mod allocator;
mod attr;
mod begun;
mod bridge;
mod changes;
mod conflict;
mod disk;
mod fetched;
mod foresight;
mod hold;
mod kept;
mod kernel;
mod lasting;
mod leash;
mod listing;
mod locks;
mod noted;
mod open;
mod pages;
mod remembered;
mod scattered;
mod serve;
mod table;
mod tell;
mod watch;

use std::time::Duration;

pub use allocator::tune_allocator;
pub use disk::{DiskCache, DiskOptions, TwinOptions};
pub use kernel::{Error, clean, is_mounted, stale, unmount};
pub use serve::{Mount, mount, serve};

/// How a tree is shown.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long the kernel may keep names, missing names and attributes without asking again.
    pub ttl: Duration,
    /// Threads that take requests from the kernel. It wakes them in turn, so one that is awake already is of no use to
    /// it where there are more: by default half as many as there are processors, and no more than four.
    pub threads: usize,
    /// Whether it is for every user of this machine, not for the one alone who mounts. The kernel then checks the
    /// rights of each by owner, group and mode before it asks, and what a user makes is given to that user: so it is
    /// for a tree whose server lets whoever mounted do everything, as root's own. Of no meaning to [`serve`], where
    /// whoever mounted decided it.
    pub all_users: bool,
    /// Whether nobody but this mount changes the tree. The kernel then opens and closes files without asking, and keeps
    /// their locks itself, so that what it has of a file costs nothing. What is written is the tree's when write(2)
    /// returns, where it would else be held until close(2), and what the tree does not allow is refused by the read or
    /// write, not by the open. For trees of plain files alone: a file that is made anew for each who opens it, or is a
    /// stream, cannot be read so. Where somebody does change a file, that shows as late as its attributes do, and an
    /// append may go over what they appended.
    pub single_writer: bool,
    /// Whether every change is refused with `EROFS`.
    pub read_only: bool,
    /// The most files that are kept at hand (as a fid of a server, say) without being open.
    pub max_inodes_held: usize,
    /// What may be kept in this process of what was read, is read ahead or is held back, in bytes: a quarter of it for
    /// files that were read, a quarter for what is read ahead of programs, an eighth for small files that are fetched
    /// ahead, an eighth for what was written and is on its way. The kernel's own pages are not counted.
    pub cache: u64,
    /// Where contents of files that were read are kept on disk, for the next mount; nowhere by default. The qids of the
    /// tree are to be those of the same files then, whichever process shows it.
    pub disk: Option<DiskCache>,
    /// Where this machine may have files that hold the same as those of the tree, which then need not be fetched.
    pub twins: Option<TwinOptions>,
    /// How long names and attributes are waited for, before `EIO`; a tree that is away should have said so by then.
    pub timeout: Duration,
    /// What `mount` shows as the source.
    pub fs_name: String,
}

impl Default for Options {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        Self {
            ttl: Duration::from_secs(1),
            threads: processors / 2,
            all_users: false,
            single_writer: false,
            read_only: false,
            max_inodes_held: 16 << 10,
            cache: 256 << 20,
            disk: None,
            twins: None,
            timeout: Duration::from_secs(60),
            fs_name: "slashn".into(),
        }
    }
}
