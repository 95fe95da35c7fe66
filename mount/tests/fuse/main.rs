//! Real mounts of real and made-up trees, used through the kernel as programs use them.
//!
//! Each test mounts in a temporary folder of its own. They need /dev/fuse, and those that become another user need
//! root: where that is missing they fail.

#![allow(clippy::unwrap_used, reason = "a test that fails may panic, in its helpers too")]

mod again;
mod asleep;
mod copies;
mod disk;
mod everyone;
mod hold;
mod kept;
mod listings;
mod local;
mod locks;
mod mapped;
mod names;
mod on_disk;
mod promptly;
mod reads;
mod remembered;
mod scattered;
mod single;
mod synthetic;
mod told;
mod twins;
mod users;
mod waiting;

use std::cell::Cell;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fileserver::{Disk, DiskOptions};
use mount::{Mount, Options};
use p9::client::Client;
use p9::server::{self, Limits};
use p9::{NodeRef, Tree, TreeRef, Who};
use rustix::thread::UnshareFlags;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A tree that is shown for the length of a test.
struct Shown {
    mount: Option<Mount>,
    at: PathBuf,
    runtime: Runtime,
    _folder: TempDir,
}

impl Shown {
    fn new(root: NodeRef) -> Self {
        Self::with(root, Options::default())
    }

    fn with(root: NodeRef, options: Options) -> Self {
        Self::on(runtime(), root, options)
    }

    /// The root of `tree` as a client has it from a server.
    fn far(tree: TreeRef) -> Self {
        Self::counted(tree).1
    }

    /// The same, and the client, which counts what it asks.
    fn counted(tree: TreeRef) -> (Client, Self) {
        Self::counted_with(tree, Options::default())
    }

    fn counted_with(tree: TreeRef, options: Options) -> (Client, Self) {
        let runtime = runtime();
        let (client, root) = runtime.block_on(async {
            let (near, far) = tokio::io::duplex(1 << 20);
            tokio::spawn(server::serve(far, tree, Arc::new(Who::owner()), Limits::default()));
            let client = Client::connect(near, p9::client::Options::default()).await.unwrap();
            let root = client.attach(&Who::owner(), b"").await.unwrap();
            (client, root)
        });
        (client, Self::on(runtime, root, options))
    }

    fn on(runtime: Runtime, root: NodeRef, options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("mnt");
        std::fs::create_dir(&at).unwrap();
        let mount = mount::mount(root, &at, options, runtime.handle().clone()).unwrap();
        Self { mount: Some(mount), at, runtime, _folder: folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.at.join(name)
    }
}

impl Deref for Shown {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.at
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        drop(self.mount.take());
        let left = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let left = left.contains(&*self.at.to_string_lossy());
        assert!(!left || std::thread::panicking(), "the mount is left behind");
    }
}

/// Made in a mount namespace of this thread and of those that it starts from now on, so that a test which is killed
/// leaves no dead mount behind. An ordinary user has to do without.
fn runtime() -> Runtime {
    use rustix::mount::{MountPropagationFlags, mount_change};
    thread_local!(static APART: Cell<bool> = const { Cell::new(false) });
    if rustix::process::geteuid().is_root() && !APART.replace(true) {
        // SAFETY: descriptors stay shared; only to part with those would be unsafe.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    }
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A folder of this machine, and the tree of it.
fn disk() -> (TempDir, NodeRef) {
    let folder = tempfile::tempdir().unwrap();
    let root = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap().root();
    (folder, root)
}

/// Waits for `condition`.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < limit, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
