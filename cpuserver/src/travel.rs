//! What a caller's namespace names that is neither the caller's root nor this node's own: other nodes, programs,
//! sockets.
//!
//! The same text means the same trees wherever it is read, and each is reached from there: by the node itself where it
//! can, else by way of the caller. How, is for whoever makes the [`crate::Cpu`] to say, since it knows keys and
//! addresses; the job's task asks once for each command.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use p9::client::Client;

/// Makes the trees of one command.
pub trait Travel: Send + Sync {
    /// Those of a command whose caller knows `nodes` (lines as in known_nodes) and serves what it lends on `caller`;
    /// their files are to show `owner`, uid and gid, where they are their server's own. Errors: `nodes` is none, in
    /// words.
    fn trees(&self, nodes: &str, caller: Client, owner: (u32, u32)) -> Result<Arc<dyn Trees>, String>;
}

/// The trees of one command, by the names that its namespace has for their servers.
pub trait Trees: ns::Dialer {
    /// How what `server` names was reached, in lines of text.
    fn how(&self, server: &str) -> Vec<String>;

    /// Where below the root of `server` directories of this machine are, which the kernel may bind there.
    fn own(&self, server: &str) -> Vec<PathBuf>;

    /// Whether the kernel may bind `dir` of this machine: it is this node's to show, and all of it can be shown so.
    fn may_bind(&self, dir: &Path) -> bool;
}

/// Whether what `server` names in a namespace is reached by way of the caller, or may be.
pub(crate) fn is_abroad(server: &str) -> bool {
    server == "#grid" || !(server.starts_with('#') || server == "caller")
}
