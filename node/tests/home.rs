//! What a node that is up asks of its home: who may come in right now, its secrets, and that it is alone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use node::authorized::{self, Authorized};
use node::home::Home;
use node::home::init::{Made, Wishes, init};
use node::keys::Key;
use p9::who::{Only, Rights};
use tempfile::TempDir;

const BOB: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f bob";

fn home() -> (TempDir, Made) {
    let dir = tempfile::tempdir().unwrap();
    let wishes = Wishes { name: Some("alpha".parse().unwrap()), identity: None, user: "me".into() };
    let made = init(&dir.path().join("home"), &wishes, None).unwrap();
    (dir, made)
}

/// Puts `text` in the place of the file's contents, as `slashn allow` and editors do, keeping it ours alone.
fn rewrite(authorized: &Authorized, text: &str) {
    let beside = authorized.path().with_extension("part");
    fs::write(&beside, text).unwrap();
    fs::set_permissions(&beside, Permissions::from_mode(0o600)).unwrap();
    fs::rename(beside, authorized.path()).unwrap();
}

#[test]
fn who_may_come_in_is_what_the_file_says_at_that_moment() {
    let (_dir, made) = home();
    let authorized = made.home.authorized().unwrap();
    let bob = Key::from_line(BOB).unwrap();
    let me = authorized.granted(made.user.spki()).unwrap();
    assert_eq!((&*me.user, &me.rights), ("me@alpha", &Rights::All));
    assert_eq!(authorized.granted(bob.spki()), None, "a stranger");
    assert_eq!(authorized.granted(made.node.spki()), None, "the node itself is nobody's guest");

    let only = Rights::Only([Only { export: "docs".into(), read_only: true }].into());
    let before = fs::read_to_string(authorized.path()).unwrap();
    rewrite(&authorized, &authorized::with(&before, &bob, &only));
    let who = authorized.granted(bob.spki()).unwrap().who(7);
    assert_eq!((&*who.key, &*who.user, who.client), (&*bob.fingerprint(), "bob", 7));
    assert!(who.rights == only && !who.rights.may_run());

    rewrite(&authorized, &before);
    assert_eq!(authorized.granted(bob.spki()), None, "denied");
    assert!(authorized.granted(made.user.spki()).is_some());
}

#[test]
fn a_list_that_others_may_change_or_that_is_gone_lets_nobody_in_until_it_is_mended() {
    let (_dir, made) = home();
    let authorized = made.home.authorized().unwrap();
    fs::set_permissions(authorized.path(), Permissions::from_mode(0o622)).unwrap();
    assert_eq!(authorized.granted(made.user.spki()), None);
    assert!(authorized.reload().unwrap_err().to_string().contains("chmod go-w"));
    fs::set_permissions(authorized.path(), Permissions::from_mode(0o600)).unwrap();
    assert!(authorized.granted(made.user.spki()).is_some());
    let text = fs::read_to_string(authorized.path()).unwrap();
    fs::remove_file(authorized.path()).unwrap();
    assert_eq!(authorized.granted(made.user.spki()), None);
    rewrite(&authorized, &text);
    assert!(authorized.granted(made.user.spki()).is_some());
}

#[test]
fn a_key_on_two_lines_has_the_rights_of_both() {
    let (_dir, made) = home();
    let authorized = made.home.authorized().unwrap();
    let bob = Key::from_line(BOB).unwrap();
    rewrite(&authorized, &format!("only=\"a:ro\" {BOB}\nonly=\"b\" {BOB}\n"));
    let rights = authorized.granted(bob.spki()).unwrap().rights;
    assert_eq!((rights.export("a"), rights.export("b"), rights.export("c")), (Some(true), Some(false), None));
    rewrite(&authorized, &format!("only=\"a:ro\" {BOB}\n{BOB}\n"));
    assert!(authorized.granted(bob.spki()).unwrap().rights.may_run());
}

#[test]
fn one_node_at_a_time_serves_from_a_home() {
    let (_dir, Made { home, .. }) = home();
    assert_eq!(home.holder().unwrap(), None);
    let lock = home.lock().unwrap();
    let error = home.lock().unwrap_err().to_string();
    let pid = std::process::id();
    assert!(error.contains(&format!("runs from it already (process {pid})")) && error.contains("down"), "{error}");
    assert_eq!(home.holder().unwrap(), Some(pid));
    drop(lock);
    assert_eq!(home.holder().unwrap(), None, "what a node left behind is no node");
    let _again = home.lock().unwrap();
}

#[test]
fn a_homes_secrets_stay_the_same_and_differ_by_purpose_and_by_home() {
    let (_dir, Made { home: one, .. }) = home();
    let (_other_dir, Made { home: other, .. }) = home();
    let secret = one.secret("qid").unwrap();
    assert_eq!(Home::open(one.path()).unwrap().secret("qid").unwrap(), secret);
    assert_ne!(one.secret("else").unwrap(), secret);
    assert_ne!(other.secret("qid").unwrap(), secret);
}
