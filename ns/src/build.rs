//! A namespace made from the lines of a namespace file.

use p9::{NodeRef, Reply};

use crate::namespace::{Error, Namespace};
use crate::text::Line;

/// Reaches the servers that a namespace file names.
pub trait Dialer: Send + Sync {
    /// The file `spec` (empty: the root) of what `server` serves. Errors: `ENOENT` for a server of a kind that is not
    /// known here, and what dialling meets.
    fn dial<'a>(&'a self, server: &'a str, spec: &'a str) -> Reply<'a, NodeRef>;
}

/// Makes namespaces.
pub struct Build;

impl Build {
    /// The namespace that `lines` make, in order, with the servers that `dialer` reaches.
    pub async fn build(lines: &[Line], dialer: &dyn Dialer) -> Result<Namespace, Error> {
        let namespace = Namespace::new();
        for line in lines {
            match line {
                Line::Mount { flags, server, old, spec } => {
                    let dialled = dialer.dial(server, spec).await;
                    let root = dialled.map_err(|errno| Error::Dial { server: server.clone(), errno })?;
                    namespace.mount(server, spec, root, old, *flags).await?;
                }
                Line::Bind { flags, new, old } => namespace.bind(new, old, *flags).await?,
                Line::Unmount { new, old } => namespace.unmount(new.as_deref(), old).await?,
                // Where whoever runs in it begins: nothing of the table's.
                Line::Cd { .. } => {}
            }
        }
        Ok(namespace)
    }
}
