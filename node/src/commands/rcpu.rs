//! `rcpu`: runs a command on a node as if it were here.
//!
//! Three parts joined: the agent serves my files (started if it is not running), this process holds the session and
//! moves its streams, and the node runs the command.

mod each;
mod forward;
mod hidden;
mod lend;
mod many;
mod places;
mod printed;
mod requirements;
mod signals;
mod terminal;
mod wayland;
mod whose;
mod x11;

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cpuserver::client::{self, Ended};
use cpuserver::{Command, Host};
use p9::NodeRef;
use parking_lot::Mutex;

use crate::agent::Serve;
use crate::cli::{Rcpu, RootOf};
use crate::commands::{agent, ns, runtime, runtime_of_one};
use crate::dial::{Dialer, LINGER};
use crate::error::{At, Error, Result};
use crate::home::Home;
use crate::known::Node;
use crate::namespace::{Carried, Written};
use crate::{Context, control, daemon, lent, namespace, output};

use many::Target;

pub use forward::Forward;
pub use lend::Lend;
pub use places::Where;
pub use requirements::Requirements;
pub(super) use signals::forward_but_hangup;
pub(super) use terminal::{Raw, size};

/// Runs the command; what fails before it started is status 255.
pub fn run(context: &Context, typed: &Rcpu) -> Result<ExitCode> {
    rcpu(context, typed).map_err(|err| if err.exit_status() == 1 { err.status(255) } else { err })
}

fn rcpu(context: &Context, typed: &Rcpu) -> Result<ExitCode> {
    let (wanted, argv) = typed.parsed()?;
    let home = context.home_or_lent()?;
    let dialer = Dialer::open(&home, context.agent())?;
    let runtime = if typed.is_for_one() { runtime_of_one()? } else { runtime()? };
    // Within a `slashn run` it is that one's, unless another is named.
    let around = match typed.ns.is_none() && !home.is_lent() {
        true => runtime.block_on(ns::of_run(&home, std::process::id()))?,
        false => None,
    };
    let written = match around {
        Some(around) => namespace::from_within(context, &around)?,
        None => {
            let written = namespace::lines(context, typed.ns.as_deref())?.with_included(context)?;
            // What I work in is where it is here, too.
            let mount = match typed.ns.is_none() && !home.is_lent() {
                true => runtime.block_on(ns::of_mount_around(&home, &working_directory(typed)?))?,
                false => None,
            };
            match mount {
                Some((at, text)) => written.with_mount(context, &at, &text)?,
                None => written,
            }
        }
    };
    let written = Arc::new(written);
    written.check_nodes("run", &dialer)?;
    // It has connections at hand; one that is still to be started is not waited for.
    let (socket, agent) = match home.is_lent() {
        true => (PathBuf::new(), None),
        false => runtime.block_on(agent::find(&home.run()?))?,
    };
    let dialer = if agent.is_some() { dialer.by_agent(&socket, Duration::from_secs(typed.away)) } else { dialer };
    let its_own = Mutex::default();
    let mut caller = Caller { context, typed, home, dialer, argv, written, its_own, agent, wayland: None };
    let known = match &wanted {
        Where::Named(names) => places::nodes(&caller.dialer, Some(names))?,
        Where::All => places::nodes(&caller.dialer, None)?,
        Where::Fitting(..) => Vec::new(),
    };
    runtime.block_on(lend::answers(context, typed))?;
    caller.wayland = lend::Displays::of(context, typed).wayland.then(wayland::Proxy::start).transpose()?;
    let targets = match wanted {
        Where::Fitting(wanted, count) => {
            let fit = runtime.block_on(places::fitting(&caller.dialer, &wanted, caller.program(), count))?;
            fit.into_iter().map(|(place, _)| Target::Connected(place)).collect()
        }
        Where::Named(_) | Where::All => known.into_iter().map(Target::Known).collect::<Vec<_>>(),
    };
    let done = match targets {
        targets if typed.each => runtime.block_on(each::run(&caller, targets)),
        mut targets if typed.is_for_one() => match targets.pop() {
            Some(target) => caller.one(&runtime, target),
            None => Ok(ExitCode::SUCCESS),
        },
        targets if typed.detach => caller.detached(&runtime, targets),
        targets => runtime.block_on(many::run(&caller, targets)),
    };
    // A read of stdin may be under way that nothing can end.
    runtime.shutdown_background();
    done
}

