//! Commands that really run: namespaces, FUSE roots, streams, exits. Needs root, or user namespaces and /dev/fuse.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and its main prints")]

#[path = "jobs/harness.rs"]
mod harness;
#[path = "jobs/node.rs"]
mod node;

use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;

use cpuserver::client::{Error, Event, Exit, Request, node_root_ns, start_detached};

use node::{Node, Run, command, sh, until};

fn main() -> ExitCode {
    harness::main(harness::tests! {
        a_command_runs_by_cat_and_echo
        a_command_has_the_callers_files_directory_environment_and_umask
        exit_statuses_and_signals_are_exact
        input_and_output_pass_through_and_stay_apart
        much_output_arrives_whole
        a_program_that_is_missing_or_is_none_is_told_apart
        a_directory_that_is_not_there_is_named
        files_made_in_tmp_are_the_nodes_and_go_with_the_session
        the_nodes_own_proc_and_dev_are_there
        inside_the_callers_ids_are_shown
        a_signal_reaches_the_command
        a_command_ends_with_its_session
        a_lost_connection_is_no_exit_and_ends_the_command
        a_detached_command_outlives_its_session_and_can_be_asked
        a_detached_command_that_is_interrupted_while_it_starts_does_not_go_on
        a_terminal_has_a_size_and_takes_an_end_of_input
        what_it_used_is_told
        a_command_that_needs_more_memory_than_it_may_have_is_told_so
        processes_and_processors_are_bounded
        what_a_killed_node_left_of_groups_the_next_one_removes
        a_command_whose_time_is_over_is_ended_and_told_so
        with_the_nodes_root_the_callers_directories_are_where_they_were
        all_of_this_works_for_an_ordinary_user
    })
}

async fn a_command_runs_by_cat_and_echo() {
    let node = Node::new().await;
    let (n, clone) = node.session().await;
    node.put(&format!("cpu/{n}/args"), "uname -n\n").await;
    node.put(&format!("cpu/{n}/ctl"), "exec\n").await;
    assert_eq!(node.text(&format!("cpu/{n}/stdout")).await, "beta\n");
    let wait = node.text(&format!("cpu/{n}/wait")).await;
    assert!(wait.starts_with("exit 0\nreal "), "{wait}");
    assert_eq!(node.text(&format!("cpu/{n}/status")).await, "exit 0\n");
    clone.close().await.unwrap();
}

async fn a_command_has_the_callers_files_directory_environment_and_umask() {
    let node = Node::new().await;
    let here = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::write(here.path().join("mine"), "what I wrote").unwrap();
    let mut command = sh("pwd; cat mine; echo; echo $WORD; umask; echo made >new; cat /mnt/term/$PWD/mine");
    command.cwd = here.path().to_str().unwrap().into();
    command.env.push(b"WORD=spoken".to_vec());
    command.umask = 0o27;
    let run = node.run(command).await;
    let expected = format!("{}\nwhat I wrote\nspoken\n0027\nwhat I wrote", here.path().display());
    assert_eq!((run.exit(), run.stdout.as_str(), run.stderr.as_str()), (Exit::Code(0), expected.as_str(), ""));
    assert_eq!(std::fs::read_to_string(here.path().join("new")).unwrap(), "made\n");
}

async fn exit_statuses_and_signals_are_exact() {
    let node = Node::new().await;
    for (script, exit) in [
        ("exit 0", Exit::Code(0)),
        ("exit 7", Exit::Code(7)),
        ("exit 255", Exit::Code(255)),
        ("kill -TERM $$", Exit::Signal { number: libc::SIGTERM, core: false }),
        ("kill -KILL $$", Exit::Signal { number: libc::SIGKILL, core: false }),
    ] {
        assert_eq!(node.run(sh(script)).await.exit(), exit, "{script}");
    }
}

async fn input_and_output_pass_through_and_stay_apart() {
    let node = Node::new().await;
    let run = node.run_with(sh("tr a-z A-Z; echo aside >&2"), b"some words\n").await;
    assert_eq!((run.exit(), run.stdout.as_str(), run.stderr.as_str()), (Exit::Code(0), "SOME WORDS\n", "aside\n"));
    // What a command does not read does not keep it.
    let much = vec![b'x'; 8 << 20];
    let run = node.run_with(sh("head -c 3"), &much).await;
    assert_eq!((run.exit(), run.stdout.as_str()), (Exit::Code(0), "xxx"));
}

