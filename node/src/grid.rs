//! The nodes that I know, dialled when they are used: what `/n` is made of.
//!
//! One connection for each node, shared by all who walk it here. A node that was lost is dialled again at the next
//! use, for a while, unless it has said that it ends: it may be just starting anew. Those who come while it is being dialled wait for that and share its
//! failure, so that a dead node costs each of them one connect time-out, never a queue of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use ns::Names;
use p9::client::Client;
use p9::{Errno, NodeRef, Reply};
use tokio::sync::Mutex;

use crate::dial::Dialer;
use crate::error::Result;

/// The known nodes.
pub struct Nodes {
    dialer: Dialer,
    timeout: Duration,
    slots: DashMap<String, Arc<Mutex<Slot>>>,
}

#[derive(Default)]
struct Slot {
    live: Option<(Client, NodeRef)>,
    /// Until when it is waited for, which was lost.
    until: Option<Instant>,
    failed: Option<(Instant, Errno)>,
}

impl Nodes {
    /// The nodes that `dialer` knows. One that was lost is waited for until it has been away for `timeout`.
    pub fn new(dialer: Dialer, timeout: Duration) -> Arc<Self> {
        Arc::new(Self { dialer, timeout, slots: DashMap::new() })
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
        if let Some((client, _)) = slot.live.take() {
            // One that has said that it ends need not be waited for.
            let patience = client.left().map_or(self.timeout, |back| back.min(self.timeout));
            slot.until = Some(client.lost().unwrap_or(asked) + patience);
        }
        match self.attach(name, slot.until.unwrap_or(asked)).await? {
            Ok((client, root)) => {
                *slot = Slot { live: Some((client, root.clone())), ..Slot::default() };
                Ok(root)
            }
            Err(err) => {
                tracing::warn!("{err}");
                slot.failed = Some((Instant::now(), Errno::EHOSTUNREACH));
                Err(Errno::EHOSTUNREACH)
            }
        }
    }

    /// Reaches the node called `name`, if need be in several attempts, as long as those begin before `until`.
    async fn attach(&self, name: &str, until: Instant) -> Result<Result<(Client, NodeRef)>, Errno> {
        let mut pause = PAUSES.0;
        loop {
            // Its address may have changed since.
            let node = self.dialer.find(name).map_err(|_| Errno::ENOENT)?;
            let attached = self.dialer.attach_patiently(&node, self.timeout).await;
            let over = attached.is_ok() || Instant::now() + pause >= until;
            if over || !self.dialer.may_come_back(name).await {
                return Ok(attached);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

/// How long to wait between attempts to reach a node that was lost, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

impl Names for Nodes {
    fn names(&self) -> Vec<String> {
        self.dialer.names()
    }

    fn reach<'a>(&'a self, name: &'a str) -> Reply<'a, NodeRef> {
        Reply::later(self.root(name))
    }
}
