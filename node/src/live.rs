//! A namespace that is in use, in a mount or by a command of `slashn run`, which `slashn bind` and `unbind` change.
//!
//! Its control directory has a file `change`: what is written to it is a line of namespace(6), and reading it
//! then gives nothing if that was done, else why not. A line is done as a whole or not at all; by the time it is
//! answered the kernel knows.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cpuserver::launch::private::{Plan, PlannedMount};
use ns::text::{self, Line, OWN_LINES};
use ns::{Build, Namespace};
use p9::{Errno, How, Name, NodeRef, Reply, Stream, Want, Written, synth};
use parking_lot::Mutex;

use crate::Context;
use crate::namespace::{self, N};
use crate::servers::Servers;

/// How long the kernel is waited for, which may wait for a node that does not answer.
const KERNEL: Duration = Duration::from_secs(5);

/// A namespace, what it is made with, and where it is mounted.
pub struct Live {
    /// The namespace.
    pub namespace: Namespace,
    /// What reaches servers.
    pub servers: Servers,
    /// For the variables of files that are included.
    pub context: Context,
    /// The mount.
    pub mount: Arc<mount::Mount>,
    /// What of the namespace that shows.
    pub shows: Shows,
    /// Sees to it that nobody else has it from now on; says no if somebody does. It blocks a little.
    pub to_itself: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// What of a namespace is shown by FUSE, where changes are seen.
pub enum Shows {
    /// What is at `/n`.
    Grid,
    /// What is at these paths, but for what is at those: the kernel's own bind mounts.
    Parts {
        /// What is shown.
        served: Vec<PathBuf>,
        /// What is not.
        bound: Vec<PathBuf>,
    },
}

impl Shows {
    /// The part that the kernel leaves to FUSE where `plan` was mounted.
    pub fn of(plan: &Plan) -> Self {
        let (bound, served) = plan.mounts.iter().partition::<Vec<_>, _>(|mount| mount.local.is_some());
        let at =
            |mounts: Vec<&PlannedMount>| -> Vec<PathBuf> { mounts.into_iter().map(|mount| mount.at.clone()).collect() };
        let whole = plan.whole.then(|| PathBuf::from("/"));
        Self::Parts { served: whole.into_iter().chain(at(served)).collect(), bound: at(bound) }
    }

    /// Why what `line` says would not be seen, if so.
    fn refuses(&self, line: &Line) -> Option<String> {
        let Self::Parts { served, bound } = self else { return None };
        let old = PathBuf::from(ns::clean("/", line.old()));
        if let Some(own) = bound.iter().find(|own| own.starts_with(&old) || old.starts_with(own)) {
            let own = own.display();
            return Some(format!("{own} is bound by the kernel, and stays so as long as the command runs"));
        }
        let changes = matches!(line, Line::Mount { .. } | Line::Bind { .. } | Line::Unmount { .. });
        if changes && served.iter().any(|shown| old.starts_with(shown) && old != *shown) {
            return None;
        }
        let below: Vec<String> = served.iter().map(|shown| format!("{}/...", shown.display())).collect();
        Some(format!("of a command's namespace what is at {} changes while it runs", below.join(", ")))
    }

    /// The names that lead to what is at `path`, in the mount.
    fn within<'a>(&self, path: &'a str) -> Option<Vec<Name<'a>>> {
        let within = match self {
            Self::Grid => path.strip_prefix(N).unwrap_or_default(),
            Self::Parts { .. } => path,
        };
        Name::split(within.as_bytes()).ok()
    }
}

impl Live {
    /// The file `change`.
    pub fn file(self: Arc<Self>) -> NodeRef {
        synth::stream(0o600, move |_: How| {
            Reply::ok(Arc::new(Change { live: self.clone(), said: Mutex::default() }) as Arc<dyn Stream>)
        })
    }

    /// Does what `line` says. Errors: why it was not done.
    async fn change(self: &Arc<Self>, line: &[u8]) -> Result<(), String> {
        let variable = |name: &str| namespace::variable(&self.context, name);
        let lines = text::checked(line).and_then(|text| text::parse(text, 1, &variable));
        let lines = lines.map_err(|err| err.to_string())?;
        if let Some(reason) = lines.iter().find_map(|line| self.shows.refuses(line)) {
            return Err(format!("{reason}; try: slashn run --ns FILE"));
        }
        let to_itself = self.to_itself.clone();
        if !tokio::task::spawn_blocking(move || to_itself()).await.is_ok_and(|alone| alone) {
            return Err(
                "other commands that run were to have the same namespace, and have this one; try: slashn run --alone"
                    .into(),
            );
        }
        let build = Build { dialer: &*self.servers.eager(), variable: &variable, most: OWN_LINES };
        let changed = build.change(&self.namespace, &lines).await;
        for line in &lines {
            self.tell(line.old()).await;
        }
        let named: HashSet<String> = self.namespace.lines().iter().filter_map(|line| Some(line.server()?.0)).collect();
        self.servers.keep(|server| named.contains(server));
        changed.map_err(|failed| {
            namespace::refused("", "", &failed.error).to_string().trim_start_matches(": ").to_string()
        })
    }

    /// Tells the kernel that what `path` leads to is not what it was.
    async fn tell(self: &Arc<Self>, path: &str) {
        let (live, path) = (self.clone(), path.to_string());
        let told = tokio::task::spawn_blocking(move || {
            // What is further up may have changed all that the mount shows.
            if let Some(names) = live.shows.within(&path) {
                live.mount.exchanged(&names);
            }
        });
        if tokio::time::timeout(KERNEL, told).await.is_err() {
            tracing::warn!("somebody who waits in a mount keeps the kernel from being told of a bind");
        }
    }
}

/// The open file.
struct Change {
    live: Arc<Live>,
    /// What came of the last line.
    said: Mutex<Bytes>,
}

impl Stream for Change {
    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        let said = self.said.lock();
        let start = usize::try_from(offset).map_or(said.len(), |offset| offset.min(said.len()));
        Reply::ok(said.slice(start..said.len().min(start.saturating_add(count as usize))))
    }

    fn write(&self, _offset: u64, data: Bytes) -> Reply<'_, Written> {
        Reply::later(async move {
            let refused = self.live.change(&data).await.err().unwrap_or_default();
            *self.said.lock() = refused.into();
            Ok(Written::count(data.len()))
        })
    }
}

/// Has the mount whose control directory is `root` do what `line` says. Gives why it was not done, if it was not.
pub async fn change(root: &NodeRef, line: String) -> Result<Option<String>, Errno> {
    let file = root.open_at(&[Name::new(b"change")?], How { read: true, ..How::WRITE }, Want::default()).await?;
    file.handle.write(0, line.into()).await?;
    let said = file.handle.read(0, 1 << 16).await?;
    file.handle.close().await?;
    Ok((!said.is_empty()).then(|| String::from_utf8_lossy(&said).into_owned()))
}
