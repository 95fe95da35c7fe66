//! Files of this machine's own disk, which the kernel reads and writes itself where root mounts them.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::*;

/// The first byte of a file, shared with whoever else has it.
struct Mapped(*mut u8);

impl Mapped {
    fn of(file: &File) -> Self {
        // SAFETY: a new mapping, which is in nobody's way.
        let at =
            unsafe { mmap(std::ptr::null_mut(), 4096, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0) };
        Self(at.unwrap().cast())
    }

    fn get(&self) -> u8 {
        // SAFETY: it is mapped as long as this lives.
        unsafe { self.0.read_volatile() }
    }

    fn set(&self, byte: u8) {
        // SAFETY: as above.
        unsafe { self.0.write_volatile(byte) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        unsafe { munmap(self.0.cast(), 4096) }.unwrap();
    }
}

#[test]
fn a_local_file_is_the_very_pages_that_it_is_on_disk() {
    let (folder, root) = disk();
    fs::write(folder.path().join("f"), [b'a'; 5000]).unwrap();
    let shown = Shown::new(root);
    let open = |path: PathBuf| File::options().read(true).write(true).open(path).unwrap();
    let made = File::options().read(true).write(true).create_new(true).open(shown.path("made")).unwrap();
    made.set_len(5000).unwrap();
    for (here, name) in [(open(shown.path("f")), "f"), (made, "made")] {
        let there = open(folder.path().join(name));
        let (one, other) = (Mapped::of(&here), Mapped::of(&there));
        for byte in *b"xyz" {
            one.set(byte);
            assert_eq!(other.get(), byte);
            other.set(byte + 1);
            assert_eq!(one.get(), byte + 1);
            let mut read = [0];
            here.read_exact_at(&mut read, 0).unwrap();
            assert_eq!(read[0], byte + 1);
        }
    }
}

#[test]
fn what_the_kernel_writes_by_itself_is_told_at_once() {
    let (folder, root) = disk();
    for name in ["f", "g", "h"] {
        fs::write(folder.path().join(name), "1234").unwrap();
    }
    let shown = Shown::new(root);
    let size = |name: &str| fs::metadata(shown.path(name)).unwrap().size();
    let listed = || {
        let all = fs::read_dir(&*shown).unwrap().map(|entry| entry.unwrap());
        all.map(|entry| (entry.file_name(), entry.metadata().unwrap().size())).max().unwrap()
    };
    // It is kept, and its directory, too.
    assert_eq!((fs::read_to_string(shown.path("h")).unwrap().as_str(), listed()), ("1234", ("h".into(), 4)));
    let reader = File::open(shown.path("h")).unwrap();
    let writer = File::options().write(true).open(shown.path("h")).unwrap();
    for length in [5, 9, 9000] {
        writer.write_all_at(&vec![b'x'; length], 0).unwrap();
        let length = length as u64;
        assert_eq!((size("h"), reader.metadata().unwrap().size(), listed().1), (length, length, length));
        assert_eq!(fs::read(shown.path("h")).unwrap().len() as u64, length);
        assert_eq!(fs::read(folder.path().join("h")).unwrap().len() as u64, length);
    }
    // What was fetched ahead is opened as the others are.
    for name in ["f", "g", "h"] {
        assert!(!fs::read(shown.path(name)).unwrap().is_empty());
    }
    File::options().append(true).open(shown.path("h")).unwrap().write_all(b"end").unwrap();
    assert_eq!((size("h"), reader.metadata().unwrap().size()), (9003, 9003));
    writer.set_len(3).unwrap();
    drop(writer);
    assert_eq!((size("h"), fs::read_to_string(shown.path("h")).unwrap().as_str()), (3, "xxx"));
    File::options().append(true).open(shown.path("h")).unwrap().write_all(b"end").unwrap();
    assert_eq!((size("h"), fs::read_to_string(shown.path("h")).unwrap().as_str()), (6, "xxxend"));
}
