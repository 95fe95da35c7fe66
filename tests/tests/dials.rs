//! What a namespace may name as a server: programs, sockets, this machine's files, another machine by ssh.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tests::as_both;
use tests::machine::{Done, Machine, PATIENCE, Text};

as_both! {
    a_program_is_a_tree_and_is_started_again_when_it_died
    a_program_in_a_namespace_file_is_started_when_it_is_first_looked_into
    a_program_that_dies_in_the_middle_fails_that_request_and_is_not_started_for_ever
    a_program_that_speaks_no_9p_is_told_and_mounts_nothing
    sockets_and_local_files_are_mounted_by_their_dial_strings
    another_machine_is_reached_by_ssh_and_given_this_program_once
}

/// The example of the documentation, with one file more: whoever opens it ends the program.
fn hello(machine: &Machine) -> String {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/hello.py")).unwrap();
    let deadly = text.replacen("TREE = {\n", "TREE = {\n    \"die\": lambda: os._exit(3),\n", 1);
    assert_ne!(text, deadly);
    format!("exec!/usr/bin/python3 {}", machine.write("hello.py", &deadly).display())
}

fn at(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Binds `server` at `name` in the mount `n`.
fn bind(machine: &Machine, server: &str, n: &Path, name: &str) -> PathBuf {
    let old = n.join(name);
    machine.slashn(&["bind", server, at(&old)]).succeeds();
    old
}

fn cat(machine: &Machine, file: &Path) -> String {
    machine.run("cat", &[file]).text()
}

/// How many processes have `part` in their command line, asked until they are `count`.
fn settles(machine: &Machine, part: &str, count: usize) {
    let until = Instant::now() + PATIENCE;
    let there = || machine.processes().iter().filter(|line| line.contains(part)).count();
    while there() != count {
        assert!(Instant::now() < until, "not {count} of {part}: {:?}", machine.processes());
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn a_program_is_a_tree_and_is_started_again_when_it_died(mut machine: Machine) {
    let n = machine.mount();
    let there = bind(&machine, &hello(&machine), &n, "hello");
    assert_eq!(machine.run("ls", &[&there]).text(), "die\nhello\nself\ntime\n");
    assert_eq!(cat(&machine, &there.join("hello")), "hello, world\n");
    let first = cat(&machine, &there.join("self/pid"));
    assert_eq!(cat(&machine, &there.join("self/pid")), first);
    machine.command("cat").arg(there.join("none")).exits(1);
    machine.command("sh").args(["-c", &format!("echo x >{}/hello", there.display())]).exits(2);
    machine.kill("python3");
    let second = cat(&machine, &there.join("self/pid"));
    assert_ne!(first, second);
    settles(&machine, "python3", 1);
    // It ends when nothing names it any more, and nobody has it open.
    machine.slashn(&["bind", at(&there), at(&n.join("again"))]).succeeds();
    machine.slashn(&["unbind", at(&there)]).succeeds();
    assert_eq!(cat(&machine, &n.join("again/self/pid")), second);
    machine.slashn(&["unbind", at(&n.join("again"))]).succeeds();
    settles(&machine, "python3", 0);
    let there = bind(&machine, &hello(&machine), &n, "hello");
    assert_ne!(cat(&machine, &there.join("self/pid")), second);
    machine.slashn(&["unmount", at(&n)]).succeeds();
    settles(&machine, "python3", 0);
}

fn a_program_in_a_namespace_file_is_started_when_it_is_first_looked_into(mut machine: Machine) {
    let text =
        format!("mount -c local!/ /\nmount '{}' /n/hello\nmount '{}' /n/none self\n", hello(&machine), hello(&machine));
    machine.write("ns", &text);
    let n = machine.mount_as("n", &["--ns", "ns"]);
    assert_eq!(machine.run("ls", &["-l", at(&n)]).text().lines().count(), 3);
    settles(&machine, "python3", 0);
    assert_eq!(machine.run("ls", &[n.join("none")]).text(), "cwd\npid\n");
    assert_eq!(cat(&machine, &n.join("hello/hello")), "hello, world\n");
    settles(&machine, "python3", 1);
    assert_eq!(machine.slashn(&["ns", at(&n)]).succeeds().text(), text);
    machine.slashn(&["unmount", at(&n)]).succeeds();
    // Why one is not there is told by the namespace, until it is.
    let started = format!("exec!{}", machine.at("work/started").display());
    let text = text.replacen("exec!/usr/bin/python3", &started, 1);
    machine.write("ns", &text);
    machine.run("sh", &["-c", "printf '#!/bin/sh\nexit 3\n' >started; chmod 755 started"]);
    machine.mount_as("n", &["--ns", "ns"]);
    machine.command("ls").arg(n.join("hello")).exits(2);
    let told = machine.slashn(&["ns", at(&n)]).succeeds().text();
    let why = told.lines().find(|line| line.starts_with(&format!("# {started} "))).unwrap();
    assert!(why.ends_with(": exit status: 3, before it answered"), "{why}");
    assert_eq!(told.replace(&format!("{why}\n"), ""), text);
    machine.run("sh", &["-c", "printf '#!/bin/sh\nexec /usr/bin/python3 \"$@\"\n' >started"]);
    assert_eq!(cat(&machine, &n.join("hello/hello")), "hello, world\n");
    assert_eq!(machine.slashn(&["ns", at(&n)]).succeeds().text(), text);
}

fn a_program_that_dies_in_the_middle_fails_that_request_and_is_not_started_for_ever(mut machine: Machine) {
    let n = machine.mount();
    let there = bind(&machine, &hello(&machine), &n, "hello");
    machine.command("cat").arg(there.join("die")).exits(1);
    assert_eq!(cat(&machine, &there.join("hello")), "hello, world\n");
    let dies = format!("for i in 1 2 3 4 5 6 7 8; do cat {}/die; done; ls {}", there.display(), n.display());
    let done = machine.command("sh").args(["-c", &dies]).succeeds();
    assert_eq!(done.text(), "hello\n");
    let log = std::fs::read_to_string(machine.at("me/run/log")).unwrap();
    assert!(log.contains("it was tried 5 times within 10 s"), "{log}");
    settles(&machine, "python3", 0);
}

fn a_program_that_speaks_no_9p_is_told_and_mounts_nothing(mut machine: Machine) {
    let n = machine.mount();
    let old = n.join("x");
    for (program, part) in [
        ("exec!sh -c 'echo garbage, and more of it; sleep 1000'", "it said: garbage, and more of it"),
        ("exec!sh -c 'printf \"no \\001way\\n\"; exit 3'", "it said: no ?way"),
        ("exec!sh -c 'echo I cannot >&2; exit 3'", "exit status: 3, before it answered; it said: I cannot"),
        ("exec!cat /dev/zero", "it does not speak 9P"),
        ("exec!cat", "it does not speak 9P"),
        ("exec!sh -c 'exit 3'", "exit status: 3, before it answered"),
        ("exec!sh -c 'kill -9 $$'", "signal: 9 (SIGKILL), before it answered"),
        ("exec!/no/such", "exit status: 127, before it answered; it said: "),
        ("exec!sleep 1000", "it does not answer within 5 s"),
        ("exec!", "nothing follows exec!"),
        ("axec!x", "axec! is none of tls! tcp! unix! local! exec! ssh!"),
        ("tcp!localhost", "is no address"),
        ("unix!/no/such", "No such file or directory; try: ls -ld /no/such\n"),
        ("tcp!127.0.0.1!9", "refused; try: slashn man ns\n"),
        ("local!relative", "a local path begins with /"),
        ("local!/no/such", "No such file or directory; try: ls -ld /no/such\n"),
        ("tls!127.0.0.1!9", "no node of that name is known; try: slashn nodes; "),
    ] {
        machine.slashn(&["bind", program, at(&old)]).exits(1).complains(&["slashn: bind: ", part]);
    }
    assert_eq!(machine.slashn(&["ns", at(&n)]).succeeds().text(), "mount -c local!/ /\nmount '#grid' /n\n");
    assert_eq!(machine.run("ls", &[&n]).text(), "");
    settles(&machine, "sleep 1000", 0);
}

fn sockets_and_local_files_are_mounted_by_their_dial_strings(mut machine: Machine) {
    let socket = format!("unix!{}", machine.at("socket").display());
    let address = machine.node_with("alpha", &["--plain", &socket, "--plain", "tcp!127.0.0.1!0"]);
    machine.run("sh", &["-c", "echo 1 >../files-alpha/f; mkdir here; echo 2 >here/g"]);
    let n = machine.mount();
    let there = bind(&machine, &socket, &n, "s");
    assert_eq!(cat(&machine, &there.join("fs/files/f")), "1\n");
    let (host, port) = address.split_once(':').unwrap();
    let there = bind(&machine, &format!("tls!{host}!{port}"), &n, "t");
    assert_eq!(cat(&machine, &there.join("fs/files/f")), "1\n");
    let here = machine.at("work/here");
    let there = bind(&machine, &format!("local!{}", here.display()), &n, "l");
    machine.slashn(&["bind", "-c", &format!("local!{}", here.display()), at(&there)]).succeeds();
    machine.run("sh", &["-c", &format!("cd {}; mkdir d; echo 3 >h; mv g d; mv d/g i", there.display())]);
    assert_eq!(machine.run("ls", &[&here]).text(), "d\nh\ni\n");
    let file = bind(&machine, &format!("local!{}/h", here.display()), &n, "h");
    assert_eq!(cat(&machine, &file), "3\n");
    // What is served here by itself is not served through itself.
    let itself = bind(&machine, &format!("local!{}", machine.at("").display()), &n, "top");
    assert_eq!(machine.run("ls", &[itself.join("n")]).text(), "");
}

fn another_machine_is_reached_by_ssh_and_given_this_program_once(machine: Machine) {
    let (n, bin, far) = (machine.at("n"), machine.at("work/bin"), machine.at("far"));
    machine.run("mkdir", &[&n, &bin, &far]);
    // Goes nowhere, and is another user's home there.
    let script = format!(
        "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\n[ \"$2\" = there ] || exit 255\nshift 2\n\
         HOME={} exec sh -c \"$*\"\n",
        far.display()
    );
    let ssh = machine.write("bin/ssh", &script);
    std::fs::set_permissions(&ssh, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    machine.run("sh", &["-c", "echo far >../far/f"]);
    machine.slashn(&["mount", at(&n)]).env("PATH", path).succeeds();
    let there = bind(&machine, "ssh!there", &n, "there");
    assert_eq!(cat(&machine, &there.join("fs/home/f")), "far\n");
    let cached = machine.run("sh", &["-c", "cd ../far/.cache/slashn; ls; ls | wc -l"]).text();
    assert!(cached.ends_with("\n1\n"), "{cached}");
    let (copied, when) = (far.join(".cache/slashn").join(cached.lines().next().unwrap()), "stat -c %i%Y");
    let stat = || machine.run("sh", &["-c", &format!("{when} {}", copied.display())]).text();
    let first = stat();
    machine.kill(" stdio");
    assert_eq!(cat(&machine, &there.join("fs/home/f")), "far\n");
    assert_eq!(first, stat(), "it is not copied again");
    let refused = machine.slashn(&["bind", "ssh!elsewhere", at(&n.join("x"))]).exits(1);
    refused.complains(&["ssh elsewhere: exit status: 255", "try: ssh elsewhere true"]);
    machine.slashn(&["bind", "ssh!-oProxyCommand=x", at(&n.join("x"))]).exits(1).complains(&["that is no host"]);
    machine.slashn(&["unmount", at(&n)]).succeeds();
    settles(&machine, " stdio", 0);
}
