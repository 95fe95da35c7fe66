//! Commands that go on by themselves: `rcpu -d`, and `slashn ps`, `attach`, `wait` and `kill`.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use tests::as_both;
use tests::machine::{Done, Machine, Text};

as_both! {
    a_detached_command_is_seen_waited_for_and_killed
    what_it_wrote_is_there_for_whoever_attaches_and_its_status_too
    what_nobody_reads_keeps_it_from_nothing
    a_signal_to_whoever_attaches_is_the_commands
    what_is_no_command_of_mine_is_said_to_be_none
    an_agent_that_is_stopped_says_what_ends
    what_bounds_a_command_is_kept_and_told
    a_node_that_is_down_hides_no_other
    my_nodes_and_commands_are_watched_until_a_key_ends_it
    a_command_is_left_by_a_tilde_and_a_dot_and_goes_on
}

/// Starts `script` on alpha; gives what it is called.
fn detached(machine: &Machine, script: &str) -> String {
    let printed = machine.rcpu(&["-d", "alpha", "--", "sh", "-c", script]).succeeds().text();
    let session = printed.trim().to_string();
    assert!(session.strip_prefix("alpha/").is_some_and(|id| id.parse::<u64>().is_ok()), "{printed}");
    session
}

fn a_detached_command_is_seen_waited_for_and_killed(machine: Machine) {
    let machine = machine.with_two_nodes();
    let session = detached(&machine, "echo here >made; sleep 1000");
    let listed = machine.slashn(&["ps"]).succeeds().text();
    let row: Vec<_> = listed.split_whitespace().collect();
    assert_eq!((row[0], row[1]), (&*session, "running"), "{listed}");
    assert!(listed.trim_end().ends_with("sh -c 'echo here >made; sleep 1000'"), "{listed}");
    assert_eq!(machine.slashn(&["ps", "beta"]).succeeds().text(), "");
    let json = machine.slashn(&["--json", "ps"]).succeeds().text();
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((rows[0]["session"].as_str(), rows[0]["command"][0].as_str()), (Some(&*session), Some("sh")));
    machine.slashn(&["kill", &session]).succeeds();
    machine.slashn(&["wait", &session]).exits(128 + 15);
    assert_eq!(machine.slashn(&["ps"]).succeeds().text(), "");
    assert!(machine.slashn(&["ps", "-A"]).succeeds().text().contains("signal 15"));
    let again = machine.slashn(&["kill", "-KILL", &session]).exits(1).errors();
    assert!(
        again.contains(&format!("slashn: kill: {session}: it does not run; try: slashn wait {session}")),
        "{again}"
    );
    // Its files were mine, and it was there by then.
    assert_eq!(std::fs::read_to_string(machine.at("work/made")).unwrap(), "here\n");
}

fn what_it_wrote_is_there_for_whoever_attaches_and_its_status_too(machine: Machine) {
    let machine = machine.with_two_nodes();
    let session = detached(&machine, "echo out; echo err >&2; exit 7");
    machine.slashn(&["wait", &session]).exits(7);
    let attached = machine.slashn(&["attach", &session]).exits(7);
    assert_eq!((attached.text().as_str(), attached.errors().as_str()), ("out\n", "err\n"));
    // And for the next one.
    assert_eq!(machine.slashn(&["attach", &session]).exits(7).text(), "out\n");
    // From there on, until it ends.
    let session = detached(&machine, "until [ -e go ]; do sleep 0.05; done; echo went");
    let waiting = machine.slashn(&["attach", &session]).stdout(Stdio::piped()).spawn().unwrap();
    machine.write("go", "");
    let output = waiting.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.text(), "went\n");
}

fn what_nobody_reads_keeps_it_from_nothing(machine: Machine) {
    let machine = machine.with_two_nodes();
    let session = detached(&machine, "yes | head -c 5000000; echo end; exit 5");
    machine.slashn(&["wait", &session]).exits(5);
    let text = machine.slashn(&["attach", &session]).exits(5).text();
    assert!(text.ends_with("y\nend\n") && (500_000..=1 << 20).contains(&text.len()), "{} bytes", text.len());
}

fn a_signal_to_whoever_attaches_is_the_commands(machine: Machine) {
    let machine = machine.with_two_nodes();
    let session = detached(&machine, "trap 'echo got it; exit 9' INT; echo ready; while :; do sleep 0.05; done");
    let mut child = machine.slashn(&["attach", &session]).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    machine.run("kill", &["-INT".to_string(), child.id().to_string()]);
    line.clear();
    out.read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), child.wait().unwrap().code()), ("got it\n", Some(9)));
}

fn what_is_no_command_of_mine_is_said_to_be_none(machine: Machine) {
    let machine = machine.with_two_nodes();
    for command in ["attach", "wait"] {
        let refused = machine.slashn(&[command, "alpha/9999"]).exits(255).errors();
        let said = format!("slashn: {command}: alpha/9999: there is no such command of mine; try: slashn ps -A");
        assert!(refused.contains(&said), "{refused}");
        machine.slashn(&[command, "gamma/1"]).exits(255);
        assert!(machine.slashn(&[command, "alpha"]).exits(2).errors().contains("NODE/SESSION"));
    }
    assert!(machine.slashn(&["kill", "alpha/9999"]).exits(1).errors().contains("there is no such command of mine"));
    assert!(machine.slashn(&["kill", "-NONE", "alpha/1"]).exits(2).errors().contains("NONE: there is no such signal"));
    assert!(machine.slashn(&["kill", "-9"]).exits(2).errors().contains("which command?"));
    assert!(machine.slashn(&["kill", "gamma/1"]).exits(1).errors().contains("no node of that name is known"));
}

