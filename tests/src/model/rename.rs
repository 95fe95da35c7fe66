//! What a rename does, and in which order it is refused: do_renameat2 and vfs_rename of Linux.

use p9::Errno;

use super::{Kind, Model};

/// `RENAME_NOREPLACE` of renameat2(2).
pub(super) const NOREPLACE: u32 = 1;
/// `RENAME_EXCHANGE`.
pub(super) const EXCHANGE: u32 = 2;

impl Model {
    pub(super) fn rename(&mut self, from: &[&'static str], to: &[&'static str], flags: u32) -> Result<(), Errno> {
        // Both directories are walked to before anything else.
        for path in [from, to] {
            self.walk(&path[..path.len() - 1])?;
        }
        let (old_dir, old_name, old) = self.place(from)?;
        let (new_dir, new_name, new) = self.place(to)?;
        let old = old.ok_or(Errno::ENOENT)?;
        match new {
            Some(_) if flags == NOREPLACE => return Err(Errno::EEXIST),
            None if flags == EXCHANGE => return Err(Errno::ENOENT),
            _ => {}
        }
        if self.is_above(old, new_dir) {
            return Err(Errno::EINVAL);
        }
        let Some(new) = new else {
            self.files.get_mut(&old).expect("it is there").links += 1;
            self.leave(old_dir, old_name);
            self.enter(new_dir, new_name, old);
            self.files.get_mut(&old).expect("it is there").links -= 1;
            return Ok(());
        };
        if self.is_above(new, old_dir) {
            return Err(if flags == EXCHANGE { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if old == new {
            return Ok(());
        }
        let is_dir = |file: u64| matches!(self.files[&file].kind, Kind::Dir(_));
        if flags != EXCHANGE {
            match (is_dir(old), is_dir(new)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                _ => {}
            }
            if let Kind::Dir(entries) = &self.files[&new].kind
                && !entries.is_empty()
            {
                return Err(Errno::ENOTEMPTY);
            }
        }
        // Held, so that neither is forgotten on the way.
        for file in [old, new] {
            self.files.get_mut(&file).expect("it is there").links += 1;
        }
        self.leave(old_dir, old_name);
        self.leave(new_dir, new_name);
        self.enter(new_dir, new_name, old);
        if flags == EXCHANGE {
            self.enter(old_dir, old_name, new);
        }
        for file in [old, new] {
            self.files.get_mut(&file).expect("it is there").links -= 1;
            self.forget(file);
        }
        Ok(())
    }
}
