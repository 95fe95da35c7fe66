//! What may go wrong with a command elsewhere: callers that vanish or get in each other's way, nonsense in its files, a
//! node that is full, clocks that differ. Each time a clear error, and nothing is left running.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tests::as_both;
use tests::machine::{Done, Machine, Text, until};

as_both! {
    a_caller_that_vanishes_at_any_moment_leaves_nothing
    a_script_that_vanishes_at_any_step_leaves_nothing
    of_those_who_start_one_session_one_does_and_it_runs_once
    nonsense_in_a_session_is_refused_and_changes_nothing
    a_gigabyte_of_environment_is_refused_and_costs_the_node_little
    a_namespace_with_a_dead_node_is_refused_with_its_line
    what_is_removed_in_a_command_is_what_the_trust_lets_it_change
    a_command_that_hangs_keeps_nobody_from_looking_or_ending_it
    clocks_may_differ_by_an_hour
}

fn grid(mut machine: Machine) -> (Machine, PathBuf) {
    machine.node("alpha");
    let cpu = machine.mount().join("alpha/cpu");
    (machine, cpu)
}

/// A script in the mount's `cpu`, with a session open: `$s` is its directory.
fn session(machine: &Machine, cpu: &Path, script: &str) -> Command {
    let mut command = machine.command("sh");
    command.args(["-c", &format!("exec 3<\"$0/clone\"; read -r id <&3; s=$0/$id\n{script}")]).arg(cpu);
    command
}

/// Waits until alpha has no session, and nobody runs what has `part` in its command line.
fn settles(machine: &Machine, part: &str) {
    let home = machine.at("alpha").display().to_string();
    until("the sessions are gone", || {
        machine.slashn(&["--home", &home, "status"]).succeeds().text().contains(": sessions 0 running 0\n")
    });
    until("nothing runs", || !machine.processes().iter().any(|line| line.contains(part)));
}

fn a_caller_that_vanishes_at_any_moment_leaves_nothing(mut machine: Machine) {
    machine.node("alpha");
    // The first finds no agent, the others do: they are killed ever later, until the command has run for a while.
    let (mut ran, started) = (0, machine.at("work/started"));
    for wait in 0.. {
        let mut caller = machine.rcpu(&["alpha", "sh", "-c", "echo >started; exec sleep 98765"]);
        let mut caller = caller.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // There is no condition: each moment is as good as another.
        std::thread::sleep(Duration::from_millis(2 * wait));
        caller.kill().unwrap();
        caller.wait().unwrap();
        ran += usize::from(started.exists());
        let _ = fs::remove_file(&started);
        if ran == 10 || wait == 200 {
            break;
        }
    }
    assert!(ran > 0, "none was killed while it ran");
    settles(&machine, " 98765");
}

fn a_script_that_vanishes_at_any_step_leaves_nothing(machine: Machine) {
    let (machine, cpu) = grid(machine);
    let steps = [
        "echo sleep 98765 >$s/args",
        "echo A=1 >$s/env; echo /tmp >$s/cwd; echo 'time 600' >$s/limits",
        "printf \"mount '#root' /\\n\" >$s/ns",
        "echo start >$s/ctl",
        "echo exec >$s/ctl || :",
        "echo x >>$s/stdin",
        "cat $s/stdout 3<&- &",
        "cat $s/wait 3<&- &",
    ];
    for count in 0..=steps.len() {
        // The fourth and the fifth are two ways to the same.
        let taken = steps[..count].iter().enumerate().filter(|(at, _)| *at != 3 || count == 4).map(|(_, step)| *step);
        let script = taken.chain(["echo done >$1/done; exec sleep 45678"]).collect::<Vec<_>>().join("\n");
        let mut command = session(&machine, &cpu, &script);
        let mut script = command.arg(machine.at("work")).stdout(Stdio::null()).spawn().unwrap();
        let done = machine.at("work/done");
        until("the steps are taken", || done.exists() || script.try_wait().unwrap().is_some());
        assert!(script.try_wait().unwrap().is_none(), "step {count} is refused");
        fs::remove_file(&done).unwrap();
        // While the shell becomes that, it has no words.
        until("it sleeps", || {
            machine
                .processes()
                .iter()
                .any(|line| line.split_once(' ').is_some_and(|(_, words)| words == "sleep 45678 "))
        });
        machine.kill(" 45678");
        script.kill().unwrap();
        script.wait().unwrap();
        settles(&machine, " 98765");
    }
}

