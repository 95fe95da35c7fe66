//! grid.toml: this node's name, which key is the user's, what is exported.
//!
//! Read by every command and edited in place by some, so that the user's comments and order stay. A key that is not
//! known is refused: a mistyped setting must not be silently without effect.
//!
//! ```toml
//! name = "alpha"
//! identity = "agent"        # or a path; without it, id_ed25519 in the home
//! drivers = ["/opt/card/lib/libcard*.so*"]   # commands have these of this machine
//!
//! [exports]
//! docs = "/srv/docs:ro"
//! ```

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::Path;
use std::str::FromStr;

use fileserver::Export;
use serde::Deserialize;
use toml_edit::DocumentMut;

use crate::error::{Error, Result};

/// What grid.toml says.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The name of this node, under which it says that it is ready.
    #[serde(deserialize_with = "from_text")]
    pub name: NodeName,
    /// Where the user's key is: `agent`, or a path (relative to the home); without it, the home's own.
    pub identity: Option<String>,
    /// Which key of the agent, as `SHA256:...`; without it, the first that can be used.
    pub agent_key: Option<String>,
    /// Libraries that are tied to this machine's drivers, besides those that are known: absolute paths, with `*` in the
    /// last part.
    #[serde(default)]
    pub drivers: Vec<std::path::PathBuf>,
    /// What is exported, in the order of the names.
    #[serde(default, deserialize_with = "exports")]
    pub exports: Vec<Export>,
}

impl Config {
    /// What `text`, the contents of the file `path`, says. Errors name the line.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let config: Self = toml_edit::de::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
            Error::new("read", format_args!("{}:{line}", path.display()), error.message())
        })?;
        Ok(config)
    }

    /// The text of a fresh grid.toml.
    pub fn fresh(name: &NodeName, identity: Option<&str>, agent_key: Option<&str>) -> String {
        let mut document = DocumentMut::new();
        document["name"] = toml_edit::value(name.as_str());
        for (key, value) in [("identity", identity), ("agent_key", agent_key)] {
            if let Some(value) = value {
                document[key] = toml_edit::value(value);
            }
        }
        format!("# This node of the grid; see `slashn --help`.\n{document}")
    }
}

/// `text` (that of grid.toml) with `export` in it; one of the same name is replaced.
pub fn with_export(path: &Path, text: &str, export: &Export) -> Result<String> {
    let mut document = document(path, text)?;
    let exports = document.entry("exports").or_insert(toml_edit::table());
    exports[&export.name] = toml_edit::value(place(export));
    Ok(document.to_string())
}

/// `text` (that of grid.toml) without the export `name`; `None` if it has none of that name.
pub fn without_export(path: &Path, text: &str, name: &str) -> Result<Option<String>> {
    let mut document = document(path, text)?;
    let removed = document.get_mut("exports").and_then(|e| e.as_table_like_mut()).and_then(|e| e.remove(name));
    Ok(removed.map(|_| document.to_string()))
}

/// `PATH[:ro]`
fn place(export: &Export) -> String {
    format!("{}{}", export.path.display(), if export.read_only { ":ro" } else { "" })
}

fn document(path: &Path, text: &str) -> Result<DocumentMut> {
    text.parse().map_err(|error: toml_edit::TomlError| Error::new("read", path.display(), error.message()))
}

/// The name of a node: letters, digits, `-`, `_` and `.`, not starting with `-` or `.`, at most 64 bytes. It is a
/// directory's name under /n, a word of known_nodes and of namespace files, and nothing in it is ever quoted.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NodeName(String);

impl NodeName {
    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of a node whose host has none that would do.
    pub(crate) fn fallback() -> Self {
        Self("node".into())
    }
}

impl FromStr for NodeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        plain_word("a node's name", text).map(Self)
    }
}

/// A tree that a node exports, by its path in the grid: `NODE/fs/TREE`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TreePath {
    /// The node.
    pub node: NodeName,
    /// The tree in what the node serves: `fs/TREE`, or a folder in it.
    pub spec: String,
}

impl FromStr for TreePath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (node, spec) = text.split_once('/').unwrap_or_default();
        if spec.strip_prefix("fs/").is_none_or(str::is_empty) {
            return Err("not a path like NODE/fs/TREE, as `ls /n/NODE/fs` shows them".into());
        }
        Ok(Self { node: node.parse()?, spec: spec.into() })
    }
}

impl Display for TreePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.spec)
    }
}

impl Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks that `text` is one plain word.
fn plain_word(what: &str, text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 64 || !text.chars().all(good) || text.starts_with(['-', '.']) {
        return Err(format!(
            "{what} is 1 to 64 letters, digits, `-`, `_`, `.`, and starts with a letter, digit or `_`"
        ));
    }
    Ok(text.to_owned())
}

/// Checks that `text` can be the name of an export.
pub(crate) fn export_name(text: &str) -> Result<String, String> {
    match format!("{text}=/").parse::<Export>() {
        Ok(export) if export.name == text => Ok(export.name),
        Ok(_) => Err(format!("{text:?} cannot be the name of an export")),
        Err(error) => Err(error.to_string()),
    }
}

fn from_text<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: FromStr<Err = String>,
{
    String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
}

/// `NAME = "PATH[:ro]"`, each checked at once, so that nothing is half served later.
fn exports<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Export>, D::Error> {
    let table = BTreeMap::<String, String>::deserialize(deserializer)?;
    let parsed = table.into_iter().map(|(name, place)| format!("{name}={place}").parse::<Export>());
    parsed.collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(Path::new("grid.toml"), text)
    }

    #[test]
    fn a_fresh_file_parses_and_takes_exports_with_comments_kept() {
        let name: NodeName = "alpha".parse().unwrap();
        let text = Config::fresh(&name, Some("agent"), None) + "# mine\n";
        let export: Export = "docs=/srv/docs:ro".parse().unwrap();
        let text = with_export(Path::new("grid.toml"), &text, &export).unwrap();
        assert!(text.contains("# mine"), "{text}");
        let config = parse(&text).unwrap();
        assert_eq!((config.name, config.identity.as_deref()), (name, Some("agent")));
        let config = parse(&text).unwrap();
        assert_eq!(config.exports, [export]);
        let text = without_export(Path::new("grid.toml"), &text, "docs").unwrap().unwrap();
        assert_eq!(parse(&text).unwrap().exports, []);
        assert_eq!(without_export(Path::new("grid.toml"), &text, "docs").unwrap(), None);
    }

    #[test]
    fn an_unknown_setting_and_a_bad_name_are_refused_with_their_line() {
        let error = parse("name = \"a\"\nidentiy = \"agent\"\n").unwrap_err().to_string();
        assert!(error.contains("grid.toml:2") && error.contains("identiy"), "{error}");
        let error = parse("\nname = \"a/b\"\n").unwrap_err().to_string();
        assert!(error.contains("grid.toml:2") && error.contains("node's name"), "{error}");
        let error = parse("name = \"a\"\n[exports]\n\"x y\" = \"/\"\n").unwrap_err().to_string();
        assert!(error.contains("grid.toml:2") && error.contains("name of an export"), "{error}");
    }
}
