//! The scripts of `docs/cpu.md`, as they stand there.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;

use tests::as_both;
use tests::machine::{Done, Machine, Text, until};
use tests::mounted::{documented, in_grid as script};

as_both! {
    a_command_ends_as_it_does_there
    what_two_write_is_one_input
    a_command_is_left_and_waited_for
    a_blocking_read_ends_by_a_signal_and_the_command_goes_on
    a_bound_is_kept_and_told
    a_command_finds_its_caller
    a_namespace_is_lines
    a_socket_of_the_node_is_talked_to
}

/// A node and a mount, and the scripts in the folder `work`.
fn grid(mut machine: Machine) -> (Machine, PathBuf) {
    machine.node("alpha");
    documented(&machine, "cpu.md");
    let n = machine.mount();
    (machine, n)
}

fn a_command_ends_as_it_does_there(machine: Machine) {
    let (machine, n) = grid(machine);
    let run = |words: &[&str]| script(&machine, &n, &[&["one.sh", "alpha"], words].concat());
    let both = run(&["sh", "-c", "echo \"it's\" \"$0\"; echo err >&2; exit 7", "a  b"]).exits(7);
    assert_eq!((both.text().as_str(), both.errors().as_str()), ("it's a  b\n", "err\n"));
    run(&["sh", "-c", "kill -KILL $$"]).exits(128 + 9);
    let never = run(&["no-such-command"]).exits(255).errors();
    assert!(never.contains("exit 127 never started: no-such-command: not found"), "{never}");
}

fn what_two_write_is_one_input(machine: Machine) {
    let (machine, n) = grid(machine);
    assert_eq!(script(&machine, &n, &["sum.sh", "alpha"]).succeeds().text(), "5105\n");
}

fn a_command_is_left_and_waited_for(machine: Machine) {
    let (machine, n) = grid(machine);
    let left = script(&machine, &n, &["leave.sh", "alpha", "sleep", "1000"]).succeeds().text();
    let session = left.trim();
    assert!(machine.slashn(&["ps"]).succeeds().text().starts_with(session), "{session}");
    let ended = script(&machine, &n, &["patient.sh", session, "0.1"]).succeeds().text();
    assert!(ended.starts_with("signal 15\nreal ") && ended.contains(" received "), "{ended}");
    assert!(script(&machine, &n, &["patient.sh", session, "60"]).succeeds().text().starts_with("signal 15\n"));
}

fn a_blocking_read_ends_by_a_signal_and_the_command_goes_on(machine: Machine) {
    let (machine, n) = grid(machine);
    let left = script(&machine, &n, &["leave.sh", "alpha", "sleep", "1000"]).succeeds().text();
    let (node, id) = left.trim().split_once('/').unwrap();
    let at = n.join(node).join("cpu").join(id);
    for file in ["wait", "stdout"] {
        let mut child = machine.command("cat").arg(at.join(file)).stdout(Stdio::null()).spawn().unwrap();
        let syscall = format!("/proc/{}/syscall", child.id());
        until("it waits in read(2)", || fs::read_to_string(&syscall).unwrap_or_default().starts_with("0 "));
        machine.run("kill", &["-INT".to_string(), child.id().to_string()]);
        assert_eq!(child.wait().unwrap().code(), None, "{file}");
    }
    assert!(machine.run("cat", &[at.join("status")]).text().starts_with("running "));
    machine.command("sh").args(["-c", "echo kill KILL >$0"]).arg(at.join("ctl")).succeeds();
    assert!(machine.run("cat", &[at.join("wait")]).text().starts_with("signal 9\n"));
}

fn a_bound_is_kept_and_told(machine: Machine) {
    let (machine, n) = grid(machine);
    let script = script(&machine, &n, &["bounded.sh", "alpha", "64M", "echo", "inside"]).succeeds().text();
    let lines: Vec<&str> = script.lines().collect();
    assert_eq!((lines[0], lines[2]), ("inside", "exit 0"), "{script}");
    assert!(lines[1].starts_with("limits memory ") && !lines[1].ends_with("nothing"), "{script}");
}

fn a_socket_of_the_node_is_talked_to(machine: Machine) {
    let (machine, n) = grid(machine);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(&mut stream), &mut line).unwrap();
        std::io::Write::write_all(&mut stream, format!("heard {line}").as_bytes()).unwrap();
    });
    let asked = script(&machine, &n, &["ask.sh", "alpha", "127.0.0.1", &port, "a word"]).succeeds().text();
    assert_eq!(asked, "heard a word\n");
    answering.join().unwrap();
    let refused = script(&machine, &n, &["ask.sh", "alpha", "127.0.0.1", &port, "a word"]).exits(1).errors();
    assert!(refused.contains("printf"), "{refused}");
}

fn a_command_finds_its_caller(machine: Machine) {
    let (machine, n) = grid(machine);
    let ask = "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/door'); print(s.makefile().read())";
    let said = script(&machine, &n, &["door.sh", "alpha", "a word", "python3", "-c", ask]).succeeds().text();
    assert!(said.starts_with("a word\n\nexit 0\n"), "{said}");
}

fn a_namespace_is_lines(machine: Machine) {
    let (machine, n) = grid(machine);
    assert_eq!(script(&machine, &n, &["root.sh", "alpha", "/tmp"]).succeeds().text(), "");
    let work = machine.at("work").display().to_string();
    assert_eq!(script(&machine, &n, &["root.sh", "alpha", &work]).succeeds().text(), "");
    let listed = script(&machine, &n, &["root.sh", "alpha", "/"]).succeeds().text();
    assert!(listed.contains("proc\n") && listed.contains("usr\n"), "{listed}");
}
