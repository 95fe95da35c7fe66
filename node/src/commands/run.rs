//! `slashn run`: a command in a private copy of the namespace, on this machine.
//!
//! This process becomes the command, so that exit status, signals and terminal are its own; the namespace is served by
//! another, which ends when nobody is in it any more. Before that nothing here may start a thread.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cpuserver::launch::private::{self, Client, Door, Plan, Refused, Server};
use fileserver::DiskOptions;
use ns::text::{Line, OWN_LINES};
use ns::{Build, Namespace};
use p9::{Errno, Reply, Tree, TreeRef, Who, synth};
use parking_lot::Mutex;
use tokio::net::UnixStream;

use crate::cli::Run;
use crate::commands::runtime;
use crate::commands::status::sockets;
use crate::control::Control;
use crate::dial::{Dialer, MOUNT_TIMEOUT};
use crate::error::{At, Error, Result};
use crate::grid::Nodes;
use crate::home::Home;
use crate::live::{Live, Shows};
use crate::servers::Servers;
use crate::{Context, alike, namespace, plan};

const STEP: &str = "run";

/// Runs the command: returns only if it cannot be run.
pub fn run(context: &Context, typed: &Run) -> Result<ExitCode> {
    let home = context.open_home()?;
    // What is wrong with it is told before anything is made.
    let written = namespace::lines(context, typed.ns.as_deref()).map_err(|err| err.status(255))?;
    std::env::current_dir()
        .map_err(|err| Error::new(STEP, "the working directory", err).remedy("cd; slashn run ...").status(255))?;
    let shell = || context.environment.var("SHELL").map_or_else(|| "/bin/sh".into(), OsString::from);
    let mut words = typed.command.iter().cloned();
    let program = words.next().unwrap_or_else(shell);
    let log = home.run()?.join("log");
    let log_file = OpenOptions::new().create(true).append(true).mode(0o600).open(&log).at(STEP, log.display())?;
    let mut args: Vec<OsString> = vec!["--home".into(), context.home.clone().into(), "private".into()];
    if let Some(file) = &typed.ns {
        args.extend(["--ns".into(), std::path::absolute(file).at(STEP, file.display())?.into()]);
    }
    let named = program.to_string_lossy().into_owned();
    let door = if typed.alone { None } else { alike::door(context, &home, &written) };
    args.extend(door.iter().flat_map(|door| ["--door".into(), door.clone().into()]));
    let entered = match door.as_deref().map_or(Ok(false), private::door::enter) {
        Ok(false) => {
            let server = Server::start(&args, log_file).at(STEP, "the server of the namespace")?;
            private::enter(server).and_then(|entered| entered.assemble(door.is_some()))
        }
        entered => entered.map(drop),
    };
    entered.map_err(|err| {
        let error = match err {
            Refused::Launch(err) => {
                let error = Error::new(STEP, &named, &err);
                err.remedy().into_iter().fold(error, Error::remedy)
            }
            Refused::Namespace(reason) => Error::told(&reason),
        };
        error.status(255)
    })?;
    let err = Command::new(&program).args(words).exec();
    let (status, remedy) = match err.kind() {
        std::io::ErrorKind::NotFound => (127, format!("command -v {named}")),
        _ => (126, format!("file {named}")),
    };
    Err(Error::new(STEP, named, err).remedy(remedy).status(status))
}

