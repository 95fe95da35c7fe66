//! The homes of slashn that this user has, wherever they are: none of them is ever shown to a node.
//!
//! A home is noted when it is made and whenever it is opened; whoever settles what a node may reach of this machine
//! asks for all of them. The list is in the user's own directory, one path to a NUL, and hidden itself.

use std::ffi::OsStr;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The list, below the user's directory.
const LIST: &str = ".local/state/slashn/homes";

/// Notes `home`, once.
pub fn note(user_home: &Path, home: &Path) -> io::Result<()> {
    // As it is and not as it was called: links may change.
    let home = home.canonicalize()?;
    if all(user_home).contains(&home) {
        return Ok(());
    }
    let list = user_home.join(LIST);
    if let Some(dir) = list.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let line = [home.as_os_str().as_bytes(), b"\0"].concat();
    OpenOptions::new().append(true).create(true).mode(0o600).open(list)?.write_all(&line)
}

/// All that were noted.
pub fn all(user_home: &Path) -> Vec<PathBuf> {
    let text = std::fs::read(user_home.join(LIST)).unwrap_or_default();
    let paths = text.split(|&byte| byte == 0).filter(|path| !path.is_empty());
    paths.map(|path| PathBuf::from(OsStr::from_bytes(path))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_is_noted_once_whatever_it_is_called() {
        let user = tempfile::tempdir().unwrap();
        let real = user.path().canonicalize().unwrap().join("a \n home");
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, user.path().join("link")).unwrap();
        assert_eq!(all(user.path()), [] as [PathBuf; 0]);
        note(user.path(), &real).unwrap();
        note(user.path(), &user.path().join("link")).unwrap();
        note(user.path(), user.path()).unwrap();
        assert_eq!(all(user.path()), [real, user.path().canonicalize().unwrap()]);
    }
}
