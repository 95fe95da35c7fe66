//! Which nodes a command runs on: those that were named, all, or those that meet requirements.
//!
//! Called once, before anything runs. Nodes are asked at the same time; one that does not answer is passed over where
//! others may do, which the log says, and is an error of its own where it was meant.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use p9::NodeRef;
use p9::client::Client;

use super::requirements::{Facts, Requirements};
use crate::dial::{Dialer, LINGER};
use crate::error::{Error, Result};
use crate::known::Node;

/// Where to run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Where {
    /// On these nodes.
    Named(Vec<String>),
    /// On so many that meet the requirements, or all of them.
    Fitting(Requirements, Option<usize>),
    /// On all nodes that I know.
    All,
}

/// A node, connected.
pub(super) struct Place {
    pub(super) node: Node,
    pub(super) root: NodeRef,
    _client: Client,
}

impl Place {
    pub(super) async fn connect(dialer: &Dialer, node: &Node) -> Result<Self> {
        let (client, root) = dialer.attach(node, LINGER).await?;
        Ok(Self { node: node.clone(), root, _client: client })
    }

    /// The same, without waiting for what the node says: whether it lets me in is told by what is asked first.
    pub(super) async fn begin(dialer: &Dialer, node: &Node) -> Result<Self> {
        let (client, root) = dialer.attach_at_once(node, LINGER).await?;
        Ok(Self { node: node.clone(), root, _client: client })
    }

    /// What it tells of itself.
    pub(super) async fn facts(&self) -> Result<Facts> {
        let facts = Facts::of(&self.root).await;
        facts.map_err(|errno| Error::new("ask", format_args!("{}/stat", self.node.name), errno))
    }
}

/// The nodes that were named, or all that I know.
pub(super) fn nodes(dialer: &Dialer, names: Option<&[String]>) -> Result<Vec<Node>> {
    match names {
        Some(names) => names.iter().map(|name| dialer.find(name)).collect(),
        None => match dialer.nodes()? {
            nodes if nodes.is_empty() => {
                Err(Error::new("find a node", "-A", "no node is known").remedy("slashn add NAME ADDR:PORT"))
            }
            nodes => Ok(nodes),
        },
    }
}

/// How long the others have to answer once there are nodes enough.
const LATE: Duration = Duration::from_secs(1);
const FOR_EVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// The nodes that meet `wanted`, the least busy first, `count` of them at most: those that are what `program` is for,
/// if there are enough, else those too that have an emulator for it. Errors: there are none, or fewer.
pub(super) async fn fitting(
    dialer: &Dialer, wanted: &Requirements, program: Option<&str>, count: Option<usize>,
) -> Result<Vec<(Place, Facts)>> {
    const STEP: &str = "find a node";
    let known = dialer.nodes()?;
    let ask = async |node| {
        let place = Place::connect(dialer, node).await?;
        let facts = place.facts().await?;
        Ok::<_, Error>((place, facts))
    };
    let mut silent: Vec<&str> = known.iter().map(|node| node.name.as_str()).collect();
    let mut asked: FuturesUnordered<_> = known.iter().map(ask).collect();
    let (mut fit, mut others) = (Vec::new(), Vec::new());
    let mut late = std::pin::pin!(tokio::time::sleep(FOR_EVER));
    loop {
        let answer = tokio::select! {
            answer = asked.next() => answer,
            () = &mut late => None,
        };
        let Some(answer) = answer else { break };
        if let Ok((place, _)) = &answer {
            silent.retain(|name| *name != place.node.name.as_str());
        }
        match answer {
            Ok((place, facts)) if wanted.met_by(place.node.name.as_str(), &facts) => {
                fit.push((place, facts));
                // Those that are well are as quick as this one.
                if fit.len() == count.unwrap_or(1) {
                    late.as_mut().reset(tokio::time::Instant::now() + LATE);
                }
            }
            Ok((place, facts)) => others.push((place, facts)),
            Err(err) => tracing::info!("passed over: {err}"),
        }
    }
    fit.sort_by(|(_, one), (_, other)| one.before(other));
    let enough = count.unwrap_or(1);
    if let Some(program) = program.filter(|_| !fit.is_empty()) {
        fit = able(fit, others, program, enough)?;
    }
    if fit.len() < enough.max(1) {
        let unknown = if silent.is_empty() { String::new() } else { format!("; not reached: {}", silent.join(", ")) };
        let of = format!("{} of {} known nodes do{unknown}", fit.len(), known.len());
        let remedy = "for n in /n/*; do head $n/stat/*; done, or rcpu -v";
        return Err(Error::new(STEP, format_args!("-a '{wanted}'"), of).remedy(remedy));
    }
    fit.truncate(count.unwrap_or(fit.len()));
    Ok(fit)
}

/// Those of `fit` that run programs for `architecture`, if there are `enough`. Errors: there are none, and which of
/// `others` could.
fn able(
    fit: Vec<(Place, Facts)>, others: Vec<(Place, Facts)>, architecture: &str, enough: usize,
) -> Result<Vec<(Place, Facts)>> {
    let (natively, rest): (Vec<_>, Vec<_>) = fit.into_iter().partition(|(_, facts)| facts.runs_natively(architecture));
    if natively.len() >= enough {
        return Ok(natively);
    }
    let (emulated, unable): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, facts)| facts.runs(architecture));
    let able: Vec<_> = natively.into_iter().chain(emulated).collect();
    if !able.is_empty() {
        return Ok(able);
    }
    let are: Vec<_> = unable.iter().map(|(place, facts)| format!("{} is {}", place.node.name, facts.own())).collect();
    let could =
        others.iter().filter(|(_, facts)| facts.runs(architecture)).map(|(place, _)| place.node.name.to_string());
    let could: Vec<_> = could.collect();
    let could =
        if could.is_empty() { "no other that I know could".into() } else { format!("could: {}", could.join(", ")) };
    let reason = format!("no node that fits runs programs for it: {}; {could}", are.join(", "));
    Err(Error::new("find a node", architecture, reason).remedy("install qemu-user-static on one of them"))
}
