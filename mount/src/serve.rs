//! A mount that is served: its threads, and its end.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuser::{Config, MountOption, Session, SessionACL};
use p9::NodeRef;
use tokio::runtime::Handle;
use tokio::sync::watch as signal;

use crate::Options;
use crate::bridge::Bridge;
use crate::kernel::{self, Error};
use crate::watch::Watch;

/// How long a mount may take to end once it is unmounted before its connection is cut.
const END: Duration = Duration::from_secs(3);

/// A mount that is served. Dropping it unmounts it.
pub struct Mount {
    /// Where, unless whoever made the descriptor mounted it.
    at: Option<PathBuf>,
    device: Option<String>,
    ended: signal::Receiver<bool>,
    watch: Watch,
}

/// Shows the tree below `root` at `at`, a directory. It blocks for a moment. Errors: the device cannot be opened, or
/// mounting is refused.
pub fn mount(root: NodeRef, at: &Path, options: Options, runtime: Handle) -> Result<Mount, Error> {
    let mut all = vec![
        MountOption::FSName(options.fs_name.clone()),
        MountOption::Subtype("slashn".into()),
        MountOption::NoSuid,
        MountOption::NoDev,
    ];
    if options.read_only {
        all.push(MountOption::RO);
    }
    let acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    let config = config(&options, all, acl);
    let watch = Watch::start().map_err(Error::Session)?;
    let mounted_as = options.clone();
    let bridge = Bridge::new(root, options, runtime, watch.clone());
    let session = match rustix::process::geteuid().is_root() {
        true => Session::from_fd(bridge, kernel::mount(at, &mounted_as)?, acl, config).map_err(Error::Session)?,
        // fusermount3 does it, which is set-user-id root.
        false => Session::new(bridge, at, &config).map_err(Error::Mount)?,
    };
    let device = kernel::find(at);
    Ok(Mount { at: Some(at.to_path_buf()), device, ended: run(session)?, watch })
}

/// Serves the tree below `root` on `fuse`, a FUSE descriptor that is mounted already. It blocks until the kernel has
/// said hello. Errors: it does not.
pub fn serve(root: NodeRef, fuse: OwnedFd, options: Options, runtime: Handle) -> Result<Mount, Error> {
    let config = config(&options, Vec::new(), SessionACL::All);
    let watch = Watch::start().map_err(Error::Session)?;
    let bridge = Bridge::new(root, options, runtime, watch.clone());
    let session = Session::from_fd(bridge, fuse, SessionACL::All, config).map_err(Error::Session)?;
    Ok(Mount { at: None, device: None, ended: run(session)?, watch })
}

fn config(options: &Options, all: Vec<MountOption>, acl: SessionACL) -> Config {
    let mut config = Config::default();
    config.mount_options = all;
    config.acl = acl;
    config.n_threads = Some(options.threads.max(1));
    config
}

fn run(session: Session<Bridge>) -> Result<signal::Receiver<bool>, Error> {
    let (sender, receiver) = signal::channel(false);
    std::thread::Builder::new()
        .name("fuse".into())
        .spawn(move || {
            if let Err(err) = session.run() {
                tracing::debug!("a mount ended: {err}");
            }
            sender.send_replace(true);
        })
        .map_err(Error::Session)?;
    Ok(receiver)
}

impl Mount {
    /// Returns when it is mounted no more.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // A sender that is gone has ended, too.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Unmounts it, whoever uses it and whatever they wait for. It blocks for a few seconds at most.
    pub fn unmount(&self) -> Result<(), Error> {
        self.watch.end();
        if *self.ended.borrow() {
            return Ok(());
        }
        if let Some(at) = &self.at
            && kernel::find(at) == self.device
            && self.device.is_some()
        {
            kernel::unmount(at)?;
        }
        let until = std::time::Instant::now() + END;
        while !*self.ended.borrow() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        if !*self.ended.borrow()
            && let Some(device) = &self.device
        {
            kernel::abort(device);
        }
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(err) = self.unmount() {
            tracing::warn!("a mount could not be taken away: {err}");
        }
    }
}