/// The exit status of what is called `name`; says which limit ended it and, if asked for, what it used.
pub(super) fn told(context: &Context, name: impl std::fmt::Display, ended: Ended) -> ExitCode {
    if let Some(limit) = &ended.limit {
        output::note(format_args!("{name}: {limit}"));
    }
    if context.verbose > 0 {
        output::note(format_args!("{name}: {}", ended.used));
    }
    ended.exit.into()
}

/// Whoever runs commands, and what all of them have in common.
struct Caller<'a> {
    context: &'a Context,
    typed: &'a Rcpu,
    home: Home,
    dialer: Dialer,
    argv: Vec<OsString>,
    /// The namespace.
    written: Arc<Written>,
    /// Nodes whose own programs are taken, since they cannot run mine.
    its_own: Mutex<BTreeSet<String>>,
    /// The agent's files, if it ran by then.
    agent: Option<NodeRef>,
    /// What passes on what is shown on the Wayland display, if that is lent.
    wayland: Option<wayland::Proxy>,
}

impl Caller<'_> {
    /// Runs the command on one node, as if it were here.
    fn one(&self, runtime: &tokio::runtime::Runtime, target: Target) -> Result<ExitCode> {
        if self.typed.detach {
            return self.detached(runtime, vec![target]);
        }
        let node = target.node().clone();
        let terminal = terminal::Terminal::wanted(self.typed);
        let request = self.request(&node, &self.argv, terminal)?;
        self.tell_rules(&node, &request.0);
        let raw = terminal.then(Raw::enter).transpose().at("use the terminal", "stdin")?;
        let ended = runtime.block_on(async {
            let (agent, place) = tokio::join!(self.agent_for(&request.0.node), target.begin(&self.dialer));
            let (agent, place) = (agent?, place?);
            let mut made = Vec::new();
            for forward in self.typed.locals() {
                made.push(forward::listen(forward, place.root.clone()).await?);
            }
            let signals = signals::Signals::of_one(terminal);
            let run = async |(serve, command): (Serve, Command)| {
                command.events(signals.one_more()).status(&host(&place, &agent, serve)).await
            };
            let by = |root| self.request_by(&node, &self.argv, terminal, root);
            let request = match self.whose(&place, &self.argv).await? {
                RootOf::Node if self.typed.root.is_none() => by(RootOf::Node)?,
                _ => request,
            };
            let ended = match run(request).await {
                Err(err) if self.takes_its_own(&node, &self.argv, &err) => {
                    run(by(RootOf::Node)?).await.map_err(|again| whose::better(err, again))
                }
                ended => ended,
            };
            match ended {
                // What it says of itself was not waited for.
                Err(err) if err.was_lost_before() => {
                    let why = self.dialer.attach(&node, LINGER).await.err();
                    Err(why.unwrap_or_else(|| self.explain(&node, &self.argv, &err)))
                }
                ended => ended.map_err(|err| self.explain(&node, &self.argv, &err)),
            }
        });
        drop(raw);
        ended.map(|ended| told(self.context, &node.name, ended))
    }

    /// Leaves the command running on each of `targets`, and prints what it is called there.
    fn detached(&self, runtime: &tokio::runtime::Runtime, targets: Vec<Target>) -> Result<ExitCode> {
        let mut status = ExitCode::SUCCESS;
        let started = runtime.block_on(async {
            let (events, signals) = (self.agent().await?, signals::Signals::listen());
            let each = targets.into_iter().map(|target| self.detach(target, events.clone(), &signals));
            Ok::<_, Error>(futures_util::future::join_all(each).await)
        })?;
        let alone = started.len() == 1;
        for one in started {
            match one {
                Ok(session) => output::line(session)?,
                Err(err) if alone => return Err(err),
                Err(err) => {
                    output::note(&err);
                    status = ExitCode::from(255);
                }
            }
        }
        Ok(status)
    }

    async fn detach(&self, target: Target, agent: NodeRef, signals: &signals::Signals) -> Result<String> {
        let node = target.node().clone();
        let place = target.connect(&self.dialer).await?;
        let by = |root| self.request_by(&node, &self.argv, false, root);
        let request = by(self.whose(&place, &self.argv).await?)?;
        self.tell_rules(&node, &request.0);
        let start = async |(serve, command): (Serve, Command)| {
            command.events(signals.one_more()).detach(&host(&place, &agent, serve)).await
        };
        let started = match start(request).await {
            Err(err) if self.takes_its_own(&node, &self.argv, &err) => {
                start(by(RootOf::Node)?).await.map_err(|again| whose::better(err, again))
            }
            started => started,
        };
        started.map(|session| format!("{}/{session}", node.name)).map_err(|err| self.explain(&node, &self.argv, &err))
    }

    /// What the user is told of `argv`, which did not run on `node`.
    fn explain(&self, node: &Node, argv: &[OsString], err: &client::Error) -> Error {
        let hidden = hidden::Sight::of(self, node, argv).ok().and_then(|sight| sight.error(err));
        hidden.unwrap_or_else(|| explain(node, &self.written, err))
    }

    /// Says what `node` can reach, if that was asked for.
    fn tell_rules(&self, node: &Node, serve: &Serve) {
        if self.context.verbose > 0 {
            let rules = serve.rules(node.trust, self.context.homes());
            rules.print().lines().for_each(|line| output::note(format_args!("{}: {line}", node.name)));
            let named = serve.servers.iter().map(|(server, spec)| lent::told(node.trust, server, spec));
            let exposed = serve.exports.iter().map(|(name, export, read_only)| {
                format!("{name} fs/{export}{}", if *read_only { ", to be read" } else { "" })
            });
            named.chain(exposed).for_each(|told| output::note(format_args!("{}: lent   {told}", node.name)));
        }
    }

    /// The agent, which dials `node` already: it will be asked to serve that.
    async fn agent_for(&self, node: &str) -> Result<NodeRef> {
        let agent = self.agent().await?;
        if let Err(errno) = control::write(&agent, "soon", node.as_bytes().to_vec()).await {
            tracing::debug!(?errno, "the agent dials no node before it is asked to serve it");
        }
        Ok(agent)
    }

    /// The agent's files; it is started if nobody answers.
    async fn agent(&self) -> Result<NodeRef> {
        match &self.agent {
            Some(agent) => Ok(agent.clone()),
            None => agent_root(self.context, &self.home).await,
        }
    }

    /// What is to be run on `node`, and what the agent is to serve for it.
    fn request(&self, node: &Node, argv: &[OsString], terminal: bool) -> Result<(Serve, Command)> {
        self.request_by(node, argv, terminal, self.typed.root.unwrap_or(RootOf::Caller))
    }

    /// My home and the directory of the command: what is mine where the rest is the node's.
    fn directories(&self) -> Result<Vec<String>> {
        let cwd = working_directory(self.typed)?;
        let mut all: Vec<PathBuf> = self.context.user_home().into_iter().filter(|home| home.is_absolute()).collect();
        if !all.iter().any(|home| cwd.starts_with(home)) {
            all.push(cwd);
        }
        let text = |path: PathBuf| {
            let text = path.into_os_string().into_string();
            text.map_err(|path| Error::new("make the namespace", path.display(), "its name is no text"))
        };
        all.into_iter().filter(|path| path.parent().is_some()).map(text).collect()
    }

    fn request_by(&self, node: &Node, argv: &[OsString], terminal: bool, root: RootOf) -> Result<(Serve, Command)> {
        let mine = (root == RootOf::Node).then(|| self.directories()).transpose()?;
        let mine: Option<Vec<&str>> = mine.as_ref().map(|mine| mine.iter().map(String::as_str).collect());
        let mut namespace = namespace::carried(&self.dialer, (*self.written).clone(), node, mine.as_deref())?;
        let serve = serve_request(self.context, self.typed, &self.dialer, node, &namespace)?;
        let command = command(self.context, self.typed, argv, terminal, self.wayland.is_some())?;
        let command = lend::lent(self, node, &mut namespace, command)?.namespace(namespace.text, namespace.nodes);
        let paths = if root == RootOf::Caller { command.hints() } else { Vec::new() };
        let hints = paths.into_iter().map(|path| Path::new(OsStr::from_bytes(&path)).into()).collect();
        Ok((Serve { hints, ..serve }, command))
    }
}

