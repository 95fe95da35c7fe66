//! What of a node is tied to its drivers: devices, libraries that must be as old as the kernel's modules, and their
//! tools.
//!
//! A command whose root is its caller's has them of the node, as containers have that are started for a GPU: devices in
//! its /dev, the rest in its own /run, which its loader's path and its `PATH` lead to first. Looked for once a node.
//! Which files these are is what NVIDIA's container toolkit takes, and what whoever runs the node names (`drivers` in
//! grid.toml).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::launch::{JobMount, JobSpec};

/// Where libraries of drivers are; the first is Debian's.
const DIRECTORIES: [&str; 4] = ["/usr/lib64", "/usr/lib", "/usr/lib/wsl/lib", "/run/opengl-driver/lib"];
const LIBRARIES: [&str; 9] = [
    "libcuda.so*",
    "libcudadebugger.so*",
    "libnvcuvid.so*",
    "libnvidia-*.so*",
    "libnvoptix.so*",
    "libvdpau_nvidia.so*",
    "libGLX_nvidia.so*",
    "libEGL_nvidia.so*",
    "libGLES*_nvidia.so*",
];
const TOOLS: [&str; 2] = ["/usr/bin/nvidia-smi", "/usr/bin/nvidia-debugdump"];
const DEVICES: [&str; 3] = ["/dev/nvidia*", "/dev/dri", "/dev/kfd"];
/// Where a command has them, in its own /run.
const HERE: &str = "/run/slashn/drivers";
/// More than any driver has.
const MOST: usize = 512;

/// Those of this node.
#[derive(Debug, Default)]
pub(crate) struct Drivers {
    libraries: Vec<PathBuf>,
    tools: Vec<PathBuf>,
    devices: Vec<PathBuf>,
}

impl Drivers {
    /// Those of this machine, and the libraries that `named` (paths, with `*` in their last part) are. It does blocking
    /// I/O.
    pub(crate) fn of_this_machine(named: &[PathBuf]) -> Self {
        let debian = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        let directories = DIRECTORIES.iter().copied().chain([debian.as_str()]);
        let usual = directories.flat_map(|dir| LIBRARIES.iter().map(move |name| Path::new(dir).join(name)));
        let all = |patterns: &[&str]| patterns.iter().flat_map(|pattern| found(Path::new(pattern))).collect();
        Self {
            libraries: usual.chain(named.iter().cloned()).flat_map(|pattern| found(&pattern)).take(MOST).collect(),
            tools: all(&TOOLS),
            devices: all(&DEVICES),
        }
    }

    /// Puts them into `spec`: the devices where it has a /dev of its own, the rest where it has a /run, too, and its
    /// root `is_callers`.
    pub(crate) fn lend(&self, spec: &mut JobSpec, is_callers: bool) {
        let has = |at: &str| spec.mounts.iter().any(|mount| mount.at() == Path::new(at));
        let (dev, run) = (has("/dev"), has("/run"));
        let mut bind = |from: &Path, at: PathBuf, read_only| {
            spec.mounts.push(JobMount::Bind { from: from.to_owned(), at, read_only });
        };
        if dev {
            self.devices.iter().for_each(|device| bind(device, device.clone(), false));
        }
        if !(run && is_callers) {
            return;
        }
        for (files, below) in [(&self.libraries, ""), (&self.tools, "bin")] {
            let named = files.iter().filter_map(|file| Some((file, file.file_name()?)));
            named.for_each(|(file, name)| bind(file, Path::new(HERE).join(below).join(name), true));
        }
        if !self.libraries.is_empty() {
            before(&mut spec.env, b"LD_LIBRARY_PATH=", HERE);
        }
        if !self.tools.is_empty() {
            before(&mut spec.env, b"PATH=", &format!("{HERE}/bin"));
        }
    }
}

/// The files that `pattern` is, which may have `*` in its last part.
fn found(pattern: &Path) -> Vec<PathBuf> {
    let (Some(directory), Some(name)) = (pattern.parent(), pattern.file_name()) else { return Vec::new() };
    if !name.as_bytes().contains(&b'*') {
        return Some(pattern.to_owned()).filter(|path| path.exists()).into_iter().collect();
    }
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> =
        entries.filter(|entry| is_like(&entry.file_name(), name)).map(|entry| entry.path()).collect();
    all.sort();
    all
}

/// Whether `name` is `pattern`, in which each `*` is any bytes.
fn is_like(name: &OsStr, pattern: &OsStr) -> bool {
    fn like(name: &[u8], pattern: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|at| like(&name[at..], rest)),
            Some((byte, rest)) => name.split_first().is_some_and(|(first, after)| first == byte && like(after, rest)),
        }
    }
    like(name.as_bytes(), pattern.as_bytes())
}

/// Puts `directory` before the others that the variable `begin` (with its `=`) has in `env`.
fn before(env: &mut Vec<Vec<u8>>, begin: &[u8], directory: &str) {
    let had = env.iter().position(|item| item.starts_with(begin)).map(|at| env.swap_remove(at));
    let rest = had.map(|item| item[begin.len()..].to_vec()).filter(|rest| !rest.is_empty());
    let rest = rest.map(|rest| [b":", &rest[..]].concat()).unwrap_or_default();
    env.push([begin, directory.as_bytes(), &rest].concat());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_and_devices_of_a_driver_are_the_commands() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["libmine-1.so", "libmine-2.so.3", "libother.so"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let drivers = Drivers { libraries: found(&dir.path().join("libmine-*.so*")), ..Drivers::default() };
        let run = JobMount::Tmpfs { at: "/run".into(), size_mb: 1, mode: 0o755 };
        let mut spec = JobSpec { mounts: vec![run], env: vec![b"LD_LIBRARY_PATH=/a".to_vec()], ..JobSpec::default() };
        drivers.lend(&mut spec, false);
        assert_eq!(spec.mounts.len(), 1);
        drivers.lend(&mut spec, true);
        let at: Vec<_> = spec.mounts.iter().skip(1).map(|mount| mount.at().display().to_string()).collect();
        assert_eq!(at, ["/run/slashn/drivers/libmine-1.so", "/run/slashn/drivers/libmine-2.so.3"]);
        assert_eq!(spec.env, [b"LD_LIBRARY_PATH=/run/slashn/drivers:/a"]);
        assert!(found(Path::new("/no/such/dir/*")).is_empty() && found(Path::new("/no/such")).is_empty());
    }
}
