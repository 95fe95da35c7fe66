//! What a caller lends to the node that runs its command, besides its own files.
//!
//! Made by the agent for each connection that brings a caller's tree. The node asks by what it attaches to: `/...` is a
//! path of the caller's files, `#relay SERVER` the root of a server that the namespace names, reached by the caller,
//! and `#grant NODE` a file: the grant with which the node reaches another by itself. Only what the caller's own
//! namespace names is lent, whatever is asked for; of other nodes never more than their exports: those that the
//! namespace mounts, those that were exposed by name, and of the grid, by the trust that the caller has in the node,
//! all of them (`all`), the one called `home`, to be read (`home`), or none (`cwd`).

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fileserver::caller::Trust;
use fileserver::{Access, Ruled, Rules};
use ns::Lazy;
use p9::who::Only;
use p9::{Errno, NodeRef, Reply, Tree, TreeRef, Who, synth};
use tokio::sync::Mutex;

use crate::dial::Dialer;
use crate::grant::{self, Grant};
use crate::known::Node;
use crate::servers::{self, Servers};

/// How long a grant lasts. A node that still has use for it asks again.
const LIFETIME: Duration = Duration::from_secs(3600);

/// The export of every other node that is lent to a node which is trusted `home`.
const HOME: &str = "home";

/// What a node that is trusted as far as `trust` is lent of each node of the grid.
fn of_grid(trust: Trust) -> Option<Only> {
    match trust {
        Trust::All => Some(Only { export: Only::EVERY.into(), read_only: false }),
        Trust::Home => Some(Only { export: HOME.into(), read_only: true }),
        Trust::Cwd => None,
    }
}

/// What a node that is trusted as far as `trust` is lent of what is served at `spec` of `server`, for a person to read.
pub fn told(trust: Trust, server: &str, spec: &str) -> String {
    match (server, trust) {
        ("#grid", Trust::All) => "every export of every node".into(),
        ("#grid", Trust::Home) => format!("the export {HOME} of every node, to be read"),
        ("#grid", Trust::Cwd) => "nothing of other nodes".into(),
        _ => format!("{server} {spec}").trim_end().into(),
    }
}

/// What one command's node is lent.
pub struct Lent {
    /// The caller's own files.
    pub files: TreeRef,
    /// The servers that the command's namespace names, each with what is attached to there.
    pub named: Vec<(String, String)>,
    /// Exports of other nodes that are lent besides, by the names of those nodes.
    pub exposed: Vec<(String, Only)>,
    /// How far the caller trusts the node.
    pub trust: Trust,
    /// The node's key, as `SHA256:...`.
    pub holder: String,
    /// The command, for those who read grants.
    pub session: String,
    /// Reaches servers.
    pub servers: Servers,
    /// Knows nodes, and has the caller's key.
    pub dialer: Dialer,
    /// The grants that were made, by the names of the nodes that they are for.
    pub grants: Mutex<HashMap<String, (String, u64)>>,
}

impl Tree for Lent {
    fn attach<'a>(&'a self, who: &'a Who, aname: &'a [u8]) -> Reply<'a, NodeRef> {
        let Some(asked) = aname.strip_prefix(b"#") else { return self.files.attach(who, aname) };
        let asked = std::str::from_utf8(asked).ok().and_then(|asked| asked.split_once(' '));
        match asked {
            Some(("grant", node)) => Reply::later(self.grant(node)),
            Some(("relay", server)) => Reply::later(self.relay(who, server)),
            _ => Errno::ENOENT.into(),
        }
    }
}

impl Lent {
    /// What the node may reach of the node `name`: nothing, if the list is empty.
    fn only(&self, node: &Node) -> Vec<Only> {
        let exposed = self.exposed.iter().filter(|(name, _)| name == node.name.as_str());
        let mut only: Vec<Only> = exposed.map(|(_, only)| only.clone()).collect();
        for (server, spec) in &self.named {
            if server == "#grid" {
                only.extend(of_grid(self.trust));
            }
            let named = servers::node_of(server).and_then(|name| self.dialer.find(&name).ok());
            if named.is_none_or(|named| named.name != node.name) {
                continue;
            }
            let names: Vec<&str> = spec.split('/').filter(|name| !name.is_empty()).collect();
            match names[..] {
                [] | ["fs"] => only.push(Only { export: Only::EVERY.into(), read_only: false }),
                ["fs", export, ..] => only.push(Only { export: export.into(), read_only: false }),
                _ => {}
            }
        }
        only
    }

