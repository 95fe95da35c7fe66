//! A grid in one process: named trees, served over in-memory links, and clients of them.
//!
//! `Grid::new().serve("a", tree).link("a", 5.ms())` and then `grid.client("a")`: the client is a tree, too, so that
//! whatever holds for a tree can be asked of it again through the wire.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use p9::client::{self, Client};
use p9::server::{self, Limits};
use p9::wire::Dialect;
use p9::{Errno, NodeRef, Tree, TreeRef, Who};

/// Named trees and the links to them.
#[derive(Default)]
pub struct Grid {
    trees: HashMap<String, TreeRef>,
    delays: HashMap<String, Duration>,
    limits: Limits,
    dialect: Dialect,
}

impl Grid {
    /// An empty grid.
    pub fn new() -> Self {
        Self::default()
    }

    /// Serves `tree` as `name`.
    pub fn serve(mut self, name: &str, tree: TreeRef) -> Self {
        self.trees.insert(name.to_string(), tree);
        self
    }

    /// Makes each byte to and from `name` take `delay`.
    pub fn link(mut self, name: &str, delay: Duration) -> Self {
        self.delays.insert(name.to_string(), delay);
        self
    }

    /// Serves with these limits instead of the default ones.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Has clients offer this dialect and those that are poorer.
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// A client of `name`, over a connection of its own.
    pub async fn client(&self, name: &str) -> Result<Client, client::Error> {
        let delay = self.delays.get(name).copied().unwrap_or_default();
        let (near, far) = match delay.is_zero() {
            true => tokio::io::duplex(1 << 20),
            false => crate::link::slow(delay),
        };
        let (tree, limits) = (self.trees[name].clone(), self.limits.clone());
        tokio::spawn(async move {
            if let Err(err) = server::serve(far, tree, Arc::new(Who::owner()), limits).await {
                tracing::debug!("the connection ended: {err}");
            }
        });
        let options = client::Options { dialect: self.dialect, ..client::Options::default() };
        Client::connect(near, options).await
    }

    /// The root of `name` through a connection of its own.
    pub async fn root(&self, name: &str) -> Result<NodeRef, Errno> {
        let client = self.client(name).await.map_err(|_| Errno::EIO)?;
        client.attach(&Who::owner(), b"").await
    }
}

/// Durations that read as they are said.
pub trait Millis {
    /// So many milliseconds.
    fn ms(self) -> Duration;
}

impl Millis for u64 {
    fn ms(self) -> Duration {
        Duration::from_millis(self)
    }
}
