//! What a node is lent that runs a command: what the command's namespace names, whatever the node asks for.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use fileserver::caller::Trust;
use fileserver::{Disk, DiskOptions};
use node::dial::Dialer;
use node::grid::Nodes;
use node::home::init::{Wishes, init};
use node::lent::Lent;
use node::servers::Servers;
use p9::{Errno, How, Tree, Who};

/// What is lent to a node of this trust, where `named` is what the namespace names and gamma is known.
fn lent(top: &Path, trust: Trust, named: &[(&str, &str)]) -> Lent {
    let wishes = Wishes { name: Some("me".parse().unwrap()), identity: None, user: "me".into() };
    let made = init(&top.join("home"), &wishes, None).unwrap();
    fs::write(made.home.known_nodes(), format!("gamma 127.0.0.1:1 home {}\n", made.node.bare_line())).unwrap();
    fs::create_dir(top.join("files")).unwrap();
    let dialer = Dialer::open(&made.home, None).unwrap();
    Lent {
        files: Disk::open(&top.join("files"), DiskOptions::new([7; 32])).unwrap(),
        named: named.iter().map(|(server, spec)| ((*server).into(), (*spec).into())).collect(),
        exposed: Vec::new(),
        trust,
        holder: "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU".into(),
        session: "beta/1".into(),
        servers: Servers::new(Nodes::new(dialer.clone(), Duration::ZERO), Who::owner(), DiskOptions::new([7; 32])),
        dialer,
        grants: tokio::sync::Mutex::default(),
    }
}

async fn said(lent: &Lent, asked: &str) -> Result<String, Errno> {
    let file = lent.attach(&Who::owner(), asked.as_bytes()).await?;
    let handle = file.open(How::READ).await?;
    Ok(String::from_utf8(handle.read(0, 1 << 14).await?.to_vec()).unwrap())
}

#[tokio::test]
async fn what_the_namespace_does_not_name_is_not_lent() {
    let top = tempfile::tempdir().unwrap();
    let ran = top.path().join("ran");
    let lent = lent(top.path(), Trust::All, &[("local!/no/such", ""), ("exec!true", ""), ("gamma", "cpu")]);
    let local = format!("#relay local!{}", top.path().display());
    for asked in [
        &format!("#relay exec!touch {}", ran.display()),
        "#relay exec!true ",
        &local,
        "#relay ssh!host",
        "#relay unix!/run/x",
        "#relay tcp!127.0.0.1!1",
        "#relay gamma",
        "#relay nobody",
        "#relay #grid",
        "#relay tls!127.0.0.1!1",
        "#grant gamma",
        "#grant 127.0.0.1:1",
        "#grant nobody",
        "#grant",
        "#",
        "#root",
    ] {
        assert_eq!(lent.attach(&Who::owner(), asked.as_bytes()).await.err(), Some(Errno::ENOENT), "{asked}");
    }
    assert!(!ran.exists());
}

#[tokio::test]
async fn a_grant_says_what_the_namespace_does() {
    for (trust, named, only) in [
        (Trust::All, &[("#grid", "")][..], "*"),
        (Trust::Home, &[("#grid", "")], "home:ro"),
        (Trust::Home, &[("#grid", ""), ("gamma", "fs/src/lib")], "home:ro,src"),
        (Trust::Cwd, &[("#grid", ""), ("tls!127.0.0.1!1", "fs/src")], "src"),
        (Trust::Cwd, &[("gamma", "/fs/")], "*"),
        (Trust::Cwd, &[("gamma", "")], "*"),
    ] {
        let top = tempfile::tempdir().unwrap();
        let lent = lent(top.path(), trust, named);
        let grant = said(&lent, "#grant gamma").await.unwrap();
        assert!(grant.contains(&format!("\nonly {only}\nsession beta/1\n")), "{grant}");
        assert!(grant.contains("\nholder SHA256:47DEQpj8"), "{grant}");
        // One is good for as many as ask.
        assert_eq!(said(&lent, "#grant gamma").await.unwrap(), grant);
    }
    let top = tempfile::tempdir().unwrap();
    let lent = lent(top.path(), Trust::Cwd, &[("#grid", "")]);
    assert_eq!(said(&lent, "#grant gamma").await, Err(Errno::ENOENT));
}
