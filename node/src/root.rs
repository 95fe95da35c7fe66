//! What a node shows: `fs/EXPORT`, `cpu`, `events` and `stat`, to each peer what it was granted.
//!
//! What is not granted looks absent. Made once, attached to once per connection.

use std::sync::Arc;

use cpuserver::Cpu;
use fileserver::{Exports, events};
use p9::{Errno, NodeRef, Reply, TreeRef, Who, synth};

/// The tree that a node serves to its peers.
pub fn tree(exports: Arc<Exports>, cpu: Arc<Cpu>) -> TreeRef {
    let stat = crate::stat::dir();
    synth::tree_for(move |who: &Who| -> Result<NodeRef, Errno> {
        let fs = exports.node_for(who);
        let mut entries = vec![("fs", fs.clone())];
        if let Some(cpu) = cpu.node_for(who) {
            entries.extend([("cpu", cpu), ("events", events::file(fs)), ("stat", stat.clone())]);
        }
        Ok(synth::dir(entries))
    })
}

/// The node's own trees, for the namespaces of its jobs: `#fs` is all exports, `#fs/NAME` is one.
pub struct OwnTrees(pub Arc<Exports>);

impl ns::Dialer for OwnTrees {
    fn dial<'a>(&'a self, server: &'a str, _spec: &'a str) -> Reply<'a, NodeRef> {
        let found = match server.strip_prefix("#fs") {
            Some("") => Some(self.0.node_for(&Who::owner())),
            Some(name) => name.strip_prefix('/').and_then(|name| self.0.root(&Who::owner(), name)),
            None => None,
        };
        found.ok_or(Errno::ENOENT).into()
    }
}
