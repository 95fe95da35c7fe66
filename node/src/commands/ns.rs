//! `slashn ns`: the namespace of a mount or of a process, as the text that rebuilds it.
//!
//! In a command whose caller's home is hidden it is what the node has put there for that. Elsewhere a process has one
//! of three: that of the command which it is part of, here on this node; that of the mount which it works in; or this
//! machine's own, of which there is nothing to print.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cpuserver::Running;
use p9::NodeRef;

use crate::cli::Ns;
use crate::commands::{mount, runtime, status};
use crate::error::{At, Error, Result};
use crate::home::Home;
use crate::namespace::N;
use crate::{Context, control, output, within};

/// Runs the command.
pub fn run(context: &Context, typed: &Ns) -> Result<ExitCode> {
    if let (None, false, Some(text)) = (&typed.of, context.home.exists(), within::namespace()) {
        output::line(text.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let home = context.open_home()?;
    let of = typed.of.as_deref().map(Path::new);
    let process = of.filter(|of| !of.exists()).and_then(|of| of.to_str()?.parse().ok());
    let text = match process {
        Some(pid) => runtime()?.block_on(of_process(&home, pid))?,
        None => runtime()?.block_on(async {
            // Where a command has one of its own, that is meant.
            let own = if of.is_none() { of_run(&home, std::process::id()).await? } else { None };
            match own {
                Some(own) => Ok(own),
                None => of_mount(&home, &mount::default_place(context, of)?).await,
            }
        })?,
    };
    output::line(text.trim_end())?;
    Ok(ExitCode::SUCCESS)
}

async fn of_mount(home: &Home, at: &Path) -> Result<String> {
    mount_at(home, at).await?.ok_or_else(|| {
        let error = Error::new("ns", at.display(), "no grid of mine is mounted there");
        error.remedy(format!("slashn mount {}", at.display()))
    })
}

/// The namespace of the mount at `at`, if that is mine.
async fn mount_at(home: &Home, at: &Path) -> Result<Option<String>> {
    let Some(root) = control::connect(&mount::socket(home, at)?).await? else { return Ok(None) };
    let text = control::read(&root, "ns").await.at("ns", at.display())?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

async fn of_process(home: &Home, pid: u32) -> Result<String> {
    let missing = || Error::new("ns", format_args!("process {pid}"), "there is none").remedy("slashn ns DIR");
    let family = family(pid).ok_or_else(missing)?;
    if let Some(text) = of_run(home, pid).await? {
        return Ok(text);
    }
    for job in jobs(home).await? {
        let init = u32::try_from(job.init).unwrap_or_default();
        // Where there is no pid namespace, those who lost their parent have init's for one.
        let heads = [Some(init), parent(init)];
        if family.iter().any(|member| heads.contains(&Some(*member))) {
            return Ok(job.ns);
        }
    }
    match mount_around(home, pid).await? {
        Some(at) => of_mount(home, &at).await,
        None => {
            let reason = "it is in no command of this node and works in no mount: what it sees is this machine's own";
            Err(Error::new("ns", format_args!("process {pid}"), reason).remedy("slashn ns DIR"))
        }
    }
}

/// The namespace of `slashn run` that `pid` is in, if it is in one.
pub(super) async fn of_run(home: &Home, pid: u32) -> Result<Option<String>> {
    let Some((socket, root)) = run_root(home, pid).await? else { return Ok(None) };
    let text = control::read(&root, "ns").await.at("ns", socket.display())?;
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

/// The mount of mine that `dir` is in, unless that is at /n, and its namespace.
pub(super) async fn of_mount_around(home: &Home, dir: &Path) -> Result<Option<(PathBuf, String)>> {
    // Nothing in a mount is looked at: its node may be away.
    let around = dir.ancestors().find(|at| ::mount::is_mounted(at, None));
    let Some(at) = around.filter(|at| *at != Path::new(N)) else { return Ok(None) };
    Ok(mount_at(home, at).await?.map(|text| (at.to_path_buf(), text)))
}

/// The files of the server of the `slashn run` that `pid` is in, if it is in one, and where that answers.
pub(super) async fn run_root(home: &Home, pid: u32) -> Result<Option<(PathBuf, NodeRef)>> {
    use std::os::unix::fs::MetadataExt;
    // Of another user's process that cannot be told, and it is in none of mine.
    let Ok(namespace) = std::fs::metadata(format!("/proc/{pid}/ns/mnt")) else { return Ok(None) };
    let socket = home.run()?.join(super::run::link(namespace.ino()));
    Ok(control::connect(&socket).await?.map(|root| (socket, root)))
}

/// What runs on this home's node; nothing if that is not up.
async fn jobs(home: &Home) -> Result<Vec<Running>> {
    let socket = home.run()?.join("node");
    let Some(root) = control::connect(&socket).await? else { return Ok(Vec::new()) };
    let text = control::read(&root, "jobs").await.at("ns", socket.display())?;
    serde_json::from_slice(&text).at("ns", socket.display())
}

/// The mount of mine in which `pid` works: the innermost, as `pid` itself has it.
async fn mount_around(home: &Home, pid: u32) -> Result<Option<PathBuf>> {
    let unseen = |error| {
        let (by, remedy) = match rustix::process::geteuid().is_root() {
            true => (" by root of this container", "slashn ns DIR".to_string()),
            false => ("", format!("slashn ns {pid}, as its user")),
        };
        let error = format_args!("cannot be looked at{by}: {error}").to_string();
        Error::new("ns", format_args!("process {pid}"), error).remedy(remedy)
    };
    let cwd = std::fs::read_link(format!("/proc/{pid}/cwd")).map_err(unseen)?;
    let mut around: Vec<PathBuf> = Vec::new();
    for socket in status::mount_sockets(&home.run()?)? {
        around.extend(status::said(&socket, "dir").await?.into_iter().map(PathBuf::from));
    }
    around.retain(|at| cwd.starts_with(at) && ::mount::is_mounted(at, Some(pid)));
    Ok(around.into_iter().max_by_key(|at| at.as_os_str().len()))
}

/// `pid` and those it descends from, the nearest first; nothing if there is no such process.
fn family(pid: u32) -> Option<Vec<u32>> {
    let mut family = vec![pid];
    let mut next = parent(pid)?;
    while next != 0 && !family.contains(&next) {
        family.push(next);
        next = parent(next).unwrap_or_default();
    }
    Some(family)
}

/// The parent of `pid`.
fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}