async fn much_output_arrives_whole() {
    let node = Node::new().await;
    let run = node.run(sh("seq 1 2000000")).await;
    assert_eq!(run.exit(), Exit::Code(0));
    let expected: String = (1..=2_000_000).map(|n| format!("{n}\n")).collect();
    assert!(run.stdout == expected, "{} bytes of {}", run.stdout.len(), expected.len());
}

async fn a_program_that_is_missing_or_is_none_is_told_apart() {
    let node = Node::new().await;
    let here = tempfile::tempdir_in("/var/tmp").unwrap();
    let data = here.path().join("data");
    std::fs::write(&data, "no program").unwrap();
    for (program, code) in [("no-such-command", 127), (data.to_str().unwrap(), 126)] {
        let error = node.run(command(&[program])).await.result.unwrap_err();
        assert_eq!(error.exit_code(), code, "{error}");
        assert!(error.to_string().contains(program), "{error}");
    }
}

async fn a_directory_that_is_not_there_is_named() {
    let node = Node::new().await;
    let error = node.run(Request { cwd: b"/no/such".into(), ..sh("true") }).await.result.unwrap_err();
    assert_eq!(error.exit_code(), 255);
    assert!(error.to_string().contains("/no/such"), "{error}");
}

async fn files_made_in_tmp_are_the_nodes_and_go_with_the_session() {
    let node = Node::new().await;
    let seen = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    let mark = format!("slashn-made-{}", std::process::id());
    let script =
        format!("ls {0} && echo x >/tmp/{mark} && cat /tmp/{mark} && echo y >>/tmp/{mark}", seen.path().display());
    let run = node.run(sh(&script)).await;
    let expected = format!("{}\nx\n", seen.path().display());
    assert_eq!((run.exit(), run.stdout.as_str(), run.stderr.as_str()), (Exit::Code(0), expected.as_str(), ""));
    assert!(!std::path::Path::new("/tmp").join(mark).exists());
    node.until_idle().await;
    assert_eq!(std::fs::read_dir(node.tmp()).unwrap().count(), 0);
}

async fn the_nodes_own_proc_and_dev_are_there() {
    let node = Node::new().await;
    let script = "echo $$ | grep -vx 1 >/dev/null && test -d /proc/self/fd && echo x >/dev/null && test -d /sys/kernel \
                  && ls /dev/shm && touch /dev/shm/a /run/b && cat /etc/resolv.conf >/dev/null && ls /n/beta/fs";
    let run = node.run(sh(script)).await;
    assert_eq!((run.exit(), run.stdout.as_str(), run.stderr.as_str()), (Exit::Code(0), "own\n", ""));
}

async fn inside_the_callers_ids_are_shown() {
    let node = Node::new().await;
    let script = "id -u; id -g; echo x >/tmp/a; stat -c '%u %g' /tmp/a; echo y >>/tmp/a";
    let run = node.run(Request { user: Some((4321, 4321)), ..sh(script) }).await;
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("4321\n4321\n4321 4321\n", ""));
}

async fn a_signal_reaches_the_command() {
    let node = Node::new().await;
    let mut run = Run::start(&node, sh("trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.05; done"));
    run.until_output("ready\n").await;
    run.events.send(Event::Signal(libc::SIGUSR1)).await.unwrap();
    let run = run.end().await;
    assert_eq!((run.exit(), run.stdout.as_str()), (Exit::Code(3), "ready\ncaught\n"));
}

async fn a_command_ends_with_its_session() {
    let node = Node::new().await;
    let (n, clone) = node.session().await;
    node.put(&format!("cpu/{n}/args"), "sh -c 'sleep 1000 & sleep 1000'\n").await;
    node.put(&format!("cpu/{n}/ctl"), "exec\n").await;
    let pid: i32 = node.text(&format!("cpu/{n}/pid")).await.trim().parse().unwrap();
    assert!(node::exists(pid));
    clone.close().await.unwrap();
    drop(clone);
    until("the processes are gone", async || !node::exists(pid)).await;
    node.until_idle().await;
}

async fn a_lost_connection_is_no_exit_and_ends_the_command() {
    let node = Node::new().await;
    let mut run = Run::start(&node, sh("echo ready; sleep 1000"));
    run.until_output("ready\n").await;
    node.cut();
    let error = run.end().await.result.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    assert_eq!(error.exit_code(), 255);
    node.until_idle().await;
}

