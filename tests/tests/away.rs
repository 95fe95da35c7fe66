//! A mount whose node is away for a while: killed and started again, out of reach, or somewhere else. Programs wait, as
//! long as the mount is told to and no longer than they want to, and go on with what they have open.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tests::machine::{Done, Machine, PATIENCE, Text, until};
use tests::mounted::{behind_a_link, moves, python};

/// A program that has a file open.
struct Asked {
    process: Child,
    stdin: ChildStdin,
    answers: Receiver<String>,
}

impl Asked {
    fn start(machine: &Machine, file: &Path) -> Self {
        Self::begin(machine, file, &[])
    }

    /// The same, with the file open once.
    fn alone(machine: &Machine, file: &Path) -> Self {
        Self::begin(machine, file, &["alone"])
    }

    fn begin(machine: &Machine, file: &Path, how: &[&str]) -> Self {
        let mut command = python(machine, "asked");
        let mut process = command.arg(file).args(how).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, stdout) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let (tell, answers) = channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| tell.send(line)));
        let asked = Self { process, stdin, answers };
        assert_eq!(asked.answer(), "ready");
        asked
    }

    fn ask(&mut self, what: &str) {
        writeln!(self.stdin, "{what}").unwrap();
    }

    #[track_caller]
    fn answer(&self) -> String {
        self.answers.recv_timeout(PATIENCE).expect("it answers in time")
    }

    #[track_caller]
    fn answers(&mut self, what: &str) -> String {
        self.ask(what);
        self.answer()
    }
}

/// A node that was started once, with `text` in its file `f`, and a mount that waits for it for `timeout` seconds.
fn mounted(timeout: u32, text: &str) -> (Machine, String, PathBuf) {
    let mut machine = Machine::root();
    let address = machine.node("beta");
    fs::write(machine.at("files-beta/f"), text).unwrap();
    let n = machine.mount_as("n", &["--timeout", &timeout.to_string()]);
    (machine, address, n.join("beta/fs/files"))
}

/// Kills the node.
fn kill(machine: &Machine) {
    machine.kill(&format!("--home {} up", machine.at("beta").display()));
}

/// Stops the node: it neither does nor says anything.
fn stop(machine: &Machine) {
    let part = format!("--home {} up", machine.at("beta").display());
    for line in machine.processes().iter().filter(|line| line.contains(&part)) {
        let pid = line.split(' ').next().and_then(|pid| Pid::from_raw(pid.parse().ok()?)).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
    }
}

#[test]
fn open_files_go_on_when_the_node_is_killed_and_started_again() {
    let (machine, address, files) = mounted(60, "old");
    let mut program = Asked::start(&machine, &files.join("f"));
    for round in 0..3 {
        assert_eq!(program.answers(&format!("write {round}ne")), "3");
        kill(&machine);
        // Asked while nobody is there.
        program.ask("read");
        machine.up("beta", &address, &[]);
        assert_eq!(program.answer(), format!("{round}ne"));
        assert_eq!(
            (program.answers("append x"), program.answers("sync"), program.answers("size")),
            ("1".into(), "None".into(), "4".into())
        );
        assert_eq!(fs::read_to_string(machine.at("files-beta/f")).unwrap(), format!("{round}nex"));
        fs::write(machine.at("files-beta/f"), "old").unwrap();
    }
}

#[test]
fn what_was_held_back_as_the_node_died_is_written_unless_another_has_written_and_else_all_of_it_beside_the_file() {
    let (machine, address, files) = mounted(60, "old");
    let (there, beside) = (machine.at("files-beta/f"), machine.at("files-beta/f.conflict-1"));
    for another in [false, true] {
        let mut held = Asked::alone(&machine, &files.join("f"));
        assert_eq!((held.answers("at 8 some"), held.answers("sync")), ("4".into(), "None".into()));
        // From here on nothing is done there, and it hears nothing.
        stop(&machine);
        for write in ["at 20 ours", "at 30 ours", "at 40 ours"] {
            assert_eq!(held.answers(write), "4", "it is held back");
        }
        kill(&machine);
        if another {
            fs::write(&there, "theirs").unwrap();
        }
        machine.up("beta", &address, &[]);
        let told = held.answers("sync");
        let text = |path: &Path| fs::read_to_string(path).unwrap().replace('\0', ".");
        if another {
            assert_eq!((told.as_str(), text(&there).as_str()), ("ESTALE", "theirs"));
            assert_eq!(text(&beside), ".".repeat(20) + "ours......ours......ours");
        } else {
            assert_eq!((told.as_str(), beside.exists()), ("None", false));
            assert_eq!(text(&there), "old.....some........ours......ours......ours");
        }
        // The next one is to have it open alone.
        let Asked { mut process, stdin, .. } = held;
        drop(stdin);
        assert!(process.wait().unwrap().success());
    }
    assert!(!machine.at("files-beta/f.conflict-2").exists());
}

