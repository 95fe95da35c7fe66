//! Group `p9`: our server and diod, by the same client code, on unix sockets and TCP; and what a bare socket does.
//!
//! Where the server agreed on our dialect the client sends together what belongs together, and waits once; diod is
//! asked one message after another, because that is all it promises.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::join_all;
use p9::client::{Client, Options};
use p9::{Handle, How, Name, NodeRef, Tree, Want, Who, transport};
use tests::machine::{Done, Machine, PATIENCE};
use tokio::runtime::{Builder, Runtime};

use crate::Row;

const SMALL: usize = 2_000;
const SMALL_BYTES: usize = 4 << 10;
const BIG_BYTES: u64 = 256 << 20;
const PIECE: u32 = 1 << 20;
/// Pieces that are asked for before the first has come.
const DEEP: u64 = 4;
const TIMES: usize = 5;

pub(crate) fn run() -> Vec<Row> {
    let mut machine = Machine::bare();
    let tls = machine.node("alpha");
    let dir = machine.at("served");
    fs::create_dir_all(dir.join("small")).expect("a folder");
    for i in 0..SMALL {
        fs::write(dir.join("small").join(i.to_string()), vec![7; SMALL_BYTES]).expect("a small file");
    }
    fs::write(dir.join("big"), vec![7; BIG_BYTES as usize]).expect("a large file");
    let ours = Ours::start(&machine, &dir);
    let diod = Diod::start(&machine.at("diod.sock"), &dir);
    let runtime = runtime();
    let mut rows = Vec::new();
    for (kind, ours, diod) in [("unix", &ours.unix, &diod.unix), ("tcp", &ours.tcp, &diod.tcp)] {
        let us = runtime.block_on(attach(ours, b"fs/served"));
        let them = runtime.block_on(attach(diod, dir.as_os_str().as_encoded_bytes()));
        rows.extend(runtime.block_on(beside(kind, &us, &them)));
        rows.extend(runtime.block_on(bulk(kind, &us, &them, &dir.join("big"))));
    }
    rows.extend(runtime.block_on(with_tls(&machine, &tls, &ours, &dir)));
    rows
}

/// A runtime for one client.
pub(crate) fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}

/// Small operations: one after another, many at once, and whole small files.
async fn beside(kind: &str, us: &At, them: &At) -> Vec<Row> {
    let mut rows = Vec::new();
    let (mut one, mut many, mut cat) = (Both::default(), Both::default(), Both::default());
    let trips = (trips(us).await, trips(them).await);
    for _ in 0..TIMES {
        one.take(stats(us, 1).await, stats(them, 1).await);
        many.take(stats(us, 64).await, stats(them, 64).await);
        cat.take(cats(us).await, cats(them).await);
    }
    rows.push(one.row(format!("{kind}: walk+getattr+clunk, one at a time"), "us"));
    rows.push(many.row(format!("{kind}: walk+getattr+clunk, 64 in flight"), "us"));
    rows.push(cat.row(format!("{kind}: open+read+close of 4 KiB, one at a time"), "us"));
    rows.push(Row {
        group: "p9",
        case: format!("{kind}: open+read+close of 4 KiB, round trips"),
        ours: trips.0,
        peer: Some(("diod", trips.1)),
        unit: "",
        more_is_better: false,
    });
    rows
}

/// Reading and writing a large file, beside diod and beside a bare socket.
async fn bulk(kind: &str, us: &At, them: &At, file: &Path) -> Vec<Row> {
    let (mut read, mut write, mut socket) = (Both::default(), Both::default(), 0.0_f64);
    for _ in 0..TIMES {
        socket = socket.max(bare(kind, file));
        read.take(reads(us).await, reads(them).await);
        write.take(writes(us).await, writes(them).await);
    }
    let of_bare = |case: &str, ours: f64| Row {
        group: "p9",
        case: format!("{kind}: {case}, 1 MiB messages"),
        ours,
        peer: Some(("socket", socket)),
        unit: "MB/s",
        more_is_better: true,
    };
    let (reading, writing) = (read.ours, write.ours);
    vec![
        read.rate(format!("{kind}: read, 1 MiB messages")),
        of_bare("read", reading),
        write.rate(format!("{kind}: write, 1 MiB messages")),
        of_bare("write", writing),
    ]
}

