//! A namespace made from the lines of a namespace file.
//!
//! Servers are reached all at once, since no line says how to reach another's; the lines then take effect in order.
//! Whether a mount that hides what is there fits it (a directory on a directory) is asked meanwhile, all at once as
//! well, so that a namespace costs as few round trips as its unions and binds do.

use futures_util::future::{BoxFuture, join_all};
use p9::{NodeRef, Reply};

use crate::namespace::{self, Error, Namespace};
use crate::path::clean;
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
    /// The namespace that `lines` make, in order, with the servers that `dialer` reaches. Relative paths are seen from
    /// where the last `cd` went, at first `/`.
    pub async fn build(lines: &[Line], dialer: &dyn Dialer) -> Result<Namespace, Error> {
        if lines.len() > namespace::MAX_LINES {
            return Err(Error::Full);
        }
        let servers = lines.iter().filter_map(|line| match line {
            Line::Mount { server, spec, .. } => Some(dialer.dial(server, spec)),
            _ => None,
        });
        let mut roots = join_all(servers).await.into_iter();
        let namespace = Namespace::new();
        let mut checks: Vec<BoxFuture<'_, Result<(), Error>>> = Vec::new();
        let mut cwd = "/".to_string();
        for line in lines {
            match line {
                Line::Mount { flags, server, old, spec } => {
                    let root = roots.next().unwrap_or(Err(p9::Errno::EIO));
                    let root = root.map_err(|errno| Error::Dial { server: server.clone(), errno })?;
                    let old = clean(&cwd, old);
                    if flags.union() {
                        namespace.mount(server, spec, root, &old, *flags).await?;
                        continue;
                    }
                    let (change, before) =
                        (namespace::mount(server, spec, root.clone(), &old, *flags)?, namespace.frozen());
                    namespace.apply(change)?;
                    checks.push(Box::pin(async move { before.mount(server, spec, root, &old, *flags).await }));
                }
                Line::Bind { flags, new, old } => {
                    namespace.bind(&clean(&cwd, new), &clean(&cwd, old), *flags).await?;
                }
                Line::Unmount { new, old } => namespace.unmount(new.as_deref(), &clean(&cwd, old)).await?,
                Line::Cd { dir } => cwd = clean(&cwd, dir),
            }
        }
        join_all(checks).await.into_iter().collect::<Result<(), Error>>()?;
        Ok(namespace)
    }
}
