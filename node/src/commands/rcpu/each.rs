//! `rcpu --each`: one command for each line of standard input, spread over nodes.
//!
//! One task starts jobs where there is most room and takes in how they ended; another reads lines, no more than are
//! needed. A line that can be no argument fails alone. A job that certainly never started is tried on another node; one
//! that may have run never is.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use cpuserver::client::Exit;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use p9::NodeRef;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::mpsc;

use super::Caller;
use super::many::{self, Job, Target, Unread};
use super::places::Place;
use super::printed::{Printer, Turns};
use super::requirements::Facts;
use super::signals::Signals;
use crate::error::{At, Error, Result};

/// The longest line: execve(2) takes no longer argument.
const LINE: usize = 128 << 10;
/// Jobs in a row that a node did not start, after which it gets no more.
const REFUSALS: usize = 3;
/// The most that was typed is quoted in a message.
const QUOTED: usize = 60;

/// The most lines that failed of which it is said how to pick them out.
const MOST_SAID: usize = 40;

/// A node that jobs run on.
struct Site {
    place: Arc<Place>,
    facts: Facts,
    running: usize,
    /// Jobs in a row that it did not start.
    refusals: usize,
    done: usize,
    failed: usize,
}

/// What was read.
enum Read {
    Line(Vec<u8>),
    /// The beginning of a line that can be no argument, and why.
    Bad(Vec<u8>, &'static str),
    /// Nothing more can be.
    Failed(Error),
}

/// One line, and what has become of it.
struct Line {
    number: usize,
    text: Vec<u8>,
    /// The sites that did not start it.
    tried: Vec<usize>,
}

/// Runs the command once for each line; the exit status is the worst.
pub(super) async fn run(caller: &Caller<'_>, targets: Vec<Target>) -> Result<ExitCode> {
    let agent = caller.agent().await?;
    let (printer, printing) = Printer::start().at("start", "a thread")?;
    let signals = Signals::listen();
    let sites = sites(caller, targets, &printer).await?;
    let cores = sites.iter().map(|site| site.facts.cores).sum::<f64>() as usize;
    let at_once = caller.typed.jobs.map_or(cores, |jobs| jobs as usize);
    let turns = caller.typed.keep_order.then(Turns::new);
    let (printing_to, failed) = (printer.clone(), Vec::new());
    let mut feeding =
        Feeding { caller, agent, printer: printing_to, signals, sites, turns, worst: 0, lines: 0, done: 0, failed };
    let fed = feeding.all(at_once).await;
    printer.progress(String::new());
    if !caller.typed.quiet {
        for Site { place, done, failed, .. } in &feeding.sites {
            printer.note(format_args!("{}: {done} done, {failed} of them failed", place.node.name)).await;
        }
        if let Some(again) = again(&mut feeding.failed).filter(|_| !caller.typed.null) {
            printer.note(again).await;
        }
    }
    let worst = feeding.worst;
    drop((printer, feeding));
    let status = many::finish(printing, worst).await?;
    fed.map(|()| status)
}

/// The nodes that can be reached. Errors: none can.
async fn sites(caller: &Caller<'_>, targets: Vec<Target>, printer: &Printer) -> Result<Vec<Site>> {
    let asked = join_all(targets.into_iter().map(async |target| {
        let place = target.connect(&caller.dialer).await?;
        let facts = place.facts().await?;
        Ok::<_, Error>(Site { place: Arc::new(place), facts, running: 0, refusals: 0, done: 0, failed: 0 })
    }));
    let (mut sites, mut last) = (Vec::new(), None);
    for answer in asked.await {
        match answer {
            Ok(site) => sites.push(site),
            Err(err) => {
                printer.note(format_args!("passed over: {err}")).await;
                last = Some(err);
            }
        }
    }
    match last {
        Some(err) if sites.is_empty() => Err(err.status(255)),
        _ => Ok(sites),
    }
}

type Ended = (Line, usize, Result<Exit, (Error, bool)>);
/// Boxed: it is large, and moves.
type Running<'a> = Pin<Box<dyn Future<Output = Ended> + 'a>>;

struct Feeding<'a> {
    caller: &'a Caller<'a>,
    agent: NodeRef,
    printer: Printer,
    signals: Signals,
    sites: Vec<Site>,
    turns: Option<Turns>,
    worst: u8,
    /// Lines that were read, and that are done.
    lines: usize,
    done: usize,
    /// The numbers of those that failed.
    failed: Vec<usize>,
}

