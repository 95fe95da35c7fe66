//! `slashn mount --all-users`: other users of the machine use the mount, with the rights that files give.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tests::machine::{Done, Machine, Text};

/// A command of somebody who is neither root nor the machine's user.
fn of_another(machine: &Machine, command: &[&str], path: &Path) -> Command {
    let mut other = machine.as_root(&["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]);
    other.args(command).arg(path);
    other
}

/// A node with a file for everybody and one for its owner, and a folder that all can reach.
fn node(machine: &mut Machine) {
    machine.node("beta");
    let files = machine.at("files-beta");
    for (name, mode) in [("open", 0o644), ("secret", 0o600)] {
        machine.run("sh", &["-c", "echo text >\"$0\"", files.join(name).to_str().unwrap()]);
        fs::set_permissions(files.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for way in [machine.at(""), files] {
        fs::set_permissions(way, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn is_for_all(machine: &mut Machine) {
    let files = machine.mount_as("n", &["--all-users"]).join("beta/fs/files");
    assert_eq!(of_another(machine, &["cat"], &files.join("open")).succeeds().text(), "text\n");
    let refused = of_another(machine, &["cat"], &files.join("secret")).exits(1).errors();
    assert!(refused.contains("Permission denied"), "{refused}");
    of_another(machine, &["touch"], &files.join("made")).exits(1);
    assert_eq!(machine.run("cat", &[files.join("secret")]).text(), "text\n");
}

#[test]
fn root_mounts_for_every_user_who_then_has_the_rights_that_files_give() {
    let mut machine = Machine::root();
    node(&mut machine);
    is_for_all(&mut machine);
    let own = machine.mount_as("m", &[]).join("beta/fs/files/open");
    let refused = of_another(&machine, &["cat"], &own).exits(1).errors();
    assert!(refused.contains("Permission denied"), "it is not for all unless it is said: {refused}");
}

#[test]
fn an_ordinary_user_mounts_for_every_user_where_the_machine_lets_users() {
    let mut machine = Machine::ordinary();
    node(&mut machine);
    let place = machine.at("n").display().to_string();
    machine.run("mkdir", &[&place]);
    let refused = machine.slashn(&["mount", &place, "--all-users"]).exits(1);
    refused.complains(&["mount for every user", &place, "user_allow_other", "tee -a /etc/fuse.conf"]);
    let conf = machine.write("fuse.conf", "# all may\nuser_allow_other\n");
    // In the mount namespace of this machine alone.
    machine.as_root(&["mount", "--bind"]).arg(conf).arg("/etc/fuse.conf").succeeds();
    is_for_all(&mut machine);
    machine.as_root(&["umount", "/etc/fuse.conf"]).succeeds();
}
