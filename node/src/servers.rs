//! What a namespace of mine may name: `#grid`, and the nodes I know.

use std::sync::Arc;

use ns::{Dialer, Grid, Names};
use p9::{Name, NodeRef, Reply, Want};

use crate::grid::Nodes;

/// Reaches them.
pub struct Servers(pub Arc<Nodes>);

impl Dialer for Servers {
    fn dial<'a>(&'a self, server: &'a str, spec: &'a str) -> Reply<'a, NodeRef> {
        if server == "#grid" {
            return Reply::ok(Grid::new(self.0.clone()));
        }
        Reply::later(async move {
            let root = self.0.reach(server).await?;
            let names = Name::split(spec.as_bytes())?;
            if names.is_empty() {
                return Ok(root);
            }
            Ok(root.walk(&names, Want::default()).await?.reached()?.node)
        })
    }
}
