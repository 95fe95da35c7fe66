//! `slashn ns`: the namespace of a mount, and of a process wherever that is.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use tests::as_both;
use tests::machine::{Done, Machine, Text};

as_both! {
    a_process_of_a_command_has_the_commands_namespace
    a_process_that_works_in_a_mount_has_the_mounts_namespace
    a_process_that_is_in_neither_is_told_apart
}

/// A program that tells its pid and then waits for a line.
fn told(mut child: Child) -> (Child, u32) {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().parse().unwrap_or_else(|_| panic!("no pid: {line:?}")))
}

fn goes(mut child: Child) {
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
}

fn a_process_of_a_command_has_the_commands_namespace(mut machine: Machine) {
    machine.node("beta");
    let beta = machine.at("beta").display().to_string();
    let script = machine.write("script", "sh -c 'echo up; read line; sleep 0'; echo done\n");
    let child = machine.rcpu(&["beta", "sh", script.to_str().unwrap()]);
    let mut child = { child }.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    // What looks the same to the machine but is the caller's own has no such namespace.
    let inside = machine.processes().into_iter().find(|line| line.contains(" sh -c echo up")).unwrap();
    let pid = inside.split(' ').next().unwrap().to_string();
    let text = machine.slashn(&["--home", &beta, "ns", &pid]).succeeds().text();
    assert!(text.starts_with("mount -c caller /\n") && text.contains("mount '#fs' /n/beta/fs\n"), "{text}");
    // The text rebuilds it.
    let file = machine.write("ns", &text);
    let listed = machine.rcpu(&["--ns", file.to_str().unwrap(), "beta", "ls", "/n/beta/fs"]).succeeds().text();
    assert_eq!(listed, "files\n");
    machine.slashn(&["--home", &beta, "ns", &child.id().to_string()]).exits(1).complains(&["ns: process "]);
    goes(child);
}

fn a_process_that_works_in_a_mount_has_the_mounts_namespace(mut machine: Machine) {
    machine.node("alpha");
    let n = machine.mount();
    let mut shell = machine.command("sh");
    shell.arg("-c").arg(format!("cd {}/alpha/fs; echo $$; read line", n.display()));
    let (child, pid) = told(shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let text = machine.slashn(&["ns", &pid.to_string()]).succeeds().text();
    assert_eq!(text, machine.slashn(&["ns", n.to_str().unwrap()]).succeeds().text());
    assert_eq!(text, "mount '#grid' /\n");
    goes(child);
}

fn a_process_that_is_in_neither_is_told_apart(mut machine: Machine) {
    machine.node("alpha");
    machine.mount();
    let mut shell = machine.command("sh");
    shell.args(["-c", "echo $$; read line"]);
    let (child, pid) = told(shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    let pid = pid.to_string();
    let error = machine.slashn(&["ns", &pid]).exits(1);
    error.complains(&["slashn: ns: ", &format!("process {pid}: "), "this machine's own", "slashn ns DIR"]);
    goes(child);
    machine.slashn(&["ns", "4194305"]).exits(1).complains(&["process 4194305: there is none"]);
    machine.slashn(&["ns", "/no/such"]).exits(1).complains(&["ns: /no/such: no grid", "slashn mount /no/such"]);
}
