//! Peers that mean harm, against the built binaries: each is refused with a reason, and nobody else notices.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tests::machine::{Done, Machine, PATIENCE, Text};

#[test]
fn a_stranger_is_refused_and_told_what_to_do() {
    let mut machine = Machine::root();
    machine.node("alpha");
    let stranger = machine.somebody("stranger");
    let error = machine.rcpu(&["--home", &stranger, "alpha", "true"]).exits(255);
    error.complains(&["rcpu: connect: alpha: it does not let this key in", "slashn allow 'ssh-ed25519 ", ", on alpha"]);
}

#[test]
fn a_node_with_another_key_than_the_known_one_is_refused() {
    let mut machine = Machine::root();
    let address = machine.node("alpha");
    let other = machine.node("beta");
    let known = fs::read_to_string(machine.at("me/known_nodes")).unwrap();
    // The line of alpha, leading to beta: as if someone sat in between.
    let crossed: String =
        known.lines().filter(|l| l.starts_with("alpha")).map(|l| l.replace(&address, &other)).collect();
    fs::write(machine.at("me/known_nodes"), crossed + "\n").unwrap();
    let error = machine.rcpu(&["alpha", "true"]).exits(255);
    error.complains(&["rcpu: connect: alpha: ", "shows another key than known_nodes has", "slashn remove alpha"]);
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_remedy() {
    let machine = Machine::root();
    let key = machine.at("me/id_ed25519");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    machine.rcpu(&["alpha", "true"]).exits(255).complains(&["rcpu: ", "id_ed25519", "chmod 600"]);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, "garbage\n").unwrap();
    let error = machine.rcpu(&["alpha", "true"]).exits(255).errors();
    assert!(error.contains("id_ed25519"), "{error}");
}

#[test]
fn a_mount_does_not_wait_for_a_node_that_lets_its_key_in_no_longer() {
    let mut machine = Machine::root();
    machine.node("alpha");
    // Whoever waited for it to come back would wait for longer than a test may take.
    let n = machine.mount_as("n", &["--timeout", "3600"]);
    machine.run("ls", &[n.join("alpha/fs/files")]);
    let home = machine.at("alpha").display().to_string();
    let allowed = machine.slashn(&["--home", &home, "allowed"]).succeeds().text();
    for key in allowed.split_whitespace().filter(|word| word.starts_with("SHA256:")) {
        machine.slashn(&["--home", &home, "deny", key]).succeeds();
    }
    let refused = machine.command("ls").arg(n.join("alpha/fs/files")).done();
    assert!(!refused.status.success() && refused.errors().contains("No route to host"), "{}", refused.errors());
}

#[test]
fn a_key_that_is_allowed_an_export_cannot_reach_cpu() {
    let mut machine = Machine::root();
    machine.node("alpha");
    let guest = machine.somebody("guest");
    let key = fs::read_to_string(machine.at("guest/id_ed25519.pub")).unwrap();
    let alpha = machine.at("alpha").display().to_string();
    machine.slashn(&["--home", &alpha, "allow", key.trim(), "--only", "files:ro"]).succeeds();
    fs::write(machine.at("files-alpha/hello"), "hi\n").unwrap();

    let error = machine.rcpu(&["--home", &guest, "alpha", "true"]).exits(255);
    error.complains(&["rcpu: run: alpha: this key may not run commands there", "slashn allow, without --only"]);
    let n = machine.at("guest-n");
    fs::create_dir(&n).unwrap();
    machine.slashn(&["--home", &guest, "mount", &n.display().to_string()]).succeeds();
    let listed = machine.run("ls", &[n.join("alpha")]).text();
    let read = machine.run("cat", &[n.join("alpha/fs/files/hello")]).text();
    let refused = machine.command("touch").arg(n.join("alpha/fs/files/new")).exits(1).errors();
    machine.slashn(&["--home", &guest, "unmount", &n.display().to_string()]).succeeds();
    assert_eq!((listed.trim(), read.as_str()), ("fs", "hi\n"));
    assert!(refused.contains("Read-only file system"), "{refused}");
}

#[test]
fn garbage_and_slowness_end_their_own_connection_alone() {
    let mut machine = Machine::root();
    let address = machine.node("alpha");
    let n = machine.mount();
    fs::write(machine.at("files-alpha/hello"), "hi\n").unwrap();
    let mut garbage = TcpStream::connect(&address).unwrap();
    let mut silent: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(&address).unwrap()).collect();
    garbage.write_all(&[0xff; 4096]).unwrap();
    assert_eq!(machine.run("cat", &[n.join("alpha/fs/files/hello")]).text(), "hi\n");
    garbage.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = Vec::new();
    // An alert, then the end: or at once the end.
    let _ = garbage.read_to_end(&mut answer);
    assert!(answer.len() < 64, "{} bytes were answered to garbage", answer.len());
    // Who never speaks is cut off, too.
    let last = silent.last_mut().unwrap();
    last.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = last.read_to_end(&mut answer);
    assert_eq!(machine.run("cat", &[n.join("alpha/fs/files/hello")]).text(), "hi\n");
}

#[test]
fn the_commands_processes_end_when_the_caller_is_killed() {
    let mut machine = Machine::root();
    machine.node("beta");
    machine.write("long.sh", "echo started\nsleep 987654321 & exec sleep 987654321\n");
    // The second goes by a connection of the agent's, which could be made again for minutes.
    for _ in 0..2 {
        a_caller_is_killed(&machine);
    }
}

fn a_caller_is_killed(machine: &Machine) {
    let mut caller = machine.rcpu(&["beta", "sh", "long.sh"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut started = [0; 8];
    caller.stdout.as_mut().unwrap().read_exact(&mut started).unwrap();
    let becomes = |count: usize| {
        let until = Instant::now() + PATIENCE;
        while machine.processes().iter().filter(|p| p.contains(" 987654321")).count() != count {
            assert!(Instant::now() < until, "not {count}: {:#?}", machine.processes());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    becomes(2);
    caller.kill().unwrap();
    caller.wait().unwrap();
    becomes(0);
}

#[test]
fn a_job_cannot_reach_the_callers_secrets() {
    let mut machine = Machine::root();
    machine.node("beta");
    let home = machine.at("home");
    fs::create_dir(home.join(".ssh")).unwrap();
    fs::write(home.join(".ssh/id_ed25519"), "secret\n").unwrap();
    fs::write(home.join(".bashrc"), "# mine\n").unwrap();
    let error = machine.rcpu(&["beta", "cat", &format!("{}/.ssh/id_ed25519", home.display())]).exits(1).errors();
    assert!(error.contains("No such file or directory"), "{error}");
    let script = format!("echo evil >>{}/.bashrc", home.display());
    let error = machine.rcpu(&["beta", "sh", "-c", &script]).done().errors();
    assert!(error.to_lowercase().contains("read-only file system"), "{error}");
    assert_eq!(fs::read_to_string(home.join(".bashrc")).unwrap(), "# mine\n");
    let error = machine.rcpu(&["beta", "cat", &format!("{}/id_ed25519", machine.at("me").display())]).exits(1).errors();
    assert!(error.contains("No such file or directory"), "{error}");
}
