//! Group `scale`: what a node costs that does nothing, what idle connections and open fids add to it, how long a stat
//! takes while another client reads at full speed, and until a client is told of what a local process changes.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use p9::client::{Client, Options};
use p9::tree::LeaseKind;
use p9::{Handle, How, Name, Want};
use tests::machine::{Machine, PATIENCE};

use crate::Row;
use crate::p9::{At, Diod, Ours, attach, open, walk};

const CONNECTIONS: usize = 1_000;
const FIDS: usize = 10_000;
const STATS: usize = 4_000;
const CHANGES: usize = 1_000;
const BIG_BYTES: u64 = 256 << 20;
const PIECE: u32 = 1 << 20;

pub(crate) fn run() -> Vec<Row> {
    let mut machine = Machine::bare();
    machine.node("alpha");
    let idle = resident_kib(&machine);
    let home = ::node::home::Home::open(&machine.at("me")).expect("my home");
    let dialer = ::node::dial::Dialer::open(&home, None).expect("my key and the nodes I know");
    let alpha = dialer.find("alpha").expect("the node that was added");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let held: Vec<Client> = runtime.block_on(async {
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            let io = dialer.connect(&alpha).await.expect("a connection");
            held.push(Client::connect(io, Options::default()).await.expect("a version"));
        }
        held
    });
    let busy = resident_kib(&machine);
    drop(held);
    let mut rows = vec![
        row("a node, idle: resident", idle / 1024.0, "MiB"),
        row("the same with 1,000 idle connections", busy / 1024.0, "MiB"),
        row("each of them adds", (busy - idle) / CONNECTIONS as f64, "KiB"),
        row("each of 10,000 open files adds", of_an_open_file(), "B"),
    ];
    rows.extend(beside_a_reader());
    rows.extend(until_told());
    rows
}

/// What each of many open files adds, in bytes, to a node that has done nothing else.
fn of_an_open_file() -> f64 {
    let mut machine = Machine::bare();
    machine.node("alpha");
    let files = machine.at("files-alpha");
    for number in 0..FIDS {
        fs::write(files.join(number.to_string()), b"").expect("a small file");
    }
    let home = ::node::home::Home::open(&machine.at("me")).expect("my home");
    let dialer = ::node::dial::Dialer::open(&home, None).expect("my key and the nodes I know");
    let alpha = dialer.find("alpha").expect("the node that was added");
    let runtime = crate::p9::runtime();
    let (_client, root) = runtime.block_on(dialer.attach(&alpha, ::node::dial::LINGER)).expect("alpha");
    let before = resident_kib(&machine);
    let opened: Vec<Handle> = runtime.block_on(async {
        let files = walk(&root, b"fs/files").await;
        let mut opened = Vec::new();
        for number in 0..FIDS {
            let name = number.to_string();
            let name = [Name::new(name.as_bytes()).expect("a name")];
            opened.push(files.open_at(&name, How::READ, Want::default()).await.expect("an open file").handle);
        }
        opened
    });
    let after = resident_kib(&machine);
    drop(opened);
    (after - before) * 1024.0 / FIDS as f64
}

/// The time that the slowest hundredth of stats takes at least, while another client reads at full speed.
fn beside_a_reader() -> Vec<Row> {
    let machine = Machine::bare();
    let dir = machine.at("served");
    fs::create_dir_all(&dir).expect("a folder");
    fs::write(dir.join("big"), vec![7; BIG_BYTES as usize]).expect("a large file");
    let (ours, diod) = (Ours::start(&machine, &dir), Diod::start(&machine.at("diod.sock"), &dir));
    let mut rows = Vec::new();
    for (kind, ours, diod) in [("unix", &ours.unix, &diod.unix), ("tcp", &ours.tcp, &diod.tcp)] {
        // Each client in a runtime of its own, so that neither waits for the other here.
        let p99 = |address, aname: &[u8]| {
            let [reads, stats] = [(), ()].map(|()| crate::p9::runtime());
            let (reader, asker) = (reads.block_on(attach(address, aname)), stats.block_on(attach(address, aname)));
            let ended = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| reads.block_on(read_all(&reader, &ended)));
                let p99 = stats.block_on(p99_of_stats(&asker));
                ended.store(true, Ordering::Relaxed);
                p99
            })
        };
        let (us, them) = (p99(ours, b"fs/served"), p99(diod, dir.as_os_str().as_encoded_bytes()));
        rows.push(Row {
            group: "scale",
            case: format!("{kind}: p99 of a stat while another client reads"),
            ours: us.as_secs_f64() * 1e3,
            peer: Some(("diod", them.as_secs_f64() * 1e3)),
            unit: "ms",
            more_is_better: false,
        });
    }
    rows
}

/// Reads the large file over and over, several pieces at a time.
async fn read_all(at: &At, ended: &AtomicBool) {
    let big = open(at, How::READ).await;
    while !ended.load(Ordering::Relaxed) {
        for group in 0..BIG_BYTES / u64::from(PIECE) / 4 {
            let pieces = (0..4).map(|piece| big.read((group * 4 + piece) * u64::from(PIECE), PIECE).into_future());
            join_all(pieces).await.into_iter().for_each(|data| assert_eq!(data.expect("bytes").len(), PIECE as usize));
            if ended.load(Ordering::Relaxed) {
                return;
            }
        }
    }
}

async fn p99_of_stats(at: &At) -> Duration {
    let name = [Name::new(b"big").expect("a name")];
    let mut times = Vec::with_capacity(STATS);
    for _ in 0..STATS {
        let start = Instant::now();
        at.root.walk(&name, Want::ATTR).await.and_then(p9::Walk::reached).expect("the file");
        times.push(start.elapsed());
    }
    times.sort();
    times[STATS * 99 / 100]
}

/// The time from a change by a local process until a client is told that keeps the directory under a lease.
fn until_told() -> Vec<Row> {
    let machine = Machine::bare();
    let dir = machine.at("served");
    fs::create_dir_all(dir.join("kept")).expect("a folder");
    let (ours, runtime) = (Ours::start(&machine, &dir), crate::p9::runtime());
    let mut times = runtime.block_on(async {
        let at = attach(&ours.tcp, b"fs/served").await;
        let kept = walk(&at.root, b"kept").await;
        let mut times = Vec::with_capacity(CHANGES);
        for number in 0..CHANGES {
            let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
            let on_break = Arc::new(move |_| sender.send(Instant::now()).unwrap_or(()));
            let _lease = kept.lease(LeaseKind::Attr, on_break).await.expect("an answer").expect("a lease");
            let start = Instant::now();
            fs::write(dir.join("kept").join(number.to_string()), b"").expect("a file");
            let told = tokio::time::timeout(PATIENCE, told.recv()).await.ok().flatten().expect("the client is told");
            times.push(told - start);
        }
        times
    });
    times.sort();
    let most = |case, at: usize| Row {
        group: "scale",
        case,
        ours: times[at].as_secs_f64() * 1e3,
        peer: Some(("promised", 100.0)),
        unit: "ms",
        more_is_better: false,
    };
    vec![
        most("tcp: a local change, until a client is told, p99".into(), CHANGES * 99 / 100),
        most("the slowest of 1,000".into(), CHANGES - 1),
    ]
}

/// The resident memory of the node and its launcher.
fn resident_kib(machine: &Machine) -> f64 {
    let of = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).unwrap_or(0.0)
    };
    machine.processes().iter().filter_map(|process| process.split(' ').next()).map(of).sum()
}

fn row(case: &str, ours: f64, unit: &'static str) -> Row {
    Row { group: "scale", case: case.into(), ours, peer: None, unit, more_is_better: false }
}
