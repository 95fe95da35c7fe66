//! What a node shows: `fs/EXPORT`, `cpu` and `stat`, to each peer what it was granted.
//!
//! What is not granted looks absent. Made once, attached to once per connection.

use std::sync::Arc;

use cpuserver::Cpu;
use fileserver::exports::Exports;
use p9::{Errno, NodeRef, TreeRef, Who, synth};

/// The tree that a node serves to its peers.
pub fn tree(exports: Arc<Exports>, cpu: Arc<Cpu>) -> TreeRef {
    let stat = crate::stat::dir();
    synth::tree_for(move |who: &Who| -> Result<NodeRef, Errno> {
        let mut entries = vec![("fs", exports.dir(&who.rights))];
        if who.rights.may_run() {
            entries.push(("cpu", cpu.node_for(who)));
            entries.push(("stat", stat.clone()));
        }
        Ok(synth::dir(entries))
    })
}
