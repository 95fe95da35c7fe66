//! What is mounted where, as a thread or a process sees it: proc_pid_mountinfo(5).
//!
//! Called when a mount begins and ends. Reading the table asks no file system anything, so a dead or hung mount does no
//! harm here.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A mounted file system.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Mounted {
    /// Its type, like `fuse.slashn`.
    pub(crate) kind: String,
    /// What was mounted, as whoever mounted it says.
    pub(crate) source: String,
    /// Minor device number: for FUSE, the connection's name in fusectl.
    pub(crate) minor: u32,
}

/// What is mounted at `at`, on top, in this thread's mount namespace.
pub(crate) fn mounted(at: &Path) -> Option<Mounted> {
    seen_by("thread-self", at)
}

/// The same as `process` (a name in /proc) sees it.
pub(crate) fn seen_by(process: &str, at: &Path) -> Option<Mounted> {
    find(&std::fs::read(format!("/proc/{process}/mountinfo")).ok()?, at)
}

fn find(table: &[u8], at: &Path) -> Option<Mounted> {
    // Later lines are mounted over earlier ones.
    table.split(|&byte| byte == b'\n').rev().find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let device = std::str::from_utf8(fields.nth(2)?).ok()?;
        if unescaped(fields.nth(1)?) != at.as_os_str().as_bytes() {
            return None;
        }
        let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
        let text = |field: &[u8]| String::from_utf8_lossy(&unescaped(field)).into_owned();
        let (kind, source) = (text(rest.next()?), text(rest.next()?));
        Some(Mounted { kind, source, minor: device.split_once(':')?.1.parse().ok()? })
    })
}

/// Space, tab, newline and backslash are written in octal.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let octal = after.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal.filter(|_| byte == b'\\') {
            Some(code) => (rest, _) = (&after[3..], plain.push(code)),
            None => (rest, _) = (after, plain.push(byte)),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_on_top_is_found_whatever_its_name() {
        let table = b"22 1 0:21 / /n rw - tmpfs tmpfs rw\n\
            23 22 0:55 / /n rw,nosuid shared:2 master:1 - fuse.slashn my\\040grid rw,user_id=0\n\
            24 22 0:56 / /with\\040space rw - fuse.x y rw\n";
        let top = find(table, Path::new("/n")).unwrap();
        assert_eq!(top, Mounted { kind: "fuse.slashn".into(), source: "my grid".into(), minor: 55 });
        assert_eq!(find(table, Path::new("/with space")).unwrap().minor, 56);
        assert_eq!(find(table, Path::new("/with")), None);
    }
}
