//! One command: its namespace, its root, its streams, from `exec` to what came of it.
//!
//! [`run`] is the task of one job, spawned by `exec` on the node's runtime. It holds everything that the job needs (the
//! FUSE session, the private /tmp, the flows' ends) and lets go of it in order when the job is over, however it ends.

mod drivers;
mod group;
mod namespace;
mod sockets;
mod terminal;
mod tmp;

use std::sync::Arc;
use std::time::{Duration, Instant};

use p9::Errno;
use p9::dial::Address;
use rustix::process::{getegid, geteuid};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::Cpu;
use crate::launch::{self, Exit, Job, JobSpec, Usage};
use crate::owned::Owners;
use crate::session::{Ended, Failure, Limits, Listening, Phase, Session, Spec};

use group::Group;

pub(crate) use drivers::Drivers;
pub(crate) use group::Hierarchies;
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
    let (outcome, usage, limit, running) = match started {
        Ok(mut running) => {
            let (outcome, timed_out) = running.until_over(&session, &mut signals).await;
            let usage = Usage { peak_kib: running.group.peak().map(|bytes| bytes >> 10), ..running.job.usage() };
            (outcome, usage, running.limit(timed_out), Some(running))
        }
        Err(failure) => (Err(failure), Usage::default(), None, None),
    };
    match &outcome {
        Ok(exit) => tracing::debug!(session = session.id, ?exit, "a command ended"),
        Err(failure) => tracing::debug!(session = session.id, reason = failure.reason, "a command never ran"),
    }
    session.stdin.break_off();
    if running.is_none() {
        session.stdout.end();
        session.stderr.end();
    }
    let wire = session.wire.counts();
    session.enter(Phase::Ended(Arc::new(Ended { outcome, real: began.elapsed(), usage, wire, limit })));
    cpu.finished(&session);
    if let Some(running) = running {
        running.let_go(&session).await;
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
    group: Group,
    limits: Limits,
    /// Where connections are taken once it runs: those of ports, and the addresses of all.
    listening: Option<(Listening, Vec<Address>)>,
}

async fn start(cpu: &Arc<Cpu>, session: &Arc<Session>) -> Result<Running, Failure> {
    let spec = session.spec();
    let own = (geteuid().as_raw(), getegid().as_raw());
    let user = spec.user.unwrap_or(own);
    let root = namespace::root(cpu, session, &spec, Owners { own, shown: user }).await?;

    let listening = Listening::of_ports(&spec.listen).await;
    let listening = listening.map_err(|reason| failure(255, Errno::EIO, &reason))?;
    let listening = Some((listening, spec.listen.clone()));
    let (near, far) = terminal::streams(spec.pty).map_err(|err| failed("streams", err))?;
    let limits = spec.limits.clone();
    let group = group(cpu, session, &limits).await;
    let mut job_spec = job_spec(cpu, spec, own, user, root.mounts);
    if let Some(run) = job_spec.mounts.iter().find(|mount| matches!(mount, launch::JobMount::Tmpfs { .. })) {
        // How a program there knows where it is, and what it sees.
        job_spec.files.push((run.at().join("slashn/ns"), text(session).into_bytes()));
    }
    cpu.drivers().lend(&mut job_spec, root.is_callers);
    job_spec.rlimits.extend(&group.of_each);
    job_spec.processors = group.processors;
    let mut job =
        cpu.options.launcher.start_job(&job_spec, far).await.map_err(|error| never_started(session, error))?;
    // Init waits for its root to be served, and all others descend from it.
    group.adopt(job.init()).map_err(|err| failed("limits", err))?;
    let disk = cpu.options.disk.as_ref().map(|disk| disk.apart(session.owner.name().as_bytes()));
    // The caller's files are mostly those of a system that this machine has, too.
    let (fs_name, twins) = (format!("slashn-job-{}", session.id), Some(mount::TwinOptions::new("/".into())));
    let options = mount::Options { fs_name, disk, twins, ..mount::Options::default() };
    let fuse = job.take_fuse().ok_or_else(|| failure(255, Errno::EIO, "the launcher sent no root"))?;
    let mount = mount::serve(root.node, fuse, options, cpu.runtime().clone())
        .map_err(|err| failure(255, Errno::EIO, &format!("root: {err}")))?;
    let flows = pump(session, near)?;
    Ok(Running { job, mount, flows, tmp: root.tmp, group, limits, listening })
}

/// What keeps `limits`.
async fn group(cpu: &Arc<Cpu>, session: &Arc<Session>, limits: &Limits) -> Group {
    if !limits.bound_the_whole() {
        return Group::default();
    }
    let (cpu, id, limits) = (cpu.clone(), session.id, limits.clone());
    let made = tokio::task::spawn_blocking(move || Group::make(cpu.hierarchies(), id, &limits)).await;
    let group = made.unwrap_or_default();
    session.set_kept_by(group.told());
    group
}

