//! What a user may get wrong: each time one line on stderr that names the step, the thing and the remedy, and the exit
//! status that COMMANDS says.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use tests::as_both;
use tests::machine::{Done, Machine, Text, until};

as_both! {
    a_node_that_is_not_known_is_named
    a_node_that_is_dead_is_named
    a_program_that_cannot_be_run_is_named
    a_directory_that_the_node_cannot_see_is_named
    what_the_trust_hides_is_told_to_be_hidden
    a_mount_point_that_cannot_be_used_is_named
    a_mount_whose_process_was_killed_is_cleaned_at_the_next_start
    a_node_that_was_killed_is_started_again
    a_launcher_that_was_killed_is_named_and_followed_by_another
    a_port_in_use_is_named
    a_home_that_is_half_made_is_named
    a_second_node_of_one_home_is_refused
}

/// The id of the machine's process whose command line has `text`.
fn process(machine: &Machine, text: &str) -> String {
    let found = machine.processes().into_iter().find(|line| line.contains(text));
    found.unwrap_or_else(|| panic!("no process {text:?}")).split(' ').next().unwrap().to_string()
}

fn signal(machine: &Machine, signal: &str, pid: &str) {
    machine.run("kill", &[signal, pid]);
}

/// Kills the process, and returns once it is gone, or all but reaped.
fn kill(machine: &Machine, pid: &str) {
    signal(machine, "-KILL", pid);
    until("a killed process is gone", || {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        threads == 0 || threads == 1 && state.contains(") Z ")
    });
}

fn a_node_that_is_not_known_is_named(mut machine: Machine) {
    let unknown = &["rcpu: find the node: gamma: ", "slashn add gamma ADDR:PORT"];
    machine.rcpu(&["gamma", "true"]).exits(255).complains(unknown);
    machine.node("beta");
    machine.rcpu(&["gamma", "true"]).exits(255).complains(&[unknown[0], unknown[1], "these are: beta"]);
    machine.slashn(&["remove", "gamma"]).exits(1).complains(&["slashn: remove: gamma: no such node"]);
}

fn a_node_that_is_dead_is_named(mut machine: Machine) {
    let address = machine.node("alpha");
    let n = machine.mount();
    let pid = process(&machine, "alpha up ");
    signal(&machine, "-STOP", &pid);
    let silent = machine.rcpu(&["alpha", "true"]).exits(255);
    signal(&machine, "-CONT", &pid);
    silent.complains(&["rcpu: connect: alpha at ", &address, "slashn status, on alpha"]);
    kill(&machine, &pid);
    let dead = machine.rcpu(&["alpha", "true"]).exits(255);
    dead.complains(&["rcpu: connect: alpha at ", &address, "nothing listens there; try: slashn up, on alpha"]);
    let error = machine.command("cat").arg(n.join("alpha/fs/files/x")).exits(1).errors();
    assert!(error.contains("No route to host"), "{error}");
    assert_eq!(machine.run("ls", &[&n]).text(), "alpha\n");
    let other = machine.slashn(&["add", "other", &address]).exits(1);
    other.complains(&["slashn: add: other: ", "--key"]);
}