fn of_those_who_start_one_session_one_does_and_it_runs_once(machine: Machine) {
    let (machine, cpu) = grid(machine);
    let log = machine.write("log", "").display().to_string();
    let all = "printf '%s\\0' sh -c 'echo ran >>\"$0\"; sleep 98765' \"$1\" >$s/args
        printf \"mount '#root' /\\n\" >$s/ns
        for i in 1 2 3 4 5 6 7 8; do (/bin/echo exec >$s/ctl && echo started || echo refused) & done; wait
        /bin/echo other >$s/args; /bin/echo exec >$s/ctl; cat $s/args; until grep -q ran \"$1\"; do :; done; echo kill KILL >$s/ctl; cat $s/wait | head -n 1";
    let done = session(&machine, &cpu, all).arg(&log).succeeds();
    let (said, errors) = (done.text(), done.errors());
    assert_eq!((said.matches("started\n").count(), said.matches("refused\n").count()), (1, 7), "{said}{errors}");
    assert!(said.ends_with("signal 9\n") && !said.contains("other"), "{said}");
    assert_eq!(errors.matches("Device or resource busy").count(), 9, "{errors}");
    assert_eq!(fs::read_to_string(&log).unwrap(), "ran\n");
    // Before, the last who says something is heard, whole.
    let last = "for i in 1 2 3 4 5 6 7 8; do echo \"echo $i$i$i$i\" >$s/args & done; wait
        echo exec >$s/ctl; cat $s/stdout";
    let said = session(&machine, &cpu, last).succeeds().text();
    assert!(said.len() == 5 && said.trim_end().bytes().all(|byte| byte == said.as_bytes()[0]), "{said}");
    settles(&machine, " 98765");
}

fn nonsense_in_a_session_is_refused_and_changes_nothing(machine: Machine) {
    let (machine, cpu) = grid(machine);
    machine.run("sh", &["-c", "head -c 300000 /dev/urandom >random"]);
    let script = "printf '%s\\0' echo whole >$s/args
        for text in 'nonsense' 'kill' 'kill NOSIGNAL' 'winsize 1' 'winsize a b' 'umask 9' 'nice x' 'user 1' 'exec now' \
            'args' 'limits memory' \"args 'open\" 'cwd relative' 'env X' 'listen nowhere' 'give relative x'
        do echo \"$text\" >$s/ctl 2>/dev/null && echo \"$text is taken\"; done
        cat random >$s/ctl 2>/dev/null && echo random bytes are taken
        for file in args env cwd ns nodes limits listen; do cat random >$s/$file 2>/dev/null && taken=\"$taken $file\"; done
        printf '%s\\0' echo whole >$s/args; : >$s/ns; : >$s/env; echo / >$s/cwd; : >$s/nodes; : >$s/limits; : >$s/listen
        echo exec >$s/ctl && cat $s/stdout; head -n 1 $s/wait";
    let said = session(&machine, &cpu, script).succeeds().text();
    assert_eq!(said, "whole\nexit 0\n");
    settles(&machine, "whole");
    // Another's session is none, whatever is done with it.
    let guest = "exec 3<\"$0/clone\"; read -r id <&3; printf '%s\\0' sleep 98765 >$0/$id/args; echo exec >$0/$id/ctl; \
                 echo $id; read end";
    let mut mine =
        machine.command("sh").args(["-c", guest]).arg(&cpu).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mine = mine.as_mut().unwrap();
    let mut id = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(mine.stdout.as_mut().unwrap()), &mut id).unwrap();
    let (mut machine, id) = (machine, id.trim().to_string());
    let home = machine.somebody("guest");
    let key = fs::read_to_string(machine.at("guest/id_ed25519.pub")).unwrap();
    machine.slashn(&["--home", &machine.at("alpha").display().to_string(), "allow", key.trim()]).succeeds();
    let theirs = machine.at("guest-n");
    fs::create_dir(&theirs).unwrap();
    machine.as_root(&["chmod", "777"]).arg(&theirs).succeeds();
    machine.slashn(&["--home", &home, "mount", theirs.to_str().unwrap()]).succeeds();
    let seen = theirs.join("alpha/cpu");
    let tried =
        "ls $0; for f in status args stdout ctl clone; do cat $0/$1/$f; done; /bin/echo kill KILL >$0/$1/ctl; ls $0/$1";
    let tried = machine.command("sh").args(["-c", tried]).arg(&seen).arg(&id).done();
    let killed = machine.slashn(&["--home", &home, "kill", &format!("alpha/{id}")]).exits(1);
    machine.slashn(&["--home", &home, "unmount", theirs.to_str().unwrap()]).succeeds();
    assert_eq!(tried.text(), "clone\nconnect\n");
    let (errors, lines) = (tried.errors(), tried.errors().lines().count());
    assert_eq!(
        (lines, errors.matches("No such file or directory").count() + errors.matches("nonexistent").count()),
        (7, 7),
        "{errors}"
    );
    killed.complains(&["slashn: kill: ", &format!("alpha/{id}")]);
    assert!(
        fs::read_to_string(cpu.join(&id).join("status")).is_err()
            || machine.processes().iter().any(|p| p.contains(" 98765"))
    );
    drop(mine.stdin.take());
    mine.wait().unwrap();
    settles(&machine, " 98765");
}

