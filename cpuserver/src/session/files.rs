//! The files of one session's directory, and the clone file that made it.
//!
//! Each is a synthetic node over the session; see COMMANDS. Called when a session is made, once; the nodes then answer
//! in the tasks of whoever asks.

use std::sync::Arc;

use bytes::Bytes;
use p9::{Errno, How, NodeRef, Reply, Stream, Written, synth};

use super::{Ended, Failure, Phase, Session, spec};
use crate::Cpu;
use crate::flow::input::InputFile;
use crate::flow::output::OutputFile;
use crate::launch::Exit;

/// The most that `args`, `env`, `ns` and a ctl write may have, in bytes: what execve(2) takes, about.
const TEXT_MAX: usize = 4 << 20;

/// The directory of `session`.
pub(crate) fn directory(cpu: &Arc<Cpu>, session: &Arc<Session>) -> NodeRef {
    let show = |text: fn(&Session) -> Result<String, Errno>| {
        let session = session.clone();
        synth::file(move || text(&session).map(Bytes::from))
    };
    let value = |get: fn(&spec::Spec) -> Bytes, set: fn(&mut spec::Spec, &[u8]) -> Result<(), Errno>| {
        let (read, write) = (session.clone(), session.clone());
        synth::value(
            move || Ok(get(&read.spec())),
            move |text: Bytes| {
                if text.len() > TEXT_MAX {
                    return Err(Errno::E2BIG);
                }
                write.ask(|spec| set(spec, &text))
            },
        )
    };
    let output = |flow: &Arc<crate::flow::Output>| {
        let flow = flow.clone();
        synth::stream(0o444, move |_| Reply::ok(OutputFile::open(&flow)))
    };
    synth::dir([
        ("clone", clone(cpu, session)),
        ("ctl", ctl(cpu, session)),
        ("args", value(|spec| spec::list_text(&spec.args), spec::Spec::set_args)),
        ("env", value(|spec| spec::list_text(&spec.env), spec::Spec::set_env)),
        ("cwd", value(|spec| line(&spec.cwd), spec::Spec::set_cwd)),
        ("ns", namespace(session)),
        ("nodes", value(|spec| spec.nodes.clone().into(), spec::Spec::set_nodes)),
        ("listen", listen(session)),
        ("accept", accept(session)),
        ("limits", value(|spec| spec.limits.text().into(), spec::Spec::set_limits)),
        ("nonce", show(|session| Ok(session.nonce() + "\n"))),
        ("stdin", stdin(session)),
        ("stdout", output(&session.stdout)),
        ("stderr", output(&session.stderr)),
        ("status", show(|session| Ok(status(&session.phase())))),
        ("wait", wait(session)),
        ("stats", show(|session| Ok(stats(session)))),
        ("pid", show(pid)),
    ])
}

/// The namespace: as it was written, and of a command that runs with what each line became here.
fn namespace(session: &Arc<Session>) -> NodeRef {
    let (read, write) = (session.clone(), session.clone());
    synth::value(
        move || match read.phase() {
            Phase::New => Ok(read.spec().ns.into()),
            _ => Ok(crate::job::text(&read).into()),
        },
        move |text: Bytes| {
            if text.len() > TEXT_MAX {
                return Err(Errno::E2BIG);
            }
            write.ask(|spec| spec.set_ns(&text))
        },
    )
}

/// Where connections are taken: as it was written, and of a command that runs with the ports that they have.
fn listen(session: &Arc<Session>) -> NodeRef {
    let (read, write) = (session.clone(), session.clone());
    synth::value(
        move || {
            let as_asked = || read.spec().listen.iter().map(|address| format!("{address}\n")).collect();
            Ok(read.listening_now().map_or_else(as_asked, |listening| listening.text()).into())
        },
        move |text: Bytes| write.ask(|spec| spec.set_listen_text(&text)),
    )
}

/// Each open file is one connection, to what was written to it first, of those who connect there.
fn accept(session: &Arc<Session>) -> NodeRef {
    let session = session.clone();
    crate::connect::streams(move |address| {
        let session = session.clone();
        Box::pin(async move {
            let address = spec::listened(&address)?;
            let listening = session.listening().await?;
            tokio::select! {
                socket = listening.accept(&address) => socket,
                _ = session.ended() => Err(Errno::ESTALE),
            }
        })
    })
}

/// What holds the session while it is open.
fn clone(cpu: &Arc<Cpu>, session: &Arc<Session>) -> NodeRef {
    let (cpu, session) = (Arc::downgrade(cpu), Arc::downgrade(session));
    synth::stream(0o666, move |_| match (cpu.upgrade(), session.upgrade()) {
        (Some(cpu), Some(session)) => Reply::ok(Arc::new(CloneFile::new(&cpu, &session)) as Arc<dyn Stream>),
        _ => Errno::ESTALE.into(),
    })
}

