//! Many commands: one after the other, some at once, and as many as a node is to hold.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tests::machine::{Done, Machine};

use super::{Ends, least};
use crate::peers::words;
use crate::{Row, is_wanted, timed};

const SEQUENCE: usize = 1000;
const PARALLEL: usize = 16;
/// So many of each of these, to be measured.
const EACH: usize = 20;
const SESSIONS: usize = 200;
const FILES: usize = 200;

const CASES: [&str; 4] = [
    "1,000 true in sequence, warm",
    "true, 16 at once, each second",
    "200 sessions at once",
    "make -j16 of 200 C files, each command on the node",
];

pub(super) fn run() -> Vec<Row> {
    let mut rows = Vec::new();
    if [CASES[0], CASES[1]].into_iter().any(is_wanted) {
        rows.extend(short(&Ends::new()));
    }
    if is_wanted(CASES[2]) {
        rows.extend(at_once(&Ends::new()));
    }
    if is_wanted(CASES[3]) {
        rows.push(make(&Ends::new()));
    }
    rows
}

/// Commands that do nothing, beside those by a connection that ssh keeps.
fn short(ends: &Ends) -> Vec<Row> {
    let master = ends.sshd.master();
    let (ours, ssh) = ("rcpu beta true", format!("{} true", words(&master.ssh())));
    timed(&ends.machine, Path::new("/"), ours);
    let mut rows = Vec::new();
    if is_wanted(CASES[0]) {
        let took = |command: &str| {
            let work = format!("i=0; while [ $i -lt {SEQUENCE} ]; do {command} </dev/null || exit; i=$((i+1)); done");
            timed(&ends.machine, Path::new("/"), &work) / 1e3
        };
        let (ours, ssh) = (took(ours), took(&ssh));
        rows.extend([least(CASES[0], ours, ("ssh mux", ssh), "s"), least(CASES[0], ours, ("promised", 10.0), "s")]);
    }
    if is_wanted(CASES[1]) {
        let each_second = |command: &str| {
            let count = PARALLEL * EACH;
            let work = format!("seq {count} | xargs -P{PARALLEL} -n1 sh -c '{command} </dev/null'");
            count as f64 / (timed(&ends.machine, Path::new("/"), &work) / 1e3)
        };
        let (ours, ssh) = (each_second(ours), each_second(&ssh));
        let peer = Some(("ssh mux", ssh));
        rows.push(Row { group: "rcpu", case: CASES[1].into(), ours, peer, unit: "1/s", more_is_better: true });
    }
    rows
}

/// As many sessions as there are to be at once: until all run, and what one costs the node.
fn at_once(ends: &Ends) -> [Row; 2] {
    let script = "echo up; read line";
    // The agent and the node have done it once.
    ends.machine.rcpu(&["beta", "true"]).succeeds();
    let before = cost_kib(&ends.machine);
    let (ours, running) = all_up(|| ends.machine.rcpu(&["beta", "sh", "-c", script]));
    let each = (cost_kib(&ends.machine) - before) / SESSIONS as f64;
    all_end(running);
    let (ssh, running) = all_up(|| {
        let mut ssh = ends.sshd.ssh(ends.sshd.port);
        ssh.arg(script);
        ssh
    });
    all_end(running);
    [
        least(format!("{}, until all run", CASES[2]), ours, ("ssh", ssh), "s"),
        least(format!("{}: each costs the node", CASES[2]), each / 1024.0, ("promised", 3.0), "MB"),
    ]
}

/// Starts all the sessions, and how long it takes until each runs.
fn all_up(command: impl Fn() -> Command) -> (f64, Vec<Child>) {
    let start = Instant::now();
    let begin = |_| command().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a session");
    let mut all: Vec<Child> = (0..SESSIONS).map(begin).collect();
    for child in &mut all {
        let mut line = String::new();
        let stdout = child.stdout.as_mut().expect("its output");
        BufReader::new(stdout).read_line(&mut line).expect("a line");
        assert_eq!(line, "up\n");
    }
    (start.elapsed().as_secs_f64(), all)
}

fn all_end(all: Vec<Child>) {
    for mut child in all {
        // One that has been told has ended.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(b"\n"));
        assert!(child.wait().expect("its end").success(), "a session ends well");
    }
}

/// The memory of the node, with what it starts for its commands and without those themselves: each page is counted by
/// its share.
fn cost_kib(machine: &Machine) -> f64 {
    let Ok(program) = fs::canonicalize(tests::machine::binaries().join("slashn")) else { return 0.0 };
    let of = |pid: &str| {
        let is_node = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        kib.filter(|_| is_node).unwrap_or(0.0)
    };
    let agent = |line: &str| line.trim_end().ends_with(" agent");
    let all = machine.processes();
    let (agents, own): (Vec<_>, Vec<_>) = all.iter().partition(|line| agent(line));
    assert_eq!(agents.len(), 1, "the caller's agent: {agents:?}");
    own.iter().filter_map(|line| line.split(' ').next()).map(of).sum()
}

/// A project whose commands run on the node, beside one whose commands run here.
fn make(ends: &Ends) -> Row {
    let took = |name: &str, shell: &str| {
        let at = ends.machine.at("work").join(name);
        project(&at, FILES);
        timed(&ends.machine, &at, &format!("make -s -j16 {shell}")) / 1e3
    };
    // Until it has been used, nothing of it is warm.
    ends.machine.rcpu(&["beta", "cc", "--version"]).succeeds();
    let there = took("there", "SHELL=rcpu .SHELLFLAGS='-T beta -- sh -ec'");
    least(CASES[3], there, ("local", took("here", "")), "s")
}

/// A C project of `count` files with a Makefile, in the folder `at`.
pub(super) fn project(at: &Path, count: usize) {
    fs::create_dir_all(at).expect("a folder for a project");
    let write = |name: String, text: String| fs::write(at.join(name), text).expect("a file of a project");
    let includes = ["stdio", "stdlib", "string", "unistd", "math", "errno", "sys/stat", "time"];
    let includes = includes.map(|name| format!("#include <{name}.h>\n")).concat();
    write("all.h".into(), format!("{includes}struct row {{ char name[32]; double value; }};\n"));
    for file in 0..count {
        let functions: String = (0..20)
            .map(|function| {
                format!(
                    "double f{file}_{function}(struct row *rows, int count) {{\n\
                     \tdouble sum = {function};\n\
                     \tfor (int i = 0; i < count; i++) {{\n\
                     \t\tif (strlen(rows[i].name) % {} == 0)\n\t\t\tsum += sqrt(fabs(rows[i].value)) * {file};\n\
                     \t\telse\n\t\t\tsnprintf(rows[i].name, sizeof rows[i].name, \"%d %f\", i, sum);\n\
                     \t}}\n\treturn sum;\n}}\n",
                    function + 2
                )
            })
            .collect();
        write(format!("{file}.c"), format!("#include \"all.h\"\n{functions}"));
    }
    let objects: Vec<String> = (0..count).map(|file| format!("{file}.o")).collect();
    let rule = "%.o: %.c all.h\n\tcc -O2 -c -o $@ $<\n";
    write("Makefile".into(), format!("all: {0}\n{rule}clean:\n\trm -f {0}\n", objects.join(" ")));
}
