//! What is large, odd or hostile at the command line and at the door, with the built binaries.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use tests::machine::{Done, Machine, Text};

fn grid(mut machine: Machine) -> Machine {
    machine.node("beta");
    machine
}

#[test]
fn arguments_and_environment_of_megabytes_arrive() {
    let machine = grid(Machine::ordinary());
    let long = "x".repeat(131_000);
    let mut command = machine.rcpu(&["beta", "sh", "-c", "echo ${#B1} ${#B9} ${#1} ${#2}; printenv | wc -c", "sh"]);
    command.envs((1..=9).map(|i| (format!("B{i}"), &long)));
    let said = command.args([&long, &long]).succeeds().text();
    let (lengths, rest) = said.split_once('\n').unwrap();
    assert_eq!(lengths, "131000 131000 131000 131000");
    assert!(rest.trim().parse::<usize>().unwrap() > 9 * 131_000, "{rest}");
}

#[test]
fn a_directory_and_a_variable_may_have_any_bytes() {
    let machine = grid(Machine::ordinary());
    let name = OsStr::from_bytes(b"w\xff d");
    machine.run("mkdir", &[machine.at("work").join(name)]);
    let script = "cd \"$1\" && exec rcpu -e \"$2\" beta sh -c 'pwd; printf %s \"$F\"'";
    let mut command = machine.command("sh");
    command.args(["-c", script, "sh"]).arg(name).arg(OsStr::from_bytes(b"F=\xfe"));
    let said = command.succeeds().stdout;
    let expected = [machine.at("work").join(name).as_os_str().as_bytes(), b"\n\xfe"].concat();
    assert_eq!(said.escape_ascii().to_string(), expected.escape_ascii().to_string());
}

#[test]
fn a_stdin_that_cannot_be_read_is_no_end_of_it() {
    let machine = grid(Machine::ordinary());
    let failed = machine.rcpu(&["beta", "cat"]).stdin(fs::File::open("/").unwrap()).exits(255);
    assert_eq!(failed.errors(), "rcpu: run: beta: stdin: Is a directory\n");
}

#[test]
fn a_command_whose_files_are_lost_is_lost_and_not_exited() {
    let machine = grid(Machine::ordinary());
    let mut child = machine.rcpu(&["--away", "5", "beta", "sh", "-c", "echo runs; sleep 600; exit 0"]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 5]).unwrap();
    let agent = machine.processes().into_iter().find(|line| line.contains(" agent")).expect("the agent runs");
    let pid = agent.split(' ').next().unwrap();
    assert!(Command::new("kill").args(["-9", pid]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(255), "{}", ended.errors());
    let said = ended.errors();
    assert!(said.contains("the caller's tree: its connection was lost"), "{agent}: {said}");
}

#[test]
fn whoever_connects_and_says_nothing_keeps_nobody_out() {
    let mut machine = Machine::ordinary();
    let address = machine.node("beta");
    let silent: Vec<TcpStream> = (0..600).map(|_| TcpStream::connect(&address).unwrap()).collect();
    assert_eq!(machine.rcpu(&["beta", "echo", "served"]).succeeds().text(), "served\n");
    drop(silent);
}

#[test]
fn a_plain_socket_replaces_no_file_and_is_gone_with_the_node() {
    let mut machine = Machine::ordinary();
    machine.node("beta");
    let (file, socket) = (machine.write("file", "mine\n"), machine.at("work/socket"));
    let home = machine.somebody("gamma");
    let up = |at: &std::path::Path| {
        let plain = format!("unix!{}", at.display());
        machine.slashn(&["--home", &home, "up", "--daemon", "--listen", "127.0.0.1:0", "--plain", &plain])
    };
    let refused = up(&file).exits(1).errors();
    assert!(refused.contains("it is no socket"), "{refused}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine\n");
    up(&socket).succeeds();
    assert!(socket.exists());
    machine.slashn(&["--home", &home, "down"]).succeeds();
    assert!(!socket.exists(), "the socket is gone with its node");
}