async fn a_detached_command_outlives_its_session_and_can_be_asked() {
    let node = Node::new().await;
    let (n, clone) = node.session().await;
    let script = "args sh -c 'read line; echo got $line; exit 5'\ndetach\nexec\n";
    clone.write(0, script.into()).await.unwrap();
    clone.close().await.unwrap();
    drop(clone);
    assert!(node.text(&format!("cpu/{n}/status")).await.starts_with("running "));
    node.put(&format!("cpu/{n}/stdin"), "word\n").await;
    assert!(node.text(&format!("cpu/{n}/wait")).await.starts_with("exit 5\n"));
    assert_eq!(node.text(&format!("cpu/{n}/stdout")).await, "got word\n");
}

async fn a_detached_command_that_is_interrupted_while_it_starts_does_not_go_on() {
    let node = Node::new().await;
    let (asked, was_asked) = tokio::sync::oneshot::channel();
    let (events, received) = tokio::sync::mpsc::channel(1);
    // The caller's files never come, so it starts for ever.
    let serve = |_id, _nonce| async move {
        asked.send(()).unwrap();
        Ok(())
    };
    let starting = tokio::spawn(start_detached(node.root(), serve, sh("sleep 1000"), received));
    was_asked.await.unwrap();
    events.send(Event::Signal(libc::SIGINT)).await.unwrap();
    let ended = starting.await.unwrap();
    assert!(matches!(ended, Err(Error::Interrupted(libc::SIGINT))), "{ended:?}");
    node.until_idle().await;
}

async fn what_it_used_is_told() {
    let node = Node::new().await;
    let here = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::write(here.path().join("data"), vec![7; 3 << 20]).unwrap();
    let script = format!("tr x y <{0}/data >{0}/copy; echo done", here.path().display());
    let run = node.run(sh(&script)).await;
    assert_eq!(run.exit(), Exit::Code(0));
    let used = &run.ended().used;
    let of = |name: &str| -> f64 {
        let mut words = used.split_whitespace().skip_while(|word| *word != name);
        words.nth(1).unwrap_or_else(|| panic!("no {name} in {used}")).parse().unwrap()
    };
    let size = f64::from(3 << 20);
    for (name, least) in [("real", 0.001), ("maxrss", 100.0), ("read", size), ("written", size)] {
        assert!(of(name) >= least, "{name}: {used}");
    }
    // Its files were the caller's: they came, and went back, over the wire.
    assert!(of("received") >= size && of("sent") >= size, "{used}");
}

/// Runs `command` with `limits`; gives what keeps them, as `stats` tells while it runs.
async fn limited(node: &Node, limits: &str, script: &str) -> (Run, String) {
    let script = format!("echo ready; read go; {script}");
    let command = Request { limits: limits.into(), ..sh(&script) };
    let (stdin, far) = tokio::io::duplex(64);
    let mut run = Run::begin(node, command, Box::new(far));
    run.until_output("ready\n").await;
    let stats = node.text(&format!("cpu/{}/stats", node.last_session())).await;
    let kept = stats.lines().find_map(|line| line.strip_prefix("limits ")).unwrap_or_default().to_owned();
    let mut stdin = stdin;
    tokio::io::AsyncWriteExt::write_all(&mut stdin, b"go\n").await.unwrap();
    (run.end().await, kept)
}

/// The control groups that are there for commands of this process.
fn groups() -> Vec<std::path::PathBuf> {
    let name = format!("slashn-job-{}-", std::process::id());
    let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut all: Vec<_> = hierarchies.collect();
    let mut found = Vec::new();
    while let Some(at) = all.pop() {
        for entry in std::fs::read_dir(&at).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&name) {
                found.push(entry.path());
            } else if entry.file_type().unwrap().is_dir() {
                all.push(entry.path());
            }
        }
    }
    found
}

async fn a_command_that_needs_more_memory_than_it_may_have_is_told_so() {
    let node = Node::new().await;
    let (run, kept) = limited(&node, "memory 40M\n", "head -c 400000000 /dev/zero | tail -c 300000000 | wc -c").await;
    assert!(run.stdout.ends_with("\n0\n"), "{}", run.stdout);
    match kept.strip_prefix("memory cgroup-") {
        Some(_) => {
            assert_eq!(run.ended().limit.as_deref(), Some("out of memory: 40960 KiB are allowed"));
            let used = &run.ended().used;
            let peak: u64 = used.split_once(" peak ").unwrap().1.split(' ').next().unwrap().parse().unwrap();
            assert!((20_000..=41_000).contains(&peak), "{used}");
        }
        // No more than each process can be bounded: it is told by itself.
        None => assert_eq!((kept.as_str(), run.stderr.contains("memory exhausted")), ("memory each-process", true)),
    }
    until("no group is left", async || groups().is_empty()).await;
}