/// An executable file in the work folder.
fn program(machine: &Machine, name: &str, contents: &[u8]) {
    let path = machine.write(name, "");
    fs::write(&path, contents).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn a_program_that_cannot_be_run_is_named(mut machine: Machine) {
    machine.node("beta");
    let runs = |program: &str, status, parts: &[&str]| {
        let parts = [&["rcpu: run: beta: ", program], parts].concat();
        machine.rcpu(&["beta", program, "argument"]).exits(status).complains(&parts);
    };
    runs("no-such-command", 127, &["not found; try: command -v no-such-command"]);
    runs("./no-such-file", 127, &["not found; try: ls -l ./no-such-file"]);
    machine.write("data", "not a program\n");
    runs("./data", 126, &["no execute bit", "try: chmod +x ./data"]);
    runs("/usr", 126, &["it is a directory"]);
    runs(&"n".repeat(300), 127, &["not found"]);
    runs(&format!("./{}", "n".repeat(300)), 126, &["cannot be executed: File name too long"]);
    program(&machine, "script", b"#!/no/such/python -u\n");
    let sought =
        "its interpreter /no/such/python is missing in its namespace, where it is sought by: mount -c caller /";
    runs("./script", 126, &[sought, "install /no/such/python"]);
    let mut bytes = fs::read("/usr/bin/true").unwrap();
    let at = bytes.windows(5).position(|part| part == b"/lib/" || part == b"/lib6").unwrap();
    bytes[at + 1..at + 4].copy_from_slice(b"nil");
    program(&machine, "loaded", &bytes);
    runs("./loaded", 126, &["its interpreter /nil", "is missing"]);
    let much = ["A", "B", "C"].map(|name| format!("{name}={}", "x".repeat(100_000)));
    let large = ["--limit", "stack=1048576", "-e", &much[0], "-e", &much[1], "-e", &much[2], "beta", "true"];
    let too_much = ["true: cannot be executed: Argument list too long", "one string has 128 KiB"];
    machine.rcpu(&large).exits(126).complains(&[&["rcpu: run: beta: "], &too_much[..]].concat());
    // One that nobody has an emulator for.
    bytes[18..20].copy_from_slice(&[50, 0]);
    program(&machine, "foreign", &bytes);
    runs("./foreign", 126, &["it is for ia64, and this node is ", "rcpu -a 'runs=ia64'"]);
}

fn what_the_trust_hides_is_told_to_be_hidden(mut machine: Machine) {
    let address = machine.node("beta");
    let secret = machine.at("home/.ssh/bin");
    machine.run("mkdir", &["-p", secret.to_str().unwrap()]);
    let tool = secret.join("tool");
    let script = machine.write("script", format!("#!{} -x\n", tool.display()));
    machine.run("chmod", &["+x", "script"]);
    machine.run("cp", &["/usr/bin/true", tool.to_str().unwrap()]);
    machine.run("ln", &["-s", tool.to_str().unwrap(), "link"]);
    let hidden = format!("{}: it is here, but hidden from beta, which is trusted `home`; try: ", tool.display());
    let remedy = format!("rcpu --expose {}:ro ..., or slashn add beta {address} --trust all", tool.display());
    let path = format!("PATH={}:/usr/bin", secret.display());
    for (command, status, what) in [
        (&[tool.to_str().unwrap()][..], 127, ""),
        (&["./link"], 127, ""),
        (&[script.to_str().unwrap()], 126, "its interpreter: "),
    ] {
        let said = [&["rcpu: run: beta: ", what, &hidden, &remedy][..]].concat();
        machine.rcpu(&[&["beta"], command].concat()).exits(status).complains(&said);
        let several = machine.rcpu(&[&["beta", "--"][..], command].concat()).exits(status);
        several.complains(&said);
    }
    machine.rcpu(&["-e", &path, "beta", "tool"]).exits(127).complains(&["rcpu: run: beta: ", &hidden, &remedy]);
    machine.rcpu(&["--expose", &format!("{}:ro", tool.display()), "beta", "./link"]).succeeds();
    let late = machine.rcpu(&["beta", "-C", "/usr", "true"]).exits(2);
    late.complains(&["rcpu: run: -C: options go before the node: -C ... beta", "try: rcpu -C ... beta"]);
    machine.run("cp", &["/usr/bin/true", "./-C"]);
    machine.rcpu(&["-e", "PATH=.", "beta", "--", "-C"]).succeeds();
    let dir = format!("working directory: {}: it is here, but hidden from beta", secret.display());
    machine.rcpu(&["-C", secret.to_str().unwrap(), "beta", "true"]).exits(255).complains(&["rcpu: run: beta: ", &dir]);
    machine.slashn(&["add", "beta", &address, "--trust", "cwd"]).succeeds();
    let elsewhere = machine.at("home/tool");
    machine.run("cp", &["/usr/bin/true", elsewhere.to_str().unwrap()]);
    let hidden = format!("{}: it is here, but hidden from beta, which is trusted `cwd`", elsewhere.display());
    machine.rcpu(&["beta", elsewhere.to_str().unwrap()]).exits(127).complains(&["rcpu: run: beta: ", &hidden]);
}

fn a_directory_that_the_node_cannot_see_is_named(mut machine: Machine) {
    machine.node("beta");
    let remedy = "try: rcpu -C DIR, or --expose PATH";
    let secret = machine.at("home/.ssh/keys").display().to_string();
    machine.run("mkdir", &["-p", &secret]);
    for dir in ["/no/such", "missing"] {
        let named = machine.at("work").join(dir).display().to_string();
        let error = machine.rcpu(&["-C", dir, "beta", "pwd"]).exits(255);
        error.complains(&[&format!("rcpu: run: beta: working directory: {named}: No such file or directory"), remedy]);
    }
    let shown = machine.rcpu(&["--expose", &secret, "-C", &secret, "beta", "pwd"]).succeeds().text();
    assert_eq!(shown.trim(), secret);
}

fn a_mount_point_that_cannot_be_used_is_named(mut machine: Machine) {
    machine.node("alpha");
    let n = machine.mount().display().to_string();
    let mount = |at: &str, parts: &[&str]| {
        for how in [&["mount", at][..], &["mount", "--foreground", at]] {
            let step = format!("slashn: mount: {at}: ");
            machine.slashn(how).exits(1).complains(&[&[step.as_str()], parts].concat());
        }
    };
    mount(&n, &["a grid is mounted there already", &format!("try: slashn unmount {n}")]);
    let missing = machine.at("missing").display().to_string();
    mount(&missing, &["No such file or directory", &format!("try: mkdir -p {missing}")]);
    mount(machine.write("file", "").to_str().unwrap(), &["is not a directory", "try: slashn mount DIR"]);
    machine.slashn(&["unmount", &missing]).exits(1).complains(&["slashn: unmount: ", "no grid is mounted there"]);
}

fn a_mount_whose_process_was_killed_is_cleaned_at_the_next_start(mut machine: Machine) {
    machine.node("alpha");
    let n = machine.mount();
    let place = n.display().to_string();
    let dies = |machine: &Machine| {
        kill(machine, &process(machine, " mount --foreground "));
        let error = machine.command("ls").arg(&n).exits(2).errors();
        assert!(error.contains("Transport endpoint is not connected"), "{error}");
    };
    dies(&machine);
    assert!(!machine.slashn(&["status"]).succeeds().text().contains(&place), "it is not told as mounted");
    let mounted = machine.slashn(&["mount", &place]).succeeds();
    assert_eq!((mounted.text(), mounted.errors()), (String::new(), String::new()));
    assert_eq!(machine.run("ls", &[&n]).text(), "alpha\n");
    dies(&machine);
    machine.slashn(&["unmount", &place]).succeeds();
    assert_eq!(machine.run("ls", &[&n]).text(), "");
}

fn a_node_that_was_killed_is_started_again(mut machine: Machine) {
    machine.node("beta");
    let home = machine.at("beta").display().to_string();
    kill(&machine, &process(&machine, "beta up "));
    let down = machine.slashn(&["--home", &home, "down"]).exits(1);
    down.complains(&["slashn: down: ", &home, "no node runs from this home"]);
    machine.slashn(&["--home", &home, "up", "--daemon", "--listen", "127.0.0.1:0"]).succeeds();
    assert!(machine.slashn(&["--home", &home, "status"]).succeeds().text().starts_with("node: ready beta "));
}

fn a_launcher_that_was_killed_is_named_and_followed_by_another(mut machine: Machine) {
    machine.node("beta");
    let script = machine.write("long.sh", "setsid sleep 987654 & exec sleep 987654\n").display().to_string();
    let mut rcpu = machine.rcpu(&["beta", "sh", &script]);
    let lost = rcpu.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let asleep = |count| machine.processes().iter().filter(|line| line.ends_with(" sleep 987654 ")).count() == count;
    until("both sleep", || asleep(2));
    let child = |pid: &str| machine.run("pgrep", &["-P", pid]).text().trim().to_string();
    let watcher = child(&process(&machine, "beta up "));
    kill(&machine, &child(&watcher));
    let lost = lost.wait_with_output().unwrap();
    lost.complains(&["rcpu: run: beta: launcher: it has ended", "try: run it again"]);
    assert_eq!(lost.status.code(), Some(255));
    until("nobody sleeps", || asleep(0));
    machine.rcpu(&["beta", "sh", "-c", "exit 7"]).exits(7);
    let log = fs::read_to_string(machine.at("beta/run/log")).unwrap();
    assert_eq!(log.matches("the launcher ended").count(), 1, "{log}");
}

fn a_port_in_use_is_named(mut machine: Machine) {
    let address = machine.node("alpha");
    let home = machine.at("other").display().to_string();
    machine.slashn(&["--home", &home, "init", "--name", "other"]).succeeds();
    for how in [&["up"][..], &["up", "--daemon"]] {
        let up = machine.slashn(&[&["--home", &home], how, &["--listen", &address]].concat()).exits(1);
        up.complains(&[&format!("slashn: listen: {address}: Address already in use"), "slashn up --listen ADDR:0"]);
    }
}

fn a_home_that_is_half_made_is_named(mut machine: Machine) {
    machine.node("alpha");
    let home = machine.at("half").display().to_string();
    machine.slashn(&["--home", &home, "init", "--name", "half"]).succeeds();
    for file in ["grid.toml", "node_ed25519", "authorized_keys", "id_ed25519"] {
        machine.run("rm", &[Path::new(&home).join(file)]);
        let missing = format!(": open the home: {home}/{file}: is missing: the home is half made");
        let init = format!("try: slashn --home {home} init");
        for command in [&["up"][..], &["up", "--daemon"], &["mount"], &["nodes"]] {
            let ran = machine.slashn(&[&["--home", &home], command].concat()).exits(1);
            ran.complains(&["slashn", &missing, &init]);
        }
        machine.rcpu(&["--home", &home, "alpha", "true"]).exits(255).complains(&["rcpu", &missing, &init]);
        machine.slashn(&["--home", &home, "init", "--name", "half"]).succeeds();
        machine.slashn(&["--home", &home, "nodes"]).succeeds();
    }
    let none = machine.at("none").display().to_string();
    machine.rcpu(&["--home", &none, "alpha", "true"]).exits(255).complains(&["rcpu: open the home: ", &none, "init"]);
}

fn a_second_node_of_one_home_is_refused(mut machine: Machine) {
    machine.node("alpha");
    let home = machine.at("alpha").display().to_string();
    for how in [&["up"][..], &["up", "--daemon"]] {
        let up = machine.slashn(&[&["--home", &home], how, &["--listen", "127.0.0.1:0"]].concat()).exits(1);
        let pid = process(&machine, "alpha up ");
        let reason = format!("slashn: lock the home: {home}: a node runs from it already (process {pid})");
        up.complains(&[&reason, &format!("try: slashn --home {home} down")]);
    }
    machine.rcpu(&["alpha", "true"]).succeeds();
}
