//! `rcpu`: runs a command on a node as if it were here.
//!
//! Three parts joined: the agent serves my files (started if it is not running), this process holds the session and
//! moves its streams, and the node runs the command.

mod terminal;

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::ExitCode;

use cpuserver::client::{self, Command, Event, Exit, Stdio};
use fileserver::caller::Expose;
use p9::NodeRef;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::agent::Serve;
use crate::cli::Rcpu;
use crate::commands::{agent, runtime};
use crate::dial::{Dialer, LINGER};
use crate::error::{At, Error, Result};
use crate::home::Home;
use crate::known::Node;
use crate::namespace::Carried;
use crate::{Context, control, daemon, namespace, output};

/// Runs the command; what fails before it started is status 255.
pub fn run(context: &Context, typed: &Rcpu) -> Result<ExitCode> {
    rcpu(context, typed).map_err(|err| if err.exit_status() == 1 { err.status(255) } else { err })
}

fn rcpu(context: &Context, typed: &Rcpu) -> Result<ExitCode> {
    let home = context.open_home()?;
    let dialer = Dialer::open(&home, context.agent())?;
    let node = dialer.find(&typed.node)?;
    let terminal = !typed.detach && terminal::Terminal::wanted(typed);
    let namespace = namespace::carried(context, &dialer, typed.ns.as_deref(), &node)?;
    let serve = serve_request(context, typed, &node, &namespace)?;
    let command = command(context, typed, namespace, terminal)?;
    if context.verbose > 0 {
        let rules = serve.rules(node.trust, context.homes());
        rules.print().lines().for_each(|line| output::note(format_args!("{}: {line}", node.name)));
        let servers = serve.servers.iter().filter(|(server, _)| !server.starts_with('#') || server == "#grid");
        servers.for_each(|(server, spec)| output::note(format_args!("{}: lent   {server} {spec}", node.name)));
    }
    let runtime = runtime()?;
    if typed.detach {
        let session = runtime.block_on(async {
            let agent = agent_root(context, &home);
            let (agent, attached) = tokio::join!(agent, dialer.attach(&node, LINGER));
            let (agent, (_client, root)) = (agent?, attached?);
            let started = client::start_detached(root, |id, nonce| served(agent, serve, id, nonce), command).await;
            started.map_err(|err| explain(&node, err))
        })?;
        runtime.shutdown_background();
        output::line(format_args!("{}/{session}", node.name))?;
        return Ok(ExitCode::SUCCESS);
    }
    let raw = terminal.then(terminal::Raw::enter).transpose().at("use the terminal", "stdin")?;
    let ended = runtime.block_on(async {
        let agent = agent_root(context, &home);
        let (agent, attached) = tokio::join!(agent, dialer.attach(&node, LINGER));
        let (agent, (_client, root)) = (agent?, attached?);
        on_node(root, agent, serve, command, terminal).await.map_err(|err| explain(&node, err))
    });
    drop(raw);
    // A read of stdin may be under way that nothing can end.
    runtime.shutdown_background();
    ended.map(Exit::into)
}

/// The agent's files; it is started if nobody answers.
async fn agent_root(context: &Context, home: &Home) -> Result<NodeRef> {
    let socket = home.run()?.join(agent::SOCKET);
    if let Some(root) = control::connect(&socket).await? {
        return Ok(root);
    }
    let (path, args) =
        (home.path().to_path_buf(), [OsString::from("--home"), context.home.clone().into(), "agent".into()]);
    let started = tokio::task::spawn_blocking(move || daemon::start(&path, "start the agent", &args));
    started.await.at("start the agent", "the agent")??;
    let root = control::connect(&socket).await?;
    root.ok_or_else(|| Error::new("start the agent", socket.display(), "it ended at once"))
}

async fn on_node(
    root: NodeRef, agent: NodeRef, serve: Serve, command: Command, terminal: bool,
) -> Result<Exit, client::Error> {
    let (events, received) = mpsc::channel(16);
    let forwarding = tokio::spawn(forward(events, terminal));
    let ask = |id, nonce| served(agent, serve, id, nonce);
    let ended = client::run(root, ask, command, stdio(), received).await;
    forwarding.abort();
    ended
}

