//! One command on several nodes, and one for each line: `rcpu NODE,NODE`, `-a`, `-A`, `--each`.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};

use tests::as_both;
use tests::machine::{Done, Machine, Text, until};

as_both! {
    each_line_has_the_name_of_its_node_and_the_worst_status_is_the_status
    a_node_that_cannot_be_reached_is_told_and_keeps_nobody
    output_is_kept_in_order_or_in_files
    requirements_choose_a_node
    standard_input_is_copied_when_that_is_asked_for
    an_interrupt_ends_all_and_a_second_one_for_good
    each_line_is_a_job_and_jobs_are_spread
    a_job_that_never_started_is_tried_elsewhere_and_no_other
    what_makes_no_sense_is_refused
    a_detached_command_on_several_nodes_has_a_name_on_each
    a_namespace_file_that_cannot_be_read_is_named_with_its_line
}

/// The lines of `text`, sorted.
fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// Runs `command` with `input` to read.
fn fed(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn each_line_has_the_name_of_its_node_and_the_worst_status_is_the_status(machine: Machine) {
    let machine = machine.with_two_nodes();
    let script = "uname -n; echo oops >&2; printf rest; [ $(uname -n) = alpha ] || exit 3";
    let both = machine.rcpu(&["alpha,beta", "--", "sh", "-c", script]).exits(3);
    let out = ["alpha: alpha", "alpha: rest", "beta: beta", "beta: rest"];
    assert_eq!(sorted(&both.text()), out);
    let errors = both.errors();
    assert_eq!(sorted(&errors), ["alpha: oops", "beta: oops", "rcpu: alpha: exit 0", "rcpu: beta: exit 3"]);
    assert!(errors.ends_with("rcpu: alpha: exit 0\nrcpu: beta: exit 3\n"), "{errors}");
    let all = machine.rcpu(&["-A", "-q", "--label=no", "sh", "-c", "uname -n; kill -KILL $$"]).exits(128 + 9);
    assert_eq!((sorted(&all.text()), all.errors().as_str()), (vec!["alpha", "beta"], ""));
}

fn a_node_that_cannot_be_reached_is_told_and_keeps_nobody(machine: Machine) {
    let machine = machine.with_two_nodes();
    machine.slashn(&["--home", &machine.at("beta").display().to_string(), "down"]).succeeds();
    let all = machine.rcpu(&["-A", "uname", "-n"]).exits(255);
    assert_eq!(all.text(), "alpha: alpha\n");
    let errors = all.errors();
    assert!(
        errors.contains("rcpu: alpha: exit 0\nrcpu: beta: connect: beta at ") && errors.contains("; try: "),
        "{errors}"
    );
    // Where any node will do, one that does.
    assert_eq!(machine.rcpu(&["-a", "", "uname", "-n"]).succeeds().text(), "alpha\n");
    let none = machine.rcpu(&["-a", "", "-n", "2", "true"]).exits(255);
    none.complains(&["rcpu: find a node: -a '': 1 of 2 known nodes do; not reached: beta"]);
}

fn output_is_kept_in_order_or_in_files(machine: Machine) {
    let machine = machine.with_two_nodes();
    // Alpha, which is the first, ends last, and beta has written more than is kept in memory.
    let script = "if [ $(uname -n) = alpha ]; then until [ -e go ]; do sleep 0.02; done; echo late; \
                  else seq 300000; touch go; fi";
    let ordered = machine.rcpu(&["-k", "-q", "--label=no", "alpha,beta", "sh", "-c", script]).succeeds().text();
    let expected: String = ["late\n".to_string()].into_iter().chain((1..=300_000).map(|n| format!("{n}\n"))).collect();
    assert!(ordered == expected, "{} bytes of {}", ordered.len(), expected.len());
    let kept = machine.rcpu(&["--output-dir", "kept", "-A", "sh", "-c", "uname -n; echo e >&2; exit 4"]).exits(4);
    assert_eq!(kept.text(), "");
    for node in ["alpha", "beta"] {
        let read = |file: &str| fs::read_to_string(machine.at("work/kept").join(node).join(file)).unwrap();
        assert_eq!((read("stdout"), read("stderr")), (format!("{node}\n"), "e\n".into()));
        assert!(read("status").starts_with("exit 4\nreal "), "{}", read("status"));
    }
}

fn requirements_choose_a_node(machine: Machine) {
    let machine = machine.with_two_nodes();
    let here = std::env::consts::ARCH;
    let fits = |requirements: &str| machine.rcpu(&["-a", requirements, "uname", "-n"]).succeeds().text();
    assert_eq!(fits("name=beta"), "beta\n");
    assert_eq!(fits(&format!("arch={here} cores>=1 mem>1M name!=beta")), "alpha\n");
    let two = machine.rcpu(&["-a", "load>=0", "-n", "2", "-q", "uname", "-n"]).succeeds().text();
    assert_eq!(sorted(&two), ["alpha: alpha", "beta: beta"]);
    let none = machine.rcpu(&["-a", "arch=vax", "true"]).exits(255);
    none.complains(&["rcpu: find a node: -a 'arch=vax': 0 of 2 known nodes do"]);
    // One that hangs is not waited for where others do.
    let hung = machine.processes().into_iter().find(|line| line.contains("/beta up ")).unwrap();
    let hung = hung.split(' ').next().unwrap();
    machine.run("kill", &["-STOP", hung]);
    let other = machine.rcpu(&["-a", "", "uname", "-n"]).done();
    machine.run("kill", &["-CONT", hung]);
    assert_eq!((other.text().as_str(), other.errors().as_str()), ("alpha\n", ""));
    let wrong = machine.rcpu(&["-a", "gpus>=1", "true"]).exits(2).errors();
    assert!(wrong.contains("words like arch=x86_64"), "{wrong}");
}

fn standard_input_is_copied_when_that_is_asked_for(machine: Machine) {
    let machine = machine.with_two_nodes();
    let text = "some words\n".repeat(20_000);
    let copied = fed(&mut machine.rcpu(&["--copy-stdin", "-q", "-A", "sh", "-c", "wc -c"]), &text);
    assert_eq!(sorted(&copied.text()), ["alpha: 220000", "beta: 220000"]);
    // One that takes no more keeps nobody.
    let script = "if [ $(uname -n) = alpha ]; then exec true; else wc -c; fi";
    let copied = fed(&mut machine.rcpu(&["--copy-stdin", "-q", "-A", "sh", "-c", script]), &text);
    assert_eq!(copied.text(), "beta: 220000\n");
    let nothing = fed(&mut machine.rcpu(&["-q", "-A", "cat"]), "a");
    assert_eq!((nothing.text().as_str(), nothing.status.success()), ("", true));
}

fn an_interrupt_ends_all_and_a_second_one_for_good(machine: Machine) {
    let machine = machine.with_two_nodes();
    let script = "trap 'echo stubborn' INT; echo ready; while :; do sleep 0.02; done";
    let mut child = machine.rcpu(&["-A", "--label", "sh", "-c", script]);
    let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut both = |expected: &str| {
        let lines: BTreeSet<String> = out.by_ref().lines().take(2).map(Result::unwrap).collect();
        assert_eq!(lines, ["alpha", "beta"].map(|node| format!("{node}: {expected}")).into());
    };
    both("ready");
    machine.run("kill", &["-INT".to_string(), child.id().to_string()]);
    both("stubborn");
    machine.run("kill", &["-INT".to_string(), child.id().to_string()]);
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(128 + 9), "{}", ended.errors());
    assert!(ended.errors().contains("rcpu: alpha: signal 9\nrcpu: beta: signal 9\n"), "{}", ended.errors());
    // And what is to come does not begin. A dash that is just starting a program hears of no interrupt.
    let mut each = machine.rcpu(&["-A", "-j1", "--each", "sh", "-c", "echo {}; exec sleep 1000"]);
    let mut each = each.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = each.stdin.take().unwrap();
    stdin.write_all(b"one\ntwo\nthree\n").unwrap();
    let mut out = BufReader::new(each.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    machine.run("kill", &["-INT".to_string(), each.id().to_string()]);
    out.read_line(&mut line).unwrap();
    assert_eq!((line.as_str(), each.wait().unwrap().code()), ("one\n", Some(128 + 2)));
}

fn each_line_is_a_job_and_jobs_are_spread(machine: Machine) {
    let machine = machine.with_two_nodes();
    let lines: String = (1..=20).map(|n| format!("{n}\n")).collect();
    let each = |more: &[&str], script: &str, input: &str| {
        fed(&mut machine.rcpu(&[&["-A", "-j", "6", "--each"], more, &["sh", "-c", script, "sh"]].concat()), input)
    };
    // Without {} the line is the last argument.
    // A node that is reached late finds nothing left to do.
    until("both nodes have done some", || {
        let all = each(&[], "echo $1 $(uname -n)", &lines);
        assert!(all.status.success(), "{}", all.errors());
        let text = all.text();
        let of =
            |line: &str| line.split_once(' ').map(|(n, node)| (n.parse::<u32>().unwrap(), node.to_owned())).unwrap();
        let (numbers, nodes): (BTreeSet<u32>, BTreeSet<String>) = text.lines().map(of).unzip();
        assert_eq!((numbers, text.lines().count()), ((1..=20).collect(), 20));
        nodes == BTreeSet::from(["alpha".into(), "beta".into()])
    });
    let ordered = each(&["-k", "-q"], "[ $1 != 1 ] || until [ -e go ]; do sleep 0.02; done; touch go; echo $1", &lines);
    assert_eq!(ordered.text(), lines);
    let status = each(&["--label"], "[ $1 -lt 19 ] || exit $1", &lines);
    assert_eq!(status.status.code(), Some(20));
    let errors = status.errors();
    assert!(errors.contains("rcpu: line 19 (19) on ") && errors.contains(": exit 20\n"), "{errors}");
    // Any bytes but the separator's, and an empty line is none.
    let odd = fed(&mut machine.rcpu(&["-A", "-0", "-k", "-q", "--each", "printf", "%s|", "{}"]), "a b\0c\nd'\0\0*");
    assert_eq!(odd.text(), "a b|c\nd'|*|");
    let kept = each(&["--output-dir", "jobs"], "echo $1; exit 2", "x\ny\n");
    assert_eq!(kept.status.code(), Some(2));
    assert_eq!(fs::read_to_string(machine.at("work/jobs/2/stdout")).unwrap(), "y\n");
    assert_eq!(fed(&mut machine.rcpu(&["-A", "--each", "false"]), "").status.code(), Some(0));
    // A line that can be no argument fails alone.
    let long = each(&["-k"], "echo $1", &format!("first\n{}\nn\0l\nlast\n", "x".repeat(200_000)));
    assert_eq!((long.text().as_str(), long.status.code()), ("first\nlast\n", Some(255)));
    for error in ["rcpu: line 2 (xxx", "it has more than 128 KiB", "rcpu: line 3 (n\\0l): read: it: it has a NUL"] {
        assert!(long.errors().contains(error), "{}", long.errors());
    }
}

fn a_job_that_never_started_is_tried_elsewhere_and_no_other(machine: Machine) {
    let machine = machine.with_two_nodes();
    // Beta has no place for a command's /tmp any more.
    let tmp = machine.at("beta/run/tmp");
    machine.rcpu(&["beta", "true"]).succeeds();
    until("the command's /tmp is gone", || fs::remove_dir(&tmp).is_ok());
    machine.run("cp", &["/dev/null", tmp.to_str().unwrap()]);
    let lines: String = (1..=12).map(|n| format!("{n}\n")).collect();
    // A node that is reached late is not tried at all.
    until("one was to be started on beta", || {
        _ = fs::remove_file(machine.at("work/log"));
        let all = fed(&mut machine.rcpu(&["-A", "-j", "4", "--each", "sh", "-c", "echo {} >>log; uname -n"]), &lines);
        assert!(all.status.success(), "{}", all.errors());
        assert_eq!(all.text(), "alpha\n".repeat(12));
        let errors = all.errors();
        assert!(errors.contains("rcpu: beta: 0 done"), "{errors}");
        // Each was run once.
        let log = fs::read_to_string(machine.at("work/log")).unwrap();
        assert_eq!(sorted(&log).into_iter().collect::<BTreeSet<_>>().len(), 12);
        assert_eq!(log.lines().count(), 12);
        errors.contains("was not started on beta: run: beta: a private /tmp")
    });
    // One that cannot be run anywhere is not tried again, and where nobody is left that is said.
    let missing = fed(&mut machine.rcpu(&["--each", "alpha", "no-such-command"]), "x\n");
    assert_eq!(missing.status.code(), Some(127));
    let nobody = fed(&mut machine.rcpu(&["--each", "beta", "true"]), "x\n");
    assert_eq!(nobody.status.code(), Some(255));
    assert!(nobody.errors().contains("no node is left that starts it"), "{}", nobody.errors());
}

fn what_makes_no_sense_is_refused(machine: Machine) {
    let machine = machine.with_two_nodes();
    machine.rcpu(&["", "true"]).exits(2).complains(&["rcpu: run: : which node?", "rcpu --help"]);
    machine.rcpu(&["alpha,beta"]).exits(2).complains(&["which command?"]);
    machine.rcpu(&["alpha,alpha", "true"]).exits(2).complains(&["a node is there twice"]);
    machine.rcpu(&["alpha,gamma", "true"]).exits(255).complains(&["rcpu: find the node: gamma: "]);
    machine.rcpu(&["-t", "-A", "true"]).exits(2).complains(&["there is one terminal"]);
}

fn a_detached_command_on_several_nodes_has_a_name_on_each(machine: Machine) {
    let machine = machine.with_two_nodes();
    let names = machine.rcpu(&["-d", "-A", "sleep", "1000"]).succeeds().text();
    let names = sorted(&names);
    assert!(names[0].starts_with("alpha/") && names[1].starts_with("beta/"), "{names:?}");
    machine.slashn(&[&["kill", "-9"], &names[..]].concat()).succeeds();
    names.iter().for_each(|name| drop(machine.slashn(&["wait", name]).exits(128 + 9)));
}

fn a_namespace_file_that_cannot_be_read_is_named_with_its_line(mut machine: Machine) {
    machine.node("alpha");
    let file = machine.write("odd.ns", "mount caller /\nbind /a\n");
    let error = machine.rcpu(&["--ns", "odd.ns", "alpha", "true"]).exits(255);
    error.complains(&["rcpu: read the namespace: odd.ns: line 2", "sed -n 2p odd.ns"]);
    fs::remove_file(file).unwrap();
    machine.rcpu(&["--ns", "odd.ns", "alpha", "true"]).exits(255).complains(&["odd.ns: No such file"]);
}