    /// The node `name`, and what may be reached of it. Errors: `ENOENT` for one of which nothing may.
    fn found(&self, name: &str) -> Result<(Node, Vec<Only>), Errno> {
        let node = self.dialer.find(name).map_err(|_| Errno::ENOENT)?;
        let only = self.only(&node);
        if only.is_empty() { Err(Errno::ENOENT) } else { Ok((node, only)) }
    }

    /// The grant for the node `name`: one is good for as many as ask in its time. Errors: as for [`Lent::found`];
    /// `EACCES` if it is not signed, which is logged.
    async fn grant(&self, name: &str) -> Result<NodeRef, Errno> {
        let (node, only) = self.found(name)?;
        let mut grants = self.grants.lock().await;
        let made = grants.get(node.name.as_str()).filter(|(_, until)| *until > grant::until(LIFETIME / 4)).cloned();
        let text = match made {
            Some((text, _)) => text,
            None => {
                let (holder, session) = (self.holder.clone(), self.session.clone());
                let (audience, until) = (node.key.fingerprint(), grant::until(LIFETIME));
                let grant = Grant { holder, audience, only, session, until };
                // Without a key of mine there is nothing to sign with, and the node is relayed.
                let key = self.dialer.secret().ok_or(Errno::EACCES)?;
                let text = p9::cancel::blocking(move || {
                    grant.sign(&key).map_err(|reason| {
                        tracing::warn!("a grant for {}: {reason}", grant.audience);
                        Errno::EACCES
                    })
                });
                let text = text.await?;
                grants.insert(node.name.to_string(), (text.clone(), until));
                text
            }
        };
        Ok(synth::file(move || Ok(text.clone().into())))
    }

    /// The root of `server`, which the namespace names. Errors: `ENOENT` for one that it does not; what reaching it
    /// meets.
    async fn relay(&self, who: &Who, server: &str) -> Result<NodeRef, Errno> {
        if let Some(name) = servers::node_of(server) {
            let (node, only) = self.found(&name)?;
            let exports = Lazy::node(Arc::new(self.servers.clone()), node.name.as_str(), "fs")?;
            return Ok(synth::dir([("fs", narrowed(exports, &only).await?)]));
        }
        if !self.named.iter().any(|(named, _)| named == server) {
            return Err(Errno::ENOENT);
        }
        if let Some(path) = server.strip_prefix("local!") {
            // What the node may reach of the caller's files is settled, whatever they are called.
            let path = Path::new(path).to_owned();
            let real = p9::cancel::blocking(move || Ok(std::fs::canonicalize(path)?)).await?;
            return self.files.attach(who, std::os::unix::ffi::OsStrExt::as_bytes(real.as_os_str())).await;
        }
        self.servers.eager().dial(server, "").await
    }
}

/// Of a directory of exports, what `only` has.
async fn narrowed(exports: NodeRef, only: &[Only]) -> Result<NodeRef, Errno> {
    let access = |read_only| if read_only { Access::ReadOnly } else { Access::ReadWrite };
    let of = |export: &str| {
        let list = only.iter().filter(|only| only.export == export);
        list.map(|only| access(only.read_only)).max()
    };
    let every = of(Only::EVERY).unwrap_or(Access::Absent);
    let rules = only.iter().filter(|only| only.export != Only::EVERY).fold(Rules::new(every), |rules, only| {
        rules.rule(&only.export, of(&only.export).unwrap_or(Access::Absent).max(every))
    });
    Ruled::new(synth::tree(exports), rules).attach(&Who::owner(), b"").await
}
