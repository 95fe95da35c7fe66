//! Namespace files: the text of namespace(6), read with nom ([`parse`]) and printed so that it reads back the same.
//!
//! A line is a command and its words. Words are separated by blanks; in single quotes anything stands for itself and a
//! doubled quote for one; `$name` outside quotes is looked up, up to the next blank, `/`, `$`, `.`, `!` or quote. `#`
//! begins a comment where a line begins; `'#...'` names a kernel device or a node's own tree. Unlike Plan 9's, a line
//! that cannot be read or done is an error, unless it says `-q`.

use std::fmt;

mod parse;

pub use parse::{ParseError, Variables, checked, parse, parse_numbered};

/// The most lines of a text that comes from a peer, with what it includes.
pub const PEER_LINES: usize = 1024;
/// The most lines of a text of one's own, with what it includes; a namespace never has more.
pub const OWN_LINES: usize = 131_072;
/// The most bytes of any text.
pub const MAX_BYTES: usize = 8 << 20;

/// How something is mounted: the flags of mount(1) and bind(1). None of them: instead of what is there.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Flags {
    /// `-b`: before what is there.
    pub before: bool,
    /// `-a`: after what is there.
    pub after: bool,
    /// `-c`: files may be created in it.
    pub create: bool,
    /// `-C`: its contents may be cached. They are anyway, as far as its server grants leases.
    pub cache: bool,
    /// `-m`, which Plan 9 does not have: its directories and those of other members that say so are one, where they
    /// have the same name, and so on down; of files of one name the first alone is there.
    pub merge: bool,
    /// `-w`, which merges, too: what is removed from a member behind it is marked in it, and so is not there any more.
    pub marks: bool,
    /// `-q`: if it cannot be done, go on without.
    pub quiet: bool,
}

impl Flags {
    /// Whether it joins what is there.
    pub fn union(self) -> bool {
        self.before || self.after
    }
}

/// One line. `import [-abcCmqw] server [spec] old` is a [`Line::Mount`], whose `spec` is `old` if it is not given.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Line {
    /// `mount [-abcCmqw] server old [spec]`
    Mount {
        /// How.
        flags: Flags,
        /// Where the tree is served.
        server: String,
        /// Where to mount it.
        old: String,
        /// What to attach to there; empty for the root.
        spec: String,
    },
    /// `bind [-abcCmqw] new old`
    Bind {
        /// How.
        flags: Flags,
        /// What.
        new: String,
        /// Where.
        old: String,
    },
    /// `unmount [-q] [new] old`
    Unmount {
        /// What; everything, without.
        new: Option<String>,
        /// Where.
        old: String,
        /// If it cannot be done, go on without.
        quiet: bool,
    },
    /// `cd dir`
    Cd {
        /// Where to.
        dir: String,
    },
    /// `clear`: begin again with nothing.
    Clear,
    /// `. [-q] path`: the lines of the file at that path of the namespace as it is by then.
    Include {
        /// The file.
        path: String,
        /// If there is none, go on without.
        quiet: bool,
    },
}

impl Line {
    /// The path that it is about.
    pub fn old(&self) -> &str {
        match self {
            Self::Mount { old, .. } | Self::Bind { old, .. } | Self::Unmount { old, .. } | Self::Cd { dir: old } => old,
            Self::Include { path, .. } => path,
            Self::Clear => "/",
        }
    }

    /// The server that it names and what is attached to there, if it mounts.
    pub fn server(&self) -> Option<(String, String)> {
        match self {
            Self::Mount { server, spec, .. } => Some((server.clone(), spec.clone())),
            _ => None,
        }
    }

    /// How it mounts or binds.
    pub fn flags(&self) -> Flags {
        match self {
            Self::Mount { flags, .. } | Self::Bind { flags, .. } => *flags,
            Self::Unmount { quiet, .. } | Self::Include { quiet, .. } => Flags { quiet: *quiet, ..Flags::default() },
            Self::Cd { .. } | Self::Clear => Flags::default(),
        }
    }
}

impl fmt::Display for Flags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let order = [(self.before, 'b'), (self.after, 'a')];
        let letters = order.into_iter().chain([
            (self.create, 'c'),
            (self.cache, 'C'),
            (self.merge, 'm'),
            (self.quiet, 'q'),
            (self.marks, 'w'),
        ]);
        let set: String = letters.filter(|(on, _)| *on).map(|(_, letter)| letter).collect();
        if set.is_empty() { Ok(()) } else { write!(f, " -{set}") }
    }
}

/// Whether `word` names a server, where it may be a path as well: `#...`, or `KIND!...`.
pub fn is_server(word: &str) -> bool {
    word.starts_with('#') || word.split('/').next().is_some_and(|first| first.contains('!'))
}

/// Prints a word so that it reads back the same.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(word) = *self;
        let plain = !word.is_empty()
            && !word.starts_with(['#', '-'])
            && word.chars().all(|c| !c.is_whitespace() && c != '\'' && c != '$');
        if plain { f.write_str(word) } else { write!(f, "'{}'", word.replace('\'', "''")) }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = self.flags();
        match self {
            Self::Mount { server, old, spec, .. } if spec.is_empty() => {
                write!(f, "mount{flags} {} {}", Quoted(server), Quoted(old))
            }
            Self::Mount { server, old, spec, .. } => {
                write!(f, "mount{flags} {} {} {}", Quoted(server), Quoted(old), Quoted(spec))
            }
            Self::Bind { new, old, .. } if is_server(new) => {
                write!(f, "bind{flags} {} {}", Quoted(&format!("./{new}")), Quoted(old))
            }
            Self::Bind { new, old, .. } => write!(f, "bind{flags} {} {}", Quoted(new), Quoted(old)),
            Self::Unmount { new: None, old, .. } => write!(f, "unmount{flags} {}", Quoted(old)),
            Self::Unmount { new: Some(new), old, .. } => write!(f, "unmount{flags} {} {}", Quoted(new), Quoted(old)),
            Self::Cd { dir } => write!(f, "cd {}", Quoted(dir)),
            Self::Clear => f.write_str("clear"),
            Self::Include { path, .. } => write!(f, ".{flags} {}", Quoted(path)),
        }
    }
}
