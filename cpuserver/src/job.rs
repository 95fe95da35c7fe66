//! One command: its namespace, its root, its streams, from `exec` to what came of it.
//!
//! [`run`] is the task of one job, spawned by `exec` on the node's runtime. It holds everything that the job needs (the
//! FUSE session, the private /tmp, the flows' ends) and lets go of it in order when the job is over, however it ends.

mod namespace;
mod terminal;
mod tmp;

use std::sync::Arc;
use std::time::{Duration, Instant};

use p9::Errno;
use rustix::process::{getegid, geteuid};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::Cpu;
use crate::launch::{self, Exit, Job, JobSpec, Usage};
use crate::owned::Owners;
use crate::session::{Ended, Failure, Phase, Session, Spec};

pub(crate) use namespace::text;
pub(crate) use terminal::Terminal;

/// How long the parts of a job that is over may take to go.
const GRACE: Duration = Duration::from_secs(5);

/// Runs what `session` asks for to its end.
pub(crate) async fn run(cpu: Arc<Cpu>, session: Arc<Session>, mut signals: mpsc::Receiver<i32>) {
    let began = Instant::now();
    let started = tokio::select! {
        biased;
        () = session.over() => Err(failure(255, Errno::EINTR, "the session ended")),
        started = start(&cpu, &session) => started,
    };
    let (outcome, usage, running) = match started {
        Ok(mut running) => {
            let outcome = running.until_over(&session, &mut signals).await;
            let usage = running.job.usage();
            (outcome, usage, Some(running))
        }
        Err(failure) => (Err(failure), Usage::default(), None),
    };
    match &outcome {
        Ok(exit) => tracing::debug!(session = session.id, ?exit, "a command ended"),
        Err(failure) => tracing::debug!(session = session.id, reason = failure.reason, "a command never ran"),
    }
    session.stdin.break_off();
    match running {
        Some(running) => {
            session.enter(Phase::Ended(Arc::new(Ended { outcome, real: began.elapsed(), usage })));
            cpu.finished(&session);
            running.let_go(&session).await;
        }
        None => {
            session.stdout.end();
            session.stderr.end();
            session.enter(Phase::Ended(Arc::new(Ended { outcome, real: began.elapsed(), usage })));
            cpu.finished(&session);
        }
    }
    session.drop_caller();
}

/// A job and what it stands on.
struct Running {
    job: Job,
    mount: mount::Mount,
    /// The tasks that move the bytes of its streams.
    flows: JoinSet<()>,
    tmp: Option<tmp::Tmp>,
}

async fn start(cpu: &Arc<Cpu>, session: &Arc<Session>) -> Result<Running, Failure> {
    let spec = session.spec();
    let own = (geteuid().as_raw(), getegid().as_raw());
    let user = spec.user.unwrap_or(own);
    let root = namespace::root(cpu, session, &spec, Owners { own, shown: user }).await?;

    let (near, far) = terminal::streams(spec.pty).map_err(|err| failed("streams", err))?;
    let job_spec = job_spec(cpu, spec, own, user, root.mounts);
    let mut job = cpu.options.launcher.start_job(&job_spec, far).await.map_err(never_started)?;
    let disk = cpu.options.disk.as_ref().map(|disk| disk.apart(session.owner.name().as_bytes()));
    let options = mount::Options { fs_name: format!("slashn-job-{}", session.id), disk, ..mount::Options::default() };
    let fuse = job.take_fuse().ok_or_else(|| failure(255, Errno::EIO, "the launcher sent no root"))?;
    let mount = mount::serve(root.node, fuse, options, cpu.runtime().clone())
        .map_err(|err| failure(255, Errno::EIO, &format!("root: {err}")))?;
    let flows = pump(session, near)?;
    Ok(Running { job, mount, flows, tmp: root.tmp })
}

fn job_spec(cpu: &Cpu, spec: Spec, own: (u32, u32), user: (u32, u32), mounts: Vec<launch::JobMount>) -> JobSpec {
    const PATH: &[u8] = b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut env = if spec.env.is_empty() { cpu.options.env.clone() } else { spec.env };
    if env.is_empty() {
        env.push(PATH.to_vec());
    }
    JobSpec {
        argv: spec.args,
        env,
        cwd: if spec.cwd.is_empty() { b"/".to_vec() } else { spec.cwd },
        umask: spec.umask,
        inner_uid: user.0,
        inner_gid: user.1,
        user_ns: own.0 != 0 || user != own,
        own_pids: true,
        hostname: Some(cpu.options.node_name.clone()),
        mounts,
        rlimits: spec.limits,
        nice: spec.nice,
        pty: spec.pty,
    }
}

