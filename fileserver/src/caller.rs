//! The caller's tree as a node may see it while it runs the caller's command.
//!
//! The caller's agent asks for the rules, puts them around the caller's disk ([`crate::Ruled`]) and enforces them
//! itself: the node is not trusted to. `rcpu -v` prints them. Invariant: at every level of trust, what holds keys and
//! sessions is absent unless it was exposed by name, and below [`Trust::All`] what is run at login is never writable.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::rules::{Access, Rules};

mod lists;

/// How far the caller trusts a node.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Trust {
    /// With the working tree, and the system's directories to read.
    Cwd,
    /// The same, and the home directory and /tmp to read.
    #[default]
    Home,
    /// With everything that the caller may reach, but for keys and sessions.
    All,
}

/// No level of trust is called so.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("a level of trust is one of cwd, home, all")]
pub struct NoTrust;

impl FromStr for Trust {
    type Err = NoTrust;

    fn from_str(text: &str) -> Result<Self, NoTrust> {
        match text {
            "cwd" => Ok(Self::Cwd),
            "home" => Ok(Self::Home),
            "all" => Ok(Self::All),
            _ => Err(NoTrust),
        }
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cwd => "cwd",
            Self::Home => "home",
            Self::All => "all",
        })
    }
}

/// A path that the caller exposes by name, whatever the other rules say: `PATH[:ro]`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Expose {
    /// The path: absolute, or from the working directory.
    pub path: PathBuf,
    /// Whether it is to be read only.
    pub read_only: bool,
}

/// It names no path.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("what is exposed is PATH or PATH:ro")]
pub struct NoPath;

impl FromStr for Expose {
    type Err = NoPath;

    fn from_str(text: &str) -> Result<Self, NoPath> {
        let (path, read_only) = text.strip_suffix(":ro").map_or((text, false), |path| (path, true));
        if path.is_empty() { Err(NoPath) } else { Ok(Self { path: path.into(), read_only }) }
    }
}

impl fmt::Display for Expose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.path.display(), if self.read_only { ":ro" } else { "" })
    }
}

/// Who runs a command elsewhere, and from where.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The home directory, absolute.
    pub home: PathBuf,
    /// The working directory, absolute.
    pub cwd: PathBuf,
    /// The homes of slashn itself, absolute: those of this user's nodes, too.
    pub slashn_homes: Vec<PathBuf>,
    /// The caller.
    pub uid: u32,
    /// And its group: every file of the caller's shows it.
    pub gid: u32,
    /// How far the node is trusted.
    pub level: Trust,
    /// What is exposed by name.
    pub expose: Vec<Expose>,
}

/// What the node that runs a command for `caller` may see and change of the caller's root. It does blocking I/O, to see
/// where symbolic links lead.
pub fn rules(caller: &Caller) -> Rules {
    let paths = Paths::of(caller);
    let everything = caller.level == Trust::All;
    let mut rules = Rules::new(if everything { Access::ReadWrite } else { Access::Absent });
    rules = rules.owner(caller.uid, caller.gid);
    if !everything {
        rules = allow(rules, &paths.system, Access::ReadOnly);
    }
    if caller.level == Trust::Home {
        rules = allow(rules, &paths.home, Access::ReadOnly);
        rules = allow(rules, &paths.temporary, Access::ReadOnly);
    }
    for cwd in both(&caller.cwd) {
        let access = if everything || !paths.keeps(&cwd) { Access::ReadWrite } else { Access::ReadOnly };
        rules = rules.rule(cwd, access);
    }
    rules = expose(rules, caller, &paths);
    if !everything {
        for path in &paths.startup {
            // Only where it could be written: what is absent stays so.
            if rules.access(path) == Access::ReadWrite {
                rules = rules.rule(path, Access::ReadOnly);
            }
        }
    }
    rules = allow(rules, &paths.empty, Access::Empty);
    rules = allow(rules, &paths.secret, Access::Absent);
    for cwd in both(&caller.cwd) {
        // Working within what is hidden does not open it.
        if within(&cwd, &paths.empty) || within(&cwd, &paths.secret) {
            let own = paths.empty.contains(&cwd);
            rules = rules.rule(cwd, if own { Access::Empty } else { Access::Absent });
        }
    }
    // What is exposed by its own name, or within what is hidden, is so again.
    expose(rules, caller, &paths)
}

/// Where keys and sessions of the user are whose home directory is `home` and whose homes of slashn are `slashn_homes`:
/// what [`rules`] hides at every level. It does blocking I/O.
pub fn secrets(home: &Path, slashn_homes: Vec<PathBuf>) -> Vec<PathBuf> {
    let (uid, gid) = (0, 0);
    let (home, cwd, level, expose) = (home.to_path_buf(), PathBuf::from("/"), Trust::All, Vec::new());
    Paths::of(&Caller { home, cwd, slashn_homes, uid, gid, level, expose }).secret
}

/// The paths that the rules are about, as they are and as links lead to them.
struct Paths {
    home: Vec<PathBuf>,
    system: Vec<PathBuf>,
    temporary: Vec<PathBuf>,
    empty: Vec<PathBuf>,
    secret: Vec<PathBuf>,
    startup: Vec<PathBuf>,
}

impl Paths {
    fn of(caller: &Caller) -> Self {
        let home = both(&caller.home);
        // Joining an absolute path gives that path.
        let all = |list: &[&str]| -> Vec<PathBuf> {
            home.iter().flat_map(|home| list.iter().flat_map(move |path| both(&home.join(path)))).collect()
        };
        let mut secret = all(&lists::SECRETS);
        secret.extend(all(&lists::SYSTEM_SECRETS));
        secret.extend(caller.slashn_homes.iter().flat_map(|home| both(home)));
        Self {
            system: all(&lists::SYSTEM),
            temporary: all(&lists::TEMPORARY),
            empty: all(&lists::EMPTY),
            secret,
            startup: all(&lists::STARTUP),
            home,
        }
    }

    /// Whether `cwd` is no working tree: it holds the home and all else, or is the system's, or runs at login.
    fn keeps(&self, cwd: &Path) -> bool {
        let whole = cwd.parent().is_none() || self.home.iter().any(|home| home != cwd && home.starts_with(cwd));
        whole || within(cwd, &self.system) || within(cwd, &self.startup)
    }
}

fn within(path: &Path, these: &[PathBuf]) -> bool {
    these.iter().any(|it| path.starts_with(it))
}

fn expose(mut rules: Rules, caller: &Caller, paths: &Paths) -> Rules {
    for expose in &caller.expose {
        for path in both(&caller.cwd.join(&expose.path)) {
            let kept = caller.level < Trust::All && within(&path, &paths.startup);
            rules = rules.rule(path, if expose.read_only || kept { Access::ReadOnly } else { Access::ReadWrite });
        }
    }
    rules
}

fn allow(rules: Rules, paths: &[PathBuf], access: Access) -> Rules {
    paths.iter().fold(rules, |rules, path| rules.rule(path, access))
}

/// `path`, and where it leads if there are links in it: a rule must hold however the file is come by.
fn both(path: &Path) -> Vec<PathBuf> {
    let mut paths = vec![path.to_owned()];
    // What does not exist yet is where its nearest existing ancestor leads.
    let real = path.ancestors().find_map(|above| Some(above.canonicalize().ok()?.join(path.strip_prefix(above).ok()?)));
    // Joining nothing leaves a slash at the end, which is no other path.
    paths.extend(real.map(|real| real.components().collect()).filter(|real: &PathBuf| real != path));
    paths
}
