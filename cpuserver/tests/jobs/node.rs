//! A node in this process, a caller of it, and what the tests do with both.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cpuserver::client::{self, Ended, Error, Event, Exit, Request, Stdio, default_ns};
use cpuserver::launch::Launcher;
use cpuserver::{Cpu, CpuLimits, CpuOptions, serve_back};
use fileserver::{Disk, DiskOptions};
use p9::client::Client;
use p9::server::{self, Limits};
use p9::{Errno, Handle, How, Name, NodeRef, Reply, Tree, Want, Who, synth};
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);

/// A node called beta, and a connection to it.
pub(crate) struct Node {
    cpu: Arc<Cpu>,
    root: NodeRef,
    _client: Client,
    serving: tokio::task::AbortHandle,
    tmp: tempfile::TempDir,
}

/// Its own trees: one export.
struct Own;

impl ns::Dialer for Own {
    fn dial<'a>(&'a self, server: &'a str, _spec: &'a str) -> Reply<'a, NodeRef> {
        match server {
            "#fs" => Reply::ok(synth::dir([("own", synth::dir([]))])),
            _ => Errno::ENOENT.into(),
        }
    }
}

impl Node {
    pub(crate) async fn new() -> Self {
        let tmp = tempfile::tempdir_in("/var/tmp").unwrap();
        let cpu = Cpu::new(CpuOptions {
            launcher: Launcher::start().unwrap(),
            node_name: "beta".into(),
            runtime: tokio::runtime::Handle::current(),
            own: Arc::new(Own),
            travel: None,
            tmp: tmp.path().into(),
            env: Vec::new(),
            drivers: Vec::new(),
            qid_key: [7; 32],
            disk: None,
            limits: CpuLimits::default(),
        });
        let served = cpu.clone();
        let tree = synth::tree_for(move |who| Ok(synth::dir(served.node_for(who).map(|node| ("cpu", node)))));
        let (near, far) = tokio::io::duplex(1 << 20);
        let serving = tokio::spawn(server::serve(far, tree, Arc::new(Who::owner()), Limits::default())).abort_handle();
        let client = Client::connect(near, p9::client::Options::default()).await.unwrap();
        let root = client.attach(&Who::owner(), b"/").await.unwrap();
        Self { cpu, root, _client: client, serving, tmp }
    }

    /// Its root.
    pub(crate) fn root(&self) -> NodeRef {
        self.root.clone()
    }

    /// The number of its latest session, if it has only one.
    pub(crate) fn last_session(&self) -> u64 {
        self.cpu.jobs().first().expect("a command runs").session
    }

    /// Cuts the connection to it.
    pub(crate) fn cut(&self) {
        self.serving.abort();
    }

    /// Where its private /tmp directories are.
    pub(crate) fn tmp(&self) -> PathBuf {
        self.tmp.path().into()
    }

    async fn open(&self, path: &str, how: How) -> Handle {
        let names = Name::split(path.as_bytes()).unwrap();
        let opened = self.root.open_at(&names, how, Want::default()).await;
        opened.unwrap_or_else(|errno| panic!("{path}: {errno}")).handle
    }

    /// What cat says.
    pub(crate) async fn text(&self, path: &str) -> String {
        let file = self.open(path, How::READ).await;
        let mut text = Vec::new();
        loop {
            let read = file.read(text.len() as u64, 1 << 16).await.unwrap_or_else(|errno| panic!("{path}: {errno}"));
            if read.is_empty() {
                return String::from_utf8(text).unwrap();
            }
            text.extend_from_slice(&read);
        }
    }

    /// What echo does.
    pub(crate) async fn put(&self, path: &str, text: &str) {
        let file = self.open(path, How::WRITE).await;
        file.write(0, text.to_owned().into()).await.unwrap_or_else(|errno| panic!("{path}: {errno}"));
        file.close().await.unwrap();
    }

    /// A session's number, and the clone file that keeps it.
    pub(crate) async fn session(&self) -> (String, Handle) {
        let clone = self.open("cpu/clone", How::RDWR).await;
        let number = String::from_utf8(clone.read(0, 64).await.unwrap().to_vec()).unwrap();
        (number.trim_end().to_owned(), clone)
    }

    pub(crate) async fn run(&self, command: Request) -> Run {
        self.run_with(command, b"").await
    }

