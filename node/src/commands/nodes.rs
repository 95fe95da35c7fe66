//! `slashn add`, `remove`, `nodes`: the nodes I know and trust. They edit known_nodes.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;

use serde::Serialize;

use crate::cli::{Add, Remove};
use crate::config::NodeName;
use crate::error::{At, Error, Result};
use crate::files;
use crate::home::Home;
use crate::keys::{self, Key};
use crate::known::{self, Known, Node, NodeKey};
use crate::{Context, output};

const STEP: &str = "add";

/// Remembers a node, if its key is the one that was given, or one that the user trusts when asked.
pub fn add(context: &Context, typed: &Add) -> Result<ExitCode> {
    let home = context.open_home()?;
    let key = match &typed.key {
        Some(fingerprint) => given(&home, typed, fingerprint)?,
        None => NodeKey::Seen(asked(&home, typed)?),
    };
    let node = Node { name: typed.name.clone(), address: typed.address.clone(), trust: typed.trust, key };
    remember(&home, &node)?;
    output::line(format_args!("added {} {} {} {}", node.name, node.address, node.trust, node.key.fingerprint()))?;
    Ok(ExitCode::SUCCESS)
}

/// The node's key, whose fingerprint the user gave. A node that cannot be reached now is remembered by that alone.
fn given(home: &Home, typed: &Add, fingerprint: &str) -> Result<NodeKey> {
    refuse_another(&home.known()?, &typed.name, fingerprint)?;
    match keys::shown::by(&typed.address, &home.node_key()?) {
        Ok(key) if key.fingerprint() == fingerprint => Ok(NodeKey::Seen(key)),
        Ok(key) => {
            let reason = format!("{} has another key than {fingerprint}: {}", typed.address, key.fingerprint());
            Err(Error::new(STEP, &typed.name, reason))
        }
        Err(error) => {
            output::note(format_args!("{error}: remembered by its fingerprint"));
            Ok(NodeKey::Expected(fingerprint.to_owned()))
        }
    }
}

/// The node's key, which the user was asked to trust, unless it is the one that is known already.
fn asked(home: &Home, typed: &Add) -> Result<Key> {
    let known = home.known()?.find(typed.name.as_str()).map(|node| node.key.clone());
    if known.is_none() && !io::stdin().is_terminal() {
        let remedy = format!("slashn add {} {} --key SHA256:FINGERPRINT", typed.name, typed.address);
        let reason = "standard input is no terminal to ask on whether its key is right";
        return Err(Error::new(STEP, &typed.name, reason).remedy(format!("{remedy}, as `slashn up` printed it there")));
    }
    let key = keys::shown::by(&typed.address, &home.node_key()?)?;
    match known {
        // If it is another key, `remember` refuses it.
        Some(_) => Ok(key),
        None if is_right(typed, &key).at("ask", "the terminal")? => Ok(key),
        None => Err(Error::new(STEP, &typed.name, "its key was not trusted, so it was not added")),
    }
}

/// Asks the user.
fn is_right(typed: &Add, key: &Key) -> io::Result<bool> {
    let mut err = io::stderr().lock();
    writeln!(err, "{} at {} has the key {}", typed.name, typed.address, key.fingerprint())?;
    write!(err, "Is it what `slashn up` printed there? Type yes to trust it: ")?;
    err.flush()?;
    let mut answer = String::new();
    io::stdin().lock().take(64).read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "yes" | "y"))
}

/// Puts `node` in known_nodes. Errors: one of that name, with another key, is there.
fn remember(home: &Home, node: &Node) -> Result<()> {
    let _one_at_a_time = home.edit()?;
    let path = home.known_nodes();
    let text = known::read(&path)?;
    refuse_another(&Known::parse(&path, &text)?, &node.name, &node.key.fingerprint())?;
    files::replace(STEP, &path, &known::with(&text, node), 0o600)
}

/// A node never changes its key unnoticed: it is forgotten first.
fn refuse_another(known: &Known, name: &NodeName, fingerprint: &str) -> Result<()> {
    match known.find(name.as_str()).map(|node| node.key.fingerprint()) {
        Some(other) if other != fingerprint => {
            let reason = format!("it is known by another key, {other}");
            Err(Error::new(STEP, name, reason).remedy(format!("slashn remove {name}")))
        }
        _ => Ok(()),
    }
}

/// Forgets a node.
pub fn remove(context: &Context, typed: &Remove) -> Result<ExitCode> {
    let home = context.open_home()?;
    let _one_at_a_time = home.edit()?;
    let path = home.known_nodes();
    let text = known::read(&path)?;
    if Known::parse(&path, &text)?.find(typed.name.as_str()).is_none() {
        return Err(Error::new("remove", &typed.name, "no such node is known").remedy("slashn nodes"));
    }
    files::replace("remove", &path, &known::without(&text, &typed.name), 0o600)?;
    output::line(format_args!("removed {}", typed.name))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints the nodes I know.
pub fn nodes(context: &Context) -> Result<ExitCode> {
    let known = context.home_or_lent()?.known()?;
    let rows: Vec<_> = known.nodes().iter().map(Row::of).collect();
    output::list(context.json, &rows, |row| format!("{} {} {} {}", row.name, row.address, row.trust, row.key))?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    address: String,
    trust: String,
    key: String,
}

impl<'a> Row<'a> {
    fn of(node: &'a Node) -> Self {
        let (address, trust, key) = (node.address.to_string(), node.trust.to_string(), node.key.fingerprint());
        Self { name: node.name.as_str(), address, trust, key }
    }
}
