//! What a command is lent of its caller while it runs: sockets there that lead here, and what goes with them.
//!
//! Each is a place where the command listens for its caller ([`Command::accept`]); what connects there is carried over
//! the connection that the command has, to what was settled here before it started, and ends with it. No key leaves
//! this machine, and nothing but these places is reached.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use cpuserver::Command;
use cpuserver::client::Taken;
use fileserver::caller::Trust;
use p9::Errno;
use p9::dial::Address;
use p9::transport::{self, Io};
use tokio::io::{AsyncWriteExt, copy_bidirectional};
use tokio::time::timeout;

use super::forward::Forward;
use super::{Caller, wayland, x11};
use crate::cli::Rcpu;
use crate::dial::Dialer;
use crate::error::{At, Error, Result};
use crate::known::Node;
use crate::namespace::Carried;
use crate::{Context, output, within};

/// What the step is called in errors.
const STEP: &str = "lend";
/// How long a command may take to say what it wants of the caller.
const SAYS: Duration = Duration::from_secs(10);

/// What `--forward` names.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Lend {
    /// The ssh-agent.
    Agent,
    /// The X display.
    X11,
    /// The Wayland display.
    Wayland,
    /// The nodes that I know, and my key to reach them; or not, although I trust the node.
    Rcpu(bool),
    /// A unix socket, at the same path there.
    Socket(PathBuf),
    /// As `-L`.
    Local(Forward),
    /// As `-R`.
    Remote(Forward),
}

impl FromStr for Lend {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "agent" => Ok(Self::Agent),
            "x11" => Ok(Self::X11),
            "wayland" => Ok(Self::Wayland),
            "rcpu" => Ok(Self::Rcpu(true)),
            "no-rcpu" => Ok(Self::Rcpu(false)),
            path if path.starts_with('/') => Ok(Self::Socket(path.into())),
            _ => match text.split_at_checked(2) {
                Some(("L:", rest)) => rest.parse().map(Self::Local),
                Some(("R:", rest)) => rest.parse().map(Self::Remote),
                _ => Err("it is agent, x11, wayland, rcpu, no-rcpu, the path of a socket, L:FORWARD or R:FORWARD"),
            },
        }
    }
}

/// Which displays are lent.
pub(super) struct Displays {
    x11: bool,
    pub(super) wayland: bool,
}

impl Displays {
    /// What `typed` names; with `-X`, each that there is here and can be lent.
    pub(super) fn of(context: &Context, typed: &Rcpu) -> Self {
        let (named, environment) = (|lend: Lend| typed.lend.contains(&lend), &context.environment);
        let (x11, wayland) = (environment.var("DISPLAY").is_some(), environment.var("WAYLAND_DISPLAY").is_some());
        // Where there are both, programs can do without.
        let has_means = || !x11 || wayland::is_installed(environment);
        Self {
            x11: named(Lend::X11) || typed.x11 && (x11 || !wayland),
            wayland: named(Lend::Wayland) || typed.x11 && wayland && has_means(),
        }
    }
}

