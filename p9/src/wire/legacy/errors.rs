//! Errors as 9P2000 says them: in words, and as Plan 9's programs look for them.
//!
//! Those of Plan 9's kernel and file servers stand here; an errno that they have no word for is said as strerror(3)
//! does. Both are what the Linux kernel's 9P client knows (its `net/9p/error.c`).

use crate::Errno;

/// Each errno with what is said for it, and what else means it.
const TABLE: &[(Errno, &str, &[&str])] = &[
    (
        Errno::ENOENT,
        "file does not exist",
        &[
            "file not found",
            "directory entry not found",
            "directory entry is not allocated",
            "illegal path element",
            "unknown file",
        ],
    ),
    (
        Errno::EACCES,
        "permission denied",
        &["not owner", "only owner can change group in wstat", "open/create -- access permission denied"],
    ),
    (
        Errno::EPERM,
        "Operation not permitted",
        &[
            "wstat prohibited",
            "create prohibited",
            "remove prohibited",
            "write prohibited",
            "wstat can't convert between files and directories",
            "not a member of proposed group",
            "no access to special file",
            "only support truncation to zero length",
            "cannot remove root",
            "mounted directory forbids creation",
        ],
    ),
    (Errno::EEXIST, "file already exists", &["file or directory already exists", "create/wstat -- file exists"]),
    (Errno::ENOTDIR, "not a directory", &["in a non-directory", "in non-directory"]),
    (Errno::EISDIR, "Is a directory", &["file is a directory"]),
    (Errno::ENOTEMPTY, "directory is not empty", &["Directory not empty", "occupied directory"]),
    (
        Errno::EBADF,
        "fid unknown or out of range",
        &[
            "bad use of fid",
            "fid already in use",
            "unknown fid",
            "bad fid",
            "duplicate fid",
            "fd out of range or not open",
        ],
    ),
    (
        Errno::EIO,
        "i/o error",
        &[
            "i/o count too large",
            "corrupted directory entry",
            "corrupted file entry",
            "corrupted block label",
            "corrupted meta data",
            "corrupted super block",
            "root of file system is corrupted",
        ],
    ),
    (
        Errno::EINVAL,
        "Invalid argument",
        &[
            "illegal mode",
            "illegal offset",
            "unknown group",
            "unknown user",
            "bad arg in system call",
            "file name syntax",
        ],
    ),
    (Errno::ENAMETOOLONG, "File name too long", &["illegal name"]),
    (
        Errno::EROFS,
        "read only file system",
        &["file is read only", "file system is read only", "file system read only"],
    ),
    (Errno::ENOSPC, "file system is full", &["file system full"]),
    (
        Errno::ETXTBSY,
        "exclusive use file already open",
        &[
            "file already open for I/O",
            "file is locked",
            "exclusive lock",
            "exclusive file already open",
            "file in use",
            "Text file busy",
        ],
    ),
    (Errno::EBUSY, "Device or resource busy", &["file is in use", "device or object already in use"]),
    (Errno::ESPIPE, "bad offset in directory read", &["seek on a stream"]),
    (Errno::EFBIG, "file too big", &[]),
    (Errno::EPROTO, "protocol botch", &["bogus wstat buffer", "bad directory in wstat"]),
    (Errno::ECONNREFUSED, "Connection refused", &["authentication failed"]),
    (Errno::EHOSTUNREACH, "No route to host", &["i/o on hungup channel"]),
    (Errno::EINTR, "Interrupted system call", &["interrupted"]),
];

/// What is said for `errno`.
pub fn text_of(errno: Errno) -> String {
    let said = TABLE.iter().find(|(known, ..)| *known == errno).map(|(_, text, _)| *text);
    said.map_or_else(|| errno.to_string(), String::from)
}

/// What a server means that says `text`, perhaps with the name of a file before or after it. `EIO` for what nobody
/// has heard of.
pub fn errno_of(text: &[u8]) -> Errno {
    let text = String::from_utf8_lossy(text).to_lowercase();
    let said = || {
        let table = TABLE.iter().flat_map(|(errno, first, more)| {
            std::iter::once(first).chain(*more).map(|known| (*errno, known.to_lowercase()))
        });
        table.chain(Errno::KNOWN.iter().map(|errno| (*errno, errno.to_string().to_lowercase())))
    };
    let exact = said().find(|(_, known)| *known == text);
    // Of those that are in it, the longest says the most.
    let within = || said().filter(|(_, known)| text.contains(known)).max_by_key(|(_, known)| known.len());
    exact.or_else(within).map_or(Errno::EIO, |(errno, _)| errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_errno_is_understood_as_it_is_said() {
        for errno in Errno::KNOWN {
            assert_eq!(errno_of(text_of(*errno).as_bytes()), *errno, "{errno:?}");
        }
    }

    #[test]
    fn what_servers_say_is_understood() {
        for (text, errno) in [
            ("file does not exist: 'motd'", Errno::ENOENT),
            ("'/n/x/motd' file does not exist", Errno::ENOENT),
            ("No such file or directory", Errno::ENOENT),
            ("walk -- in a non-directory", Errno::ENOTDIR),
            ("create in non-directory", Errno::ENOTDIR),
            ("File exists", Errno::EEXIST),
            ("open/create -- file is locked", Errno::ETXTBSY),
            ("the dog ate it", Errno::EIO),
            ("", Errno::EIO),
        ] {
            assert_eq!(errno_of(text.as_bytes()), errno, "{text}");
        }
    }
}
