//! A folder of this machine, shown: what a program does in one it can do in the other.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use super::*;

#[test]
fn a_file_is_made_written_read_and_removed() {
    let (folder, root) = disk();
    let shown = Shown::new(root);
    fs::write(shown.path("a"), b"hello").unwrap();
    assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"hello");
    let mut log = OpenOptions::new().append(true).open(shown.path("a")).unwrap();
    log.write_all(b" there").unwrap();
    assert_eq!(fs::read_to_string(shown.path("a")).unwrap(), "hello there");
    fs::write(shown.path("a"), b"short").unwrap();
    assert_eq!(fs::read_to_string(shown.path("a")).unwrap(), "short");
    assert_eq!(File::create_new(shown.path("a")).unwrap_err().kind(), ErrorKind::AlreadyExists);
    fs::remove_file(shown.path("a")).unwrap();
    assert_eq!(fs::read(shown.path("a")).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(!folder.path().join("a").exists());
}

#[test]
fn attributes_are_set_and_seen() {
    let (folder, root) = disk();
    let shown = Shown::new(root);
    let path = shown.path("a");
    fs::write(&path, b"0123456789").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(then).set_accessed(then)).unwrap();
    let real = folder.path().join("a").metadata().unwrap();
    let seen = path.metadata().unwrap();
    for (what, real, seen) in [
        ("mode", real.mode().into(), seen.mode().into()),
        ("size", real.size(), seen.size()),
        ("blocks", real.blocks(), seen.blocks()),
        ("mtime", real.mtime() as u64, seen.mtime() as u64),
        ("mtime_nsec", real.mtime_nsec() as u64, seen.mtime_nsec() as u64),
        ("uid", real.uid().into(), seen.uid().into()),
        ("nlink", real.nlink(), seen.nlink()),
    ] {
        assert_eq!(real, seen, "{what}");
    }
    assert_eq!(seen.modified().unwrap(), then);
    file.set_len(3).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"012");
    assert_eq!(rustix::fs::statvfs(&*shown).unwrap().f_namemax, 255);
}

#[test]
fn a_time_before_1970_comes_back_as_it_was_set() {
    let (_folder, root) = disk();
    let shown = Shown::new(root);
    let file = File::create(shown.path("old")).unwrap();
    let then = SystemTime::UNIX_EPOCH - Duration::new(1000, 250_000_000);
    file.set_times(fs::FileTimes::new().set_modified(then)).unwrap();
    let seen = shown.path("old").metadata().unwrap();
    assert_eq!((seen.mtime(), seen.mtime_nsec()), (-1001, 750_000_000));
}

#[test]
fn directories_links_and_special_files_are_made_and_listed() {
    let (folder, root) = disk();
    let shown = Shown::new(root);
    fs::create_dir(shown.path("d")).unwrap();
    symlink("../over/there", shown.path("l")).unwrap();
    fs::write(shown.path("f"), b"x").unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, shown.path("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    assert_eq!(fs::read_link(shown.path("l")).unwrap().to_str(), Some("../over/there"));
    assert!(folder.path().join("pipe").symlink_metadata().unwrap().file_type().is_fifo());
    let mut names: Vec<_> = fs::read_dir(&*shown)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            // The type in the listing is the real one, and so is the number.
            let (listed, stat) = (entry.file_type().unwrap(), entry.path().symlink_metadata().unwrap());
            assert_eq!((listed, std::os::unix::fs::DirEntryExt::ino(&entry)), (stat.file_type(), stat.ino()));
            entry.file_name().into_string().unwrap()
        })
        .collect();
    names.sort();
    assert_eq!(names, ["d", "f", "l", "pipe"]);
    assert_eq!(fs::remove_dir(shown.path("f")).unwrap_err().kind(), ErrorKind::NotADirectory);
    fs::remove_dir(shown.path("d")).unwrap();
    assert!(!folder.path().join("d").exists());
}

#[test]
fn a_large_directory_is_listed_once_each() {
    let (folder, root) = disk();
    let want: std::collections::BTreeSet<_> = (0..3000).map(|n| format!("file-with-a-long-name-{n}")).collect();
    want.iter().for_each(|name| fs::write(folder.path().join(name), b"").unwrap());
    let shown = Shown::new(root);
    let listed: Vec<_> =
        fs::read_dir(&*shown).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(listed.len(), want.len());
    assert_eq!(listed.into_iter().collect::<std::collections::BTreeSet<_>>(), want);
}

