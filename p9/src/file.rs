//! What a file is and what is known of it: qid, attributes, file system statistics.
//!
//! The attributes are those of `Tgetattr`/`Tsetattr` in 9P2000.L, which are those of stat(2).

/// The identity of a file: equal for two nodes of one tree exactly when they are the same file.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct Qid {
    /// What sort of file.
    pub kind: FileKind,
    /// Changes when the contents do; 0 where that is not known.
    pub version: u32,
    /// Unique within the tree, for all time: a recreated file has another.
    pub path: u64,
}

/// What sort of file.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub enum FileKind {
    /// A regular file, or anything else with bytes in it.
    #[default]
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Link,
}

impl FileKind {
    /// The kind of a file whose `st_mode` is `mode`.
    pub fn of_mode(mode: u32) -> Self {
        match mode & libc::S_IFMT {
            libc::S_IFDIR => Self::Dir,
            libc::S_IFLNK => Self::Link,
            _ => Self::File,
        }
    }

    /// The file type bits of `st_mode`.
    pub fn mode_bits(self) -> u32 {
        match self {
            Self::File => libc::S_IFREG,
            Self::Dir => libc::S_IFDIR,
            Self::Link => libc::S_IFLNK,
        }
    }

    /// The qid type byte on the wire: `QTDIR`, `QTSYMLINK` or `QTFILE`.
    pub fn to_wire(self) -> u8 {
        match self {
            Self::File => 0,
            Self::Dir => 0x80,
            Self::Link => 0x02,
        }
    }

    /// The kind that the qid type byte `bits` means.
    pub fn from_wire(bits: u8) -> Self {
        match bits {
            _ if bits & 0x80 != 0 => Self::Dir,
            _ if bits & 0x02 != 0 => Self::Link,
            _ => Self::File,
        }
    }
}

/// A moment: seconds since 1970 and nanoseconds below a second.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct Time {
    /// Seconds; negative before 1970.
    pub sec: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nsec: u32,
}

impl Time {
    /// The time now, by the system's clock.
    pub fn now() -> Self {
        match std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => Self { sec: since.as_secs() as i64, nsec: since.subsec_nanos() },
            Err(before) => Self { sec: -(before.duration().as_secs() as i64), nsec: 0 },
        }
    }
}

/// A file's attributes, whole: a tree that does not know one gives its default. See statx(2).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Attr {
    /// Which file.
    pub qid: Qid,
    /// `st_mode`: type and permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links.
    pub nlink: u64,
    /// Device number (`makedev`) of a device file.
    pub rdev: u64,
    /// Length in bytes.
    pub size: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// 512-byte blocks in use.
    pub blocks: u64,
    /// Last access.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of the attributes.
    pub ctime: Time,
    /// Creation, where the file system keeps it; else zero.
    pub btime: Time,
    /// Whether it is known to have no extended attributes, of which an ACL is one. Told by listings alone.
    pub bare: bool,
}

impl Attr {
    /// The attributes of a file that has only a kind and permissions: for synthetic trees.
    pub fn synthetic(qid: Qid, permissions: u32) -> Self {
        Self {
            qid,
            mode: qid.kind.mode_bits() | permissions,
            nlink: if qid.kind == FileKind::Dir { 2 } else { 1 },
            blksize: 4096,
            ..Self::default()
        }
    }
}

/// Attributes to change: those that are `Some`. A change of owner, size or mode updates ctime by itself.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SetAttr {
    /// New permission bits (07777).
    pub mode: Option<u32>,
    /// New owner.
    pub uid: Option<u32>,
    /// New group.
    pub gid: Option<u32>,
    /// New length.
    pub size: Option<u64>,
    /// New access time.
    pub atime: Option<SetTime>,
    /// New modification time.
    pub mtime: Option<SetTime>,
}

/// A time to set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SetTime {
    /// The server's time when the change is made.
    Now,
    /// This time.
    At(Time),
}

/// What is known of a file system: statfs(2).
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct StatFs {
    /// File system type magic; `V9FS_MAGIC` (0x01021997) where there is none.
    pub kind: u32,
    /// Block size in bytes.
    pub bsize: u32,
    /// Blocks in all.
    pub blocks: u64,
    /// Free blocks.
    pub bfree: u64,
    /// Blocks free to ordinary users.
    pub bavail: u64,
    /// Inodes in all.
    pub files: u64,
    /// Free inodes.
    pub ffree: u64,
    /// File system id.
    pub fsid: u64,
    /// Longest name in bytes.
    pub namelen: u32,
}

impl StatFs {
    /// What a synthetic tree answers.
    pub fn synthetic() -> Self {
        Self { kind: 0x0102_1997, bsize: 4096, namelen: 255, ..Self::default() }
    }
}