#[test]
fn a_daemon_that_hangs_is_told_of_and_waited_for_no_longer_than_is_said() {
    let machine = grid(Machine::ordinary());
    let status = machine.slashn(&["--home", machine.at("beta").to_str().unwrap(), "status"]).succeeds().text();
    assert!(status.contains("ready beta"), "{status}");
    let node = machine.processes().into_iter().find(|line| line.contains(" up ")).expect("the node runs");
    let pid = node.split(' ').next().unwrap().to_string();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    signal("-STOP");
    let home = machine.at("beta").display().to_string();
    let said = machine.slashn(&["--home", &home, "status"]).exits(1).errors();
    signal("-CONT");
    assert!(said.contains("does not answer") && said.contains(&format!("try: kill -9 {pid}")), "{said}");
}

#[test]
fn a_folder_that_holds_the_home_is_not_mounted_over() {
    let machine = Machine::ordinary();
    for place in [machine.at(""), machine.at("me")] {
        let refused = machine.slashn(&["mount", place.to_str().unwrap()]).exits(1).errors();
        assert!(refused.contains("would be covered; try: slashn mount DIR"), "{refused}");
    }
}

#[test]
fn a_mount_whose_process_hangs_is_unmounted() {
    let mut machine = Machine::ordinary();
    let at = machine.mount();
    let process = machine.processes().into_iter().find(|line| line.contains(" mount ")).expect("the mount runs");
    let pid = process.split(' ').next().unwrap().to_string();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    signal("-STOP");
    let said = machine.slashn(&["unmount", at.to_str().unwrap()]).succeeds().errors();
    signal("-CONT");
    assert!(said.contains("does not answer") && said.contains(&format!("kill -9 {pid}")), "{said}");
}

#[test]
fn no_home_of_the_callers_is_shown_to_a_node() {
    let mut machine = Machine::ordinary();
    let folder = machine.at("work").display().to_string();
    let home = format!("{folder}/another");
    machine.node("beta");
    machine.slashn(&["--home", &home, "init", "--name", "another"]).succeeds();
    let keys = format!("{home}/authorized_keys");
    let before = fs::read(&keys).unwrap();
    let script =
        format!("cat another/id_ed25519 {home}/node_ed25519; echo '# evil' >>another/authorized_keys; ls another");
    let said = machine.rcpu(&["beta", "sh", "-c", &script]).done();
    assert_eq!(said.text(), "", "{}", said.errors());
    assert_eq!(said.errors().matches("o such file or directory").count(), 3, "{}", said.errors());
    assert_eq!(fs::read(&keys).unwrap(), before);
}

#[test]
fn a_file_system_is_free_once_no_command_is_in_it() {
    let machine = grid(Machine::root());
    let at = machine.at("work/stick");
    machine.run("mkdir", &[&at]);
    machine.command("mount").args(["-t", "tmpfs", "tmpfs"]).arg(&at).succeeds();
    let there = machine.rcpu(&["-C", at.to_str().unwrap(), "beta", "sh", "-c", "echo x >y; cat y"]).succeeds().text();
    let unmounted = || machine.command("umount").arg(&at).done().status.success();
    let until = std::time::Instant::now() + tests::machine::PATIENCE;
    while !unmounted() {
        assert!(std::time::Instant::now() < until, "it is busy for ever");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(there, "x\n");
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let machine = grid(Machine::ordinary());
    let home = machine.at("beta").display().to_string();
    let key = fs::read_to_string(machine.at("me/id_ed25519.pub")).unwrap();
    let both =
        machine.slashn(&["--home", &home, "allow", key.trim(), "--only", "files:ro", "--only", "files"]).exits(2);
    assert!(both.errors().contains("both with :ro and without"), "{}", both.errors());
    let own = fs::read_to_string(machine.at("beta/node_ed25519.pub")).unwrap();
    let own = machine.slashn(&["--home", &home, "allow", own.trim()]).exits(1).errors();
    assert!(own.contains("this node's own key"), "{own}");
    let exposed = machine.rcpu(&["--expose", "/none", "beta", "true"]).exits(255).errors();
    assert!(exposed.starts_with("rcpu: expose: /none: No such file"), "{exposed}");
    let run = machine.command("sh").args(["-c", "cd /dev/shm && exec rcpu beta true"]).exits(255).errors();
    assert!(run.contains("find the working directory: /dev/shm: ") && run.contains("try: rcpu -C"), "{run}");
    assert_eq!(machine.rcpu(&["beta", ""]).exits(127).text(), "");
}
