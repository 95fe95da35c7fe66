//! Users and groups by name, as 9P2000 has them: this machine's passwd(5) and group(5), else their numbers.
//!
//! Used by the server for what it shows to a 9P2000 client and by the client for what such a server shows. The files
//! are looked at again when they change, at most once a second.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

/// How long a file is trusted not to have changed.
const TRUSTED: Duration = Duration::from_secs(1);
/// Names longer than this are not worth their place in every entry of a directory.
const LONGEST: usize = 255;

/// Whoever is called something that nobody here has: nobody, as in a user namespace.
pub(crate) const NOBODY: u32 = 65534;

static USERS: Names = Names { path: "/etc/passwd", known: Mutex::new(None) };
static GROUPS: Names = Names { path: "/etc/group", known: Mutex::new(None) };

/// The name of the user `uid`.
pub(crate) fn user(uid: u32) -> String {
    USERS.name(uid)
}

/// The name of the group `gid`.
pub(crate) fn group(gid: u32) -> String {
    GROUPS.name(gid)
}

/// The number of the user called `name`; nobody's, if it is nobody here.
pub(crate) fn user_number(name: &[u8]) -> u32 {
    USERS.number(name).unwrap_or(NOBODY)
}

/// The number of the group called `name`, if there is one or it is a number itself.
pub(crate) fn group_number(name: &[u8]) -> Option<u32> {
    GROUPS.number(name)
}

/// The names in one file.
struct Names {
    path: &'static str,
    known: Mutex<Option<Known>>,
}

struct Known {
    looked: Instant,
    changed: Option<SystemTime>,
    by_number: HashMap<u32, String>,
    by_name: HashMap<String, u32>,
}

impl Names {
    fn name(&self, number: u32) -> String {
        self.known(|known| known.by_number.get(&number).cloned()).unwrap_or_else(|| number.to_string())
    }

    fn number(&self, name: &[u8]) -> Option<u32> {
        let name = std::str::from_utf8(name).ok()?;
        self.known(|known| known.by_name.get(name).copied()).or_else(|| name.parse().ok())
    }

    fn known<T>(&self, ask: impl FnOnce(&Known) -> T) -> T {
        let mut known = self.known.lock();
        let trusted = known.as_ref().is_some_and(|known| known.looked.elapsed() < TRUSTED);
        if !trusted {
            let changed = fs::metadata(self.path).and_then(|file| file.modified()).ok();
            match known.as_mut() {
                Some(known) if known.changed == changed => known.looked = Instant::now(),
                _ => *known = Some(Known::of(&fs::read(self.path).unwrap_or_default(), changed)),
            }
        }
        ask(known.get_or_insert_with(|| Known::of(b"", None)))
    }
}

impl Known {
    fn of(text: &[u8], changed: Option<SystemTime>) -> Self {
        let text = String::from_utf8_lossy(text);
        let rows = text.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, number) = (fields.next()?, fields.nth(1)?.parse::<u32>().ok()?);
            (!name.is_empty() && name.len() <= LONGEST).then(|| (name.to_string(), number))
        });
        let (mut by_number, mut by_name) = (HashMap::new(), HashMap::new());
        for (name, number) in rows {
            // The first of several is the one that counts, as for getpwuid(3).
            by_number.entry(number).or_insert_with(|| name.clone());
            by_name.entry(name).or_insert(number);
        }
        Self { looked: Instant::now(), changed, by_number, by_name }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_row_of_a_number_or_name_counts() {
        let known =
            Known::of(b"root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0\n# a comment\n::7:\nroot:x:9:\nglenda:x:8\n", None);
        assert_eq!(known.by_number.get(&0).map(String::as_str), Some("root"));
        assert_eq!((known.by_name.get("toor"), known.by_name.get("root")), (Some(&0), Some(&0)));
        assert_eq!((known.by_name.get("glenda"), known.by_number.contains_key(&7)), (Some(&8), false));
    }

    #[test]
    fn who_has_no_name_here_is_a_number() {
        assert_eq!((user(0), user(4_000_000_000)), ("root".to_string(), "4000000000".to_string()));
        assert_eq!(
            (user_number(b"root"), user_number(b"4000000000"), user_number(b"glenda?")),
            (0, 4_000_000_000, NOBODY)
        );
        assert_eq!((group_number(b"glenda?"), group_number(b"17")), (None, Some(17)));
    }
}
