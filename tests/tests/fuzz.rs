//! Peers that say anything, in all dialects, alone, beside each other and in sessions whose connections are lost: the
//! server does not panic, keeps nothing of them, never leaves the export, and answers others meanwhile.
//!
//! `SLASHN_FUZZ_SECONDS=3600 cargo test -p tests --test fuzz -- --nocapture` searches for an hour; `SLASHN_SEED` tries
//! one case again.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "it is a test: a failure here is the test's, which says what it did"
)]

use std::fmt;
use std::future::poll_fn;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fileserver::{Disk, DiskOptions, LeaseOptions, Leases};
use futures_util::future::{join, join_all};
use ns::{Flags, Namespace};
use p9::client::{self, Client};
use p9::server::{self, Limits, SessionLimits, Sessions};
use p9::tree::{Lock, LockKind};
use p9::wire::Dialect;
use p9::{Tree, TreeRef, Who, synth};
use proptest::prelude::*;
use tests::campaign::search;
use tests::canary::Canary;
use tests::contract::walk;
use tests::conversation::{Around, never_done, talk};
use tests::parked::Parked;
use tests::said::{Said, Words};
use tests::session::Wanted;
use tokio::io::DuplexStream;
use tokio::task::JoinSet;

/// Who speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Peers {
    One,
    Two,
    /// One in a session.
    Session,
    /// Two lanes of a session.
    Lanes,
    /// One in a session, one beside it.
    Both,
}

impl Peers {
    fn count(self) -> u64 {
        if let Self::One | Self::Session = self { 1 } else { 2 }
    }
}

/// What peers say, where, and how it goes.
#[derive(Clone)]
struct Case {
    dialect: Dialect,
    peers: Peers,
    /// A disk alone, or in a namespace with a file whose reads wait.
    namespace: bool,
    hang_up: bool,
    /// Each makes a message, and says who says it.
    numbers: Vec<u64>,
}

impl Case {
    /// What the peer of this number says.
    fn said(&self, peer: u64, words: &Words) -> Vec<Said> {
        let its = self.numbers.iter().filter(|number| *number / 2 % self.peers.count() == peer);
        its.map(|number| words.said(*number, self.dialect)).collect()
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dialect, peers, namespace, hang_up, .. } = self;
        let words = Words::new(Vec::new(), vec![b"TARGET".to_vec()]);
        (0..peers.count()).try_for_each(|peer| {
            writeln!(f, "{dialect:?}, {peers:?}: {peer}, namespace: {namespace}, hang up: {hang_up}")?;
            self.said(peer, &words).iter().try_for_each(|said| writeln!(f, "  {said:?}"))
        })
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let dialect = prop::sample::select(vec![Dialect::Slashn, Dialect::Slashn, Dialect::L, Dialect::Legacy]);
    let peers =
        prop::sample::select(vec![Peers::One, Peers::Two, Peers::Two, Peers::Session, Peers::Lanes, Peers::Both]);
    let numbers = prop::collection::vec(any::<u64>(), 1..250);
    let parts = (dialect, peers, any::<bool>(), prop::bool::weighted(0.3), numbers);
    parts.prop_map(|(dialect, peers, namespace, hang_up, numbers)| {
        let peers = match peers {
            // Others have no sessions.
            Peers::Session if dialect != Dialect::Slashn => Peers::One,
            Peers::Lanes | Peers::Both if dialect != Dialect::Slashn => Peers::Two,
            peers => peers,
        };
        Case { dialect, peers, namespace, hang_up, numbers }
    })
}

/// What panicked since this was last asked, in whichever thread.
fn panics() -> Vec<String> {
    static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());
    static HOOK: std::sync::Once = std::sync::Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            SEEN.lock().unwrap().push(info.to_string());
            // A server's are told at the end, once.
            if std::thread::current().name() != Some("tokio-rt-worker") {
                before(info);
            }
        }));
    });
    std::mem::take(&mut SEEN.lock().unwrap())
}

