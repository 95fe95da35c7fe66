//! `slashn ps`, `kill`, `wait`, `attach`: my commands, on whichever node they run.
//!
//! All of it is reading and writing files below /n/NODE/cpu, which `cpuserver::client` does; a node that cannot be
//! reached is named, and keeps nothing from being said of the others.

use std::fmt;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::str::FromStr;

use cpuserver::client;
use futures_util::future::join_all;
use p9::{Errno, How, Name, NodeRef, Want};
use serde::Serialize;

use crate::cli::{Attach, Kill, Ps, Wait};
use crate::commands::{escape, rcpu, runtime};
use crate::dial::{Dialer, LINGER};
use crate::error::{At, Error, Result};
use crate::known::Node;
use crate::{Context, control, output};

/// A command of mine: `NODE/SESSION`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SessionName {
    /// The node that it runs on.
    pub node: String,
    /// Its number there.
    pub session: u64,
}

impl FromStr for SessionName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (node, session) = text.rsplit_once('/').unwrap_or((text, ""));
        let session = session.parse().map_err(|_| format!("`{text}` is not NODE/SESSION, as `slashn ps` prints it"))?;
        Ok(Self { node: node.to_string(), session })
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.session)
    }
}

/// What is told of a session.
#[derive(Serialize)]
pub(super) struct Row {
    session: String,
    /// As the session's file `status` has it.
    status: String,
    /// As `stats` has it: for how long it has been there, or what it used.
    used: String,
    command: Vec<String>,
}

impl Row {
    /// Whether it has not ended.
    pub(super) fn runs(&self) -> bool {
        self.status.starts_with("running") || self.status == "starting"
    }

    /// What is printed of it.
    pub(super) fn line(&self) -> String {
        let command: Vec<_> = self.command.iter().map(|word| shown(word)).collect();
        format!("{:16}  {:14}  {:14}  {}", self.session, self.status, self.used, command.join(" "))
    }
}

/// Lists my commands.
pub fn ps(context: &Context, typed: &Ps) -> Result<ExitCode> {
    let dialer = Dialer::open(&context.home_or_lent()?, context.agent())?;
    let nodes = match &typed.nodes[..] {
        [] => dialer.nodes()?,
        named => named.iter().map(|name| dialer.find(name)).collect::<Result<_>>()?,
    };
    let runtime = runtime()?;
    let all = runtime.block_on(join_all(nodes.iter().map(|node| sessions_on(&dialer, node))));
    runtime.shutdown_background();
    let (mut rows, mut status) = (Vec::new(), ExitCode::SUCCESS);
    for answer in all {
        match answer {
            Ok(more) => rows.extend(more),
            Err(err) => {
                output::note(err);
                status = ExitCode::FAILURE;
            }
        }
    }
    if !typed.all {
        rows.retain(Row::runs);
    }
    let width = rows.iter().map(|row| row.session.len()).max().unwrap_or_default();
    output::list(context.json, &rows, |row| {
        let command: Vec<_> = row.command.iter().map(|word| shown(word)).collect();
        format!("{:width$}  {:14}  {:14}  {}", row.session, row.status, row.used, command.join(" "))
    })?;
    Ok(status)
}

async fn sessions_on(dialer: &Dialer, node: &Node) -> Result<Vec<Row>> {
    let (_client, root) = dialer.attach(node, LINGER).await?;
    rows_of(&root, node).await
}

/// My commands on `node`, whose root is `root`.
pub(super) async fn rows_of(root: &NodeRef, node: &Node) -> Result<Vec<Row>> {
    let cpu = match root.open_at(&[name(b"cpu")?], How { directory: true, ..How::READ }, Want::default()).await {
        Ok(opened) => opened.handle,
        // This key may not run commands there.
        Err(Errno::ENOENT) => return Ok(Vec::new()),
        Err(errno) => return Err(Error::new("list the commands", &node.name, errno)),
    };
    let mut ids: Vec<u64> = Vec::new();
    let p9::Handle::Dir(dir) = &cpu else { return Ok(Vec::new()) };
    let each = &mut |entry: p9::Entry<'_>| {
        ids.extend(std::str::from_utf8(entry.name.as_bytes()).ok().and_then(|name| name.parse::<u64>().ok()));
        std::ops::ControlFlow::Continue(())
    };
    dir.list(0, each).await.at("list the commands", &node.name)?;
    ids.sort_unstable();
    let rows = join_all(ids.into_iter().map(|id| row(root, node, id))).await;
    // One may have ended meanwhile.
    Ok(rows.into_iter().flatten().collect())
}

async fn row(root: &NodeRef, node: &Node, id: u64) -> Option<Row> {
    let file = async |name: &str| control::read(root, &format!("cpu/{id}/{name}")).await.ok();
    let (status, stats, args) = tokio::join!(file("status"), file("stats"), file("args"));
    let first = |text: &[u8]| String::from_utf8_lossy(text).lines().next().unwrap_or_default().to_string();
    let word = |word: &[u8]| String::from_utf8_lossy(word).into_owned();
    let args = args?;
    Some(Row {
        session: format!("{}/{id}", node.name),
        status: first(&status?),
        used: first(&stats?),
        command: args.strip_suffix(b"\0").unwrap_or(&args).split(|byte| *byte == 0).map(word).collect(),
    })
}

