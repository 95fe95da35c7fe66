//! Whose a session is: who sees it in /cpu, and whose connection may bring its tree.

use std::sync::Arc;

use p9::Who;

/// The identity that a session belongs to: the proven key, or the local user where a local transport proved that.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Owner {
    key: Arc<str>,
    uid: Option<u32>,
}

impl Owner {
    /// What tells the caller from others: the key that it has proven, if it has.
    pub(crate) fn name(&self) -> String {
        format!("{} {:?}", self.key, self.uid)
    }
}

impl From<&Who> for Owner {
    fn from(who: &Who) -> Self {
        // A key says who it is; the uid beside it may differ between two of its connections.
        Self { key: who.key.clone(), uid: if who.key.is_empty() { who.uid } else { None } }
    }
}
