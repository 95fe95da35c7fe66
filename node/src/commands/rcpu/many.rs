//! One command on several nodes at once.
//!
//! Each node has a session of its own, in one task of this process; what they write is put together by [`Printer`], and
//! how each ended is said when all have.

use std::cell::Cell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use cpuserver::Stdio;
use cpuserver::client::{self, Ended, Exit};
use futures_util::StreamExt;
use futures_util::stream;
use p9::NodeRef;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf};

use super::Caller;
use super::places::Place;
use super::printed::{self, Printer, Turns};
use super::signals::Signals;
use super::whose::better;
use crate::cli::RootOf;
use crate::dial::Dialer;
use crate::error::{At, Error, Result};
use crate::known::Node;
use crate::output;

/// Nodes at once, unless it was said.
const AT_ONCE: usize = 256;

/// One of several commands: where it runs, what it reads, and where it writes.
pub(super) struct Job<'a> {
    pub(super) caller: &'a Caller<'a>,
    pub(super) argv: Vec<OsString>,
    /// The node, for whoever reads about it.
    pub(super) place: Arc<Place>,
    pub(super) agent: NodeRef,
    pub(super) stdin: Unread,
    /// Before each line.
    pub(super) label: Option<String>,
    /// The directory for its output.
    pub(super) directory: Option<PathBuf>,
    pub(super) order: Option<(Turns, usize)>,
}

impl Job<'_> {
    /// Runs it to its end. Errors: why nobody knows that, and whether it certainly never ran.
    pub(super) async fn run(self, printer: &Printer, signals: &Signals) -> Result<Exit, (Error, bool)> {
        let Self { caller, argv, place, directory, .. } = &self;
        let (name, known) = (place.node.name.to_string(), |err| (err, false));
        let root = caller.whose(place, argv).await.map_err(known)?;
        let ended = match self.attempt(root, printer, signals).await.map_err(known)? {
            Err(err) if caller.takes_its_own(&place.node, argv, &err) => {
                let again = self.attempt(RootOf::Node, printer, signals).await.map_err(known)?;
                again.map_err(|again| better(err, again))
            }
            ended => ended,
        };
        let ended = ended.map_err(|err| (caller.explain(&place.node, argv, &err), err.never_ran()));
        if let Some(directory) = directory {
            let status = match &ended {
                Ok(ended) => format!("{}\n{}\n", said(ended.exit), ended.used),
                Err((err, _)) => format!("{err}\n"),
            };
            let _ = tokio::fs::write(directory.join("status"), status).await;
        }
        heard(ended?, &name, printer).await
    }

    /// Runs it once, with the programs of `root`. Errors: its output cannot be kept or printed.
    async fn attempt(
        &self, root: RootOf, printer: &Printer, signals: &Signals,
    ) -> Result<Result<Ended, client::Error>> {
        let (serve, command) = self.caller.request_by(&self.place.node, &self.argv, false, root)?;
        let host = super::host(&self.place, &self.agent, serve);
        let ran = async |stdout, stderr| {
            let command = command.stdin(Stdio::from(self.stdin.clone())).stdout(stdout).stderr(stderr);
            command.events(signals.one_more()).status(&host).await
        };
        match &self.directory {
            Some(directory) => {
                let [stdout, stderr] = files(directory).await?;
                Ok(ran(Stdio::to(stdout), Stdio::to(stderr)).await)
            }
            None => {
                let (stdout, out) = tokio::io::duplex(64 << 10);
                let (stderr, err) = tokio::io::duplex(64 << 10);
                let running = ran(Stdio::to(out), Stdio::to(err));
                let printing = printed::pump([stdout, stderr], self.label.as_deref(), printer, self.order.clone());
                let (ended, printed) = tokio::join!(running, printing);
                if ended.is_ok() {
                    printed.at("print", "the output").map_err(|err| err.status(255))?;
                }
                Ok(ended)
            }
        }
    }
}

/// What a command reads: nobody has read any of it as long as no command has, whichever had it before.
#[derive(Clone)]
pub(super) struct Unread(Arc<Mutex<Box<dyn AsyncRead + Send + Unpin>>>);

