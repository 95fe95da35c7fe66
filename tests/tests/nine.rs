//! The `9p` command, as a script uses it: on nodes by name, and on any server by its address.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use p9::{Errno, Reply, Stream, Written, synth};
use tests::listen::Listening;
use tests::machine::{Done, Machine, Text, binaries};

fn nine(machine: &Machine, args: &[&str]) -> Command {
    let mut command = machine.command(binaries().join("9p"));
    command.args(args);
    command
}

/// Runs `command` with `text` on its standard input.
fn told(mut command: Command, text: &str) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_file_of_a_node_is_written_read_listed_and_removed() {
    let mut machine = Machine::ordinary();
    machine.node("alpha");
    let written = told(nine(&machine, &["write", "alpha/fs/files/a file"]), "one\ntwo\n");
    assert!(written.status.success(), "{}", written.errors());
    assert_eq!(fs::read_to_string(machine.at("files-alpha/a file")).unwrap(), "one\ntwo\n");
    assert_eq!(nine(&machine, &["read", "/alpha/fs/files/a file"]).succeeds().text(), "one\ntwo\n");
    assert!(told(nine(&machine, &["write", "--append", "alpha/fs/files/a file"]), "three\n").status.success());
    assert_eq!(nine(&machine, &["read", "alpha/fs/files/a file"]).succeeds().text(), "one\ntwo\nthree\n");
    assert!(told(nine(&machine, &["write", "alpha/fs/files/a file"]), "short\n").status.success());
    assert_eq!(fs::read_to_string(machine.at("files-alpha/a file")).unwrap(), "short\n");

    nine(&machine, &["mkdir", "alpha/fs/files/d", "alpha/fs/files/d/e"]).succeeds();
    assert_eq!(nine(&machine, &["ls", "alpha/fs/files"]).succeeds().text(), "a file\nd\n");
    let long = nine(&machine, &["ls", "-l", "alpha/fs/files"]).succeeds().text();
    let rows: Vec<&str> = long.lines().collect();
    assert!(rows[0].starts_with("-rw-r--r-- 1 ") && rows[0].ends_with("Z a file"), "{long}");
    assert!(rows[1].starts_with("drwxr-xr-x 3 ") && rows[1].ends_with("Z d"), "{long}");
    let stat = nine(&machine, &["stat", "alpha/fs/files/a file"]).succeeds().text();
    assert!(stat.contains("\nsize 6\n") && stat.contains("\nmode -rw-r--r-- 100644\n"), "{stat}");

    let full = nine(&machine, &["rm", "alpha/fs/files/d"]).exits(1).errors();
    assert_eq!(full, "9p: rm: alpha/fs/files/d: Directory not empty\n");
    nine(&machine, &["rm", "alpha/fs/files/d/e", "alpha/fs/files/d", "alpha/fs/files/a file"]).succeeds();
    assert_eq!(fs::read_dir(machine.at("files-alpha")).unwrap().count(), 0);
}

#[test]
fn a_node_is_found_by_its_address() {
    let mut machine = Machine::root();
    let address = machine.node("alpha");
    let by_address = format!("tls!{}", address.replace(':', "!"));
    let load = nine(&machine, &["-a", &by_address, "read", "stat/load"]).succeeds().text();
    assert_eq!(load.split_whitespace().count(), 3, "{load}");
}

#[test]
fn errors_name_the_step_and_the_file_and_what_to_try() {
    let mut machine = Machine::ordinary();
    machine.node("alpha");
    let fails = |args: &[&str], status: i32| nine(&machine, args).exits(status).errors();
    assert_eq!(fails(&["read", "alpha/fs/none"], 1), "9p: read: alpha/fs/none: No such file or directory\n");
    assert_eq!(fails(&["read", "alpha/fs"], 1), "9p: read: alpha/fs: Is a directory; try: 9p ls alpha/fs\n");
    let unknown = fails(&["ls", "beta"], 1);
    assert!(unknown.starts_with("9p: find the node: beta: ") && unknown.contains("slashn add beta"), "{unknown}");
    let nowhere = fails(&["-a", "unix!/none", "ls", "/"], 1);
    assert!(nowhere.starts_with("9p: connect: unix!/none: No such file"), "{nowhere}");
    assert_eq!(nine(&machine, &["ls", "/"]).exits(2).text(), "");
    // A reader that goes away is no error.
    let script =
        format!("{} ls -l alpha/fs | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}", binaries().join("9p").display());
    assert_eq!(machine.command("bash").arg("-c").arg(script).succeeds().text(), "0\n");
}

#[test]
fn the_messages_are_shown_on_request() {
    let mut machine = Machine::ordinary();
    machine.node("alpha");
    fs::write(machine.at("files-alpha/x"), "text").unwrap();
    let shown = nine(&machine, &["-D", "read", "alpha/fs/files/x"]).succeeds();
    assert_eq!(shown.text(), "text");
    let errors = shown.errors();
    for line in ["Attach { fid: ", "steps: [Into(fs), Into(files), Into(x)]", "Lopen { qid: ", "Read { data: 4 bytes }"]
    {
        assert!(errors.contains(line), "{line} is missing in {errors}");
    }
}

/// Says again what it is told, in capitals; after `bye` nothing more comes.
struct Parrot {
    told: tokio::sync::mpsc::UnboundedSender<Bytes>,
    says: tokio::sync::Mutex<tokio::sync::mpsc::UnboundedReceiver<Bytes>>,
}

impl Stream for Parrot {
    fn read(&self, _offset: u64, _count: u32) -> Reply<'_, Bytes> {
        Reply::later(async { self.says.lock().await.recv().await.ok_or(Errno::EIO) })
    }

    fn write(&self, _offset: u64, data: Bytes) -> Reply<'_, Written> {
        let said = if &data[..] == b"bye\n" { Bytes::new() } else { data.to_ascii_uppercase().into() };
        self.told.send(said).unwrap();
        Reply::ok(Written::count(data.len()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_answers_is_talked_to() {
    let machine = Machine::ordinary();
    let parrot = synth::stream(0o666, |_| {
        let (told, says) = tokio::sync::mpsc::unbounded_channel();
        Reply::ok(Arc::new(Parrot { told, says: says.into() }) as Arc<dyn Stream>)
    });
    let listening = Listening::start(synth::tree(synth::dir([("parrot", parrot)]))).await;
    let address = format!("tcp!127.0.0.1!{}", listening.address().port());
    let mut command = nine(&machine, &["-a", &address, "con", "parrot"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let talk = tokio::task::spawn_blocking(move || {
        let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stdout));
        for line in ["hello", "is anybody there"] {
            // The next is said once this was answered.
            writeln!(stdin, "{line}").unwrap();
            assert_eq!(lines.next().unwrap().unwrap(), line.to_ascii_uppercase());
        }
        writeln!(stdin, "bye").unwrap();
        assert!(lines.next().is_none(), "it ends with what it talks to");
        assert!(child.wait().unwrap().success());
    });
    tokio::time::timeout(tests::machine::PATIENCE, talk).await.unwrap().unwrap();
}