/// The same reading with TLS and without.
async fn with_tls(machine: &Machine, address: &str, ours: &Ours, dir: &Path) -> Vec<Row> {
    let home = ::node::home::Home::open(&machine.at("me")).expect("my home");
    let dialer = ::node::dial::Dialer::open(&home, None).expect("my key and the nodes I know");
    let alpha = dialer.find("alpha").expect("the node that was added");
    assert_eq!(alpha.address.to_string(), address);
    fs::copy(dir.join("big"), machine.at("files-alpha/big")).expect("the large file");
    let (client, root) = dialer.attach(&alpha, ::node::dial::LINGER).await.expect("alpha");
    let secret = At { root: walk(&root, b"fs/files").await, client };
    let plain = attach(&ours.tcp, b"fs/served").await;
    let (mut of_secret, mut of_plain) = (0.0_f64, 0.0_f64);
    for _ in 0..TIMES {
        (of_secret, of_plain) = (of_secret.max(reads(&secret).await), of_plain.max(reads(&plain).await));
    }
    vec![Row {
        group: "p9",
        case: "tcp: read, 1 MiB messages, with TLS".into(),
        ours: of_secret,
        peer: Some(("plain", of_plain)),
        unit: "MB/s",
        more_is_better: true,
    }]
}

/// The best of several runs of ours and of diod's.
#[derive(Default)]
struct Both {
    ours: f64,
    theirs: f64,
}

impl Both {
    /// Rates, of which more is better.
    fn take(&mut self, ours: f64, theirs: f64) {
        (self.ours, self.theirs) = (self.ours.max(ours), self.theirs.max(theirs));
    }

    fn rate(self, case: String) -> Row {
        let peer = Some(("diod", self.theirs));
        Row { group: "p9", case, ours: self.ours, peer, unit: "MB/s", more_is_better: true }
    }

    /// As microseconds for each operation.
    fn row(self, case: String, unit: &'static str) -> Row {
        let peer = Some(("diod", 1e6 / self.theirs));
        Row { group: "p9", case, ours: 1e6 / self.ours, peer, unit, more_is_better: false }
    }
}

/// A directory of a server's.
pub(crate) struct At {
    pub(crate) root: NodeRef,
    client: Client,
}

/// Where a server listens.
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(u16),
}

pub(crate) async fn attach(address: &Address, aname: &[u8]) -> At {
    let options = Options::default();
    let client = match address {
        Address::Unix(path) => Client::connect(transport::unix(path).await.expect("a connection"), options).await,
        Address::Tcp(port) => {
            let to = format!("127.0.0.1:{port}").parse().expect("an address");
            Client::connect(transport::tcp(&to).await.expect("a connection"), options).await
        }
    };
    let client = client.expect("a version");
    let root = client.attach(&Who::owner(), aname).await.expect("the directory");
    At { root, client }
}

pub(crate) async fn walk(root: &NodeRef, path: &[u8]) -> NodeRef {
    let names = Name::split(path).expect("a path");
    root.walk(&names, Want::default()).await.and_then(p9::Walk::reached).expect("it is there").node
}

/// Walks, attributes and clunks a second, `at_once` in flight.
async fn stats(at: &At, at_once: usize) -> f64 {
    let each = if at_once == 1 { 4_000 } else { 20_000 };
    let small = walk(&at.root, b"small").await;
    let start = Instant::now();
    join_all((0..at_once).map(|task| {
        let small = small.clone();
        tokio::spawn(async move {
            for i in 0..each / at_once {
                let name = ((task * 31 + i) % SMALL).to_string();
                let name = Name::new(name.as_bytes()).expect("a name");
                let reached = small.walk(&[name], Want::ATTR).await.and_then(p9::Walk::reached).expect("a file");
                assert_eq!(reached.attr.expect("its attributes").size, SMALL_BYTES as u64);
            }
        })
    }))
    .await
    .into_iter()
    .for_each(|done| done.expect("no panic"));
    each as f64 / start.elapsed().as_secs_f64()
}

/// Whole small files a second, each on a fid that was never used.
async fn cats(at: &At) -> f64 {
    let small = walk(&at.root, b"small").await;
    let start = Instant::now();
    for i in 0..SMALL {
        let name = i.to_string();
        let name = [Name::new(name.as_bytes()).expect("a name")];
        let want = Want { data: SMALL_BYTES as u32 + 1, ..Want::default() };
        let opened = small.open_at(&name, How::READ, want).await.expect("an open file");
        let data = match opened.first {
            Some(first) => first,
            None => opened.handle.read(0, want.data).await.expect("its bytes"),
        };
        assert_eq!(data.len(), SMALL_BYTES);
        opened.handle.close().await.expect("closed");
    }
    SMALL as f64 / start.elapsed().as_secs_f64()
}

/// How often something is waited for in each of these.
async fn trips(at: &At) -> f64 {
    let before = at.client.counts().round_trips;
    cats(at).await;
    (at.client.counts().round_trips - before) as f64 / SMALL as f64
}

pub(crate) async fn open(at: &At, how: How) -> Handle {
    let names = [Name::new(b"big").expect("a name")];
    at.root.open_at(&names, how, Want::default()).await.expect("the large file").handle
}

