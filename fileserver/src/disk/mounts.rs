//! The mounts that a disk tree may meet: which it must not enter, and which have a server of their own.
//!
//! Read from /proc/thread-self/mountinfo (proc_pid_mountinfo(5)), and again only when the kernel says by poll(2) that
//! it has changed. Asked by every look at a file on another mount than its directory. A mount is judged by what is
//! written there and never touched first: the daemon behind it may be this process.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use p9::Errno;
use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};

/// What is known of one mount.
#[derive(Debug)]
pub(super) struct Mount {
    /// The kernel's number for it.
    pub(super) id: u64,
    /// Shown as an empty directory: a slashn mount, or a window into the kernel.
    pub(super) hidden: bool,
    /// Its files are another's, who may be slow to answer: never waited for in place.
    pub(super) remote: bool,
    /// Several spellings are one name: what is not listed may be there all the same.
    pub(super) folds: bool,
    /// Whether to change a file may copy the whole of it.
    pub(super) copies: bool,
    /// The file system's own id (statfs(2)), which outlives device numbers.
    pub(super) fsid: u64,
}

/// All mounts that this process sees.
pub(super) struct Mounts(Mutex<Table>);

struct Table {
    file: File,
    /// Whether slashn mounts are entered.
    enters: bool,
    /// Number to file system type.
    types: HashMap<u64, String>,
    known: HashMap<u64, Arc<Mount>>,
    /// How often it was read: what was found out about an older table is not kept.
    reads: u64,
}

impl Mounts {
    /// Reads the table; `enters` says whether slashn mounts are entered. Errors: /proc is not there.
    pub(super) fn open(enters: bool) -> Result<Self, Errno> {
        let file = File::open("/proc/thread-self/mountinfo")?;
        let mut table = Table { file, enters, types: HashMap::new(), known: HashMap::new(), reads: 0 };
        table.read()?;
        Ok(Self(Mutex::new(table)))
    }

    /// The mount numbered `id`, in which `fd` is. With `cached`, `EAGAIN` unless it is known already.
    pub(super) fn look(&self, id: u64, fd: BorrowedFd<'_>, cached: bool) -> Result<Arc<Mount>, Errno> {
        let (kind, enters, reads) = {
            let mut table = self.0.lock();
            if table.changed() {
                table.read()?;
            }
            if let Some(known) = table.known.get(&id) {
                return Ok(known.clone());
            }
            if cached {
                return Err(Errno::EAGAIN);
            }
            (table.types.get(&id).cloned(), table.enters, table.reads)
        };
        let (hidden, remote) = match &kind {
            Some(kind) => (is_hidden(kind) && !(enters && kind == SLASHN), is_remote(kind)),
            // In a chroot, the mount that the root is in is not listed: the file system itself must say what it is.
            None => (is_hidden_magic(rustix::fs::fstatfs(fd)?.f_type as u64), true),
        };
        // Outside the lock: a remote file system may take its time.
        let fsid = if hidden { 0 } else { rustix::fs::fstatvfs(fd)?.f_fsid };
        let folds = kind.as_deref().is_some_and(folds);
        let copies = kind.as_deref() == Some("overlay");
        let mount = Arc::new(Mount { id, hidden, remote, folds, copies, fsid });
        let mut table = self.0.lock();
        if table.reads == reads {
            table.known.insert(id, mount.clone());
        }
        Ok(mount)
    }
}

impl Table {
    /// Whether the kernel's table has changed since this was last asked, or the file opened.
    fn changed(&self) -> bool {
        let mut fds = [PollFd::new(&self.file, PollFlags::PRI)];
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        !matches!(poll(&mut fds, Some(&zero)), Ok(0))
    }

    fn read(&mut self) -> Result<(), Errno> {
        let mut text = Vec::new();
        // From the start: the file is made anew by each read at 0.
        let mut at = 0;
        loop {
            let mut part = [0; 16 << 10];
            match self.file.read_at(&mut part, at)? {
                0 => break,
                got => text.extend_from_slice(&part[..got]),
            }
            at = text.len() as u64;
        }
        self.types = text.split(|&b| b == b'\n').filter_map(line).collect();
        self.known.clear();
        self.reads += 1;
        Ok(())
    }
}

/// `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG]... - TYPE SOURCE SUPER`
fn line(text: &[u8]) -> Option<(u64, String)> {
    let text = String::from_utf8_lossy(text);
    let (place, kind) = text.split_once(" - ")?;
    Some((place.split(' ').next()?.parse().ok()?, kind.split(' ').next()?.to_owned()))
}

/// The type of slashn mounts.
const SLASHN: &str = "fuse.slashn";

/// Whether a file system of this type is not entered.
fn is_hidden(kind: &str) -> bool {
    const WINDOWS: [&str; 15] = [
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "efivarfs",
        SLASHN,
        "fusectl",
        "proc",
        "pstore",
        "securityfs",
        "sysfs",
        "tracefs",
    ];
    WINDOWS.contains(&kind)
}

/// The same, by the number that statfs(2) gives; it does not tell one FUSE file system from another.
fn is_hidden_magic(magic: u64) -> bool {
    // Of linux/magic.h: FUSE, proc, sysfs, cgroup and cgroup2.
    const WINDOWS: [u64; 5] = [0x6573_5546, 0x9fa0, 0x6265_6572, 0x0027_e0eb, 0x6367_7270];
    WINDOWS.contains(&magic)
}

/// Whether a file system of this type asks somebody else.
fn is_remote(kind: &str) -> bool {
    const SERVED: [&str; 18] = [
        "9p", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "fuse", "gfs2", "lustre", "nfs", "nfs4", "ocfs2",
        "orangefs", "pvfs2", "smb3", "vboxsf", "virtiofs",
    ];
    SERVED.contains(&kind) || kind.starts_with("fuse.")
}

/// Whether names on a file system of this type are the same whatever the case of their letters.
fn folds(kind: &str) -> bool {
    ["exfat", "hfs", "hfsplus", "msdos", "ntfs", "ntfs3", "vfat"].contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_gives_the_number_and_the_type() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - fuse.slashn slashn rw,user_id=0";
        assert_eq!(line(text), Some((36, "fuse.slashn".to_owned())));
        assert!(is_hidden("fuse.slashn") && !is_hidden("fuse.sshfs") && is_remote("fuse.sshfs"));
        assert!(folds("vfat") && !folds("ext4"));
        assert_eq!(line(b""), None);
    }
}
