//! `slashn run`: a command in a namespace of its own, on this machine.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tests::as_both;
use tests::link::Proxy;
use tests::machine::{Done, Machine, PATIENCE, Text};

as_both! {
    a_command_runs_as_if_it_were_run_without
    the_grid_is_at_n_and_what_is_local_is_the_kernels_own
    children_share_the_namespace_and_it_ends_with_the_last_of_them
    the_namespace_of_a_process_makes_the_same_namespace
    a_command_within_a_command_sees_what_that_sees
    what_is_bound_by_a_command_is_in_its_namespace_alone
    commands_that_have_the_same_namespace_have_one_mount_and_each_its_own_namespace
    another_root_is_what_its_server_has
    what_cannot_be_made_is_told_and_nothing_runs
}

fn at(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What is in the home's `run/` whose names begin so.
fn names(machine: &Machine, begins: &[&str]) -> Vec<String> {
    let run = fs::read_dir(machine.at("me/run")).unwrap().flatten();
    let all = run.map(|entry| entry.file_name().to_string_lossy().into_owned());
    all.filter(|name| begins.iter().any(|begin| name.starts_with(begin))).collect()
}

/// Waits until no server of such a namespace is left, once none is kept for the next.
fn settles(machine: &Machine) {
    machine.slashn(&["agent", "--stop"]).succeeds();
    let until = Instant::now() + PATIENCE;
    let servers = || machine.processes().iter().filter(|line| line.contains(" private ")).count();
    let sockets = || names(machine, &["run-", "private-", "door-"]).len();
    while servers() + sockets() > 0 {
        assert!(Instant::now() < until, "left: {:?}", machine.processes());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// `slashn run sh -c SCRIPT`.
fn sh(machine: &Machine, script: &str) -> std::process::Command {
    machine.slashn(&["run", "sh", "-c", script])
}

fn a_command_runs_as_if_it_were_run_without(machine: Machine) {
    let status = sh(&machine, "exit 7").status().unwrap();
    assert_eq!(status.code(), Some(7));
    assert_eq!(sh(&machine, "kill -TERM $$").status().unwrap().signal(), Some(15));
    let done = sh(&machine, "pwd; umask 027; umask; id -u; echo err >&2; echo $0 $X").env("X", "x y").succeeds();
    let uid = machine.run("id", &["-u"]).text();
    assert_eq!(done.text(), format!("{}\n0027\n{uid}sh x y\n", machine.at("work").display()));
    assert_eq!(done.errors(), "err\n");
    // It is this very process: whoever signals it signals the command.
    let mut child = sh(&machine, "trap 'echo told; exit 3' USR1; echo; while :; do sleep 0.01; done");
    let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut String::new()).unwrap();
    let shell = machine.processes().into_iter().find(|line| line.contains(" sh -c trap")).unwrap();
    machine.run("kill", &["-USR1", shell.split(' ').next().unwrap()]);
    let mut said = String::new();
    out.read_line(&mut said).unwrap();
    assert_eq!((said.as_str(), child.wait().unwrap().code()), ("told\n", Some(3)));
    machine.slashn(&["run", "/no/such"]).exits(127).complains(&["slashn: run: /no/such: "]);
    machine.write("text", "text");
    machine.slashn(&["run", "./text"]).exits(126).complains(&["slashn: run: ./text: "]);
    settles(&machine);
}

fn the_grid_is_at_n_and_what_is_local_is_the_kernels_own(mut machine: Machine) {
    machine.node("alpha");
    machine.run("sh", &["-c", "mkdir src there; echo 1 >src/f; echo 2 >../files-alpha/g"]);
    let work = machine.at("work");
    let text = format!(
        "mount '#grid' $n\nbind {w}/src /n/src\nbind /n/alpha/fs/files {w}/there\nmount local!{w}/src /n/deep/src\n\
         bind -a {w}/src {w}/there\nbind /n/src/f {w}/src/f\n",
        w = work.display()
    );
    machine.write("ns", &text);
    let run = |script: &str| machine.slashn(&["run", "--ns", "ns", "sh", "-c", script]).succeeds().text();
    assert_eq!(
        run("ls /n /n/alpha; cat /n/src/f /n/deep/src/f there/g there/f"),
        "/n:\nalpha\ndeep\nsrc\n\n/n/alpha:\ncpu\nevents\nfs\nstat\n1\n1\n2\n1\n"
    );
    assert_eq!(run("echo 3 >/n/src/new; cat src/new; rm src/new; ls src"), "3\nf\n");
    let kinds = run("stat -f -c %T /n /n/src /n/deep/src there src . | sort | uniq -c | tr -s ' '");
    assert!(kinds.contains(" 2 fuseblk\n"), "all but two are the kernel's own: {kinds}");
    assert_eq!(run("echo x >/made 2>/dev/null || echo refused"), "refused\n", "it would be seen nowhere else");
    // Without a file it is the home's and the shipped one; and nobody else sees it.
    assert_eq!(sh(&machine, "ls /n").succeeds().text(), "alpha\n");
    assert_eq!(machine.run("ls", &["there"]).text(), "");
    settles(&machine);
}

fn children_share_the_namespace_and_it_ends_with_the_last_of_them(mut machine: Machine) {
    machine.node("alpha");
    machine.run("sh", &["-c", "echo 1 >../files-alpha/f; mkfifo go said"]);
    // The command ends, and a child goes on.
    let script = "(read line <go; cat /n/alpha/fs/files/f >said) </dev/null >/dev/null 2>&1 & echo $!";
    let child = sh(&machine, script).succeeds().text();
    let text = machine.slashn(&["ns", child.trim()]).succeeds().text();
    assert!(text.contains("mount '#grid' /n\n"), "{text}");
    // Within, that is the one that is meant.
    assert_eq!(sh(&machine, "slashn ns").succeeds().text(), text);
    machine.run("sh", &["-c", "echo >go"]);
    assert_eq!(machine.run("cat", &["said"]).text(), "1\n");
    settles(&machine);
    // Its server is killed: who is in it is told, and ends.
    let mut child = sh(&machine, "echo; read line; ls /n");
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    machine.kill(" private ");
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2));
    machine.slashn(&["ns", &std::process::id().to_string()]).exits(1);
    // What it left is cleared by the next, if it serves, and by this.
    let left = || names(&machine, &["run-", "private-", "door-"]);
    let killed = left();
    assert_eq!(killed.len(), 3);
    let until = Instant::now() + PATIENCE;
    let mut child = sh(&machine, "read line");
    let mut child = child.stdin(Stdio::piped()).spawn().unwrap();
    let is_old = |name: &String| name.starts_with("private-") && killed.contains(name);
    while left().len() != 3 || left().iter().any(is_old) {
        assert!(Instant::now() < until, "left: {killed:?}, {:?}", left());
        std::thread::sleep(Duration::from_millis(5));
    }
    machine.kill(" private ");
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(left().len(), 3);
    machine.slashn(&["agent", "--stop"]).succeeds();
    assert_eq!(left(), Vec::<String>::new());
}

