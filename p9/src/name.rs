//! One name in a path, checked once where it enters, so that no tree has to check it again.

use std::borrow::Borrow;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;

use crate::Errno;

/// One name in a path: not empty, not `.` or `..`, no `/`, no NUL, at most 255 bytes; otherwise any bytes.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// The most bytes a name may have (`NAME_MAX`).
    pub const MAX: usize = 255;

    /// Checks `bytes`. Errors: `ENAMETOOLONG` past [`Name::MAX`], else `EINVAL`.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Errno> {
        match bytes {
            b"" | b"." | b".." => Err(Errno::EINVAL),
            _ if bytes.len() > Self::MAX => Err(Errno::ENAMETOOLONG),
            _ if bytes.iter().any(|&b| b == b'/' || b == 0) => Err(Errno::EINVAL),
            _ => Ok(Self(bytes)),
        }
    }

    /// The name's bytes.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The name as the standard library wants it.
    pub fn as_os_str(self) -> &'a OsStr {
        OsStr::from_bytes(self.0)
    }

    /// The names of `path`, absolute or not; empty parts and `.` vanish. Errors: `EINVAL` for `..`, which whoever
    /// holds a path resolves first (see [`crate::tree`]).
    pub fn split(path: &'a [u8]) -> Result<Vec<Self>, Errno> {
        path.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b".")).map(Self::new).collect()
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(self.0) {
            Ok(text) if !text.contains(char::is_control) => f.write_str(text),
            _ => self.0.escape_ascii().fmt(f),
        }
    }
}

/// Checks the name of an extended attribute as the kernel does: 1 to 255 bytes, none of them NUL. Errors: `ERANGE` for
/// another length, else `EINVAL`.
pub fn check_xattr(name: &[u8]) -> Result<(), Errno> {
    match name {
        b"" => Err(Errno::ERANGE),
        _ if name.len() > Name::MAX => Err(Errno::ERANGE),
        _ if name.contains(&0) => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

/// A [`Name`] that owns its bytes.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct NameBuf(Box<[u8]>);

impl NameBuf {
    /// Checks `bytes`, as [`Name::new`] does.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self, Errno> {
        let bytes = bytes.into();
        Name::new(&bytes)?;
        Ok(Self(bytes.into_boxed_slice()))
    }

    /// The name.
    pub fn as_name(&self) -> Name<'_> {
        Name(&self.0)
    }
}

impl From<Name<'_>> for NameBuf {
    fn from(name: Name<'_>) -> Self {
        Self(name.0.into())
    }
}

impl Borrow<[u8]> for NameBuf {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for NameBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_name().fmt(f)
    }
}

impl fmt::Display for NameBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_name().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_component() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert_eq!(Name::new(bad), Err(Errno::EINVAL), "{bad:?}");
        }
        assert_eq!(Name::new(&[b'x'; 256]), Err(Errno::ENAMETOOLONG));
        assert_eq!(Name::new(&[b'x'; 255]).unwrap().as_bytes().len(), 255);
        assert_eq!(Name::new(b"\xff ...").unwrap().as_bytes(), b"\xff ...");
    }

    #[test]
    fn a_path_splits_into_names_and_refuses_dot_dot() {
        let names = Name::split(b"//a/./b/").unwrap();
        assert_eq!(names, [Name::new(b"a").unwrap(), Name::new(b"b").unwrap()]);
        assert_eq!(Name::split(b"a/../b"), Err(Errno::EINVAL));
    }
}
