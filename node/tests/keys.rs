//! Keys as OpenSSH's own tools make, read and keep them: files by ssh-keygen, and a real ssh-agent.
//!
//! Each signature is checked by the same code that checks a peer's in a TLS handshake.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use node::grant::{self, Grant};
use node::home::Home;
use node::home::init::{Wishes, init};
use node::keys::{Key, SecretKey, file};
use p9::who::{Only, Rights};
use rustls::SignatureScheme;
use rustls::crypto::ring;
use tempfile::TempDir;

/// Runs one of OpenSSH's tools, which must succeed, and gives what it printed.
fn ssh(program: &str, args: &[&str], agent: Option<&Path>) -> String {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    if let Some(socket) = agent {
        command.env("SSH_AUTH_SOCK", socket);
    }
    let output = command.output().unwrap_or_else(|error| panic!("{program} (Debian: openssh-client): {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A fresh key made by ssh-keygen.
fn keygen(dir: &TempDir, kind: &str, passphrase: &str) -> PathBuf {
    let path = dir.path().join(kind);
    ssh("ssh-keygen", &["-q", "-t", kind, "-N", passphrase, "-C", "made by ssh", "-f", path.to_str().unwrap()], None);
    path
}

/// A fresh key and its file. One P-256 key in 256 has a number that starts with a zero byte, which ssh-keygen leaves
/// out and the `ssh-key` crate then misses: such a key can be used through an agent only, and another is made here.
fn readable(dir: &TempDir, kind: &str) -> (PathBuf, SecretKey) {
    for _ in 0..5 {
        let path = keygen(dir, kind, "");
        match file::read(&path) {
            Ok(secret) => return (path, secret.expect("it has no passphrase")),
            Err(error) => eprintln!("{error}: making another"),
        }
        fs::remove_file(&path).unwrap();
    }
    panic!("five {kind} keys in a row could not be read");
}

/// An ssh-agent of this test's own, ended with it.
struct Agent {
    process: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(dir: &TempDir) -> Self {
        let socket = dir.path().join("agent");
        let process = Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn();
        let process = process.unwrap_or_else(|error| panic!("ssh-agent (Debian: openssh-client): {error}"));
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(start.elapsed() < Duration::from_secs(30), "the agent does not listen");
            std::thread::yield_now();
        }
        Self { process, socket }
    }

    fn add(&self, key: &Path) {
        ssh("ssh-add", &["-q", key.to_str().unwrap()], Some(&self.socket));
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[track_caller]
fn assert_signs(secret: &SecretKey) {
    let (scheme, length) = match secret.key.kind().as_str() {
        "ssh-ed25519" => (SignatureScheme::ED25519, 32),
        _ => (SignatureScheme::ECDSA_NISTP256_SHA256, 65),
    };
    let signer = secret.signer.choose_scheme(&[scheme]).expect("it signs with its scheme");
    let algorithms = ring::default_provider().signature_verification_algorithms.mapping;
    let (_, algorithms) = algorithms.iter().find(|(s, _)| *s == scheme).unwrap();
    let spki = secret.key.spki();
    // Several, since an ECDSA signature's encoding varies in length.
    for n in 0..32_u8 {
        let signature = signer.sign(&[n]).unwrap();
        algorithms[0].verify_signature(&spki[spki.len() - length..], &[n], &signature).expect("the signature is right");
    }
}

fn wishes(identity: &str) -> Wishes {
    Wishes { name: Some("alpha".parse().unwrap()), identity: Some(identity.into()), user: "me".into() }
}

#[test]
fn keys_in_files_of_ssh_keygen_sign() {
    let dir = tempfile::tempdir().unwrap();
    for kind in ["ed25519", "ecdsa"] {
        let (path, secret) = readable(&dir, kind);
        assert_eq!(secret.key.comment(), "made by ssh");
        assert!(ssh("ssh-keygen", &["-l", "-f", path.to_str().unwrap()], None).contains(&secret.key.fingerprint()));
        assert_signs(&secret);
    }
    let path = keygen(&dir, "rsa", "");
    assert!(file::read(&path).unwrap_err().to_string().contains("ssh-rsa keys cannot be used"));
}

#[test]
fn ssh_keygen_reads_a_key_of_ours() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("id");
    let key = file::generate(&path, "me@here").unwrap();
    let public = ssh("ssh-keygen", &["-y", "-f", path.to_str().unwrap()], None);
    assert_eq!(Key::from_line(&public).unwrap(), key);
}

#[test]
fn keys_of_an_agent_sign_and_one_that_left_is_missed() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(&dir);
    for kind in ["rsa", "ed25519", "ecdsa"] {
        agent.add(&keygen(&dir, kind, ""));
    }
    let home = dir.path().join("home");
    let made = init(&home, &wishes("agent"), Some(&agent.socket)).unwrap();
    assert_eq!(made.user.kind(), "ssh-ed25519", "the first that can be used");
    assert!(!home.join("id_ed25519").exists());
    let opened = Home::open(&home).unwrap();
    assert_signs(&opened.user_key(Some(&agent.socket)).unwrap());
    assert!(fs::read_to_string(opened.authorized_keys()).unwrap().contains(&made.user.bare_line()));

    // A .pub file names a key whose private half is in the agent.
    let ecdsa = dir.path().join("ecdsa.pub");
    let other = dir.path().join("other");
    init(&other, &wishes(ecdsa.to_str().unwrap()), Some(&agent.socket)).unwrap();
    assert_signs(&Home::open(&other).unwrap().user_key(Some(&agent.socket)).unwrap());

    ssh("ssh-add", &["-q", "-D"], Some(&agent.socket));
    let error = opened.user_key(Some(&agent.socket)).unwrap_err().to_string();
    assert!(error.contains(&made.user.fingerprint()) && error.contains("try: ssh-add"), "{error}");
    let error = opened.user_key(None).unwrap_err().to_string();
    assert!(error.contains("$SSH_AUTH_SOCK: is not set"), "{error}");
}

#[test]
fn a_key_with_a_passphrase_is_used_through_the_agent_and_else_named() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(&dir);
    let path = keygen(&dir, "ed25519", "correct horse");
    let home = dir.path().join("home");
    let error = init(&home, &wishes(path.to_str().unwrap()), Some(&agent.socket)).unwrap_err().to_string();
    assert!(error.contains("has a passphrase") && error.contains("try: ssh-add"), "{error}");

    ssh("ssh-keygen", &["-q", "-p", "-P", "correct horse", "-N", "", "-f", path.to_str().unwrap()], None);
    agent.add(&path);
    ssh("ssh-keygen", &["-q", "-p", "-N", "correct horse", "-f", path.to_str().unwrap()], None);
    init(&home, &wishes(path.to_str().unwrap()), Some(&agent.socket)).unwrap();
    assert_signs(&Home::open(&home).unwrap().user_key(Some(&agent.socket)).unwrap());
}

#[test]
fn a_grant_is_signed_by_an_agents_key_and_ssh_keygen_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let agent = Agent::start(&dir);
    for kind in ["ed25519", "ecdsa"] {
        let path = keygen(&dir, kind, "");
        agent.add(&path);
        fs::remove_file(&path).unwrap();
        let public = path.with_extension("pub");
        let key = file::read_public(&public).unwrap();
        let home = dir.path().join(format!("home-{kind}"));
        init(&home, &wishes(public.to_str().unwrap()), Some(&agent.socket)).unwrap();
        let secret = Home::open(&home).unwrap().user_key(Some(&agent.socket)).unwrap();
        // Several, since an ECDSA signature's encoding varies in length.
        for n in 0..16 {
            let granted = Grant {
                holder: "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU".into(),
                audience: key.fingerprint(),
                only: vec![Only { export: "src".into(), read_only: true }],
                session: format!("beta/{n}"),
                until: grant::until(Duration::from_secs(60)),
            };
            let text = granted.sign(&secret).unwrap();
            let by = |signer: &Key| {
                let (fingerprint, user) = (signer.fingerprint().into(), "me".into());
                (*signer == key).then_some(node::authorized::Granted { fingerprint, user, rights: Rights::All })
            };
            let (checked, _) = grant::check(&text, &granted.holder, &granted.audience, &by).unwrap();
            assert_eq!(checked.rights, Rights::Only(granted.only.into()));
            // What ssh-keygen says of it.
            let at = text.find("-----BEGIN").unwrap();
            let (signature, signers) = (dir.path().join("sig"), dir.path().join("signers"));
            fs::write(&signature, &text[at..]).unwrap();
            fs::write(&signers, format!("me {}\n", key.bare_line())).unwrap();
            let file = |path: &Path| path.to_str().unwrap().to_string();
            let mut verify = Command::new("ssh-keygen");
            verify.args([
                "-Y",
                "verify",
                "-n",
                "grant@slashn",
                "-I",
                "me",
                "-f",
                &file(&signers),
                "-s",
                &file(&signature),
            ]);
            let mut verify = verify.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
            std::io::Write::write_all(&mut verify.stdin.take().unwrap(), &text.as_bytes()[..at]).unwrap();
            assert!(verify.wait().unwrap().success());
        }
    }
}
