//! authorized_keys: who may come in, and to what.
//!
//! OpenSSH's format, one key a line, with one option of our own: `only="EXPORT[:ro],..."` gives these exports and no
//! commands. A line with any other option is refused, since a restriction that is not enforced is a hole; so is one
//! that cannot be read. A refused line lets nobody in, is named, and hides no other.
//!
//! Asked at each handshake by whoever accepts connections ([`Authorized::granted`]): the file is looked at each time,
//! so that what was allowed or denied counts at once. Invariant: a file that cannot be read, or that others may
//! change, lets nobody in.

mod line;

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use p9::Who;
use p9::who::{Only, Rights};
use parking_lot::RwLock;

use crate::error::{Error, Result};
use crate::files::{self, Guard};
use crate::keys::Key;

pub use line::parse_only;

/// One line that lets a key in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entry {
    /// The line's number, from 1.
    pub line: usize,
    /// The key.
    pub key: Key,
    /// What it may reach.
    pub rights: Rights,
}

/// One line that lets nobody in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refused {
    /// The line's number, from 1.
    pub line: usize,
    /// Why.
    pub reason: String,
}

/// What a key was granted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Granted {
    /// The key, as `SHA256:...`.
    pub fingerprint: Arc<str>,
    /// The user's name on the grid: the key's comment, or else its fingerprint.
    pub user: Arc<str>,
    /// What it may reach.
    pub rights: Rights,
}

impl Granted {
    /// The proven peer of a connection; `client` is the number of its session.
    pub fn who(&self, client: u64) -> Who {
        let (key, user, rights) = (self.fingerprint.clone(), self.user.clone(), self.rights.clone());
        Who { key, user, uid: None, rights, grant: None, client }
    }
}

/// The lines of an authorized_keys file.
#[derive(Clone, Debug, Default)]
pub struct Lines {
    /// Those that let a key in, in the file's order.
    pub entries: Vec<Entry>,
    /// Those that let nobody in.
    pub refused: Vec<Refused>,
}

impl Lines {
    /// Reads `text`, line by line.
    pub fn parse(text: &str) -> Self {
        let mut lines = Self::default();
        for (number, text) in (1..).zip(text.lines()) {
            match line::parse(text) {
                Ok(None) => {}
                Ok(Some((key, rights))) => lines.entries.push(Entry { line: number, key, rights }),
                Err(reason) => lines.refused.push(Refused { line: number, reason }),
            }
        }
        lines
    }
}

/// Who may come in, always as the file says now.
#[derive(Debug)]
pub struct Authorized {
    path: PathBuf,
    state: RwLock<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What the file looked like when it was read; `None` if it could not be.
    stamp: Option<Stamp>,
    by_spki: HashMap<Box<[u8]>, Granted>,
    lines: Arc<Lines>,
}

/// What differs when a file was changed or replaced.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    changed: (i64, i64),
}

impl Authorized {
    /// The file `path`. Errors: it cannot be read, or others may change it.
    pub fn open(path: &Path) -> Result<Self> {
        let authorized = Self { path: path.into(), state: RwLock::default() };
        authorized.reload()?;
        Ok(authorized)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the key with this SubjectPublicKeyInfo was granted; `None`: it may not come in.
    pub fn granted(&self, spki: &[u8]) -> Option<Granted> {
        if let Err(error) = self.reload() {
            tracing::warn!("{error}: nobody is let in");
        }
        self.state.read().by_spki.get(spki).cloned()
    }

    /// What the key with this fingerprint was granted when the file was read last; `None`: it may not come in.
    pub fn granted_to(&self, fingerprint: &str) -> Option<Granted> {
        self.state.read().by_spki.values().find(|granted| &*granted.fingerprint == fingerprint).cloned()
    }

    /// The lines, as they are now or were when the file could last be read.
    pub fn lines(&self) -> Arc<Lines> {
        self.state.read().lines.clone()
    }

    /// Reads the file again if it was changed, and says whether it was. Errors: it cannot be read; then nobody is let
    /// in until it can.
    pub fn reload(&self) -> Result<bool> {
        let stamp = stamp(&self.path);
        if stamp.is_some() && self.state.read().stamp == stamp {
            return Ok(false);
        }
        match files::read("read who may come in", &self.path, Guard::Unwritable) {
            Ok(text) => {
                let lines = Lines::parse(&text);
                *self.state.write() = State { stamp, by_spki: table(&lines.entries), lines: Arc::new(lines) };
                Ok(true)
            }
            Err(error) => {
                *self.state.write() = State::default();
                Err(error)
            }
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let meta = std::fs::metadata(path).ok()?;
    let (file, changed) = ((meta.dev(), meta.ino()), (meta.ctime(), meta.ctime_nsec()));
    Some(Stamp { file, size: meta.len(), changed })
}

/// By key; a key on two lines has the rights of both.
fn table(entries: &[Entry]) -> HashMap<Box<[u8]>, Granted> {
    let mut table: HashMap<Box<[u8]>, Granted> = HashMap::new();
    for Entry { key, rights, .. } in entries {
        let fingerprint: Arc<str> = key.fingerprint().into();
        let user = if key.comment().is_empty() { fingerprint.clone() } else { key.comment().into() };
        let fresh = Granted { fingerprint, user, rights: rights.clone() };
        table
            .entry(key.spki().into())
            .and_modify(|granted| granted.rights = both(&granted.rights, rights))
            .or_insert(fresh);
    }
    table
}

fn both(a: &Rights, b: &Rights) -> Rights {
    match (a, b) {
        (Rights::Only(a), Rights::Only(b)) => Rights::Only([&a[..], &b[..]].concat().into()),
        _ => Rights::All,
    }
}

/// `text` with `key` let in to `rights`; lines of that key that were there are gone.
pub fn with(text: &str, key: &Key, rights: &Rights) -> String {
    let mut text = without(text, |other| other == key).0;
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    if let Rights::Only(list) = rights {
        text.push_str(&format!("only=\"{}\" ", only_text(list)));
    }
    text.push_str(&format!("{key}\n"));
    text
}

/// `text` without the lines whose key `is` the one meant, and how many those were.
pub fn without(text: &str, is: impl Fn(&Key) -> bool) -> (String, usize) {
    let mut gone = 0;
    let kept = text.split_inclusive('\n').filter(|text| {
        let meant = line::parse(text).ok().flatten().is_some_and(|(key, _)| is(&key));
        gone += usize::from(meant);
        !meant
    });
    (kept.collect(), gone)
}

/// `EXPORT[:ro],...`
pub fn only_text(list: &[Only]) -> String {
    let words = list.iter().map(|only| format!("{}{}", only.export, if only.read_only { ":ro" } else { "" }));
    words.collect::<Vec<_>>().join(",")
}

/// Checks a key that is to be let in: one that TLS can prove. Errors name what was given.
pub fn key_to_allow(line: &str) -> Result<Key> {
    const STEP: &str = "read the key";
    if line.contains('\n') {
        return Err(Error::new(STEP, "KEY LINE", "is more than one line"));
    }
    Key::from_line(line)
        .map_err(|reason| Error::new(STEP, "KEY LINE", reason).remedy("slashn allow \"$(cat KEY.pub)\""))
}