impl<'a> Feeding<'a> {
    /// Returns when every line is done. Errors: standard input, which is read no further then.
    async fn all(&mut self, at_once: usize) -> Result<()> {
        let (sender, mut lines) = mpsc::channel(1);
        tokio::spawn(read_lines(sender, if self.caller.typed.null { 0 } else { b'\n' }));
        let (mut waiting, mut more, mut outcome) = (VecDeque::new(), true, Ok(()));
        let mut running = FuturesUnordered::<Running<'a>>::new();
        let signals = self.signals.clone();
        loop {
            while running.len() < at_once
                && let Some(line) = waiting.pop_front()
            {
                match self.start(line) {
                    Ok(job) => running.push(job),
                    Err(nobody) => self.over(&nobody.0, None, Err(nobody.1)).await,
                }
            }
            self.printer.progress(format!("{} of {} lines are done", self.done, self.lines));
            tokio::select! {
                Some((line, site, ended)) = running.next() => {
                    waiting.extend(self.ended(line, site, ended).await);
                }
                line = lines.recv(), if more && running.len() < at_once => match line {
                    Some(Read::Line(text)) => {
                        self.lines += 1;
                        waiting.push_back(Line { number: self.lines, text, tried: Vec::new() });
                    }
                    Some(Read::Bad(text, reason)) => {
                        self.lines += 1;
                        let line = Line { number: self.lines, text, tried: Vec::new() };
                        self.over(&line, None, Err(Error::new("read", "it", reason).status(255))).await;
                    }
                    Some(Read::Failed(err)) => (more, outcome) = (false, Err(err)),
                    None => more = false,
                },
                () = signals.ended(), if more => {
                    more = false;
                    let lines = self.lines;
                    self.printer.note(format_args!("interrupted: what comes after line {lines} is not begun")).await;
                }
                else => break,
            }
        }
        if let (Some(signal), 0) = (self.signals.ended_by(), self.worst) {
            self.worst = many::status_of_signal(signal);
        }
        outcome
    }

    /// Starts the job of `line` where there is most room. Errors: there is no node for it.
    fn start(&mut self, line: Line) -> Result<Running<'a>, Box<(Line, Error)>> {
        let shown = quoted(&line.text);
        if let Some(signal) = self.signals.ended_by() {
            return Err(Box::new((line, many::interrupted(&shown, signal))));
        }
        let room = |(_, site): &(usize, &Site)| site.facts.business(site.running);
        let fit = self.sites.iter().enumerate();
        let fit = fit.filter(|(index, site)| site.refusals < REFUSALS && !line.tried.contains(index));
        let Some((index, _)) = fit.min_by(|one, other| room(one).total_cmp(&room(other))) else {
            let error = Error::new("run", &shown, "no node is left that starts it").status(255);
            return Err(Box::new((line, error.remedy("rcpu -v ..."))));
        };
        let place = self.sites[index].place.clone();
        let job = self.job(&line, place);
        self.sites[index].running += 1;
        let (printer, signals) = (self.printer.clone(), self.signals.clone());
        Ok(Box::pin(async move {
            let ended = job.run(&printer, &signals).await;
            (line, index, ended)
        }))
    }

    fn job(&self, line: &Line, place: Arc<Place>) -> Job<'a> {
        let caller = self.caller;
        let argv = filled(&caller.argv, &line.text);
        let label = caller.typed.labels(false).then(|| place.node.name.to_string());
        Job {
            place,
            agent: self.agent.clone(),
            caller,
            argv,
            stdin: Unread::new(tokio::io::empty()),
            label,
            directory: caller.typed.output_dir.as_ref().map(|dir| dir.join(line.number.to_string())),
            order: self.turns.clone().map(|turns| (turns, line.number - 1)),
        }
    }

    /// Takes in how a job ended; gives its line if it is to be tried elsewhere.
    async fn ended(&mut self, mut line: Line, index: usize, ended: Result<Exit, (Error, bool)>) -> Option<Line> {
        let site = &mut self.sites[index];
        site.running -= 1;
        let ended = match ended {
            Err((err, true)) => {
                site.refusals += 1;
                let (shown, node) = (quoted(&line.text), site.place.node.name.clone());
                self.printer
                    .note(format_args!("line {} ({shown}) was not started on {node}: {err}", line.number))
                    .await;
                line.tried.push(index);
                return Some(line);
            }
            Err((err, false)) => Err(err),
            Ok(exit) => {
                site.refusals = 0;
                Ok(exit)
            }
        };
        site.done += 1;
        site.failed += usize::from(many::status(&ended) != 0);
        self.over(&line, Some(index), ended).await;
        None
    }

    /// A line is done: what is not well is said.
    async fn over(&mut self, line: &Line, site: Option<usize>, ended: Result<Exit>) {
        self.done += 1;
        if many::status(&ended) != 0 {
            self.failed.push(line.number);
        }
        self.worst = self.worst.max(many::status(&ended));
        if let Some(turns) = self.turns.clone() {
            // Those before it may still run: their ends are not to wait for this.
            let index = line.number - 1;
            tokio::spawn(async move { turns.pass(index).await });
        }
        let shown = quoted(&line.text);
        let on = site.map(|index| format!(" on {}", self.sites[index].place.node.name)).unwrap_or_default();
        match ended {
            Ok(Exit::Code(0)) => {}
            Ok(exit) => {
                self.printer.note(format_args!("line {} ({shown}){on}: {}", line.number, many::said(exit))).await;
            }
            Err(err) => self.printer.note(format_args!("line {} ({shown}){on}: {err}", line.number)).await,
        }
    }
}

