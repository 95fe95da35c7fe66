//! Commands over a slow link: how often a start waits for the network, and a project that is compiled over it.
//!
//! A wait is the time over a link of 50 ms less the time without it, by 50 ms: both directions count.

use std::net::SocketAddr;
use std::time::Duration;

use tests::link::Proxy;
use tests::machine::{Done, Machine};
use tests::mounted::moves;
use tokio::runtime::Runtime;

use super::many::project;
use super::{from_nothing, least, once};
use crate::peers::Sshd;
use crate::{Row, is_wanted, median_ms, timed};

/// Round-trip times.
const LINKS_MS: [u64; 3] = [0, 20, 50];
/// How often a start is measured.
const TIMES: usize = 7;
const FILES: usize = 50;

const WAITS: &str = "rcpu NODE true over a slow link";
const PROJECT: &str = "20 ms: a C project of 50 files made on the node";

pub(super) fn run() -> Vec<Row> {
    let mut rows = Vec::new();
    if is_wanted(WAITS) {
        rows.extend(waits());
    }
    if is_wanted(PROJECT) {
        rows.extend(compiles());
    }
    rows
}

/// A node behind a link of `ms` both ways together, started with the arguments `more`.
fn far(runtime: &Runtime, ms: u64, more: &[&str]) -> (Machine, Proxy) {
    let mut machine = Machine::bare();
    let address = machine.node_with("far", more);
    let to: SocketAddr = address.parse().expect("the node's address");
    let proxy = runtime.block_on(Proxy::start(to, Duration::from_millis(ms) / 2)).expect("a proxy");
    moves(&machine, &address, &proxy.address.to_string());
    (machine, proxy)
}

fn waits() -> Vec<Row> {
    let runtime = Runtime::new().expect("a runtime");
    let measured = LINKS_MS.map(|ms| {
        let median = |mut all: Vec<f64>| {
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        // Each finds nothing that another has left on the disk.
        let (machine, proxy) = far(&runtime, ms, &["--disk-cache", "0"]);
        let cold = median((0..TIMES).map(|_| from_nothing(&machine, "far")).collect());
        drop((machine, proxy));
        let (machine, _proxy) = far(&runtime, ms, &[]);
        once(&machine, "far");
        let warm = median((0..TIMES).map(|_| once(&machine, "far")).collect());
        let sshd = Sshd::start(&machine.at("sshd"));
        let to = ([127, 0, 0, 1], sshd.port).into();
        let slow = runtime.block_on(Proxy::start(to, Duration::from_millis(ms) / 2)).expect("a proxy");
        let ssh = median_ms(TIMES, || {
            sshd.ssh(slow.address.port()).arg("true").succeeds();
        });
        (cold, warm, ssh)
    });
    let mut rows = Vec::new();
    for (ms, (cold, warm, ssh)) in LINKS_MS.into_iter().zip(measured).skip(1) {
        rows.push(least(format!("{WAITS}, {ms} ms, cold"), cold, ("ssh", ssh), "ms"));
        rows.push(least(format!("{WAITS}, {ms} ms, warm"), warm, ("ssh", ssh), "ms"));
    }
    let [(cold, warm, ssh), _, (far_cold, far_warm, far_ssh)] = measured;
    let count = |far: f64, near: f64| (far - near) / LINKS_MS[2] as f64;
    let ssh = ("ssh", count(far_ssh, ssh));
    rows.push(least(format!("{WAITS}, cold: waits"), count(far_cold, cold), ssh, "waits"));
    rows.push(least(format!("{WAITS}, warm: waits"), count(far_warm, warm), ssh, "waits"));
    rows
}

/// The project in my folder, with the programs of this machine, by a node that is far away: twice, beside here.
fn compiles() -> [Row; 2] {
    let runtime = Runtime::new().expect("a runtime");
    let (machine, _proxy) = far(&runtime, 20, &[]);
    let at = machine.at("work/project");
    project(&at, FILES);
    let [here, there] = ["make -s -j2", "rcpu far make -s -j2"];
    let took = |make: &str| {
        let ms = timed(&machine, &at, make);
        machine.command("make").args(["-s", "clean"]).current_dir(&at).succeeds();
        ms / 1e3
    };
    // The first of all reads the compiler.
    took(here);
    let local = (0..3).map(|_| took(here)).fold(f64::INFINITY, f64::min);
    let [first, second] = [(), ()].map(|()| took(there));
    [
        least(format!("{PROJECT}, first"), first, ("local", local), "s"),
        least(format!("{PROJECT}, second"), second, ("local", local), "s"),
    ]
}
