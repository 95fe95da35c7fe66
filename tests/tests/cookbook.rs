//! The scripts of `docs/cookbook.md`, as they stand there.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tests::machine::{Done, Machine, Text, binaries, until};
use tests::mounted::{documented, in_grid as script};

/// Two nodes and a mount, and the scripts in the folder `work`.
fn grid() -> (Machine, PathBuf) {
    let mut machine = Machine::ordinary();
    machine.node("alpha");
    machine.node("beta");
    let (text, scripts) = documented(&machine, "cookbook.md");
    assert_eq!(scripts, text.matches("\n## ").count(), "each has a script that begins with its name");
    let n = machine.mount();
    (machine, n)
}

#[test]
fn the_least_loaded_node_is_one_that_answers() {
    let (machine, n) = grid();
    let dead = machine.at("me/known_nodes");
    let text = fs::read_to_string(&dead).unwrap();
    let line = text.lines().find(|line| line.contains("alpha")).unwrap().replace("alpha", "aaa");
    let address = line.split_whitespace().find(|word| word.contains("127.0.0.1")).unwrap().to_string();
    fs::write(&dead, format!("{text}{}\n", line.replace(&address, "127.0.0.1:9"))).unwrap();
    until("known", || machine.run("ls", &[&n]).text().starts_with("aaa\n"));
    let least = script(&machine, &n, &["least.sh"]).succeeds().text();
    assert!(["alpha\n", "beta\n"].contains(&least.as_str()), "{least}");
}

