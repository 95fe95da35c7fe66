//! Those who wait: freed by signals and by unmounting, and in nobody's way.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use p9::{Attr, Handle, How, Name, Node, Qid, Reply, Stream, Walk, Want, synth};
use rustix::process::{Pid, Signal, kill_process};

use super::*;

/// Counts those who wait in a read that never ends.
#[derive(Clone, Default)]
struct Never(Arc<AtomicUsize>);

struct Waiter<'a>(&'a AtomicUsize);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Stream for Never {
    fn read(&self, _: u64, _: u32) -> Reply<'_, Bytes> {
        Reply::later(async move {
            self.0.fetch_add(1, Ordering::SeqCst);
            let _waiter = Waiter(&self.0);
            std::future::pending().await
        })
    }
}

impl Never {
    fn file(&self) -> NodeRef {
        let never = self.clone();
        synth::stream(0o444, move |_| Reply::ok(Arc::new(never.clone())))
    }

    fn waiting(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

/// A directory in which no name is ever found.
struct Deaf(Never);

impl Node for Deaf {
    fn qid(&self) -> Qid {
        Qid { kind: p9::FileKind::Dir, version: 0, path: 99 }
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(Attr::synthetic(self.qid(), 0o555))
    }

    fn walk<'a>(&'a self, _: &'a [Name<'a>], _: Want) -> Reply<'a, Walk> {
        Reply::later(async move { self.0.read(0, 0).await.and(Err(p9::Errno::EIO)) })
    }

    fn open(&self, _: How) -> Reply<'_, Handle> {
        p9::Errno::EACCES.into()
    }
}

fn start(shown: &Shown, script: &str) -> Child {
    let mut command = Command::new("sh");
    command.args(["-c", script]).current_dir(&**shown).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

fn end(child: &mut Child) -> std::process::ExitStatus {
    let mut status = None;
    until("the process has ended", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

fn never() -> (Never, Shown) {
    let never = Never::default();
    let shown = Shown::new(synth::dir([
        ("never", never.file()),
        ("deaf", Arc::new(Deaf(never.clone())) as NodeRef),
        ("text", synth::file(|| Ok("text".into()))),
    ]));
    (never, shown)
}

#[test]
fn who_waits_in_a_read_or_a_lookup_dies_of_a_signal() {
    let (never, shown) = never();
    for script in ["exec cat never", "exec cat deaf/name"] {
        for with in [Signal::INT, Signal::TERM, Signal::KILL] {
            let mut child = start(&shown, script);
            until("it waits", || never.waiting() == 1);
            signal(&child, with);
            assert_eq!(end(&mut child).signal(), Some(with.as_raw()), "{script}");
            until("the question was taken back", || never.waiting() == 0);
        }
    }
}

#[test]
fn a_program_that_handles_the_signal_is_told_of_it() {
    let (never, shown) = never();
    let script = "import signal,sys\n\
        def told(*_): print('told'); sys.exit(7)\n\
        signal.signal(signal.SIGINT, told); signal.signal(signal.SIGUSR1, lambda *_: None)\n\
        open('never','rb',0).read(1)\n";
    let mut child = Command::new("python3");
    let child = child.args(["-c", script]).current_dir(&*shown).stdout(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    until("it waits", || never.waiting() == 1);
    // Nobody asks it to end by this one, and a read that fails with EINTR would not be begun again.
    signal(&child, Signal::USR1);
    signal(&child, Signal::INT);
    assert_eq!(end(&mut child).code(), Some(7));
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "told\n");
}

#[test]
fn a_blocked_read_stalls_nobody_else() {
    let (never, shown) = never();
    let mut children: Vec<_> = (0..20).map(|_| start(&shown, "exec cat never")).collect();
    until("all of them wait", || never.waiting() == 20);
    assert_eq!(std::fs::read_to_string(shown.path("text")).unwrap(), "text");
    assert_eq!(std::fs::read_dir(&*shown).unwrap().count(), 3);
    for child in &mut children {
        signal(child, Signal::KILL);
        end(child);
    }
}

#[test]
fn unmounting_frees_those_who_wait() {
    let (never, mut shown) = never();
    let mut child = start(&shown, "cat never; echo ended $?");
    until("it waits", || never.waiting() == 1);
    let mount = shown.mount.take().unwrap();
    mount.unmount().unwrap();
    let ended = shown.runtime.block_on(async { tokio::time::timeout(PATIENCE, mount.ended()).await });
    assert!(end(&mut child).success());
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "ended 1\n");
    ended.expect("the session ends when nobody is in it");
    assert_eq!(never.waiting(), 0);
}

#[test]
fn a_mount_that_somebody_else_unmounts_has_ended() {
    let (_, mut shown) = never();
    mount::unmount(&shown.at.canonicalize().unwrap()).unwrap();
    let mount = shown.mount.take().unwrap();
    shown.runtime.block_on(async { tokio::time::timeout(PATIENCE, mount.ended()).await }).unwrap();
    mount.unmount().unwrap();
    assert!(mount::unmount(&shown.at).is_err());
}

#[test]
fn a_mount_point_in_use_is_refused() {
    let (_, shown) = never();
    let again = mount::mount(synth::dir([]), &shown.at, Options::default(), shown.runtime.handle().clone());
    assert!(matches!(again.err(), Some(mount::Error::InUse(_))));
    assert!(!mount::stale(&shown.at));
    mount::clean(&shown.at).unwrap();
    assert_eq!(std::fs::read_to_string(shown.path("text")).unwrap(), "text");
}

/// Not a test: a daemon for the next one to kill.
#[test]
#[ignore = "started by another test"]
fn serves_until_it_is_killed() {
    let Some(at) = std::env::var_os("SERVE_AT") else { return };
    let runtime = Runtime::new().unwrap();
    let root = synth::dir([("text", synth::file(|| Ok("text".into())))]);
    let _mount = mount::mount(root, at.as_ref(), Options::default(), runtime.handle().clone()).unwrap();
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
pub(crate) fn what_a_killed_daemon_left_is_cleaned_by_the_next_mount() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().canonicalize().unwrap();
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "waiting::serves_until_it_is_killed"])
        .env("SERVE_AT", &at)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("it serves", || at.join("text").exists());
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    until("it is stale", || mount::stale(&at));
    let runtime = Runtime::new().unwrap();
    let root = synth::dir([("other", synth::file(|| Ok("other".into())))]);
    let mount = mount::mount(root, &at, Options::default(), runtime.handle().clone()).unwrap();
    assert_eq!(std::fs::read_to_string(at.join("other")).unwrap(), "other");
    assert!(!mount::stale(&at));
    drop(mount);
    assert_eq!(std::fs::read_dir(&at).unwrap().count(), 0);
}
