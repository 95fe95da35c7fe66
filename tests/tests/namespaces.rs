//! `slashn ns`: the namespace of a mount, and of a process wherever that is.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use tests::as_both;
use tests::machine::{Done, Machine, Text, binaries};

as_both! {
    a_process_of_a_command_has_the_commands_namespace
    a_process_that_works_in_a_mount_has_the_mounts_namespace
    a_process_that_is_in_neither_is_told_apart
    what_is_mounted_is_what_the_homes_namespace_says
    a_namespace_file_that_is_none_mounts_nothing_and_says_where
    a_command_elsewhere_has_what_the_homes_namespace_says
    a_command_elsewhere_works_in_the_mount_that_its_caller_works_in
    what_a_node_cannot_make_of_a_namespace_is_told_with_its_line
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
    assert_eq!(text, "mount -c local!/ /\nmount '#grid' /n\n");
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

fn what_is_mounted_is_what_the_homes_namespace_says(mut machine: Machine) {
    machine.node("alpha");
    machine.run("mkdir", &["../files-alpha/d"]);
    let home = machine.at("me/namespace");
    fs::write(&home, "bind -q $n/nobody $n/x\nbind $n/alpha/fs/files/d $n/d\nmount -q nobody /nobody\n").unwrap();
    let n = machine.mount();
    let text = machine.slashn(&["ns", n.to_str().unwrap()]).succeeds().text();
    assert_eq!(text, "mount -c local!/ /\nmount '#grid' /n\nbind /n/alpha/fs/files/d /n/d\n");
    machine.run("mkdir", &[n.join("alpha/fs/files/d/made")]);
    assert_eq!(machine.run("ls", &[n.join("d")]).text(), "made\n");
    // It means the same to a command, here and elsewhere; and so does what `slashn ns` prints.
    machine.write("text", &text);
    let look = ["sh", "-c", "ls /n /n/d"];
    let seen = machine.run("sh", &["-c", &format!("cd {} && ls . d", n.display())]).text().replace('.', "/n");
    let seen = seen.replace("\nd:", "\n/n/d:");
    assert_eq!(seen, "/n:\nalpha\nd\n\n/n/d:\nmade\n");
    for ns in [&[][..], &["--ns", "text"]] {
        assert_eq!(machine.slashn(&["run"]).args(ns).args(look).succeeds().text(), seen);
        assert_eq!(machine.rcpu(ns).arg("alpha").args(look).succeeds().text(), seen);
    }
    machine.slashn(&["unmount", n.to_str().unwrap()]).succeeds();
    machine.mount_as("n", &["--ns", "text"]);
    assert_eq!(machine.slashn(&["ns", n.to_str().unwrap()]).succeeds().text(), text);
    machine.slashn(&["unmount", n.to_str().unwrap()]).succeeds();
    // Without the grid, and with something of this machine.
    machine.run("sh", &["-c", "mkdir mine; echo 1 >mine/f"]);
    machine.write("ns", "bind $home/../work/mine $n/alpha/mine\n");
    machine.mount_as("n", &["--ns", "ns"]);
    assert_eq!(machine.run("ls", &[n.join("alpha"), n.join("alpha/mine")]).text().lines().last(), Some("f"));
    machine.slashn(&["unmount", n.to_str().unwrap()]).succeeds();
    fs::write(&home, "clear\nmount alpha $n/only fs\n").unwrap();
    machine.mount();
    assert_eq!(machine.run("ls", &[&n]).text(), "only\n");
    assert_eq!(machine.run("ls", &[n.join("only")]).text(), "files\n");
}

/// Whatever is wrong with a line, whoever writes it is told where that is, and what is.
fn what_a_node_cannot_make_of_a_namespace_is_told_with_its_line(mut machine: Machine) {
    machine.node("beta");
    machine.node("gamma");
    let w = machine.at("work").display().to_string();
    machine.run("sh", &["-c", "mkdir d; echo 'bind /no/such /x' >d/inc; echo 'mount gamma /g fs/files' >d/servers"]);
    machine.run("sh", &["-c", "echo 1 >../files-gamma/f"]);
    for (text, parts) in [
        ("# one\nmount gamma /x files\n".into(), &["ns:2: mount gamma: files: No such file", "; there is "][..]),
        ("mount beta /x fs/none\n".into(), &["ns:1: mount beta: fs/none: No such file", "; there is files;"]),
        ("\n\nbind /no/such /x\n".into(), &["ns:3: /no/such: No such file"]),
        ("unmount /no\n".into(), &["ns:1: /no: not mounted"]),
        (format!("bind {w}/d/inc {w}\n"), &["ns:1: ", "a file on a file"]),
        (format!("cd {w}\n. d/inc\n"), &["d/inc:1: /no/such: No such file"]),
        (format!("bind {w}/d /y\n. /y/inc\n"), &["ns:2: /y/inc:1: /no/such: No such file"]),
        (format!("cd {w}\n. -q none\n. none\n"), &["ns:3: ", "/none: No such file"]),
        (format!("bind {w}/d /y\n. /y/none\n"), &["ns:2: /y/none: No such file"]),
        (format!("mount 'exec!false' /x\n. {w}/ns\n"), &["ns:2: ", "it is included too deep"]),
    ] {
        machine.write("ns", &text);
        machine.rcpu(&["--ns", "ns", "beta", "true"]).exits(255).complains(parts);
    }
    // What a file names that is included is named by the namespace.
    machine.write("ns", format!(". {w}/d/servers\n. -q /no/such\n"));
    assert_eq!(machine.rcpu(&["--ns", "ns", "beta", "cat", "/g/f"]).succeeds().text(), "1\n");
    let said = |text: &str| {
        machine.write("ns", text);
        machine.rcpu(&["--ns", "ns", "beta,gamma", "true"]).exits(255).errors()
    };
    assert_eq!(said("unmount /no\n").matches(": ns:1: /no: not mounted").count(), 2);
    // That is said before any of them is asked.
    let unknown = "rcpu: run: ns:1: mount nobody: no node of that name is known; try: slashn nodes; ";
    assert!(said("mount nobody /x\n").starts_with(unknown));
    assert!(said("bind /n/nobody/fs/files /x\n").starts_with(unknown));
    machine.write("ns", "bind -q /n/nobody/fs/files /x\nmount gamma /n/other fs\nbind /n/other/files /y\n");
    assert_eq!(machine.rcpu(&["--ns", "ns", "beta", "cat", "/y/f"]).succeeds().text(), "1\n");
}

fn a_command_elsewhere_has_what_the_homes_namespace_says(mut machine: Machine) {
    machine.node("beta");
    machine.run("sh", &["-c", "mkdir ../files-beta/d; echo beta >../files-beta/d/f"]);
    let home = machine.at("me/namespace");
    fs::write(&home, "bind $n/beta/fs/files/d /srv/data\nbind -q /no/such /x\n").unwrap();
    assert_eq!(machine.rcpu(&["beta", "cat", "/srv/data/f"]).succeeds().text(), "beta\n");
    // Another file is read instead.
    machine.write("ns", "bind $n/beta/fs/files /srv/all\n");
    assert_eq!(
        machine.rcpu(&["--ns", "ns", "beta", "ls", "/srv", "/srv/all"]).succeeds().text(),
        "/srv:\nall\n\n/srv/all:\nd\n"
    );
    machine.write("ns", "bind /no/such /srv/all\n");
    machine
        .rcpu(&["--ns", "ns", "beta", "true"])
        .exits(255)
        .complains(&["run: beta: ", "ns:1: /no/such: No such file"]);
    fs::write(&home, "mount '#grid' $n\nbind -x a b\n").unwrap();
    machine.rcpu(&["beta", "true"]).exits(255).complains(&["me/namespace: line 2, column 6: expected a flag"]);
    machine.rcpu(&["--ns", "none", "beta", "true"]).exits(255).complains(&["none: No such file"]);
}

fn a_command_elsewhere_works_in_the_mount_that_its_caller_works_in(mut machine: Machine) {
    machine.node("alpha");
    let address = machine.node("beta");
    machine.slashn(&["add", "beta", &address, "--trust", "all"]).succeeds();
    machine.run("sh", &["-c", "mkdir -p ../files-alpha/d ../files-beta/e; echo alpha >../files-alpha/d/f"]);
    let n = machine.mount();
    let inside = |dir: &str, script: &str| {
        let mut command = machine.command("sh");
        command.args(["-c", "cd \"$0\" && exec \"$1\" beta sh -c \"$2\""]).arg(n.join(dir));
        command.arg(binaries().join("rcpu")).arg(script).succeeds().text()
    };
    let at = |dir: &str| n.join(dir).display().to_string();
    let there = inside("alpha/fs/files/d", "pwd; cat f; echo made >g; cat ../../../../alpha/fs/files/d/g");
    assert_eq!(there, format!("{}\nalpha\nmade\n", at("alpha/fs/files/d")));
    machine.slashn(&["bind", &at("alpha/fs/files/d"), &at("beta/fs/files/e")]).succeeds();
    assert_eq!(inside("beta/fs/files/e", "cat f"), "alpha\n");
    let tree = machine.mount_as("single", &["--single-writer", "alpha/fs/files"]).join("d");
    let mut command = machine.rcpu(&["-C", tree.to_str().unwrap(), "beta", "cat", "f"]);
    assert_eq!(command.succeeds().text(), "alpha\n");
}

fn a_namespace_file_that_is_none_mounts_nothing_and_says_where(machine: Machine) {
    let n = machine.at("n");
    machine.run("mkdir", &[&n]);
    let said = |text: &[u8], parts: &[&str]| {
        let file = machine.write("ns", "");
        fs::write(&file, text).unwrap();
        let error = machine.slashn(&["mount", n.to_str().unwrap(), "--ns", "ns"]).exits(1);
        error.complains(&[&["slashn: ", "work/ns: "][..], parts].concat());
    };
    said(b"mount '#grid' /\nbind -x a b\n", &["line 2, column 6: expected a flag of -abcCmqw, not x", "sed -n 2p "]);
    said(b"mount '#grid' /\0\n", &["line 1, column 16: expected text, not a NUL"]);
    said(b"\xff\xfe\x00", &["line 1, column 1: expected text in UTF-8"]);
    said(&b"bind /a /b\n".repeat(1 << 20), &["line 762601, column 9: expected the end: it may have 8 MiB"]);
    let refused = |text: &str, part: &str| {
        machine.write("ns", text);
        machine.slashn(&["mount", n.to_str().unwrap(), "--ns", "ns"]).exits(1).complains(&["slashn: mount: ", part]);
    };
    refused("mount nobody /x\n", "work/ns:1: mount nobody: no node of that name is known");
    refused("\n# x\nbind /no /x\n", "work/ns:3: /no: No such file");
    refused("clear\ncd /\nunmount /x\n", "work/ns:3: /x: not mounted");
    refused("bind /etc /n\n. /no\n", "work/ns:2: /no: No such file");
    machine.slashn(&["mount", n.to_str().unwrap(), "--ns", "none"]).exits(1).complains(&["none: No such file"]);
    assert_eq!(machine.run("ls", &[&n]).text(), "");
}