async fn processes_and_processors_are_bounded() {
    let node = Node::new().await;
    let script = "nproc; for i in 1 2 3 4 5 6 7 8 9; do sleep 0.1 & done; echo none failed";
    let (run, kept) = limited(&node, "processes 6\ncpus 1\nio 10\n", script).await;
    // Root is bounded by a group alone.
    if kept.contains("processes cgroup") || rustix::process::geteuid().as_raw() != 0 {
        assert!(
            run.stderr.contains("ork") && !run.stdout.contains("none failed"),
            "{kept}: {} {}",
            run.stdout,
            run.stderr
        );
    }
    if kept.contains("cpus each-process") {
        assert!(run.stdout.contains("\n1\n"), "{}", run.stdout);
    }
    assert!(kept.starts_with("cpus ") && kept.contains(" io "), "{kept}");
    until("no group is left", async || groups().is_empty()).await;
}

async fn what_a_killed_node_left_of_groups_the_next_one_removes() {
    let node = Node::new().await;
    let (stdin, far) = tokio::io::duplex(64);
    let command = Request { limits: "processes 50\n".into(), ..sh("echo ready; read go") };
    let mut run = Run::begin(&node, command, Box::new(far));
    run.until_output("ready\n").await;
    let made = groups();
    drop(stdin);
    run.end().await;
    // Where no group is made none is left.
    for at in made {
        // Nobody has so high a number.
        let left = at.with_file_name("slashn-job-1999999999-1");
        std::fs::create_dir(&left).unwrap();
        let _next = Node::new().await;
        until("it is removed", async || !left.exists()).await;
    }
}

async fn a_command_whose_time_is_over_is_ended_and_told_so() {
    let node = Node::new().await;
    let run = node.run(Request { limits: "time 0.2\n".into(), ..sh("sleep 1000") }).await;
    assert_eq!(run.exit(), Exit::Signal { number: libc::SIGTERM, core: false });
    assert_eq!(run.ended().limit.as_deref(), Some("time: 0.2 s are over"));
}

async fn a_terminal_has_a_size_and_takes_an_end_of_input() {
    let node = Node::new().await;
    let script = "test -t 0 && test -t 1 && stty size; cat >/dev/null; echo over";
    let run = node.run_with(Request { terminal: Some((24, 80)), ..sh(script) }, b"").await;
    assert_eq!(run.exit(), Exit::Code(0));
    assert!(run.stdout.starts_with("24 80\r\n") && run.stdout.ends_with("over\r\n"), "{:?}", run.stdout);
}

async fn with_the_nodes_root_the_callers_directories_are_where_they_were() {
    let node = Node::new().await;
    let here = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::write(here.path().join("mine"), "mine\n").unwrap();
    let path = here.path().to_str().unwrap();
    let ns = node_root_ns("beta", &[path]);
    let run = node.run(Request { ns, cwd: path.into(), ..sh("cat mine; echo new >new") }).await;
    assert_eq!((run.exit(), run.stdout.as_str(), run.stderr.as_str()), (Exit::Code(0), "mine\n", ""));
    assert_eq!(std::fs::read_to_string(here.path().join("new")).unwrap(), "new\n");
}

/// Runs this program's other tests as a user who is not root, with a /dev/fuse that such a user may open.
async fn all_of_this_works_for_an_ordinary_user() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIPPED: these tests already run as an ordinary user");
        return;
    }
    let at = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::set_permissions(at.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::copy("/proc/self/exe", at.path().join("jobs")).unwrap();
    let script = "mknod -m 666 fuse c 10 229 && mount --bind fuse /dev/fuse \
                  && exec setpriv --reuid 12345 --regid 12345 --clear-groups ./jobs --skip all_of_this";
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["-m", "--propagation", "private", "sh", "-c", script]).current_dir(at.path());
    let done = tokio::task::spawn_blocking(move || unshare.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{text}{}", String::from_utf8_lossy(&done.stderr));
    assert!(text.contains("test a_command_runs_by_cat_and_echo ... ok"), "{text}");
}
