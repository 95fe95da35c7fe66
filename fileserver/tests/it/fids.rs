//! Through the wire: a million fids on one connection, with 1024 descriptors.

use std::sync::Arc;

use fileserver::{Disk, DiskOptions};
use p9::server::{Limits, serve};
use p9::wire::{NO_FID, R, Step, Steps, Str, T, VERSION_L};
use p9::{Name, Who};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

/// A client that sends some messages at once and reads as many answers.
struct Peer {
    stream: DuplexStream,
    frame: Vec<u8>,
}

impl Peer {
    /// Sends `all`, and calls `check` with each answer, in the order of the questions.
    async fn ask(&mut self, all: &[T<'_>], check: impl Fn(usize, R<'_>)) {
        let mut out = Vec::new();
        for (tag, message) in all.iter().enumerate() {
            message.encode(tag as u16, &mut out);
        }
        self.stream.write_all(&out).await.unwrap();
        for _ in all {
            let size = self.stream.read_u32_le().await.unwrap() as usize;
            self.frame.resize(size - 4, 0);
            self.stream.read_exact(&mut self.frame).await.unwrap();
            let tag = u16::from_le_bytes([self.frame[1], self.frame[2]]);
            check(tag.into(), R::decode(self.frame[0], &self.frame[3..]).unwrap().unwrap());
        }
    }
}

#[tokio::test]
async fn a_million_fids_live_on_one_connection() {
    const FILES: u32 = 2000;
    const FIDS: u32 = 1_000_000;
    let dir = tempfile::tempdir().unwrap();
    for index in 0..FILES {
        std::fs::write(dir.path().join(index.to_string()), b"").unwrap();
    }
    let limit = rustix::process::Rlimit {
        current: Some(1024),
        ..rustix::process::getrlimit(rustix::process::Resource::Nofile)
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let disk = Disk::open(dir.path(), DiskOptions::new([7; 32])).unwrap();
    let (stream, server) = tokio::io::duplex(1 << 20);
    let serving = tokio::spawn(serve(server, disk, Arc::new(Who::owner()), Limits::default()));
    let mut peer = Peer { stream, frame: Vec::new() };
    peer.ask(&[T::Version { msize: 8192, version: Str(VERSION_L) }], |_, _| {}).await;
    peer.ask(&[T::Attach { fid: 0, afid: NO_FID, uname: Str(b""), aname: Str(b""), n_uname: None }], |_, _| {}).await;
    // The first fids are walked to; the others are made of them, as a client with many open paths does.
    let called: Vec<_> = (0..FILES).map(|index| index.to_string()).collect();
    let steps: Vec<_> =
        called.iter().map(|text| Steps::encode(&[Step::Into(Name::new(text.as_bytes()).unwrap())])).collect();
    let walk = |fid: u32| match fid {
        1..=100_000 => T::Walk { fid: 0, newfid: fid, steps: Steps::of(&steps[(fid % FILES) as usize], 1) },
        _ => T::Walk { fid: fid % 100_000 + 1, newfid: fid, steps: Steps::of(&[], 0) },
    };
    for first in (1..=FIDS).step_by(100) {
        let all: Vec<_> = (first..first + 100).map(walk).collect();
        peer.ask(&all, |tag, answer| assert!(matches!(answer, R::Walk { .. }), "{tag}: {answer:?}")).await;
    }
    for first in (1..=FIDS).step_by(10_000) {
        let all: Vec<_> = (first..first + 50).map(|fid| T::Getattr { fid, mask: 0x7ff }).collect();
        peer.ask(&all, |tag, answer| assert!(matches!(answer, R::Getattr { nlink: 1, .. }), "{tag}: {answer:?}")).await;
    }
    assert!(std::fs::read_dir("/proc/self/fd").unwrap().count() < 512);
    drop(peer);
    serving.await.unwrap().unwrap();
}