#[test]
fn an_open_file_outlives_its_name() {
    let (_folder, root) = disk();
    let shown = Shown::with(root, Options { ttl: Duration::ZERO, ..Options::default() });
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(shown.path("a")).unwrap();
    file.write_all(b"kept").unwrap();
    fs::remove_file(shown.path("a")).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all(b" on").unwrap();
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "kept on");
}

#[test]
fn a_file_that_is_renamed_over_keeps_its_readers() {
    let (_folder, root) = disk();
    let shown = Shown::new(root);
    fs::write(shown.path("old"), b"old").unwrap();
    fs::write(shown.path("new"), b"new").unwrap();
    let mut reader = File::open(shown.path("old")).unwrap();
    fs::rename(shown.path("new"), shown.path("old")).unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "old");
    assert_eq!(fs::read_to_string(shown.path("old")).unwrap(), "new");
    assert!(!shown.path("new").exists());
}

#[test]
fn a_mapping_is_written_to_the_file() {
    let (folder, root) = disk();
    let shown = Shown::new(root);
    // A compiler and a linker do this; cp(1) of a sparse file looks for holes.
    let script = "import mmap,os\n\
        f=open('m','w+b'); f.truncate(8192)\n\
        m=mmap.mmap(f.fileno(),8192); m[5000:5005]=b'there'; m.flush(); m.close(); f.close()\n\
        f=open('s','wb'); f.truncate(1<<20); f.close()\n";
    let python = std::process::Command::new("python3").arg("-c").arg(script).current_dir(&*shown).status().unwrap();
    assert!(python.success());
    let mut bytes = [0; 5];
    File::open(folder.path().join("m")).unwrap().read_exact_at(&mut bytes, 5000).unwrap();
    assert_eq!(&bytes, b"there");
    let copied = std::process::Command::new("cp").args(["--sparse=auto", "s", "t"]).current_dir(&*shown).status();
    assert!(copied.unwrap().success());
    assert_eq!(fs::read(shown.path("t")).unwrap(), vec![0; 1 << 20]);
}

#[test]
fn a_read_only_mount_refuses_every_change() {
    let (folder, root) = disk();
    fs::write(folder.path().join("a"), b"x").unwrap();
    let shown = Shown::with(root, Options { read_only: true, ..Options::default() });
    assert_eq!(fs::read(shown.path("a")).unwrap(), b"x");
    for refused in [
        fs::write(shown.path("a"), b"y"),
        fs::write(shown.path("b"), b"y"),
        fs::create_dir(shown.path("d")),
        fs::remove_file(shown.path("a")),
        fs::rename(shown.path("a"), shown.path("b")),
        rustix::fs::access(shown.path("a"), rustix::fs::Access::WRITE_OK).map_err(Into::into),
    ] {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    }
}

#[test]
fn a_change_behind_the_mount_is_seen_when_the_file_is_opened_again() {
    let (folder, root) = disk();
    let shown = Shown::with(root, Options { ttl: Duration::ZERO, ..Options::default() });
    for round in 0..20 {
        // The same length, within the same tick of the clock.
        let text = format!("round {round:02}");
        fs::write(folder.path().join("a"), &text).unwrap();
        assert_eq!(fs::read_to_string(shown.path("a")).unwrap(), text);
    }
}

#[test]
fn the_umask_is_taken_off_once() {
    let (_folder, root) = disk();
    let shown = Shown::new(root);
    let made = std::process::Command::new("sh")
        .args(["-c", "umask 027; mkdir d; : > f; umask 0; : > g"])
        .current_dir(&*shown)
        .status()
        .unwrap();
    assert!(made.success());
    let mode = |name: &str| shown.path(name).metadata().unwrap().mode() & 0o7777;
    assert_eq!((mode("d"), mode("f"), mode("g")), (0o750, 0o640, 0o666));
    let file = OpenOptions::new().write(true).create_new(true).mode(0o444).open(shown.path("ro")).unwrap();
    file.write_all_at(b"written", 0).unwrap();
    assert_eq!(mode("ro"), 0o444);
}
