//! What the kernel mounts for a namespace, where its root is this machine's: the rest is what the server shows.
//!
//! Made by the server of `slashn run` from what its namespace has where. What is one directory or file of this machine
//! is a bind mount, and costs nothing; what is not is shown by FUSE, at the place itself or, where this machine has no
//! such place, from the nearest directory above that it has.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use cpuserver::launch::private::{Plan, PlannedMount};
use ns::Shown;

/// The plan for a namespace that has `places`, the outer ones first; `exists` says whether this machine has a path.
pub fn plan(places: Vec<Shown>, exists: &dyn Fn(&Path) -> bool) -> Plan {
    let mut places: Vec<(PathBuf, Option<PathBuf>, bool)> =
        places.into_iter().map(|place| (place.path, place.local.and_then(|fd| path_of(&fd)), place.is_dir)).collect();
    let root = (!places.is_empty() && places[0].0 == Path::new("/")).then(|| places.remove(0));
    // Nothing mounted below it would leave it local; what is, is looked at below.
    let whole = root.is_none();
    let mut served: Vec<(PathBuf, Option<bool>)> = Vec::new();
    let mut locals = Vec::new();
    for (at, local, is_dir) in places {
        let within = whole || served.iter().any(|(dir, _)| at.starts_with(dir));
        let mut make = None;
        if !within {
            let (shown, made) = nearest(&at, exists);
            // What is made has the kind of what is put there; on the way to something there are directories.
            make = made.then_some(if shown == at { is_dir } else { true });
            if local.is_none() || shown != at {
                served.retain(|(dir, _)| !dir.starts_with(&shown));
                served.push((shown, make.take()));
            }
        }
        if let Some(local) = local {
            locals.push(PlannedMount { at, local: Some(local), make });
        }
    }
    let mut mounts: Vec<PlannedMount> =
        served.into_iter().map(|(at, make)| PlannedMount { at, local: None, make }).collect();
    mounts.extend(locals);
    Plan { whole, mounts }
}

/// What has to be shown for `at` to be there: itself, or the nearest directory above that this machine has; or, where
/// that is the root, what is next below it, which has to be made.
fn nearest(at: &Path, exists: &dyn Fn(&Path) -> bool) -> (PathBuf, bool) {
    if exists(at) {
        return (at.to_path_buf(), false);
    }
    let mut below = at;
    for above in at.ancestors().skip(1) {
        match above.parent() {
            None => return (below.to_path_buf(), true),
            Some(_) if exists(above) => return (above.to_path_buf(), false),
            Some(_) => below = above,
        }
    }
    (below.to_path_buf(), true)
}

/// Where on this machine what is open is; none if it has no name any more.
fn path_of(fd: &OwnedFd) -> Option<PathBuf> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
    path.exists().then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(places: &[(&str, bool)], there: &[&str]) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let local = || std::fs::File::open(dir.path()).unwrap().into();
        let shown =
            |(path, is_local): &(&str, bool)| Shown { path: path.into(), local: is_local.then(local), is_dir: true };
        let exists = |path: &Path| there.iter().any(|there| Path::new(there) == path);
        let plan = plan(places.iter().map(shown).collect(), &exists);
        let tell = |mount: &PlannedMount| {
            let kind = if mount.local.is_some() { "local" } else { "served" };
            format!("{} {kind}{}", mount.at.display(), if mount.make == Some(true) { ", made" } else { "" })
        };
        let mut told: Vec<String> = plan.mounts.iter().map(tell).collect();
        told.extend(plan.whole.then(|| "whole".to_string()));
        told
    }

    #[test]
    fn what_is_local_is_bound_and_the_rest_is_served_from_the_nearest_place_that_is_there() {
        let there = ["/home", "/home/u", "/home/u/src", "/usr"];
        let planned = |places: &[(&str, bool)]| planned(places, &there).join("; ");
        assert_eq!(planned(&[("/", true)]), "");
        assert_eq!(planned(&[("/", true), ("/n", false)]), "/n served, made");
        assert_eq!(planned(&[("/", false), ("/n", true)]), "/n local, made");
        assert_eq!(planned(&[("/", true), ("/home/u/src", true), ("/usr", false)]), "/usr served; /home/u/src local");
        assert_eq!(planned(&[("/", true), ("/x/y/z", true)]), "/x served, made; /x/y/z local");
        let two = [("/", true), ("/home/u/a/b", false), ("/home/u/src", true), ("/home/z", false)];
        assert_eq!(planned(&two), "/home served; /home/u/src local");
        assert_eq!(planned(&[("/a", true)]), "/a local; whole");
    }
}