#[test]
fn a_change_that_may_have_been_done_when_the_node_died_is_told_as_that() {
    let (mut machine, proxy, _runtime) = behind_a_link();
    for name in ["f", "removed", "moved"] {
        fs::write(machine.at("files-beta").join(name), "old").unwrap();
    }
    fs::create_dir(machine.at("files-beta/emptied")).unwrap();
    let files = machine.mount().join("beta/fs/files");
    let there = |name: &str| fs::symlink_metadata(machine.at("files-beta").join(name));
    let mut program = Asked::start(&machine, &files.join("f"));
    let cases: [(&str, &str, bool, &str); 9] = [
        ("mkdir made", "made", true, "EIO"),
        ("rmdir emptied", "emptied", false, "EIO"),
        ("unlink removed", "removed", false, "EIO"),
        ("rename moved to", "to", true, "EIO"),
        ("link f linked", "linked", true, "EIO"),
        ("symlink pointing", "pointing", true, "EIO"),
        ("exclusive new", "new", true, "EIO"),
        // What may be done twice is.
        ("create plain", "plain", true, "None"),
        ("chmod f", "f", true, "None"),
    ];
    for (what, name, is_there, answer) in cases {
        // The mount knows what is there, and how to reach the file: nothing is asked before the change is.
        assert_eq!(program.answers("read"), "old");
        assert_ne!(program.answers("names"), "0");
        proxy.deafen();
        program.ask(what);
        until(what, || match what {
            "chmod f" => there("f").unwrap().permissions().mode() & 0o777 == 0o600,
            _ => there(name).is_ok() == is_there,
        });
        kill(&machine);
        proxy.open();
        machine.up("beta", &proxy.to.to_string(), &[]);
        assert_eq!(program.answer(), answer, "{what}");
        assert_eq!(there(name).is_ok(), is_there, "{what}");
    }
}

#[test]
fn a_change_that_is_asked_while_the_node_is_away_is_done_once_it_is_back() {
    let (machine, address, files) = mounted(60, "old");
    let mut program = Asked::start(&machine, &files.join("f"));
    for what in ["mkdir made", "rename f other", "exclusive new", "unlink other"] {
        assert_eq!(program.answers("list 0"), "");
        kill(&machine);
        program.ask(what);
        machine.up("beta", &address, &[]);
        assert_eq!(program.answer(), "None", "{what}");
    }
    let mut left: Vec<_> = fs::read_dir(machine.at("files-beta")).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["made", "new"]);
}

#[test]
fn a_directory_that_is_open_goes_on_being_listed_by_the_node_that_was_started_again() {
    let (machine, address, files) = mounted(60, "old");
    // More than comes along with the opening.
    let names: BTreeSet<String> = (0..4000).map(|n| format!("{n:0150}")).chain(["f".into()]).collect();
    names.iter().for_each(|name| fs::write(machine.at("files-beta").join(name), "").unwrap());
    let mut program = Asked::start(&machine, &files.join("f"));
    let mut seen: Vec<String> = Vec::new();
    for _ in 0..2 {
        seen.extend(program.answers("list 500").split(' ').map(str::to_string));
        kill(&machine);
        machine.up("beta", &address, &[]);
    }
    seen.extend(program.answers("list 9999").split(' ').map(str::to_string));
    assert_eq!(seen.len(), names.len(), "each is listed once");
    assert_eq!(BTreeSet::from_iter(seen), names);
}

#[test]
fn a_file_that_was_replaced_meanwhile_is_not_taken_for_the_open_one() {
    let (machine, address, files) = mounted(60, "old");
    let mut program = Asked::start(&machine, &files.join("f"));
    assert_eq!(program.answers("read"), "old");
    kill(&machine);
    fs::write(machine.at("files-beta/g"), "other").unwrap();
    fs::rename(machine.at("files-beta/g"), machine.at("files-beta/f")).unwrap();
    machine.up("beta", &address, &[]);
    assert_eq!((program.answers("read"), program.answers("write new")), ("ESTALE".into(), "ESTALE".into()));
    // Who opens the name has the one that is there.
    assert_eq!(machine.run("cat", &[files.join("f")]).text(), "other");
}

