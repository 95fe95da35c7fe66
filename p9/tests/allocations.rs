//! What a message costs the server's allocator, counted: nothing, once the connection is warm.
//!
//! The server has a thread of its own, and what that allocates is counted. The client is in the test's thread, and
//! speaks bytes that it made before; where it is our own that is counted, it is the other way round. A test binary of
//! its own, because the allocator is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use p9::client::{self, Options};
use p9::server::{Limits, serve};
use p9::wire::{Dialect, NO_FID, NO_TAG, R, Steps, Str, T};
use p9::{Attr, Errno, FileKind, Handle, How, LocalFile, Node, Qid, Reply, Tree, TreeRef, Who, synth};

/// What was allocated: how often, and how many bytes.
struct Count {
    times: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    const fn new() -> Self {
        Self { times: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    fn seen(&self) -> (u64, u64) {
        (self.times.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

thread_local! {
    /// Where what this thread allocates is counted.
    static COUNTED: Cell<Option<&'static Count>> = const { Cell::new(None) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(layout: Layout) {
    if let Some(count) = COUNTED.get() {
        count.times.fetch_add(1, Ordering::Relaxed);
        count.bytes.fetch_add(layout.size() as u64, Ordering::Relaxed);
    }
}

// SAFETY: all is done by the system's allocator; what is counted besides allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout);
        // SAFETY: passed on as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: passed on as it came.
        unsafe { System.dealloc(at, layout) }
    }
}

/// A file of this machine's disk, and nothing else.
struct Disk(std::path::PathBuf);

const QID: Qid = Qid { kind: FileKind::File, version: 1, path: 7 };

impl Node for Disk {
    fn qid(&self) -> Qid {
        QID
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(Attr::synthetic(QID, 0o444))
    }

    fn open(&self, _how: How) -> Reply<'_, Handle> {
        let file = std::fs::File::open(&self.0).map_err(Errno::from);
        file.map(|file| Handle::Fd(LocalFile::new(file.into(), false, None))).into()
    }
}

/// Serves `tree` in a thread of its own, until the client has gone.
fn serve_here(stream: UnixStream, tree: TreeRef) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::from_std(stream).unwrap();
        serve(stream, tree, Arc::new(Who::owner()), Limits::default()).await.unwrap();
    });
}

/// A client that has attached to the file as fid 1 and opened it.
struct Client {
    stream: UnixStream,
    reply: Vec<u8>,
}

impl Client {
    fn start(file: &std::path::Path) -> Self {
        let (here, there) = UnixStream::pair().unwrap();
        there.set_nonblocking(true).unwrap();
        let tree = synth::tree(Arc::new(Disk(file.into())));
        std::thread::spawn(move || {
            COUNTED.set(Some(&SERVER));
            serve_here(there, tree);
        });
        let mut client = Self { stream: here, reply: vec![0; 2 << 20] };
        let version = Str(Dialect::Slashn.version());
        client.ask(&encoded(NO_TAG, T::Version { msize: (1 << 20) + 24, version }));
        let (uname, aname) = (Str(b"me"), Str(b""));
        client.ask(&encoded(1, T::Attach { fid: 1, afid: NO_FID, uname, aname, n_uname: Some(0) }));
        client.ask(&encoded(1, T::Walk { fid: 1, newfid: 2, steps: Steps::of(&[], 0) }));
        client.ask(&encoded(1, T::Lopen { fid: 2, flags: 0 }));
        client
    }

    /// Sends what was encoded and takes up as many replies.
    fn ask_all(&mut self, messages: &[u8], count: usize) {
        self.stream.write_all(messages).unwrap();
        for _ in 0..count {
            self.stream.read_exact(&mut self.reply[..4]).unwrap();
            let size = u32::from_le_bytes(self.reply[..4].try_into().unwrap()) as usize;
            self.stream.read_exact(&mut self.reply[4..size]).unwrap();
            assert!(!matches!(R::decode(self.reply[4], &self.reply[7..size]), Ok(Some(R::Lerror { .. }))));
        }
    }

    fn ask(&mut self, message: &[u8]) {
        self.ask_all(message, 1);
    }

    /// What the server allocates for `messages`, once it has been asked the same before: how often, and how much.
    fn cost(&mut self, messages: &[u8], count: usize) -> (u64, u64) {
        (0..50).for_each(|_| self.ask_all(messages, count));
        let before = SERVER.seen();
        (0..200).for_each(|_| self.ask_all(messages, count));
        let after = SERVER.seen();
        (after.0 - before.0, after.1 - before.1)
    }
}

fn encoded(tag: u16, message: T<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(tag, &mut bytes);
    bytes
}

static SERVER: Count = Count::new();

/// One test at a time: the buffers for data are the process's.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_message_costs_the_server_no_allocation() {
    let _alone = alone();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, vec![7; 8 << 20]).unwrap();
    let mut client = Client::start(file.path());
    let read = |tag: u16, count: u32| encoded(tag, T::Read { fid: 2, offset: u64::from(tag) * 4096, count });
    let many = |count: u32| (0..32).flat_map(|tag| read(tag, count)).collect::<Vec<u8>>();
    assert_eq!(client.cost(&read(1, 4 << 10), 1), (0, 0), "a small read");
    assert_eq!(client.cost(&many(4 << 10), 32), (0, 0), "many at once");
    assert_eq!(client.cost(&read(1, 128 << 10), 1), (0, 0), "a larger one");
    assert_eq!(client.cost(&read(1, 1 << 20), 1), (0, 0), "as much as a frame carries");
    let four: Vec<u8> = (0..4).flat_map(|tag| read(tag, 1 << 20)).collect();
    assert_eq!(client.cost(&four, 4), (0, 0), "several of them at once");
    assert_eq!(client.cost(&encoded(1, T::Getattr { fid: 1, mask: 0x7ff }), 1), (0, 0), "attributes");
}

static CLIENT: Count = Count::new();

/// The future that waits, what its reply comes by, the lists of what was asked and of what is waited for; and a new
/// buffer for the next small replies, where the last is still in use. Nothing for the data.
#[test]
fn a_read_costs_the_client_what_its_waiting_takes() {
    let _alone = alone();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, vec![7; 8 << 20]).unwrap();
    let (here, there) = UnixStream::pair().unwrap();
    here.set_nonblocking(true).unwrap();
    there.set_nonblocking(true).unwrap();
    let tree = synth::tree(Arc::new(Disk(file.path().into())));
    std::thread::spawn(move || serve_here(there, tree));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let here = tokio::net::UnixStream::from_std(here).unwrap();
        let client = client::Client::connect(here, Options::default()).await.unwrap();
        let root = client.attach(&Who::owner(), b"").await.unwrap();
        let open = root.open(How::READ).await.unwrap();
        for (count, most) in [(4 << 10, (6, 10 << 10)), (1 << 20, (5, 1 << 10))] {
            let read = async || assert_eq!(open.read(0, count).await.unwrap().len(), count as usize);
            for _ in 0..50 {
                read().await;
            }
            let before = CLIENT.seen();
            COUNTED.set(Some(&CLIENT));
            for _ in 0..200 {
                read().await;
            }
            COUNTED.set(None);
            let after = CLIENT.seen();
            let each = ((after.0 - before.0).div_ceil(200), (after.1 - before.1).div_ceil(200));
            assert!(each.0 <= most.0 && each.1 <= most.1, "{each:?} allocations and bytes for a read of {count}");
        }
    });
}
