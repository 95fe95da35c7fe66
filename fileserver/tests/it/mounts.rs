//! Mounts within a tree: a slashn mount is never entered, and files of two devices are never taken for one.
//!
//! Each test has a mount namespace of its own, for which it must be root: if it is not, it says so and is skipped.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fileserver::{Access, Disk, DiskOptions, Error, Ruled, Rules};
use p9::client::{Client, Options};
use p9::server::{self, Limits};
use p9::tree::{Lock, LockKind};
use p9::{Errno, How, NodeRef, Tree, TreeRef, Want, Who, synth};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use rustix::thread::UnshareFlags;

use crate::common::*;

/// Runs `test` on a thread with a mount namespace of its own, given a fresh directory. The threads that the runtime
/// makes there inherit it.
fn in_private(test: impl AsyncFnOnce(&Path) + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: mounting needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let run = move || {
        // SAFETY: this thread does not share its file system attributes with anybody who counts on them.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }.unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let limited = async { tokio::time::timeout(Duration::from_secs(30), test(&path)).await };
        runtime.block_on(limited).expect("nothing waits for a daemon");
    };
    std::thread::spawn(run).join().unwrap();
}

fn tmpfs(at: &Path) {
    std::fs::create_dir_all(at).unwrap();
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), None).unwrap();
}

/// Mounts a FUSE file system behind which nobody answers: whoever touches it waits until the descriptor is dropped.
fn nobody(at: &Path, kind: &str) -> OwnedFd {
    std::fs::create_dir_all(at).unwrap();
    let fuse = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
    let options = std::ffi::CString::new(options).unwrap();
    mount("slashn", at, kind, MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str()).unwrap();
    fuse
}

fn open(path: &Path) -> NodeRef {
    Disk::open(path, DiskOptions::new([7; 32])).unwrap().root()
}

