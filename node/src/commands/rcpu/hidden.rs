//! What a command lacks on a node although it is here: because the trust that the node has hides it.
//!
//! A node that does not see a file can only say that it is not there. Whoever runs the command knows the rules, and
//! says which of them it is. Asked when a command could not be started; it looks at this machine's files.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use cpuserver::client;
use fileserver::Access;
use fileserver::Rules;
use fileserver::caller::Trust;

use super::{Caller, OF_THE_NODE, working_directory};
use crate::cli::RootOf;
use crate::error::{Error, Result};
use crate::known::Node;

/// Interpreters that have interpreters: as many as the kernel follows.
const DEEP: usize = 5;

/// What one command may see on one node.
pub(super) struct Sight {
    node: Node,
    rules: Rules,
    cwd: PathBuf,
    /// The program, if it is one of mine.
    program: Option<PathBuf>,
}

impl Sight {
    /// What `argv` sees on `node` of the files of `caller`. Errors: there is no working directory, or no home.
    pub(super) fn of(caller: &Caller<'_>, node: &Node, argv: &[OsString]) -> Result<Self> {
        let typed = caller.typed;
        let none =
            crate::namespace::Carried { text: String::new(), nodes: String::new(), servers: Vec::new(), run: false };
        let serve = super::serve_request(caller.context, typed, &caller.dialer, node, &none)?;
        let mine = typed.root != Some(RootOf::Node) && typed.ns.is_none();
        Ok(Self {
            rules: serve.rules(node.trust, caller.context.homes()),
            node: node.clone(),
            cwd: working_directory(typed)?,
            program: argv.first().filter(|_| mine).and_then(|name| caller.found(name)),
        })
    }

    /// What to say instead of `err`, if that is because something is hidden.
    pub(super) fn error(&self, err: &client::Error) -> Option<Error> {
        let client::Error::NeverStarted { code, reason } = err else { return None };
        let (what, hidden) = match code {
            126 | 127 => self.program_or_interpreter()?,
            _ if reason.starts_with("working directory: ") => ("working directory: ", self.hidden(&self.cwd)?),
            _ => return None,
        };
        Some(self.told(what, &hidden).status(*code))
    }

    fn told(&self, what: &str, path: &Path) -> Error {
        let (name, shown) = (&self.node.name, path.display());
        let own = OF_THE_NODE.iter().find(|own| path.starts_with(own));
        if let Some(own) = own {
            let reason = format!("{what}{shown}: a command there has the node's own {own}, and not this one");
            return Error::new("run", name, reason).remedy(format!("cp {shown} ., and run that"));
        }
        let level = self.node.trust;
        let more = match level {
            Trust::All => String::new(),
            _ => format!(", or slashn add {name} {} --trust all", self.node.address),
        };
        let reason = format!("{what}{shown}: it is here, but hidden from {name}, which is trusted `{level}`");
        Error::new("run", name, reason).remedy(format!("rcpu --expose {shown}:ro ...{more}"))
    }

    /// The program, or what it needs to run, if that is hidden.
    fn program_or_interpreter(&self) -> Option<(&'static str, PathBuf)> {
        let mut at = self.program.clone()?;
        let mut what = "";
        for _ in 0..=DEEP {
            if let Some(hidden) = self.hidden(&at) {
                return Some((what, hidden));
            }
            what = "its interpreter: ";
            at = self.cwd.join(cpuserver::launch::interpreter(&at)?);
        }
        None
    }

    /// `path`, or where it leads, if it is here and hidden.
    fn hidden(&self, path: &Path) -> Option<PathBuf> {
        let is_hidden = |path: &PathBuf| self.rules.access(path) <= Access::Empty;
        let real = std::fs::canonicalize(path).ok()?;
        let plain: PathBuf = path.components().collect();
        [plain, real].into_iter().find(is_hidden)
    }
}
