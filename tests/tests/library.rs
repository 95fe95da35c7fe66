//! Commands by the library, as `cpuserver/examples/command.rs` has it.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cpuserver::client::{Error, Exit};
use cpuserver::{Command, Host, Stdio};
use p9::client::{Client, Options};
use p9::{Tree, Who, transport};
use tests::machine::{Machine, until};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

#[allow(dead_code, missing_docs, unreachable_pub, reason = "it is a program of its own")]
#[path = "../../cpuserver/examples/command.rs"]
mod example;

/// A node that listens at a socket.
fn node() -> (Machine, PathBuf) {
    let mut machine = Machine::root();
    let socket = machine.at("socket");
    machine.node_with("alpha", &["--plain", &format!("unix!{}", socket.display())]);
    (machine, socket)
}

async fn host(socket: &Path) -> Host {
    let client = Client::connect(transport::unix(socket).await.unwrap(), Options::default()).await.unwrap();
    Host::new(client.attach(&Who::owner(), b"").await.unwrap())
}

/// A shell script with the node's own root.
fn sh(script: &str) -> Command {
    Command::new("sh").arg("-c").arg(script).env("PATH", "/usr/bin:/bin")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_runs_a_command_on_a_node() {
    let (_machine, socket) = node();
    let words = ["sh", "-c", "uname -n; cat; exit 7"].map(str::to_owned);
    let (status, text) = example::run(&socket, &words, Stdio::from(&b"words\n"[..])).await.unwrap();
    assert_eq!((text.as_str(), format!("{status:?}")), ("ALPHA\nWORDS\n", format!("{:?}", ExitCode::from(7))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_is_written_to_read_signalled_and_waited_for() {
    let (_machine, socket) = node();
    let host = host(&socket).await;
    let script = "trap 'echo caught; exit 9' USR1; read word; echo got $word; while :; do sleep 0.02; done";
    let command = sh(script).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn(&host).await.unwrap();
    child.stdin.as_mut().unwrap().write_all(b"this\n").await.unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("got this"));
    child.signal(libc::SIGUSR1).await;
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("caught"));
    let ended = child.wait().await.unwrap();
    assert_eq!((ended.exit, ended.limit), (Exit::Code(9), None));
    assert!(ended.used.starts_with("real "), "{}", ended.used);

    let output = sh("echo out; echo err >&2; cat; kill -KILL $$").output(&host).await.unwrap();
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    assert_eq!(output.ended.exit, Exit::Signal { number: libc::SIGKILL, core: false });
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_runs_is_an_error_of_spawn_and_a_child_that_is_dropped_ends() {
    let (machine, socket) = node();
    let host = host(&socket).await;
    let missing = Command::new("no-such-command").spawn(&host).await.err().unwrap();
    assert!(matches!(missing, Error::NeverStarted { code: 127, .. }), "{missing}");
    let homeless = sh("true").current_dir("/no/such").status(&host).await.unwrap_err();
    assert!(homeless.to_string().contains("/no/such"), "{homeless}");
    let nobody = sh("true").namespace("mount caller /\n", "").status(&host).await.unwrap_err();
    assert!(nobody.to_string().contains("nobody serves it"), "{nobody}");
    let mark = machine.at("mark").display().to_string();
    let child = sh(&format!("exec sleep 1000 # {mark}")).env("MARK", &mark).spawn(&host).await.unwrap();
    let runs = || machine.processes().iter().any(|line| line.contains(" sleep 1000"));
    until("it runs", runs);
    drop(child);
    until("it is gone", || !runs());
}
