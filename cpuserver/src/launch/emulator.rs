//! qemu-user: programs for other architectures than this machine's.
//!
//! Where the kernel itself knows nothing of them (binfmt_misc), init holds on to the directories that the emulators of
//! this machine are in, and the program's process runs the one that its program needs, whatever the job's root has.
//! Invariant: nothing but an emulator that needs nothing of the root is taken from there.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use super::interpreter;

/// Where distributions have them.
const DIRECTORIES: [&str; 2] = ["/usr/local/bin", "/usr/bin"];

/// The directories that emulators may be in.
pub(super) struct Emulators(Vec<OwnedFd>);

impl Emulators {
    /// To be called while this machine's root is in sight.
    pub(super) fn of_this_machine() -> Self {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Self(DIRECTORIES.iter().filter_map(|dir| openat(CWD, *dir, flags, Mode::empty()).ok()).collect())
    }

    /// The emulator of programs for `architecture`.
    pub(super) fn of(&self, architecture: &str) -> Option<OwnedFd> {
        let (_, name) = interpreter::machines().find(|(known, _)| *known == architecture)?;
        // The first is what Debian has, or had; without an interpreter of its own it runs in any root.
        let names = [format!("qemu-{name}-static"), format!("qemu-{name}")];
        let open = |dir: &OwnedFd| {
            names.iter().find_map(|name| {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                let file = openat2(dir, name.as_str(), flags, Mode::empty(), ResolveFlags::BENEATH).ok()?;
                needs_nothing(&file).then_some(file)
            })
        };
        self.0.iter().find_map(open)
    }
}

fn needs_nothing(file: &OwnedFd) -> bool {
    // The descriptor's own name may be looked up nowhere but here.
    let Ok(copy) = file.try_clone() else { return false };
    interpreter::of_file(&File::from(copy)).is_none()
}

/// The architectures whose programs run on this machine: its own first, then those that it has an emulator for.
pub fn architectures() -> Vec<&'static str> {
    let own = std::env::consts::ARCH;
    let emulators = Emulators::of_this_machine();
    let others = interpreter::machines().map(|(name, _)| name);
    std::iter::once(own).chain(others.filter(|name| *name != own && emulators.of(name).is_some())).collect()
}

/// What the emulator is to be called with to run the program at `path` with `argv`.
pub(super) fn arguments(path: &[u8], argv: &[CString]) -> Option<Vec<CString>> {
    let path = CString::new(path).ok()?;
    let (zero, rest) = argv.split_first()?;
    let first = [c"qemu".to_owned(), c"-0".to_owned(), zero.clone(), path];
    Some(first.into_iter().chain(rest.iter().cloned()).collect())
}

/// Runs the program at `path` by the emulator that it needs. Returns only if there is none, or why it cannot be run.
pub(super) fn run(emulators: &Emulators, path: &[u8], argv: &[CString], env: &[CString]) -> Option<std::io::Error> {
    let architecture = interpreter::architecture(Path::new(OsStr::from_bytes(path)))?;
    let emulator = emulators.of(architecture).filter(|_| interpreter::is_binary(path))?;
    let argv = arguments(path, argv)?;
    Some(super::sys::execute_fd(emulator.as_fd().as_raw_fd(), &argv, env))
}
