//! Somebody on this machine swaps directories for links while a peer walks: the peer never gets out.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fileserver::{Disk, DiskOptions};
use p9::{Errno, How, NodeRef, SetAttr};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::common::*;

/// Swaps two paths, over and over, until it is dropped.
struct Swapping(Arc<AtomicBool>, Option<std::thread::JoinHandle<u64>>);

impl Swapping {
    fn start(one: &Path, other: &Path) -> Self {
        let (stop, one, other) = (Arc::new(AtomicBool::new(false)), one.to_owned(), other.to_owned());
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut times = 0;
            while !stopped.load(Ordering::Relaxed) {
                renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                times += 1;
            }
            times
        });
        Self(stop, Some(thread))
    }

    fn stop(mut self) -> u64 {
        self.0.store(true, Ordering::Relaxed);
        self.1.take().unwrap().join().unwrap()
    }
}

/// `export/x` and `export/y` take turns at being a directory and a link to `outside`, which holds a secret.
fn scene() -> (tempfile::TempDir, NodeRef) {
    let dir = tempfile::tempdir().unwrap();
    for path in ["export/x/sub", "outside/sub"] {
        std::fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    for (path, text) in [("export/x/f", "inside"), ("outside/f", "SECRET"), ("outside/only", "SECRET")] {
        std::fs::write(dir.path().join(path), text).unwrap();
    }
    symlink("../outside", dir.path().join("export/y")).unwrap();
    let root = Disk::open(&dir.path().join("export"), DiskOptions { descriptors: 16, ..DiskOptions::new([7; 32]) });
    (dir, root.unwrap().root())
}

/// Works on `x` until both its forms were met often.
async fn attack(root: &NodeRef, what: &str, mut attempt: impl AsyncFnMut(&NodeRef) -> Result<(), Errno>) {
    let (mut got, mut refused) = (0, 0);
    let mut rounds = 0;
    while got < 50 || refused < 50 {
        match attempt(root).await {
            Ok(()) => got += 1,
            Err(_) => refused += 1,
        }
        rounds += 1;
        assert!(rounds < 1_000_000, "{what}: {got} got through, {refused} were refused");
    }
}

#[tokio::test]
async fn a_swapped_link_leads_nowhere() {
    let (dir, root) = scene();
    let swapping = Swapping::start(&dir.path().join("export/x"), &dir.path().join("export/y"));
    attack(&root, "read", async |root| {
        let text = cat(root, "x/f").await?;
        assert_eq!(text, "inside");
        assert!(walk(root, "x/only").await.is_err());
        Ok(())
    })
    .await;
    attack(&root, "create", async |root| {
        let x = walk(root, "x").await?;
        let made = x.create(name("made"), file(0o644)).await?;
        made.node.set_attr(SetAttr { mode: Some(0o600), ..SetAttr::default() }).await?;
        x.remove(name("made"), false).await
    })
    .await;
    attack(&root, "list", async |root| {
        let open = walk(root, "x").await?.open(How::READ).await?;
        assert!(part(&open, 0, 10).await.iter().all(|(name, ..)| name != "only"));
        Ok(())
    })
    .await;
    attack(&root, "mkdir", async |root| {
        let x = walk(root, "x").await?;
        let sub = walk(root, "x/sub").await?;
        x.create(name("d"), self::dir(0o755)).await?;
        x.rename(name("d"), &sub, name("e"), 0).await?;
        sub.remove(name("e"), true).await
    })
    .await;
    assert!(swapping.stop() > 0);
    let mut outside: Vec<_> =
        std::fs::read_dir(dir.path().join("outside")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    outside.sort();
    assert_eq!(outside, ["f", "only", "sub"]);
    assert_eq!(std::fs::read_dir(dir.path().join("outside/sub")).unwrap().count(), 0);
    assert_eq!(std::fs::read_to_string(dir.path().join("outside/f")).unwrap(), "SECRET");
}

#[tokio::test]
async fn links_of_every_sort_lead_nowhere() {
    let (dir, root) = scene();
    let inside = dir.path().join("export");
    symlink("/etc", inside.join("absolute")).unwrap();
    symlink("..", inside.join("up")).unwrap();
    symlink("/proc/self/root", inside.join("magic")).unwrap();
    for path in ["absolute/passwd", "up/outside", "magic/etc", "y/f"] {
        let names = p9::Name::split(path.as_bytes()).unwrap();
        let walk = root.walk(&names, p9::Want::ATTR).await.unwrap();
        assert_eq!((walk.qids.len(), walk.end.err()), (1, Some(Errno::ENOTDIR)), "{path}");
    }
    // Nor when something is made or removed through one.
    let link = walk(&root, "y").await.unwrap();
    assert_eq!(link.create(name("made"), file(0o644)).await.err(), Some(Errno::ENOTDIR));
    assert_eq!(link.remove(name("f"), false).await.err(), Some(Errno::ENOTDIR));
    assert_eq!(root.rename(name("absolute"), &link, name("moved"), 0).await.err(), Some(Errno::ENOTDIR));
}
