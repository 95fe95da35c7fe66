//! A mount from its beginning to its end.
//!
//! [`mount`] and [`serve`] are called by whoever wants a tree shown; the session runs on threads of its own, apart from
//! the runtime, and ends when the file system is unmounted or the connection is aborted. Invariant: when a [`Mount`] is
//! gone, so is the mount, and whoever waited in it was answered.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{Config, Session, SessionACL};
use p9::{Name, NodeRef};
use tokio::runtime::Handle as Runtime;
use tokio::sync::watch;

use crate::bridge::{Bridge, Fs};
use crate::kept::Kept;
use crate::kernel::{self, Error};
use crate::tell::Teller;
use crate::watch::Watch;
use crate::{Options, clean};

/// How long an unmount waits for those who use the mount.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long the session then has to end by itself.
const LAST_WAIT: Duration = Duration::from_secs(2);
/// How often it is looked whether it has.
const LOOK: Duration = Duration::from_millis(2);

/// A tree that is shown. Dropping it unmounts.
pub struct Mount {
    bridge: Arc<Bridge>,
    place: Option<Place>,
    ended: watch::Receiver<bool>,
}

/// Where it is mounted, if that was our doing.
struct Place {
    at: PathBuf,
    /// Minor device number, by which fusectl knows the connection.
    minor: Option<u32>,
}

/// Shows the tree under `root` at the directory `at`. A mount of ours that is there and dead is taken away first.
///
/// Blocks for some milliseconds. Requests are answered by tasks of `runtime`, which must have a thread that is never
/// blocked by the use of this very mount.
pub fn mount(root: NodeRef, at: &Path, options: Options, runtime: Runtime) -> Result<Mount, Error> {
    clean(at)?;
    let at = at.canonicalize().map_err(Error::MountPoint)?;
    let fuse = kernel::attach(&at, &options)?;
    // Looked up before the session begins, in the table of mounts: nothing asks the mount itself.
    let minor = kernel::mounted(&at).map(|there| there.minor);
    let acl = if options.all_users { SessionACL::All } else { SessionACL::Owner };
    let place = Place { at, minor };
    match begin(root, fuse, acl, options, runtime) {
        Ok((bridge, ended)) => Ok(Mount { bridge, place: Some(place), ended }),
        Err(err) => {
            _ = kernel::detach(&place.at, true);
            Err(err)
        }
    }
}

/// Answers on `fuse`, the descriptor of a connection that is mounted already, for whoever is admitted there.
pub fn serve(root: NodeRef, fuse: OwnedFd, options: Options, runtime: Runtime) -> Result<Mount, Error> {
    let (bridge, ended) = begin(root, fuse, SessionACL::All, options, runtime)?;
    Ok(Mount { bridge, place: None, ended })
}

fn begin(
    root: NodeRef, fuse: OwnedFd, acl: SessionACL, options: Options, runtime: Runtime,
) -> Result<(Arc<Bridge>, watch::Receiver<bool>), Error> {
    let mut config = Config::default();
    config.acl = acl;
    config.n_threads = Some(options.threads.max(1));
    let watch = Watch::start().map_err(Error::Session)?;
    let kept = Arc::new(Kept::new(options.cache / 4));
    let teller = Teller::start(&kept, options.ttl, runtime.clone()).map_err(Error::Session)?;
    let bridge = Bridge::new(root, options, runtime, watch, kept, teller.clone());
    let fs = Fs(bridge.clone());
    let session = Session::from_fd(fs, fuse, acl, config).map_err(Error::Session)?;
    teller.begin(session.notifier());
    let (tell, ended) = watch::channel(false);
    let thread = std::thread::Builder::new().name("fuse-session".into()).spawn({
        let bridge = bridge.clone();
        move || {
            if let Err(err) = session.run() {
                tracing::warn!(%err, "a FUSE session failed");
            }
            bridge.clear();
            _ = tell.send(true);
        }
    });
    thread.map_err(Error::Session)?;
    Ok((bridge, ended))
}

impl Mount {
    /// Returns when the session has ended: unmounted, or its connection closed.
    pub async fn ended(&self) {
        // An error means that the thread is gone.
        _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    /// What `path` leads to in the tree, and all below it, may be something else from now on, as it is in a namespace
    /// where something was bound: nothing that was known before is told any more, nor kept by the kernel. What is open
    /// stays what it was. It blocks as long as requests that are under way have the directories of the path locked.
    pub fn exchanged(&self, path: &[Name<'_>]) {
        self.bridge.exchanged(path);
    }

    /// Takes the mount away: at once if nobody uses it, and within a few seconds in any case; those who wait in it get
    /// `EINTR`, then `ENOTCONN`. It blocks that long. Of a served descriptor only the answers end: whoever mounted it
    /// unmounts it. Errors: [`Error::Unmount`] if the kernel will not let go of the mount point.
    pub fn unmount(&self) -> Result<(), Error> {
        let Some(place) = &self.place else {
            self.bridge.end();
            return Ok(());
        };
        if *self.ended.borrow() {
            return Ok(());
        }
        let detached = place.detach();
        // Whoever is still in it is let go. The kernel's own last writes came before.
        self.bridge.end();
        self.bridge.write_out();
        if !self.has_ended_within(LAST_WAIT) {
            place.abort();
            self.has_ended_within(LAST_WAIT);
        }
        detached.map_err(Error::Unmount)
    }

    fn has_ended_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while !*self.ended.borrow() && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
        *self.ended.borrow()
    }
}

impl Place {
    /// Unmounts, waiting a little for those who are just leaving; then takes the mount from under them.
    fn detach(&self) -> std::io::Result<()> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            match kernel::detach(&self.at, false) {
                Ok(()) => return Ok(()),
                // It was unmounted by somebody else.
                Err(_) if self.is_gone() => return Ok(()),
                Err(_) => std::thread::sleep(PATIENCE / 10),
            }
        }
        match kernel::detach(&self.at, true) {
            Err(_) if self.is_gone() => Ok(()),
            answer => answer,
        }
    }

    /// Whether what is mounted there, if anything, is not ours.
    fn is_gone(&self) -> bool {
        kernel::mounted(&self.at).map(|there| there.minor) != self.minor
    }

    /// Ends the connection, where fusectl is at hand. Elsewhere those who are left are answered, and it ends as they
    /// go.
    fn abort(&self) {
        if let Some(minor) = self.minor {
            kernel::abort(minor);
        }
    }
}

impl Drop for Mount {
    /// Takes the mount away without waiting for anybody.
    fn drop(&mut self) {
        if !*self.ended.borrow()
            && let Some(place) = &self.place
        {
            if let Err(err) = kernel::detach(&place.at, true)
                && !place.is_gone()
            {
                tracing::warn!(at = %place.at.display(), %err, "a mount could not be taken away");
            }
            place.abort();
        }
        self.bridge.end();
    }
}
