//! How often a command waits for a node that is far away, one wait after another: both directions, all connections.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use tests::machine::{Done, Machine};
use tests::mounted::moves;
use tests::steps::Stepped;
use tokio::runtime::Runtime;

#[test]
fn the_first_command_waits_six_times_at_most_and_another_twice() {
    let mut machine = Machine::root();
    let address = machine.node("far");
    let runtime = Runtime::new().unwrap();
    let link = runtime.block_on(Stepped::start(address.parse().unwrap())).unwrap();
    moves(&machine, &address, &link.address.to_string());
    let waits = || {
        // Connections for the next are dialled when one was used.
        link.settle();
        let before = link.steps();
        machine.rcpu(&["far", "true"]).succeeds();
        (link.steps() - before).div_ceil(2)
    };
    let first = waits();
    assert!((3..=6).contains(&first), "the first: {first}");
    // One that meets a slow moment counts what else goes on, too.
    let others: Vec<u64> = (0..3).map(|_| waits()).collect();
    assert!(others.iter().min() <= Some(&2), "the others: {others:?}");
}

#[test]
fn what_is_forwarded_waits_for_no_answer_to_each_of_its_pieces() {
    const PIECES: usize = 64;
    const ALL: usize = PIECES * (64 << 10);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = listener.local_addr().unwrap().port();
    // Gives back what it was given, once that is all.
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let mut machine = Machine::root();
    let address = machine.node("far");
    let runtime = Runtime::new().unwrap();
    let link = runtime.block_on(Stepped::start(address.parse().unwrap())).unwrap();
    moves(&machine, &address, &link.address.to_string());
    // The agent is there then, by whose connections it goes.
    machine.rcpu(&["far", "true"]).succeeds();
    let socket = machine.at("work/socket");
    let forward = format!("{}:127.0.0.1:{there}", socket.display());
    let mut child = machine.rcpu(&["-L", &forward, "far", "sh", "-c", "echo ready; read end; exit 0"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let before = link.steps();
    let mut stream = UnixStream::connect(&socket).unwrap();
    let bytes: Vec<u8> = (0..ALL).map(|n| (n / 7) as u8).collect();
    let said = bytes.clone();
    let mut writer = stream.try_clone().unwrap();
    let saying = std::thread::spawn(move || {
        writer.write_all(&said).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    saying.join().unwrap();
    assert!(answer == bytes, "{} bytes of {ALL}", answer.len());
    let waits = (link.steps() - before) / 2;
    assert!(waits < PIECES as u64 / 2, "{waits} round trips for {PIECES} pieces each way");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}
