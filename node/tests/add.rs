//! `slashn add` and the key of a node that is there: given, asked for on a terminal, wrong, or nobody's.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use node::keys::{Key, file};
use p9::transport::tls;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use tempfile::TempDir;

/// A home, and something that listens.
struct Place {
    top: TempDir,
    address: String,
    key: Key,
}

impl Place {
    /// With a node that shakes hands, for as long as the test lasts.
    fn with_a_node() -> Self {
        let top = tempfile::tempdir().unwrap();
        let path = top.path().join("node");
        file::generate(&path, "beta").unwrap();
        let secret = file::read(&path).unwrap().unwrap();
        let config = tls::server_config(&secret.identity(), Arc::new(|_| panic!("nobody proves a key"))).unwrap();
        let (address, listener) = listen();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    assert!(tls::accept(stream, config.clone()).await.is_err(), "the caller breaks it off");
                }
            });
        });
        Self::made(top, address, secret.key)
    }

    /// With something that listens and is no node.
    fn with_no_node() -> Self {
        let top = tempfile::tempdir().unwrap();
        let key = file::generate(&top.path().join("node"), "beta").unwrap();
        let (address, listener) = listen();
        listener.set_nonblocking(false).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let _ = stream.unwrap().write_all(b"220 mail.example ESMTP\r\n");
            }
        });
        Self::made(top, address, key)
    }

    fn made(top: TempDir, address: String, key: Key) -> Self {
        let place = Self { top, address, key };
        assert!(place.command(&["init", "--name", "alpha"]).status().unwrap().success());
        place
    }

    fn known_nodes(&self) -> PathBuf {
        self.top.path().join("home/known_nodes")
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_slashn"));
        command.env_clear().env("SLASHN_HOME", self.top.path().join("home")).stdin(Stdio::null()).stdout(Stdio::null());
        command.args(args);
        command
    }

    fn add(&self, more: &[&str]) -> Output {
        self.command(&[&["add", "beta", &self.address], more].concat()).output().unwrap()
    }

    /// `slashn add beta` on a terminal, on which the user types `answer`.
    fn add_and_answer(&self, answer: &str) -> Output {
        let (mut terminal, user_side) = terminal();
        let mut command = self.command(&["add", "beta", &self.address]);
        let child = command.stdin(user_side).stderr(Stdio::piped()).spawn().unwrap();
        terminal.write_all(answer.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn line(&self) -> Option<String> {
        let text = fs::read_to_string(self.known_nodes()).unwrap();
        text.lines().find(|line| line.starts_with("beta ")).map(str::to_owned)
    }
}

fn listen() -> (String, TcpListener) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    (listener.local_addr().unwrap().to_string(), listener)
}

/// A pseudo-terminal: the side of who watches, and the side of the program.
fn terminal() -> (File, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let slave = OpenOptions::new().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    (master.into(), slave)
}

#[track_caller]
fn assert_fails(output: &Output, parts: &[&str]) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    for part in parts {
        assert!(err.contains(part), "{part} is not in {err}");
    }
}

#[test]
fn a_node_with_the_key_that_was_given_is_added_with_the_whole_key() {
    let place = Place::with_a_node();
    let added = place.add(&["--key", &place.key.fingerprint()]);
    assert!(added.status.success() && added.stderr.is_empty(), "{added:?}");
    assert_eq!(place.line().unwrap(), format!("beta {} home {}", place.address, place.key.bare_line()));
    // Again, without the key: it is known, so nobody need be asked.
    let again = place.add(&["--trust", "all"]);
    assert!(again.status.success() && again.stderr.is_empty(), "{again:?}");
    assert!(place.line().unwrap().contains(" all ssh-ed25519 "));
}

#[test]
fn a_node_with_another_key_is_refused() {
    let place = Place::with_a_node();
    let wrong = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU";
    assert_fails(&place.add(&["--key", wrong]), &["add: beta", "has another key than", &place.key.fingerprint()]);
    assert_eq!(place.line(), None);
}

#[test]
fn without_a_terminal_nobody_is_asked_and_the_node_is_refused() {
    let place = Place::with_a_node();
    assert_fails(&place.add(&[]), &["add: beta", "no terminal", "try: slashn add beta", "--key SHA256:"]);
    assert_eq!(place.line(), None);
}

#[test]
fn on_a_terminal_the_user_is_asked_and_has_the_last_word() {
    let place = Place::with_a_node();
    assert_fails(&place.add_and_answer("no\n"), &[&place.key.fingerprint(), "was not trusted"]);
    assert_fails(&place.add_and_answer("\n"), &["was not trusted"]);
    assert_eq!(place.line(), None);
    let added = place.add_and_answer("yes\n");
    assert!(added.status.success(), "{added:?}");
    assert!(String::from_utf8_lossy(&added.stderr).contains(&place.key.fingerprint()));
    assert!(place.line().unwrap().ends_with(&place.key.bare_line()));
}

#[test]
fn what_is_no_node_is_named_and_can_be_remembered_by_a_fingerprint() {
    let place = Place::with_no_node();
    assert_fails(&place.add_and_answer("yes\n"), &["see the node's key", &place.address, "no node answers there"]);
    let added = place.add(&["--key", &place.key.fingerprint()]);
    assert!(added.status.success(), "{added:?}");
    assert!(String::from_utf8_lossy(&added.stderr).contains("remembered by its fingerprint"));
    assert_eq!(
        place.line().unwrap(),
        format!("beta {} home {}", place.address, place.key.fingerprint().replace(':', " "))
    );
}