impl Unread {
    pub(super) fn new(reader: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self(Arc::new(Mutex::new(Box::new(reader))))
    }
}

impl AsyncRead for Unread {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut **self.0.lock()).poll_read(cx, buf)
    }
}

/// Says which limit ended the command, if one did.
async fn heard(ended: Ended, name: &str, printer: &Printer) -> Result<Exit, (Error, bool)> {
    if let Some(limit) = ended.limit {
        printer.note(format_args!("{name}: {limit}")).await;
    }
    Ok(ended.exit)
}

/// New files for the output of one command.
async fn files(directory: &Path) -> Result<[tokio::fs::File; 2]> {
    const STEP: &str = "keep the output";
    tokio::fs::create_dir_all(directory).await.at(STEP, directory.display())?;
    let create = async |name| {
        let path = directory.join(name);
        tokio::fs::File::create(&path).await.at(STEP, path.display())
    };
    Ok([create("stdout").await?, create("stderr").await?])
}

/// How a command ended, in words.
pub(super) fn said(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exit {code}"),
        Exit::Signal { number, core: false } => format!("signal {number}"),
        Exit::Signal { number, core: true } => format!("signal {number}, core dumped"),
    }
}

/// The exit status that says the same.
pub(super) fn status(ended: &Result<Exit>) -> u8 {
    match ended {
        Ok(Exit::Code(code)) => *code,
        Ok(Exit::Signal { number, .. }) => status_of_signal(*number),
        // What fails here is no end of a command's.
        Err(err) if err.exit_status() == 1 => 255,
        Err(err) => err.exit_status(),
    }
}

pub(super) fn status_of_signal(number: i32) -> u8 {
    128u8.saturating_add(u8::try_from(number).unwrap_or(u8::MAX))
}

/// A node that a command is to run on, connected or not yet.
pub(super) enum Target {
    Known(Node),
    Connected(Place),
}

impl Target {
    pub(super) fn node(&self) -> &Node {
        match self {
            Self::Known(node) => node,
            Self::Connected(place) => &place.node,
        }
    }

    /// Connects, if that was not done, and waits for nothing that the node then says.
    pub(super) async fn begin(self, dialer: &Dialer) -> Result<Place> {
        match self {
            Self::Known(node) => Place::begin(dialer, &node).await,
            Self::Connected(place) => Ok(place),
        }
    }

    /// Connects, if that was not done.
    pub(super) async fn connect(self, dialer: &Dialer) -> Result<Place> {
        match self {
            Self::Known(node) => Place::connect(dialer, &node).await,
            Self::Connected(place) => Ok(place),
        }
    }
}

/// Runs the command on all of `targets`; the exit status is the worst.
pub(super) async fn run(caller: &Caller<'_>, targets: Vec<Target>) -> Result<ExitCode> {
    let typed = caller.typed;
    let agent = caller.agent().await?;
    let (printer, printing) = Printer::start().at("start", "a thread")?;
    let signals = Signals::listen();
    let inputs = Inputs::of(typed.copy_stdin, targets.len());
    let turns = typed.keep_order.then(Turns::new);
    let all = Count { all: targets.len(), done: Cell::new(0), failed: Cell::new(0) };
    printer.progress(all.text());
    let names: Vec<String> = targets.iter().map(|target| target.node().name.to_string()).collect();
    let jobs = targets.into_iter().zip(inputs.readers).enumerate().map(|(index, (target, stdin))| {
        let (printer, signals, turns, agent) = (printer.clone(), signals.clone(), turns.clone(), agent.clone());
        let (all, name) = (&all, &names[index]);
        async move {
            let order = turns.clone().map(|turns| (turns, index));
            let ended = match signals.ended_by() {
                Some(signal) => Err(interrupted(name, signal)),
                None => one(caller, target, agent, stdin, order, &printer, &signals).await,
            };
            if let Some(turns) = turns {
                turns.pass(index).await;
            }
            all.one_more(status(&ended) != 0);
            printer.progress(all.text());
            (index, ended)
        }
    });
    let at_once = typed.jobs.map_or(AT_ONCE, |jobs| jobs as usize);
    let mut ended: Vec<_> = stream::iter(jobs).buffer_unordered(at_once).collect().await;
    printer.progress(String::new());
    ended.sort_by_key(|(index, _)| *index);
    for (index, ended) in &ended {
        match ended {
            Ok(exit) if !typed.quiet => printer.note(format_args!("{}: {}", names[*index], said(*exit))).await,
            Ok(_) => {}
            Err(err) => printer.note(format_args!("{}: {err}", names[*index])).await,
        }
    }
    drop((printer, turns));
    finish(printing, ended.iter().map(|(_, ended)| status(ended)).max().unwrap_or_default()).await
}

