//! The nodes that I know, dialled when they are used: what `/n` is made of.
//!
//! One connection for each node, shared by all who walk it here. A node that was lost is dialled again at the next
//! use; those who come while it is being dialled wait for that one attempt and share its failure, so that a dead node
//! costs each of them one connect time-out, never a queue of them.

use std::sync::Arc;
use std::time::Instant;

use dashmap::DashMap;
use ns::Names;
use p9::client::Client;
use p9::{Errno, NodeRef, Reply};
use tokio::sync::Mutex;

use crate::dial::{Dialer, MOUNT_LINGER};

/// The known nodes.
pub struct Nodes {
    dialer: Dialer,
    slots: DashMap<String, Arc<Mutex<Slot>>>,
}

#[derive(Default)]
struct Slot {
    live: Option<(Client, NodeRef)>,
    failed: Option<(Instant, Errno)>,
}

impl Nodes {
    /// The nodes that `dialer` knows.
    pub fn new(dialer: Dialer) -> Arc<Self> {
        Arc::new(Self { dialer, slots: DashMap::new() })
    }

    async fn root(&self, name: &str) -> Result<NodeRef, Errno> {
        let asked = Instant::now();
        let slot = self.slots.entry(name.to_string()).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some((client, root)) = &slot.live
            && !client.is_closed()
        {
            return Ok(root.clone());
        }
        if let Some((when, errno)) = slot.failed
            && when > asked
        {
            return Err(errno);
        }
        slot.live = None;
        let node = self.dialer.find(name).map_err(|_| Errno::ENOENT)?;
        match self.dialer.attach(&node, MOUNT_LINGER).await {
            Ok((client, root)) => {
                slot.live = Some((client, root.clone()));
                Ok(root)
            }
            Err(err) => {
                tracing::warn!("{err}");
                slot.failed = Some((Instant::now(), Errno::EHOSTUNREACH));
                Err(Errno::EHOSTUNREACH)
            }
        }
    }
}

impl Names for Nodes {
    fn names(&self) -> Vec<String> {
        self.dialer.names()
    }

    fn reach<'a>(&'a self, name: &'a str) -> Reply<'a, NodeRef> {
        Reply::later(self.root(name))
    }
}
