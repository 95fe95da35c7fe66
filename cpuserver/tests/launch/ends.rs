//! How jobs end, and that nothing outlives them.
//!
//! Each process of a job holds its standard output, so reading that to its end is seeing the last of them go.

use std::io::Read;

use cpuserver::launch::{Error, Exit, JobSpec};

use crate::job::{Started, run, script, start, unserved, within};
use crate::{Test, root};

pub(crate) const TESTS: &[Test] = &[
    ("nothing_outlives_the_program", nothing_outlives_the_program),
    ("nothing_outlives_the_program_without_a_pid_namespace", nothing_outlives_it_without_a_pid_namespace),
    ("a_dropped_job_dies", a_dropped_job_dies),
    ("a_dropped_job_dies_without_a_pid_namespace", a_dropped_job_dies_without_a_pid_namespace),
    ("a_signal_reaches_the_program", a_signal_reaches_the_program),
    ("sigkill_reaches_every_process", sigkill_reaches_every_process),
    ("a_killed_init_takes_the_job_along", a_killed_init_takes_the_job_along),
    ("a_killed_launcher_takes_its_jobs_along", a_killed_launcher_takes_its_jobs_along),
    ("a_killed_mounter_takes_its_job_along", a_killed_mounter_takes_its_job_along),
    ("a_killed_watcher_is_missed_by_nobody", a_killed_watcher_is_missed_by_nobody),
    ("a_dropped_launcher_takes_its_jobs_along", a_dropped_launcher_takes_its_jobs_along),
    ("a_job_whose_root_nobody_serves_can_be_killed", a_job_whose_root_nobody_serves_can_be_killed),
    ("a_job_whose_root_goes_away_ends", a_job_whose_root_goes_away_ends),
];

/// Leaves a process in a session of its own behind, which nobody waits for and no signal ends politely.
const DAEMON: &str = "(setsid sh -c 'trap \"\" HUP TERM INT; echo up >&2; while :; do sleep 1000; done' &); ";

fn nothing_outlives_the_program() {
    let seen = run(&script(&format!("{DAEMON} exit 3")));
    assert_eq!(seen.exit, Ok(Exit::Code(3)));
}

fn shared(text: &str) -> JobSpec {
    JobSpec { own_pids: false, ..script(text) }
}

fn nothing_outlives_it_without_a_pid_namespace() {
    let seen = run(&shared(&format!("{DAEMON} {DAEMON} exit 3")));
    assert_eq!(seen.exit, Ok(Exit::Code(3)));
}

/// Waits until the job has said so on its standard output.
async fn running(launcher: &cpuserver::launch::Launcher, spec: &JobSpec) -> Started {
    let mut started = start(launcher, spec).await.unwrap();
    started.job.running().await.unwrap();
    started
}

fn a_dropped_job_dies() {
    within(async |launcher| {
        let started = running(&launcher, &script(&format!("{DAEMON} sleep 1000"))).await;
        drop(started.job);
        started.stdout.await.unwrap();
    });
}

fn a_dropped_job_dies_without_a_pid_namespace() {
    within(async |launcher| {
        let started = running(&launcher, &shared(&format!("{DAEMON} sleep 1000"))).await;
        drop(started.job);
        started.stdout.await.unwrap();
    });
}

fn a_signal_reaches_the_program() {
    within(async |launcher| {
        for (name, number) in [("TERM", libc::SIGTERM), ("USR1", libc::SIGUSR1), ("HUP", libc::SIGHUP)] {
            // A builtin waits, so that the trap runs at once; the line tells that it is set.
            let text = format!("trap 'exit 7' {name}; echo set; read line");
            let (far_in, near_in) = std::io::pipe().unwrap();
            let (mut near_out, far_out) = std::io::pipe().unwrap();
            let stdio = [far_in.into(), far_out.try_clone().unwrap().into(), far_out.into()];
            let mut job = launcher.start_job(&script(&text), stdio).await.unwrap();
            let _mount = root::serve(job.take_fuse().unwrap()).await;
            job.running().await.unwrap();
            tokio::task::spawn_blocking(move || near_out.read_exact(&mut [0; 4])).await.unwrap().unwrap();
            job.kill(number).unwrap();
            assert_eq!(job.wait().await, Ok(Exit::Code(7)), "{name}");
            assert!(job.kill(number).is_err());
            drop(near_in);
        }
    });
}