/// Limits that are met.
fn limits() -> Limits {
    Limits { msize: 8192, fids: 9, in_flight: 48, bytes_in_flight: 1 << 20, ..Limits::default() }
}

/// The tree of a case, and the leases of its disk.
async fn tree(case: &Case, canary: &Canary, parked: &Parked) -> (TreeRef, Arc<Leases>) {
    // Soon over: some peers give nothing back.
    let (release, write_back) = (Duration::from_millis(100), Duration::from_millis(200));
    let leases = Leases::new(LeaseOptions { release, write_back, ..LeaseOptions::default() });
    let options = DiskOptions { leases: leases.clone(), ..DiskOptions::new([7; 32]) };
    let disk = Disk::open(&canary.export(), options).unwrap();
    if !case.namespace {
        return (disk, leases);
    }
    let (namespace, flags) = (Namespace::new(), Flags { create: true, ..Flags::default() });
    namespace.mount("disk", "", disk.root_for(1), "/", flags).await.unwrap();
    let more = synth::dir([("wait", parked.node()), ("l", synth::link("../../outside"))]);
    namespace.mount("more", "", more, "/d/e", Flags { before: true, ..Flags::default() }).await.unwrap();
    namespace.mount("wait", "", parked.node(), "/wait", Flags::default()).await.unwrap();
    (Arc::new(namespace), leases)
}

