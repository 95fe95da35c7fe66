//! Commands that run commands: `rcpu` on a node, from there to another, and back, with the keys and nodes of who began.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::path::Path;
use std::process::Command;

use tests::as_both;
use tests::machine::{Done, Machine, Text, binaries};

as_both! {
    a_command_runs_commands_on_other_nodes_and_back_where_it_was_run
    the_nodes_of_a_caller_are_lent_to_whom_it_trusts_or_says
    what_is_hidden_in_a_command_is_told_to_be_hidden
}

/// `rcpu` with these arguments, that is without what a debugger needs: a node reads it through others, whole. slashn
/// and 9p are beside it, in a folder that the node may read.
fn rcpu(machine: &Machine, args: &[&str]) -> Command {
    let bin = machine.at("bin");
    if !bin.exists() {
        machine.run("mkdir", &[&bin]);
        for name in ["rcpu", "slashn", "9p"] {
            machine.run("strip", &[Path::new("-o"), &bin.join(name), &binaries().join(name)]);
        }
    }
    let mut command = machine.command(bin.join("rcpu"));
    command
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .args(["--expose", &format!("{}:ro", bin.display())]);
    command.args(args);
    command
}

/// With alpha, beta and gamma, of which the first two are trusted `trust`.
fn three(machine: &mut Machine, trust: &str) {
    let nodes = [("alpha", machine.node("alpha")), ("beta", machine.node("beta"))];
    machine.node("gamma");
    for (name, address) in &nodes {
        machine.slashn(&["add", name, address, "--trust", trust]).succeeds();
    }
}

fn a_command_runs_commands_on_other_nodes_and_back_where_it_was_run(mut machine: Machine) {
    three(&mut machine, "all");
    // My own machine, too.
    machine.takes_down("me");
    machine.run("mkdir", &[machine.at("files-me")]);
    let ready = machine.up("me", "127.0.0.1:0", &[]);
    let fields: Vec<&str> = ready.split_whitespace().collect();
    machine.slashn(&["add", "me", fields[2], "--key", fields[3], "--trust", "all"]).succeeds();
    machine.write("notes", "mine\n");
    let work = machine.at("work").display().to_string();
    for way in [&["beta"][..], &["beta", "gamma"], &["alpha", "beta", "alpha"], &["beta", "me"]] {
        let nested: Vec<&str> = way.iter().flat_map(|node| ["rcpu", "-e", "WORD=a b", *node]).collect();
        let last = way.last().unwrap();
        let script = "hostname; pwd; cat notes; cat; echo \"$WORD\" >>made; exit 7";
        let args = [&nested[1..], &["sh", "-c", script]].concat();
        let mut command = rcpu(&machine, &args);
        let input = machine.write("input", "to read\n");
        let ended = command.stdin(fs::File::open(input).unwrap()).exits(7);
        assert_eq!(ended.text(), format!("{last}\n{work}\nmine\nto read\n"), "{way:?}");
        assert_eq!(ended.errors(), "", "{way:?}");
    }
    assert_eq!(fs::read_to_string(machine.at("work/made")).unwrap(), "a b\n".repeat(4));
    // What a command there has of its own is what the next one sees: a file in its /tmp, say.
    let script = "echo beta >/tmp/only-there && rcpu gamma cat /tmp/only-there && kill -9 $$";
    let ended = rcpu(&machine, &["beta", "sh", "-c", script]).exits(128 + 9);
    assert_eq!(ended.text(), "beta\n", "{}", ended.errors());
    // And what is there beside rcpu.
    let nodes = rcpu(&machine, &["beta", "slashn", "nodes"]).succeeds().text();
    assert_eq!(nodes, machine.slashn(&["nodes"]).succeeds().text());
    assert_eq!(
        rcpu(&machine, &["beta", "9p", "read", "gamma/stat/arch"]).succeeds().text().trim(),
        std::env::consts::ARCH
    );
    let parallel = "for n in 1 2 3 4; do rcpu gamma hostname & done; wait";
    assert_eq!(rcpu(&machine, &["beta", "sh", "-c", parallel]).succeeds().text(), "gamma\n".repeat(4));
    let unknown = rcpu(&machine, &["beta", "rcpu", "delta", "true"]).exits(255).errors();
    assert!(unknown.contains("find the node: delta: no node of that name is known"), "{unknown}");
    machine.slashn(&["--home", &machine.at("gamma").display().to_string(), "down"]).succeeds();
    let down = rcpu(&machine, &["beta", "rcpu", "gamma", "true"]).exits(255).errors();
    assert!(down.contains("rcpu: connect: gamma at ") && down.contains("nothing listens there"), "{down}");
}

