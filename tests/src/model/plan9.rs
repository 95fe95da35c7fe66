//! What 9P2000 can say, and a tree that is reached over it does.

use p9::Errno;

use super::rename::NOREPLACE;
use super::{Kind, Model, Op, Outcome};

impl Model {
    /// Does `op`, as far as 9P2000 has words for it.
    pub fn apply_over_9p2000(&mut self, op: &Op) -> Result<Outcome, Errno> {
        let above = |path: &[&'static str]| self.walk(&path[..path.len() - 1]);
        match op {
            Op::Symlink { path, .. } => {
                above(path)?;
                return Err(Errno::EOPNOTSUPP);
            }
            Op::Link { target, path } => {
                self.walk(target)?;
                above(path)?;
                return Err(Errno::EOPNOTSUPP);
            }
            Op::Rename { from, to, flags } => {
                let (from, to) = (above(from)?, above(to)?);
                if flags & !NOREPLACE != 0 {
                    return Err(Errno::EINVAL);
                }
                if from != to {
                    return Err(Errno::EXDEV);
                }
            }
            _ => {}
        }
        let next = self.next;
        let answer = self.apply(op)?;
        if let (Op::Create { path, mode, .. } | Op::Mkdir { path, mode }, true) = (op, self.next > next) {
            self.inherit(&path[..path.len() - 1], next, *mode);
        }
        Ok(answer)
    }

    /// A new file has the permissions that its directory lets it have: create(5).
    fn inherit(&mut self, dir: &[&'static str], file: u64, mode: u32) {
        let dir = self.walk(dir).map_or(0, |dir| self.files[&dir].mode);
        let file = self.file(file);
        let limited = if matches!(file.kind, Kind::Dir(_)) { 0o777 } else { 0o666 };
        file.mode = mode & (!limited | dir & limited);
    }
}
