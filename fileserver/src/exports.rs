//! The directories that a node shows to its peers, by name.
//!
//! The node parses them from its configuration, opens them once, and asks for the directory that one peer sees: what is
//! not granted looks absent. Walking and listing it touches no disk.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use p9::{Errno, Name, NodeRef, Reply, Tree, Who};

use crate::rules::{Access, Rules};
use crate::{Disk, DiskOptions, Error, Ruled};

mod node;

/// A directory under a name: `NAME=PATH[:ro]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Export {
    /// What peers call it: one component.
    pub name: String,
    /// The directory.
    pub path: PathBuf,
    /// Whether nobody may change it.
    pub read_only: bool,
}

/// Why a text is not an export.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ParseError {
    /// No `=`, or nothing after it.
    #[error("{0:?} is not NAME=PATH or NAME=PATH:ro")]
    Form(String),
    /// The name could not be walked to.
    #[error("{0:?} cannot be the name of an export: one word without / is expected")]
    Name(String),
}

impl FromStr for Export {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let form = || ParseError::Form(text.to_owned());
        let (name, path) = text.split_once('=').ok_or_else(form)?;
        let (path, read_only) = path.strip_suffix(":ro").map_or((path, false), |path| (path, true));
        if path.is_empty() {
            return Err(form());
        }
        // A name stands in rights (`only="NAME:ro,..."`) and in shell scripts.
        let word = |c: char| !c.is_whitespace() && !c.is_control() && !",:\"'".contains(c);
        let taken = name == p9::who::Only::EVERY;
        if taken || Name::new(name.as_bytes()).is_err() || !name.chars().all(word) {
            return Err(ParseError::Name(name.to_owned()));
        }
        Ok(Self { name: name.to_owned(), path: path.into(), read_only })
    }
}

impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}{}", self.name, self.path.display(), if self.read_only { ":ro" } else { "" })
    }
}

/// All that a node exports, opened.
pub struct Exports {
    open: Vec<Open>,
    /// What is absent for those who come with a grant.
    secrets: Vec<PathBuf>,
}

struct Open {
    export: Export,
    disk: Arc<Disk>,
}

impl Exports {
    /// Opens each of `exports`; `key` is that of [`DiskOptions`]. It does blocking I/O. Errors: one of them cannot be
    /// served.
    pub fn open(exports: Vec<Export>, key: [u8; 32]) -> Result<Arc<Self>, Error> {
        Self::hiding(exports, key, Vec::new())
    }

    /// The same, where the files and directories `secrets` are absent for those who come with a grant: they act for a
    /// user who may see these, and was not asked about them.
    pub fn hiding(exports: Vec<Export>, key: [u8; 32], secrets: Vec<PathBuf>) -> Result<Arc<Self>, Error> {
        let mut open = Vec::new();
        for export in exports {
            let options = DiskOptions::new(key).read_only(export.read_only);
            let disk = Disk::open(&export.path, options)?;
            open.push(Open { export, disk });
        }
        Ok(Arc::new(Self { open, secrets }))
    }

    /// What is exported.
    pub fn list(&self) -> impl Iterator<Item = &Export> {
        self.open.iter().map(|open| &open.export)
    }

    /// The root of the export `name`, as `who` sees it.
    pub fn root(&self, who: &Who, name: &str) -> Option<NodeRef> {
        let open = self.open.iter().find(|open| open.export.name == name)?;
        let read_only = who.rights.export(name)?;
        let root = open.disk.root_for(who.client);
        if who.grant.is_some() {
            let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
            let hidden = self.secrets.iter().filter_map(|secret| secret.strip_prefix(&open.export.path).ok());
            let rules = hidden.filter(|path| !path.as_os_str().is_empty());
            let rules = rules.fold(Rules::new(access), |rules, path| rules.rule(path, Access::Absent));
            return Some(Ruled::shown(root, rules));
        }
        Some(if read_only { Ruled::node(root, Access::ReadOnly) } else { root })
    }

    /// The directory of all exports that `who` sees.
    pub fn node_for(&self, who: &Who) -> NodeRef {
        node::directory(self.list().filter_map(|export| Some((export.name.clone(), self.root(who, &export.name)?))))
    }

    /// The exports as a tree: at each attach the directory that this peer sees.
    pub fn tree(self: &Arc<Self>) -> Arc<dyn Tree> {
        Arc::new(ExportTree(self.clone()))
    }
}

struct ExportTree(Arc<Exports>);

impl Tree for ExportTree {
    fn attach<'a>(&'a self, who: &'a Who, aname: &'a [u8]) -> Reply<'a, NodeRef> {
        let root = self.0.node_for(who);
        match Name::split(aname) {
            Err(errno) => errno.into(),
            Ok(names) if names.is_empty() => Reply::ok(root),
            Ok(names) => Reply::later(async move { walk(root, &names).await }),
        }
    }
}

async fn walk(root: NodeRef, names: &[Name<'_>]) -> Result<NodeRef, Errno> {
    Ok(root.walk(names, p9::Want::default()).await?.reached()?.node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_reads_and_prints_the_same() {
        for text in ["src=/home/u/src", "data=/srv/data:ro", "odd=/a=b:c"] {
            assert_eq!(text.parse::<Export>().unwrap().to_string(), text);
        }
        for bad in ["", "name", "name=", "name=:ro"] {
            assert_eq!(bad.parse::<Export>(), Err(ParseError::Form(bad.to_owned())));
        }
        for bad in ["=/x", "*=/x", "a/b=/x", "..=/x", "a b=/x", "a,b=/x"] {
            assert!(matches!(bad.parse::<Export>(), Err(ParseError::Name(_))), "{bad}");
        }
    }
}