    /// Runs `command` with `input` to read.
    pub(crate) async fn run_with(&self, command: Request, input: &[u8]) -> Run {
        let input: Vec<u8> = input.into();
        Run::begin(self, command, Box::new(std::io::Cursor::new(input))).end().await
    }

    /// Waits until no session is left, and nothing of one.
    pub(crate) async fn until_idle(&self) {
        let tmp = self.tmp();
        until("nothing is left", async || {
            self.cpu.counts() == (0, 0) && std::fs::read_dir(&tmp).unwrap().next().is_none()
        })
        .await;
    }
}

/// A command on its way, and then what came of it.
pub(crate) struct Run<R = Result<Ended, Error>> {
    pub(crate) result: R,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) events: mpsc::Sender<Event>,
    ends: Option<(DuplexStream, DuplexStream)>,
}

type Running = tokio::task::JoinHandle<Result<Ended, Error>>;

impl Run<Running> {
    /// Starts `command` with nothing to read for as long as it runs.
    pub(crate) fn start(node: &Node, command: Request) -> Self {
        let (waiting, never) = tokio::io::duplex(1);
        let run = Self::begin(node, command, Box::new(waiting));
        std::mem::forget(never);
        run
    }

    pub(crate) fn begin(node: &Node, command: Request, stdin: Box<dyn tokio::io::AsyncRead + Send + Unpin>) -> Self {
        let (stdout, out) = tokio::io::duplex(1 << 16);
        let (stderr, err) = tokio::io::duplex(1 << 16);
        let (events, received) = mpsc::channel(4);
        let stdio = Stdio { stdin, stdout: Box::new(out), stderr: Box::new(err) };
        let (cpu, root) = (node.cpu.clone(), node.root.clone());
        let serve = move |id, nonce: String| async move {
            let disk = Disk::open(Path::new("/"), DiskOptions::new([1; 32])).map_err(|err| err.to_string())?;
            let (near, far) = tokio::io::duplex(1 << 20);
            tokio::spawn(server::serve(near, disk, Arc::new(Who::owner()), Limits::default()));
            let line = serve_back::line(id, &nonce);
            cpu.serve_back(&line, Box::new(far), &Who::owner()).await.map_err(|err| err.to_string())
        };
        let result = tokio::spawn(client::run(root, serve, command, stdio, received));
        Self { result, stdout: String::new(), stderr: String::new(), events, ends: Some((stdout, stderr)) }
    }

    /// Waits until the command has written `text`.
    pub(crate) async fn until_output(&mut self, text: &str) {
        let (stdout, _) = self.ends.as_mut().unwrap();
        let mut bytes = vec![0; text.len()];
        tokio::time::timeout(PATIENCE, stdout.read_exact(&mut bytes)).await.expect(text).unwrap();
        self.stdout += std::str::from_utf8(&bytes).unwrap();
        assert_eq!(self.stdout, text);
    }

    /// Waits for its end.
    pub(crate) async fn end(mut self) -> Run {
        let (mut stdout, mut stderr) = self.ends.take().unwrap();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let all = async { tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_end(&mut err), self.result) };
        let (_, _, result) = tokio::time::timeout(PATIENCE, all).await.expect("the command ends");
        Run {
            result: result.unwrap(),
            stdout: self.stdout + std::str::from_utf8(&out).unwrap(),
            stderr: String::from_utf8(err).unwrap(),
            events: self.events,
            ends: None,
        }
    }
}

impl Run {
    /// How it ended.
    pub(crate) fn exit(&self) -> Exit {
        self.ended().exit
    }

    /// The same, and what it used.
    pub(crate) fn ended(&self) -> &Ended {
        self.result.as_ref().unwrap_or_else(|err| panic!("{err}; stderr: {}", self.stderr))
    }
}

/// `argv` in the default namespace.
pub(crate) fn command(argv: &[&str]) -> Request {
    Request {
        argv: argv.iter().map(|word| word.as_bytes().to_vec()).collect(),
        env: vec![b"PATH=/usr/local/bin:/usr/bin:/bin".to_vec()],
        cwd: b"/".into(),
        umask: 0o22,
        user: Some((rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())),
        ns: default_ns("beta"),
        ..Request::default()
    }
}

/// A shell script in the default namespace.
pub(crate) fn sh(script: &str) -> Request {
    command(&["sh", "-c", script])
}

/// Waits until `what` is so.
pub(crate) async fn until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"));
}

/// Whether there is a process `pid`.
pub(crate) fn exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