#[test]
fn whoever_had_a_lock_is_told_that_it_was_lost() {
    let (machine, address, files) = mounted(60, "old");
    let mut program = Asked::start(&machine, &files.join("f"));
    assert_eq!(program.answers("lock"), "None");
    kill(&machine);
    machine.up("beta", &address, &[]);
    assert_eq!((program.answers("write new"), program.answers("read")), ("EIO".into(), "EIO".into()));
    assert_eq!(fs::read_to_string(machine.at("files-beta/f")).unwrap(), "old");
    // Closed, and opened again, it can be locked and used.
    drop(program.stdin);
    program.process.wait().unwrap();
    let mut program = Asked::start(&machine, &files.join("f"));
    assert_eq!((program.answers("lock"), program.answers("write new")), ("None".into(), "3".into()));
}

#[test]
fn a_node_that_has_moved_is_found_where_it_is() {
    let (machine, address, files) = mounted(60, "old");
    let mut program = Asked::start(&machine, &files.join("f"));
    kill(&machine);
    program.ask("read");
    let ready = machine.up("beta", "127.0.0.1:0", &[]);
    moves(&machine, &address, ready.split_whitespace().nth(2).unwrap());
    assert_eq!(program.answer(), "old");
    assert_eq!(machine.run("cat", &[files.join("f")]).text(), "old");
}

#[test]
fn a_node_that_is_out_of_reach_for_a_while_is_waited_for() {
    let (mut machine, proxy, _runtime) = behind_a_link();
    fs::write(machine.at("files-beta/f"), "old").unwrap();
    let files = machine.mount().join("beta/fs/files");
    let mut program = Asked::start(&machine, &files.join("f"));
    assert_eq!(program.answers("lock"), "None");
    proxy.shut();
    program.ask("append x");
    let mut other = machine.command("cat").arg(files.join("f")).stdout(Stdio::piped()).spawn().unwrap();
    // It was dialled again and again: longer than what is asked of a node that was never reached is waited for.
    until("the mount dials again and again", || proxy.turned_away() > 3);
    assert!(other.try_wait().unwrap().is_none(), "it does not wait");
    proxy.open();
    // Done once, with the lock that it still has.
    assert_eq!(program.answer(), "1");
    assert_eq!(program.answers("read"), "oldx");
    assert_eq!(other.wait_with_output().unwrap().status.code(), Some(0));
}

#[test]
#[ignore = "it takes minutes: run by ./check --full"]
fn open_files_and_locks_are_there_after_half_a_minute_without_a_link() {
    let (mut machine, proxy, _runtime) = behind_a_link();
    fs::write(machine.at("files-beta/f"), "old").unwrap();
    let files = machine.mount().join("beta/fs/files");
    let other = machine.mount_as("m", &[]).join("beta/fs/files");
    let mut program = Asked::start(&machine, &files.join("f"));
    let mut rival = Asked::start(&machine, &other.join("f"));
    for round in 1..=2 {
        assert_eq!(program.answers("lock"), "None");
        proxy.shut();
        program.ask("append x");
        // So long it is: there is nothing else to wait for.
        std::thread::sleep(Duration::from_secs(30));
        proxy.open();
        assert_eq!(program.answer(), "1");
        assert_eq!(program.answers("read"), format!("old{}", "x".repeat(round)));
        assert_eq!(rival.answers("lock"), "EAGAIN", "the lock is still held");
        assert_eq!((program.answers("write o"), program.answers("sync")), ("1".into(), "None".into()));
    }
}

#[test]
fn a_node_that_stays_away_is_unreachable_after_the_mounts_timeout() {
    let (machine, address, files) = mounted(1, "old");
    let mut program = Asked::start(&machine, &files.join("f"));
    kill(&machine);
    let answers = ["read", "write new", "sync", "size"].map(|what| program.answers(what));
    assert_eq!(answers, ["EHOSTUNREACH"; 4]);
    let error = machine.command("ls").arg(&files).exits(2).errors();
    assert!(error.contains("No route to host"), "{error}");
    // The list of nodes waits for none, and who comes back is found.
    assert_eq!(machine.run("ls", &[machine.at("n")]).text(), "beta\n");
    machine.up("beta", &address, &[]);
    assert_eq!((program.answers("write new"), program.answers("read")), ("3".into(), "new".into()));
}

