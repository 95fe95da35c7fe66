//! What the tree exchanged by itself, as a namespace does where something is bound: nothing older is told from then on.
//!
//! Called through [`crate::Mount::exchanged`], on a thread that may block: the kernel is told of names, for which it
//! waits until nobody has their directory locked. What is open stays what it was.

use p9::Name;

use super::Bridge;
use crate::table::ROOT;

impl Bridge {
    /// What `path` leads to, and all below it, may be something else now.
    pub(crate) fn exchanged(&self, path: &[Name<'_>]) {
        self.changes.all();
        self.foresight.end();
        let Ok(mut dir) = self.table.get(ROOT) else { return };
        let (mut dirs, mut at) = (vec![dir.id], None);
        for name in path {
            at = Some((dir.id, *name));
            let Some(child) = self.table.child(&dir, *name) else { break };
            dirs.push(child.id);
            dir = child;
        }
        // Where the last directory is the same still, the kernel keeps the names in it.
        let within = self.table.names_in(&dir);
        let names = within.iter().map(|name| (dir.id, name.as_name()));
        self.teller.exchanged(&dirs, names.chain(at));
    }
}