async fn becomes(what: &str, holds: impl Fn() -> Result<(), String>) -> Result<(), String> {
    for _ in 0..2_000 {
        if holds().is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    holds().map_err(|why| format!("{what}: {why}"))
}

/// A server, and the connections to it. Clones are the same.
#[derive(Clone)]
struct Served {
    tree: TreeRef,
    sessions: Sessions,
    serving: Arc<Mutex<JoinSet<Result<(), server::Error>>>>,
}

impl Served {
    fn connect(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(1 << 16);
        let Self { tree, sessions, serving } = self.clone();
        let serve = async move { sessions.serve(far, tree, Arc::new(Who::owner()), limits()).await };
        serving.lock().unwrap().spawn(serve);
        near
    }

    /// The streams over which the peers of `case` speak.
    fn streams(&self, case: &Case, around: &Around) -> Vec<(DuplexStream, Around)> {
        let plain = || (self.connect(), Around { may_end: Arc::default(), ..around.clone() });
        let served = self.clone();
        let lanes = if case.peers == Peers::Lanes { 2 } else { 1 };
        let wanted = Wanted::new(lanes, case.hang_up, move || served.connect());
        let lane = |number| {
            let around = Around { may_end: wanted.may_end.clone(), session: true, ..around.clone() };
            (wanted.lane(number), around)
        };
        match case.peers {
            Peers::One => vec![plain()],
            Peers::Two => vec![plain(), plain()],
            Peers::Session => vec![lane(0)],
            Peers::Lanes => vec![lane(0), lane(1)],
            Peers::Both => vec![lane(0), plain()],
        }
    }

    /// Somebody else is answered, whatever the peers do.
    async fn answers(&self) -> Result<(), String> {
        let asks = async {
            let options = client::Options { dialect: Dialect::L, ..client::Options::default() };
            let client = Client::connect(self.connect(), options).await.map_err(|err| err.to_string())?;
            let root = client.attach(&Who::owner(), b"").await.map_err(|err| err.to_string())?;
            root.attr().await.map_err(|err| err.to_string())
        };
        let answered = tokio::time::timeout(Duration::from_secs(60), asks).await;
        answered.map_err(|_| "nobody is answered")?.map_err(|err| format!("another is refused: {err}"))?;
        Ok(())
    }

    /// Returns when all connections have ended whose peers have gone.
    async fn ended(&self) -> Result<(), String> {
        loop {
            let next = poll_fn(|cx| self.serving.lock().unwrap().poll_join_next(cx));
            let served = tokio::time::timeout(Duration::from_secs(60), next).await;
            let Some(served) = served.map_err(|_| "the server goes on when its peer has gone")? else { return Ok(()) };
            served.map_err(|err| format!("the server: {err}"))?.ok();
        }
    }

    /// Returns when nobody holds a lock. One that was being taken when its client went may still be taken, and is then
    /// given back.
    async fn unlocked(&self) -> Result<(), String> {
        for _ in 0..2_000 {
            if self.locked().await.is_none() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.locked().await.map_or(Ok(()), |locked| Err(format!("a lock is left: {locked}")))
    }

    /// A file on which somebody holds a lock.
    async fn locked(&self) -> Option<String> {
        let root = self.tree.attach(&Who::owner(), b"").await.ok()?;
        for path in ["f", "a", "d/f", "d/e/f"] {
            let Ok(node) = walk(&root, path).await else { continue };
            let lock = Lock { kind: LockKind::Write, start: 0, length: 0, owner: 1, pid: 1 };
            if let Ok(Some(lock)) = node.conflicting_lock(lock).await {
                return Some(format!("{path}: {lock:?}"));
            }
        }
        None
    }
}

async fn run(case: &Case) -> Result<(), String> {
    let (canary, parked) = (Arc::new(Canary::new()), Parked::default());
    canary.bait();
    let words = Words::new(canary.way(), canary.targets());
    let said: Vec<Vec<Said>> = (0..case.peers.count()).map(|peer| case.said(peer, &words)).collect();
    let (tree, leases) = tree(case, &canary, &parked).await;
    let sessions = Sessions::new(SessionLimits::default());
    let served = Served { tree, sessions, serving: Arc::default() };
    let base = canary.open();
    let may_end = Arc::default();
    let around =
        Around { canary: canary.clone(), parked: parked.clone(), may_end, session: false, hang_up: case.hang_up };
    let mut rest: Vec<&[Said]> = said.iter().map(Vec::as_slice).collect();
    while rest.iter().any(|rest| !rest.is_empty()) {
        let streams = served.streams(case, &around);
        let talks = rest.iter().zip(streams).map(|(rest, (stream, around))| async move {
            // All is let go while the connection is there, unless it ends before that.
            talk(stream, case.dialect, rest, &around).await
        });
        let (done, answered) = join(join_all(talks), served.answers()).await;
        answered?;
        for (rest, done) in rest.iter_mut().zip(done) {
            *rest = rest.get(done?.max(1)..).unwrap_or_default();
        }
        served.ended().await?;
        if case.hang_up {
            served.sessions.end(|_| true);
        }
        becomes("sessions", || match (served.sessions.count(), served.sessions.kept()) {
            ((0, 0), 0) => Ok(()),
            left => Err(format!("{left:?} are left")),
        })
        .await?;
        let more = |open: Vec<PathBuf>| open.into_iter().filter(|path| !base.contains(path)).collect::<Vec<_>>();
        becomes("what a connection had open", || match &more(canary.open())[..] {
            [] => Ok(()),
            left => Err(format!("{left:?} is left")),
        })
        .await?;
        served.unlocked().await?;
    }
    becomes("leases", || if leases.live() == 0 { Ok(()) } else { Err(format!("{} are left", leases.live())) }).await?;
    drop(served);
    becomes("descriptors", || if canary.open().is_empty() { Ok(()) } else { Err(format!("{:?}", canary.open())) })
        .await?;
    if parked.count() > 0 {
        return Err("a request waits for a peer that has gone".into());
    }
    canary.assert_untouched();
    Ok(())
}

#[test]
fn whatever_a_peer_says_the_server_stays_within_the_export_and_keeps_nothing() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    panics();
    search("fuzz", 3, &cases(), |case| {
        panics();
        let done = runtime.block_on(run(&case));
        match &panics()[..] {
            [] => done.map_err(TestCaseError::fail),
            panics => Err(TestCaseError::fail(format!("{}\n{done:?}", panics.join("\n")))),
        }
    });
    eprintln!("fuzz: never done: {:?}", never_done());
}