fn ctl(cpu: &Arc<Cpu>, session: &Arc<Session>) -> NodeRef {
    let (cpu, session) = (Arc::downgrade(cpu), session.clone());
    synth::ctl(move |text: Bytes| match cpu.upgrade() {
        Some(cpu) => session.control(&cpu, &text),
        None => Errno::ESTALE.into(),
    })
}

fn stdin(session: &Arc<Session>) -> NodeRef {
    let session = session.clone();
    synth::stream(0o222, move |how: How| Reply::ok(InputFile::open(&session.stdin, how.append)))
}

fn wait(session: &Arc<Session>) -> NodeRef {
    let session = session.clone();
    synth::stream(0o444, move |_| Reply::ok(Arc::new(WaitFile(session.clone())) as Arc<dyn Stream>))
}

fn line(text: &[u8]) -> Bytes {
    if text.is_empty() { Bytes::new() } else { [text, b"\n"].concat().into() }
}

fn pid(session: &Session) -> Result<String, Errno> {
    match session.phase() {
        Phase::Running { pid } => Ok(format!("{pid}\n")),
        _ => Err(Errno::ESRCH),
    }
}

fn status(phase: &Phase) -> String {
    match phase {
        Phase::New => "new\n".into(),
        Phase::Starting => "starting\n".into(),
        Phase::Running { pid } => format!("running {pid}\n"),
        Phase::Ended(ended) => match &ended.outcome {
            Ok(exit) => exit_line(exit),
            Err(failure) => format!("exit {} {}: {}\n", failure.code, what(failure), failure.reason),
        },
    }
}

fn what(failure: &Failure) -> &'static str {
    if failure.ran { "lost" } else { "never started" }
}

fn exit_line(exit: &Exit) -> String {
    match *exit {
        Exit::Code(code) => format!("exit {code}\n"),
        Exit::Signal { number, core: false } => format!("signal {number}\n"),
        Exit::Signal { number, core: true } => format!("signal {number} core\n"),
    }
}

fn stats(session: &Session) -> String {
    let flows = format!(
        "stdin {} stdout {} stderr {}\n",
        session.stdin.total(),
        session.stdout.total(),
        session.stderr.total()
    );
    let kept = match session.kept_by() {
        by if by.is_empty() => String::new(),
        by => format!("limits{by}\n"),
    };
    match session.phase() {
        Phase::Ended(ended) => resources(&ended) + &flows + &kept,
        _ => format!("age {:.3}\n{flows}{kept}", session.age().as_secs_f64()),
    }
}

fn resources(ended: &Ended) -> String {
    let usage = &ended.usage;
    let peak = usage.peak_kib.map(|peak| format!(" peak {peak}")).unwrap_or_default();
    format!(
        "real {:.3} user {:.3} sys {:.3} maxrss {}{peak} read {} written {} received {} sent {}\n",
        ended.real.as_secs_f64(),
        usage.user.as_secs_f64(),
        usage.system.as_secs_f64(),
        usage.max_rss_kib,
        usage.read,
        usage.written,
        ended.wire.0,
        ended.wire.1,
    )
}

/// What `wait` says: `exit CODE` or `signal N [core]`; then the resources used (seconds, KiB, bytes) and what ended it,
/// if that was a limit; or why it never ran or was lost.
fn wait_text(ended: &Ended) -> String {
    match &ended.outcome {
        Ok(exit) => {
            let limit = ended.limit.iter().map(|limit| format!("limit: {limit}\n"));
            exit_line(exit) + &resources(ended) + &limit.collect::<String>()
        }
        Err(failure) => format!("exit {}\n{}: {}\n", failure.code, what(failure), failure.reason),
    }
}

/// An open `wait`.
struct WaitFile(Arc<Session>);

impl Stream for WaitFile {
    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        Reply::later(async move {
            let ended = self.0.ended().await?;
            Ok(window(&wait_text(&ended).into(), offset, count))
        })
    }
}

/// An open clone file: reading gives the session's number, writing is writing its `ctl`. The session lives while this
/// does.
pub(crate) struct CloneFile {
    pub(crate) cpu: Arc<Cpu>,
    pub(crate) session: Arc<Session>,
}

impl CloneFile {
    /// One more that is open.
    pub(crate) fn new(cpu: &Arc<Cpu>, session: &Arc<Session>) -> Self {
        session.hold();
        Self { cpu: cpu.clone(), session: session.clone() }
    }
}

impl Stream for CloneFile {
    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        Reply::ok(window(&format!("{}\n", self.session.id).into(), offset, count))
    }

    fn write(&self, _offset: u64, data: Bytes) -> Reply<'_, Written> {
        let count = data.len();
        if count > TEXT_MAX {
            return Errno::E2BIG.into();
        }
        self.session.control(&self.cpu, &data).map(move |()| Written::count(count))
    }
}

impl Drop for CloneFile {
    fn drop(&mut self) {
        self.cpu.released(&self.session);
    }
}

fn window(text: &Bytes, offset: u64, count: u32) -> Bytes {
    let start = text.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
    text.slice(start..text.len().min(start.saturating_add(count as usize)))
}