fn the_namespace_of_a_process_makes_the_same_namespace(mut machine: Machine) {
    machine.node("alpha");
    machine.run("sh", &["-c", "mkdir src u; echo 1 >src/f; echo 2 >../files-alpha/g; echo 3 >u/h"]);
    let text = "mount '#grid' $n\nbind $home/../work/src '/n/it''s'\nbind -a /n/alpha/fs/files /n/u\nbind -b $home/../work/u /n/u\n";
    machine.write("ns", text);
    let look = "find /n -maxdepth 2 | sort; cat /n/u/*";
    let mut child = machine.slashn(&["run", "--ns", "ns", "sh", "-c", &format!("{look}; echo $$; read line")]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let seen: Vec<String> =
        lines.by_ref().map(Result::unwrap).take_while(|line| line.parse::<u32>().is_err() || line.len() == 1).collect();
    let init = machine.processes().into_iter().find(|line| line.contains(" sh -c find /n")).unwrap();
    let pid = init.split(' ').next().unwrap().to_string();
    let text = machine.slashn(&["ns", &pid]).succeeds().text();
    machine.write("again", &text);
    let again =
        machine.slashn(&["run", "--ns", "again", "sh", "-c", &format!("{look}; slashn ns $$")]).succeeds().text();
    assert_eq!(again, format!("{}\n{text}", seen.join("\n")));
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    child.wait().unwrap();
    settles(&machine);
}

fn a_command_within_a_command_sees_what_that_sees(mut machine: Machine) {
    machine.node("alpha");
    machine.run("sh", &["-c", "mkdir src u; echo 1 >src/f; echo 2 >../files-alpha/g; echo 3 >u/h"]);
    let w = machine.at("work").display().to_string();
    // A union of the outer one is part of unions and binds of the inner ones, and so on.
    machine.write("outer", format!("bind -a -c /n/alpha/fs/files {w}/u\n"));
    machine.write("inner", format!("bind -a {w}/src {w}/u\nbind {w}/u /n/v\nmount local!{w} /n/w\n"));
    machine.write("third", format!("bind -a {w}/u /n/v\nbind -b {w}/src {w}\n"));
    let within = |inner: &str, script: &str| {
        let script = format!("exec slashn run --ns {inner} sh -c '{script}'");
        machine.slashn(&["run", "--ns", "outer", "sh", "-c", &script]).succeeds().text()
    };
    assert_eq!(within("inner", "cat u/* /n/v/* /n/w/u/*; echo 4 >/n/w/u/new"), "1\n2\n3\n".repeat(2) + "2\n3\n");
    assert_eq!(machine.run("cat", &["../files-alpha/new"]).text(), "4\n");
    machine.run("rm", &["../files-alpha/new"]);
    let deep = "exec slashn run --ns third sh -c \"cat /n/v/* f u/*\"";
    assert_eq!(within("inner", deep), "1\n2\n3\n1\n1\n2\n3\n");
    settles(&machine);
}

fn what_is_bound_by_a_command_is_in_its_namespace_alone(mut machine: Machine) {
    machine.node("alpha");
    machine.run("sh", &["-c", "mkdir src u; echo 1 >src/f; echo 2 >../files-alpha/g; echo 3 >u/h"]);
    let w = machine.at("work").display().to_string();
    machine.write("ns", format!("bind -a /n/alpha/fs/files {w}/u\nbind {w}/src /n/own\n"));
    let run = |script: &str| machine.slashn(&["run", "--alone", "--ns", "ns", "sh", "-c", script]);
    let script = "ls /n; slashn bind src /n/src; cat /n/src/f; cd /n/src; slashn bind -b ../alpha/fs/files .; ls; \
                  slashn bind local!/etc /n/etc; cat /n/etc/hostname | wc -l; (slashn unbind /n/src; ls /n); \
                  slashn ns | tail -n 1";
    let said = run(script).succeeds().text();
    assert_eq!(said, "alpha\nown\n1\nf\ng\n1\nalpha\netc\nown\nmount local!/etc /n/etc\n");
    // Nobody else's is changed, and what would not be seen is refused and changes nothing.
    let kept = machine.slashn(&["run", "--ns", "ns", "sh", "-c", "ls /n; slashn ns"]).succeeds().text();
    assert!(kept.starts_with("alpha\nown\n") && !kept.contains("etc"), "{kept}");
    for (change, part) in [
        ("bind /etc /n", "/n/own is bound by the kernel"),
        ("bind /etc src", "of a command's namespace what is at "),
        ("unbind /n", "/n/own is bound by the kernel"),
        ("bind /etc /n/own/x", "/n/own is bound by the kernel"),
        ("bind /no/such /n/x", "/no/such: No such file"),
        ("unbind /n/x", "/n/x: not mounted"),
        ("bind 'exec!echo hello' /n/x", "mount exec!echo hello: "),
    ] {
        run(&format!("exec slashn {change}")).exits(1).complains(&[part, "try: "]);
        assert_eq!(
            run(&format!("slashn {change} 2>&1 | wc -l; ls /n; slashn ns")).succeeds().text(),
            format!("1\n{kept}")
        );
    }
    settles(&machine);
}

fn commands_that_have_the_same_namespace_have_one_mount_and_each_its_own_namespace(mut machine: Machine) {
    machine.node("alpha");
    machine.run("sh", &["-c", "mkdir src other; echo 1 >src/f; echo 2 >../files-alpha/g; mkfifo go"]);
    let w = machine.at("work").display().to_string();
    machine.write("ns", format!("bind -a /n/alpha/fs/files {w}/other\nbind {w}/src /n/own\n"));
    machine.write("same", format!("# the same\n\nbind -a '/n/alpha/fs/files' {w}/other\nbind {w}/src /n/own\n"));
    let run = |ns: &str, script: &str| machine.slashn(&["run", "--ns", ns, "sh", "-c", script]);
    let look = "stat -c %d /n other; readlink /proc/self/ns/mnt; cat other/g /n/own/f";
    let mut first = run("ns", &format!("{look}; read line; cat other/g; ls /n"));
    let mut first = first.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines().map(Result::unwrap);
    let one: Vec<String> = lines.by_ref().take(5).collect();
    let other = run("same", &format!("{look}; slashn ns $$ | tail -n 1; pwd")).succeeds().text();
    let other: Vec<&str> = other.lines().collect();
    // One mount, and two namespaces.
    assert_eq!((&other[..2], &other[3..5]), (&[&*one[0], &*one[1]][..], &["2", "1"][..]));
    assert_ne!(other[2], one[2]);
    assert_eq!(&other[5..], [&*format!("bind {w}/src /n/own"), &*w]);
    // Another text, another view of the machine, and whoever wants that has another.
    for different in ["--ns other.ns", "--alone --ns ns"] {
        machine.write("other.ns", format!("bind -a /n/alpha/fs/files {w}/other\nbind {w}/src /n/x\n"));
        let device = machine.command("sh").args(["-c", &format!("slashn run {different} stat -c %d /n")]).succeeds();
        assert_ne!(device.text().trim(), one[0], "{different}");
    }
    // What a name leads to now is what is bound.
    machine.run("sh", &["-c", "mv src old; mkdir src; echo new >src/f"]);
    assert_eq!(run("ns", "cat /n/own/f").succeeds().text(), "new\n");
    machine.run("sh", &["-c", "mv src new; mv old src"]);
    // Nobody's changes are another's.
    assert_eq!(run("ns", "stat -c %d /n").succeeds().text().trim(), one[0]);
    let refused = run("ns", "exec slashn bind /etc /n/etc").exits(1);
    refused.complains(&["other commands that run were to have the same namespace", "slashn run --alone"]);
    let alone =
        machine.slashn(&["run", "--alone", "--ns", "ns", "sh", "-c", "slashn bind /etc /n/etc; ls /n"]).succeeds();
    assert_eq!(alone.text(), "alpha\netc\nown\n");
    // The one who was there first goes, and the mount stays for who comes; and it goes on without what was kept.
    machine.slashn(&["agent", "--stop"]).succeeds();
    first.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert_eq!(lines.collect::<Vec<_>>(), ["2", "alpha", "own"]);
    first.wait().unwrap();
    // It is one's own again when the others have ended, and from then on nobody else's.
    let device = run("ns", "stat -c %d /n").succeeds().text();
    let bound = run("ns", "stat -c %d /n; slashn bind /etc /n/etc && slashn run --ns ns ls /n; ls /n").succeeds();
    assert_eq!(bound.text(), device.clone() + "alpha\nown\nalpha\netc\nown\n");
    assert_eq!(run("ns", "ls /n").succeeds().text(), "alpha\nown\n");
    settles(&machine);
}

/// Who comes second finds what the first has learned.
#[test]
fn a_command_that_has_the_same_namespace_as_another_starts_warm() {
    let mut machine = Machine::root();
    let address = machine.node("alpha");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let proxy = runtime.block_on(Proxy::start(address.parse().unwrap(), Duration::ZERO)).unwrap();
    let known = fs::read_to_string(machine.at("me/known_nodes")).unwrap();
    fs::write(machine.at("me/known_nodes"), known.replace(&address, &proxy.address.to_string())).unwrap();
    machine.run("sh", &["-c", "head -c 100000 /dev/urandom >../files-alpha/f"]);
    let read = |more: &[&str]| {
        let before = proxy.carried();
        let args = [&["run"], more, &["cksum", "/n/alpha/fs/files/f"]].concat();
        let said = machine.slashn(&args).succeeds().text();
        (said, proxy.carried() - before)
    };
    let (said, cold) = read(&[]);
    assert!(cold > 100_000);
    let (again, warm) = read(&[]);
    assert_eq!(again, said);
    assert!(warm < 1000, "{warm} bytes");
    let (again, alone) = read(&["--alone"]);
    assert!(again == said && alone > 100_000, "{alone} bytes");
    settles(&machine);
}

fn another_root_is_what_its_server_has(mut machine: Machine) {
    machine.node_with("alpha", &["--export", "root=/"]);
    machine.write("ns", "clear\nmount -c alpha / fs/root\nmount '#grid' /n\nbind /n/alpha/stat /n/s\n");
    let run = |script: &str| machine.slashn(&["run", "--ns", "ns", "sh", "-c", script]).succeeds().text();
    assert_eq!(
        run("stat -f -c %T / /etc /n; ls /n; echo a >made; cat made"),
        "fuseblk\nfuseblk\nfuseblk\nalpha\ns\na\n"
    );
    assert!(machine.at("work/made").exists());
    assert_eq!(run("cat /proc/self/comm; echo x >/dev/null && cat /n/s/cores | wc -l"), "cat\n1\n");
    settles(&machine);
}

fn what_cannot_be_made_is_told_and_nothing_runs(machine: Machine) {
    let ran = machine.at("work/ran");
    for (text, parts) in [
        ("mount nobody /n/x\n", &["run: ", "work/ns:1: mount nobody: no node of that name is known"][..]),
        ("bind /no/such /n/x\n", &["run: ", "work/ns:1: /no/such: No such file"]),
        ("bind /usr /etc/passwd\n", &["work/ns:1: ", "a directory goes on a directory"]),
        ("mount me /n/x\n", &["run: ", "work/ns:1: mount me: no node of that name is known"]),
        ("\nmount local!/usr /n/x bin/no/x\n", &["work/ns:2: mount local!/usr: bin/no/x: No such file", "; there is "]),
        ("unmount /no\n", &["work/ns:1: /no: not mounted"]),
        ("mount '#grid' /n\n\nunmount /usr /n\n", &["work/ns:3: /usr is not in the union at /n"]),
        ("bind /usr /usr/bin\n", &["work/ns:1: /usr/bin is in /usr: "]),
        ("cd /\0\n", &["ns: line 1, column 5: expected text, not a NUL"]),
        ("mount exec!x\n", &["read the namespace: ", "ns: line 1, column 13: expected more: mount"]),
    ] {
        machine.write("ns", text);
        machine.slashn(&["run", "--ns", "ns", "touch", at(&ran)]).exits(255).complains(parts);
    }
    machine.write("ns", format!("# one\n. {}/ns\n", machine.at("work").display()));
    let loops = machine.slashn(&["run", "--ns", "ns", "touch", at(&ran)]).exits(255);
    loops.complains(&["work/ns:2: ", "it is included too deep"]);
    machine.run("mkdir", &["dir", "gone"]);
    machine.slashn(&["run", "--ns", "dir", "touch", at(&ran)]).exits(255).complains(&["dir: Is a directory"]);
    let gone = machine.command("sh").args(["-c", "cd gone; rmdir ../gone; exec slashn run touch ../ran"]).exits(255);
    gone.complains(&["run: the working directory: No such file"]);
    assert!(!ran.exists());
    settles(&machine);
}

#[test]
fn a_command_elsewhere_sees_what_the_slashn_run_around_it_shows() {
    let mut machine = Machine::root();
    machine.node("beta");
    machine.node("gamma");
    let hello = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/hello.py")).unwrap();
    let hello = format!("exec!/usr/bin/python3 {}", machine.write("hello.py", &hello).display());
    machine.run("sh", &["-c", "mkdir src u h local; echo 1 >src/f; echo 2 >../files-gamma/g; echo 3 >u/h"]);
    let w = machine.at("work").display().to_string();
    let ns = format!(
        "bind -a /n/gamma/fs/files {w}/u\nmount '{hello}' {w}/h\nbind {w}/src /n/own\nbind /n/gamma/fs/files /n/g\n\
         mount '{hello}' /n/hello\nmount local!{w}/src {w}/local\n"
    );
    machine.write("ns", &ns);
    let look = "ls /n u local; cat u/* h/hello /n/own/f /n/g/g /n/hello/hello local/f";
    let both = format!("({look}) >seen; rcpu beta sh -c '{look}' >there; cmp seen there && cat seen");
    let run = |how: &[&str], script: &str| {
        let words = [&["run"], how, &["--ns", "ns", "sh", "-c", script]].concat();
        machine.slashn(&words).succeeds().text()
    };
    let listed = "/n:\nbeta\ng\ngamma\nhello\nown\n\nlocal:\nf\n\nu:\ng\nh\n";
    assert_eq!(run(&[], &both), format!("{listed}2\n3\nhello, world\n1\n2\nhello, world\n1\n"));
    // What is bound since is there, too; a namespace that is named is what it says.
    let bound = "slashn bind /n/gamma/fs/files /n/late; rcpu beta cat /n/late/g; rcpu --ns other beta ls /n";
    machine.write("other", "bind /n/gamma/fs/files /n/x\n");
    assert_eq!(run(&["--alone"], bound), "2\nbeta\ngamma\nx\n");
    settles(&machine);
}

#[test]
fn a_command_elsewhere_sees_the_files_that_whoever_runs_it_sees() {
    let mut machine = Machine::root();
    machine.node("beta");
    fs::create_dir(machine.at("work/dir")).unwrap();
    fs::write(machine.at("work/dir/f"), "outside").unwrap();
    fs::create_dir(machine.at("work/other")).unwrap();
    fs::write(machine.at("work/other/f"), "inside").unwrap();
    let file = machine.at("work/dir/f").display().to_string();
    let there = ["beta", "cat", &file];
    assert_eq!(machine.rcpu(&there).succeeds().text(), "outside");
    let script = "mount --bind other dir && exec rcpu beta cat \"$1\"";
    let apart = machine.run("unshare", &["--mount", "sh", "-c", script, "sh", &file]);
    assert_eq!(apart.text(), "inside");
    assert_eq!(machine.rcpu(&there).succeeds().text(), "outside");
}