#[test]
fn a_slashn_mount_is_an_empty_directory_and_never_touched() {
    in_private(async |dir| {
        let fuse = nobody(&dir.join("n"), "fuse.slashn");
        let root = open(dir);
        let n = walk(&root, "n").await.unwrap();
        assert!(ls(&n).await.is_empty());
        assert_eq!(n.attr().await.unwrap().mode, libc::S_IFDIR | 0o555);
        assert_eq!(ls(&root).await["n"], n.qid().path);
        let names = [name("n"), name("alpha")];
        let partial = root.walk(&names, Want::ATTR).await.unwrap();
        assert_eq!((partial.qids.len(), partial.end.err()), (1, Some(Errno::ENOENT)));
        assert!(root.open_at(&names[..1], How::READ, Want::ATTR).await.is_ok());
        assert_eq!(n.create(name("f"), file(0o644)).await.err(), Some(Errno::EROFS));
        assert_eq!(root.remove(name("n"), true).await.err(), Some(Errno::EBUSY));
        // Nor is one served by itself.
        let itself = Disk::open(&dir.join("n"), DiskOptions::new([7; 32]));
        assert!(matches!(itself, Err(Error::Hidden { .. })));
        drop(fuse);
        unmount(dir.join("n"), UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn a_slashn_mount_that_comes_later_is_seen_too() {
    in_private(async |dir| {
        std::fs::create_dir(dir.join("n")).unwrap();
        std::fs::write(dir.join("n/f"), b"below").unwrap();
        let root = open(dir);
        assert_eq!(cat(&root, "n/f").await.unwrap(), "below");
        let fuse = nobody(&dir.join("n"), "fuse.slashn");
        assert_eq!(walk(&root, "n/f").await.err().or(Some(Errno::ENOENT)), Some(Errno::ENOENT));
        assert!(ls(&walk(&root, "n").await.unwrap()).await.is_empty());
        drop(fuse);
        unmount(dir.join("n"), UnmountFlags::DETACH).unwrap();
        assert_eq!(cat(&root, "n/f").await.unwrap(), "below");
    });
}

#[test]
fn the_kernels_windows_are_empty_directories() {
    in_private(async |dir| {
        std::fs::create_dir(dir.join("proc")).unwrap();
        mount("proc", dir.join("proc"), "proc", MountFlags::empty(), None).unwrap();
        let root = open(dir);
        assert!(ls(&walk(&root, "proc").await.unwrap()).await.is_empty());
        assert_eq!(root.walk(&[name("proc"), name("self")], Want::ATTR).await.unwrap().end.err(), Some(Errno::ENOENT));
    });
}

#[test]
fn a_tree_is_served_from_within_a_chroot() {
    in_private(async |dir| {
        let fuse = nobody(&dir.join("jail/n"), "fuse.slashn");
        let jail = dir.join("jail");
        std::fs::create_dir_all(jail.join("home")).unwrap();
        std::fs::create_dir(jail.join("proc")).unwrap();
        std::fs::write(jail.join("home/f"), b"jailed").unwrap();
        mount("proc", jail.join("proc"), "proc", MountFlags::empty(), None).unwrap();
        std::env::set_current_dir("/").unwrap();
        rustix::process::chroot(&jail).unwrap();
        let root = open("/".as_ref());
        assert_eq!(cat(&root, "home/f").await.unwrap(), "jailed");
        for path in ["n", "proc"] {
            assert!(ls(&walk(&root, path).await.unwrap()).await.is_empty(), "{path}");
        }
        drop(fuse);
    });
}

#[test]
fn equal_inodes_of_two_devices_are_two_files() {
    in_private(async |dir| {
        for device in ["a", "b"] {
            tmpfs(&dir.join(device));
            std::fs::write(dir.join(device).join("f"), device).unwrap();
        }
        let root = open(dir);
        for path in ["", "/f"] {
            let inode = |device| {
                use std::os::unix::fs::MetadataExt;
                std::fs::metadata(format!("{}/{device}{path}", dir.display())).unwrap().ino()
            };
            assert_eq!(inode("a"), inode("b"), "the two devices do not show what this tests");
            let (a, b) = (walk(&root, &format!("a{path}")).await, walk(&root, &format!("b{path}")).await);
            assert_ne!(a.unwrap().qid().path, b.unwrap().qid().path);
        }
        let b = walk(&root, "b").await.unwrap();
        assert_eq!(walk(&root, "a").await.unwrap().rename(name("f"), &b, name("g"), 0).await.err(), Some(Errno::EXDEV));
        assert_eq!(ls(&root).await["a"], walk(&root, "a").await.unwrap().qid().path);
    });
}

#[test]
fn one_directory_at_two_places_is_one_file() {
    in_private(async |dir| {
        for path in ["here", "there"] {
            std::fs::create_dir(dir.join(path)).unwrap();
        }
        std::fs::write(dir.join("here/f"), b"").unwrap();
        rustix::mount::mount_bind(dir.join("here"), dir.join("there")).unwrap();
        let root = open(dir);
        assert_eq!(walk(&root, "here/f").await.unwrap().qid().path, walk(&root, "there/f").await.unwrap().qid().path);
    });
}

#[test]
fn a_protected_directory_is_absent_under_every_mount() {
    in_private(async |dir| {
        std::fs::create_dir_all(dir.join("u/.ssh")).unwrap();
        std::fs::write(dir.join("u/.ssh/id"), b"key").unwrap();
        std::fs::create_dir(dir.join("alias")).unwrap();
        rustix::mount::mount_bind(dir.join("u"), dir.join("alias")).unwrap();
        let disk = Disk::open(dir, DiskOptions::new([7; 32])).unwrap();
        let tree = Ruled::new(disk, Rules::new(Access::ReadWrite).rule("/u/.ssh", Access::Absent));
        let root = tree.attach(&Who::owner(), b"").await.unwrap();
        for path in ["u/.ssh/id", "alias/.ssh/id"] {
            assert_eq!(walk(&root, path).await.err(), Some(Errno::ENOENT), "{path}");
        }
        assert!(ls(&walk(&root, "alias").await.unwrap()).await.is_empty());
    });
}

#[test]
fn an_ordinary_user_makes_a_file_that_nobody_may_write() {
    in_private(async |dir| {
        std::os::unix::fs::chown(dir, Some(12345), Some(12345)).unwrap();
        // Of this thread alone, and of those that it makes.
        rustix::thread::set_thread_groups(&[]).unwrap();
        let (uid, gid) = (rustix::fs::Uid::from_raw(12345), rustix::fs::Gid::from_raw(12345));
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        let root = open(dir);
        let made = root.create(name("f"), file(0o444)).await.unwrap();
        assert_eq!(made.handle.unwrap().write(0, "x".into()).await.unwrap().count, 1);
        let attr = made.node.attr().await.unwrap();
        assert_eq!((attr.uid, attr.gid, attr.mode & 0o7777), (12345, 12345, 0o444));
        assert_eq!(made.node.open(How::WRITE).await.err(), Some(Errno::EACCES));
        // Links need no privilege either, and what cannot be given away is kept.
        root.link(&made.node, name("g")).await.unwrap();
        let given = p9::New { owner: Some((0, 0)), ..file(0o600) };
        assert_eq!(root.create(name("h"), given).await.unwrap().attr.unwrap().uid, 12345);
        assert_eq!(ls(&root).await.len(), 3);
        // A directory that may be listed but not searched tells its names.
        std::fs::create_dir(dir.join("d")).unwrap();
        std::fs::write(dir.join("d/hidden"), b"").unwrap();
        std::fs::set_permissions(dir.join("d"), std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
        let d = walk(&root, "d").await.unwrap();
        assert_eq!(ls(&d).await.into_keys().collect::<Vec<_>>(), ["hidden"]);
        assert_eq!(walk(&d, "hidden").await.err(), Some(Errno::EACCES));
        std::fs::set_permissions(dir.join("d"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    });
}

/// A client of `tree`, which is served to it, and the root as it sees it.
async fn client(tree: TreeRef) -> (Client, NodeRef) {
    let (near, far) = tokio::io::duplex(1 << 16);
    tokio::spawn(server::serve(far, tree, Arc::new(Who::owner()), Limits::default()));
    let client = Client::connect(near, Options::default()).await.unwrap();
    let root = client.attach(&Who::owner(), b"").await.unwrap();
    (client, root)
}

#[test]
fn locks_are_of_the_file_by_whichever_mount_it_is_reached() {
    in_private(async |dir| {
        for file in ["f", "g"] {
            std::fs::write(dir.join(file), "").unwrap();
        }
        rustix::mount::mount_bind(dir.join("f"), dir.join("g")).unwrap();
        let lock = |kind, start| Lock { kind, start, length: 10, owner: 1, pid: 1 };
        let (take, all) = (|start| lock(LockKind::Write, start), Lock { length: 0, ..lock(LockKind::Unlock, 0) });
        // One who attaches once for all its clients, as a namespace does.
        let root = open(dir);
        let tree = synth::tree(root.clone());
        let (held, one) = client(tree.clone()).await;
        let (f, g) = (walk(&one, "f").await.unwrap(), walk(&one, "g").await.unwrap());
        assert_eq!(f.qid().path, g.qid().path);
        f.lock(take(0), false).await.unwrap();
        g.lock(take(5), false).await.expect("an owner is never in its own way");
        g.lock(take(20), false).await.unwrap();
        let (_kept, other) = client(tree).await;
        let (at_f, at_g) = (walk(&other, "f").await.unwrap(), walk(&other, "g").await.unwrap());
        for node in [&at_f, &at_g] {
            for start in [0, 12, 25] {
                assert_eq!(node.lock(take(start), false).await.err(), Some(Errno::EAGAIN), "{start}");
            }
        }
        f.lock(all.clone(), false).await.unwrap();
        at_g.lock(take(20), false).await.expect("what is given back is free by either");
        at_f.lock(all, false).await.unwrap();
        // The client goes that has taken some by both.
        f.lock(take(0), false).await.unwrap();
        g.lock(take(20), false).await.unwrap();
        drop((f, g, one, held));
        at_f.lock(take(0), true).await.unwrap();
        at_f.lock(take(20), true).await.unwrap();
        drop((at_f, at_g, other, root));
        unmount(dir.join("g"), UnmountFlags::DETACH).unwrap();
    });
}
