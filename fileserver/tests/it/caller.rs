//! What a node can reach of the caller's tree, at each level of trust: a hostile one tries.

use std::path::{Path, PathBuf};

use fileserver::caller::{Caller, Expose, Trust, rules};
use fileserver::{Access, Disk, DiskOptions, Ruled, Rules};
use p9::{Errno, How, NodeRef, SetAttr, Tree, Who};

use crate::common::*;

const LEVELS: [Trust; 3] = [Trust::Cwd, Trust::Home, Trust::All];

fn caller(home: &Path, cwd: &Path, level: Trust, expose: &[&str]) -> Caller {
    let expose = expose.iter().map(|text| text.parse::<Expose>().unwrap()).collect();
    let slashn_homes = vec![home.join(".config/slashn")];
    Caller { home: home.into(), cwd: cwd.into(), slashn_homes, uid: 1000, gid: 1000, level, expose }
}

/// The rules of a user who has no directory here.
fn of(cwd: &str, level: Trust, expose: &[&str]) -> Rules {
    rules(&caller("/home/nobody-here".as_ref(), &Path::new("/home/nobody-here").join(cwd), level, expose))
}

fn access(rules: &Rules, path: &str) -> Access {
    rules.access(Path::new("/home/nobody-here").join(path))
}

#[test]
fn the_working_tree_is_written_and_the_system_read() {
    let cwd = of("work", Trust::Cwd, &[]);
    assert_eq!(access(&cwd, "work/a/b"), Access::ReadWrite);
    assert_eq!(access(&cwd, "/usr/bin/cc"), Access::ReadOnly);
    for path in ["other", ".bashrc", ".cache", "/tmp/x", "/srv", "/home/else"] {
        assert_eq!(access(&cwd, path), Access::Absent, "{path}");
    }
    let home = of("work", Trust::Home, &[]);
    assert_eq!(access(&home, "work/a/b"), Access::ReadWrite);
    for path in ["other", ".bashrc", ".cache/pip", "/tmp/x", "/usr/lib"] {
        assert_eq!(access(&home, path), Access::ReadOnly, "{path}");
    }
    assert_eq!(access(&home, "/srv"), Access::Absent);
    let all = of("work", Trust::All, &[]);
    for path in ["other", ".bashrc", "/srv", "/tmp/x"] {
        assert_eq!(access(&all, path), Access::ReadWrite, "{path}");
    }
}

#[test]
fn keys_and_sessions_are_absent_at_every_level() {
    for level in LEVELS {
        for cwd in ["work", "", "/", "/home", ".ssh", ".ssh/old", ".gnupg"] {
            let rules = of(cwd, level, &[]);
            for path in [
                ".ssh/id_ed25519",
                ".gnupg/x",
                ".aws/credentials",
                ".local/share/keyrings/login.keyring",
                ".mozilla/firefox",
                ".config/chromium/Default",
                ".config/slashn/id_ed25519",
                "/run/user/1000/bus",
                "/proc/1/environ",
                "/dev/mem",
                "/etc/shadow",
            ] {
                assert_eq!(access(&rules, path), Access::Absent, "{level} {cwd:?} {path}");
            }
            for path in ["/run", "/proc", "/sys", "/dev"] {
                assert_eq!(access(&rules, path), Access::Empty, "{level} {cwd:?} {path}");
            }
        }
    }
}

#[test]
fn what_runs_at_login_is_written_only_with_all_trust() {
    for level in [Trust::Cwd, Trust::Home] {
        for cwd in ["", ".config/fish", "bin/../.config", ".local/bin"] {
            for expose in
                [&[][..], &["/home/nobody-here"], &["/home/nobody-here/.bashrc", "/home/nobody-here/.config/fish/x"]]
            {
                let rules = of(cwd, level, expose);
                for path in [".bashrc", ".profile", ".config/fish/x", ".local/bin/ls", ".gitconfig", ".vim/plugin"] {
                    assert_ne!(access(&rules, path), Access::ReadWrite, "{level} {cwd:?} {expose:?} {path}");
                }
            }
        }
    }
    assert_eq!(access(&of("", Trust::Home, &[]), "work"), Access::ReadWrite);
}

#[test]
fn a_working_directory_that_is_the_system_or_everything_is_only_read() {
    for (cwd, path) in [("/", "/srv"), ("/home", "/home/else"), ("/usr/src", "/usr/src/x"), ("/etc", "/etc/passwd")] {
        assert_eq!(access(&of(cwd, Trust::Home, &[]), path), Access::ReadOnly, "{cwd}");
    }
}