/// Ends the node by a signal, as who starts it anew does, and returns once it has ended.
fn terminate(machine: &Machine) {
    let part = format!("--home {} up", machine.at("beta").display());
    let all: Vec<String> = machine.processes().into_iter().filter(|line| line.contains(&part)).collect();
    for line in &all {
        machine.run("kill", &["-TERM", line.split(' ').next().unwrap()]);
    }
    until("it has ended", || !machine.processes().iter().any(|line| line.contains(&part)));
}

#[test]
fn a_node_that_is_taken_down_is_not_waited_for_and_is_used_again_when_it_is_back() {
    // Longer than any test waits.
    let (machine, address, files) = mounted(6000, "old");
    let mut program = Asked::alone(&machine, &files.join("f"));
    for round in 0..2 {
        // What was held back is there.
        assert_eq!(program.answers(&format!("write {round}ew")), "3");
        machine.slashn(&["--home", &machine.at("beta").display().to_string(), "down"]).succeeds();
        assert_eq!(fs::read_to_string(machine.at("files-beta/f")).unwrap(), format!("{round}ew"));
        assert_eq!(["read", "write no", "sync", "size"].map(|what| program.answers(what)), ["EHOSTUNREACH"; 4]);
        let error = machine.command("ls").arg(&files).exits(2).errors();
        assert!(error.contains("No route to host"), "{error}");
        machine.up("beta", &address, &[]);
        assert_eq!(program.answers("read"), format!("{round}ew"));
    }
    // Who ends it by a signal may be about to start it again.
    assert_eq!(program.answers("write 2ew"), "3");
    terminate(&machine);
    program.ask("read");
    machine.up("beta", &address, &[]);
    assert_eq!(program.answer(), "2ew");
}

/// Whether `child` runs `program` by now, and waits for something.
fn waits(child: &Child, program: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap_or_default();
    stat.contains(&format!("({program}) D")) || stat.contains(&format!("({program}) S"))
}

#[test]
fn who_waits_for_a_node_is_free_to_go() {
    let (mut machine, proxy, _runtime) = behind_a_link();
    let n = machine.mount_as("n", &["--timeout", "600"]);
    let files = n.join("beta/fs/files");
    machine.run("ls", &[&files]);
    let program = {
        fs::write(machine.at("files-beta/f"), "text").unwrap();
        Asked::start(&machine, &files.join("f"))
    };
    proxy.shut();
    let (f, g) = (files.join("f"), files.join("g"));
    let programs: [(&str, &[&Path]); 6] = [
        ("cat", &[&f]),
        ("ls", &[&files]),
        ("mv", &[&f, &g]),
        ("mkdir", &[&g]),
        ("truncate", &[Path::new("-s1"), &f]),
        ("df", &[&f]),
    ];
    let mut waiting = Vec::new();
    for (program, args) in programs {
        for signal in [Signal::INT, Signal::TERM, Signal::KILL] {
            let mut command = machine.command(program);
            let child = command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            waiting.push((program, signal, child));
        }
    }
    for (program, signal, child) in &waiting {
        until("it waits", || waits(child, program));
        kill_process(Pid::from_child(child), *signal).unwrap();
    }
    for (program, signal, child) in &mut waiting {
        assert_eq!(child.wait().unwrap().signal(), Some(signal.as_raw()), "{program}");
    }
    // And so is the mount, with a file open and somebody who waits in it.
    let mut cat = machine.command("cat").arg(&f).stderr(Stdio::null()).spawn().unwrap();
    until("it waits", || waits(&cat, "cat"));
    machine.slashn(&["unmount", &n.display().to_string()]).succeeds();
    assert!(!cat.wait().unwrap().success());
    drop(program.stdin);
}

#[test]
fn what_a_killed_mount_left_is_cleaned_by_the_next() {
    let (mut machine, _, files) = mounted(60, "text");
    let mut program = Asked::start(&machine, &files.join("f"));
    assert_eq!(program.answers("read"), "text");
    machine.kill("mount --foreground");
    assert!(["ENOTCONN", "ECONNABORTED"].contains(&program.answers("read").as_str()));
    let n = machine.mount();
    assert_eq!(machine.run("cat", &[n.join("beta/fs/files/f")]).text(), "text");
}