/// Megabytes a second, read in order.
async fn reads(at: &At) -> f64 {
    let big = open(at, How::READ).await;
    let start = Instant::now();
    let pieces = BIG_BYTES / u64::from(PIECE);
    for group in 0..pieces / DEEP {
        let pieces = (0..DEEP).map(|piece| big.read((group * DEEP + piece) * u64::from(PIECE), PIECE).into_future());
        let got: u64 = join_all(pieces).await.into_iter().map(|data| data.expect("its bytes").len() as u64).sum();
        assert_eq!(got, DEEP * u64::from(PIECE));
    }
    BIG_BYTES as f64 / 1e6 / start.elapsed().as_secs_f64()
}

/// Megabytes a second, written in order over what is there.
async fn writes(at: &At) -> f64 {
    let big = open(at, How::WRITE).await;
    let data = Bytes::from(vec![7; PIECE as usize]);
    let start = Instant::now();
    let pieces = BIG_BYTES / u64::from(PIECE);
    for group in 0..pieces / DEEP {
        let write = |piece| big.write((group * DEEP + piece) * u64::from(PIECE), data.clone()).into_future();
        let got: u64 =
            join_all((0..DEEP).map(write)).await.into_iter().map(|did| u64::from(did.expect("written").count)).sum();
        assert_eq!(got, DEEP * u64::from(PIECE));
    }
    BIG_BYTES as f64 / 1e6 / start.elapsed().as_secs_f64()
}

/// Megabytes a second of a file that a thread reads and writes to a bare socket, and another reads from that.
fn bare(kind: &str, file: &Path) -> f64 {
    match kind {
        "unix" => {
            let (one, other) = UnixStream::pair().expect("a pair of sockets");
            copied(file, one, other)
        }
        _ => {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let one = TcpStream::connect(listener.local_addr().expect("its address")).expect("a connection");
            copied(file, one, listener.accept().expect("its other end").0)
        }
    }
}

fn copied(file: &Path, mut from: impl Write + Send, mut to: impl Read) -> f64 {
    let mut file = fs::File::open(file).expect("the large file");
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = vec![0; PIECE as usize];
            loop {
                match file.read(&mut buffer).expect("its bytes") {
                    0 => break,
                    got => from.write_all(&buffer[..got]).expect("written"),
                }
            }
        });
        let (mut buffer, mut all) = (vec![0; PIECE as usize], 0);
        while all < BIG_BYTES {
            all += to.read(&mut buffer).expect("its bytes") as u64;
        }
    });
    BIG_BYTES as f64 / 1e6 / start.elapsed().as_secs_f64()
}

/// A node of ours that listens in plain.
pub(crate) struct Ours {
    pub(crate) unix: Address,
    pub(crate) tcp: Address,
    node: Child,
}

impl Ours {
    pub(crate) fn start(machine: &Machine, dir: &Path) -> Self {
        let (home, socket, port) = (machine.at("plain"), machine.at("ours.sock"), free_port());
        let home = home.display().to_string();
        machine.slashn(&["--home", &home, "init", "--name", "plain"]).succeeds();
        let node = machine
            .slashn(&["--home", &home, "up", "--listen", "127.0.0.1:0"])
            .args(["--export", &format!("served={}", dir.display())])
            .args(["--plain", &format!("unix!{}", socket.display()), "--plain", &format!("tcp!127.0.0.1!{port}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("slashn up");
        wait_for(|| TcpStream::connect(("127.0.0.1", port)).is_ok() && socket.exists());
        Self { unix: Address::Unix(socket), tcp: Address::Tcp(port), node }
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.node.id().to_string()).status();
        let _ = self.node.wait();
    }
}

/// A diod that lets everybody in.
pub(crate) struct Diod {
    pub(crate) unix: Address,
    pub(crate) tcp: Address,
    daemon: Child,
}

impl Diod {
    pub(crate) fn start(socket: &Path, dir: &Path) -> Self {
        let port = free_port();
        let daemon = Command::new("/usr/sbin/diod")
            .args(["--foreground", "--no-auth", "--logdest", "stderr", "--listen"])
            .arg(socket)
            .args(["--listen", &format!("127.0.0.1:{port}"), "--export"])
            .arg(dir)
            .stderr(Stdio::null())
            .spawn()
            .expect("diod");
        wait_for(|| TcpStream::connect(("127.0.0.1", port)).is_ok() && socket.exists());
        Self { unix: Address::Unix(socket.into()), tcp: Address::Tcp(port), daemon }
    }
}

impl Drop for Diod {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its address").port()
}

fn wait_for(ready: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !ready() {
        assert!(Instant::now() < until, "a server does not listen");
        std::thread::sleep(Duration::from_millis(10));
    }
}
