//! A peer that says anything, in all dialects: the server does not panic, keeps nothing of it, and never leaves the
//! export.
//!
//! `SLASHN_FUZZ_SECONDS=3600 cargo test -p tests --test fuzz -- --nocapture` searches for an hour; `SLASHN_SEED` tries
//! one case again.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fileserver::{Disk, DiskOptions, LeaseOptions, Leases};
use ns::{Flags, Namespace};
use p9::server::{self, Limits};
use p9::wire::Dialect;
use p9::{TreeRef, Who, synth};
use proptest::prelude::*;
use tests::campaign::search;
use tests::canary::Canary;
use tests::conversation::talk;
use tests::parked::Parked;
use tests::said::{Said, Words};

/// What a peer says, where, and how it goes.
#[derive(Clone)]
struct Case {
    dialect: Dialect,
    /// A disk alone, or in a namespace with a file whose reads wait.
    namespace: bool,
    hang_up: bool,
    numbers: Vec<u64>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dialect, namespace, hang_up, numbers } = self;
        writeln!(f, "{dialect:?}, namespace: {namespace}, hang up: {hang_up}")?;
        let words = Words::new(Vec::new(), vec![b"TARGET".to_vec()]);
        numbers.iter().try_for_each(|number| writeln!(f, "  {:?}", words.said(*number, *dialect)))
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let dialect = prop::sample::select(Dialect::ALL.to_vec());
    let parts = (dialect, any::<bool>(), prop::bool::weighted(0.3), prop::collection::vec(any::<u64>(), 1..250));
    parts.prop_map(|(dialect, namespace, hang_up, numbers)| Case { dialect, namespace, hang_up, numbers })
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
    let leases = Leases::new(LeaseOptions::default());
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

async fn run(case: &Case) -> Result<(), String> {
    let (canary, parked) = (Arc::new(Canary::new()), Parked::default());
    canary.bait();
    let words = Words::new(canary.way(), canary.targets());
    let said: Vec<Said> = case.numbers.iter().map(|number| words.said(*number, case.dialect)).collect();
    let (tree, leases) = tree(case, &canary, &parked).await;
    let base = canary.open();
    let mut rest = &said[..];
    while !rest.is_empty() {
        let (near, far) = tokio::io::duplex(1 << 16);
        let serving = tokio::spawn(server::serve(far, tree.clone(), Arc::new(Who::owner()), limits()));
        // All is let go while the connection is there, unless it ends before that.
        let done = talk(near, case.dialect, rest, &canary, &parked, case.hang_up).await?;
        rest = &rest[done.max(1)..];
        let served = tokio::time::timeout(Duration::from_secs(60), serving).await;
        served
            .map_err(|_| "the server goes on when its peer has gone")?
            .map_err(|err| format!("the server: {err}"))?
            .ok();
        let more = |open: Vec<PathBuf>| open.into_iter().filter(|path| !base.contains(path)).collect::<Vec<_>>();
        becomes("what a connection had open", || match &more(canary.open())[..] {
            [] => Ok(()),
            left => Err(format!("{left:?} is left")),
        })
        .await?;
    }
    becomes("leases", || if leases.live() == 0 { Ok(()) } else { Err(format!("{} are left", leases.live())) }).await?;
    drop(tree);
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
}
