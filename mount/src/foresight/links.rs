//! Where symbolic links lead, which is the same for as long as there are any.

use bytes::Bytes;
use p9::{Errno, FileKind, NodeRef};
use quick_cache::sync::Cache;

use super::Foresight;

/// How many are remembered.
const LINKS: usize = 4096;

/// Targets of links, by the paths of their qids.
pub(super) struct Links(Cache<u64, Bytes>);

impl Default for Links {
    fn default() -> Self {
        Self(Cache::new(LINKS))
    }
}

impl Foresight {
    /// Where the link with this qid path leads, if that is remembered.
    pub(crate) fn link(&self, qid_path: u64) -> Option<Bytes> {
        self.links.0.get(&qid_path)
    }

    /// Where the link `node` leads, which is remembered. Errors: as [`p9::Node::read_link`].
    pub(crate) async fn read_link(&self, node: &NodeRef) -> Result<Bytes, Errno> {
        let qid = node.qid();
        let target = node.read_link().await?;
        // What has no version may lead elsewhere each time, as in /proc.
        if qid.kind == FileKind::Link && qid.version != 0 {
            self.links.0.insert(qid.path, target.clone());
        }
        Ok(target)
    }
}