/// Starts the tasks that move the streams' bytes.
fn pump(session: &Arc<Session>, near: terminal::Near) -> Result<JoinSet<()>, Failure> {
    let mut flows = JoinSet::new();
    let at_end = near.terminal.as_ref().map(Terminal::end_of_input);
    if let Some(terminal) = near.terminal {
        session.set_terminal(terminal).map_err(|errno| failed("terminal", errno.into()))?;
    }
    let (stdin, stdout, stderr) = (session.stdin.clone(), session.stdout.clone(), session.stderr.clone());
    flows.spawn(async move { stdin.drain(near.stdin, at_end).await });
    flows.spawn(async move { stdout.fill(near.stdout).await });
    match near.stderr {
        Some(source) => drop(flows.spawn(async move { stderr.fill(source).await })),
        None => stderr.end(),
    }
    Ok(flows)
}

impl Running {
    /// Returns when the command is over: by itself, by a signal that was asked for, because the session ends, or
    /// because the caller's tree is gone: what it would make of that is not its own end.
    async fn until_over(&mut self, session: &Session, signals: &mut mpsc::Receiver<i32>) -> Result<Exit, Failure> {
        let (mut runs, mut ending, mut lost) = (false, false, false);
        loop {
            tokio::select! {
                next = self.next(runs) => match next.map_err(|error| Failure { ran: runs, ..never_started(error) })? {
                    Some(_) if lost => {
                        let reason = "the caller's tree: its connection was lost, so the command was ended";
                        return Err(Failure { ran: runs, ..failure(255, Errno::EIO, reason) });
                    }
                    Some(exit) => return Ok(exit),
                    None => {
                        runs = true;
                        session.enter(Phase::Running { pid: self.job.init() });
                    }
                },
                Some(signal) = signals.recv(), if runs => self.kill(signal),
                () = session.over(), if !ending => {
                    ending = true;
                    self.kill(libc::SIGKILL);
                }
                () = session.caller_lost(), if runs && !lost => {
                    lost = true;
                    self.kill(libc::SIGKILL);
                }
            }
        }
    }

    /// How the command ended; or, while it does not run yet, nothing, once it does.
    async fn next(&mut self, runs: bool) -> Result<Option<Exit>, launch::Error> {
        if runs { self.job.wait().await.map(Some) } else { self.job.running().await.map(|()| None) }
    }

    fn kill(&self, signal: i32) {
        if let Err(error) = self.job.kill(signal) {
            tracing::debug!(%error, signal, "a command could not be signalled");
        }
    }

    /// Lets go of what the job stood on, and sees the rest of its output off.
    async fn let_go(self, session: &Session) {
        let Self { mut job, mount, mut flows, tmp } = self;
        if tokio::time::timeout(GRACE, job.gone()).await.is_err() {
            tracing::warn!(session = session.id, "a job's processes are slow to go");
        }
        drop(job);
        // Its mount namespace is gone, so the kernel ends the FUSE session by itself.
        let ended = tokio::time::timeout(GRACE, mount.ended()).await;
        if ended.is_err() {
            tracing::warn!(session = session.id, "a job's root did not end by itself");
        }
        let _ = tokio::task::spawn_blocking(move || (drop(mount), drop(tmp))).await;
        tokio::select! {
            () = async { while flows.join_next().await.is_some() {} } => {}
            () = session.over() => {}
        }
    }
}

fn never_started(error: launch::Error) -> Failure {
    let errno = match &error {
        launch::Error::NotFound { .. } | launch::Error::Cwd { .. } => Errno::ENOENT,
        launch::Error::NotExecutable { .. } => Errno::EACCES,
        launch::Error::Interpreter { .. } => Errno::ENOEXEC,
        _ => Errno::EIO,
    };
    let remedy = error.remedy().map(|remedy| format!("; try: {remedy}")).unwrap_or_default();
    failure(error.exit_code(), errno, &format!("{error}{remedy}"))
}

fn failed(step: &str, error: std::io::Error) -> Failure {
    let reason = format!("{step}: {}", Errno::from(error));
    failure(255, Errno::EIO, &reason)
}

fn failure(code: u8, errno: Errno, reason: &str) -> Failure {
    Failure { code, errno, reason: reason.to_owned(), ran: false }
}
