//! A directory to be served, and beside it a canary: files that nobody who is served may ever touch.
//!
//! Links in the export lead to the canary by every way that links have. Its contents, the name of a file in it, its
//! size and its times are marks (`MARKS`) that no reply may carry; the kernel tells (inotify(7)) who opened, listed or
//! changed it, whatever became of the reply. It is the test's: made before, and judged after what it is about.

use std::fs::{self, FileTimes, Metadata};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::inotify::{CreateFlags, Reader, WatchFlags, add_watch, init};
use tempfile::TempDir;

/// What its files say.
const CONTENTS: &str = "the canary's contents: read by nobody, 7f3a91c4";
/// What one of them is called: no link leads to that, so that only who lists the directory learns of it.
const LISTED: &str = "the canary's name: listed by nobody, 5be20d18";
/// How long its file is: it has a hole.
const SIZE: u64 = 0x0007_3519_bd2f;
/// When it was last read, and changed.
const TIMES: (u64, u64) = (1_123_581_321, 1_618_033_988);

/// Where both are in a directory of their own: who gets out as far as any link here leads does no harm to others.
const BASE: &str = "x/y";

/// An export and what lies beside it. Both are removed when it is dropped.
pub struct Canary {
    dir: TempDir,
    events: OwnedFd,
    marks: Vec<(&'static str, Vec<u8>)>,
    before: Vec<(PathBuf, Shape)>,
}

/// What of a file may not change: everything but the time of the last access.
type Shape = (u32, u64, u64, (i64, i64), (i64, i64), u32);

fn shape(path: &Path) -> Shape {
    let is: Metadata = fs::symlink_metadata(path).unwrap_or_else(|err| panic!("{} is gone: {err}", path.display()));
    let (changed, attributes) = ((is.mtime(), is.mtime_nsec()), (is.ctime(), is.ctime_nsec()));
    (is.mode(), is.nlink(), is.size(), changed, attributes, is.uid())
}

impl Canary {
    /// An empty export, and the canary beside it.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("canary").tempdir().unwrap();
        let (export, outside) = (dir.path().join(BASE).join("export"), dir.path().join(BASE).join("outside"));
        fs::create_dir_all(export).unwrap();
        fs::create_dir_all(outside.join("d")).unwrap();
        let files = [outside.join("f"), outside.join("d/f"), outside.join(LISTED)];
        for file in &files {
            fs::write(file, CONTENTS).unwrap();
            fs::File::options().write(true).open(file).unwrap().set_len(SIZE).unwrap();
        }
        let all: Vec<PathBuf> = files.into_iter().chain([outside.join("d"), outside.clone()]).collect();
        let at = |sec| SystemTime::UNIX_EPOCH + Duration::from_secs(sec);
        let times = FileTimes::new().set_accessed(at(TIMES.0)).set_modified(at(TIMES.1));
        for path in &all {
            fs::File::open(path).unwrap().set_times(times).unwrap();
        }
        let events = init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).unwrap();
        for path in [&outside, &outside.join("d")] {
            add_watch(&events, path, WatchFlags::ALL_EVENTS).unwrap();
        }
        let before = all.into_iter().map(|path| (path.clone(), shape(&path))).collect();
        Self { dir, events, marks: marks(), before }
    }

    fn base(&self) -> PathBuf {
        self.dir.path().join(BASE)
    }

    /// The directory to serve.
    pub fn export(&self) -> PathBuf {
        self.base().join("export")
    }

    /// The directory that nobody may touch: `f`, `d/f`, and another file.
    pub fn outside(&self) -> PathBuf {
        self.base().join("outside")
    }

    /// Files, directories, and links that lead out, in the export.
    pub fn bait(&self) {
        let (export, outside) = (self.export(), self.outside());
        fs::create_dir_all(export.join("d/e")).unwrap();
        for (file, text) in [("f", "inside"), ("a", ""), ("d/f", "deeper"), ("d/e/f", "deepest")] {
            fs::write(export.join(file), text).unwrap();
        }
        let link = |target: &Path, name: &str| symlink(target, export.join(name)).unwrap();
        link(&outside, "out");
        link(&outside.join("f"), "file");
        link(Path::new("../outside"), "up");
        link(Path::new("../../outside/f"), "d/up");
        link(Path::new("d/../../outside/d"), "d/around");
        link(&Path::new("/proc/self/root").join(self.base().strip_prefix("/").unwrap()), "proc");
        link(&self.base(), "root");
        link(Path::new("loop"), "loop");
        link(Path::new(".."), "d/e/parent");
        link(Path::new("/d"), "inner");
    }

    /// Targets of links that lead to it, from different places.
    pub fn targets(&self) -> Vec<Vec<u8>> {
        let outside = self.outside().into_os_string().into_encoded_bytes();
        let proc = [b"/proc/self/root", &outside[..]].concat();
        let relative: [&[u8]; 6] = [b"../outside", b"../../outside/f", b"../outside/d", b"/", b"..", b"d/up"];
        relative
            .into_iter()
            .map(<[u8]>::to_vec)
            .chain([outside.clone(), [&outside[..], b"/f"].concat(), proc])
            .collect()
    }

    /// The names on the way to it.
    pub fn way(&self) -> Vec<Vec<u8>> {
        [BASE, "outside"].join("/").split('/').map(|name| name.as_bytes().to_vec()).collect()
    }

    /// Which of its marks `bytes`, which were given to somebody, carry.
    pub fn marked(&self, bytes: &[u8]) -> Option<&'static str> {
        let carries = |mark: &[u8]| bytes.windows(mark.len()).any(|window| window == mark);
        self.marks.iter().find(|(_, mark)| carries(mark)).map(|(what, _)| *what)
    }

    /// Panics if anybody has opened, listed or changed it.
    pub fn assert_untouched(&self) {
        let mut buf = [MaybeUninit::uninit(); 4096];
        let event = Reader::new(&self.events, &mut buf).next().map(|event| format!("{event:?}"));
        assert_eq!(event.ok(), None, "somebody was outside the export");
        for (path, before) in &self.before {
            assert_eq!(shape(path), *before, "{} is another", path.display());
        }
        let count =
            fs::read_dir(self.outside()).unwrap().count() + fs::read_dir(self.outside().join("d")).unwrap().count();
        assert_eq!(count, 4, "nothing came, nothing went");
        for path in ["f", "d/f"] {
            let mut text = vec![0; CONTENTS.len()];
            std::io::Read::read_exact(&mut fs::File::open(self.outside().join(path)).unwrap(), &mut text).unwrap();
            assert_eq!(text, CONTENTS.as_bytes());
        }
        // What this look has done itself.
        while Reader::new(&self.events, &mut buf).next().is_ok() {}
    }

    /// What of the export, and of the canary, this process has open.
    pub fn open(&self) -> Vec<PathBuf> {
        let Ok(fds) = fs::read_dir("/proc/self/fd") else { return Vec::new() };
        let targets = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        targets.filter(|path| path.starts_with(self.dir.path())).collect()
    }
}

impl Default for Canary {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Canary {
    /// Gives back to the owner of the directories what is needed to remove them.
    fn drop(&mut self) {
        let mut dirs = vec![self.export()];
        while let Some(dir) = dirs.pop() {
            let _ = fs::set_permissions(&dir, fs::Permissions::from_mode(0o700));
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            dirs.extend(
                entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
            );
        }
    }
}

/// In what shape each mark is seen on the wire, in any dialect.
fn marks() -> Vec<(&'static str, Vec<u8>)> {
    let (read, changed) = (TIMES.0 as u32, TIMES.1 as u32);
    vec![
        ("contents", CONTENTS.as_bytes().to_vec()),
        ("name", LISTED.as_bytes().to_vec()),
        ("length", SIZE.to_le_bytes().to_vec()),
        ("times of 9P2000", [read.to_le_bytes(), changed.to_le_bytes()].concat()),
        ("times", [TIMES.1.to_le_bytes(), 0_u64.to_le_bytes()].concat()),
    ]
}