/// What picks the lines that failed out of what was read, if that is short enough to be typed.
fn again(failed: &mut [usize]) -> Option<String> {
    failed.sort_unstable();
    let few = !failed.is_empty() && failed.len() <= MOST_SAID;
    let which: Vec<String> = failed.iter().map(|number| format!("{number}p")).collect();
    few.then(|| format!("those that failed, to be run again: sed '/^$/d' LIST | sed -n '{}'", which.join(";")))
}

/// `argv` with `text` for each `{}`; at the end, if there is none.
fn filled(argv: &[OsString], text: &[u8]) -> Vec<OsString> {
    const HOLE: &[u8] = b"{}";
    let mut found = false;
    let mut filled = |word: &OsString| {
        let (mut rest, mut out) = (word.as_bytes(), Vec::new());
        while let Some(at) = rest.windows(HOLE.len()).position(|part| part == HOLE) {
            out.extend_from_slice(&rest[..at]);
            out.extend_from_slice(text);
            rest = &rest[at + HOLE.len()..];
            found = true;
        }
        out.extend_from_slice(rest);
        OsString::from_vec(out)
    };
    let mut argv: Vec<_> = argv.iter().map(&mut filled).collect();
    if !found {
        argv.push(OsStr::from_bytes(text).to_owned());
    }
    argv
}

fn quoted(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut shown: String = text.chars().take(QUOTED).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTED).is_some() {
        shown.push_str("...");
    }
    shown
}

/// Sends what is between `separator`s on standard input, one by one as they are taken. Empty ones are no jobs, and
/// count for none.
async fn read_lines(lines: mpsc::Sender<Read>, separator: u8) {
    let mut input = BufReader::new(tokio::io::stdin());
    loop {
        let mut line = Vec::new();
        let read = (&mut input).take(LINE as u64 + 1).read_until(separator, &mut line).await;
        let told = match read {
            Err(err) => Read::Failed(Error::new("read", "standard input", err).status(255)),
            Ok(0) => return,
            Ok(_) if line.len() > LINE => {
                line.truncate(QUOTED * 4);
                skip(&mut input, separator).await;
                Read::Bad(line, "it has more than 128 KiB, which no argument may have")
            }
            Ok(_) => {
                line.pop_if(|byte| *byte == separator);
                if line.contains(&0) {
                    Read::Bad(line, "it has a NUL, which no argument can have")
                } else {
                    Read::Line(line)
                }
            }
        };
        let over = matches!(told, Read::Failed(_));
        if matches!(&told, Read::Line(line) if line.is_empty()) {
            continue;
        }
        if lines.send(told).await.is_err() || over {
            return;
        }
    }
}

/// Reads to the end of a line, and forgets it; what fails is met by the next read.
async fn skip(input: &mut (impl AsyncBufRead + Unpin), separator: u8) {
    while let Ok(some @ [_, ..]) = input.fill_buf().await {
        let (found, count) = match some.iter().position(|byte| *byte == separator) {
            Some(at) => (true, at + 1),
            None => (false, some.len()),
        };
        input.consume(count);
        if found {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_where_the_braces_are_else_to_the_end() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let all = words(&["convert", "in/{}", "out/{}.{}"]);
        assert_eq!(filled(&all, b"a b"), words(&["convert", "in/a b", "out/a b.a b"]));
        assert_eq!(filled(&words(&["cat"]), b"x"), words(&["cat", "x"]));
        // What is put in is not looked at again.
        assert_eq!(filled(&words(&["{}{}"]), b"{}"), words(&["{}{}"]));
    }

    #[test]
    fn the_lines_that_failed_can_be_picked_out() {
        assert_eq!(again(&mut []), None);
        assert!(again(&mut [7, 3]).unwrap().ends_with("sed -n '3p;7p'"));
        assert_eq!(again(&mut [1; 1000]), None);
    }

    #[test]
    fn what_is_quoted_is_short_and_on_one_line() {
        assert_eq!(quoted(b"a\nb"), "a\\nb");
        assert_eq!(quoted("é".repeat(100).as_bytes()), format!("{}...", "é".repeat(60)));
    }
}