/// The agent's files; it is started if nobody answers.
async fn agent_root(context: &Context, home: &Home) -> Result<NodeRef> {
    let run = home.run()?;
    if let (_, Some(root)) = agent::find(&run).await? {
        return Ok(root);
    }
    let (path, args) =
        (home.path().to_path_buf(), [OsString::from("--home"), context.home.clone().into(), "agent".into()]);
    let started = tokio::task::spawn_blocking(move || daemon::start(&path, "start the agent", &args));
    started.await.at("start the agent", "the agent")??;
    let (socket, root) = agent::find(&run).await?;
    root.ok_or_else(|| Error::new("start the agent", socket.display(), "it ended at once"))
}

/// The node at `place`, where the agent serves what `serve` says.
fn host(place: &places::Place, agent: &NodeRef, serve: Serve) -> Host {
    let agent = agent.clone();
    Host::new(place.root.clone()).serving(move |session, nonce| served(agent.clone(), serve.clone(), session, nonce))
}

/// Has the agent serve my files to the session `session`.
async fn served(agent: NodeRef, serve: Serve, session: String, nonce: String) -> Result<(), String> {
    let request = Serve { session, nonce, ..serve };
    let line = serde_json::to_vec(&request).map_err(|err| err.to_string())?;
    control::write(&agent, "serve", line).await.map_err(|errno| format!("the agent could not serve it: {errno}"))
}