fn job_spec(cpu: &Cpu, spec: Spec, own: (u32, u32), user: (u32, u32), mounts: Vec<launch::JobMount>) -> JobSpec {
    const PATH: &[u8] = b"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut env = if spec.env.is_empty() { cpu.options.env.clone() } else { spec.env };
    if env.is_empty() {
        env.push(PATH.to_vec());
    }
    let path = |address| match address {
        Address::Unix(path) => Some(path),
        _ => None,
    };
    JobSpec {
        sockets: spec.listen.into_iter().filter_map(path).collect(),
        files: spec.files,
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
        rlimits: spec.limits.of_each,
        processors: None,
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
    /// because the caller's tree is gone: what it would make of that is not its own end. And whether its time was over.
    async fn until_over(
        &mut self, session: &Session, signals: &mut mpsc::Receiver<i32>,
    ) -> (Result<Exit, Failure>, bool) {
        let (mut runs, mut ending, mut lost, mut timed_out) = (false, false, false, false);
        let mut time = Box::pin(later(None));
        loop {
            tokio::select! {
                next = self.next(runs) => match next {
                    Err(error) => return (Err(Failure { ran: runs, ..never_started(session, error) }), timed_out),
                    Ok(Some(_)) if lost => {
                        let reason = "the caller's tree: its connection was lost, so the command was ended";
                        return (Err(Failure { ran: runs, ..failure(255, Errno::EIO, reason) }), timed_out);
                    }
                    Ok(Some(exit)) => return (Ok(exit), timed_out),
                    Ok(None) => {
                        runs = true;
                        self.listen(session);
                        session.enter(Phase::Running { pid: self.job.init() });
                        time.set(later(self.limits.time));
                    }
                },
                () = &mut time, if runs => {
                    self.kill(if timed_out { libc::SIGKILL } else { libc::SIGTERM });
                    time.set(later((!timed_out).then_some(GRACE)));
                    timed_out = true;
                }
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

    /// Has the session take connections.
    fn listen(&mut self, session: &Session) {
        let Some((ports, addresses)) = self.listening.take() else { return };
        match ports.with_paths(&addresses, self.job.take_sockets()) {
            Ok(listening) => session.listens(listening),
            Err(errno) => tracing::warn!(session = session.id, %errno, "no connections are taken for its caller"),
        }
    }

    /// The limit that ended the command or some of it, in words.
    fn limit(&self, timed_out: bool) -> Option<String> {
        if timed_out {
            let time = self.limits.time.unwrap_or_default().as_secs_f64();
            return Some(format!("time: {time} s are over"));
        }
        let allowed = self.limits.memory.filter(|_| self.group.killed_for_memory() > 0)?;
        Some(format!("out of memory: {} KiB are allowed", allowed >> 10))
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
        let Self { mut job, mount, mut flows, tmp, group, .. } = self;
        if tokio::time::timeout(GRACE, job.gone()).await.is_err() {
            tracing::warn!(session = session.id, "a job's processes are slow to go");
        }
        drop(job);
        // Its mount namespace is gone, so the kernel ends the FUSE session by itself.
        let ended = tokio::time::timeout(GRACE, mount.ended()).await;
        if ended.is_err() {
            tracing::warn!(session = session.id, "a job's root did not end by itself");
        }
        let _ = tokio::task::spawn_blocking(move || (drop(mount), drop(tmp), drop(group))).await;
        tokio::select! {
            () = async { while flows.join_next().await.is_some() {} } => {}
            () = session.over() => {}
        }
    }
}

/// Returns after `time`; never without one.
async fn later(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

fn never_started(session: &Session, error: launch::Error) -> Failure {
    let errno = match &error {
        launch::Error::NotFound { .. } | launch::Error::Cwd { .. } => Errno::ENOENT,
        launch::Error::NotExecutable { .. } => Errno::EACCES,
        launch::Error::Interpreter { .. } | launch::Error::Foreign { .. } => Errno::ENOEXEC,
        _ => Errno::EIO,
    };
    let remedy = error.remedy().map(|remedy| format!("; try: {remedy}")).unwrap_or_default();
    let sought = match &error {
        launch::Error::Interpreter { missing, .. } => namespace::sought(session, missing),
        _ => None,
    };
    let sought = sought.map(|line| format!(" in its namespace, where it is sought by: {line}")).unwrap_or_default();
    failure(error.exit_code(), errno, &format!("{error}{sought}{remedy}"))
}

fn failed(step: &str, error: std::io::Error) -> Failure {
    let reason = format!("{step}: {}", Errno::from(error));
    failure(255, Errno::EIO, &reason)
}

fn failure(code: u8, errno: Errno, reason: &str) -> Failure {
    Failure { code, errno, reason: reason.to_owned(), ran: false }
}
