//! A machine that slept: what it kept may have been changed meanwhile, and it was not there to be told.

use std::fs;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use fileserver::{LeaseOptions, Leases};
use p9::client::Clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::*;

/// The clock of a machine that sleeps, and its link: nothing passes meanwhile.
struct Sleeper {
    slept: Arc<AtomicU64>,
    passes: watch::Sender<bool>,
    /// How often something was said that did not pass.
    held_up: Arc<AtomicU64>,
}

impl Sleeper {
    fn sleeps(&self) {
        self.passes.send_replace(false);
    }

    /// Some time later.
    fn wakes_up(&self, after: Duration) {
        self.slept.fetch_add(after.as_secs(), Ordering::SeqCst);
    }

    fn is_linked_again(&self) {
        self.passes.send_replace(true);
    }
}

/// `tree`, mounted on a machine that sleeps now and then, and whose kernel keeps things for `ttl`.
fn on_a_sleeper(tree: TreeRef, ttl: Duration) -> (Sleeper, Shown) {
    let (runtime, slept, held_up) = (runtime(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let (passes, gate) = watch::channel(true);
    let (since, stopped) = (slept.clone(), held_up.clone());
    let root = runtime.block_on(async {
        let (near, middle) = tokio::io::duplex(1 << 20);
        let (beyond, far) = tokio::io::duplex(1 << 20);
        tokio::spawn(server::serve(far, tree, Arc::new(Who::owner()), Limits::default()));
        let ((near_read, near_write), (far_read, far_write)) = (tokio::io::split(middle), tokio::io::split(beyond));
        tokio::spawn(carry(near_read, far_write, gate.clone(), held_up.clone()));
        tokio::spawn(carry(far_read, near_write, gate, Arc::default()));
        let clock = Clock::new(move || {
            let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            Duration::new(now.tv_sec as u64 + since.load(Ordering::SeqCst), now.tv_nsec as u32)
        });
        let options = p9::client::Options { clock, ..p9::client::Options::default() };
        Client::connect(near, options).await.unwrap().attach(&Who::owner(), b"").await.unwrap()
    });
    (Sleeper { slept, passes, held_up: stopped }, Shown::on(runtime, root, Options { ttl, ..Options::default() }))
}

async fn carry(
    mut from: impl tokio::io::AsyncRead + Unpin, mut to: impl tokio::io::AsyncWrite + Unpin,
    mut gate: watch::Receiver<bool>, held_up: Arc<AtomicU64>,
) {
    let mut buf = vec![0; 1 << 16];
    while let Ok(got @ 1..) = from.read(&mut buf).await {
        if !*gate.borrow() {
            held_up.fetch_add(1, Ordering::SeqCst);
        }
        if gate.wait_for(|passes| *passes).await.is_err() || to.write_all(&buf[..got]).await.is_err() {
            return;
        }
    }
}

/// A folder, the tree of it, which does not wait for long for who does not give back, and two mounts: of a sleeper, and
/// of another.
fn two(ttl: Duration) -> (TempDir, Sleeper, Shown, Shown) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("f"), "old").unwrap();
    let soon = Duration::from_millis(100);
    let leases = Leases::new(LeaseOptions { release: soon, write_back: soon, ..LeaseOptions::default() });
    let options = DiskOptions { leases, ..DiskOptions::new([7; 32]) };
    let tree: TreeRef = Disk::open(folder.path(), options).unwrap();
    let (sleeper, shown) = on_a_sleeper(tree.clone(), ttl);
    (folder, sleeper, shown, Shown::far(tree))
}

/// What `elsewhere` does to a file while the machine sleeps that has made it and written to it: what the program is
/// then told, what the file holds, and what is beside it.
fn held_back_while(elsewhere: impl FnOnce(&Path)) -> (Result<(), Option<i32>>, String, Option<String>) {
    // The kernel asks nothing when what was just made is written to.
    let (folder, sleeper, shown, other) = two(Duration::from_secs(3600));
    let mut file = fs::File::create_new(shown.path("made")).unwrap();
    sleeper.sleeps();
    file.write_all(b"ours").unwrap();
    elsewhere(&other.path("made"));
    sleeper.is_linked_again();
    let told = file.sync_all().map_err(|err| err.raw_os_error());
    let beside = fs::read_to_string(folder.path().join("made.conflict-1")).ok();
    if beside.is_some() {
        until("it is seen", || fs::read_to_string(shown.path("made.conflict-1")).ok() == beside);
    }
    (told, fs::read_to_string(folder.path().join("made")).unwrap(), beside)
}

#[test]
fn what_was_held_back_by_a_machine_that_slept_is_written_unless_another_has_written() {
    let looked = held_back_while(|path| assert_eq!(fs::read_to_string(path).unwrap(), "", "nobody has heard of it"));
    assert_eq!(looked, (Ok(()), "ours".into(), None));
    let written = held_back_while(|path| fs::write(path, "theirs").unwrap());
    assert_eq!(written, (Err(Some(libc::ESTALE)), "theirs".into(), Some("ours".into())));
}

#[test]
fn what_was_kept_is_not_told_by_a_machine_that_has_slept() {
    let (_folder, sleeper, shown, other) = two(Duration::ZERO);
    assert_eq!(fs::read_dir(&*shown).unwrap().count(), 1);
    assert_eq!((fs::read_to_string(shown.path("f")).unwrap(), shown.path("new").exists()), ("old".into(), false));
    sleeper.sleeps();
    // The kernel needs no answer for what it finds here: all is at hand.
    assert_eq!(fs::read_to_string(shown.path("f")).unwrap(), "old", "it is kept");
    fs::write(other.path("f"), "newer").unwrap();
    fs::write(other.path("new"), "").unwrap();
    sleeper.wakes_up(Duration::from_secs(3600));
    let (f, new, before) = (shown.path("f"), shown.path("new"), sleeper.held_up.load(Ordering::SeqCst));
    let looks = std::thread::spawn(move || (fs::read_to_string(f).unwrap(), new.exists()));
    let asks = || sleeper.held_up.load(Ordering::SeqCst) > before;
    until("something is asked, or answered", || asks() || looks.is_finished());
    assert!(!looks.is_finished(), "whoever looks waits for the server");
    sleeper.is_linked_again();
    assert_eq!(looks.join().unwrap(), ("newer".into(), true));
}
