//! One session: what was written to its files, the command that runs in it, and what came of that.
//!
//! The files of [`files`] change and show it, in the tasks that answer requests; the job's own task moves its phase
//! on. What was asked for can change until `exec`, and never after. A session ends when nobody holds its clone file
//! and no detached command runs in it; its processes end with it.

mod files;
mod limits;
mod listening;
mod spec;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use p9::client::Client;
use p9::transport::Io;
use p9::{Errno, NodeRef, Reply};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};

use crate::ctl::Ctl;
use crate::flow::{Input, Output};
use crate::job::Terminal;
use crate::launch::{Exit, Usage};
use crate::travel::Trees;
use crate::wire::Wire;
use crate::{Cpu, owner::Owner};

pub(crate) use files::{CloneFile, directory};
pub(crate) use limits::Limits;
pub(crate) use listening::Listening;
pub(crate) use spec::{Spec, list_text};

/// One session.
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) owner: Owner,
    pub(crate) stdin: Arc<Input>,
    pub(crate) stdout: Arc<Output>,
    pub(crate) stderr: Arc<Output>,
    asked: Mutex<Asked>,
    phase: watch::Sender<Phase>,
    /// The connection to the caller, and the tree that it serves, once it came.
    caller: watch::Sender<Option<(Client, NodeRef)>>,
    /// What else the command's namespace names, once that was made.
    trees: Mutex<Option<Arc<dyn Trees>>>,
    /// Signals for the command, on their way to the job's task.
    signals: mpsc::Sender<i32>,
    signalled: Mutex<Option<mpsc::Receiver<i32>>>,
    /// Set once: everything of this session ends.
    over: watch::Sender<bool>,
    detached: AtomicBool,
    /// How often the clone file is open, and whether it ever was.
    held: AtomicUsize,
    was_held: AtomicBool,
    began: Instant,
    /// What came and went on the connections that bring the caller's tree.
    pub(crate) wire: Arc<Wire>,
    /// What keeps which limit.
    kept_by: Mutex<String>,
    /// Where connections are taken for the caller, while the command runs.
    listening: watch::Sender<Option<Arc<Listening>>>,
}

struct Asked {
    spec: Spec,
    /// What a connection must say to bring the caller's tree; `None` once one did.
    nonce: Option<String>,
    /// The same once one did, for further connections; and where those go.
    again: Option<(String, mpsc::Sender<Brought>)>,
    terminal: Option<Terminal>,
}

/// A further connection of a caller who has brought its tree.
pub(crate) enum Brought {
    /// One that takes the place of that by which the tree came.
    First(Io),
    /// One for bulk alone.
    Bulk(Io),
}

/// How far the command is.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// Nothing was started.
    New,
    /// Its namespace is being made.
    Starting,
    /// It runs; `pid` is that of its init on this node.
    Running { pid: i32 },
    /// It is over.
    Ended(Arc<Ended>),
}

/// What came of a command.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Result<Exit, Failure>,
    pub(crate) real: Duration,
    pub(crate) usage: Usage,
    /// Bytes of the caller's tree: received and sent.
    pub(crate) wire: (u64, u64),
    /// The limit that ended it, in words.
    pub(crate) limit: Option<String>,
}

/// Why a command never ran, or how it was lost.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// The exit status that a shell would give: 127 not found, 126 not executable, 255 anything else.
    pub(crate) code: u8,
    /// What the writer of `exec` is answered.
    pub(crate) errno: Errno,
    /// In words: the step, the thing, the reason.
    pub(crate) reason: String,
    /// It ran, and how it would have ended is not known.
    pub(crate) ran: bool,
}

impl Session {
    /// A session without a command. `buffer` bounds each of its streams, in bytes.
    pub(crate) fn new(id: u64, owner: Owner, nonce: String, buffer: usize) -> Arc<Self> {
        let (signals, signalled) = mpsc::channel(16);
        Arc::new(Self {
            id,
            owner,
            stdin: Input::new(buffer),
            stdout: Output::new(buffer),
            stderr: Output::new(buffer),
            asked: Mutex::new(Asked { spec: Spec::default(), nonce: Some(nonce), again: None, terminal: None }),
            phase: watch::Sender::new(Phase::New),
            caller: watch::Sender::new(None),
            trees: Mutex::default(),
            signals,
            signalled: Mutex::new(Some(signalled)),
            over: watch::Sender::new(false),
            detached: AtomicBool::new(false),
            held: AtomicUsize::new(0),
            was_held: AtomicBool::new(false),
            began: Instant::now(),
            wire: Arc::default(),
            kept_by: Mutex::default(),
            listening: watch::Sender::new(None),
        })
    }

