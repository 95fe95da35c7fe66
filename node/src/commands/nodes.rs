//! `slashn add`, `remove`, `nodes`: the nodes I know and trust. They edit known_nodes.

use std::process::ExitCode;

use serde::Serialize;

use crate::cli::{Add, Remove};
use crate::error::{Error, Result};
use crate::files;
use crate::home::Home;
use crate::known::{self, Known, Node, NodeKey};
use crate::{Context, output};

const STEP: &str = "add";

/// Remembers a node.
pub fn add(context: &Context, typed: &Add) -> Result<ExitCode> {
    let home = context.open_home()?;
    let key = match &typed.key {
        Some(fingerprint) => NodeKey::Expected(fingerprint.clone()),
        None => return Err(Error::new(STEP, &typed.name, "its key is not given").remedy("slashn add ... --key ...")),
    };
    let node = Node { name: typed.name.clone(), address: typed.address.clone(), trust: typed.trust, key };
    remember(&home, &node)?;
    output::line(format_args!("added {} {} {} {}", node.name, node.address, node.trust, node.key.fingerprint()))?;
    Ok(ExitCode::SUCCESS)
}

/// Puts `node` in known_nodes. Errors: one of that name, with another key, is there.
fn remember(home: &Home, node: &Node) -> Result<()> {
    let _one_at_a_time = home.edit()?;
    let path = home.known_nodes();
    let text = known::read(&path)?;
    let known = Known::parse(&path, &text)?;
    if let Some(other) = known.find(node.name.as_str())
        && other.key.fingerprint() != node.key.fingerprint()
    {
        let reason = format!("it is known by another key, {}", other.key.fingerprint());
        return Err(Error::new(STEP, &node.name, reason).remedy(format!("slashn remove {}", node.name)));
    }
    files::replace(STEP, &path, &known::with(&text, node), 0o600)
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
    let known = context.open_home()?.known()?;
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
