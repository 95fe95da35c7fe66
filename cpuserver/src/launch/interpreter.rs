//! Why a file that is there cannot be executed: its `#!` line, or its ELF header.
//!
//! Called by the program's process when execve(2) has failed, which says no more than ENOENT, EACCES or ENOEXEC.
//! Invariant: the file is anyone's; every offset in it is checked.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

/// As much of the header as the kernel looks at for `#!`.
pub(super) const HEAD: usize = 256;
/// Program headers that are looked at, and bytes of an interpreter's path, at most.
const HEADERS: u64 = 256;
const PATH: u64 = 4096;

/// The interpreter that the file at `path` names, if there is such a file and it names one.
pub(super) fn of(path: &[u8]) -> Option<String> {
    of_file(&File::open(at(path)).ok()?)
}

/// The interpreter that the program at `path` needs: the one that its `#!` line or ELF header names.
pub fn interpreter(path: &Path) -> Option<String> {
    of(path.as_os_str().as_bytes())
}

/// The same of an open file.
pub(super) fn of_file(file: &File) -> Option<String> {
    let mut head = [0; HEAD];
    let got = file.read_at(&mut head, 0).ok()?;
    let head = &head[..got];
    let name = match head.strip_prefix(b"#!") {
        Some(line) => {
            let line = line.split(|byte| *byte == b'\n').next()?.trim_ascii();
            line.split(|byte| *byte == b' ' || *byte == b'\t').next()?.to_vec()
        }
        None => Elf::parse(head)?.interpreter(file)?,
    };
    Some(String::from_utf8_lossy(&name).into_owned())
}

/// Why execve(2) said EACCES.
pub(super) fn why_denied(path: &[u8]) -> String {
    match fs::metadata(at(path)) {
        Ok(meta) if meta.is_dir() => "it is a directory".into(),
        Ok(meta) if !meta.is_file() => "it is no regular file".into(),
        Ok(meta) if meta.permissions().mode() & 0o111 == 0 => "permission denied (no execute bit)".into(),
        _ => "permission denied".into(),
    }
}

/// The architecture that the program at `path` is for, or else that its `#!` line leads to: by the names of
/// `std::env::consts::ARCH`. None: it is no such program, or not for one that is known here.
pub fn architecture(path: &Path) -> Option<&'static str> {
    /// Interpreters that have interpreters: as many as the kernel follows.
    const DEEP: usize = 5;
    let mut path = path.to_path_buf();
    for _ in 0..DEEP {
        let mut head = [0; HEAD];
        let got = File::open(&path).ok()?.read_at(&mut head, 0).ok()?;
        if !head.starts_with(b"#!") {
            return machine(Elf::parse(&head[..got])?.machine);
        }
        path = of(path.as_os_str().as_bytes())?.into();
    }
    None
}

/// Whether the program at `path` is itself for another machine, no script: what an emulator takes.
pub(super) fn is_binary(path: &[u8]) -> bool {
    let mut magic = [0; 4];
    File::open(at(path)).and_then(|file| file.read_exact_at(&mut magic, 0)).is_ok() && &magic == b"\x7fELF"
}

/// Whether a file that has no format known to the kernel may be a shell script; if not, what it is.
pub(super) fn may_be_script(path: &[u8]) -> Result<(), String> {
    let mut head = [0; HEAD];
    let file = File::open(at(path)).map_err(|error| error.to_string())?;
    let got = file.read_at(&mut head, 0).map_err(|error| error.to_string())?;
    let head = &head[..got];
    if Elf::parse(head).is_some() {
        return Err("it is not for this node's architecture".into());
    }
    let first = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if head.starts_with(b"\x7fELF") || first.contains(&0) {
        Err("it has no format that the kernel knows".into())
    } else {
        Ok(())
    }
}

fn at(path: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(path))
}

/// The fields of elf(5) that matter here.
pub(super) struct Elf {
    wide: bool,
    big_endian: bool,
    pub(super) machine: u64,
    header_offset: u64,
    header_size: u64,
    headers: u64,
}

impl Elf {
    pub(super) fn parse(head: &[u8]) -> Option<Self> {
        let ident = head.strip_prefix(b"\x7fELF")?;
        let (wide, big_endian) = (*ident.first()? == 2, *ident.get(1)? == 2);
        let field = |narrow: (usize, usize), broad: (usize, usize)| {
            let (offset, size) = if wide { broad } else { narrow };
            number(head, offset, size, big_endian)
        };
        Some(Self {
            wide,
            big_endian,
            machine: field((18, 2), (18, 2))?,
            header_offset: field((28, 4), (32, 8))?,
            header_size: field((42, 2), (54, 2))?,
            headers: field((44, 2), (56, 2))?,
        })
    }

