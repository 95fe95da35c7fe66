//! A namespace made from the lines of a namespace file.
//!
//! The servers of a file are reached all at once, since no line says how to reach another's; the lines then take effect
//! in order. Whether a mount that hides what is there fits it (a directory on a directory) is asked meanwhile, all at
//! once as well, so that a namespace costs as few round trips as its unions and binds do.

use futures_util::future::{BoxFuture, join_all};
use p9::{Errno, Handle, How, NodeRef, Reply};

use crate::namespace::{self, Error, Namespace};
use crate::path::clean;
use crate::text::{self, Flags, Line, MAX_BYTES, Variables};

/// How deep files may include files.
pub const MAX_INCLUDED: usize = 16;

/// Reaches the servers that a namespace file names.
pub trait Dialer: Send + Sync {
    /// The file `spec` (empty: the root) of what `server` serves. Errors: `ENOENT` for a server of a kind that is not
    /// known here, and what dialling meets.
    fn dial<'a>(&'a self, server: &'a str, spec: &'a str) -> Reply<'a, NodeRef>;

    /// What is known of why `server` could not be reached, in more words than an errno has.
    fn why(&self, _server: &str) -> Option<String> {
        None
    }
}

/// Which of the lines that a namespace was to be made of could not be done, and why.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{line}: {error}")]
pub struct Failed {
    /// Its place among them, from 0.
    pub index: usize,
    /// The line.
    pub line: Line,
    /// Why. It may be that of a line which this one includes.
    pub error: Error,
}

/// What a namespace is made with.
#[derive(Clone, Copy)]
pub struct Build<'a> {
    /// Reaches servers.
    pub dialer: &'a dyn Dialer,
    /// What `$name` stands for in the files that are included.
    pub variable: &'a Variables<'a>,
    /// The most lines, with those that are included.
    pub most: usize,
}

impl Build<'_> {
    /// The namespace that `lines` make, in order. Relative paths are seen from where the last `cd` went, at first `/`.
    pub async fn build(&self, lines: &[Line]) -> Result<Namespace, Failed> {
        let ns = Namespace::new();
        self.run(lines, ns.clone(), false).await.map(|()| ns)
    }

    /// Does what `lines` say to `ns`, which others see, in order, up to the first that cannot be done: that one
    /// changes nothing. Relative paths are seen from `/`.
    pub async fn change(&self, ns: &Namespace, lines: &[Line]) -> Result<(), Failed> {
        self.run(lines, ns.clone(), true).await
    }

    async fn run(&self, lines: &[Line], ns: Namespace, live: bool) -> Result<(), Failed> {
        let mut building = Building { with: self, ns, live, cwd: "/".into(), left: self.most };
        building.add(lines, 0).await
    }
}

/// A namespace on its way.
struct Building<'a> {
    with: &'a Build<'a>,
    ns: Namespace,
    /// Others see it.
    live: bool,
    cwd: String,
    /// How many lines may still come.
    left: usize,
}

