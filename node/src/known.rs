//! known_nodes: the nodes I trust, where they listen, and how far I trust each.
//!
//! One node a line, `NAME ADDR:PORT TRUST KEYTYPE BASE64`; KEYTYPE `SHA256` is a node whose key was given by its
//! fingerprint and has not been seen yet. Read by whoever dials a node; edited by `slashn add` and `slashn remove`.
//! A line that cannot be read is an error of the whole file: a node that silently vanished would be asked for again.

use std::fmt::{self, Display};
use std::path::Path;

use fileserver::caller::{NoTrust, Trust};
use p9::dial::{BadAddress, HostPort};

use crate::config::NodeName;
use crate::error::{Error, Result};
use crate::files::{self, Guard};
use crate::keys::{Key, check_fingerprint};

/// A node that I know.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Its name here, under /n.
    pub name: NodeName,
    /// Where it listens.
    pub address: HostPort,
    /// How much of this machine its commands for me may reach.
    pub trust: Trust,
    /// Its key.
    pub key: NodeKey,
}

/// The key that a node must prove.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NodeKey {
    /// The key itself.
    Seen(Key),
    /// The fingerprint of one that has not been seen yet, `SHA256:...`.
    Expected(String),
}

impl NodeKey {
    /// `SHA256:...`
    pub fn fingerprint(&self) -> String {
        match self {
            Self::Seen(key) => key.fingerprint(),
            Self::Expected(fingerprint) => fingerprint.clone(),
        }
    }

    /// Whether the key with this SubjectPublicKeyInfo is the one.
    pub fn is(&self, spki: &[u8]) -> bool {
        match self {
            Self::Seen(key) => key.spki() == spki,
            Self::Expected(fingerprint) => Key::from_spki(spki).is_ok_and(|key| key.fingerprint() == *fingerprint),
        }
    }
}

/// The nodes I know, in the file's order.
#[derive(Clone, Debug, Default)]
pub struct Known {
    nodes: Vec<Node>,
}

impl Known {
    /// What the file `path` says; a file that is not there knows nobody.
    pub fn open(path: &Path) -> Result<Self> {
        Self::parse(path, &read(path)?)
    }

    /// What `text`, the contents of the file `path`, says.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let mut nodes: Vec<Node> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let refuse = |reason: &dyn Display| {
                Error::new("read the nodes I know", format_args!("{}:{number}", path.display()), reason)
            };
            let Some(node) = parse_line(line).map_err(|reason| refuse(&reason))? else { continue };
            if nodes.iter().any(|other| other.name == node.name) {
                return Err(refuse(&format_args!("the node {} is there twice", node.name)));
            }
            nodes.push(node);
        }
        Ok(Self { nodes })
    }

    /// The nodes, in the file's order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node called `name`.
    pub fn find(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name.as_str() == name)
    }
}

/// The text of the file `path`; nothing, if it is not there.
pub fn read(path: &Path) -> Result<String> {
    if path.exists() { files::read("read the nodes I know", path, Guard::Unwritable) } else { Ok(String::new()) }
}

/// `text` with `node` in it, in place of one of the same name.
pub fn with(text: &str, node: &Node) -> String {
    let mut text = without(text, &node.name);
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text.push_str(&format!("{node}\n"));
    text
}

/// `text` without the node called `name`.
pub fn without(text: &str, name: &NodeName) -> String {
    text.split_inclusive('\n').filter(|line| line.split_whitespace().next() != Some(name.as_str())).collect()
}

impl Display for Node {
    /// The node's line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} ", self.name, self.address, self.trust)?;
        match &self.key {
            NodeKey::Seen(key) => f.write_str(&key.bare_line()),
            NodeKey::Expected(fingerprint) => f.write_str(&fingerprint.replacen(':', " ", 1)),
        }
    }
}

fn parse_line(line: &str) -> Result<Option<Node>, String> {
    if line.trim().is_empty() || line.trim_start().starts_with('#') {
        return Ok(None);
    }
    let words: Vec<_> = line.split_whitespace().collect();
    let [name, address, trust, kind, key] = words[..] else {
        return Err("is not NAME ADDR:PORT TRUST KEYTYPE BASE64".into());
    };
    let key = if kind == "SHA256" {
        let fingerprint = format!("{kind}:{key}");
        check_fingerprint(&fingerprint)?;
        NodeKey::Expected(fingerprint)
    } else {
        NodeKey::Seen(Key::from_line(&format!("{kind} {key}"))?)
    };
    Ok(Some(Node {
        name: name.parse()?,
        address: address.parse().map_err(|e: BadAddress| e.to_string())?,
        trust: trust.parse().map_err(|e: NoTrust| e.to_string())?,
        key,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    fn parse(text: &str) -> Result<Known> {
        Known::parse(Path::new("known_nodes"), text)
    }

    #[test]
    fn a_node_is_remembered_and_forgotten_and_comments_stay() {
        let node = parse_line(&format!("beta [::1]:17020 home {KEY}")).unwrap().unwrap();
        let text = with("# mine\nother 10.0.0.1:1 all SHA256 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU", &node);
        let known = parse(&text).unwrap();
        assert_eq!(known.find("beta"), Some(&node));
        assert_eq!(known.nodes().len(), 2);
        assert!(known.nodes()[0].key.fingerprint().starts_with("SHA256:47DE"));
        let moved = Node { address: "beta.example:1".parse().unwrap(), ..node.clone() };
        let text = without(&with(&text, &moved), &"other".parse().unwrap());
        assert_eq!(text, format!("# mine\n{moved}\n"));
    }

    #[test]
    fn a_garbled_line_is_named() {
        for (line, reason) in [
            ("beta", "is not NAME ADDR:PORT TRUST"),
            ("a/b [::1]:1 home ", "is not NAME"),
            (&format!("a/b [::1]:1 home {KEY}"), "a node's name"),
            (&format!("beta ::1 home {KEY}"), "is no address"),
            (&format!("beta h:99999 home {KEY}"), "is no address"),
            (&format!("beta h:1 full {KEY}"), "level of trust"),
            ("beta h:1 home ssh-ed25519 AAAA", "no public key"),
            ("beta h:1 home SHA256 AAAA", "no fingerprint"),
            (&format!("b h:1 all {KEY}\nb h:2 all {KEY}"), "there twice"),
        ] {
            let error = parse(&format!("# nodes\n{line}\n")).unwrap_err().to_string();
            assert!(error.contains("known_nodes:") && error.contains(reason), "{line}: {error}");
        }
    }

    #[test]
    fn a_node_is_known_by_its_key_or_by_its_fingerprint() {
        let key = Key::from_line(KEY).unwrap();
        assert!(NodeKey::Seen(key.clone()).is(key.spki()));
        assert!(NodeKey::Expected(key.fingerprint()).is(key.spki()));
        assert!(!NodeKey::Expected("SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU".into()).is(key.spki()));
        assert!(!NodeKey::Seen(key).is(b""));
    }
}
