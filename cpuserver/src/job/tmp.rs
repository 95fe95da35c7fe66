//! A job's private /tmp: a fresh directory on this node, removed when the job is over.
//!
//! Made and removed on the blocking pool by the job's task. A directory that could not be removed whole is reported,
//! never followed out of: removal does not follow links.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use p9::Errno;

/// The directory; dropping it removes it and all that is in it.
pub(crate) struct Tmp(PathBuf);

impl Tmp {
    /// A fresh directory in `parent`, mode 1777 like any /tmp; others cannot come in, since what is around it is the
    /// owner's alone.
    pub(crate) fn create(parent: &Path) -> Result<Self, Errno> {
        let around = Self(parent.join(format!("slashn-job-{}", crate::cpu::random_hex()?)));
        std::fs::DirBuilder::new().mode(0o700).create(&around.0)?;
        std::fs::DirBuilder::new().create(around.path())?;
        // Apart from the umask.
        std::fs::set_permissions(around.path(), std::fs::Permissions::from_mode(0o1777))?;
        Ok(around)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.join("tmp")
    }
}

impl Drop for Tmp {
    fn drop(&mut self) {
        // A program may have left directories that even their owner cannot list.
        if std::fs::remove_dir_all(&self.0).is_err() {
            open_up(&self.0);
            if let Err(error) = std::fs::remove_dir_all(&self.0)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(directory = %self.0.display(), %error, "a job's /tmp could not be removed");
            }
        }
    }
}

/// Makes every directory at and below `at` one that its owner can empty.
fn open_up(at: &Path) {
    let _ = std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o700));
    for entry in std::fs::read_dir(at).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_up(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_with_all_that_is_in_it_and_with_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        std::fs::write(parent.path().join("kept"), "").unwrap();
        let tmp = Tmp::create(parent.path()).unwrap();
        std::fs::create_dir(tmp.path().join("closed")).unwrap();
        std::fs::write(tmp.path().join("closed/file"), "").unwrap();
        std::fs::set_permissions(tmp.path().join("closed"), std::fs::Permissions::from_mode(0o000)).unwrap();
        std::os::unix::fs::symlink(parent.path(), tmp.path().join("out")).unwrap();
        drop(tmp);
        let left: Vec<_> = parent.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["kept"]);
    }
}