impl Building<'_> {
    async fn add(&mut self, lines: &[Line], depth: usize) -> Result<(), Failed> {
        let failed = |index: usize, error| {
            let line = lines.get(index).cloned().unwrap_or(Line::Clear);
            Failed { index, line, error }
        };
        let most = self.with.most;
        // The first that is too many.
        let left = self.left.checked_sub(lines.len());
        self.left = left.ok_or_else(|| failed(self.left, Error::Full(most)))?;
        let servers = lines.iter().filter_map(|line| match line {
            Line::Mount { server, spec, .. } => Some(self.with.dialer.dial(server, spec)),
            _ => None,
        });
        let mut roots = join_all(servers).await.into_iter();
        let mut checks: Vec<BoxFuture<'_, Result<(), Failed>>> = Vec::new();
        for (index, line) in lines.iter().enumerate() {
            let done = match line {
                Line::Mount { flags, server, old, spec } => {
                    let old = clean(&self.cwd, old);
                    match roots.next().unwrap_or(Err(Errno::EIO)) {
                        Err(errno) => {
                            let why = self.with.dialer.why(server).unwrap_or_else(|| errno.to_string());
                            Err(Error::Dial { server: server.clone(), errno, why })
                        }
                        // What is to be asked first is asked now.
                        Ok(root) if flags.union() || flags.quiet || self.live => {
                            self.ns.mount(server, spec, root, &old, *flags).await
                        }
                        Ok(root) => self.mount(server, spec, root, old, *flags).map(|check| {
                            checks.push(Box::pin(async move { check.await.map_err(|error| failed(index, error)) }));
                        }),
                    }
                }
                Line::Bind { flags, new, old } => {
                    self.ns.bind(&clean(&self.cwd, new), &clean(&self.cwd, old), *flags).await
                }
                Line::Unmount { new, old, .. } => self.ns.unmount(new.as_deref(), &clean(&self.cwd, old)).await,
                Line::Cd { dir } => {
                    self.cwd = clean(&self.cwd, dir);
                    Ok(())
                }
                Line::Clear => {
                    self.ns.clear();
                    Ok(())
                }
                Line::Include { path, quiet } => self.include(path, *quiet, depth).await,
            };
            match done {
                // What a file that is there says must be right.
                Err(err) if line.flags().quiet && !matches!(line, Line::Include { .. }) => {
                    tracing::info!("passed over: {line}: {err}");
                }
                done => done.map_err(|error| failed(index, error))?,
            }
        }
        join_all(checks).await.into_iter().collect()
    }

    /// Mounts it, and gives what tells whether that was right.
    fn mount<'a>(
        &self, server: &'a str, spec: &'a str, root: NodeRef, old: String, flags: Flags,
    ) -> Result<BoxFuture<'a, Result<(), Error>>, Error> {
        let (change, before) = (namespace::mount(server, spec, root.clone(), &old, flags)?, self.ns.frozen());
        self.ns.apply(change)?;
        Ok(Box::pin(async move { before.mount(server, spec, root, &old, flags).await }))
    }

    /// Adds the lines of the file at `path`; if `quiet`, none where there is no such file.
    async fn include(&mut self, path: &str, quiet: bool, depth: usize) -> Result<(), Error> {
        let path = clean(&self.cwd, path);
        if depth == MAX_INCLUDED {
            return Err(Error::Depth(path));
        }
        let bytes = match self.read(&path).await {
            Err(Errno::ENOENT) if quiet => return Ok(()),
            read => read.map_err(|errno| Error::Path { path: path.clone(), errno })?,
        };
        let fail = |error| Error::Text { path: path.clone(), error };
        let text = text::checked(&bytes).map_err(fail)?;
        let numbered = text::parse_numbered(text, self.left, self.with.variable).map_err(fail)?;
        let (numbers, lines): (Vec<usize>, Vec<Line>) = numbered.into_iter().unzip();
        Box::pin(self.add(&lines, depth + 1)).await.map_err(|failed| match failed.error {
            // It says where by itself.
            error @ (Error::Included { .. } | Error::Text { .. } | Error::Depth(_)) => error,
            error => {
                let line = numbers.get(failed.index).copied().unwrap_or_default();
                Error::Included { path, line, error: Box::new(error) }
            }
        })
    }

    /// The file at `path`, or a little more of it than may be.
    async fn read(&self, path: &str) -> Result<Vec<u8>, Errno> {
        let node = self.ns.walk(path).await?;
        let handle = match node.open(How::READ).await? {
            Handle::Dir(_) => return Err(Errno::EISDIR),
            handle => handle,
        };
        let mut all = Vec::new();
        while all.len() <= MAX_BYTES {
            let piece = handle.read(all.len() as u64, 1 << 16).await?;
            if piece.is_empty() {
                break;
            }
            all.extend_from_slice(&piece);
        }
        handle.close().await.map(|()| all)
    }
}
