//! Files that must be whole and must be mine: reading with a look at who may touch them, writing so that a crash or a
//! full disk leaves the old contents.
//!
//! Called by everything that keeps something in the home. Invariants: what was read through here, nobody but the user
//! and root could have changed (or, if private, seen); a reader never sees half of what was written through here.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::error::{At, Error, Result};

/// The most bytes a file of the home may have.
const MAX: u64 = 16 << 20;

/// What others may do to a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Guard {
    /// Nothing: a private key.
    Private,
    /// Read it.
    Unwritable,
}

impl Guard {
    fn forbidden(self) -> u32 {
        match self {
            Self::Private => 0o077,
            Self::Unwritable => 0o022,
        }
    }
}

/// The text of the file `path`, which nobody else may see or change, as `guard` says. Errors: `step` names what was
/// being done; a file that is loosely permitted comes with the chmod that mends it.
pub fn read(step: &str, path: &Path, guard: Guard) -> Result<String> {
    // O_NONBLOCK: a FIFO in the place of a file must not make us wait.
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path).at(step, path.display())?;
    let meta = file.metadata().at(step, path.display())?;
    if !meta.is_file() {
        return Err(Error::new(step, path.display(), "is not a file"));
    }
    if meta.len() > MAX {
        return Err(Error::new(step, path.display(), format_args!("has more than {MAX} bytes")));
    }
    check(step, path, &meta, guard)?;
    let mut bytes = Vec::new();
    file.take(MAX).read_to_end(&mut bytes).at(step, path.display())?;
    String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        Error::new(step, format_args!("{}:{line}", path.display()), "is not text")
    })
}

/// Checks that the directory `path` is the user's and nobody else's.
pub fn check_dir(step: &str, path: &Path) -> Result<()> {
    let meta = std::fs::metadata(path).at(step, path.display())?;
    if !meta.is_dir() {
        return Err(Error::new(step, path.display(), "is not a directory"));
    }
    check(step, path, &meta, Guard::Private)
}

fn check(step: &str, path: &Path, meta: &std::fs::Metadata, guard: Guard) -> Result<()> {
    let me = rustix::process::geteuid();
    if meta.uid() != me.as_raw() && meta.uid() != 0 {
        let reason = format!("belongs to uid {}, not to you ({})", meta.uid(), me.as_raw());
        return Err(Error::new(step, path.display(), reason).remedy(format!(
            "sudo chown {} {}",
            me.as_raw(),
            path.display()
        )));
    }
    let mode = meta.mode() & 0o7777;
    if mode & guard.forbidden() == 0 {
        return Ok(());
    }
    let (may, to) = match guard {
        Guard::Private if meta.is_dir() => ("enter or change", "700"),
        Guard::Private => ("read or change", "600"),
        Guard::Unwritable => ("change", "go-w"),
    };
    let reason = format!("has mode {mode:04o}: others may {may} it");
    Err(Error::new(step, path.display(), reason).remedy(format!("chmod {to} {}", path.display())))
}

/// Replaces the contents of `path` in one step. The caller holds the home's lock, so that there is one writer.
pub fn replace(step: &str, path: &Path, text: &str, mode: u32) -> Result<()> {
    let written = write_beside(path, text, mode).at(step, path.display())?;
    std::fs::rename(&written, path).at(step, path.display())?;
    sync_parent(path).at(step, path.display())
}

/// Makes the file `path`, which must not be there yet, with these contents, in one step.
pub fn create(step: &str, path: &Path, text: &str, mode: u32) -> Result<()> {
    let written = write_beside(path, text, mode).at(step, path.display())?;
    renameat_with(CWD, &written, CWD, path, RenameFlags::NOREPLACE).map_err(|error| {
        // What was written is in nobody's way, and the next try takes its place.
        let _ = std::fs::remove_file(&written);
        Error::new(step, path.display(), error)
    })?;
    sync_parent(path).at(step, path.display())
}

/// Writes a file next to `path`, safe on the disk, and gives its path.
fn write_beside(path: &Path, text: &str, mode: u32) -> std::io::Result<PathBuf> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".part");
    let beside = path.with_file_name(name);
    // What a crash left is of no use; and a link in its place is not to be followed.
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let written = file
        .set_permissions(Permissions::from_mode(mode))
        .and_then(|()| file.write_all(text.as_bytes()))
        .and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written.map(|()| beside)
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_others_may_change_or_see_is_refused_with_the_chmod() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        create("make", &path, "secret\n", 0o644).unwrap();
        assert_eq!(read("read", &path, Guard::Unwritable).unwrap(), "secret\n");
        let error = read("read", &path, Guard::Private).unwrap_err().to_string();
        assert!(error.contains("mode 0644") && error.contains(&format!("chmod 600 {}", path.display())), "{error}");
        std::fs::set_permissions(&path, Permissions::from_mode(0o620)).unwrap();
        assert!(read("read", &path, Guard::Unwritable).unwrap_err().to_string().contains("chmod go-w"));
    }

    #[test]
    fn replacing_keeps_the_old_contents_until_the_end_and_creating_never_overwrites() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        create("make", &path, "one", 0o600).unwrap();
        assert!(create("make", &path, "two", 0o600).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one");
        replace("edit", &path, "three", 0o600).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn what_is_not_text_is_named_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"one\ntwo\xff").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(read("read", &path, Guard::Private).unwrap_err().to_string().contains("file:2: is not text"));
    }
}