fn a_gigabyte_of_environment_is_refused_and_costs_the_node_little(machine: Machine) {
    let (machine, cpu) = grid(machine);
    let script = "(printf A=; head -c 1000000000 /dev/zero | tr '\\0' A) >$s/env; echo status $?
        printf '%s\\0' true >$s/args; /bin/echo exec >$s/ctl; cat $s/status";
    let done = session(&machine, &cpu, script).succeeds();
    let (said, errors) = (done.text(), done.errors());
    assert!(said.starts_with("status 1\n") && errors.contains("File too large"), "{said}{errors}");
    // What there was room for is too much as well.
    assert!(said.contains("true: cannot be executed: Argument list too long"), "{said}");
    let up = format!("--home {} up", machine.at("alpha").display());
    let node = machine.processes().into_iter().find(|line| line.contains(&up)).unwrap();
    let status = fs::read_to_string(format!("/proc/{}/status", node.split(' ').next().unwrap())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
    assert!(peak.parse::<u64>().unwrap() < 300 << 10, "{peak} KiB");
    settles(&machine, " 98765");
}

fn a_namespace_with_a_dead_node_is_refused_with_its_line(mut machine: Machine) {
    machine.node("alpha");
    machine.node("gone");
    machine.slashn(&["--home", &machine.at("gone").display().to_string(), "down"]).succeeds();
    machine.write("ns", "# one\nmount gone /g fs/files\n");
    let refused = machine.rcpu(&["--ns", "ns", "alpha", "true"]).exits(255);
    refused.complains(&["rcpu: run: alpha: ", "ns:2: mount gone: ", "try: slashn nodes"]);
    machine.write("ns", "mount -q gone /g fs/files\n");
    assert_eq!(machine.rcpu(&["--ns", "ns", "alpha", "echo", "runs"]).succeeds().text(), "runs\n");
    // What nobody looks at costs nothing.
    assert_eq!(machine.rcpu(&["alpha", "ls", "/n"]).succeeds().text(), "alpha\ngone\n");
    settles(&machine, "echo runs");
}

fn what_is_removed_in_a_command_is_what_the_trust_lets_it_change(machine: Machine) {
    let mut machine = machine;
    let address = machine.node("alpha");
    let keep = ["home/kept", "home/.bashrc", "beside", "files-alpha/kept"].map(|name| machine.at(name));
    machine.run("sh", &["-c", "mkdir ../beside; echo 1 >../home/kept; echo 1 >../home/.bashrc; echo 1 >../beside/f"]);
    machine.run("sh", &["-c", "echo 1 >../files-alpha/kept"]);
    let all = "mkdir -p d; echo 1 >d/f; exec rm -rf --one-file-system --no-preserve-root /etc /n \"$1\" \"$2\"";
    // Only one who may do no harm here tries it.
    if rustix::fs::stat(machine.at("work")).unwrap().st_uid == 0 {
        return;
    }
    for trust in ["cwd", "home"] {
        machine.slashn(&["add", "alpha", &address, "--trust", trust]).succeeds();
        let (top, work) = (machine.at("").display().to_string(), machine.at("work").display().to_string());
        let removed = machine.rcpu(&["alpha", "sh", "-c", all, "sh", &top, &work]).done();
        assert!(!removed.status.success());
        assert_eq!(machine.run("ls", &["-A"]).text(), "", "its own directory is its to change");
        let left = keep[..3].iter().filter(|path| !path.exists()).collect::<Vec<_>>();
        assert!(left.is_empty() && Path::new("/usr/bin/env").exists(), "gone: {left:?}");
    }
    settles(&machine, "rm -rf");
}

fn a_command_that_hangs_keeps_nobody_from_looking_or_ending_it(mut machine: Machine) {
    machine.node("alpha");
    machine.node("gamma");
    machine.run("sh", &["-c", "head -c 8000000 /dev/urandom >../files-gamma/large"]);
    machine.write("ns", "mount gamma /g fs/files\n");
    // It reads in a mapping what gamma does not give.
    let script = "import mmap, os, sys\n\
        large = mmap.mmap(os.open('/g/large', os.O_RDONLY), 0, prot=mmap.PROT_READ)\n\
        print('runs', flush=True); sys.stdin.readline(); print(large[4000000:4000100])\n";
    machine.write("hangs.py", script);
    let mut caller = machine.rcpu(&["--ns", "ns", "alpha", "/usr/bin/python3", "hangs.py"]);
    let mut caller = caller.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 5];
    std::io::Read::read_exact(caller.stdout.as_mut().unwrap(), &mut line).unwrap();
    let gamma = format!("--home {} up", machine.at("gamma").display());
    let gamma = machine.processes().into_iter().find(|line| line.contains(&gamma)).unwrap();
    let gamma = gamma.split(' ').next().unwrap();
    machine.run("kill", &["-STOP", gamma]);
    std::io::Write::write_all(caller.stdin.as_mut().unwrap(), b"\n").unwrap();
    let programs = || {
        let all = machine.processes().into_iter().filter(|line| line.contains(" /usr/bin/python3 hangs.py "));
        all.filter(|line| !line.contains("rcpu"))
            .map(|line| line.split(' ').next().unwrap().to_string())
            .collect::<Vec<_>>()
    };
    let state = |pid: &String| fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    until("it hangs", || programs().iter().any(|pid| state(pid).contains(") D ")));
    assert!(machine.run("ps", &["-ef", "--cols", "300"]).text().contains(" /usr/bin/python3 hangs.py"));
    // Nor does one node that answers nobody.
    let shown = machine.slashn(&["ps"]).exits(1).text();
    let name = shown.lines().find(|line| line.contains("hangs.py")).unwrap().split_whitespace().next().unwrap();
    assert_eq!(machine.rcpu(&["alpha", "echo", "runs"]).succeeds().text(), "runs\n");
    machine.slashn(&["kill", "-KILL", name]).succeeds();
    assert_eq!(caller.wait().unwrap().code(), Some(128 + 9));
    until("it has ended", || programs().is_empty());
    machine.run("kill", &["-CONT", gamma]);
    settles(&machine, "hangs.py");
}