fn an_agent_that_is_stopped_says_what_ends(machine: Machine) {
    let machine = machine.with_two_nodes();
    let session = detached(&machine, "sleep 1000");
    let stopped = machine.slashn(&["agent", "--stop"]).succeeds();
    assert_eq!(stopped.errors(), "slashn: commands that it serves, which end now: 1\n");
    machine.slashn(&["wait", &session]).exits(128 + 9);
    assert_eq!(machine.slashn(&["agent", "--stop"]).succeeds().errors(), "");
}

fn what_bounds_a_command_is_kept_and_told(machine: Machine) {
    let machine = machine.with_two_nodes();
    let late = machine.rcpu(&["--limit", "time=0.2,processes=100", "alpha", "sleep", "1000"]).exits(128 + 15);
    assert_eq!(late.errors(), "slashn: alpha: time: 0.2 s are over\n");
    let both = machine.rcpu(&["-q", "-A", "--limit", "time=0.2", "sleep", "1000"]).exits(128 + 15).errors();
    assert!(both.contains("rcpu: alpha: time: 0.2 s are over\n") && both.contains("rcpu: beta: time: "), "{both}");
    let session = machine.rcpu(&["-d", "--limit", "memory=100M", "beta", "sleep", "1000"]).succeeds().text();
    let (_, id) = session.trim().split_once('/').unwrap();
    let limits = machine.run("9p", &["read", &format!("beta/cpu/{id}/limits")]).text();
    assert!(limits.starts_with("memory 104857600\n"), "{limits}");
    let stats = machine.run("9p", &["read", &format!("beta/cpu/{id}/stats")]).text();
    assert!(stats.contains("\nlimits memory "), "{stats}");
    machine.slashn(&["kill", session.trim()]).succeeds();
    machine.slashn(&["wait", session.trim()]).exits(128 + 15);
    // The caller's own limits hold there, too; and what it used is told to who asks.
    let own = machine.command("sh").args(["-c", "ulimit -n 333; exec rcpu -v beta sh -c 'ulimit -n'"]).succeeds();
    assert_eq!(own.text(), "333\n");
    assert!(own.errors().contains("slashn: beta: real "), "{}", own.errors());
    let wrong = machine.rcpu(&["--limit", "memory=much", "beta", "true"]).exits(2).errors();
    assert!(wrong.contains("memory is a number of bytes"), "{wrong}");
}

fn a_node_that_is_down_hides_no_other(machine: Machine) {
    let machine = machine.with_two_nodes();
    let session = detached(&machine, "sleep 1000");
    machine.slashn(&["--home", &machine.at("beta").display().to_string(), "down"]).succeeds();
    let listed = machine.slashn(&["ps"]).exits(1);
    assert!(listed.text().starts_with(&session) && listed.errors().contains("beta"), "{}", listed.errors());
    machine.slashn(&["kill", "-9", &session]).succeeds();
    machine.slashn(&["wait", &session]).exits(128 + 9);
}

fn a_command_is_left_by_a_tilde_and_a_dot_and_goes_on(machine: Machine) {
    let machine = machine.with_two_nodes();
    let session = detached(&machine, "echo begun; exec sleep 1000");
    let typed = format!(
        "(until grep -q begun seen; do :; done; printf 'nothing ~.\\n~.\\n') | \
         script -qfec 'slashn attach {session}; echo status $?' seen >/dev/null"
    );
    machine.command("sh").args(["-c", &format!("rm -f seen; {typed}")]).succeeds();
    let seen = std::fs::read_to_string(machine.at("work/seen")).unwrap();
    let left = format!("slashn: attach: {session}: it was left, and goes on; try: slashn attach {session}");
    assert!(seen.contains(&left) && seen.contains("status 255"), "{seen:?}");
    assert!(machine.slashn(&["ps"]).succeeds().text().starts_with(&session));
    machine.slashn(&["kill", "-KILL", &session]).succeeds();
}

fn my_nodes_and_commands_are_watched_until_a_key_ends_it(machine: Machine) {
    let machine = machine.with_two_nodes();
    let session = detached(&machine, "exec sleep 1000");
    machine.slashn(&["--home", &machine.at("beta").display().to_string(), "down"]).succeeds();
    let once = machine.slashn(&["top"]).succeeds().text();
    let lines: Vec<&str> = once.lines().collect();
    assert!(lines[0].starts_with("node ") && lines[0].ends_with(" used  commands"), "{once}");
    assert!(lines[1].starts_with("alpha ") && lines[1].trim_end().ends_with(" 1"), "{once}");
    assert!(lines[2].starts_with("beta ") && lines[2].contains("nothing listens there"), "{once}");
    assert!(lines[4].starts_with(&session) && lines[4].contains("sleep 1000"), "{once}");
    assert_eq!(machine.slashn(&["top", "alpha"]).succeeds().text().lines().count(), 4);
    assert!(machine.slashn(&["top", "-d", "0"]).exits(2).errors().contains("number of seconds"));
    // On a terminal it goes on until `q`, or ^C, and gives the screen back.
    for key in ["q", "\\003"] {
        let typed = format!(
            "(until grep -q 'sleep 1000' drawn; do :; done; printf '{key}') | script -qfec 'slashn top -d 0.2' drawn"
        );
        machine.command("sh").args(["-c", &format!("rm -f drawn; {typed} >/dev/null")]).succeeds();
        let drawn = std::fs::read_to_string(machine.at("work/drawn")).unwrap();
        assert!(drawn.contains("\x1b[?1049h") && drawn.contains("\x1b[?1049l"), "{drawn:?}");
        assert!(drawn.contains("alpha ") && drawn.contains(&session), "{drawn:?}");
    }
    machine.slashn(&["kill", "-KILL", &session]).succeeds();
}