/// Errors: a socket that `typed` lends has nobody here who would answer.
pub(super) async fn answers(context: &Context, typed: &Rcpu) -> Result<()> {
    let named = |lend: Lend| typed.lend.contains(&lend);
    let mut all = Vec::new();
    for lend in &typed.lend {
        if let Lend::Socket(path) = lend {
            all.push((path.display().to_string(), Address::Unix(path.clone())));
        }
    }
    if typed.agent || named(Lend::Agent) {
        all.extend(context.agent().map(|path| ("agent".into(), Address::Unix(path.to_path_buf()))));
    }
    let displays = Displays::of(context, typed);
    if displays.x11 {
        all.push(("x11".into(), x11::address(&context.environment)?));
    }
    if displays.wayland {
        all.push(("wayland".into(), wayland::address(&context.environment)?));
    }
    for (what, at) in all {
        let is_none = |path: &Path| std::fs::metadata(path).is_ok_and(|file| !file.file_type().is_socket());
        let shown = if what.starts_with('/') { String::new() } else { format!("{at}: ") };
        match &at {
            Address::Unix(path) if is_none(path) => {
                let remedy = format!("rcpu --expose {}", path.display());
                return Err(Error::new(STEP, what, format!("{shown}is no socket")).remedy(remedy));
            }
            _ => {}
        }
        match connect(&at).await {
            // Somebody is there, and busy.
            Err(err) if err.kind() != std::io::ErrorKind::WouldBlock => {
                let reason = format!("{shown}{}", Errno::from(err));
                return Err(Error::new(STEP, what, reason).remedy("ss -lxt, for what listens here"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// `command` on `node` with what it is lent. Adds to its namespace what that needs. Errors: something that was asked
/// for is not to be had here.
pub(super) fn lent(caller: &Caller<'_>, node: &Node, carried: &mut Carried, mut command: Command) -> Result<Command> {
    let typed = caller.typed;
    let named = |lend: Lend| typed.lend.contains(&lend);
    for forward in typed.remotes() {
        command = remote(caller, forward, command)?;
    }
    for lend in &typed.lend {
        if let Lend::Socket(path) = lend {
            let there = Address::Unix(in_its_directory(path));
            command = leading_to(command, there.to_string(), Address::Unix(path.clone()));
        }
    }
    if typed.agent || named(Lend::Agent) {
        let here = caller.context.agent().map(Path::to_path_buf);
        let unset = || Error::new(STEP, "agent", "$SSH_AUTH_SOCK is not set").remedy("eval $(ssh-agent) && ssh-add");
        const THERE: &str = "/run/slashn/ssh-agent";
        command = leading_to(command, format!("unix!{THERE}"), Address::Unix(here.ok_or_else(unset)?));
        command = command.env("SSH_AUTH_SOCK", THERE);
    }
    if Displays::of(caller.context, typed).x11 {
        command = x11::lent(&caller.context.environment, carried, command)?;
    }
    if let Some(proxy) = &caller.wayland {
        let socket = proxy.socket();
        command = command.env("WAYLAND_DISPLAY", wayland::DISPLAY).accept(
            format!("unix!{}", wayland::SOCKET),
            move |taken| {
                let socket = socket.clone();
                async move { pass(taken, wayland::connect(&socket).await, "the Wayland display").await }
            },
        );
    }
    let asked = typed.lend.iter().rev().find_map(|lend| match lend {
        Lend::Rcpu(yes) => Some(*yes),
        _ => None,
    });
    // Where it is not asked for, a command that has no place for it does without. One that is left alone has nobody
    // here.
    let trusted = node.trust == Trust::All && carried.run && !typed.detach;
    if asked.unwrap_or(trusted) {
        let dialer = caller.dialer.clone();
        command = command.accept(format!("unix!{}", within::CALLER), move |taken| answer(taken, dialer.clone()));
    }
    Ok(command)
}

/// With what `-R` says.
fn remote(caller: &Caller<'_>, forward: &Forward, command: Command) -> Result<Command> {
    let there = match forward.listens() {
        Address::Unix(path) => Address::Unix(in_its_directory(&super::working_directory(caller.typed)?.join(path))),
        at => at,
    };
    Ok(leading_to(command, there.to_string(), forward.connects()))
}

/// `path` without links on the way there: so it is the same file by whichever name the node looks for it.
fn in_its_directory(path: &Path) -> PathBuf {
    let real = path.parent().and_then(|parent| std::fs::canonicalize(parent).ok());
    real.zip(path.file_name()).map_or_else(|| path.to_path_buf(), |(parent, name)| parent.join(name))
}

/// With a place `there` that leads to `here`.
fn leading_to(command: Command, there: String, here: Address) -> Command {
    command.accept(there, move |taken| joined(taken, here.clone()))
}

/// Carries `taken` to what is at `here`.
async fn joined(taken: Taken, here: Address) {
    let to = connect(&here).await;
    pass(taken, to, here).await;
}

/// Carries `taken` to what was connected `to`, which is called `name`.
async fn pass(mut taken: Taken, to: std::io::Result<Io>, name: impl std::fmt::Display) {
    match to {
        // Whoever breaks it off knows.
        Ok(mut io) => drop(copy_bidirectional(&mut taken, &mut io).await),
        Err(err) => output::note(Error::new("connect", name, err)),
    }
}

/// A connection to what listens here at `to`.
pub(super) async fn connect(to: &Address) -> std::io::Result<Io> {
    match to {
        Address::Tcp(to) | Address::Tls(to) => {
            let stream = transport::tcp(to).await?;
            transport::tune(&stream)?;
            Ok(Box::new(stream))
        }
        Address::Unix(path) => Ok(Box::new(transport::unix(path).await?)),
    }
}

/// Does what a command there wants, which runs commands itself: see [`within`].
async fn answer(mut taken: Taken, dialer: Dialer) {
    let Ok(Ok(asked)) = timeout(SAYS, within::line(&mut taken)).await else { return };
    let done = match asked.split_once(' ') {
        None if asked == "nodes" => tell(&mut taken, &dialer).await,
        Some(("dial", name)) => dial(&mut taken, &dialer, name).await,
        _ => Err(Error::new(STEP, "rcpu", format_args!("`{asked}` is not known here"))),
    };
    if let Err(err) = done {
        // It may have gone.
        let _ = taken.write_all(format!("error {err}\n").as_bytes()).await;
    }
}

async fn tell(taken: &mut Taken, dialer: &Dialer) -> Result<()> {
    let nodes: String = dialer.nodes()?.iter().map(|node| format!("{node}\n")).collect();
    taken.write_all(nodes.as_bytes()).await.at(STEP, "nodes")
}

async fn dial(taken: &mut Taken, dialer: &Dialer, name: &str) -> Result<()> {
    let node = dialer.find(name)?;
    let mut io = dialer.connect(&node).await?;
    taken.write_all(b"ok\n").await.at(STEP, name)?;
    drop(copy_bidirectional(taken, &mut io).await);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lent_is_named_by_a_word_a_path_or_as_ssh_does() {
        let said = |text: &str| text.parse::<Lend>();
        assert_eq!(said("agent"), Ok(Lend::Agent));
        assert_eq!((said("rcpu"), said("no-rcpu")), (Ok(Lend::Rcpu(true)), Ok(Lend::Rcpu(false))));
        assert_eq!(said("/run/user/0/bus"), Ok(Lend::Socket("/run/user/0/bus".into())));
        assert_eq!(said("R:1:h:2"), "1:h:2".parse().map(Lend::Remote));
        assert_eq!(said("L:1:h:2"), "1:h:2".parse().map(Lend::Local));
        for wrong in ["", "x", "R:", "agents", "é:1:h:2"] {
            assert!(said(wrong).is_err(), "{wrong}");
        }
    }
}
