//! A mount for every user of the machine, as root makes it of a tree that it serves itself. (pjdfstest asks for the
//! rest: tests/tests/pjdfstest.rs.)

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use super::*;

/// What `script` says, run by the shell as another user, who is in the group 100 too.
fn as_other(shown: &Shown, script: &str) -> String {
    assert!(rustix::process::geteuid().is_root(), "this test becomes another user: it must be run as root");
    let output = Command::new("setpriv")
        .args(["--reuid", "65534", "--regid", "65534", "--groups", "100", "sh", "-c", script])
        .current_dir(&**shown)
        .output()
        .unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn for_everyone() -> (TempDir, Shown) {
    let (folder, root) = disk();
    let shown = Shown::with(root, Options { all_users: true, ..Options::default() });
    for way in [folder.path(), shown.at.parent().unwrap()] {
        fs::set_permissions(way, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    (folder, shown)
}

#[test]
fn what_a_user_makes_in_a_mount_for_everyone_is_that_users() {
    let (folder, shown) = for_everyone();
    let said = as_other(&shown, "umask 0; echo x >f; mkdir d; ln -s f l; mkfifo p; : >d/g; chmod 4750 f; stat -c %A f");
    assert_eq!(said, "-rwsr-x---\n");
    for name in ["f", "d", "l", "p", "d/g"] {
        let is = folder.path().join(name).symlink_metadata().unwrap();
        assert_eq!((is.uid(), is.gid()), (65534, 65534), "{name}");
    }
    for change in ["echo y >>f", ": >f", "echo z 1<>f", "truncate -s 1 f"] {
        assert_eq!(as_other(&shown, &format!("chmod 4750 f && {change}")), "");
        let mode = folder.path().join("f").metadata().unwrap().mode();
        assert_eq!(mode & 0o7777, 0o750, "{change}: a write by an ordinary user takes the setuid bit away");
    }
}

#[test]
fn a_mount_for_everyone_gives_nobody_more_than_the_files_rights() {
    let (folder, shown) = for_everyone();
    fs::write(folder.path().join("secret"), "root's").unwrap();
    fs::set_permissions(folder.path().join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(folder.path().join("shared"), "group's").unwrap();
    std::os::unix::fs::chown(folder.path().join("shared"), None, Some(100)).unwrap();
    fs::set_permissions(folder.path().join("shared"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(as_other(&shown, "cat shared"), "group's");
    for (script, why) in [
        ("cat secret", "Permission denied"),
        ("echo x >secret", "Permission denied"),
        ("chown 65534 secret", "not permitted"),
        ("chmod 777 secret", "not permitted"),
        ("echo x >>shared", "Permission denied"),
    ] {
        let said = as_other(&shown, &format!("LC_ALL=C; export LC_ALL; {script}"));
        assert!(said.contains(why), "{script}: {said}");
    }
    assert_eq!(fs::read(folder.path().join("secret")).unwrap(), b"root's");
}

#[test]
fn a_file_that_came_to_be_behind_the_kernels_back_is_not_opened_without_its_rights() {
    let (folder, root) = disk();
    let options = Options { all_users: true, ttl: Duration::from_secs(3600), ..Options::default() };
    let shown = Shown::with(root, options);
    for way in [folder.path(), shown.at.parent().unwrap()] {
        fs::set_permissions(way, fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    for (name, mode, holds) in [("closed", 0o600, "root's here"), ("open", 0o666, "of a user\ne")] {
        let made = folder.path().join(name);
        let script = format!("test -e {name} && echo it is there; echo ready; read go; echo 'of a user' 1<>{name}");
        let mut child = Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "sh", "-c", &script])
            .current_dir(&*shown)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 6];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
        assert_eq!(&ready, b"ready\n", "the kernel has been told that there is no {name}");
        fs::write(&made, "root's here").unwrap();
        fs::set_permissions(&made, fs::Permissions::from_mode(mode)).unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(fs::read_to_string(&made).unwrap(), holds, "{name}: {output:?}");
        assert_eq!(made.metadata().unwrap().uid(), 0, "{name} is whose it was");
    }
}
