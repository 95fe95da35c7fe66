//! Programs for other machines, and the node's own programs: `--root node`, qemu-user.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::io::Write;
use std::process::Stdio;

use tests::as_both;
use tests::machine::{Done, Machine, Text};

as_both! {
    a_program_for_another_architecture_runs_by_the_nodes_emulator
    the_nodes_own_programs_run_in_my_directories
    a_node_is_chosen_for_what_the_program_is_for
    a_program_for_a_newer_processor_is_not_started_on_an_older_one
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
    // Without my home, where that is hidden.
    let address = machine.node("beta");
    machine.slashn(&["add", "beta", &address, "--trust", "cwd"]).succeeds();
    let home = machine.at("home").display().to_string();
    let there = machine.rcpu(&["--root", "node", "beta", "cat", "notes"]).env("HOME", &home).succeeds();
    assert_eq!((there.text(), there.errors()), ("mine\n".into(), String::new()));
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

/// An executable in the work folder that needs a level of x86-64 which no processor has yet.
fn for_tomorrow(machine: &Machine, name: &str) {
    machine.write("level.c", "int main(void) { return 7; }\n");
    machine.run("gcc", &["-O1", "-Wl,-z,x86-64-v4", "-o", name, "level.c"]);
    let path = machine.at("work").join(name);
    let mut bytes = fs::read(&path).unwrap();
    // The property GNU_PROPERTY_X86_ISA_1_NEEDED, of four bytes: its highest bit.
    let property = [&0xc000_8002u32.to_le_bytes()[..], &[4, 0, 0, 0]].concat();
    let at = bytes.windows(8).position(|part| part == property).expect("a property note");
    bytes[at + 8..at + 12].copy_from_slice(&0x10u32.to_le_bytes());
    fs::write(&path, &bytes).unwrap();
}

fn a_program_for_a_newer_processor_is_not_started_on_an_older_one(mut machine: Machine) {
    if std::env::consts::ARCH != "x86_64" {
        eprintln!("SKIPPED: levels are those of x86-64");
        return;
    }
    machine.node("alpha");
    machine.node("beta");
    let runs = machine.run("9p", &["read", "alpha/stat/runs"]).text();
    let own = runs.split_whitespace().take_while(|one| one.starts_with("x86_64")).last().unwrap().to_owned();
    for_tomorrow(&machine, "newer");
    let is = format!("./newer: it is for x86_64-v5, and this node is {own}");
    machine.rcpu(&["alpha", "./newer"]).exits(126).complains(&["rcpu: run: alpha: ", &is, "rcpu -a 'runs=x86_64-v5'"]);
    let several = machine.rcpu(&["alpha,beta", "./newer"]).exits(126).errors();
    assert_eq!(several.matches(&is).count(), 2, "{several}");
    let none = machine.rcpu(&["-a", "", "./newer"]).exits(255);
    none.complains(&["rcpu: find a node: x86_64-v5: no node that fits runs programs for it", &format!("is {own}")]);
}

/// As root alone, as below.
#[test]
fn where_my_program_is_for_a_newer_processor_the_nodes_own_is_taken_on_each() {
    let machine = Machine::root().with_two_nodes();
    for_tomorrow(&machine, "newer");
    let mine = |what: &str| {
        let script = format!("mount --bind newer /usr/bin/uname && {what}");
        let mut command = machine.command("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
        command
    };
    let said = |name: &str| format!("slashn: {name} runs no programs for x86_64-v5: its own are taken (--root node)\n");
    let one = mine("rcpu alpha uname -n").succeeds();
    assert_eq!((one.text(), one.errors()), ("alpha\n".into(), said("alpha")));
    let several = mine("rcpu -q alpha,beta uname -n").succeeds();
    let mut lines: Vec<String> = several.text().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["alpha: alpha", "beta: beta"]);
    assert!(several.errors().contains(&said("alpha")) && several.errors().contains(&said("beta")));
    let each = mine("seq 8 | rcpu -q -a '' --each uname -n {}").done().errors();
    assert!((1..=2).contains(&each.matches("its own are taken").count()), "{each}");
    let detached = mine("rcpu -d alpha uname -n").succeeds();
    machine.slashn(&["wait", detached.text().trim()]).exits(0);
}

/// As root alone: what the caller has at the name of a program is mounted for the caller and nobody else.
#[test]
fn where_a_node_cannot_run_my_programs_its_own_are_taken_and_that_is_said() {
    let mut machine = Machine::root();
    machine.node("alpha");
    machine.node("beta");
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
    // On several nodes, too, and what is read is read by those that run.
    let script = "mount --bind foreign /usr/bin/tac && echo words | exec rcpu -q --copy-stdin alpha,beta tac";
    let both = machine.command("unshare").args(["--mount", "--propagation", "private", "sh", "-c", script]).succeeds();
    let mut lines: Vec<String> = both.text().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["alpha: words", "beta: words"], "{}", both.errors());
    assert_eq!(both.errors().matches("its own are taken (--root node)").count(), 2, "{}", both.errors());
    let each = mine("sh -c 'seq 3 | rcpu -q -j1 -a name=beta --each uname -n'").done();
    assert_eq!(each.errors().matches("its own are taken").count(), 1, "{}", each.errors());
    let detached = mine("rcpu -d alpha uname -n").succeeds();
    machine.slashn(&["wait", detached.text().trim()]).exits(0);
}
