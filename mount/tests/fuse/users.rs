//! As an ordinary user, who mounts by fusermount3 and whose rights the kernel checks.
//!
//! The tests start this binary again as a user without privileges, in a mount namespace where /dev/fuse is open to all,
//! as it is on users' distributions.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::process::Command;

use fileserver::{Disk, DiskOptions};
use rustix::fs::{Access, access};

use super::*;

/// `nobody`: fusermount3 wants an account.
const USER: &str = "65534";

/// Runs one of the ignored tests below as the ordinary user.
fn as_user(test: &str) {
    assert!(rustix::process::geteuid().is_root(), "this test becomes another user: it must be run as root");
    let folder = tempfile::tempdir().unwrap();
    let (node, own) = (folder.path().join("fuse"), folder.path().join("own"));
    let kind = rustix::fs::FileType::CharacterDevice;
    rustix::fs::mknodat(rustix::fs::CWD, &node, kind, 0o666.into(), rustix::fs::makedev(10, 229)).unwrap();
    fs::set_permissions(&node, fs::Permissions::from_mode(0o666)).unwrap();
    fs::create_dir(&own).unwrap();
    let id: u32 = USER.parse().unwrap();
    std::os::unix::fs::chown(&own, Some(id), Some(id)).unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // The user may not be able to reach the folder where it was built.
    let program = folder.path().join("test");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let script = format!(
        "mount --bind {} /dev/fuse && exec setpriv --reuid {USER} --regid {USER} --clear-groups {} --ignored --exact {test}",
        node.display(),
        program.display()
    );
    let output = Command::new("unshare")
        .args(["-m", "--propagation", "private", "sh", "-c", &script])
        .env("TMPDIR", &own)
        .current_dir("/")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn an_ordinary_user_mounts_and_makes_a_read_only_file() {
    as_user("users::makes_a_read_only_file");
}

#[test]
#[ignore = "started by another test, as another user"]
fn makes_a_read_only_file() {
    let (folder, root) = disk();
    let shown = Shown::new(root);
    // As git does with each object.
    let mut object = OpenOptions::new().write(true).create_new(true).mode(0o444).open(shown.path("object")).unwrap();
    object.write_all(b"blob").unwrap();
    drop(object);
    assert_eq!(fs::read(shown.path("object")).unwrap(), b"blob");
    assert_eq!(folder.path().join("object").metadata().unwrap().mode() & 0o7777, 0o444);
    let denied = OpenOptions::new().write(true).open(shown.path("object")).unwrap_err();
    assert_eq!(denied.raw_os_error(), Some(libc::EACCES));
    let git = "git init -q . && git config user.email a@b && git config user.name c && echo x > x && \
        git add x && git commit -q -m m && git log --oneline | wc -l && git status --short object && git fsck";
    let git = Command::new("sh").args(["-c", git]).current_dir(&*shown).env("HOME", folder.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&git.stdout), "1\n?? object\n", "{git:?}");
    assert!(git.status.success(), "{git:?}");
}

#[test]
fn access_tells_an_ordinary_user_the_truth() {
    as_user("users::access_is_the_truth");
}

#[test]
#[ignore = "started by another test, as another user"]
fn access_is_the_truth() {
    let (folder, root) = disk();
    for (name, mode) in [("rw", 0o600), ("ro", 0o400), ("x", 0o700), ("none", 0o000)] {
        fs::write(folder.path().join(name), b"").unwrap();
        fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let shown = Shown::new(root);
    for name in ["rw", "ro", "x", "none"] {
        for how in [Access::READ_OK, Access::WRITE_OK, Access::EXEC_OK] {
            let (real, seen) = (access(folder.path().join(name), how), access(shown.path(name), how));
            assert_eq!(real, seen, "{name} {how:?}");
        }
    }
}

#[test]
fn an_ordinary_user_has_a_stale_mount_cleaned() {
    as_user("users::cleans_a_stale_mount");
}

#[test]
#[ignore = "started by another test, as another user"]
fn cleans_a_stale_mount() {
    waiting::what_a_killed_daemon_left_is_cleaned_by_the_next_mount();
}

#[test]
fn another_users_files_are_not_opened_by_the_mount() {
    // The tree is served by root here: what protects the file is that the mount is its owner's alone.
    let (folder, _) = disk();
    fs::write(folder.path().join("secret"), b"").unwrap();
    let shown = Shown::new(Disk::open(folder.path(), DiskOptions::new([1; 32])).unwrap().root());
    let tried = Command::new("setpriv")
        .args(["--reuid", USER, "--regid", USER, "--clear-groups", "cat"])
        .arg(shown.path("secret"))
        .current_dir("/")
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&tried.stderr).contains("Permission denied"), "{tried:?}");
}
