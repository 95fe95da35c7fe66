//! `slashn top`: how busy my nodes are and what of mine runs there, again and again.
//!
//! One screen, drawn anew every few seconds and when its size changes; `q` and ^C end it. Each node has a connection
//! that is kept, and one that is silent is told so and keeps no other waiting. Where the output is no terminal it is
//! printed once.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use futures_util::future::join_all;
use p9::NodeRef;
use p9::client::Client;
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::rcpu::{Raw, size};
use super::sessions::{Row, rows_of};
use super::{runtime, stopped};
use crate::cli::Top;
use crate::dial::{Dialer, LINGER};
use crate::error::{At, Result};
use crate::known::Node;
use crate::{Context, control, output};

/// How long a node may take for what it is asked.
const ANSWERS: Duration = Duration::from_secs(6);
/// The other screen of a terminal, without a cursor; and back.
const BEGIN: &str = "\x1b[?1049h\x1b[?25l";
const END: &str = "\x1b[?25h\x1b[?1049l";

/// A node, and the connection to it.
struct Watched {
    node: Node,
    live: Option<(Client, NodeRef)>,
}

/// What was found out of one node: its line, and my commands there.
type Seen = Result<(String, Vec<Row>)>;

/// Runs the command.
pub fn run(context: &Context, typed: &Top) -> Result<ExitCode> {
    let dialer = Dialer::open(&context.home_or_lent()?, context.agent())?;
    let nodes = match &typed.nodes[..] {
        [] => dialer.nodes()?,
        named => named.iter().map(|name| dialer.find(name)).collect::<Result<_>>()?,
    };
    let mut watched: Vec<Watched> = nodes.into_iter().map(|node| Watched { node, live: None }).collect();
    let runtime = runtime()?;
    let shown = runtime.block_on(async {
        if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
            let raw = Raw::enter().at("use the terminal", "stdin")?;
            let shown = watch(&dialer, &mut watched, typed.delay).await;
            drop(raw);
            return shown;
        }
        lines(&look(&dialer, &mut watched).await, &watched).into_iter().try_for_each(output::line)
    });
    // A read of the keyboard may be under way that nothing can end.
    runtime.shutdown_background();
    shown.map(|()| ExitCode::SUCCESS)
}

/// Draws until it is told to end.
async fn watch(dialer: &Dialer, watched: &mut [Watched], delay: f64) -> Result<()> {
    let (never, mut stdin) = (Notify::new(), tokio::io::stdin());
    let mut resized = signal(SignalKind::window_change()).at("listen for", "signals")?;
    let mut ended = std::pin::pin!(stopped(&never));
    let mut key = [0];
    draw(BEGIN)?;
    let mut drawn = draw(&painted(&["asking ...".into()]));
    let outcome = 'told: loop {
        if drawn.is_err() {
            break drawn;
        }
        let text = {
            let mut next = std::pin::pin!(async { lines(&look(dialer, watched).await, watched) });
            loop {
                tokio::select! {
                    text = &mut next => break text,
                    over = &mut ended => break 'told over.map(drop),
                    read = stdin.read(&mut key) => if ends(&read, key[0]) { break 'told Ok(()) },
                }
            }
        };
        drawn = draw(&painted(&text));
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs_f64(delay)) => {}
            _ = resized.recv() => {}
            over = &mut ended => break over.map(drop),
            read = stdin.read(&mut key) => if ends(&read, key[0]) { break Ok(()) },
        }
    };
    draw(END).and(outcome)
}

/// Whether a key, or there being none any more, ends it: `q`, ^C, ^D.
fn ends(read: &std::io::Result<usize>, key: u8) -> bool {
    !matches!(read, Ok(1..)) || matches!(key, b'q' | b'Q' | 3 | 4)
}

/// What every node tells, in their order.
async fn look(dialer: &Dialer, watched: &mut [Watched]) -> Vec<Seen> {
    let each = watched.iter_mut().map(async |one| {
        let late = |_| Err(crate::Error::new("ask", &one.node.name, "it does not answer"));
        let seen = timeout(ANSWERS, ask(dialer, &one.node, &mut one.live)).await.unwrap_or_else(late);
        if seen.is_err() {
            one.live = None;
        }
        seen
    });
    join_all(each).await
}

async fn ask(dialer: &Dialer, node: &Node, live: &mut Option<(Client, NodeRef)>) -> Seen {
    let root = match live {
        Some((client, root)) if !client.is_closed() => root.clone(),
        _ => live.insert(dialer.attach(node, LINGER).await?).1.clone(),
    };
    let words = async |file: &str| {
        let text = control::read(&root, &format!("stat/{file}")).await.at("ask", &node.name)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let number = |word: &str| word.parse::<f64>().ok().filter(|number| number.is_finite());
        Ok::<Vec<f64>, crate::Error>(text.split_whitespace().filter_map(number).collect())
    };
    let rows = async { rows_of(&root, node).await };
    let (load, cores, memory, mut rows) = tokio::try_join!(words("load"), words("cores"), words("memory"), rows)?;
    rows.retain(Row::runs);
    let at = |numbers: &[f64], at: usize| numbers.get(at).copied().unwrap_or_default();
    let (total, available) = (at(&memory, 0), at(&memory, 1));
    let used = 100.0 * (1.0 - available / total.max(1.0));
    let line = format!(
        "{:6.2} {:6.2} {:6.2} {:6.0} {:9.1}G {used:4.0}% {:9}",
        at(&load, 0),
        at(&load, 1),
        at(&load, 2),
        at(&cores, 0),
        total / f64::from(1 << 30),
        rows.len(),
    );
    Ok((line, rows))
}

/// The whole as lines of text.
fn lines(seen: &[Seen], watched: &[Watched]) -> Vec<String> {
    let width = watched.iter().map(|one| one.node.name.as_str().len()).max().unwrap_or(0).max(4);
    let head = "load 1     5     15  cores    memory  used  commands";
    let mut lines = vec![format!("{:width$} {head}", "node")];
    for (one, seen) in watched.iter().zip(seen) {
        let said = seen.as_ref().map_or_else(|err| format!("  {err}"), |(line, _)| line.clone());
        lines.push(format!("{:width$} {said}", one.node.name.as_str()));
    }
    lines.push(String::new());
    let rows = seen.iter().flatten().flat_map(|(_, rows)| rows);
    lines.extend(rows.map(Row::line));
    lines
}

/// `lines` as they are drawn over what is on the screen: no wider and no longer than that.
fn painted(lines: &[String]) -> String {
    let (rows, columns) = size().filter(|(rows, columns)| *rows > 0 && *columns > 0).unwrap_or((24, 80));
    let mut text = String::from("\x1b[H");
    for (index, line) in lines.iter().take(rows.into()).enumerate() {
        text += if index == 0 { "" } else { "\r\n" };
        text.extend(line.chars().take(columns.into()));
        text += "\x1b[K";
    }
    text + "\x1b[J"
}

fn draw(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).at("draw", "stdout")
}
