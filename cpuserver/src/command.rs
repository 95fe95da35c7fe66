//! Commands on another node, as a program writes them: shaped like `std::process`.
//!
//! [`Command`] gathers what is asked for; [`client::run`](crate::client::run) does it, in a task of its own that ends
//! with its [`Child`]. Called by `rcpu`, and by any program that has a connection to a node.
//!
//! ```no_run
//! # async fn example(root: p9::NodeRef) -> Result<(), Box<dyn std::error::Error>> {
//! use cpuserver::{Command, Host};
//!
//! // `root` is the root of a node's tree, as p9::client::Client::attach gives it.
//! let host = Host::new(root);
//! let output = Command::new("uname").arg("-m").output(&host).await?;
//! println!("{} {}", output.ended.used, String::from_utf8_lossy(&output.stdout));
//! # Ok(())
//! # }
//! ```
//!
//! `examples/command.rs` is a whole program.

use std::convert::Infallible;
use std::ffi::OsStr;
use std::future::Future;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use p9::NodeRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::client::{self, Accept, Ended, Error, Event, Request, Taken};
use crate::inherited;

/// Bytes of a pipe on its way.
const PIPE: usize = 64 << 10;

type Served = Pin<Box<dyn Future<Output = Result<(), String>> + Send>>;

/// A node that runs commands, as it is reached from here.
#[derive(Clone)]
pub struct Host {
    root: NodeRef,
    serve: Option<Arc<dyn Fn(String, String) -> Served + Send + Sync>>,
}

impl Host {
    /// The node whose root is `root`: /cpu is below it.
    pub fn new(root: NodeRef) -> Self {
        Self { root, serve: None }
    }

    /// With somebody who serves the caller's files: `serve` gets a session's name and nonce, and sees to it that a
    /// connection which begins with [`crate::serve_back::line`] brings them. Needed by commands whose namespace has
    /// something of the caller's ([`Command::namespace`]).
    #[must_use]
    pub fn serving<F>(self, serve: impl Fn(String, String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let serve = Arc::new(move |session, nonce| Box::pin(serve(session, nonce)) as Served);
        Self { serve: Some(serve), ..self }
    }

    fn serve(&self) -> impl FnOnce(String, String) -> Served + Send + use<> {
        let serve = self.serve.clone();
        move |session, nonce| match serve {
            Some(serve) => serve(session, nonce),
            None => Box::pin(async { Err("nobody serves it: Host::serving".to_owned()) }),
        }
    }
}

/// Where one of a command's streams leads to here.
pub struct Stdio(Kind);

enum Kind {
    Null,
    Inherit,
    Piped,
    From(Box<dyn AsyncRead + Send + Unpin>),
    To(Box<dyn AsyncWrite + Send + Unpin>),
}

impl Stdio {
    /// Nothing is read, and what is written is lost.
    pub fn null() -> Self {
        Self(Kind::Null)
    }

    /// This process's own.
    pub fn inherit() -> Self {
        Self(Kind::Inherit)
    }

    /// A pipe to the [`Child`].
    pub fn piped() -> Self {
        Self(Kind::Piped)
    }

    /// What `reader` gives, for standard input.
    pub fn from(reader: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self(Kind::From(Box::new(reader)))
    }

    /// To `writer`, for standard output or error.
    pub fn to(writer: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Kind::To(Box::new(writer)))
    }

    /// The end to read from, and the child's.
    fn input(self) -> (Box<dyn AsyncRead + Send + Unpin>, Option<DuplexStream>) {
        match self.0 {
            Kind::Inherit => (inherited::input(), None),
            Kind::From(reader) => (reader, None),
            Kind::Piped => {
                let (near, far) = tokio::io::duplex(PIPE);
                (Box::new(far), Some(near))
            }
            Kind::Null | Kind::To(_) => (Box::new(tokio::io::empty()), None),
        }
    }

    /// The end to write to, and the child's. `own` is this process's.
    fn output(
        self, own: impl FnOnce() -> Box<dyn AsyncWrite + Send + Unpin>,
    ) -> (Box<dyn AsyncWrite + Send + Unpin>, Option<DuplexStream>) {
        match self.0 {
            Kind::Inherit => (own(), None),
            Kind::To(writer) => (writer, None),
            Kind::Piped => {
                let (near, far) = tokio::io::duplex(PIPE);
                (Box::new(far), Some(near))
            }
            Kind::Null | Kind::From(_) => (Box::new(tokio::io::sink()), None),
        }
    }
}

/// A command, as it is gathered: a program, its arguments, and what it runs with.
///
/// By default it has the node's own root, a `PATH` for environment, starts in `/`, and inherits this process's streams
/// ([`Command::output`] captures what it writes, and lets it read nothing). It is used up by what runs it.
pub struct Command {
    request: Request,
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
    events: Option<mpsc::Receiver<Event>>,
    accepts: Vec<Accept>,
}

