//! Whose programs a command runs on a node: mine, or the node's own, where it cannot run mine.
//!
//! That is found out before it starts, where the program says that it needs a newer processor, or by its not starting,
//! where it is for another machine; it is said once for each node, and known from then on.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use cpuserver::{client, launch};

use super::Caller;
use super::places::Place;
use crate::cli::RootOf;
use crate::error::{Error, Result};
use crate::known::Node;

impl Caller<'_> {
    /// My program `name`, looked for as the command will be.
    pub(super) fn found(&self, name: &OsString) -> Option<PathBuf> {
        let cwd = super::working_directory(self.typed).ok()?;
        let there = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|file| file.is_file());
        if is_path(name) {
            return Some(cwd.join(name)).filter(there);
        }
        let set = |item: &OsString| Some(OsStr::from_bytes(item.as_bytes().strip_prefix(b"PATH=")?).to_owned());
        let path = self.typed.env.iter().find_map(set);
        let path = path.or_else(|| self.context.environment.var("PATH").map(OsStr::to_owned)).unwrap_or_default();
        std::env::split_paths(&path).map(|dir| cwd.join(dir).join(name)).find(there)
    }

    /// What the program is for, if it is one of mine that no node has: one that is named by a path.
    pub(super) fn program(&self) -> Option<&'static str> {
        let name = self.argv.first().filter(|name| is_path(name) && self.typed.root != Some(RootOf::Node))?;
        let path = self.found(name)?;
        launch::level(&path).or_else(|| launch::architecture(&path))
    }

    /// Whose programs `argv` runs at `place`; says so where it is not what is usual. Errors: the program is mine, and
    /// needs a newer processor than that node has.
    pub(super) async fn whose(&self, place: &Place, argv: &[OsString]) -> Result<RootOf> {
        let Some(name) = argv.first().filter(|_| self.typed.root.is_none()) else {
            return Ok(self.typed.root.unwrap_or(RootOf::Caller));
        };
        let own = self.may_be_its_own(name);
        if own && self.its_own.lock().contains(place.node.name.as_str()) {
            return Ok(RootOf::Node);
        }
        let Some(needed) = self.found(name).and_then(|path| launch::level(&path)) else { return Ok(RootOf::Caller) };
        let facts = place.facts().await?;
        if facts.runs(needed) {
            return Ok(RootOf::Caller);
        }
        if own {
            self.take_its_own(&place.node, needed);
            return Ok(RootOf::Node);
        }
        let (node, name) = (&place.node.name, name.to_string_lossy());
        let reason = format!("{name}: it is for {needed}, and this node is {}", facts.own());
        Err(Error::new("run", node, reason).remedy(format!("rcpu -a 'runs={needed}' ...")).status(126))
    }

    /// Whether the program of `argv`, which `node` could not run because of `err`, is to be the node's own instead;
    /// says so once.
    pub(super) fn takes_its_own(&self, node: &Node, argv: &[OsString], err: &client::Error) -> bool {
        let Some(architecture) = err.is_for() else { return false };
        let may = argv.first().is_some_and(|name| self.typed.root.is_none() && self.may_be_its_own(name));
        if may {
            self.take_its_own(node, architecture);
        }
        may
    }

    /// What has a slash in its name is one of mine, and a namespace that was named says where everything is from.
    fn may_be_its_own(&self, name: &OsString) -> bool {
        self.typed.ns.is_none() && !is_path(name)
    }

    fn take_its_own(&self, node: &Node, architecture: &str) {
        if self.its_own.lock().insert(node.name.to_string()) {
            let name = &node.name;
            let said = format_args!("{name} runs no programs for {architecture}: its own are taken (--root node)");
            crate::output::note(said);
        }
    }
}

fn is_path(name: &OsString) -> bool {
    name.as_bytes().contains(&b'/')
}

/// What to say when a second try failed, too: the first reason, unless the second is another than a missing program.
pub(super) fn better(first: client::Error, second: client::Error) -> client::Error {
    if matches!(second, client::Error::NeverStarted { code: 127, .. }) { first } else { second }
}
