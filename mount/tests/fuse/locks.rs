//! Locks of programs, in two mounts of one tree and in one.

use std::fs::{self, File, TryLockError};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use p9::layer::Layer;
use p9::tree::{Lock, LockKind};
use p9::{Reply, synth};

use super::*;

/// One tree, shown twice by two clients of a server, and a file in it.
fn twice() -> (TempDir, Shown, Shown) {
    let folder = tempfile::tempdir().unwrap();
    let disk = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    fs::write(folder.path().join("f"), "x").unwrap();
    let (one, other) = (Shown::far(disk.clone()), Shown::far(disk));
    (folder, one, other)
}

fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// Takes (`F_WRLCK`) or drops a lock on the first ten bytes, as fcntl(2) does for a process.
fn fcntl(file: &File, kind: i32) -> Result<(), i32> {
    let flock = libc::flock { l_type: kind as i16, l_whence: 0, l_start: 0, l_len: 10, l_pid: 0 };
    // SAFETY: `F_SETLK` only reads the structure, which outlives the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const flock) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().raw_os_error().unwrap()) }
}

/// Who is in the way of that, as fcntl(2) tells it.
fn in_the_way(file: &File) -> i32 {
    let mut flock = libc::flock { l_type: libc::F_WRLCK as i16, l_whence: 0, l_start: 0, l_len: 10, l_pid: 0 };
    // SAFETY: `F_GETLK` reads and writes the structure, which outlives the call.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETLK, &raw mut flock) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    i32::from(flock.l_type)
}

#[test]
fn two_mounts_of_one_tree_exclude_each_other() {
    let (_folder, one, other) = twice();
    let (mine, theirs) = (open(&one.path("f")), open(&other.path("f")));
    mine.lock().unwrap();
    assert!(matches!(theirs.try_lock(), Err(TryLockError::WouldBlock)), "flock(2)");
    drop(mine);
    theirs.lock().expect("closed, it is free");
    theirs.unlock().unwrap();

    let mine = open(&one.path("f"));
    fcntl(&mine, libc::F_WRLCK).unwrap();
    assert_eq!((fcntl(&theirs, libc::F_WRLCK), in_the_way(&theirs)), (Err(libc::EAGAIN), libc::F_WRLCK), "fcntl(2)");
    fcntl(&mine, libc::F_UNLCK).unwrap();
    assert_eq!(in_the_way(&theirs), libc::F_UNLCK);
    // As POSIX has it: any descriptor of the file that the process closes ends its locks.
    fcntl(&mine, libc::F_WRLCK).unwrap();
    drop(open(&one.path("f")));
    fcntl(&theirs, libc::F_WRLCK).unwrap();
}

#[test]
fn who_takes_a_lock_reads_what_was_written_under_the_one_before() {
    let (_folder, one, other) = twice();
    let (mine, theirs) = (open(&one.path("f")), open(&other.path("f")));
    let read = |file: &File| {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    for round in 0..20_usize {
        let (here, there) = if round % 2 == 0 { (&mine, &theirs) } else { (&theirs, &mine) };
        let text = format!("{round} ").repeat(1 + round % 3);
        here.lock().unwrap();
        here.set_len(0).unwrap();
        here.write_all_at(text.as_bytes(), 0).unwrap();
        here.unlock().unwrap();
        fcntl(there, libc::F_WRLCK).unwrap();
        assert_eq!(read(there), text, "round {round}");
        fcntl(there, libc::F_UNLCK).unwrap();
    }
}

#[test]
fn a_lock_that_is_waited_for_comes_when_it_is_free() {
    let (_folder, one, other) = twice();
    let (mine, theirs) = (open(&one.path("f")), open(&other.path("f")));
    mine.lock().unwrap();
    let waits = std::thread::spawn(move || theirs.lock());
    drop(mine);
    waits.join().unwrap().unwrap();
}

#[test]
fn a_process_that_is_killed_waits_no_more_and_holds_nothing() {
    let (_folder, one, other) = twice();
    let flock = |at: &Path, what: &[&str]| {
        let mut command = Command::new("flock");
        command.arg(at).args(what).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.spawn().unwrap()
    };
    // It says that it has the lock, and keeps it for as long as it lives.
    let mut holds = flock(&one.path("f"), &["sh", "-c", "echo; exec cat"]);
    std::io::Read::read_exact(holds.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    let theirs = open(&other.path("f"));
    assert!(matches!(theirs.try_lock(), Err(TryLockError::WouldBlock)));
    let mut waits = flock(&other.path("f"), &["true"]);
    waits.kill().unwrap();
    waits.wait().unwrap();
    holds.kill().unwrap();
    holds.wait().unwrap();
    // `flock` itself is gone; what it started has the file open, too, until its input ends.
    drop(holds.stdin.take());
    theirs.lock().unwrap();
}

#[test]
fn a_tree_that_keeps_no_locks_leaves_them_to_the_mount() {
    let file = synth::file(|| Ok("text\n".into()));
    let tree = synth::tree(synth::dir([("f", file)]));
    let root = runtime().block_on(async { tree.attach(&Who::owner(), b"").await }).unwrap();
    let shown = Shown::new(root);
    let (one, other) = (File::open(shown.path("f")).unwrap(), File::open(shown.path("f")).unwrap());
    one.lock().unwrap();
    assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
    let waits = std::thread::spawn(move || other.lock());
    drop(one);
    waits.join().unwrap().unwrap();
}

/// A tree that never answers whoever gives a lock back.
#[derive(Clone)]
struct Silent;

impl Layer for Silent {
    fn lock<'a>(&'a self, below: &'a NodeRef, lock: Lock, wait: bool) -> Reply<'a, ()> {
        if lock.kind == LockKind::Unlock { Reply::later(std::future::pending()) } else { below.lock(lock, wait) }
    }
}

#[test]
fn a_server_that_does_not_take_a_lock_back_holds_up_no_close() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("f"), "x").unwrap();
    let disk = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
    let tree = p9::layer::tree(disk, Silent);
    let root = runtime().block_on(async { tree.attach(&Who::owner(), b"").await }).unwrap();
    let shown = Shown::new(root);
    let (mine, other) = (open(&shown.path("f")), open(&shown.path("f")));
    mine.lock().unwrap();
    drop(mine);
    assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)), "it is not given back, which nobody waits for");
    fs::write(folder.path().join("g"), "x").unwrap();
    let posix = open(&shown.path("g"));
    fcntl(&posix, libc::F_WRLCK).unwrap();
    // close(2) asks, and goes on.
    drop(posix);
}
