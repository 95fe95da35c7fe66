//! What the kernel mounts over a job's root.

use std::os::unix::fs::symlink;

use cpuserver::launch::{JobMount, JobSpec};

use crate::Test;
use crate::job::{file, output, run, scratch, script, start, within};

pub(crate) const TESTS: &[Test] = &[
    ("dev_has_what_programs_expect_and_no_more", dev_has_what_programs_expect_and_no_more),
    ("terminals_can_be_made", terminals_can_be_made),
    ("sys_cannot_be_written", sys_cannot_be_written),
    ("memory_file_systems_are_the_jobs_own", memory_file_systems_are_the_jobs_own),
    ("a_file_of_this_machine_is_bound_over_the_callers", a_file_is_bound_over_the_callers),
    ("a_link_to_a_missing_file_in_a_private_directory_is_followed", a_link_into_a_private_directory_is_followed),
    ("what_is_missing_is_noted_and_not_made", what_is_missing_is_noted_and_not_made),
    ("without_a_pid_namespace_proc_is_the_machines", without_a_pid_namespace_proc_is_the_machines),
];

/// Where the kernel refuses another /proc.
pub(crate) const CONTAINED_TESTS: &[Test] = &[(
    "a_job_starts_without_a_pid_namespace_where_its_proc_is_refused",
    a_job_starts_without_a_pid_namespace_where_its_proc_is_refused,
)];

fn dev_has_what_programs_expect_and_no_more() {
    let text = output(&script("ls /dev"));
    let names: Vec<&str> = text.lines().collect();
    let expected = "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero";
    assert_eq!(names.join(" "), expected);
    let text =
        "echo x >/dev/null && head -c 3 /dev/zero | wc -c && head -c 3 /dev/urandom | wc -c && echo y >/dev/stdout";
    assert_eq!(output(&script(text)), "3\n3\ny\n");
    let full = run(&script("cat /etc/passwd >/dev/full"));
    assert!(full.stderr.contains("No space left"), "{full:?}");
}

fn terminals_can_be_made() {
    let text = "script -qec 'tty' /dev/null </dev/null";
    assert_eq!(output(&script(text)), "/dev/pts/0\r\n");
}

fn sys_cannot_be_written() {
    let seen = run(&script("test -d /sys/class && : >/sys/kernel/uevent_seqnum"));
    assert!(seen.stderr.contains("Read-only") || seen.stderr.contains("Permission denied"), "{seen:?}");
    let mounts = output(&script("grep ' /sys' /proc/self/mountinfo"));
    assert!(!mounts.is_empty());
    assert!(mounts.lines().all(|line| line.split(' ').nth(5).unwrap().starts_with("ro,")), "{mounts}");
}

fn memory_file_systems_are_the_jobs_own() {
    let spec = script("echo 1 >/run/x && echo 2 >/dev/shm/x && cat /run/x /dev/shm/x && stat -c %a /run /dev/shm");
    assert_eq!(output(&spec), "1\n2\n755\n1777\n");
    assert_eq!(output(&script("ls /run; ls /dev/shm")), "", "another job finds them empty");
}

fn with(bind: JobMount, text: &str) -> JobSpec {
    let mut spec = script(text);
    spec.mounts.push(bind);
    spec
}

fn a_file_is_bound_over_the_callers() {
    let dir = scratch();
    let (ours, theirs) = (file(dir.path(), "ours", "node\n", 0o644), file(dir.path(), "theirs", "caller\n", 0o644));
    for read_only in [true, false] {
        let bind = JobMount::Bind { from: ours.clone().into(), at: theirs.clone().into(), read_only };
        let text = format!("cat {theirs}; (echo changed >{theirs}) 2>/dev/null && echo writable; true");
        let seen = output(&with(bind, &text));
        assert_eq!(seen, if read_only { "node\n" } else { "node\nwritable\n" });
    }
    assert_eq!(std::fs::read_to_string(ours).unwrap(), "changed\n");
    assert_eq!(std::fs::read_to_string(theirs).unwrap(), "caller\n");
}

fn a_link_into_a_private_directory_is_followed() {
    let dir = scratch();
    let ours = file(dir.path(), "ours", "node\n", 0o644);
    let link = dir.path().join("resolv.conf");
    symlink("/run/no-such/deep/stub.conf", &link).unwrap();
    let bind = JobMount::Bind { from: ours.into(), at: link.clone(), read_only: true };
    let text = format!("cat {} /run/no-such/deep/stub.conf", link.display());
    assert_eq!(output(&with(bind, &text)), "node\nnode\n");
}

fn what_is_missing_is_noted_and_not_made() {
    let dir = scratch();
    let ours = file(dir.path(), "ours", "node\n", 0o644);
    let absent = dir.path().join("absent");
    let mut spec = script("echo runs");
    spec.mounts.push(JobMount::Bind { from: ours.into(), at: absent.clone(), read_only: true });
    spec.mounts.push(JobMount::Bind { from: absent.clone(), at: "/etc/hostname".into(), read_only: true });
    let seen = run(&spec);
    assert_eq!(seen.stdout, "runs\n");
    assert_eq!(seen.notes.len(), 2, "{seen:?}");
    assert!(seen.notes.iter().all(|note| note.contains("absent")), "{seen:?}");
    assert!(!absent.exists());
}

fn without_a_pid_namespace_proc_is_the_machines() {
    let spec = JobSpec { own_pids: false, ..script("test $$ -gt 2 && test -d /proc/self/fd && echo $PPID") };
    assert_ne!(output(&spec), "1\n");
}

fn a_job_starts_without_a_pid_namespace_where_its_proc_is_refused() {
    within(async |launcher| {
        for _ in 0..2 {
            let started = start(&launcher, &script("echo $PPID")).await.unwrap();
            assert!(!started.job.own_pids());
            let init = started.job.init();
            assert_eq!(started.over().await.stdout, format!("{init}\n"));
        }
    });
}