/// Serves the namespace of one command, as long as a process is in it.
pub fn serve(context: &Context, typed: &Run) -> Result<ExitCode> {
    let home = context.open_home()?;
    mount::tune_allocator();
    let runtime = runtime()?;
    let served = runtime.block_on(serve_one(context, &home, typed));
    runtime.shutdown_background();
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve_one(context: &Context, home: &Home, typed: &Run) -> Result<()> {
    let made = made(context, home, typed).await;
    let (namespace, plan) = match made {
        Ok((namespace, servers, plan)) => (Some((namespace, servers)), Ok(plan)),
        Err(err) => (None, Err(err.to_string())),
    };
    let accepted = tokio::task::spawn_blocking(Client::accept).await.at(STEP, "the command")?;
    let Some((fuse, device)) = accepted.at(STEP, "the command")? else { return Ok(()) };
    let Some((namespace, servers)) = namespace else {
        return Client::tell(&plan).at(STEP, "the command");
    };
    let root = namespace.attach(&Who::owner(), b"").await.at(STEP, "the namespace")?;
    let options = mount::Options::default();
    let mounted = mount::serve(root, fuse, options, tokio::runtime::Handle::current()).at(STEP, "the namespace")?;
    let mounted = Arc::new(mounted);
    let shows = plan.as_ref().map_or_else(|_| Shows::of(&Plan::default()), Shows::of);
    Client::tell(&plan).at(STEP, "the command")?;
    let settled = tokio::task::spawn_blocking(Client::settled).await.at(STEP, "the command")?;
    let Some((id, inside)) = settled.at(STEP, "the command")? else { return Ok(()) };
    let door = Arc::new(OnceLock::<Door>::new());
    let run = home.run()?;
    let answers = run.join(format!("{SOCKET}{}", std::process::id()));
    let comers = Arc::new(Comers { run: run.clone(), answers: answers.clone(), device, all: Mutex::default() });
    let (at_door, those) = (door.clone(), comers.clone());
    let to_itself = Arc::new(move || {
        let closes = |door: &Door| door.close_unless(|| those.living() > 1);
        at_door.get().is_none_or(closes)
    });
    let live = Live { namespace, servers, context: context.clone(), mount: mounted.clone(), shows, to_itself };
    let control = Control::serve(&answers, control(live, door.clone()))?;
    comers.settle(id).at(STEP, "the command")?;
    if let Some((path, inside)) = typed.door.as_deref().zip(inside) {
        let comers = comers.clone();
        match Door::open(path, inside, IDLE, move |id| comers.settle(id)) {
            Ok(opened) => drop(door.set(opened)),
            Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(err) => tracing::warn!("the next command has a mount of its own: {}: {err}", path.display()),
        }
    }
    Client::begin().at(STEP, "the command")?;
    sweep(&run).await.unwrap_or_else(|err| tracing::warn!("{err}"));
    mounted.ended().await;
    comers.clear();
    drop(control);
    Ok(())
}

/// How long a namespace in which nobody is any more is there for the next who is to have the same.
const IDLE: Duration = Duration::from_secs(120);

/// Removes from `run` what such servers left there that were killed.
pub(super) async fn sweep(run: &Path) -> Result<()> {
    // What is being made listens a moment later, and has its maker's number after the dot.
    let is_made = |socket: &Path| socket.extension().is_some_and(|pid| Path::new("/proc").join(pid).exists());
    for socket in [sockets(run, SOCKET)?, sockets(run, alike::DOOR)?].concat() {
        let tried = UnixStream::connect(&socket).await;
        if tried.is_err_and(|err| err.kind() == std::io::ErrorKind::ConnectionRefused) && !is_made(&socket) {
            let _ = std::fs::remove_file(&socket);
        }
    }
    for link in sockets(run, LINK)?.into_iter().filter(|link| !link.exists()) {
        let _ = std::fs::remove_file(link);
    }
    Ok(())
}

/// Where in `run/` such servers answer, each with its number after that.
pub(super) const SOCKET: &str = "private-";

/// Those who are in the namespace: for each there is a link to where the server answers.
struct Comers {
    run: PathBuf,
    answers: PathBuf,
    /// The mount, as the kernel numbers it.
    device: String,
    /// The numbers of their namespaces.
    all: Mutex<HashSet<u64>>,
}

impl Comers {
    fn settle(&self, id: u64) -> std::io::Result<()> {
        let link = self.run.join(link(id));
        // Of a namespace that has ended the number is used again.
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&self.answers, &link)?;
        self.all.lock().insert(id);
        Ok(())
    }

    /// How many have not ended. One whose processes are all in mount namespaces that they made since has.
    fn living(&self) -> usize {
        private::door::inhabited(&self.all.lock(), &self.device).len()
    }

    /// Removes the links; those of numbers that are another's by now stay.
    fn clear(&self) {
        let links = self.all.lock().iter().map(|id| self.run.join(link(*id))).collect::<Vec<_>>();
        let is_mine = |link: &&PathBuf| std::fs::read_link(link).is_ok_and(|to| to == self.answers);
        links.iter().filter(is_mine).for_each(|link| drop(std::fs::remove_file(link)));
    }
}

async fn made(context: &Context, home: &Home, typed: &Run) -> Result<(Namespace, Servers, Plan)> {
    let written = namespace::lines(context, typed.ns.as_deref())?;
    let dialer = Dialer::open(home, context.agent())?;
    let who = Who { user: context.user().into(), ..Who::owner() };
    // What is made here is mounted in another namespace than this process's: nothing that it enters waits for it.
    let local = DiskOptions::new(home.secret("qid")?).enters_mounts();
    let servers = Servers::new(Nodes::new(dialer, MOUNT_TIMEOUT), who, local);
    let variable = |name: &str| namespace::variable(context, name);
    let build = Build { dialer: &servers, variable: &variable, most: OWN_LINES };
    let built = build.build(&written.lines).await;
    let namespace = built.map_err(|failed| written.refused(STEP, &failed))?;
    let is_this = |line: &Line| matches!(line, Line::Mount { server, old, .. } if server == "local!/" && old == "/");
    let mut places = namespace.places();
    // The root is this machine's, unless another was put there.
    if !namespace.lines().iter().filter(|line| line.old() == "/").all(is_this) {
        places.retain(|place| place.path != Path::new("/"));
    }
    let plan = plan::plan(places, &|path| path.symlink_metadata().is_ok());
    Ok((namespace, servers, plan))
}

/// What such names begin with.
const LINK: &str = "run-";

/// The name in `run/` by which one reaches what serves the namespace that /proc/PID/ns/mnt numbers so.
pub(super) fn link(id: u64) -> String {
    format!("{LINK}{id}")
}

/// The files by which the server is asked and told: `ns`, `change`, and `ctl` (which knows `close`: nobody comes in any
/// more).
fn control(live: Live, door: Arc<OnceLock<Door>>) -> TreeRef {
    let live = Arc::new(live);
    let told = live.clone();
    synth::tree(synth::dir([
        ("ns", synth::file(move || Ok(told.servers.text(&told.namespace).into()))),
        ("change", live.clone().file()),
        (
            "ctl",
            synth::ctl(move |command| match &command[..] {
                b"close" => {
                    door.get().iter().for_each(|door| door.close());
                    Reply::ok(())
                }
                _ => Errno::EINVAL.into(),
            }),
        ),
    ]))
}