/// Has the agent serve my files to the session `session`.
async fn served(agent: NodeRef, serve: Serve, session: u64, nonce: String) -> Result<(), String> {
    let request = Serve { session, nonce, ..serve };
    let line = serde_json::to_vec(&request).map_err(|err| err.to_string())?;
    control::write(&agent, "serve", line).await.map_err(|errno| format!("the agent could not serve it: {errno}"))
}

/// This process's own.
pub(super) fn stdio() -> Stdio {
    Stdio {
        stdin: Box::new(tokio::io::stdin()),
        stdout: Box::new(tokio::io::stdout()),
        stderr: Box::new(tokio::io::stderr()),
    }
}

/// Signals that are the command's, and the terminal's size whenever it changes.
async fn forward(events: mpsc::Sender<Event>, terminal: bool) {
    let hangup = [SignalKind::hangup()];
    tokio::join!(signals(events.clone(), &hangup), forward_more(events, terminal));
}

/// The same, but for the terminal and its end.
pub(super) async fn forward_but_hangup(events: mpsc::Sender<Event>) {
    forward_more(events, false).await;
}

async fn forward_more(events: mpsc::Sender<Event>, terminal: bool) {
    let kinds = [SignalKind::interrupt(), SignalKind::quit(), SignalKind::terminate()];
    let others = [SignalKind::user_defined1(), SignalKind::user_defined2()];
    let all = [&kinds[..], &others[..]].concat();
    let sizes = async {
        if terminal && let Ok(mut changes) = signal(SignalKind::window_change()) {
            while changes.recv().await.is_some() {
                let Some((rows, columns)) = terminal::size() else { continue };
                if events.send(Event::Winsize(rows, columns)).await.is_err() {
                    return;
                }
            }
        }
    };
    tokio::join!(signals(events.clone(), &all), sizes);
}

async fn signals(events: mpsc::Sender<Event>, kinds: &[SignalKind]) {
    let mut tasks = tokio::task::JoinSet::new();
    for kind in kinds.iter().copied() {
        let events = events.clone();
        tasks.spawn(async move {
            let Ok(mut signals) = signal(kind) else { return };
            while signals.recv().await.is_some() {
                if events.send(Event::Signal(kind.as_raw_value())).await.is_err() {
                    return;
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
}

fn command(context: &Context, typed: &Rcpu, namespace: Carried, terminal: bool) -> Result<Command> {
    let shell = || context.environment.var("SHELL").map_or_else(|| "/bin/sh".into(), OsString::from);
    let argv = if typed.command.is_empty() { vec![shell()] } else { typed.command.clone() };
    let umask = rustix::process::umask(rustix::fs::Mode::empty());
    rustix::process::umask(umask);
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Ok(Command {
        argv: argv.into_iter().map(OsString::into_vec).collect(),
        env: client::environment(context.environment.vars().iter().cloned(), &typed.env),
        cwd: working_directory(typed)?.as_os_str().as_bytes().to_vec(),
        umask: umask.bits(),
        user: Some((uid, gid)),
        ns: namespace.text,
        nodes: namespace.nodes,
        terminal: terminal.then(|| terminal::size().unwrap_or((24, 80))),
        nice: 0,
    })
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

fn serve_request(context: &Context, typed: &Rcpu, node: &Node, namespace: &Carried) -> Result<Serve> {
    let cwd = working_directory(typed)?;
    let exposed = |expose: &Expose| {
        let path = cwd.join(&expose.path);
        std::fs::symlink_metadata(&path).at("expose", path.display())?;
        Ok((path.as_path().into(), expose.read_only))
    };
    let expose = typed.expose.iter().map(exposed).collect::<Result<_>>()?;
    let home = context.user_home().ok_or_else(|| Error::new("find the home", "$HOME", "is not set"))?;
    Ok(Serve {
        node: node.name.as_str().to_string(),
        session: 0,
        nonce: String::new(),
        home: home.as_path().into(),
        cwd: cwd.as_path().into(),
        expose,
        servers: namespace.servers.clone(),
    })
}

/// What the user is told.
fn explain(node: &Node, err: client::Error) -> Error {
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
        err => Error::with_remedy("run", &node.name, &err.to_string()).status(status),
    }
}