#[test]
fn what_is_exposed_by_name_is_there() {
    let expose = ["/home/nobody-here/.ssh/config:ro", "/run/user/1000/pulse", "/srv/data", ".aws"];
    for level in LEVELS {
        let rules = of("", level, &expose);
        assert_eq!(access(&rules, ".ssh/config"), Access::ReadOnly);
        assert_eq!(access(&rules, ".ssh/id_ed25519"), Access::Absent);
        assert_eq!(access(&rules, "/run/user/1000/pulse/native"), Access::ReadWrite);
        assert_eq!(access(&rules, "/run/user/1000/bus"), Access::Absent);
        assert_eq!(access(&rules, "/srv/data/x"), Access::ReadWrite);
        assert_eq!(access(&rules, ".aws/credentials"), Access::ReadWrite);
    }
    // The whole home is, but for what is not in it by name.
    let rules = of("work", Trust::Cwd, &["/home/nobody-here"]);
    assert_eq!((access(&rules, "other"), access(&rules, ".ssh/id")), (Access::ReadWrite, Access::Absent));
}

#[test]
fn a_level_of_trust_is_one_word() {
    for level in LEVELS {
        assert_eq!(level.to_string().parse(), Ok(level));
    }
    assert!("most".parse::<Trust>().is_err());
    assert_eq!(Trust::default(), Trust::Home);
}

#[test]
fn a_rule_holds_where_a_link_leads() {
    let dir = tempfile::tempdir().unwrap();
    let real = dir.path().canonicalize().unwrap();
    std::fs::create_dir_all(real.join("data/keys")).unwrap();
    std::os::unix::fs::symlink("data", real.join("home")).unwrap();
    std::os::unix::fs::symlink("keys", real.join("data/.ssh")).unwrap();
    let rules = rules(&caller(&real.join("home"), &real.join("home"), Trust::All, &[]));
    for path in ["home/.ssh/id", "data/.ssh/id", "data/keys/id", "data/.gnupg/x", "home/.gnupg/x"] {
        assert_eq!(rules.access(real.join(path)), Access::Absent, "{path}");
    }
}

/// The root of this machine as a node that is trusted this far sees it, and a home in it.
async fn hostile(level: Trust, cwd: &str) -> (tempfile::TempDir, PathBuf, NodeRef) {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().canonicalize().unwrap();
    for (path, text) in [(".ssh/id_ed25519", "key"), (".bashrc", "start"), ("work/f", "work"), ("notes", "notes")] {
        std::fs::create_dir_all(home.join(path).parent().unwrap()).unwrap();
        std::fs::write(home.join(path), text).unwrap();
    }
    let disk = Disk::open("/".as_ref(), DiskOptions::new([7; 32])).unwrap();
    let tree = Ruled::new(disk, rules(&caller(&home, &home.join(cwd), level, &[])));
    let root = tree.attach(&Who::owner(), b"").await.unwrap();
    (dir, home, root)
}

#[tokio::test]
async fn a_hostile_node_gets_no_key_and_changes_no_start_up_file() {
    for (level, cwd) in [(Trust::Cwd, "work"), (Trust::Home, "work"), (Trust::Home, "")] {
        let (_dir, home, root) = hostile(level, cwd).await;
        let at = |path: &str| home.join(path).to_str().unwrap().to_owned();
        assert_eq!(walk(&root, &at(".ssh/id_ed25519")).await.err(), Some(Errno::ENOENT));
        assert_eq!(cat(&root, &at("work/f")).await.unwrap(), "work");
        put(&walk(&root, &at("work")).await.unwrap(), "new", "new").await.unwrap();
        if level == Trust::Cwd {
            assert_eq!(walk(&root, &at(".bashrc")).await.err(), Some(Errno::ENOENT));
            continue;
        }
        let start = walk(&root, &at(".bashrc")).await.unwrap();
        assert_eq!(start.open(How::WRITE).await.err(), Some(Errno::EROFS));
        assert_eq!(start.set_attr(SetAttr { mode: Some(0o777), ..SetAttr::default() }).await.err(), Some(Errno::EROFS));
        let user = walk(&root, &at("")).await.unwrap();
        assert!(!ls(&user).await.contains_key(".ssh"));
        assert_eq!(user.remove(name(".bashrc"), false).await.err(), Some(Errno::EROFS));
        assert_eq!(user.rename(name("notes"), &user, name(".bashrc"), 0).await.err(), Some(Errno::EROFS));
        assert_eq!(std::fs::read_to_string(home.join(".bashrc")).unwrap(), "start");
    }
}

#[tokio::test]
async fn the_kernels_windows_are_empty() {
    let (_dir, _home, root) = hostile(Trust::All, "work").await;
    for path in ["proc", "sys", "dev"] {
        assert!(ls(&walk(&root, path).await.unwrap()).await.is_empty(), "{path}");
        assert_eq!(walk(&root, &format!("{path}/self")).await.err(), Some(Errno::ENOENT));
    }
}
