//! What a program finds when it starts.

use cpuserver::launch::{Exit, JobSpec};
use rustix::process::{getegid, geteuid};

use crate::job::{output, run, script, spec, start, within};
use crate::{Test, USER};

pub(crate) const TESTS: &[Test] = &[
    ("the_exit_status_is_exact", the_exit_status_is_exact),
    ("a_signal_that_ends_the_program_is_told", a_signal_that_ends_the_program_is_told),
    ("the_three_streams_are_the_ones_given", the_three_streams_are_the_ones_given),
    ("the_root_is_the_fuse_mount", the_root_is_the_fuse_mount),
    ("the_ids_are_the_ones_asked_for", the_ids_are_the_ones_asked_for),
    ("the_environment_is_the_one_given", the_environment_is_the_one_given),
    ("cwd_umask_limits_and_niceness_are_set", cwd_umask_limits_and_niceness_are_set),
    ("no_descriptor_and_no_ignored_signal_is_inherited", no_descriptor_and_no_ignored_signal_is_inherited),
    ("a_job_sees_only_its_own_processes", a_job_sees_only_its_own_processes),
    ("the_host_name_is_the_jobs_own", the_host_name_is_the_jobs_own),
    ("what_was_used_is_told", what_was_used_is_told),
    ("a_terminal_becomes_the_controlling_one", a_terminal_becomes_the_controlling_one),
    ("many_jobs_start_at_once", many_jobs_start_at_once),
];

pub(crate) const ROOT_TESTS: &[Test] = &[
    ("root_can_be_another_user_inside", root_can_be_another_user_inside),
    ("root_can_run_a_program_as_another_user", root_can_run_a_program_as_another_user),
];

fn the_exit_status_is_exact() {
    for status in [0, 1, 42, 127, 128, 255] {
        let seen = run(&script(&format!("exit {status}")));
        assert_eq!(seen.exit, Ok(Exit::Code(status)));
    }
}

fn a_signal_that_ends_the_program_is_told() {
    let core = 0; // whether one is dumped is up to the machine
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGSEGV, libc::SIGHUP] {
        let limits = vec![(libc::RLIMIT_CORE as i32, core, core)];
        let seen = run(&JobSpec { rlimits: limits, ..script(&format!("kill -{signal} $$")) });
        assert_eq!(seen.exit, Ok(Exit::Signal { number: signal, core: false }));
    }
}

fn the_three_streams_are_the_ones_given() {
    use std::io::Write;
    let seen = within(async |launcher| {
        let mut started = start(&launcher, &script("cat; echo apart >&2")).await.unwrap();
        started.stdin.write_all(b"line\n").unwrap();
        started.over().await
    });
    assert_eq!((seen.stdout.as_str(), seen.stderr.as_str()), ("line\n", "apart\n"));
}

fn the_root_is_the_fuse_mount() {
    let mounts = output(&spec(&["cat", "/proc/self/mountinfo"]));
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    assert!(root.contains("fuse.slashn"), "{root}");
    assert!(root.contains("nosuid") && root.contains("nodev"), "{root}");
    let places: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    assert_eq!(places.iter().filter(|place| **place == "/").count(), 1, "the old root is out of reach: {mounts}");
}

fn the_ids_are_the_ones_asked_for() {
    let text = output(&script("id -u; id -g"));
    assert_eq!(text, format!("{}\n{}\n", geteuid().as_raw(), getegid().as_raw()));
    let mapped = JobSpec { user_ns: true, inner_uid: 1234, inner_gid: 5678, ..script("id -u; id -g") };
    assert_eq!(output(&mapped), "1234\n5678\n");
}

fn the_environment_is_the_one_given() {
    let env = vec![b"PATH=/usr/bin:/bin".to_vec(), b"A=b c".to_vec(), b"EMPTY=".to_vec()];
    assert_eq!(output(&JobSpec { env, ..spec(&["env"]) }), "PATH=/usr/bin:/bin\nA=b c\nEMPTY=\n");
}