    /// The path in the program header of type `PT_INTERP`.
    fn interpreter(&self, file: &File) -> Option<Vec<u8>> {
        const PT_INTERP: u64 = 3;
        let path = self.segment(file, PT_INTERP, PATH)?;
        Some(path.split(|byte| *byte == 0).next()?.to_vec())
    }

    /// What the first program header of type `kind` leads to, at most `most` bytes of it.
    pub(super) fn segment(&self, file: &File, kind: u64, most: u64) -> Option<Vec<u8>> {
        let (offset_at, size_at, width) = if self.wide { (8, 32, 8) } else { (4, 16, 4) };
        for i in 0..self.headers.min(HEADERS) {
            let mut header = [0; 64];
            let at = self.header_offset.checked_add(i.checked_mul(self.header_size)?)?;
            let got = file.read_at(&mut header, at).ok()?;
            let field = |offset, size| number(&header[..got], offset, size, self.big_endian);
            if field(0, 4)? == kind {
                let mut bytes = vec![0; field(size_at, width)?.min(most) as usize];
                let got = file.read_at(&mut bytes, field(offset_at, width)?).ok()?;
                bytes.truncate(got);
                return Some(bytes);
            }
        }
        None
    }
}

/// The unsigned number of `size` bytes at `offset`, if it is all there.
fn number(bytes: &[u8], offset: usize, size: usize, big_endian: bool) -> Option<u64> {
    let field = bytes.get(offset..offset.checked_add(size)?)?;
    let add = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
    Some(if big_endian { field.iter().fold(0, add) } else { field.iter().rev().fold(0, add) })
}

/// The machines that are in use: `EM_` number, name, and what qemu-user calls it.
const MACHINES: [(u64, &str, &str); 9] = [
    (3, "x86", "i386"),
    (21, "powerpc64", "ppc64le"),
    (22, "s390x", "s390x"),
    (40, "arm", "arm"),
    (50, "ia64", "ia64"),
    (62, "x86_64", "x86_64"),
    (183, "aarch64", "aarch64"),
    (243, "riscv64", "riscv64"),
    (258, "loongarch64", "loongarch64"),
];

/// The name of an `EM_` number.
fn machine(number: u64) -> Option<&'static str> {
    MACHINES.iter().find(|(code, ..)| *code == number).map(|(_, name, _)| *name)
}

/// The names of the machines, and what qemu-user calls each.
pub(super) fn machines() -> impl Iterator<Item = (&'static str, &'static str)> {
    MACHINES.iter().map(|(_, name, emulated)| (*name, *emulated))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn path(file: &tempfile::NamedTempFile) -> &[u8] {
        file.path().as_os_str().as_bytes()
    }

    #[test]
    fn the_interpreter_of_a_script_is_the_first_word_of_its_first_line() {
        let script = file(b"#! /no/such/python -u\nprint()\n");
        assert_eq!(of(path(&script)).unwrap(), "/no/such/python");
        assert!(of(b"/no/such/file").is_none());
    }

    #[test]
    fn the_interpreter_of_a_dynamic_program_is_its_loader() {
        let exe = std::env::current_exe().unwrap();
        let loader = of(exe.as_os_str().as_bytes()).unwrap();
        assert!(loader.contains("ld"), "{loader}");
    }

    #[test]
    fn a_program_for_another_machine_is_named_so() {
        let mut bytes = fs::read(std::env::current_exe().unwrap()).unwrap();
        bytes.truncate(4096);
        assert_eq!(architecture(file(&bytes).path()), Some(std::env::consts::ARCH));
        bytes[18..20].copy_from_slice(&[243, 0]);
        let program = file(&bytes);
        assert_eq!(architecture(program.path()), Some("riscv64"));
        assert!(may_be_script(path(&program)).is_err() && is_binary(path(&program)));
        let script = file(format!("#! {} -x\n", program.path().display()).as_bytes());
        assert_eq!((architecture(script.path()), is_binary(path(&script))), (Some("riscv64"), false));
        let looped = file(b"");
        fs::write(looped.path(), format!("#!{}\n", looped.path().display())).unwrap();
        assert_eq!((architecture(looped.path()), architecture(Path::new("/no/such"))), (None, None));
        assert!(may_be_script(path(&file(b"echo no first line\n"))).is_ok());
        assert!(may_be_script(path(&file(b"\x00\x01\x02"))).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_after_an_elf_magic_are_looked_at_safely(bytes: Vec<u8>) {
            let elf = file(&[b"\x7fELF", bytes.as_slice()].concat());
            let _ = (of(path(&elf)), may_be_script(path(&elf)), architecture(elf.path()));
        }
    }
}
