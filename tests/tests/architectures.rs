//! Programs for other machines, and the node's own programs: `--root node`, qemu-user.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::io::Write;
use std::process::Stdio;

use tests::as_both;
use tests::machine::{Done, Machine, Text};

as_both! {
    a_program_for_another_architecture_runs_by_the_nodes_emulator
    the_nodes_own_programs_run_in_my_directories
    a_node_is_chosen_for_what_the_program_is_for
}

/// Compiles `program` in the work folder for aarch64.
fn compiled(machine: &Machine, program: &str, source: &str) {
    machine.write(&format!("{program}.c"), source);
    let name = format!("{program}.c");
    machine.run("aarch64-linux-gnu-gcc", &["-static", "-O1", "-o", program, &name]);
}

const HELLO: &str = r#"#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
int main(int argc, char **argv) {
    struct utsname it;
    uname(&it);
    char line[64] = "";
    fgets(line, sizeof line, stdin);
    printf("%s %s %s %s %s", argv[0], argv[1], getenv("WORD"), it.machine, line);
    FILE *made = fopen("made", "w");
    fputs("by it", made);
    fclose(made);
    return argc + 5;
}
"#;

fn a_program_for_another_architecture_runs_by_the_nodes_emulator(mut machine: Machine) {
    machine.node("alpha");
    compiled(&machine, "hello.arm64", HELLO);
    let mut child = machine.rcpu(&["-e", "WORD=spoken", "alpha", "./hello.arm64", "a b"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"to read\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.text(), "./hello.arm64 a b spoken aarch64 to read\n", "{}", output.errors());
    assert_eq!((output.status.code(), output.errors().as_str()), (Some(7), ""));
    assert_eq!(fs::read_to_string(machine.at("work/made")).unwrap(), "by it");
    let runs = machine.run("9p", &["read", "alpha/stat/runs"]).text();
    let runs: Vec<&str> = runs.split_whitespace().collect();
    assert!(runs[0] == std::env::consts::ARCH && runs.contains(&"aarch64"), "{runs:?}");
}

fn the_nodes_own_programs_run_in_my_directories(mut machine: Machine) {
    machine.node("alpha");
    machine.write("notes", "mine\n");
    fs::create_dir_all(machine.at("only-here")).unwrap();
    let script = "cat notes; pwd; touch made; ls / | head -1; ls -d /mnt/term";
    let there = machine.rcpu(&["--root", "node", "alpha", "sh", "-c", script]).succeeds().text();
    let here = machine.at("work");
    assert!(there.starts_with(&format!("mine\n{}\n", here.display())), "{there}");
    assert!(here.join("made").exists() && there.ends_with("/mnt/term\n"), "{there}");
}

fn a_node_is_chosen_for_what_the_program_is_for(mut machine: Machine) {
    machine.node("alpha");
    compiled(&machine, "hello.arm64", HELLO);
    machine.rcpu(&["-a", "", "-e", "WORD=x", "./hello.arm64", "y"]).exits(7);
    let mut bytes = fs::read("/usr/bin/true").unwrap();
    bytes[18..20].copy_from_slice(&[50, 0]);
    let path = machine.write("foreign", "");
    fs::write(&path, &bytes).unwrap();
    machine.run("chmod", &["+x", "foreign"]);
    let none = machine.rcpu(&["-a", "", "./foreign"]).exits(255);
    let is = format!("alpha is {}", std::env::consts::ARCH);
    none.complains(&[
        "rcpu: find a node: ia64: no node that fits runs programs for it",
        &is,
        "no other that I know could",
    ]);
    let elsewhere = machine.rcpu(&["-a", "name=beta", "./hello.arm64"]).exits(255).errors();
    assert!(elsewhere.contains("0 of 1 known nodes do"), "{elsewhere}");
}

/// As root alone: what the caller has at the name of a program is mounted for the caller and nobody else.
#[test]
fn where_a_node_cannot_run_my_programs_its_own_are_taken_and_that_is_said() {
    let mut machine = Machine::root();
    machine.node("alpha");
    let mut bytes = fs::read("/usr/bin/uname").unwrap();
    bytes[18..20].copy_from_slice(&[50, 0]);
    let path = machine.write("foreign", "");
    fs::write(&path, &bytes).unwrap();
    machine.run("chmod", &["+x", "foreign"]);
    let mine = |what: &str| {
        let script = format!("mount --bind foreign /usr/bin/uname && exec {what}");
        let mut command = machine.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        command
    };
    let there = mine("rcpu alpha uname -n").succeeds();
    assert_eq!(there.text(), "alpha\n");
    assert_eq!(there.errors(), "slashn: alpha runs no programs for ia64: its own are taken (--root node)\n");
    // What is to be read is not taken by the first try.
    let script = "mount --bind foreign /usr/bin/tac && echo words | exec rcpu alpha tac";
    let reads = machine.command("unshare").args(["--mount", "--propagation", "private", "sh", "-c", script]).succeeds();
    assert_eq!(reads.text(), "words\n");
    // Unless somebody has said which.
    let said = mine("rcpu --root caller alpha uname").exits(126).errors();
    assert!(said.contains("/usr/bin/uname: it is for ia64, and this node is"), "{said}");
    let detached = mine("rcpu -d alpha uname -n").succeeds();
    machine.slashn(&["wait", detached.text().trim()]).exits(0);
}
