//! The built binaries, as a user drives them: two nodes, a mount, commands across, as root and as an ordinary user.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tests::as_both;
use tests::machine::{Done, Machine, PATIENCE, Text};

as_both! {
    files_of_two_nodes_are_read_and_written_through_the_mount
    git_works_through_the_mount
    a_program_that_only_the_caller_has_is_compiled_and_run_there
    a_pipeline_a_status_a_signal_and_stderr_come_back_exactly
    lines_of_stdout_and_stderr_in_turn_all_arrive
    a_session_is_driven_by_cat_and_echo
    a_script_reads_what_happens_in_a_folder
    what_the_caller_owns_looks_owned_by_the_job
    a_command_that_reads_much_has_a_connection_for_that_alone
}

fn files_of_two_nodes_are_read_and_written_through_the_mount(machine: Machine) {
    let mut machine = machine.with_two_nodes();
    let n = machine.mount();
    fs::write(machine.at("files-alpha/hello"), "from alpha\n").unwrap();
    let listed = machine.run("ls", &[&n]).text();
    assert_eq!(listed.split_whitespace().collect::<Vec<_>>(), ["alpha", "beta"]);
    assert_eq!(machine.run("cat", &[n.join("alpha/fs/files/hello")]).text(), "from alpha\n");
    machine.run("cp", &[n.join("alpha/fs/files/hello"), n.join("beta/fs/files/copy")]);
    assert_eq!(fs::read_to_string(machine.at("files-beta/copy")).unwrap(), "from alpha\n");
    let missing = machine.command("cat").arg(n.join("gamma/fs")).exits(1).errors();
    assert!(missing.contains("No such file or directory"), "{missing}");
}

fn git_works_through_the_mount(machine: Machine) {
    let mut machine = machine.with_two_nodes();
    let repository = machine.mount().join("alpha/fs/files/repository");
    let git = |args: &[&str]| {
        let mut command = machine.command("git");
        command.arg("-C").arg(&repository).args(args);
        command.env("GIT_AUTHOR_NAME", "a").env("GIT_AUTHOR_EMAIL", "a@b").env("GIT_COMMITTER_NAME", "a");
        command.env("GIT_COMMITTER_EMAIL", "a@b").succeeds().text()
    };
    machine.run("mkdir", &[&repository]);
    git(&["init", "--quiet"]);
    machine.command("sh").arg("-c").arg(format!("echo text >{}/file", repository.display())).succeeds();
    git(&["add", "file"]);
    git(&["commit", "--quiet", "-m", "one"]);
    assert_eq!(git(&["log", "--format=%s"]), "one\n");
    assert_eq!(git(&["status", "--porcelain"]), "");
    git(&["fsck", "--strict"]);
}

fn a_program_that_only_the_caller_has_is_compiled_and_run_there(machine: Machine) {
    let machine = machine.with_two_nodes();
    machine.write("p.c", "#include <stdio.h>\n#include <stdlib.h>\nint main(void){puts(getenv(\"WORD\"));return 0;}\n");
    machine.rcpu(&["beta", "--", "gcc", "-o", "p", "p.c"]).succeeds();
    assert!(machine.at("work/p").exists(), "the program was written to the caller's folder");
    assert_eq!(machine.rcpu(&["beta", "./p"]).env("WORD", "mine").succeeds().text(), "mine\n");
    let cwd = machine.rcpu(&["beta", "pwd"]).succeeds().text();
    assert_eq!(cwd.trim(), machine.at("work").to_str().unwrap());
    let umask = machine.command("sh").args(["-c", "umask 027; rcpu beta -- sh -c umask"]).succeeds().text();
    assert_eq!(umask.trim(), "0027");
}

