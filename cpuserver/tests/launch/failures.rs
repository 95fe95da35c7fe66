//! Why a program did not run, and what can be done.

use cpuserver::launch::{Error, Exit, JobSpec};

use crate::Test;
use crate::job::{Seen, file, run, scratch, script, spec, start, within};

pub(crate) const TESTS: &[Test] = &[
    ("a_program_that_is_not_there_is_named", a_program_that_is_not_there_is_named),
    ("a_file_that_may_not_be_executed_is_named", a_file_that_may_not_be_executed_is_named),
    ("a_missing_interpreter_is_named", a_missing_interpreter_is_named),
    ("a_missing_loader_is_named", a_missing_loader_is_named),
    ("a_program_for_another_machine_is_named", a_program_for_another_machine_is_named),
    ("a_script_without_a_first_line_is_run_by_sh", a_script_without_a_first_line_is_run_by_sh),
    ("the_search_goes_on_behind_what_cannot_be_run", the_search_goes_on_behind_what_cannot_be_run),
    ("a_directory_that_is_not_there_is_named", a_directory_that_is_not_there_is_named),
    ("a_request_that_makes_no_sense_is_refused", a_request_that_makes_no_sense_is_refused),
];

/// As a user to whom /dev/fuse is closed.
pub(crate) const STRANGER_TESTS: &[Test] = &[("a_closed_dev_fuse_is_named", a_closed_dev_fuse_is_named)];

/// Where no user namespace can be made.
pub(crate) const CONFINED_TESTS: &[Test] = &[("refused_user_namespaces_are_named", refused_user_namespaces_are_named)];

fn error(seen: Seen) -> Error {
    assert_eq!((seen.stdout.as_str(), seen.stderr.as_str()), ("", ""), "what failed to start prints nothing");
    seen.exit.unwrap_err()
}

fn a_program_that_is_not_there_is_named() {
    for name in ["no-such-program", "/no/such/program", "/etc/passwd/x"] {
        let error = error(run(&spec(&[name])));
        assert_eq!(error, Error::NotFound { program: name.into() });
        assert_eq!((error.exit_code(), error.to_string()), (127, format!("{name}: not found")));
    }
}

fn a_file_that_may_not_be_executed_is_named() {
    let dir = scratch();
    let plain = file(dir.path(), "plain", "#!/bin/sh\n", 0o644);
    for (path, why) in [(plain.as_str(), "no execute bit"), ("/etc", "directory")] {
        let error = error(run(&spec(&[path])));
        assert!(matches!(&error, Error::NotExecutable { program, .. } if program == path), "{error:?}");
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(error.exit_code(), 126);
    }
}

fn a_missing_interpreter_is_named() {
    let dir = scratch();
    let path = file(dir.path(), "script", "#!/no/such/python -u\n", 0o755);
    let error = error(run(&spec(&[&path])));
    assert_eq!(error, Error::Interpreter { program: path, missing: "/no/such/python".into() });
    assert_eq!(error.exit_code(), 126);
}

/// A copy of `true` with some of its bytes replaced.
fn altered(dir: &std::path::Path, alter: impl FnOnce(&mut Vec<u8>)) -> String {
    let path = dir.join("altered");
    std::fs::copy("/usr/bin/true", &path).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    alter(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

fn a_missing_loader_is_named() {
    let dir = scratch();
    let path = altered(dir.path(), |bytes| {
        let at = bytes.windows(5).position(|part| part == b"/lib/" || part == b"/lib6").unwrap();
        bytes[at + 1..at + 4].copy_from_slice(b"nil");
    });
    let error = error(run(&spec(&[&path])));
    assert!(matches!(&error, Error::Interpreter { missing, .. } if missing.starts_with("/nil")), "{error:?}");
}

fn a_program_for_another_machine_is_named() {
    let dir = scratch();
    // One that nobody has an emulator for.
    let path = altered(dir.path(), |bytes| bytes[18..20].copy_from_slice(&[50, 0]));
    let error = error(run(&spec(&[&path])));
    let own = std::env::consts::ARCH.to_owned();
    assert_eq!(error, Error::Foreign { program: path, architecture: "ia64".into(), own });
    assert_eq!(error.exit_code(), 126);
}

fn a_script_without_a_first_line_is_run_by_sh() {
    let dir = scratch();
    let path = file(dir.path(), "script", "echo $0 $1\n", 0o755);
    let seen = run(&spec(&[&path, "argument"]));
    assert_eq!(seen.stdout, format!("{path} argument\n"));
}

fn the_search_goes_on_behind_what_cannot_be_run() {
    let (first, second) = (scratch(), scratch());
    file(first.path(), "tool", "", 0o644);
    let path = format!("PATH=/no/such:{}:{}", first.path().display(), second.path().display());
    let with_path = || JobSpec { env: vec![path.clone().into_bytes()], ..spec(&["tool"]) };
    let denied = error(run(&with_path()));
    assert!(matches!(denied, Error::NotExecutable { .. }), "{denied:?}");
    file(second.path(), "tool", "#!/bin/sh\necho second\n", 0o755);
    assert_eq!(run(&with_path()).stdout, "second\n");
}

fn a_directory_that_is_not_there_is_named() {
    let error = error(run(&JobSpec { cwd: b"/no/such/dir".to_vec(), ..script("true") }));
    assert!(matches!(&error, Error::Cwd { path, .. } if path == "/no/such/dir"), "{error:?}");
    assert_eq!(error.exit_code(), 255);
}

fn a_request_that_makes_no_sense_is_refused() {
    within(async |launcher| {
        let bad = [
            spec(&[]),
            spec(&["sh\0x"]),
            JobSpec { env: vec![b"nothing".to_vec()], ..script("true") },
            JobSpec { hostname: Some("x".repeat(100)), ..script("true") },
        ];
        for spec in bad {
            let refused = start(&launcher, &spec).await.err();
            assert!(matches!(refused, Some(Error::Request { .. } | Error::Setup { .. })), "{refused:?}");
        }
        let next = start(&launcher, &script("exit 5")).await.unwrap().over().await;
        assert_eq!(next.exit, Ok(Exit::Code(5)), "the launcher goes on");
    });
}

fn a_closed_dev_fuse_is_named() {
    let error = within(async |launcher| start(&launcher, &script("true")).await.err().unwrap());
    assert!(matches!(error, Error::Fuse { .. }), "{error:?}");
    assert!(error.remedy().unwrap().contains("/dev/fuse"));
}

fn refused_user_namespaces_are_named() {
    let spec = JobSpec { user_ns: true, ..script("true") };
    let error = within(async |launcher| start(&launcher, &spec).await.err().unwrap());
    assert!(matches!(error, Error::UserNamespace { .. }), "{error:?}");
    assert_eq!(error.remedy().as_deref(), Some("sysctl user.max_user_namespaces=10000"));
}
