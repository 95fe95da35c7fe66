//! A layer over a whole tree, from its root on.

use std::sync::Arc;

use super::Layer;
use crate::{Name, NodeRef, Reply, Tree, TreeRef, Want, Who};

/// The tree `below` with `layer` over its root.
pub fn tree<L: Layer>(below: TreeRef, layer: L) -> TreeRef {
    Arc::new(LayeredTree { layer, below })
}

struct LayeredTree<L> {
    layer: L,
    below: TreeRef,
}

impl<L: Layer> Tree for LayeredTree<L> {
    fn attach<'a>(&'a self, who: &'a Who, aname: &'a [u8]) -> Reply<'a, NodeRef> {
        let names = match Name::split(aname) {
            Ok(names) => names,
            Err(errno) => return errno.into(),
        };
        let root = self.below.attach(who, b"").map(|root| self.layer.clone().over(root));
        if names.is_empty() {
            return root;
        }
        // From the root, so that the layer sees each name.
        Reply::later(async move { Ok(root.await?.walk(&names, Want::default()).await?.reached()?.node) })
    }
}