fn command(context: &Context, typed: &Rcpu, argv: &[OsString], terminal: bool, wayland: bool) -> Result<Command> {
    let shell = || context.environment.var("SHELL").map_or_else(|| "/bin/sh".into(), OsString::from);
    let argv = if argv.is_empty() { vec![shell()] } else { argv.to_vec() };
    let argv = if wayland { wayland::beside(&argv) } else { argv };
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(umask);
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let (program, args) = argv.split_first().ok_or_else(|| Error::new("run", "COMMAND", "which command?"))?;
    let command = Command::new(program)
        .args(args)
        .environment(client::environment(context.environment.vars().iter().cloned(), &typed.env))
        .current_dir(working_directory(typed)?)
        .umask(umask.bits())
        .user(uid, gid)
        .nice(rustix::process::getpriority_process(None).unwrap_or_default().max(0))
        .limits(limits(typed));
    let (rows, columns) = size().unwrap_or((24, 80));
    Ok(if terminal { command.terminal(rows, columns) } else { command })
}

/// This process's own limits, and those that were asked for.
fn limits(typed: &Rcpu) -> String {
    use rustix::process::{Resource, getrlimit};
    // Processes are counted by user and machine: that bound says nothing elsewhere.
    let own = [
        ("as", Resource::As),
        ("core", Resource::Core),
        ("cpu", Resource::Cpu),
        ("data", Resource::Data),
        ("fsize", Resource::Fsize),
        ("nofile", Resource::Nofile),
        ("stack", Resource::Stack),
    ];
    let amount = |n: Option<u64>| n.map_or("unlimited".into(), |n| n.to_string());
    let own = own.map(|(name, resource)| {
        let limit = getrlimit(resource);
        format!("{name} {} {}\n", amount(limit.current), amount(limit.maximum))
    });
    let asked = typed.limit.iter().map(|limit| limit.line());
    own.into_iter().chain(asked).collect()
}

