//! A disk that is full, the caller's or the node's: whoever writes is told at once, and what fails says where.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::path::Path;

use tests::as_both;
use tests::machine::{Done, Machine, Text};

as_both! {
    a_command_that_fills_the_callers_disk_is_told
    what_rcpu_cannot_write_down_is_its_error
    a_command_that_fills_the_nodes_disk_is_told
    a_node_without_room_for_a_command_says_so
    a_node_without_room_to_start_says_so
    a_caller_without_room_for_its_agent_says_so
    a_full_export_refuses_what_is_written_through_the_mount
}

/// Not one that belongs to whoever runs the tests.
const PYTHON: &str = "/usr/bin/python3";
const ROOM: u64 = 64 << 10;
/// Far more files than a test makes.
const MANY: u64 = 1000;

/// What writes a megabyte to `$1`, and ends as write(2), fsync(2) and close(2) say: with their error's number.
const WRITER: &str = "import os, sys
try:
    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    left = 1 << 20
    while left:
        left -= os.write(fd, b'x' * min(left, 1 << 17))
    os.fsync(fd)
    os.close(fd)
except OSError as error:
    print(error.strerror, file=sys.stderr)
    sys.exit(error.errno)
";

fn writer(machine: &Machine) -> String {
    machine.write("writer.py", WRITER).display().to_string()
}

#[track_caller]
fn no_room(output: &std::process::Output) {
    assert_eq!((output.errors().as_str(), output.text().as_str()), ("No space left on device\n", ""));
}

/// Makes files in `at` until no more can be made.
fn no_more_files(machine: &Machine, at: &Path) {
    let script = "i=0; while true >$0/fill-$i; do i=$((i+1)); done";
    machine.command("sh").arg("-c").arg(script).arg(at).done();
}

fn a_command_that_fills_the_callers_disk_is_told(mut machine: Machine) {
    machine.node("beta");
    let disk = machine.small_disk("work/disk", ROOM, MANY);
    let (writer, file) = (writer(&machine), disk.join("file").display().to_string());
    no_room(&machine.rcpu(&["beta", "python3", &writer, &file]).exits(libc::ENOSPC));
    let shell = machine.rcpu(&["beta", "sh", "-c", "head -c 1000000 /dev/zero >disk/other"]).exits(1);
    assert!(shell.errors().contains("No space left on device"), "{}", shell.errors());
    // There is room again as soon as there is.
    machine.rcpu(&["beta", "sh", "-c", "rm disk/*; echo x >disk/small"]).succeeds();
}

fn what_rcpu_cannot_write_down_is_its_error(mut machine: Machine) {
    machine.node("beta");
    let script = "rcpu beta echo hello >/dev/full";
    machine.command("sh").args(["-c", script]).exits(255).complains(&["rcpu: run: beta: stdout: ", "No space left"]);
}

fn a_command_that_fills_the_nodes_disk_is_told(mut machine: Machine) {
    machine.small_disk("beta", 4 << 20, MANY);
    machine.node("beta");
    let writer = writer(&machine);
    let fill = machine.at("beta/fill");
    machine.command("sh").arg("-c").arg("head -c 8000000 /dev/zero >$0").arg(fill).exits(1);
    no_room(&machine.rcpu(&["beta", "python3", &writer, "/tmp/file"]).exits(libc::ENOSPC));
}

fn a_node_without_room_for_a_command_says_so(mut machine: Machine) {
    let disk = machine.small_disk("beta", 4 << 20, 50);
    machine.node("beta");
    no_more_files(&machine, &disk);
    let tmp = disk.join("run/tmp").display().to_string();
    let error = machine.rcpu(&["beta", "true"]).exits(255);
    error.complains(&["rcpu: run: beta: ", &tmp, "No space left on device", "df -h", ", on beta"]);
    machine.run("sh", &["-c", &format!("rm {}/fill-*", disk.display())]);
    machine.rcpu(&["beta", "true"]).succeeds();
}

fn a_node_without_room_to_start_says_so(mut machine: Machine) {
    let disk = machine.small_disk("gamma", 4 << 20, 50);
    machine.takes_down("gamma");
    let home = disk.display().to_string();
    machine.slashn(&["--home", &home, "init", "--name", "gamma"]).succeeds();
    no_more_files(&machine, &disk);
    let parts = ["slashn: ", "gamma/run", ": No space left on device; try: df -h ", "; df -i "];
    for up in [&["up", "--listen", "127.0.0.1:0"][..], &["up", "--daemon", "--listen", "127.0.0.1:0"]] {
        machine.slashn(&[&["--home", &home], up].concat()).exits(1).complains(&parts);
    }
    // One file more, two, and so on: wherever it ends, it says so; and in the end it starts.
    for room in 0.. {
        machine.run("rm", &[disk.join(format!("fill-{room}"))]);
        let up = machine.slashn(&["--home", &home, "up", "--daemon", "--listen", "127.0.0.1:0"]).done();
        if up.status.success() {
            assert!(room > 1, "it started with room for {room} files");
            break;
        }
        assert_eq!(up.status.code(), Some(1));
        up.complains(&parts);
    }
}

fn a_caller_without_room_for_its_agent_says_so(mut machine: Machine) {
    machine.node("beta");
    let disk = machine.small_disk("other", 4 << 20, 50);
    let home = machine.somebody("other");
    let key = machine.run("cat", &[disk.join("id_ed25519.pub")]).text();
    let beta = machine.at("beta").display().to_string();
    machine.slashn(&["--home", &beta, "allow", key.trim()]).succeeds();
    no_more_files(&machine, &disk);
    let error = machine.rcpu(&["--home", &home, "beta", "true"]).exits(255);
    error.complains(&["rcpu: ", "other/run", "No space left on device", "df -i"]);
}

fn a_full_export_refuses_what_is_written_through_the_mount(mut machine: Machine) {
    machine.small_disk("files-beta", ROOM, 5);
    machine.node("beta");
    let files = machine.mount().join("beta/fs/files");
    let writer = writer(&machine);
    no_room(&machine.command(PYTHON).arg(&writer).arg(files.join("file")).exits(libc::ENOSPC));
    for name in ["a", "b", "c", "d"] {
        machine.run("touch", &[files.join(name)]);
    }
    for make in ["touch", "mkdir"] {
        let error = machine.command(make).arg(files.join("more")).exits(1).errors();
        assert!(error.contains("No space left on device"), "{error}");
    }
    machine.run("rm", &[files.join("file")]);
    machine.run("touch", &[files.join("more")]);
}