fn the_nodes_of_a_caller_are_lent_to_whom_it_trusts_or_says(mut machine: Machine) {
    for trust in ["cwd", "home"] {
        three(&mut machine, trust);
        let refused = rcpu(&machine, &["alpha", "rcpu", "beta", "true"]).exits(255).errors();
        let home = machine.at("me").display().to_string();
        let said = format!("rcpu: open the home: {home}: it is the caller's, and hidden from a command on alpha");
        assert!(refused.contains(&said) && refused.contains("try: rcpu --forward rcpu alpha ..."), "{refused}");
        let lent = ["--forward", "rcpu", "alpha", "rcpu", "gamma", "hostname"];
        let lent = rcpu(&machine, &lent).succeeds();
        assert_eq!(lent.text(), "gamma\n");
        // One that was let have them does not let the next one.
        let bin = machine.at("bin").display().to_string();
        let further = ["--forward", "rcpu", "alpha", "rcpu", "--expose", &bin, "beta", "rcpu", "gamma", "true"];
        let further = rcpu(&machine, &further).exits(255).errors();
        assert!(further.contains("hidden from a command on beta"), "{further}");
        for name in ["alpha", "beta", "gamma"] {
            machine.slashn(&["--home", &machine.at(name).display().to_string(), "down"]).succeeds();
            machine.slashn(&["remove", name]).succeeds();
            machine.run("rm", &["-r", machine.at(name).to_str().unwrap()]);
        }
    }
    three(&mut machine, "all");
    let kept = rcpu(&machine, &["--forward", "no-rcpu", "alpha", "rcpu", "beta", "true"]).exits(255).errors();
    assert!(kept.contains("hidden from a command on alpha"), "{kept}");
    // Nobody else there finds the way: it is in the command's own /run.
    let socket = "test -S /run/slashn/caller && stat -c '%a %a' /run/slashn/caller /run/slashn | head -1";
    assert_eq!(rcpu(&machine, &["alpha", "sh", "-c", socket]).succeeds().text(), "600 600\n");
    let ask =
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/slashn/caller'); s.sendall(b'keys\\n')";
    let script = format!("{ask}; print(s.recv(999).decode())");
    let said = rcpu(&machine, &["alpha", "python3", "-c", &script]).succeeds().text();
    assert_eq!(said.trim(), "error lend: rcpu: `keys` is not known here");
    let left_alone = rcpu(&machine, &["-d", "alpha", "rcpu", "beta", "true"]).succeeds().text();
    machine.slashn(&["wait", left_alone.trim()]).exits(255);
    rcpu(&machine, &["-d", "--forward", "rcpu", "alpha", "true"]).exits(2).complains(&["--forward: "]);
}

fn what_is_hidden_in_a_command_is_told_to_be_hidden(mut machine: Machine) {
    machine.node("alpha");
    let ns = rcpu(&machine, &["alpha", "slashn", "ns"]).succeeds().text();
    assert!(ns.starts_with("mount -c caller /\n") && ns.contains("#tmp"), "{ns}");
    for command in [&["slashn", "status"][..], &["slashn", "nodes"], &["slashn", "exports"], &["9p", "ls", "alpha"]] {
        let refused = rcpu(&machine, &[&["alpha"], command].concat()).done();
        let errors = refused.errors();
        assert!(errors.contains("open the home: ") && errors.contains("hidden from a command on alpha"), "{errors}");
        assert!(!errors.contains("init"), "{errors}");
    }
}