/// What a command has of the node, whatever the caller has there: what the default namespace mounts.
const OF_THE_NODE: [&str; 4] = ["/dev", "/proc", "/run", "/sys"];

fn working_directory(typed: &Rcpu) -> Result<PathBuf> {
    const STEP: &str = "find the working directory";
    if let Some(dir) = typed.dir.as_ref().filter(|dir| dir.is_absolute()) {
        return Ok(dir.clone());
    }
    let here = std::env::current_dir().map_err(|err| Error::new(STEP, ".", err).remedy("rcpu -C DIR ..."))?;
    let dir = typed.dir.as_ref().map_or(here.clone(), |dir| here.join(dir));
    if typed.ns.is_none() && OF_THE_NODE.iter().any(|own| dir.starts_with(own)) {
        let reason = "a command there has the node's own, and not this one";
        return Err(
            Error::new(STEP, dir.display(), reason).remedy(format!("rcpu -C {} ..., if that is meant", dir.display()))
        );
    }
    Ok(dir)
}

fn serve_request(context: &Context, typed: &Rcpu, dialer: &Dialer, node: &Node, namespace: &Carried) -> Result<Serve> {
    let cwd = working_directory(typed)?;
    let (mut expose, mut exports) = (Vec::new(), Vec::new());
    for one in &typed.expose {
        let path = cwd.join(&one.path);
        match namespace::export_at(&path) {
            Some(export) => {
                let refused = |reason| Error::new("expose", path.display(), reason).remedy("slashn nodes");
                let (name, export) = export.map_err(refused)?;
                // An export is lent as a whole.
                if path.components().count() != 5 {
                    return Err(refused(namespace::NO_EXPORT));
                }
                let known = dialer.find(&name)?;
                exports.push((known.name.to_string(), export, one.read_only));
            }
            None => {
                std::fs::symlink_metadata(&path).at("expose", path.display())?;
                expose.push((path.as_path().into(), one.read_only));
            }
        }
    }
    let home = context.user_home().ok_or_else(|| Error::new("find the home", "$HOME", "is not set"))?;
    Ok(Serve {
        node: node.name.as_str().to_string(),
        session: String::new(),
        nonce: String::new(),
        home: home.as_path().into(),
        cwd: cwd.as_path().into(),
        expose,
        exports,
        hints: Vec::new(),
        away: typed.away,
        servers: namespace.servers.clone(),
    })
}

/// What the user is told of a command on `node` in the namespace `written`.
fn explain(node: &Node, written: &Written, err: &client::Error) -> Error {
    let status = err.exit_code();
    match err {
        // Nobody reads any more (`| head`): as if the signal for it had ended the command.
        client::Error::Stream { error, .. } if error.kind() == std::io::ErrorKind::BrokenPipe => {
            Error::new("write", "stdout", "nobody reads it").status(128 + 13)
        }
        client::Error::Refused { errno: p9::Errno::ENOENT, .. } => {
            let remedy = format!("slashn allow, without --only, on {}", node.name);
            Error::new("run", &node.name, "this key may not run commands there").remedy(remedy).status(status)
        }
        client::Error::Lost { .. } => {
            Error::new("run", &node.name, err).remedy(format!("slashn status, on {}", node.name)).status(status)
        }
        err => {
            let said = err.to_string();
            let placed = written.placed(&said).unwrap_or(said);
            Error::with_remedy("run", &node.name, &placed).status(status)
        }
    }
}