fn sigkill_reaches_every_process() {
    within(async |launcher| {
        for spec in [script(&format!("{DAEMON} sleep 1000")), shared(&format!("{DAEMON} sleep 1000"))] {
            let started = running(&launcher, &spec).await;
            started.job.kill(libc::SIGKILL).unwrap();
            let seen = started.over().await;
            assert_eq!(seen.exit, Ok(Exit::Signal { number: libc::SIGKILL, core: false }));
        }
    });
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn parent(pid: i32) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap()
}

fn a_killed_init_takes_the_job_along() {
    within(async |launcher| {
        for spec in [script(&format!("{DAEMON} sleep 1000")), shared(&format!("{DAEMON} sleep 1000"))] {
            let started = running(&launcher, &spec).await;
            kill(started.job.init());
            let seen = started.over().await;
            assert_eq!(seen.exit, Ok(Exit::Signal { number: libc::SIGKILL, core: false }));
        }
    });
}

fn a_killed_launcher_takes_its_jobs_along() {
    within(async |launcher| {
        for make in [script, shared] {
            let a = running(&launcher, &make(&format!("{DAEMON} sleep 1000"))).await;
            let b = running(&launcher, &make(&format!("{DAEMON} sleep 1000"))).await;
            kill(parent(parent(a.job.init())));
            for started in [a, b] {
                assert_eq!(started.over().await.exit, Err(Error::LauncherGone));
            }
            let next = start(&launcher, &make("exit 5")).await.unwrap().over().await;
            assert_eq!(next.exit, Ok(Exit::Code(5)), "another launcher was started");
        }
    });
}

fn a_killed_mounter_takes_its_job_along() {
    within(async |launcher| {
        for make in [script, shared] {
            let other = running(&launcher, &make("read line; exit 5")).await;
            let started = running(&launcher, &make(&format!("{DAEMON} sleep 1000"))).await;
            kill(parent(started.job.init()));
            assert_eq!(started.over().await.exit, Err(Error::LauncherGone));
            assert_eq!(other.over().await.exit, Ok(Exit::Code(5)), "the other job goes on");
        }
    });
}

fn a_killed_watcher_is_missed_by_nobody() {
    within(async |launcher| {
        let started = running(&launcher, &script("read line; exit 5")).await;
        kill(parent(parent(parent(started.job.init()))));
        let next = start(&launcher, &script("exit 6")).await.unwrap().over().await;
        assert_eq!((started.over().await.exit, next.exit), (Ok(Exit::Code(5)), Ok(Exit::Code(6))));
    });
}

fn a_dropped_launcher_takes_its_jobs_along() {
    for make in [script, shared] {
        within(async |launcher| {
            let started = running(&launcher, &make(&format!("{DAEMON} sleep 1000"))).await;
            drop(launcher);
            assert_eq!(started.over().await.exit, Err(Error::LauncherGone));
        });
    }
}

fn a_job_whose_root_nobody_serves_can_be_killed() {
    within(async |launcher| {
        for spec in [script("true"), shared("true")] {
            let started = unserved(&launcher, &spec).await.unwrap();
            started.job.kill(libc::SIGTERM).unwrap();
            let seen = started.over().await;
            assert_eq!(seen.exit, Ok(Exit::Signal { number: libc::SIGKILL, core: false }));
            let mut dropped = unserved(&launcher, &spec).await.unwrap();
            let fuse = dropped.job.take_fuse(); // held, so that the mount stays
            drop(dropped.job);
            dropped.stdout.await.unwrap();
            drop(fuse);
        }
    });
}

fn a_job_whose_root_goes_away_ends() {
    within(async |launcher| {
        let mut started = unserved(&launcher, &script("true")).await.unwrap();
        drop(started.job.take_fuse());
        let seen = started.over().await;
        assert!(matches!(seen.exit, Err(Error::Mount { .. })), "{seen:?}");
    });
}
