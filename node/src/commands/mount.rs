//! `slashn mount`: the grid at a folder, served by a copy of this program in the background.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use fileserver::DiskOptions;
use ns::Build;
use ns::text::OWN_LINES;
use p9::{Errno, How, Reply, TreeRef, Want, Who, synth};
use rustix::fs::Access;
use tokio::sync::Notify;

use crate::cli::Mount;
use crate::commands::{runtime, stopped};
use crate::config::TreePath;
use crate::control::Control;
use crate::dial::Dialer;
use crate::error::{At, Error, Result};
use crate::grid::Nodes;
use crate::home::Home;
use crate::live::{Live, Shows};
use crate::namespace::{N, Written};
use crate::servers::Servers;
use crate::{Context, cache, daemon, namespace, output};

/// How long the kernel may keep names and attributes of a tree that nobody else changes. Where somebody does after all,
/// it is told as the lease is broken; this is for trees without leases.
const ALONE: Duration = Duration::from_secs(30);

/// Runs the command.
pub fn run(context: &Context, typed: &Mount) -> Result<ExitCode> {
    let home = context.open_home()?;
    let at = place(context, &home, typed.dir.as_deref())?;
    if typed.all_users {
        may_be_for_all(&at)?;
    }
    if !typed.foreground {
        home.run()?;
        let mut all: Vec<OsString> = vec!["--home".into(), context.home.clone().into(), "mount".into()];
        if let Some(file) = &typed.ns {
            let file = std::path::absolute(file).at("mount", file.display())?;
            all.extend(["--ns".into(), file.into()]);
        }
        all.extend(typed.all_users.then(|| "--all-users".into()));
        if let Some(tree) = &typed.single_writer {
            all.extend(["--single-writer".into(), tree.to_string().into()]);
        }
        let (timeout, cache) = (typed.timeout.to_string(), typed.cache.to_string());
        all.extend(["--foreground".into(), "--timeout".into(), timeout.into(), "--cache".into(), cache.into()]);
        all.extend(["--disk-cache".into(), typed.disk_cache.to_string().into()]);
        all.extend(["--".into(), at.clone().into()]);
        daemon::start(home.path(), "mount", &all)?;
        return Ok(ExitCode::SUCCESS);
    }
    mount::tune_allocator();
    let dialer = Dialer::open(&home, context.agent())?;
    let written = match &typed.single_writer {
        Some(tree) => namespace::only(tree),
        None => namespace::lines(context, typed.ns.as_deref())?,
    };
    let runtime = runtime()?;
    let (timeout, cache) = (Duration::from_secs(typed.timeout), typed.cache << 20);
    let (all_users, single_writer) = (typed.all_users, typed.single_writer.is_some());
    let disk = cache::open(&home, typed.disk_cache);
    let mut options = mount::Options { timeout, cache, disk, all_users, single_writer, ..mount::Options::default() };
    if single_writer {
        options.ttl = ALONE;
    }
    let served =
        runtime.block_on(serve(context, &home, (&at, typed.single_writer.as_ref()), &written, dialer, options));
    runtime.shutdown_timeout(Duration::from_secs(1));
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve(
    context: &Context, home: &Home, (at, tree): (&Path, Option<&TreePath>), written: &Written, dialer: Dialer,
    options: mount::Options,
) -> Result<()> {
    let who = Who { user: context.user().into(), ..Who::owner() };
    let servers = Servers::new(Nodes::new(dialer, options.timeout), who, DiskOptions::new(home.secret("qid")?));
    let variable = |name: &str| namespace::variable(context, name);
    let build = Build { dialer: &servers, variable: &variable, most: OWN_LINES };
    let built = build.build(&written.lines).await;
    let namespace = built.map_err(|failed| {
        let refused = written.refused("mount", &failed);
        match tree {
            Some(tree) => refused.remedy(format!("slashn run ls {N}/{}/fs", tree.node)),
            None => refused,
        }
    })?;
    let root = namespace.root_at(N).at("mount", at.display())?;
    if let Some(tree) = tree {
        // A grid is there before its nodes are reached; one tree is what it is from the first look on.
        root.open_at(&[], How::READ, Want::default()).await.at("mount", tree)?;
    }
    let handle = tokio::runtime::Handle::current();
    let (place, disk) = (at.to_path_buf(), options.disk.clone());
    // Mounting waits for the kernel, and fusermount3 for a while.
    let mounted = tokio::task::spawn_blocking(move || mount::mount(root, &place, options, handle));
    let mounted = mounted.await.at("mount", at.display())?.at("mount", at.display())?;
    let stop = Arc::new(Notify::new());
    let mounted = Arc::new(mounted);
    let live = Live {
        namespace,
        servers,
        context: context.clone(),
        mount: mounted.clone(),
        shows: Shows::Grid,
        to_itself: Arc::new(|| true),
    };
    let control = Control::serve(&socket(home, at)?, control(at, live, &stop))?;
    output::line(format_args!("ready {}", at.display()))?;
    tokio::select! {
        _ = mounted.ended() => {}
        told = stopped(&stop) => drop(told?),
    }
    let gone = tokio::task::spawn_blocking(move || {
        let gone = mounted.unmount();
        disk.iter().for_each(mount::DiskCache::settle);
        gone
    });
    gone.await.at("unmount", at.display())?.at("unmount", at.display())?;
    drop(control);
    Ok(())
}

/// Whether whoever runs this may let others use what is mounted at `at`: fuse(8).
fn may_be_for_all(at: &Path) -> Result<()> {
    const FILE: &str = "/etc/fuse.conf";
    const LINE: &str = "user_allow_other";
    let says = || std::fs::read_to_string(FILE).unwrap_or_default().lines().any(|line| line.trim() == LINE);
    if rustix::process::geteuid().is_root() || says() {
        return Ok(());
    }
    let error = Error::new("mount for every user", at.display(), format!("{FILE} does not say {LINE}"));
    Err(error.remedy(format!("echo {LINE} | sudo tee -a {FILE}")))
}

/// The folder that is meant: made if it is missing, freed of what a killed mount left, and not in use.
fn place(context: &Context, home: &Home, dir: Option<&Path>) -> Result<PathBuf> {
    let at = default_place(context, dir)?;
    mount::clean(&at).at("mount", at.display())?;
    if dir.is_none() {
        std::fs::create_dir_all(&at).at("mount", at.display())?;
    }
    let found = std::fs::metadata(&at).map_err(|err| {
        let error = Error::new("mount", at.display(), Errno::from(err));
        error.remedy(format!("mkdir -p {}", at.display()))
    })?;
    if !found.is_dir() {
        return Err(Error::new("mount", at.display(), "is not a directory").remedy("slashn mount DIR"));
    }
    if mount::is_mounted(&at, None) {
        let remedy = format!("slashn unmount {}", at.display());
        return Err(Error::new("mount", at.display(), "a grid is mounted there already").remedy(remedy));
    }
    let real = std::fs::canonicalize(home.path()).at("mount", home.path().display())?;
    if real.starts_with(&at) || real.starts_with(std::fs::canonicalize(&at).unwrap_or_else(|_| at.clone())) {
        // It could not be reached through itself.
        let reason = format!("the home {} is in there, and would be covered", home.path().display());
        return Err(Error::new("mount", at.display(), reason).remedy("slashn mount DIR, of an empty folder"));
    }
    Ok(at)
}

/// The folder that is meant by `dir`, or by none: /n if I may write it, else ~/n.
pub(super) fn default_place(context: &Context, dir: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = dir {
        let dir = std::path::absolute(dir).at("find the mount point", dir.display())?;
        // Links are followed up to its last name, and not further: a dead mount there could not be looked at.
        let parent = dir.parent().and_then(|parent| std::fs::canonicalize(parent).ok());
        return Ok(match (parent, dir.file_name()) {
            (Some(parent), Some(name)) => parent.join(name),
            _ => dir,
        });
    }
    let root = rustix::process::geteuid().is_root();
    if root || rustix::fs::access("/n", Access::WRITE_OK).is_ok() {
        return Ok("/n".into());
    }
    let home = context.user_home().ok_or_else(|| Error::new("find the mount point", "$HOME", "is not set"))?;
    Ok(home.join("n"))
}

/// Where the mount at `at` answers: one socket for each place.
pub(super) fn socket(home: &Home, at: &Path) -> Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    let name = blake3::hash(at.as_os_str().as_bytes()).to_hex();
    Ok(home.run()?.join(format!("mount-{}", &name[..16])))
}

/// The files by which a mount is asked and told: `dir`, `ns`, `change`, and `ctl` (which knows `unmount`).
fn control(at: &Path, live: Live, stop: &Arc<Notify>) -> TreeRef {
    let (dir, live, stop) = (format!("{}\n", at.display()), Arc::new(live), stop.clone());
    let told = live.clone();
    synth::tree(synth::dir([
        ("dir", synth::file(move || Ok(dir.clone().into()))),
        ("change", live.file()),
        ("ns", synth::file(move || Ok(told.servers.text(&told.namespace).into()))),
        (
            "ctl",
            synth::ctl(move |command| match &command[..] {
                b"unmount" => {
                    stop.notify_one();
                    Reply::ok(())
                }
                _ => Errno::EINVAL.into(),
            }),
        ),
    ]))
}
