//! Mappings of files that are kept: no page is old once somebody else has written, and the mount was told.
//!
//! Nothing is opened, locked or asked for meanwhile by whoever reads.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use rustix::mm::{MapFlags, ProtFlags};

use super::*;

const PAGES: usize = 8;
const SIZE: usize = PAGES * 4096;

/// A file that is mapped to be read.
struct Mapped(*mut libc::c_void);

impl Mapped {
    fn of(file: &File) -> Self {
        // SAFETY: the kernel says where, and nothing else is there.
        let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), SIZE, ProtFlags::READ, MapFlags::SHARED, file, 0) };
        Self(at.unwrap())
    }

    /// The first byte of each page, whatever it is at this moment.
    fn bytes(&self) -> Vec<u8> {
        let byte = |page: usize| {
            // SAFETY: it is within the mapping, which lasts as long as this.
            unsafe { std::ptr::read_volatile(self.0.cast::<u8>().add(page * 4096)) }
        };
        (0..PAGES).map(byte).collect()
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: nothing refers to it any more.
        unsafe { rustix::mm::munmap(self.0, SIZE) }.unwrap();
    }
}

/// Opens `count` files that are kept: opened alone, or fetched as they were listed.
fn kept(client: &Client, shown: &Shown, count: usize) -> Vec<File> {
    let names: Vec<PathBuf> = (0..count).map(|n| shown.path(&format!("f{n:02}"))).collect();
    assert_eq!(fs::read_dir(&**shown).unwrap().count(), count);
    // Just after a change there may be no lease.
    until("they are kept", || {
        let before = client.counts().requests;
        names.iter().for_each(|name| assert_eq!(fs::read(name).unwrap().len(), SIZE));
        client.counts().requests == before
    });
    names.iter().map(|name| File::open(name).unwrap()).collect()
}

#[test]
fn a_mapping_shows_what_is_written_elsewhere() {
    for count in [1, 30] {
        let folder = tempfile::tempdir().unwrap();
        (0..count).for_each(|n| fs::write(folder.path().join(format!("f{n:02}")), vec![b'0'; SIZE]).unwrap());
        let tree: TreeRef = Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap();
        let (client, shown) = Shown::counted(tree.clone());
        let other = Shown::far(tree);
        for round in b'1'..=b'4' {
            let files = kept(&client, &shown, count);
            let maps: Vec<Mapped> = files.iter().map(Mapped::of).collect();
            assert!(maps.iter().all(|map| map.bytes() == [round - 1; PAGES]));
            for n in 0..count {
                let name = format!("f{n:02}");
                if round % 2 == 0 {
                    let file = File::options().write(true).open(other.path(&name)).unwrap();
                    file.write_all_at(&[round; SIZE], 0).unwrap();
                } else {
                    // A process of the server.
                    let write = format!("head -c {SIZE} /dev/zero | tr '\\0' {} 1<>{name}", char::from(round));
                    let done = Command::new("sh").args(["-c", &write]).current_dir(folder.path()).status().unwrap();
                    assert!(done.success());
                }
            }
            for (n, map) in maps.iter().enumerate() {
                until(&format!("file {n} of {count} is new in round {}", char::from(round)), || {
                    map.bytes() == [round; PAGES]
                });
            }
        }
    }
}

#[test]
fn a_mapping_of_a_file_that_is_appended_to_is_written_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let shown = Shown::far(Disk::open(folder.path(), DiskOptions::new([7; 32])).unwrap());
    let path = shown.path("log");
    for (round, line) in ["hello", "again"].into_iter().enumerate() {
        let mut file = File::options().read(true).append(true).create(true).open(&path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
        let (both, shared) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: the kernel says where, and nothing else is there.
        let at = unsafe { rustix::mm::mmap(std::ptr::null_mut(), 5, both, shared, &file, 0) }.unwrap();
        // SAFETY: it is within the mapping.
        unsafe { at.cast::<u8>().write_volatile(b'A' + round as u8) };
        // SAFETY: as above; nothing refers to it after that.
        unsafe {
            rustix::mm::msync(at, 5, rustix::mm::MsyncFlags::SYNC).unwrap();
            rustix::mm::munmap(at, 5).unwrap();
        }
    }
    assert_eq!(fs::read_to_string(folder.path().join("log")).unwrap(), "Belloagain");
}
