//! A path in the namespace, shared with the directories above it.
//!
//! Every file that was reached through a namespace keeps the path it was reached by, so that what is mounted there or
//! below afterwards shows. A step further costs one allocation, however deep; the depth is kept, so that whoever is
//! deeper than everything mounted knows it without looking.

use std::sync::Arc;

use p9::{Name, NameBuf};

/// A path; the default is the root.
#[derive(Clone, Default)]
pub(crate) struct Path(Option<Arc<Link>>);

struct Link {
    name: NameBuf,
    before: Path,
    depth: usize,
}

impl Path {
    /// The path of `name` in this directory.
    pub(crate) fn enter(&self, name: Name<'_>) -> Self {
        Self(Some(Arc::new(Link { name: name.into(), before: self.clone(), depth: self.depth() + 1 })))
    }

    /// The path of what `names` lead to from this directory.
    pub(crate) fn enter_all(&self, names: &[Name<'_>]) -> Self {
        names.iter().fold(self.clone(), |path, name| path.enter(*name))
    }

    /// How many names it has.
    pub(crate) fn depth(&self) -> usize {
        self.0.as_ref().map_or(0, |link| link.depth)
    }

    /// Follows its names from `first`, by `next`, as far as they lead. It allocates nothing, and is as deep as the
    /// path.
    pub(crate) fn lead<'a, T>(
        &self, first: &'a T, next: &mut impl FnMut(&'a T, &NameBuf) -> Option<&'a T>,
    ) -> Option<&'a T> {
        match &self.0 {
            None => Some(first),
            Some(link) => {
                let before = link.before.lead(first, next)?;
                next(before, &link.name)
            }
        }
    }

    /// Its names, the first first.
    pub(crate) fn names(&self) -> Vec<&NameBuf> {
        let mut names = Vec::with_capacity(self.depth());
        let mut at = self;
        while let Some(link) = &at.0 {
            names.push(&link.name);
            at = &link.before;
        }
        names.reverse();
        names
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // One after another: a path may be deeper than the stack.
        let mut before = self.before.0.take();
        while let Some(mut link) = before.and_then(Arc::into_inner) {
            before = link.before.0.take();
        }
    }
}

/// `path`, seen from the directory `cwd`, as an absolute path: `.` and `..` are resolved as text, as Plan 9 does.
pub fn clean(cwd: &str, path: &str) -> String {
    let whole = if path.starts_with('/') { path.to_string() } else { format!("{cwd}/{path}") };
    let mut names = Vec::new();
    for name in whole.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_seen_from_a_directory_and_never_leaves_the_root() {
        assert_eq!(clean("/a", "b/./c//"), "/a/b/c");
        assert_eq!(clean("/a", "../../../b"), "/b");
        assert_eq!(clean("/a", "/"), "/");
        assert_eq!(clean("/a", ""), "/a");
    }

    #[test]
    fn a_path_deeper_than_the_stack_is_dropped() {
        let name = Name::new(b"x").unwrap();
        let path = (0..1_000_000).fold(Path::default(), |path, _| path.enter(name));
        assert_eq!(path.depth(), 1_000_000);
        drop(path);
    }
}