impl Command {
    /// The program `program`, looked up in the `PATH` of its own environment, there.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let argv = vec![program.as_ref().as_bytes().to_vec()];
        let request = Request { argv, umask: 0o22, ..Request::default() };
        Self { request, stdin: None, stdout: None, stderr: None, events: None, accepts: Vec::new() }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.request.argv.push(arg.as_ref().as_bytes().to_vec());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    /// Sets a variable of its environment. Nothing of this process's is inherited; see
    /// [`environment`](crate::client::environment).
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let begin = [name.as_ref().as_bytes(), b"="].concat();
        self.request.env.retain(|item| !item.starts_with(&begin));
        self.request.env.push([&begin, value.as_ref().as_bytes()].concat());
        self
    }

    /// The whole environment: `NAME=VALUE` each.
    #[must_use]
    pub fn environment(mut self, all: Vec<Vec<u8>>) -> Self {
        self.request.env = all;
        self
    }

    /// Where it starts, as its namespace has it.
    #[must_use]
    pub fn current_dir(mut self, path: impl AsRef<Path>) -> Self {
        self.request.cwd = path.as_ref().as_os_str().as_bytes().to_vec();
        self
    }

    /// Permission bits that new files do not get [default: 022].
    #[must_use]
    pub fn umask(mut self, mask: u32) -> Self {
        self.request.umask = mask;
        self
    }

    /// The uid and gid that it sees itself as [default: whoever the node runs as].
    #[must_use]
    pub fn user(mut self, uid: u32, gid: u32) -> Self {
        self.request.user = Some((uid, gid));
        self
    }

    /// Its namespace, as the text of a namespace file ([`default_ns`](crate::client::default_ns): the caller's root),
    /// and the nodes that it names, as lines of known_nodes.
    #[must_use]
    pub fn namespace(mut self, text: impl Into<String>, nodes: impl Into<String>) -> Self {
        (self.request.ns, self.request.nodes) = (text.into(), nodes.into());
        self
    }

    /// A guess at the paths that it is about to walk ([`hints`](crate::client::hints)), its mount points among them, so
    /// that whoever serves the caller's files may tell of them ([`gather`](crate::gather)): for a namespace whose root
    /// is the caller's, once program, environment and directory are said. It looks at this machine's files.
    pub fn hints(&self) -> Vec<Vec<u8>> {
        let Request { argv, env, cwd, ns, .. } = &self.request;
        let lines = ns::text::parse(ns, ns::text::PEER_LINES, &|_| Some("/".into())).unwrap_or_default();
        let points = lines.into_iter().filter_map(|line| match line {
            ns::text::Line::Mount { old, .. } | ns::text::Line::Bind { old, .. } => Some(old.into_bytes()),
            _ => None,
        });
        argv.first().map(|name| client::hints(name, env, cwd)).into_iter().flatten().chain(points).collect()
    }

    /// A terminal of so many rows and columns instead of pipes: what it writes to standard error comes with its output.
    #[must_use]
    pub fn terminal(mut self, rows: u16, columns: u16) -> Self {
        self.request.terminal = Some((rows, columns));
        self
    }

    /// Added to its niceness.
    #[must_use]
    pub fn nice(mut self, nice: i32) -> Self {
        self.request.nice = nice;
        self
    }

    /// What bounds it: lines as the file `limits` takes them, such as `memory 2G`.
    #[must_use]
    pub fn limits(mut self, lines: impl Into<String>) -> Self {
        self.request.limits = lines.into();
        self
    }

    /// What connects to `address` there while it runs (`unix!PATH`, as its namespace has it, or `tcp!HOST!PORT` of the
    /// node) is given to `carry`: at most 256 connections at once, which end with the command. One that is
    /// [detached](Command::detach) has nobody to carry them.
    #[must_use]
    pub fn accept<F>(mut self, address: impl Into<String>, carry: impl Fn(Taken) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let accept = Accept::new(address, carry);
        self.request.listen.push(accept.address.clone());
        self.accepts.push(accept);
        self
    }

    /// A small file that it finds at `path`, which is in a place of its own, such as /run, and goes with it. Its user
    /// alone reads it. All together have at most 64 KiB.
    #[must_use]
    pub fn file(mut self, path: impl Into<String>, contents: impl Into<Vec<u8>>) -> Self {
        self.request.files.push((path.into(), contents.into()));
        self
    }

    /// What it reads.
    #[must_use]
    pub fn stdin(mut self, stdio: Stdio) -> Self {
        self.stdin = Some(stdio);
        self
    }

    /// Where its output goes.
    #[must_use]
    pub fn stdout(mut self, stdio: Stdio) -> Self {
        self.stdout = Some(stdio);
        self
    }

    /// Where its errors go.
    #[must_use]
    pub fn stderr(mut self, stdio: Stdio) -> Self {
        self.stderr = Some(stdio);
        self
    }

    /// What is told to it besides [`Child::signal`], from now on: a signal that ends programs, arriving before it runs,
    /// ends the attempt.
    #[must_use]
    pub fn events(mut self, events: mpsc::Receiver<Event>) -> Self {
        self.events = Some(events);
        self
    }

    /// Starts it on `host`; returns once it runs. Errors: it never did.
    pub async fn spawn(mut self, host: &Host) -> Result<Child, Error> {
        let inherit = |stdio: Option<Stdio>| stdio.unwrap_or_else(Stdio::inherit);
        let (stdin, near_stdin) = inherit(self.stdin.take()).input();
        let (stdout, near_stdout) = inherit(self.stdout.take()).output(inherited::output);
        let (stderr, near_stderr) = inherit(self.stderr.take()).output(inherited::error);
        let stdio = client::Stdio { stdin, stdout, stderr };
        let (events, received) = mpsc::channel(16);
        let (running, mut runs) = watch::channel(false);
        let (root, serve, told) = (host.root.clone(), host.serve(), self.events.take());
        let others = events.clone();
        let mut task = Ending(tokio::spawn(async move {
            let run = client::run_and_tell(root, serve, self.request, &self.accepts, stdio, received, &running);
            tokio::select! {
                ended = run => ended,
                never = pass_on(told, others) => match never {},
            }
        }));
        let ended = tokio::select! {
            biased;
            Ok(_) = runs.wait_for(|runs| *runs) => None,
            ended = &mut task.0 => Some(finished(ended)?),
        };
        Ok(Child { stdin: near_stdin, stdout: near_stdout, stderr: near_stderr, events, task, ended })
    }

    /// Runs it on `host` to its end.
    pub async fn status(self, host: &Host) -> Result<Ended, Error> {
        self.spawn(host).await?.wait().await
    }

    /// Runs it on `host` to its end, and gives what it wrote. It reads nothing unless [`Command::stdin`] says so.
    pub async fn output(mut self, host: &Host) -> Result<Output, Error> {
        self.stdin.get_or_insert_with(Stdio::null);
        self.stdout.get_or_insert_with(Stdio::piped);
        self.stderr.get_or_insert_with(Stdio::piped);
        self.spawn(host).await?.wait_with_output().await
    }

    /// Starts it on `host` and leaves it running: gives the number of its session there. It reads nothing, and
    /// [`client::attach`](crate::client::attach) gives the last of what it writes.
    pub async fn detach(self, host: &Host) -> Result<u64, Error> {
        let (_events, never) = mpsc::channel(1);
        client::start_detached(host.root.clone(), host.serve(), self.request, self.events.unwrap_or(never)).await
    }
}

