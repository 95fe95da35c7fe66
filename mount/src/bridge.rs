//! The translation: each kernel request is a question to a node, and its answer a reply.
//!
//! Called by fuser on the session's threads. A request is polled once there: what the tree answers at once costs no
//! task. Everything else moves to the runtime, watched so that its caller can be interrupted ([`crate::watch`]). Nothing
//! here blocks, and nothing touches the mount.

mod names;
mod requests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use dashmap::DashMap;
use fuser::{FopenFlags, Request};
use futures_util::task::noop_waker;
use p9::cancel::Cancel;
use p9::{Attr, Errno, Handle, How, Name, NodeRef, Want};
use tokio::runtime;

use crate::Options;
use crate::open::Open;
use crate::table::Table;
use crate::watch::Watch;

/// How long the answer to a question about names or attributes may take. A second process that waits for the same name
/// is not seen here, so no such question may stay unanswered.
const BOUND: Duration = Duration::from_secs(60);
/// A file of at most this many bytes is fetched with its open.
const SMALL: u64 = 128 << 10;
/// `__FMODE_EXEC`: the kernel opens a program to run it.
const EXEC: i32 = 0x20;

/// What answers the kernel.
pub(crate) struct Bridge(Arc<Shared>);

/// What its requests share.
pub(crate) struct Shared {
    table: Table,
    open: DashMap<u64, Arc<Open>>,
    next_open: AtomicU64,
    options: Options,
    runtime: runtime::Handle,
    watch: Watch,
}

impl Bridge {
    pub(crate) fn new(root: NodeRef, options: Options, runtime: runtime::Handle, watch: Watch) -> Self {
        let table = Table::new(root, options.max_inodes_held);
        let (open, next_open) = (DashMap::new(), AtomicU64::new(1));
        Self(Arc::new(Shared { table, open, next_open, options, runtime, watch }))
    }

    /// Runs `work` for the caller of `request` and gives its result to `done`: at once, if it is ready.
    fn run<T: Send + 'static>(
        &self, request: &Request, bound: Option<Duration>,
        work: impl Future<Output = Result<T, Errno>> + Send + 'static,
        done: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        let cancel = Cancel::default();
        let running = cancel.clone();
        let mut work = Box::pin(async move { running.run(work).await });
        let _runtime = self.0.runtime.enter();
        let waker = noop_waker();
        if let Poll::Ready(answer) = work.as_mut().poll(&mut Context::from_waker(&waker)) {
            return done(answer);
        }
        let parked = self.0.watch.park(request.pid(), cancel.clone());
        self.0.runtime.spawn(async move {
            let answer = match bound {
                None => work.await,
                Some(bound) => match tokio::time::timeout(bound, &mut work).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        tracing::warn!("a question was not answered within {bound:?}");
                        cancel.cancel();
                        work.await.and(Err(Errno::EIO))
                    }
                },
            };
            drop(parked);
            done(answer);
        });
    }

    /// The same for a question about the inode `id`, which is bounded, and lets go of nodes whose server is gone.
    fn ask<T: Send + 'static, F>(
        &self, request: &Request, id: u64, work: impl FnOnce(Arc<Shared>) -> F,
        done: impl FnOnce(&Shared, Result<T, Errno>) + Send + 'static,
    ) where
        F: Future<Output = Result<T, Errno>> + Send + 'static,
    {
        let shared = self.0.clone();
        self.run(request, Some(BOUND), work(self.0.clone()), move |answer| {
            if let Err(Errno::EHOSTUNREACH) = answer {
                shared.table.let_go(id);
            }
            done(&shared, answer);
        });
    }
}

impl Shared {
    /// The file `name` in `parent`, with its attributes, as the kernel will know it.
    async fn look_up(&self, parent: u64, name: &[u8]) -> Result<(u64, Attr), Errno> {
        let (dir, name) = (self.table.node(parent).await?, Name::new(name)?);
        let reached = dir.walk(&[name], Want::ATTR).await?.reached()?;
        let attr = match reached.attr {
            Some(attr) => attr,
            None => reached.node.attr().await?,
        };
        Ok((self.table.enter(parent, name, reached.node, &attr), attr))
    }

    /// Enters a file that was just made.
    async fn made(&self, parent: u64, name: Name<'_>, made: (NodeRef, Option<Attr>)) -> Result<(u64, Attr), Errno> {
        let (node, attr) = made;
        let attr = match attr {
            Some(attr) => attr,
            None => node.attr().await?,
        };
        Ok((self.table.enter(parent, name, node, &attr), attr))
    }

    /// Opens the inode `id`; gives the number of the open file and what the kernel may do with it.
    async fn open(&self, id: u64, flags: i32) -> Result<(u64, FopenFlags), Errno> {
        let node = self.table.node(id).await?;
        let how = How { exec: flags & EXEC != 0, ..How::from_flags(flags as u32)? };
        let small = self.table.seen(id).kept_size().filter(|size| (1..=SMALL).contains(size) && !how.changes());
        let want = Want { attr: true, data: small.map_or(0, |size| size as u32 + 1), ..Want::default() };
        let opened = node.open_at(&[], how, want).await?;
        let attr = match opened.attr {
            Some(attr) => Some(attr),
            None => node.attr().await.ok(),
        };
        // Only if the file is all there: it may have grown meanwhile.
        let whole = opened.first.filter(|first| {
            small.is_some_and(|size| first.len() as u64 == size)
                && attr.is_some_and(|attr| attr.size == first.len() as u64)
        });
        Ok(self.opened(id, node, opened.handle, attr, whole))
    }

    fn opened(
        &self, id: u64, node: NodeRef, handle: Handle, attr: Option<Attr>, whole: Option<Bytes>,
    ) -> (u64, FopenFlags) {
        let open = Arc::new(Open::new(handle, node, id, whole, self.runtime.clone()));
        let unchanged = self.table.opened(id, attr.as_ref());
        if let Some(attr) = &attr {
            self.table.saw(id, attr);
        }
        let flags = match (open.is_cached(), unchanged) {
            (false, _) => FopenFlags::FOPEN_DIRECT_IO,
            (true, true) => FopenFlags::FOPEN_KEEP_CACHE,
            (true, false) => FopenFlags::empty(),
        };
        let number = self.next_open.fetch_add(1, Ordering::Relaxed);
        self.open.insert(number, open);
        (number, flags)
    }

    fn file(&self, number: u64) -> Result<Arc<Open>, Errno> {
        self.open.get(&number).map(|open| open.clone()).ok_or(Errno::EBADF)
    }

    /// The node of the inode `id`, or of its open file, which may have no name any more.
    async fn node(&self, id: u64, open: Option<u64>) -> Result<NodeRef, Errno> {
        match open.and_then(|number| self.file(number).ok()) {
            Some(open) => Ok(open.node.clone()),
            None => self.table.node(id).await,
        }
    }

    /// Closes an open file. Nobody waits for it: what could fail was told at each write.
    fn release(&self, number: u64) {
        let Some((_, open)) = self.open.remove(&number) else { return };
        self.table.closed(open.id);
        self.runtime.spawn(async move {
            if let Err(errno) = open.handle.close().await {
                tracing::debug!("closing a file: {errno}");
            }
        });
    }
}
