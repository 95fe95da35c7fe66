//! What `9p ls` and `9p stat` print.

use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use p9::{Attr, Entry, Errno, FileKind, Handle, How, NameBuf, NodeRef, Time, Want};

use super::Place;

/// The entries of a directory by name, or the one file, as bytes: a name may be any.
pub(super) async fn list(place: &Place<'_>, path: &OsStr, long: bool, itself: bool) -> Result<Vec<u8>, Errno> {
    let node = place.node().await?;
    let mut out = Vec::new();
    if itself || node.qid().kind != FileKind::Dir {
        let attr = if long { Some(node.attr().await?) } else { None };
        row(&mut out, attr.as_ref(), path.as_bytes());
        return Ok(out);
    }
    let mut entries = names(&node).await?;
    entries.sort_by(|(one, _), (other, _)| one.as_name().cmp(&other.as_name()));
    for (name, attr) in entries {
        let attr = match (long, attr) {
            (false, _) => None,
            (true, Some(attr)) => Some(attr),
            (true, None) => match attr_of(&node, &name).await {
                // Gone meanwhile.
                Err(Errno::ENOENT) => continue,
                attr => Some(attr?),
            },
        };
        row(&mut out, attr.as_ref(), name.as_name().as_bytes());
    }
    Ok(out)
}

async fn names(node: &NodeRef) -> Result<Vec<(NameBuf, Option<Attr>)>, Errno> {
    let Handle::Dir(dir) = node.open(How { directory: true, ..How::READ }).await? else { return Err(Errno::ENOTDIR) };
    let mut all = Vec::new();
    let mut each = |entry: Entry<'_>| {
        all.push((NameBuf::from(entry.name), entry.attr.copied()));
        ControlFlow::Continue(())
    };
    dir.list(0, &mut each).await?;
    Ok(all)
}

async fn attr_of(node: &NodeRef, name: &NameBuf) -> Result<Attr, Errno> {
    let reached = node.walk(&[name.as_name()], Want::ATTR).await?.reached()?;
    match reached.attr {
        Some(attr) => Ok(attr),
        None => reached.node.attr().await,
    }
}

fn row(out: &mut Vec<u8>, attr: Option<&Attr>, name: &[u8]) {
    if let Some(attr) = attr {
        let Attr { nlink, uid, gid, size, .. } = attr;
        out.extend_from_slice(
            format!("{} {nlink} {uid} {gid} {size:>10} {} ", mode(attr.mode), when(attr.mtime)).as_bytes(),
        );
    }
    out.extend_from_slice(name);
    out.push(b'\n');
}

/// All that is known of a file, a line for each thing.
pub(super) fn all(attr: &Attr, path: &OsStr) -> String {
    let Attr { qid, mode: bits, uid, gid, nlink, rdev, size, blksize, blocks, atime, mtime, ctime, btime, .. } = *attr;
    let mut text = format!("path {}\nqid {:?} {} {:#018x}\n", path.display(), qid.kind, qid.version, qid.path);
    text += &format!("mode {} {bits:o}\nowner {uid}\ngroup {gid}\nlinks {nlink}\n", mode(bits));
    if rdev != 0 {
        text += &format!("device {} {}\n", rustix::fs::major(rdev), rustix::fs::minor(rdev));
    }
    text += &format!("size {size}\nblocks {blocks}\nblock size {blksize}\n");
    text += &format!("accessed {}\nmodified {}\nchanged {}\n", when(atime), when(mtime), when(ctime));
    if btime != Time::default() {
        text += &format!("born {}\n", when(btime));
    }
    text
}

fn when(time: Time) -> String {
    let sec = Duration::from_secs(time.sec.unsigned_abs());
    let moment: Option<SystemTime> = match time.sec < 0 {
        true => UNIX_EPOCH.checked_sub(sec),
        false => UNIX_EPOCH.checked_add(sec),
    };
    // A date that no calendar has is given as it came.
    let year_9999 = UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    match moment.filter(|moment| (UNIX_EPOCH..=year_9999).contains(moment)) {
        Some(moment) => humantime::format_rfc3339_seconds(moment).to_string(),
        None => time.sec.to_string(),
    }
}

/// `st_mode` as ls(1) prints it.
fn mode(bits: u32) -> String {
    let kind = match bits & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        _ => '-',
    };
    let bit = |bit: u32, is: char| if bits & bit != 0 { is } else { '-' };
    let exec = |x: u32, special: u32, both: char, alone: char| match (bits & x != 0, bits & special != 0) {
        (true, true) => both,
        (false, true) => alone,
        (true, false) => 'x',
        (false, false) => '-',
    };
    [
        kind,
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        exec(0o100, 0o4000, 's', 'S'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        exec(0o010, 0o2000, 's', 'S'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        exec(0o001, 0o1000, 't', 'T'),
    ]
    .iter()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_and_times_print_as_ls_prints_them() {
        assert_eq!(mode(0o100644), "-rw-r--r--");
        assert_eq!(mode(0o041777), "drwxrwxrwt");
        assert_eq!(mode(0o104750), "-rwsr-x---");
        assert_eq!(mode(0o102640), "-rw-r-S---");
        assert_eq!(when(Time { sec: 1_000_000_000, nsec: 5 }), "2001-09-09T01:46:40Z");
        assert_eq!(when(Time { sec: -5, nsec: 0 }), "-5");
        assert_eq!(when(Time { sec: i64::MAX, nsec: 0 }), i64::MAX.to_string());
    }
}