    /// Obeys the commands of one write, in order, to the first that fails. The reply is pending only while an `exec`
    /// waits for its command to run.
    pub(crate) fn control(self: &Arc<Self>, cpu: &Arc<Cpu>, text: &[u8]) -> Reply<'static, ()> {
        let obeyed = Ctl::parse(text).and_then(|commands| {
            commands.into_iter().try_fold(false, |wait, command| {
                let waits = command == Ctl::Exec;
                self.obey(cpu, command).map(|()| wait || waits)
            })
        });
        match obeyed {
            Ok(true) => {
                let session = self.clone();
                Reply::later(async move { session.runs().await })
            }
            obeyed => obeyed.map(|_| ()).into(),
        }
    }

    fn obey(self: &Arc<Self>, cpu: &Arc<Cpu>, command: Ctl) -> Result<(), Errno> {
        match command {
            Ctl::Exec | Ctl::Start => self.start(cpu)?,
            Ctl::Kill(signal) => self.kill(signal)?,
            Ctl::Winsize(rows, cols) => self.resize(rows, cols)?,
            Ctl::Detach => {
                self.detached.store(true, Ordering::SeqCst);
                [&self.stdout, &self.stderr].into_iter().for_each(|output| output.detach());
            }
            Ctl::Eof => self.stdin.end(),
            part => self.ask(|spec| spec.apply(part))?,
        }
        Ok(())
    }

    /// Changes what is asked for. Errors: `EBUSY` once the command was started; what `change` says.
    pub(crate) fn ask(&self, change: impl FnOnce(&mut Spec) -> Result<(), Errno>) -> Result<(), Errno> {
        let mut asked = self.asked.lock();
        if !matches!(*self.phase.borrow(), Phase::New) {
            return Err(Errno::EBUSY);
        }
        change(&mut asked.spec)
    }

    /// What is asked for.
    pub(crate) fn spec(&self) -> Spec {
        self.asked.lock().spec.clone()
    }

    fn start(self: &Arc<Self>, cpu: &Arc<Cpu>) -> Result<(), Errno> {
        if self.is_over() {
            return Err(Errno::ESTALE);
        }
        if self.asked.lock().spec.args.is_empty() {
            return Err(Errno::EINVAL);
        }
        let signalled = self.signalled.lock().take().ok_or(Errno::EBUSY)?;
        self.phase.send_replace(Phase::Starting);
        cpu.runtime().spawn(crate::job::run(cpu.clone(), self.clone(), signalled));
        Ok(())
    }

    fn kill(&self, signal: i32) -> Result<(), Errno> {
        match *self.phase.borrow() {
            Phase::Starting | Phase::Running { .. } => self.signals.try_send(signal).map_err(|_| Errno::EAGAIN),
            Phase::New | Phase::Ended(_) => Err(Errno::ESRCH),
        }
    }

    fn resize(&self, rows: u16, cols: u16) -> Result<(), Errno> {
        let mut asked = self.asked.lock();
        asked.spec.winsize = Some((rows, cols));
        asked.terminal.as_ref().map_or(Ok(()), |terminal| terminal.resize(rows, cols))
    }

    /// Gives the session its terminal, which gets the window size that was asked for so far.
    pub(crate) fn set_terminal(&self, terminal: Terminal) -> Result<(), Errno> {
        let mut asked = self.asked.lock();
        if let Some((rows, cols)) = asked.spec.winsize {
            terminal.resize(rows, cols)?;
        }
        asked.terminal = Some(terminal);
        Ok(())
    }

    /// How far the command is now.
    pub(crate) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Moves on: what runs becomes visible to whoever waits.
    pub(crate) fn enter(&self, phase: Phase) {
        if matches!(phase, Phase::Ended(_)) {
            self.asked.lock().terminal = None;
            self.listening.send_replace(None);
        }
        self.phase.send_replace(phase);
    }

    /// Where connections are taken from now on, until the command ends.
    pub(crate) fn listens(&self, at: Listening) {
        self.listening.send_replace(Some(Arc::new(at)));
    }

    /// Where connections are taken, once that has begun. Errors: `ESTALE` if the command has ended, or never will run.
    pub(crate) async fn listening(&self) -> Result<Arc<Listening>, Errno> {
        let mut changes = self.listening.subscribe();
        tokio::select! {
            biased;
            there = changes.wait_for(Option::is_some) => there.map_err(|_| Errno::EIO)?.clone().ok_or(Errno::EIO),
            _ = self.ended() => Err(Errno::ESTALE),
        }
    }

    /// Where connections are taken now.
    pub(crate) fn listening_now(&self) -> Option<Arc<Listening>> {
        self.listening.borrow().clone()
    }

    /// Returns once the command runs (or ran). Errors: why it could not.
    async fn runs(&self) -> Result<(), Errno> {
        let reached = |phase: &Phase| matches!(phase, Phase::Running { .. } | Phase::Ended(_));
        let mut phases = self.phase.subscribe();
        let phase = phases.wait_for(reached).await.map_err(|_| Errno::EIO)?;
        match &*phase {
            Phase::Ended(ended) => ended.outcome.as_ref().map(|_| ()).map_err(|failure| failure.errno),
            _ => Ok(()),
        }
    }

    /// Returns what came of the command. Errors: `ESTALE` if the session ends without having run one.
    pub(crate) async fn ended(&self) -> Result<Arc<Ended>, Errno> {
        let mut phases = self.phase.subscribe();
        let ended = async {
            loop {
                if let Phase::Ended(ended) = &*phases.borrow_and_update() {
                    return Ok(ended.clone());
                }
                phases.changed().await.map_err(|_| Errno::EIO)?;
            }
        };
        let never = async {
            self.over().await;
            // A command that was started will still come to its end.
            if !matches!(self.phase(), Phase::New) {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            ended = ended => ended,
            () = never => Err(Errno::ESTALE),
        }
    }

    /// The connection to the caller, and the tree that it serves, as soon as it came.
    pub(crate) async fn caller(&self) -> Result<(Client, NodeRef), Errno> {
        let mut trees = self.caller.subscribe();
        let tree = trees.wait_for(Option::is_some).await.map_err(|_| Errno::EIO)?;
        tree.clone().ok_or(Errno::EIO)
    }

    /// Takes the caller's tree from a connection that proved to be the caller's.
    pub(crate) fn set_caller(&self, client: Client, root: NodeRef) {
        self.caller.send_replace(Some((client, root)));
    }

    /// Notes how what the namespace names is reached.
    pub(crate) fn set_trees(&self, trees: Arc<dyn Trees>) {
        *self.trees.lock() = Some(trees);
    }

    /// What [`Session::set_trees`] noted.
    pub(crate) fn trees(&self) -> Option<Arc<dyn Trees>> {
        self.trees.lock().clone()
    }

    /// Lets go of the caller's tree.
    pub(crate) fn drop_caller(&self) {
        *self.trees.lock() = None;
        self.caller.send_replace(None);
    }

    /// Returns once the connection that brought the caller's tree has ended; never, if none did.
    pub(crate) async fn caller_lost(&self) {
        if self.asked.lock().nonce.is_some() {
            return std::future::pending().await;
        }
        let _ = self.caller.subscribe().wait_for(Option::is_none).await;
    }

    /// What a connection must say to bring the caller's tree: empty once one did.
    pub(crate) fn nonce(&self) -> String {
        self.asked.lock().nonce.clone().unwrap_or_default()
    }

    /// Whether `said` is the nonce; it is right once. Gives the further connections.
    pub(crate) fn redeem(&self, said: &str) -> Option<mpsc::Receiver<Brought>> {
        let mut asked = self.asked.lock();
        asked.nonce.as_deref().filter(|nonce| equal(nonce.as_bytes(), said.as_bytes()))?;
        let (again, coming) = mpsc::channel(2);
        asked.again = asked.nonce.take().map(|nonce| (nonce, again));
        Some(coming)
    }

    /// Where a connection goes that says the nonce again.
    pub(crate) fn again(&self, said: &str) -> Option<mpsc::Sender<Brought>> {
        let asked = self.asked.lock();
        let (nonce, again) = asked.again.as_ref()?;
        equal(nonce.as_bytes(), said.as_bytes()).then(|| again.clone())
    }

    /// The clone file was opened.
    fn hold(&self) {
        self.was_held.store(true, Ordering::SeqCst);
        self.held.fetch_add(1, Ordering::SeqCst);
    }

    /// The clone file was closed; says whether the session lives on: it is open elsewhere, or a detached command runs
    /// in it, or did.
    pub(crate) fn release(&self) -> bool {
        let others = self.held.fetch_sub(1, Ordering::SeqCst) > 1;
        others || self.detached.load(Ordering::SeqCst) && !matches!(self.phase(), Phase::New)
    }

    /// Whether nobody holds the clone file any more.
    pub(crate) fn is_released(&self) -> bool {
        self.held.load(Ordering::SeqCst) == 0
    }

    /// Whether anybody ever held the clone file.
    pub(crate) fn was_held(&self) -> bool {
        self.was_held.load(Ordering::SeqCst)
    }

    /// Ends everything of this session. The job's task kills what runs.
    pub(crate) fn end(&self) {
        self.over.send_replace(true);
        self.stdin.break_off();
        self.stdout.end();
        self.stderr.end();
    }

    /// Returns once the session is to end.
    pub(crate) async fn over(&self) {
        // The sender is in this session: it cannot be gone.
        let _ = self.over.subscribe().wait_for(|&over| over).await;
    }

    fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Notes what keeps which limit: ` LIMIT BY` for each.
    pub(crate) fn set_kept_by(&self, told: &str) {
        told.clone_into(&mut self.kept_by.lock());
    }

    /// What keeps which limit.
    pub(crate) fn kept_by(&self) -> String {
        self.kept_by.lock().clone()
    }

    /// How long it exists.
    pub(crate) fn age(&self) -> Duration {
        self.began.elapsed()
    }
}

/// Compares without telling by the time it takes how far the two are alike.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && std::hint::black_box(a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b))) == 0
}
