//! `./bench [GROUP...] [--only WORDS] [--json FILE]`: us and the peers side by side, in one run, on the same work.
//!
//! A row is a case, our figure, the peer's, and their ratio: above 1 we are better. Ratios carry from machine to
//! machine, times do not. Each group is a file; each makes its own grid and takes it down again. `--only` measures but
//! the cases of the groups `mount`, `wan` and `rcpu` that have the words in their names.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program that prints a table")]

use std::path::Path;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tests::machine::{Done, Machine, Text};

mod mount;
mod null;
mod p9;
mod peers;
mod rcpu;
mod scale;
mod wan;

/// One line of the table.
struct Row {
    group: &'static str,
    case: String,
    ours: f64,
    peer: Option<(&'static str, f64)>,
    unit: &'static str,
    /// Whether a bigger figure is the better one.
    more_is_better: bool,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        let (_, peer) = self.peer?;
        Some(if self.more_is_better { self.ours / peer } else { peer / self.ours })
    }

    fn print(&self) {
        let peer = self.peer.map_or(String::new(), |(name, figure)| format!("{figure:.1} {name}"));
        let ratio = self.ratio().map_or(String::new(), |ratio| format!("{ratio:.2}"));
        println!("{:6} {:52} {:>10.1} {:>18} {:8} {:>7}", self.group, self.case, self.ours, peer, self.unit, ratio);
    }

    fn json(&self) -> serde_json::Value {
        serde_json::json!({
            "group": self.group, "case": self.case, "ours": self.ours, "unit": self.unit,
            "peer": self.peer.map(|(name, _)| name), "peer_figure": self.peer.map(|(_, figure)| figure),
            "ratio": self.ratio(),
        })
    }
}

/// What a case has in its name that is to be measured; without it all are.
static ONLY: OnceLock<String> = OnceLock::new();

fn is_wanted(case: &str) -> bool {
    ONLY.get().is_none_or(|words| case.contains(words.as_str()))
}

/// Measures a group.
type Run = fn() -> Vec<Row>;

/// The groups there are, in the order in which they run.
const GROUPS: [(&str, Run); 5] =
    [("p9", p9::run), ("mount", mount::run), ("wan", wan::run), ("rcpu", rcpu::run), ("scale", scale::run)];

fn main() -> ExitCode {
    let (mut wanted, mut json) = (Vec::new(), None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--json" => json = args.next(),
            "--only" => args.next().into_iter().for_each(|words| _ = ONLY.set(words)),
            group if GROUPS.iter().any(|(name, _)| *name == group) => wanted.push(arg),
            other => {
                let names: Vec<&str> = GROUPS.iter().map(|(name, _)| *name).collect();
                eprintln!(
                    "bench: no such group: {other}\ntry: ./bench [{}] [--only WORDS] [--json FILE]",
                    names.join("|")
                );
                return ExitCode::from(2);
            }
        }
    }
    println!("{:6} {:52} {:>10} {:>18} {:8} {:>7}", "group", "case", "ours", "peer", "unit", "ratio");
    let mut rows = Vec::new();
    for (name, run) in GROUPS {
        if wanted.is_empty() || wanted.iter().any(|group| group == name) {
            let more = run();
            more.iter().for_each(Row::print);
            rows.extend(more);
        }
    }
    if let Some(file) = json {
        let all: Vec<_> = rows.iter().map(Row::json).collect();
        if let Err(err) = std::fs::write(&file, format!("{:#}\n", serde_json::Value::from(all))) {
            eprintln!("bench: writing {file}: {err}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// The median time of `times` runs of `work`, in milliseconds.
fn median_ms(times: usize, mut work: impl FnMut()) -> f64 {
    let mut all: Vec<Duration> = (0..times)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    all.sort();
    all[times / 2].as_secs_f64() * 1e3
}

/// Longer than a peer takes for anything over a slow link.
const LONG: Duration = Duration::from_mins(20);

/// How long the shell script `work` takes in the folder `at`, in milliseconds.
fn timed(machine: &Machine, at: &Path, work: &str) -> f64 {
    let script = format!("cd {} && {work}", at.display());
    let start = Instant::now();
    let output = machine.command("sh").args(["-c", &script]).done_within(LONG);
    assert!(output.status.success(), "{work}: {}: {}", output.status, output.errors());
    start.elapsed().as_secs_f64() * 1e3
}

/// Root's machine with the nodes of `names`.
fn machine(names: &[&str]) -> Machine {
    let mut machine = Machine::bare();
    for name in names {
        machine.node(name);
    }
    machine
}
