//! What peers cost a node of the built binaries in memory: many that do nothing little, and one that takes all that it
//! can get no more than `SECURITY.md` says, while another is served.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use node::dial::{Dialer, LINGER};
use node::home::Home;
use p9::transport::Io;
use p9::wire::{Data, NO_FID, NO_UID, R, Step, Steps, Str, T, VERSION_L};
use p9::{Errno, How, Name, Want};
use tests::machine::{Done, Machine, PATIENCE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

/// The most that a flood of one peer may add to the resident memory of a node, in bytes.
const BOUND: usize = 640 << 20;
/// What it is at least, or it was none.
const FLOOD: usize = 200 << 20;
const MIB: usize = 1 << 20;

/// The resident memory of the node, now or at most so far.
fn memory(pid: &str, field: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}

/// The process of the node.
fn node_of(machine: &Machine) -> String {
    let node = machine.processes().into_iter().find(|line| line.contains(" up ")).expect("the node runs");
    node.split(' ').next().unwrap().to_string()
}

/// A connection that says what a client would not.
struct Peer(Io);

impl Peer {
    /// With the file `big` open as fid 1.
    async fn new(dialer: &Dialer) -> Self {
        let mut peer = Self(Box::new(dialer.connect(&dialer.find("alpha").unwrap()).await.unwrap()));
        let steps: Vec<_> = ["fs", "files", "big"].map(|name| Step::Into(Name::new(name.as_bytes()).unwrap())).into();
        let steps = Steps::encode(&steps);
        let messages = [
            T::Version { msize: 1 << 20, version: Str(VERSION_L) },
            T::Attach { fid: 0, afid: NO_FID, uname: Str(b""), aname: Str(b""), n_uname: Some(NO_UID) },
            T::Walk { fid: 0, newfid: 1, steps: Steps::of(&steps, 3) },
            T::Lopen { fid: 1, flags: 2 },
        ];
        for message in messages {
            peer.say(1, &message).await;
            let (code, _) = peer.hear().await;
            assert_eq!(code, message.code() + 1, "{message:?}");
        }
        peer
    }

    async fn say(&mut self, tag: u16, message: &T<'_>) {
        let mut frame = Vec::new();
        message.encode(tag, &mut frame);
        self.0.write_all(&frame).await.unwrap();
        self.0.flush().await.unwrap();
    }

    async fn hear(&mut self) -> (u8, Vec<u8>) {
        let size = self.0.read_u32_le().await.unwrap() as usize;
        let mut frame = vec![0; size - 4];
        self.0.read_exact(&mut frame).await.unwrap();
        (frame[0], frame[3..].to_vec())
    }
}

/// Asks for all of the file many times, and takes nothing.
async fn collects_nothing(mut peer: Peer) {
    for tag in 0..64 {
        peer.say(tag, &T::Read { fid: 1, offset: 0, count: MIB as u32 - 24 }).await;
    }
    std::future::pending().await
}

/// Begins the largest frame that there may be, and does not end it.
async fn ends_no_frame(mut peer: Peer) {
    let (mut frame, data) = (Vec::new(), vec![7; MIB - 100]);
    T::Write { fid: 1, offset: 0, data: Data(&data) }.encode(2, &mut frame);
    // Where there is no room it is not read, and this waits.
    peer.0.write_all(&frame[..frame.len() - 1]).await.unwrap();
    peer.0.flush().await.unwrap();
    std::future::pending().await
}

/// Waits for a lock that another has, as often as it may; counts what is refused.
async fn waits_for_locks(mut peer: Peer, asked: Arc<AtomicUsize>, refused: Arc<AtomicUsize>) {
    for tag in 0..1000 {
        let client_id = Str(b"waits");
        let lock = T::Lock { fid: 1, kind: 1, flags: 1, start: 0, length: 0, proc_id: u32::from(tag), client_id };
        peer.say(tag, &lock).await;
        asked.fetch_add(1, Ordering::SeqCst);
    }
    loop {
        let (code, body) = peer.hear().await;
        match R::decode(code, &body) {
            Ok(Some(R::Lerror { ecode: 11 })) => refused.fetch_add(1, Ordering::SeqCst),
            other => panic!("{other:?}"),
        };
    }
}

/// Opens a file as a client of ours does, and reads most of it.
async fn reads_all(dialer: &Dialer, names: &[Name<'_>]) -> Result<usize, Errno> {
    let (_client, root) = dialer.attach(&dialer.find("alpha").unwrap(), LINGER).await.map_err(|_| Errno::EAGAIN)?;
    let opened = root.open_at(names, How::READ, Want { data: MIB as u32 - 24, ..Want::default() }).await?;
    opened.first.map(|data| data.len()).ok_or(Errno::EAGAIN)
}

async fn until(what: &str, is: impl Fn() -> bool) {
    let waiting = async {
        while !is() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_one_peer_costs_so_much_memory_and_no_other_peer_its_service() {
    let mut machine = Machine::bare();
    machine.node("alpha");
    machine.somebody("guest");
    let key = fs::read_to_string(machine.at("guest/id_ed25519.pub")).unwrap();
    let alpha = machine.at("alpha").display().to_string();
    machine.slashn(&["--home", &alpha, "allow", key.trim(), "--only", "files"]).succeeds();
    fs::write(machine.at("files-alpha/big"), vec![7; MIB]).unwrap();
    fs::write(machine.at("files-alpha/other"), vec![8; MIB]).unwrap();
    let pid = node_of(&machine);
    let dialer = |home: &str| Dialer::open(&Home::open(&machine.at(home)).unwrap(), None).unwrap();
    let (guest, me) = (dialer("guest"), dialer("me"));
    let idle = memory(&pid, "VmRSS:");

    let mut holder = Peer::new(&guest).await;
    let lock = T::Lock { fid: 1, kind: 1, flags: 0, start: 0, length: 0, proc_id: 1, client_id: Str(b"holds") };
    holder.say(3, &lock).await;
    assert!(matches!(R::decode(53, &holder.hear().await.1), Ok(Some(R::Lock { status: 0 }))));
    let (asked, refused) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut peers = Vec::new();
    for _ in 0..264 {
        peers.push(Peer::new(&guest).await);
    }
    let mut flood = JoinSet::new();
    for (number, peer) in peers.into_iter().enumerate() {
        match number {
            0..40 => flood.spawn(collects_nothing(peer)),
            40..240 => flood.spawn(ends_no_frame(peer)),
            _ => flood.spawn(waits_for_locks(peer, asked.clone(), refused.clone())),
        };
    }
    until("the flood is there", || memory(&pid, "VmRSS:") > idle + FLOOD).await;
    until("all locks are asked for", || asked.load(Ordering::SeqCst) == 24_000).await;
    until("too many are refused", || refused.load(Ordering::SeqCst) >= 24_000 - (16 << 10)).await;

    let (_client, root) = me.attach(&me.find("alpha").unwrap(), LINGER).await.unwrap();
    let names = Name::split(b"fs/files/other").unwrap();
    for round in 0..50 {
        let want = Want { data: MIB as u32 - 24, ..Want::ATTR };
        let opened = root.open_at(&names, How::RDWR, want).await.unwrap();
        assert_eq!((opened.attr.unwrap().size, opened.first.unwrap().len()), (MIB as u64, MIB - 24), "{round}");
        let written = opened.handle.write(0, Bytes::from(vec![8; MIB / 2])).await.unwrap();
        assert_eq!(written.count as usize, MIB / 2);
        opened.handle.close().await.unwrap();
    }
    let most = memory(&pid, "VmHWM:");
    println!("{} MiB idle, {} MiB at most under the flood", idle >> 20, most >> 20);
    assert!(most < idle + BOUND, "{} MiB more than idle", (most - idle) >> 20);
    assert!(flood.try_join_next().is_none(), "the flood went on");
    drop((flood, holder));
    let again = async {
        // A request more than may be is refused until all of them have ended.
        while reads_all(&guest, &names).await != Ok(MIB - 24) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("what it took is free again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_and_ten_thousand_open_files_cost_a_node_little() {
    let mut machine = Machine::bare();
    machine.node("alpha");
    for number in 0..10_000 {
        fs::write(machine.at("files-alpha").join(number.to_string()), b"").unwrap();
    }
    let pid = node_of(&machine);
    let me = Dialer::open(&Home::open(&machine.at("me")).unwrap(), None).unwrap();
    let alpha = me.find("alpha").unwrap();
    let mut held = Vec::new();
    for _ in 0..1000 {
        held.push(me.attach(&alpha, LINGER).await.unwrap());
    }
    let connected = memory(&pid, "VmRSS:");
    println!("{} KiB with 1,000 sessions", connected >> 10);
    assert!(connected < 100_000_000, "{connected} bytes with 1,000 connections that do nothing");
    let files = held[0].1.walk(&Name::split(b"fs/files").unwrap(), Want::default()).await.unwrap().reached().unwrap();
    let mut opened = Vec::new();
    for number in 0..10_000 {
        let name = number.to_string();
        let name = [Name::new(name.as_bytes()).unwrap()];
        opened.push(files.node.open_at(&name, How::READ, Want::default()).await.unwrap());
    }
    let each = memory(&pid, "VmRSS:").saturating_sub(connected) / opened.len();
    println!("{each} bytes for each open file");
    assert!(each < 1024, "{each} bytes for each file, which has two fids, one of them open");
}
