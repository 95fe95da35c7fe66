//! `slashn bind` and `slashn unbind`: a namespace that is mounted is changed, for all who use it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::ns::text::{self, Flags, Line};

use crate::cli::{Bind, Unbind};
use crate::commands::{mount, ns, runtime, status};
use crate::error::{At, Error, Result};
use crate::home::Home;
use crate::namespace::N;
use crate::{Context, control, live};

/// Runs `slashn bind`.
pub fn bind(context: &Context, typed: &Bind) -> Result<ExitCode> {
    let Bind { after, before, create, cache, merge, marks, quiet, new, old, mount } = typed;
    let (after, before, create, cache) = (*after, *before, *create, *cache);
    let flags = Flags { after, before, create, cache, merge: *merge, marks: *marks, quiet: *quiet };
    change(context, "bind", (Some(new), old), mount.as_deref(), |at| {
        let old = shown(at, "bind", old)?;
        Ok(match is_server(new) {
            true => Line::Mount { flags, server: new.clone(), old, spec: String::new() },
            false => Line::Bind { flags, new: within(at, new)?, old },
        })
    })
}

/// Runs `slashn unbind`.
pub fn unbind(context: &Context, typed: &Unbind) -> Result<ExitCode> {
    let (new, old) = match &typed.paths[..] {
        [new, old] => (Some(new), old),
        [old] => (None, old),
        _ => return Err(Error::new("unbind", "the command line", "is not [NEW] OLD").status(2)),
    };
    change(context, "unbind", (new, old), typed.mount.as_deref(), |at| {
        let path = |new: &String| if is_server(new) { Ok(new.clone()) } else { within(at, new) };
        let (new, place) = (new.map(path).transpose()?, shown(at, "unbind", old)?);
        if let (None, Seen::At(at)) = (&new, at)
            && place == N
        {
            let error = Error::new("unbind", old, "that is all that the mount shows");
            return Err(error.remedy(format!("slashn unbind NEW {0}, or slashn unmount {0}", at.display())));
        }
        Ok(Line::Unmount { new, old: place, quiet: false })
    })
}

/// Has the mount that is meant do what `line` says of it.
fn change(
    context: &Context, step: &str, (new, old): (Option<&String>, &str), mount: Option<&Path>,
    line: impl FnOnce(&Seen) -> Result<Line>,
) -> Result<ExitCode> {
    for path in new.into_iter().map(String::as_str).chain([old]) {
        if path.is_empty() {
            return Err(Error::new(step, "''", "is no path").status(2).remedy(format!("slashn {step} --help")));
        }
    }
    let home = context.open_home()?;
    runtime()?.block_on(async {
        let of_run = if mount.is_none() { ns::run_root(&home, std::process::id()).await? } else { None };
        let (root, seen) = match of_run {
            Some((_, root)) => (root, Seen::AsItIs),
            None => {
                let at = meant(context, &home, mount, old).await?;
                let none = || {
                    let error = Error::new(step, at.display(), "no grid of mine is mounted there");
                    error.remedy(format!("slashn mount {}", at.display()))
                };
                (control::connect(&mount::socket(&home, &at)?).await?.ok_or_else(none)?, Seen::At(at))
            }
        };
        let thing = new.map_or_else(|| old.to_string(), |new| format!("{new} {old}"));
        match live::change(&root, line(&seen)?.to_string()).await.at(step, &thing)? {
            None => Ok(ExitCode::SUCCESS),
            Some(reason) => Err(Error::with_remedy(step, thing, &reason)),
        }
    })
}

/// The mount that is named, or that `old` is in, or that there is when nothing is named.
async fn meant(context: &Context, home: &Home, named: Option<&Path>, old: &str) -> Result<PathBuf> {
    if named.is_none() {
        let old = absolute(old)?;
        let mut around: Vec<PathBuf> = Vec::new();
        for socket in status::mount_sockets(&home.run()?)? {
            around.extend(status::said(&socket, "dir").await?.into_iter().map(PathBuf::from));
        }
        around.retain(|at| Path::new(&old).starts_with(at));
        if let Some(innermost) = around.into_iter().max_by_key(|at| at.as_os_str().len()) {
            return Ok(innermost);
        }
    }
    mount::default_place(context, named)
}

/// Whether `new` is no path: `name!...`, `#name`, or a word without a slash, as the name of a node is.
fn is_server(new: &str) -> bool {
    text::is_server(new) || (!new.contains('/') && !Path::new(new).exists())
}

/// How the one who changes a namespace sees it.
enum Seen {
    /// What is at `/n` of it is mounted here.
    At(PathBuf),
    /// As a command in it does.
    AsItIs,
}

/// `path` in the namespace of which `seen` shows a part: as it is seen there, or as the namespace has it.
fn within(seen: &Seen, path: &str) -> Result<String> {
    let path = absolute(path)?;
    let Seen::At(at) = seen else { return Ok(path) };
    let Ok(within) = Path::new(&path).strip_prefix(at) else { return Ok(path) };
    Ok(Path::new(N).join(within).display().to_string().trim_end_matches('/').to_string())
}

/// The same of one that the mount shows.
fn shown(seen: &Seen, step: &str, path: &str) -> Result<String> {
    let within = within(seen, path)?;
    let Seen::At(at) = seen else { return Ok(within) };
    if Path::new(&within).starts_with(N) {
        return Ok(within);
    }
    let error = Error::new(step, path, format!("it is not in the mount {}", at.display()));
    Err(error.remedy(format!("slashn {step} NEW {}/...", at.display())))
}

/// `path` from the root, with `.` and `..` resolved as text: what it leads to may be dead.
fn absolute(path: &str) -> Result<String> {
    let whole = std::path::absolute(path).at("bind", path)?;
    let mut all = PathBuf::from("/");
    for part in whole.components() {
        match part {
            std::path::Component::ParentDir => drop(all.pop()),
            part => all.push(part),
        }
    }
    all.into_os_string().into_string().map_err(|_| Error::new("bind", path, "it is no text"))
}
