//! Which commands of `slashn run` are to have the same namespace, and so may share its mount.
//!
//! Asked by `slashn run` before it makes one. Alike are those whose lines are the same, for the same user, on the same
//! machine as it is seen: the same mounts, and the same files at the paths that the lines name, since a bind means what
//! its name led to then. What may mean something else for each command is not shared: programs that it starts, files
//! that it includes, and binds of what is deep in another node, of which it costs too much to know that it is the same.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use ns::text::Line;

use crate::Context;
use crate::home::Home;
use crate::namespace::{N, Written};

/// What the names of such places in `run/` begin with.
pub const DOOR: &str = "door-";

/// How far into the grid a bind may lead: NODE/fs/EXPORT.
const DEEP: usize = 3;

/// Where those answer who share the namespace that is `written`; none if nobody does.
pub fn door(context: &Context, home: &Home, written: &Written) -> Option<PathBuf> {
    let mut known = blake3::Hasher::new();
    let mut say = |what: &[u8]| {
        known.update(&(what.len() as u64).to_le_bytes()).update(what);
    };
    say(&file("/proc/self/exe".as_ref()).ok()?);
    say(&file("/".as_ref()).ok()?);
    say(&fs::metadata("/").ok()?.ctime_nsec().to_le_bytes());
    for kind in ["mnt", "user"] {
        say(fs::read_link(format!("/proc/self/ns/{kind}")).ok()?.as_os_str().as_encoded_bytes());
    }
    say(&fs::read("/proc/self/mountinfo").ok()?);
    say(format!("{:?}", rustix::process::getgroups().ok()?).as_bytes());
    say(format!("{:?} {:?}", rustix::process::geteuid(), rustix::process::getegid()).as_bytes());
    say(format!("{:?}", context.agent()).as_bytes());
    let mut cwd = "/".to_string();
    for line in &written.lines {
        say(line.to_string().as_bytes());
        let (new, old) = match line {
            Line::Include { .. } => return None,
            Line::Mount { server, .. } if ["exec!", "ssh!"].iter().any(|kind| server.starts_with(kind)) => return None,
            Line::Mount { server, old, .. } => (server.strip_prefix("local!").map(str::to_owned), old.as_str()),
            Line::Bind { new, old, .. } => (Some(ns::clean(&cwd, new)), old.as_str()),
            line => ("/".to_string().into(), line.old()),
        };
        let old = ns::clean(&cwd, old);
        if let Line::Cd { dir } = line {
            cwd = ns::clean(&cwd, dir);
        }
        for path in new.into_iter().chain([old]) {
            match Path::new(&path).strip_prefix(N) {
                Ok(within) if within.components().count() > DEEP => return None,
                Ok(_) => {}
                Err(_) => say(&file(path.as_ref()).unwrap_or_default()),
            }
        }
    }
    Some(home.run().ok()?.join(format!("{DOOR}{}", &known.finalize().to_hex()[..16])))
}

/// What tells the file at `path` from every other.
fn file(path: &Path) -> io::Result<Vec<u8>> {
    let meta = fs::metadata(path)?;
    let born = meta.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok([meta.dev(), meta.ino(), born.as_nanos() as u64].iter().flat_map(|number| number.to_le_bytes()).collect())
}
