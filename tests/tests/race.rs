//! While somebody on the machine swaps directories and links under an export as fast as can be, clients work through
//! these names: nothing outside is touched.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fileserver::{Disk, DiskOptions};
use p9::wire::Dialect;
use p9::{Attr, Errno, How, Name, New, NodeRef, SetAttr, SetTime, Time, Want, What};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tests::canary::Canary;
use tests::contract;
use tests::grid::Grid;

/// The names that are swapped, each with a link that leads out.
const SWAPPED: [&str; 3] = ["s", "d/s", "s2"];

fn prepare(canary: &Canary) {
    canary.bait();
    let (export, outside) = (canary.export(), canary.outside());
    for (at, out) in SWAPPED.iter().zip([outside.as_path(), Path::new("../../outside"), Path::new("up")]) {
        fs::create_dir_all(export.join(at).join("d")).unwrap();
        fs::write(export.join(at).join("f"), "inside").unwrap();
        std::os::unix::fs::symlink(out, export.join(format!("{at}.out"))).unwrap();
    }
}

/// Somebody on the machine who swaps all the time, until it is dropped.
struct Swapper {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<u64>>,
}

impl Swapper {
    fn start(export: PathBuf) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut swaps = 0;
            while !stopped.load(Ordering::Relaxed) {
                for at in SWAPPED {
                    let (one, other) = (export.join(at), export.join(format!("{at}.out")));
                    renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                    swaps += 1;
                }
            }
            swaps
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops; how often it has swapped.
    fn stop(&mut self) -> Option<u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take()?.join().ok()
    }
}

impl Drop for Swapper {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What became of the clients' operations.
#[derive(Default)]
struct Tally {
    done: AtomicU64,
    refused: AtomicU64,
}

/// One client, which does all it can through the names that are swapped.
struct Client<'a> {
    root: NodeRef,
    canary: &'a Canary,
    tally: &'a Tally,
    number: usize,
}

impl Client<'_> {
    fn took<T>(&self, what: &str, answer: Result<T, Errno>) -> Option<T> {
        assert!(!matches!(answer, Err(Errno::EIO | Errno::EPROTO)), "{what}: {:?}", answer.err());
        let counter = if answer.is_ok() { &self.tally.done } else { &self.tally.refused };
        counter.fetch_add(1, Ordering::Relaxed);
        answer.ok()
    }

    fn looks(&self, attr: &Attr) {
        let mut bytes = [attr.size.to_le_bytes(), (attr.mtime.sec as u64).to_le_bytes()].concat();
        bytes.extend(u64::from(attr.mtime.nsec).to_le_bytes());
        assert_eq!(self.canary.marked(&bytes), None, "a client sees the attributes of what is outside: {attr:?}");
    }

    async fn round(&self, turn: usize) {
        let at = SWAPPED[turn % SWAPPED.len()];
        let names = Name::split(at.as_bytes()).unwrap();
        let file = [&names[..], &[contract::name("f")]].concat();
        let opened = self.root.open_at(&file, How::RDWR, Want { data: 64, ..Want::ATTR }).await;
        if let Some(opened) = self.took("open", opened) {
            if let Some(attr) = &opened.attr {
                self.looks(attr);
            }
            let text = opened.handle.read(0, 4096).await.unwrap_or_default();
            assert_eq!(self.canary.marked(&text), None, "a client reads what is outside");
            self.took("write", opened.handle.write(0, Bytes::from_static(b"written")).await);
            let _ = opened.handle.close().await;
        }
        let walked = self.root.walk(&names, Want::ATTR).await.and_then(p9::Walk::reached);
        let Some(dir) = self.took("walk", walked) else { return };
        if let Some(attr) = &dir.attr {
            self.looks(attr);
        }
        self.entries(&dir.node).await;
        self.change(&dir.node).await;
    }

    async fn entries(&self, dir: &NodeRef) {
        if dir.qid().kind != p9::FileKind::Dir {
            return;
        }
        let names: BTreeMap<_, _> = self.took("list", contract::list(dir, 100).await).unwrap_or_default();
        for name in names.keys() {
            assert_eq!(self.canary.marked(name.as_name().as_bytes()), None, "a client lists what is outside");
        }
    }

    async fn change(&self, dir: &NodeRef) {
        let mine = |text: &str| format!("{text}{}", self.number);
        let (new, moved, linked, sub) = (mine("new"), mine("moved"), mine("linked"), mine("sub"));
        let [new, moved, linked, sub] = [&new, &moved, &linked, &sub].map(|text| contract::name(text));
        let make = |what| New { what, mode: 0o755, owner: None };
        if let Some(made) = self.took("create", dir.create(new, make(What::File(How::RDWR))).await) {
            let handle = made.handle.unwrap();
            self.took("write", handle.write(0, Bytes::from_static(b"mine")).await);
            self.took("link", dir.link(&made.node, linked).await);
            let _ = handle.close().await;
        }
        self.took("mkdir", dir.create(sub, make(What::Dir)).await);
        self.took("symlink", dir.create(moved, make(What::Link(b"../../outside/f"))).await);
        self.took("rename", dir.rename(new, dir, moved, 0).await);
        self.took("move out", dir.rename(moved, &self.root, moved, 0).await);
        // Also what is there on both sides.
        let f = contract::name("f");
        if let Some(node) = self.took("walk", contract::walk(dir, "f").await) {
            let mtime = Some(SetTime::At(Time { sec: 1, nsec: 2 }));
            let change = SetAttr { mode: Some(0o600), size: Some(3), mtime, ..SetAttr::default() };
            if let Some(attr) = self.took("change", node.set_attr(change).await) {
                self.looks(&attr);
            }
        }
        self.took("rename", dir.rename(f, dir, moved, 0).await);
        self.took("rename", dir.rename(moved, dir, f, 0).await);
        for (name, is_dir) in [(linked, false), (sub, true), (new, false), (moved, false)] {
            self.took("remove", dir.remove(name, is_dir).await);
        }
        self.took("remove", self.root.remove(moved, false).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapped_directories_and_links_lead_nobody_out() {
    let canary = Canary::new();
    prepare(&canary);
    let mut swapper = Swapper::start(canary.export());
    // Few descriptors are kept, so that files are looked for again all the time.
    let options = DiskOptions { descriptors: 2, ..DiskOptions::new([7; 32]) };
    let disk = Disk::open(&canary.export(), options).unwrap();
    let seconds = std::env::var("SLASHN_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let (tally, until) = (Tally::default(), Instant::now() + Duration::from_secs(seconds));
    let mut clients = Vec::new();
    for number in 0..4 {
        let root = match number {
            0 => disk.root(),
            // Whose walks follow links, at the server.
            1 => Grid::new().serve("a", disk.clone()).dialect(Dialect::Legacy).root("a").await.unwrap(),
            _ => Grid::new().serve("a", disk.clone()).root("a").await.unwrap(),
        };
        clients.push(Client { root, canary: &canary, tally: &tally, number });
    }
    let work = clients.iter().map(|client| async move {
        let mut turn = 0;
        while turn == 0 || Instant::now() < until {
            client.round(turn).await;
            turn += 1;
        }
    });
    futures_util::future::join_all(work).await;
    let swaps = swapper.stop().unwrap();
    canary.assert_untouched();
    let (done, refused) = (tally.done.into_inner(), tally.refused.into_inner());
    eprintln!("race: {swaps} swaps, {done} operations done, {refused} refused");
    assert!(swaps > 0 && done > 0 && refused > 0, "there was no race");
}
