//! Files far away: read ahead, and never what was there before a write.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use p9::{Attr, Errno, Handle, How, Node, Opened, Qid, Reply, Stream, Want, Written, synth};
use parking_lot::Mutex;

use super::*;

/// The most bytes that there is room for: not the end of a request.
const FULL: usize = (8 << 20) - 12_345;

/// The most bytes that one write takes.
const MOST: usize = 100_000;

/// A file in memory that answers as one far away does: later, and not more than 300,000 bytes at a time.
#[derive(Clone)]
struct Far {
    bytes: Arc<Mutex<Vec<u8>>>,
    reads: Arc<AtomicUsize>,
    bytes_read: Arc<AtomicUsize>,
    under_way: Arc<AtomicUsize>,
    overlapped: Arc<AtomicBool>,
}

impl Far {
    fn new(size: usize) -> Self {
        let bytes = (0..size).map(|n| (n as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
        Self {
            bytes: Arc::new(Mutex::new(bytes)),
            reads: Arc::default(),
            bytes_read: Arc::default(),
            under_way: Arc::default(),
            overlapped: Arc::default(),
        }
    }

    fn now(&self) -> Attr {
        let size = self.bytes.lock().len() as u64;
        Attr { size, ..Attr::synthetic(self.qid(), 0o644) }
    }

    fn window(&self, offset: u64, count: u32) -> Bytes {
        let bytes = self.bytes.lock();
        let start = (offset as usize).min(bytes.len());
        Bytes::copy_from_slice(&bytes[start..bytes.len().min(start + count.min(300_000) as usize)])
    }
}

impl Node for Far {
    fn qid(&self) -> Qid {
        Qid { kind: p9::FileKind::File, version: 0, path: 77 }
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::later(async move {
            tokio::task::yield_now().await;
            Ok(self.now())
        })
    }

    fn open(&self, _: How) -> Reply<'_, Handle> {
        Reply::ok(Handle::Stream(Arc::new(self.clone())))
    }

    fn open_at<'a>(&'a self, _: &'a [p9::Name<'a>], _: How, want: Want) -> Reply<'a, Opened> {
        let first = (want.data > 0).then(|| self.window(0, want.data));
        let (handle, attr) = (Handle::Stream(Arc::new(self.clone()) as Arc<dyn Stream>), Some(self.now()));
        Reply::ok(Opened { node: None, attr, handle, first, lease: None })
    }
}

impl Stream for Far {
    fn seekable(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.under_way.fetch_add(1, Ordering::SeqCst) > 0 {
            self.overlapped.store(true, Ordering::SeqCst);
        }
        Reply::later(async move {
            tokio::time::sleep(Duration::from_millis(2)).await;
            self.under_way.fetch_sub(1, Ordering::SeqCst);
            let data = self.window(offset, count);
            self.bytes_read.fetch_add(data.len(), Ordering::SeqCst);
            Ok(data)
        })
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        Reply::later(async move {
            tokio::task::yield_now().await;
            let mut bytes = self.bytes.lock();
            let room = FULL.saturating_sub(offset as usize).min(data.len()).min(MOST);
            if room == 0 {
                return Err(Errno::ENOSPC);
            }
            let end = offset as usize + room;
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[offset as usize..end].copy_from_slice(&data[..room]);
            Ok(Written::count(room))
        })
    }
}

fn shown(far: &Far) -> Shown {
    Shown::new(synth::dir([("far", Arc::new(far.clone()) as NodeRef)]))
}

#[test]
fn a_file_read_in_order_is_fetched_ahead_and_once() {
    let far = Far::new(7_654_321);
    let shown = shown(&far);
    let mut read = Vec::new();
    File::open(shown.path("far")).unwrap().read_to_end(&mut read).unwrap();
    assert!(read == *far.bytes.lock(), "the bytes differ");
    assert!(far.overlapped.load(Ordering::SeqCst), "nothing was read ahead");
    let fetched = far.bytes_read.load(Ordering::SeqCst);
    assert!(fetched < 2 * read.len(), "{fetched} bytes were fetched of {}", read.len());
}