/// What is in front of the C library: the time of day is another by `$OFFSET` seconds.
const CLOCK: &str = "#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, \"clock_gettime\");
    int done = real(clock, time);
    char *offset = getenv(\"OFFSET\");
    if (!done && clock == CLOCK_REALTIME && offset) time->tv_sec += atol(offset);
    return done;
}
";

fn clocks_may_differ_by_an_hour(mut machine: Machine) {
    machine.write("clock.c", CLOCK);
    machine.run("cc", &["-shared", "-fPIC", "-O", "-o", "clock.so", "clock.c", "-ldl"]);
    let clock = machine.at("work/clock.so").display().to_string();
    machine.node("alpha");
    let address = machine.node("gamma");
    machine.run("sh", &["-c", "echo 1 >../files-gamma/f"]);
    machine.write("ns", "mount gamma /g fs/files\n");
    let home = machine.at("gamma").display().to_string();
    let export = format!("files={}", machine.at("files-gamma").display());
    for offset in ["3600", "-3600"] {
        machine.slashn(&["--home", &home, "down"]).succeeds();
        let mut up = machine.slashn(&["--home", &home, "up", "--daemon", "--listen", &address, "--export", &export]);
        up.env("LD_PRELOAD", &clock).env("OFFSET", offset).succeeds();
        assert_eq!(machine.rcpu(&["gamma", "sh", "-c", "echo runs"]).succeeds().text(), "runs\n");
        // To one it was over before it began: then the caller reaches it.
        let seen = machine.rcpu(&["--ns", "ns", "alpha", "sh", "-c", "cat /g/f /run/slashn/ns"]).succeeds().text();
        let how = if offset == "3600" { "gamma: relayed by the caller" } else { "gamma: " };
        assert!(seen.starts_with("1\n") && seen.contains(how), "{seen}");
    }
    let n = machine.mount();
    machine.run("sh", &["-c", &format!("echo 2 >{0}/gamma/fs/files/g; cat {0}/gamma/fs/files/g", n.display())]);
    settles(&machine, "echo runs");
}

/// The limit is a process's own: that of the one who starts commands is one of its node's.
#[test]
fn a_node_that_can_start_no_process_says_so_and_does_once_it_can() {
    let mut machine = Machine::ordinary();
    machine.node("alpha");
    machine.rcpu(&["alpha", "true"]).succeeds();
    let up = format!("--home {} up", machine.at("alpha").display());
    let node = machine.processes().into_iter().find(|line| line.contains(&up)).unwrap();
    let child = |pid: &str| machine.run("pgrep", &["-P", pid]).text().trim().to_string();
    let launcher = child(&child(node.split(' ').next().unwrap()));
    let limit = |limit: &str| drop(machine.run("prlimit", &["--pid", &launcher, limit]));
    limit("--nproc=1:");
    let refused = machine.rcpu(&["alpha", "true"]).exits(255);
    refused.complains(&["rcpu: run: alpha: ", "fork: Resource temporarily unavailable", "try: ps -e, on the node"]);
    limit("--nproc=4000:");
    machine.rcpu(&["alpha", "true"]).succeeds();
    settles(&machine, "echo runs");
}
