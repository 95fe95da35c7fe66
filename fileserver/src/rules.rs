//! Rules by path: what of a tree is absent, empty, readable or writable.
//!
//! Made by [`crate::caller::rules`] or by whoever narrows a tree, read by [`crate::Ruled`]. The longest rule that is a
//! prefix of a path decides. What has no access but leads to something that has is still walked through: it shows
//! nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use p9::{Attr, Name, NameBuf};

/// What is allowed at a path and, unless a longer rule says otherwise, below it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Access {
    /// It is not there: `ENOENT`.
    Absent,
    /// A directory with nothing in it, in place of whatever is there.
    Empty,
    /// To be read; every change is refused with `EROFS`.
    ReadOnly,
    /// To be read and changed.
    ReadWrite,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Absent => "absent",
            Self::Empty => "empty",
            Self::ReadOnly => "ro",
            Self::ReadWrite => "rw",
        })
    }
}

/// Which access each path has.
#[derive(Clone, Debug)]
pub struct Rules {
    elsewhere: Access,
    paths: BTreeMap<PathBuf, Access>,
    owner: Option<(u32, u32)>,
}

impl Rules {
    /// `elsewhere` everywhere.
    pub fn new(elsewhere: Access) -> Self {
        Self { elsewhere, paths: BTreeMap::new(), owner: None }
    }

    /// And `access` at `path`, from the tree's root, and below it; in place of an earlier rule for this very path.
    /// `.` and `..` in it are resolved by the letter.
    #[must_use]
    pub fn rule(mut self, path: impl AsRef<Path>, access: Access) -> Self {
        let mut plain = PathBuf::from("/");
        for part in path.as_ref().components() {
            match part {
                Component::Normal(name) => plain.push(name),
                Component::ParentDir => drop(plain.pop()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        self.paths.insert(plain, access);
        self
    }

    /// And files of the user `uid` show the group `gid`, whatever group they have: in a user namespace that maps only
    /// this group, a file of another could not be written.
    #[must_use]
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }

    /// The access that `path` has.
    pub fn access(&self, path: impl AsRef<Path>) -> Access {
        let path = path.as_ref();
        self.paths.get(path).copied().unwrap_or_else(|| self.inherited(path))
    }

    /// The access that `path` has by the rules for what it is in.
    fn inherited(&self, path: &Path) -> Access {
        match path.ancestors().skip(1).find_map(|above| self.paths.get(above)) {
            None => self.elsewhere,
            // Nothing is in an empty directory.
            Some(Access::Empty) => Access::Absent,
            Some(access) => *access,
        }
    }

    /// The rules as text, one line for each path where something else holds than around it, and one for everything
    /// else.
    pub fn print(&self) -> String {
        let mut text = String::new();
        for (path, access) in self.paths.iter().filter(|(path, access)| self.inherited(path) != **access) {
            text += &format!("{access:<6} {}\n", path.display());
        }
        text + &format!("{:<6} everything else\n", self.elsewhere)
    }

    /// Where the root is, by these rules.
    pub(crate) fn root(&self) -> Spot {
        let mut root = Rule::default();
        for (path, access) in &self.paths {
            let mut at = &mut root;
            at.leads |= *access != Access::Absent;
            for part in path.iter().filter_map(|part| NameBuf::new(part.as_bytes()).ok()) {
                at = Arc::make_mut(at.below.entry(part).or_default());
                at.leads |= *access != Access::Absent;
            }
            at.access = Some(*access);
        }
        let access = root.access.unwrap_or(self.elsewhere);
        Spot { access, rule: Some(Arc::new(root)) }
    }

    /// The paths that may not be changed, or not even be seen.
    pub(crate) fn protected(&self) -> impl Iterator<Item = (&Path, Access)> {
        self.paths
            .iter()
            .map(|(path, access)| (path.as_path(), *access))
            .filter(|(_, access)| *access < Access::ReadWrite)
    }

    /// `attr` as these rules show it.
    pub(crate) fn show(&self, mut attr: Attr) -> Attr {
        if let Some((uid, gid)) = self.owner.filter(|owner| owner.0 == attr.uid) {
            (attr.uid, attr.gid) = (uid, gid);
        }
        attr
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.print())
    }
}

/// The rules at one path, and those below it.
#[derive(Clone, Debug, Default)]
struct Rule {
    access: Option<Access>,
    below: BTreeMap<NameBuf, Arc<Rule>>,
    /// Something here or below is there to be seen.
    leads: bool,
}

/// A path, as far as the rules are concerned.
#[derive(Clone, Debug)]
pub(crate) struct Spot {
    pub(crate) access: Access,
    /// The rules at or below it, if there are any.
    rule: Option<Arc<Rule>>,
}

impl Spot {
    /// The entry `name` of this directory.
    pub(crate) fn child(&self, name: Name<'_>) -> Self {
        let rule = self.rule.as_ref().and_then(|rule| rule.below.get(name.as_bytes())).cloned();
        let inherited = if self.access == Access::Empty { Access::Absent } else { self.access };
        Self { access: rule.as_ref().and_then(|rule| rule.access).unwrap_or(inherited), rule }
    }

    /// The same, where the file found there is also that of a rule for another path, which says `other`: it counts
    /// unless a rule names this path, too.
    pub(crate) fn also(self, other: Option<Access>) -> Self {
        match other {
            Some(access) if self.rule.is_none() => Self { access: access.min(self.access), ..self },
            _ => self,
        }
    }

    /// Whether it is there at all.
    pub(crate) fn is_there(&self) -> bool {
        self.access != Access::Absent || self.rule.as_ref().is_some_and(|rule| rule.leads)
    }

    /// Whether what it is called matters to a rule: such a name stays what it is.
    pub(crate) fn is_named(&self) -> bool {
        self.rule.is_some()
    }

    /// Whether all of its entries are as they are in the tree beneath.
    pub(crate) fn shows_all(&self) -> bool {
        self.access >= Access::ReadOnly && self.rule.as_ref().is_none_or(|rule| rule.below.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_decides() {
        let rules = Rules::new(Access::ReadWrite)
            .rule("/home/u/.ssh", Access::Absent)
            .rule("/home/u/.ssh/config", Access::ReadOnly)
            .rule("run/../proc/", Access::Empty);
        let spot = |path: &str| {
            Name::split(path.as_bytes()).unwrap().into_iter().fold(rules.root(), |spot, name| spot.child(name))
        };
        for (path, access, there) in [
            ("/home/u", Access::ReadWrite, true),
            ("/home/u/.sshx", Access::ReadWrite, true),
            ("/home/u/.ssh", Access::Absent, true),
            ("/home/u/.ssh/id", Access::Absent, false),
            ("/home/u/.ssh/config", Access::ReadOnly, true),
            ("/home/u/.ssh/config/x", Access::ReadOnly, true),
            ("/proc", Access::Empty, true),
            ("/proc/1/mem", Access::Absent, false),
        ] {
            assert_eq!(
                (rules.access(path), spot(path).access, spot(path).is_there()),
                (access, access, there),
                "{path}"
            );
        }
    }

    #[test]
    fn rules_print_one_line_each() {
        let rules = Rules::new(Access::Absent).rule("/usr", Access::ReadOnly).rule("/home/u/w", Access::ReadWrite);
        assert_eq!(rules.print(), "rw     /home/u/w\nro     /usr\nabsent everything else\n");
    }
}