/// The exit status `worst`, once all is written; or why it is not.
pub(super) async fn finish(printing: printed::Printing, worst: u8) -> Result<ExitCode> {
    let printed = tokio::task::spawn_blocking(move || printing.end()).await.unwrap_or_else(|err| Err(err.into()));
    match printed {
        // Nobody reads any more (`| head`): as if the signal for it had ended the commands.
        Err(err) if err.kind() == std::io::ErrorKind::BrokenPipe => Ok((128 + 13).into()),
        printed => printed.at("print", "the output").map(|()| worst.into()).map_err(|err| err.status(255)),
    }
}

pub(super) fn interrupted(name: &str, signal: i32) -> Error {
    let reason = format_args!("ended by signal {signal} before it was started");
    Error::new("run", name, reason).status(status_of_signal(signal))
}

async fn one(
    caller: &Caller<'_>, target: Target, agent: NodeRef, stdin: Unread, order: Option<(Turns, usize)>,
    printer: &Printer, signals: &Signals,
) -> Result<Exit> {
    let name = target.node().name.to_string();
    let place = tokio::select! {
        place = target.connect(&caller.dialer) => Arc::new(place.map_err(|err| err.status(255))?),
        () = signals.ended() => return Err(interrupted(&name, signals.ended_by().unwrap_or_default())),
    };
    let job = Job {
        caller,
        argv: caller.argv.clone(),
        place,
        agent,
        stdin,
        directory: caller.typed.output_dir.as_ref().map(|dir| dir.join(&name)),
        label: caller.typed.labels(true).then_some(name),
        order,
    };
    Box::pin(job.run(printer, signals)).await.map_err(|(err, _)| err)
}

/// How far things are.
struct Count {
    all: usize,
    done: Cell<usize>,
    failed: Cell<usize>,
}

impl Count {
    fn one_more(&self, failed: bool) {
        self.done.set(self.done.get() + 1);
        self.failed.set(self.failed.get() + usize::from(failed));
    }

    fn text(&self) -> String {
        format!("{} of {} nodes are done, {} failed", self.done.get(), self.all, self.failed.get())
    }
}

/// What each of several commands reads: nothing, or all of them all of standard input.
struct Inputs {
    readers: Vec<Unread>,
}

impl Inputs {
    fn of(copy: bool, count: usize) -> Self {
        if !copy {
            return Self { readers: (0..count).map(|_| Unread::new(tokio::io::empty())).collect() };
        }
        let (near, far): (Vec<_>, Vec<_>) = (0..count).map(|_| tokio::io::duplex(64 << 10)).unzip();
        tokio::spawn(copy_to_all(near));
        Self { readers: far.into_iter().map(Unread::new).collect() }
    }
}

/// As fast as the slowest takes it; one that takes no more keeps nobody.
async fn copy_to_all(mut writers: Vec<DuplexStream>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match stdin.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => count,
            Err(err) => {
                // Nobody is to take this for the end.
                output::note(Error::new("read", "standard input", err).remedy("^C: the commands wait for more"));
                std::future::pending().await
            }
        };
        let bytes = Bytes::copy_from_slice(&buffer[..count]);
        let written = writers.into_iter().map(async |mut writer| {
            let written = writer.write_all(&bytes).await;
            written.is_ok().then_some(writer)
        });
        writers = futures_util::future::join_all(written).await.into_iter().flatten().collect();
        if writers.is_empty() {
            return;
        }
    }
}