/// A word as a shell would take it, on one line whatever is in it.
fn shown(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,@%+".contains(c);
    match word {
        word if !word.is_empty() && word.chars().all(plain) => word.to_string(),
        word if word.chars().any(char::is_control) => format!("$'{}'", word.escape_default()),
        word => format!("'{}'", word.replace('\'', "'\\''")),
    }
}

/// Sends a signal to commands of mine.
pub fn kill(context: &Context, typed: &Kill) -> Result<ExitCode> {
    let (signal, sessions) = typed.parsed()?;
    let dialer = Dialer::open(&context.home_or_lent()?, context.agent())?;
    let runtime = runtime()?;
    let sent = runtime.block_on(join_all(sessions.iter().map(async |session| {
        let (_client, root) = dialer.attach(&dialer.find(&session.node)?, LINGER).await?;
        client::kill(root, session.session, signal).await.map_err(|err| explain("kill", session, err))
    })));
    runtime.shutdown_background();
    let mut status = ExitCode::SUCCESS;
    for err in sent.into_iter().filter_map(Result::err) {
        output::note(err);
        status = ExitCode::FAILURE;
    }
    Ok(status)
}

/// Waits until a command of mine has ended, and ends as it did.
pub fn wait(context: &Context, typed: &Wait) -> Result<ExitCode> {
    let session = &typed.session;
    let dialer = context.home_or_lent().and_then(|home| Dialer::open(&home, context.agent())).map_err(lost)?;
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let node = dialer.find(&session.node).map_err(lost)?;
        let (_client, root) = dialer.attach(&node, LINGER).await.map_err(lost)?;
        client::wait(root, session.session).await.map_err(|err| explain("wait", session, err))
    });
    runtime.shutdown_background();
    ended.map(|ended| rcpu::told(context, session, ended))
}

/// Takes part in a command of mine.
pub fn attach(context: &Context, typed: &Attach) -> Result<ExitCode> {
    let session = &typed.session;
    let dialer = context.home_or_lent().and_then(|home| Dialer::open(&home, context.agent())).map_err(lost)?;
    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let node = dialer.find(&session.node).map_err(lost)?;
        let (_client, root) = dialer.attach(&node, LINGER).await.map_err(lost)?;
        let (events, received) = tokio::sync::mpsc::channel(16);
        let forwarding = tokio::spawn(rcpu::forward_but_hangup(events));
        let (mut stdio, mut left) = (client::Stdio::inherit(), None);
        if std::io::stdin().is_terminal() {
            let (stdin, leaves) = escape::stdin();
            (stdio.stdin, left) = (Box::new(stdin), Some(leaves));
        }
        let leaves = async {
            match left {
                Some(left) => drop(left.await),
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = client::attach(root, session.session, stdio, received) => ended,
            () = leaves => {
                let left = Error::new("attach", session, "it was left, and goes on");
                return Err(lost(left.remedy(format!("slashn attach {session}"))));
            }
        };
        forwarding.abort();
        ended.map_err(|err| explain("attach", session, err))
    });
    // A read of stdin may be under way that nothing can end.
    runtime.shutdown_background();
    ended.map(|ended| rcpu::told(context, session, ended))
}

/// Never to be taken for the command's own status.
fn lost(err: Error) -> Error {
    err.status(255)
}

fn explain(step: &str, session: &SessionName, err: client::Error) -> Error {
    let status = if step == "kill" { 1 } else { err.exit_code() };
    let error = match err {
        client::Error::Refused { errno: Errno::ENOENT, .. } => {
            Error::new(step, session, "there is no such command of mine").remedy("slashn ps -A")
        }
        client::Error::Refused { errno: Errno::ESRCH, .. } => {
            Error::new(step, session, "it does not run").remedy(format!("slashn wait {session}"))
        }
        client::Error::Stream { error, .. } if error.kind() == std::io::ErrorKind::BrokenPipe => {
            return Error::new("write", "stdout", "nobody reads it").status(128 + 13);
        }
        err => Error::with_remedy(step, session, &err.to_string()),
    };
    error.status(status)
}

fn name(text: &[u8]) -> Result<Name<'_>> {
    Name::new(text).at("list the commands", "cpu")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_named_by_its_node_and_its_number() {
        let parsed = |text: &str| text.parse::<SessionName>();
        assert_eq!(parsed("gpu1/17"), Ok(SessionName { node: "gpu1".into(), session: 17 }));
        assert!(parsed("gpu1").is_err() && parsed("gpu1/").is_err() && parsed("gpu1/x").is_err());
    }

    #[test]
    fn a_word_is_shown_on_one_line() {
        let all = ["make", "-j16", "", "a b", "it's", "a\nb\x1b[1m"].map(shown);
        assert_eq!(all, ["make", "-j16", "''", "'a b'", "'it'\\''s'", "$'a\\nb\\u{1b}[1m'"]);
    }
}