/// Tells `events` what `told` does, for ever.
async fn pass_on(told: Option<mpsc::Receiver<Event>>, events: mpsc::Sender<Event>) -> Infallible {
    if let Some(mut told) = told {
        while let Some(event) = told.recv().await {
            if events.send(event).await.is_err() {
                break;
            }
        }
    }
    std::future::pending().await
}

fn finished(ended: Result<Result<Ended, Error>, tokio::task::JoinError>) -> Result<Ended, Error> {
    ended.unwrap_or(Err(Error::Garbled("the task of the command")))
}

/// What came of a command, and what it wrote.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub ended: Ended,
    /// Its standard output, if that was a pipe.
    pub stdout: Vec<u8>,
    /// Its standard error, if that was a pipe.
    pub stderr: Vec<u8>,
}

/// The task of a command, which ends with this, and the command with it.
struct Ending(JoinHandle<Result<Ended, Error>>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A command that runs. Dropping it ends the command.
pub struct Child {
    /// What it reads, if that is a pipe: dropping it is the end of its input.
    pub stdin: Option<DuplexStream>,
    /// What it writes, if that is a pipe.
    pub stdout: Option<DuplexStream>,
    /// Its errors, if that is a pipe.
    pub stderr: Option<DuplexStream>,
    events: mpsc::Sender<Event>,
    task: Ending,
    ended: Option<Ended>,
}

impl Child {
    /// Sends the signal `number`, as this machine numbers it, to its process group: `SIGKILL` to all of it. One that
    /// has ended is not told.
    pub async fn signal(&self, number: i32) {
        let _ = self.events.send(Event::Signal(number)).await;
    }

    /// Kills all of it.
    pub async fn kill(&self) {
        self.signal(libc::SIGKILL).await;
    }

    /// Sets the size of its terminal.
    pub async fn resize(&self, rows: u16, columns: u16) {
        let _ = self.events.send(Event::Winsize(rows, columns)).await;
    }

    /// Closes its input if that is a pipe, and waits for its end. What it writes to a pipe has to be read meanwhile.
    pub async fn wait(mut self) -> Result<Ended, Error> {
        drop(self.stdin.take());
        match self.ended.take() {
            Some(ended) => Ok(ended),
            None => finished((&mut self.task.0).await),
        }
    }

    /// The same, with what it writes to its pipes. Errors: as for [`Child::wait`].
    pub async fn wait_with_output(mut self) -> Result<Output, Error> {
        let all = async |stream: Option<DuplexStream>| {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                // The far end is in this process: it does not fail.
                let _ = stream.read_to_end(&mut bytes).await;
            }
            bytes
        };
        let (stdout, stderr) = (self.stdout.take(), self.stderr.take());
        let (stdout, stderr, ended) = tokio::join!(all(stdout), all(stderr), self.wait());
        Ok(Output { ended: ended?, stdout, stderr })
    }
}