#[test]
fn a_small_file_comes_with_its_opening() {
    let far = Far::new(4000);
    let shown = shown(&far);
    assert!(std::fs::read(shown.path("far")).unwrap() == *far.bytes.lock());
    assert_eq!(far.reads.load(Ordering::SeqCst), 0);
}

/// A stream that a server offers: whoever asks for its first bytes waits for them.
struct Slow;

impl Node for Slow {
    fn qid(&self) -> Qid {
        Qid { kind: p9::FileKind::File, version: 0, path: 78 }
    }

    fn attr(&self) -> Reply<'_, Attr> {
        Reply::ok(Attr::synthetic(self.qid(), 0o444))
    }

    fn open(&self, _: How) -> Reply<'_, Handle> {
        Errno::EIO.into()
    }

    fn open_at<'a>(&'a self, _: &'a [p9::Name<'a>], _: How, want: Want) -> Reply<'a, Opened> {
        if want.data > 0 {
            return Reply::later(std::future::pending());
        }
        let handle = Handle::Bytes("at last".into());
        Reply::ok(Opened { node: None, attr: None, handle, first: None, lease: None })
    }
}

#[test]
fn opening_a_stream_does_not_wait_for_its_bytes() {
    let shown = Shown::new(synth::dir([("slow", Arc::new(Slow) as NodeRef)]));
    assert_eq!(std::fs::read_to_string(shown.path("slow")).unwrap(), "at last");
}

#[test]
fn bytes_here_and_there_are_right_and_little_else_is_fetched() {
    let far = Far::new(6 << 20);
    let shown = shown(&far);
    let file = File::open(shown.path("far")).unwrap();
    let mut offset = 12_345_u64;
    for _ in 0..60 {
        offset = (offset * 48_271) % (6 << 20);
        let mut buf = vec![0; 3000.min((6 << 20) - offset as usize)];
        file.read_exact_at(&mut buf, offset).unwrap();
        assert!(buf == far.bytes.lock()[offset as usize..][..buf.len()]);
    }
}

#[test]
fn a_read_after_a_write_gives_what_was_written() {
    let far = Far::new(4 << 20);
    let shown = shown(&far);
    let mut reader = File::open(shown.path("far")).unwrap();
    let mut buf = vec![0; 256 << 10];
    // In order, so that what comes next is under way already.
    for _ in 0..4 {
        reader.read_exact(&mut buf).unwrap();
    }
    let mut writer = OpenOptions::new().write(true).open(shown.path("far")).unwrap();
    let at = reader.stream_position().unwrap() + (300 << 10);
    writer.seek(SeekFrom::Start(at)).unwrap();
    writer.write_all(&vec![0xee; 200 << 10]).unwrap();
    let mut rest = Vec::new();
    reader.read_to_end(&mut rest).unwrap();
    let start = 300 << 10;
    assert!(rest[start..start + (200 << 10)].iter().all(|&byte| byte == 0xee), "old bytes were read");
    assert_eq!(rest.len(), 3 << 20);
}

#[test]
fn a_mapping_is_written_whole_though_each_write_takes_a_part() {
    let far = Far::new(1 << 20);
    let shown = shown(&far);
    let script = "import mmap\n\
        f=open('far','r+b'); m=mmap.mmap(f.fileno(),1<<20); m[0:900000]=b'w'*900000; m.flush(); m.close(); f.close()\n";
    let python = std::process::Command::new("python3").arg("-c").arg(script).current_dir(&*shown).status().unwrap();
    assert!(python.success());
    assert!(far.bytes.lock()[..900_000].iter().all(|&byte| byte == b'w'), "a part is missing");
}

#[test]
fn a_full_disk_is_told_to_the_writer() {
    let far = Far::new(0);
    let shown = shown(&far);
    let mut file = OpenOptions::new().write(true).open(shown.path("far")).unwrap();
    let err = file.write_all(&vec![1; 9 << 20]).unwrap_err();
    assert_eq!(err.raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(far.bytes.lock().len(), FULL);
}