fn a_pipeline_a_status_a_signal_and_stderr_come_back_exactly(machine: Machine) {
    let machine = machine.with_two_nodes();
    machine.write("up.py", "import sys\nsys.stdout.write(sys.stdin.read().upper())\n");
    let mut child =
        machine.rcpu(&["beta", "python3", "up.py"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let text = "line of input\n".repeat(50_000);
    let mut stdin = child.stdin.take().unwrap();
    let sent = text.clone();
    let writer = std::thread::spawn(move || stdin.write_all(sent.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    assert!(output.text() == text.to_uppercase(), "{} bytes came back of {}", output.stdout.len(), text.len());

    machine.rcpu(&["beta", "sh", "-c", "exit 7"]).exits(7);
    machine.rcpu(&["beta", "sh", "-c", "kill -TERM $$"]).exits(128 + 15);
    machine.rcpu(&["beta", "sh", "-c", "kill -KILL $$"]).exits(128 + 9);
    let both = machine.rcpu(&["beta", "sh", "-c", "echo out; echo err >&2"]).succeeds();
    assert_eq!((both.text().as_str(), both.errors().as_str()), ("out\n", "err\n"));
}

fn lines_of_stdout_and_stderr_in_turn_all_arrive(mut machine: Machine) {
    machine.node("beta");
    let program =
        "import os\nfor n in range(100000): [os.write(1 + n % 2, b'%d\\n' % n) for n in (2 * n, 2 * n + 1)]\n";
    let lines = |first| (first..200_000).step_by(2).map(|n| format!("{n}\n")).collect::<String>();
    let said = machine.rcpu(&["beta", "python3", "-c", program]).succeeds();
    assert!(said.text() == lines(0), "{} bytes of stdout", said.stdout.len());
    assert!(said.errors() == lines(1), "{} bytes of stderr", said.stderr.len());
}

fn a_session_is_driven_by_cat_and_echo(machine: Machine) {
    let mut machine = machine.with_two_nodes();
    let cpu = machine.mount().join("beta/cpu");
    let script = "set -e; exec 3<$CPU/clone; read id <&3
        echo sh -c 'cat;exit${IFS}5' >$CPU/$id/args
        echo exec >$CPU/$id/ctl; echo hello >$CPU/$id/stdin; echo eof >$CPU/$id/ctl
        cat $CPU/$id/stdout; cat $CPU/$id/wait | head -1";
    let output = machine.command("sh").arg("-c").arg(script).env("CPU", &cpu).succeeds().text();
    assert!(output.starts_with("hello\nexit 5"), "{output}");
    // The session goes with the shell that held it, as soon as the node has heard of that.
    let until = Instant::now() + PATIENCE;
    while machine.run("ls", &[&cpu]).text() != "clone\nconnect\n" {
        assert!(Instant::now() < until, "the session is left");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn a_script_reads_what_happens_in_a_folder(machine: Machine) {
    let mut machine = machine.with_two_nodes();
    let n = machine.mount();
    machine.run("mkdir", &[machine.at("files-alpha/inbox")]);
    // Whatever fails ends it: who went on would wait for what nobody is asked to tell.
    let script = r#"set -e; exec 3<>"$1/alpha/events"; echo files/inbox >&3
        : >"$2/inbox/local"; : >"$1/alpha/fs/files/inbox/remote"
        read -r first <&3; echo "$first"
        until [ "$next" = 'create files/inbox/remote' ]; do read -r next <&3; echo "$next" >&2; done; echo "$next""#;
    let told = machine.command("sh").args(["-c", script, "sh"]).arg(&n).arg(machine.at("files-alpha")).succeeds();
    assert_eq!(told.text(), "create files/inbox/local\ncreate files/inbox/remote\n");
}

fn what_the_caller_owns_looks_owned_by_the_job(machine: Machine) {
    let machine = machine.with_two_nodes();
    machine.write("mine", "x\n");
    let same = machine.rcpu(&["beta", "sh", "-c", "id -u; id -g; stat -c '%u %g' mine"]).succeeds().text();
    let local = machine.command("sh").args(["-c", "id -u; id -g; stat -c '%u %g' mine"]).succeeds().text();
    assert_eq!(same, local);
    machine.run("git", &["init", "--quiet", "r"]);
    machine.rcpu(&["beta", "git", "-C", "r", "status", "--porcelain"]).succeeds();
    machine.rcpu(&["beta", "tar", "cf", "t.tar", "mine"]).succeeds();
    machine.rcpu(&["beta", "tar", "xf", "t.tar"]).succeeds();
}

/// How many TCP connections the process `pid` has.
fn connections(pid: &str) -> usize {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
    let sockets: Vec<String> = links.map(|link| link.display().to_string()).collect();
    let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap();
    let inodes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (*fields.get(3)? == "01").then(|| format!("socket:[{}]", fields[9]))
    });
    inodes.filter(|inode| sockets.contains(inode)).count()
}

/// How many connections the agent has ready for the next command on a node.
const READY: usize = 2;

fn a_command_that_reads_much_has_a_connection_for_that_alone(machine: Machine) {
    let machine = machine.with_two_nodes();
    fs::write(machine.at("work/large"), vec![b'x'; 64 << 20]).unwrap();
    fs::write(machine.at("work/small"), "small\n").unwrap();
    let script = "read line; cat small; read line; cat large | wc -c; read line; stat -c %s large small";
    let mut child = machine.rcpu(&["beta", "sh", "-c", script]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
    let mut says = |lines_expected: &[&str]| {
        stdin.write_all(b"go on\n").unwrap();
        for line in lines_expected {
            assert_eq!(lines.next().unwrap().unwrap(), *line);
        }
    };
    let agent = || {
        let agent = machine.processes().into_iter().find(|line| line.contains(" agent")).expect("the agent runs");
        agent.split(' ').next().unwrap().to_string()
    };
    // Besides those that stand ready for the next.
    let start = Instant::now();
    let has = |count: usize| {
        while connections(&agent()) != READY + count {
            assert!(start.elapsed() < PATIENCE, "{} connections, and not {READY} + {count}", connections(&agent()));
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    says(&["small"]);
    has(1);
    says(&["67108864"]);
    has(2);
    says(&["67108864", "6"]);
    assert!(child.wait().unwrap().success());
    has(0);
}