fn cwd_umask_limits_and_niceness_are_set() {
    let job = JobSpec {
        cwd: b"/usr/bin".to_vec(),
        umask: 0o027,
        rlimits: vec![(libc::RLIMIT_NOFILE as i32, 100, 200), (libc::RLIMIT_STACK as i32, 1 << 20, u64::MAX)],
        nice: 3,
        ..script("pwd; umask; ulimit -n; ulimit -Hn; ulimit -s; nice")
    };
    assert_eq!(output(&job), "/usr/bin\n0027\n100\n200\n1024\n3\n");
}

fn no_descriptor_and_no_ignored_signal_is_inherited() {
    // The directory being listed is the fourth.
    assert_eq!(output(&spec(&["ls", "/proc/self/fd"])), "0\n1\n2\n3\n");
    let masks = output(&spec(&["grep", "-E", "SigBlk|SigIgn", "/proc/self/status"]));
    assert!(masks.lines().all(|line| line.ends_with(":\t0000000000000000")), "{masks}");
}

fn a_job_sees_only_its_own_processes() {
    let text = output(&script("echo $$; cd /proc; echo [0-9]*"));
    assert_eq!(text, "2\n1 2\n");
    let closed = output(&script("cat /proc/1/environ 2>/dev/null || ls /proc/1/fd 2>/dev/null | wc -l"));
    assert!(geteuid().is_root() || closed == "0\n", "{closed}");
}

fn the_host_name_is_the_jobs_own() {
    let job = JobSpec { hostname: Some("beta".into()), ..spec(&["uname", "-n"]) };
    assert_eq!(output(&job), "beta\n");
}

fn what_was_used_is_told() {
    let seen = run(&script("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sh -c true"));
    assert!(seen.usage.max_rss_kib > 100, "{seen:?}");
    assert!(!(seen.usage.user + seen.usage.system).is_zero(), "{seen:?}");
}

fn a_terminal_becomes_the_controlling_one() {
    use std::io::Read;
    let text = within(async |launcher| {
        let near = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
        rustix::pty::unlockpt(&near).unwrap();
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NOCTTY | rustix::fs::OFlags::CLOEXEC;
        let far = rustix::pty::ioctl_tiocgptpeer(&near, rustix::pty::OpenptFlags::from_bits_retain(flags.bits()));
        let far = far.unwrap();
        let stdio = [far.try_clone().unwrap(), far.try_clone().unwrap(), far];
        let job = JobSpec { pty: true, ..script("tty; test -t 0 && (echo mine >/dev/tty)") };
        let mut job = launcher.start_job(&job, stdio).await.unwrap();
        let _mount = crate::root::serve(job.take_fuse().unwrap()).await;
        assert_eq!(job.wait().await, Ok(Exit::Code(0)));
        job.gone().await;
        let mut bytes = Vec::new();
        // A terminal whose other side is closed ends with EIO.
        let _ = std::fs::File::from(near).read_to_end(&mut bytes);
        String::from_utf8(bytes).unwrap()
    });
    assert_eq!(text, "/dev/console\r\nmine\r\n");
}

fn many_jobs_start_at_once() {
    within(async |launcher| {
        let mut jobs = tokio::task::JoinSet::new();
        for i in 0..24 {
            let launcher = launcher.clone();
            jobs.spawn(async move {
                let started = start(&launcher, &script(&format!("echo {i}"))).await.unwrap();
                assert_eq!(started.over().await.stdout, format!("{i}\n"));
            });
        }
        while let Some(end) = jobs.join_next().await {
            end.unwrap();
        }
    });
}

fn root_can_be_another_user_inside() {
    let job = JobSpec { user_ns: true, inner_uid: 1000, inner_gid: 1000, ..script("id -u; : >/run/x && echo made") };
    assert_eq!(output(&job), "1000\nmade\n");
}

fn root_can_run_a_program_as_another_user() {
    let text = "id -u; id -g; id -G; grep NoNewPrivs /proc/self/status; : >/dev/null && : >/dev/shm/x && echo made";
    let job = JobSpec { inner_uid: USER, inner_gid: USER, ..script(text) };
    assert_eq!(output(&job), format!("{USER}\n{USER}\n{USER}\nNoNewPrivs:\t1\nmade\n"));
}
