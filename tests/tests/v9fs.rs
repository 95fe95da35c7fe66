//! The Linux kernel's own 9P client, in a guest that qemu emulates, on a directory that we serve.
//!
//! Run by `./check --full`, which makes the guest (tests/v9fs/build.sh): Debian's kernels, busybox, and a program that
//! asks of the mount what programs ask of a file system (tests/v9fs/guest.c). The guest has no way to anything but this
//! machine's loopback.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fileserver::{Disk, DiskOptions};
use tests::listen::Listening;
use tests::machine::{Done, Text};

/// How long a guest may take for everything.
const PATIENCE: Duration = Duration::from_secs(1200);
/// Bytes that are copied through a mount.
const BIG: usize = 200 << 20;

/// What is asked of every mount.
const EVERY: &[&str] = &[
    "mount",
    "create",
    "directories",
    "listing",
    "names",
    "renaming",
    "attributes",
    "appending",
    "sparse",
    "unlinked",
    "mapped-to-read",
    "tar",
    "copy",
    "unmount",
];
/// What is asked of 9P2000.L alone.
const DOTL: &[&str] = &[
    "statfs",
    "replacing",
    "moving",
    "links",
    "symlinks",
    "owners",
    "xattrs",
    "devices",
    "locks",
    "whole-locks",
    "waiting-locks",
];
/// What is asked of 9P2000 alone.
const PLAN9: &[&str] = &["refusing"];
/// What is asked of 9P2000.L where pages are cached.
const PAGES: &[&str] = &["mapped"];

#[test]
#[ignore = "it boots Debian's kernels in an emulator: run by ./check --full"]
fn the_kernels_client_finds_what_programs_expect_in_9p2000_l() {
    keep("9p2000.L");
}

#[test]
#[ignore = "it boots Debian's kernels in an emulator: run by ./check --full"]
fn the_kernels_client_finds_what_programs_expect_in_9p2000() {
    keep("9p2000");
}

/// Runs all cases of `version` with each cache under each kernel.
fn keep(version: &str) {
    for kernel in kernels() {
        keeps(&kernel, &["none", "mmap", "loose"].map(|cache| (version, cache)));
    }
}

/// The guests that tests/v9fs/build.sh made.
fn kernels() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/v9fs");
    let found = fs::read_dir(&dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let found: Vec<PathBuf> = found.filter(|kernel| kernel.join("initramfs.gz").exists()).collect();
    assert!(!found.is_empty(), "no guest in {}: ./check --full makes it", dir.display());
    found
}

/// Runs all cases under `kernel` in these modes, each a version and a cache.
fn keeps(kernel: &Path, modes: &[(&str, &str)]) {
    let dir = tempfile::tempdir().unwrap();
    export(dir.path());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let disk = Disk::open(dir.path(), DiskOptions::new([7; 32])).unwrap();
    let server = runtime.block_on(Listening::start(disk));
    let said = boot(kernel, server.address().port(), modes);
    let results: BTreeMap<(&str, &str, &str), &str> = said.iter().filter_map(|line| result(line)).collect();
    let mut wrong = Vec::new();
    for (version, cache) in modes {
        let dotl = *version == "9p2000.L";
        let more = [(DOTL, dotl), (PLAN9, !dotl), (PAGES, dotl && *cache != "none")]
            .into_iter()
            .filter(|(_, asked)| *asked)
            .flat_map(|(names, _)| names);
        for name in EVERY.iter().chain(more) {
            match results.get(&(*version, *cache, *name)) {
                Some(&"ok") => {}
                said => wrong.push(format!("{version} cache={cache} {name}: {}", said.unwrap_or(&"never run"))),
            }
        }
        let copied = fs::read(dir.path().join(format!("big.{version}.{cache}"))).unwrap_or_default();
        if copied != fs::read(dir.path().join("big")).unwrap() {
            wrong.push(format!("{version} cache={cache}: the copy of {BIG} bytes is another"));
        }
    }
    let name = kernel.file_name().unwrap().display();
    assert!(wrong.is_empty(), "{name}:\n{}\n--- the console:\n{}", wrong.join("\n"), said.join("\n"));
    assert_eq!(said.last().map(String::as_str), Some("DONE"), "{name}: {said:#?}");
    runtime.shutdown_background();
}

/// What the guest finds: a tree and the checksums of its files, a big file, a directory to work in.
fn export(dir: &Path) {
    let tree = dir.join("tree");
    let mut sums = Command::new("md5sum");
    for i in 0..200_u32 {
        let (folder, name) = (format!("d{}/e {}", i % 7, i % 3), format!("file {i}"));
        fs::create_dir_all(tree.join(&folder)).unwrap();
        let path = format!("{folder}/{name}");
        fs::write(tree.join(&path), noise(i, (i as usize * 331) % 40_000)).unwrap();
        sums.arg(path);
    }
    let sums = sums.current_dir(&tree).succeeds().text();
    fs::write(dir.join("sums"), sums).unwrap();
    fs::write(dir.join("big"), noise(1000, BIG)).unwrap();
    fs::create_dir(dir.join("work")).unwrap();
}

/// Bytes of which no two blocks are alike.
fn noise(seed: u32, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 16).to_le_bytes()
    };
    let mut all: Vec<u8> = std::iter::repeat_with(&mut next).take(len.div_ceil(8)).flatten().collect();
    all.truncate(len);
    all
}

/// Boots the guest and gives what its console said, up to "DONE".
fn boot(kernel: &Path, port: u16, modes: &[(&str, &str)]) -> Vec<String> {
    let modes: Vec<String> = modes.iter().map(|(version, cache)| format!("{version}:{cache}")).collect();
    let append = format!("console=ttyS0 quiet panic=-1 slashn.port={port} slashn.modes={}", modes.join(","));
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-m", "768", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"])
        .args(["-nodefaults", "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"])
        .arg("-kernel")
        .arg(kernel.join("vmlinuz"))
        .arg("-initrd")
        .arg(kernel.join("initramfs.gz"))
        .args(["-append", &append])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("qemu-system-x86_64 does not start: apt-get install qemu-system-x86");
    let console = BufReader::new(qemu.stdout.take().unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for line in console.lines() {
            let Ok(line) = line else { break };
            if tell.send(line.trim().to_string()).is_err() {
                break;
            }
        }
    });
    let until = std::time::Instant::now() + PATIENCE;
    let mut said = Vec::new();
    while said.last().is_none_or(|line| line != "DONE") {
        let left = until.saturating_duration_since(std::time::Instant::now());
        let Ok(line) = told.recv_timeout(left) else { break };
        said.push(line);
    }
    let _ = qemu.kill();
    let _ = qemu.wait();
    said
}

/// The version, cache and name of a case, and how it went, if `line` tells of one.
fn result(line: &str) -> Option<((&str, &str, &str), &str)> {
    let rest = line.strip_prefix("CASE ")?;
    let mut fields = rest.splitn(4, ' ');
    Some(((fields.next()?, fields.next()?, fields.next()?), fields.next()?))
}