#[test]
fn a_log_of_all_nodes_is_followed() {
    let (machine, n) = grid();
    for name in ["alpha", "beta"] {
        machine.run("sh", &["-c", &format!("echo first >../files-{name}/log")]);
    }
    // A group of its own, which is what it kills.
    let mut child = machine.command("setsid");
    let child = child.args(["--wait", "sh", "logs.sh", "files/log"]).env("N", &n).stdout(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut two = || {
        let mut two = [lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap()];
        two.sort();
        two
    };
    assert_eq!(two(), ["alpha: first", "beta: first"]);
    for name in ["alpha", "beta"] {
        machine.run("sh", &["-c", &format!("echo more >>../files-{name}/log")]);
    }
    assert_eq!(two(), ["alpha: more", "beta: more"]);
    let leader = machine.processes().into_iter().find(|line| line.contains(" sh logs.sh")).unwrap();
    machine.run("kill", &["-TERM", leader.split(' ').next().unwrap()]);
    child.wait().unwrap();
    until("ended", || !machine.processes().iter().any(|line| line.contains("tail -n") || line.contains("logs.sh")));
}

#[test]
fn a_node_copies_to_another_by_itself() {
    let (machine, n) = grid();
    let alpha = machine.at("alpha").display().to_string();
    // Alpha knows beta, and beta lets alpha's user in.
    let known = fs::read_to_string(machine.at("me/known_nodes")).unwrap();
    machine.run("sh", &["-c", "grep beta ../me/known_nodes >../alpha/known_nodes; chmod 600 ../alpha/known_nodes"]);
    assert!(known.contains("beta"));
    let key = fs::read_to_string(machine.at("alpha/id_ed25519.pub")).unwrap();
    let beta = machine.at("beta").display().to_string();
    machine.slashn(&["--home", &beta, "allow", key.trim()]).succeeds();
    let big = machine.write("big", "0123456789abcdef".repeat(1 << 16));
    let env = format!("PATH={}:/usr/bin:/bin SLASHN_HOME={alpha} HOME={alpha}", binaries().display());
    let args = ["between.sh", "alpha", big.to_str().unwrap(), "beta/fs/files/copy"];
    script(&machine, &n, &args).env("NODE_ENV", &env).succeeds();
    assert_eq!(fs::read(machine.at("files-beta/copy")).unwrap(), fs::read(&big).unwrap());
    let args = ["between.sh", "alpha", "/no/such", "beta/fs/files/copy"];
    let failed = script(&machine, &n, &args).env("NODE_ENV", &env).exits(1);
    assert!(failed.errors().contains("/no/such"), "{}", failed.errors());
}

#[test]
fn all_that_i_run_is_killed() {
    let (machine, n) = grid();
    let children: Vec<_> =
        ["alpha", "beta"].iter().map(|node| machine.rcpu(&[node, "sleep", "1000"]).spawn().unwrap()).collect();
    let run = |line: &String| line.split_once(' ').is_some_and(|(_, words)| words == "sleep 1000 ");
    until("running", || machine.processes().iter().filter(|line| run(line)).count() == 2);
    let said = script(&machine, &n, &["killall.sh"]).succeeds().text();
    assert_eq!(said.lines().count(), 2, "{said}");
    for mut child in children {
        assert_eq!(child.wait().unwrap().code(), Some(128 + 9));
    }
}

#[test]
fn a_command_is_run_with_what_is_put_into_a_directory() {
    let (machine, n) = grid();
    machine.run("mkdir", &["../files-alpha/inbox"]);
    let mut child = script(&machine, &n, &["watch.sh", "alpha", "files/inbox", "echo"]);
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let want = n.join("alpha/fs/files/inbox/new").display().to_string();
    let (told, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || told.send(lines.next()));
    // Nobody says when it has begun to watch.
    until("told", || {
        machine.run("sh", &["-c", "rm -f ../files-alpha/inbox/new; echo x >../files-alpha/inbox/new"]);
        match heard.recv_timeout(Duration::from_millis(50)) {
            Ok(line) => {
                assert_eq!(line.unwrap().unwrap(), want);
                true
            }
            Err(_) => false,
        }
    });
    machine.kill("watch.sh");
    child.wait().unwrap();
}

#[test]
fn a_command_is_run_on_all_nodes_at_once() {
    let (machine, n) = grid();
    let done = script(&machine, &n, &["each.sh", "sh", "-c", "echo here; exit 3"]).succeeds().text();
    let mut said: Vec<&str> = done.lines().collect();
    said.sort_unstable();
    assert_eq!(said, ["alpha: status 3", "beta: status 3"]);
    for name in ["alpha", "beta"] {
        assert_eq!(fs::read_to_string(machine.at("work").join(format!("out.{name}"))).unwrap(), "here\n");
    }
}

/// Makes a project of `count` C files here and on the nodes, and compares what comes of each.
fn a_project_is_made_on_the_nodes(count: usize) {
    let (machine, n) = grid();
    let objects: Vec<String> = (0..count).map(|i| format!("f{i}.o")).collect();
    let main = format!("#include \"all.h\"\nint main(void) {{ return f{}(1) & 1; }}\n", count - 1);
    machine.write("main.c", &main);
    machine.write("all.h", (0..count).map(|i| format!("int f{i}(int);\n")).collect::<String>());
    for i in 0..count {
        let call = if i == 0 { "n".to_string() } else { format!("f{}(n) + {i}", i - 1) };
        let text =
            format!("#include <stdio.h>\n#include \"all.h\"\nint f{i}(int n) {{ puts(__FILE__); return {call}; }}\n");
        machine.write(&format!("f{i}.c"), &text);
    }
    let makefile = format!(
        "all: prog\nprog: main.o {0}\n\tgcc -o $@ $^\n%.o: %.c all.h\n\tgcc -g -O1 -c -o $@ $< && uname -n >>where\n",
        objects.join(" ")
    );
    machine.write("Makefile", &makefile);
    let made = || -> Vec<Vec<u8>> {
        let all = objects.iter().map(String::as_str).chain(["main.o", "prog"]);
        all.map(|name| fs::read(machine.at("work").join(name)).unwrap()).collect()
    };
    machine.run("make", &["-j4", "-s"]);
    let here = made();
    machine.run("sh", &["-c", "rm *.o prog where"]);
    // Many files take longer than a test has patience for.
    let there = script(&machine, &n, &["spread.sh", "-s"]).env("JOBS", "4").output().unwrap();
    assert_eq!((there.errors().as_str(), there.status.code()), ("", Some(0)));
    assert!(made() == here, "what was made there is not what was made here");
    let lines = fs::read_to_string(machine.at("work/where")).unwrap();
    let nodes: std::collections::BTreeSet<&str> = lines.lines().collect();
    assert!(nodes.iter().all(|node| ["alpha", "beta"].contains(node)), "{nodes:?}");
    assert_eq!(lines.lines().count(), count + 1);
    // And a line that fails ends it.
    machine.write("f0.c", "no C\n");
    let failed = script(&machine, &n, &["spread.sh", "-s"]).exits(2).errors();
    assert!(failed.contains("f0.c"), "{failed}");
}

#[test]
fn make_makes_the_same_on_the_nodes() {
    a_project_is_made_on_the_nodes(10);
}

#[test]
#[ignore = "it takes a minute: ./check --full"]
fn make_makes_the_same_of_200_files() {
    a_project_is_made_on_the_nodes(200);
}
