//! The directory /cpu as one peer sees it: `clone`, `connect`, and its own sessions by number.
//!
//! Made once for each peer that may run commands, so that its qids stay; listed and walked in the tasks that answer
//! requests.

use std::sync::{Arc, Weak};

use p9::synth::{self, Listing};
use p9::{Errno, Name, NameBuf, NodeRef, Reply, Stream};

use crate::owner::Owner;
use crate::{Cpu, connect};

/// /cpu for one peer.
struct Sessions {
    cpu: Weak<Cpu>,
    owner: Owner,
    clone: NodeRef,
    connect: NodeRef,
}

/// The directory /cpu as `owner` sees it.
pub(crate) fn directory(cpu: &Arc<Cpu>, owner: Owner) -> NodeRef {
    let (weak, whose) = (Arc::downgrade(cpu), owner.clone());
    let clone = synth::stream(0o666, move |_| {
        let opened = weak.upgrade().ok_or(Errno::ESTALE).and_then(|cpu| cpu.open_clone(&whose));
        opened.map(|file| Arc::new(file) as Arc<dyn Stream>).into()
    });
    synth::directory(Arc::new(Sessions { cpu: Arc::downgrade(cpu), owner, clone, connect: connect::file() }))
}

impl Listing for Sessions {
    fn lookup<'a>(&'a self, name: Name<'a>) -> Reply<'a, Option<NodeRef>> {
        if name.as_bytes() == b"clone" {
            return Reply::ok(Some(self.clone.clone()));
        }
        if name.as_bytes() == b"connect" {
            return Reply::ok(Some(self.connect.clone()));
        }
        let Ok(name) = std::str::from_utf8(name.as_bytes()) else { return Reply::ok(None) };
        match self.cpu.upgrade().ok_or(Errno::ESTALE).and_then(|cpu| cpu.session(name, &self.owner)) {
            Err(Errno::ENOENT) => Reply::ok(None),
            found => found.map(|(_, node)| Some(node)).into(),
        }
    }

    fn list(&self) -> Reply<'_, Vec<(NameBuf, NodeRef)>> {
        let sessions = self.cpu.upgrade().map(|cpu| cpu.sessions_of(&self.owner)).unwrap_or_default();
        let named = |(id, node): (u64, NodeRef)| NameBuf::new(id.to_string()).map(|name| (name, node));
        let file = |name: &str, node: &NodeRef| NameBuf::new(name).map(|name| (name, node.clone()));
        let files = [file("clone", &self.clone), file("connect", &self.connect)];
        files.into_iter().chain(sessions.into_iter().map(named)).collect::<Result<_, _>>().into()
    }
}
