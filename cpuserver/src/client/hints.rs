//! Paths that a command is about to walk, guessed from what this machine would do to start it.
//!
//! The caller's root is the command's, as a rule: so where the program is looked for, which interpreter and libraries
//! it has, and which links lie on the way, can be seen here before the node walks there. Called before a command is
//! sent. A guess costs little where it is wrong; what is missed is found as usual.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use elf::ElfStream;
use elf::abi::{DT_NEEDED, DT_RPATH, DT_RUNPATH, PT_INTERP};
use elf::endian::AnyEndian;

/// The most paths that are told, and bytes of them.
const MOST: usize = 256;
const BYTES: usize = 16 << 10;
/// Links on one way, and interpreters of interpreters, that are followed.
const LINKS: usize = 16;
const DEEP: usize = 4;
/// A program's headers are looked at if they are no more than so many bytes.
const LINE: usize = 256;

/// What every dynamically linked program asks for.
const ALWAYS: [&str; 3] = ["/etc/ld.so.cache", "/etc/ld.so.preload", "/usr/lib/locale/locale-archive"];
/// Where libraries are besides beside the loader.
const LIBRARIES: [&str; 5] = ["/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib"];

/// The paths, none with a link before its end, which a program called `name` is started by; `env` has its `PATH`, and
/// it starts in `cwd`.
pub fn hints(name: &[u8], env: &[Vec<u8>], cwd: &[u8]) -> Vec<Vec<u8>> {
    let mut hints = Hints { cwd: path(cwd).into(), paths: BTreeSet::new(), seen: BTreeSet::new() };
    hints.walk(Path::new("."));
    let search = env.iter().find_map(|item| item.strip_prefix(b"PATH=")).unwrap_or_default();
    hints.program(name, search, DEEP);
    let mut left = BYTES;
    let fits = |path: &Vec<u8>| {
        left = left.saturating_sub(path.len() + 1);
        left > 0
    };
    hints.paths.into_iter().map(|path| path.into_os_string().into_encoded_bytes()).take_while(fits).take(MOST).collect()
}

fn path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

struct Hints {
    cwd: PathBuf,
    paths: BTreeSet<PathBuf>,
    /// Programs and libraries that were looked at.
    seen: BTreeSet<PathBuf>,
}

impl Hints {
    /// Notes what lies on the way along `to`; gives where it leads, links followed, if anything is there.
    fn walk(&mut self, to: &Path) -> Option<PathBuf> {
        let (mut at, mut rest) = (PathBuf::from("/"), self.cwd.join(to));
        for _ in 0..LINKS {
            let mut parts = rest.components();
            let link = loop {
                match parts.next() {
                    None => {
                        self.paths.insert(at.clone());
                        return at.exists().then_some(at);
                    }
                    Some(Component::Normal(name)) => at.push(name),
                    Some(Component::ParentDir) => _ = at.pop(),
                    Some(_) => continue,
                }
                if let Ok(link) = fs::read_link(&at) {
                    break link;
                }
                if self.paths.len() >= MOST {
                    return None;
                }
            };
            self.paths.insert(at.clone());
            let left = parts.as_path().to_path_buf();
            at.pop();
            if link.is_absolute() {
                at = PathBuf::from("/");
            }
            rest = link.join(left);
        }
        None
    }

    /// A program is started, looked for in the directories of `search` if its name has no slash.
    fn program(&mut self, name: &[u8], search: &[u8], deep: usize) {
        let found = if name.contains(&b'/') {
            self.walk(path(name))
        } else {
            let dirs = search.split(|byte| *byte == b':').map(|dir| path(dir).join(path(name)));
            dirs.into_iter().find_map(|at| self.walk(&at).filter(|found| is_executable(found)))
        };
        let Some(found) = found.filter(|found| self.seen.insert(found.clone())) else { return };
        let Some(deep) = deep.checked_sub(1) else { return };
        if let Some(line) = script_line(&found) {
            let mut words = line.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
            if let Some(interpreter) = words.next() {
                self.program(interpreter, search, deep);
                if interpreter.ends_with(b"/env")
                    && let Some(name) = words.next()
                {
                    self.program(name, search, deep);
                }
            }
        } else if let Some(linked) = Linked::of(&found) {
            let loader = linked.interpreter.as_ref().and_then(|loader| self.walk(loader));
            if let Some(loader) = loader {
                ALWAYS.iter().for_each(|path| _ = self.walk(Path::new(path)));
                self.libraries(&linked, loader.parent().unwrap_or(&loader));
            }
        }
    }

    /// The libraries of what is `linked`, those of these, and so on; most are `beside` the loader.
    fn libraries(&mut self, linked: &Linked, beside: &Path) {
        let mut ahead = linked.needed.clone();
        while let Some(name) = ahead.pop() {
            let own = linked.dirs.iter().map(PathBuf::as_path);
            let dirs = own.chain([beside]).chain(LIBRARIES.iter().map(Path::new));
            let Some(at) = dirs.map(|dir| dir.join(&name)).find(|at| at.exists()) else { continue };
            // The loader's own list has it without /usr, where /lib is a link.
            if let Ok(short) = at.strip_prefix("/usr") {
                self.walk(&Path::new("/").join(short));
            }
            let Some(found) = self.walk(&at).filter(|found| self.seen.insert(found.clone())) else { continue };
            ahead.extend(Linked::of(&found).map(|linked| linked.needed).unwrap_or_default());
        }
    }
}

fn is_executable(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// What follows `#!` in the first line of a script.
fn script_line(path: &Path) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut head = Vec::new();
    File::open(path).ok()?.take(LINE as u64).read_to_end(&mut head).ok()?;
    Some(head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?.to_vec())
}

/// What a program or library is linked with.
struct Linked {
    interpreter: Option<PathBuf>,
    needed: Vec<PathBuf>,
    /// Where it has libraries of its own.
    dirs: Vec<PathBuf>,
}

impl Linked {
    /// `None` for what is no such file.
    fn of(at: &Path) -> Option<Self> {
        let mut elf = ElfStream::<AnyEndian, _>::open_stream(File::open(at).ok()?).ok()?;
        let interpreter = elf.segments().iter().find(|segment| segment.p_type == PT_INTERP).copied();
        let interpreter = interpreter.and_then(|segment| {
            let name = elf.segment_data(&segment).ok()?;
            Some(path(name.strip_suffix(b"\0").unwrap_or(name)).to_path_buf())
        });
        let table = elf.dynamic().ok()??;
        let all: Vec<(i64, usize)> = table.iter().map(|entry| (entry.d_tag, entry.d_val() as usize)).collect();
        let (_, names) = elf.dynamic_symbol_table().ok()??;
        let text = |at: usize| names.get_raw(at).ok();
        let named = |tag: i64| all.iter().filter(move |(is, _)| *is == tag).filter_map(|(_, at)| text(*at));
        let needed = named(DT_NEEDED).map(|name| path(name).to_path_buf()).collect();
        let origin = at.parent()?.as_os_str().as_bytes();
        let dirs = named(DT_RUNPATH).chain(named(DT_RPATH)).flat_map(|dirs| dirs.split(|byte| *byte == b':'));
        let dirs = dirs.map(|dir| match dir.strip_prefix(b"$ORIGIN") {
            Some(rest) => path(&[origin, rest].concat()).to_path_buf(),
            None => path(dir).to_path_buf(),
        });
        Some(Self { interpreter, needed, dirs: dirs.collect() })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn has(hints: &[Vec<u8>], path: &Path) -> bool {
        hints.iter().any(|hint| hint == path.as_os_str().as_bytes())
    }

    #[test]
    fn a_program_is_looked_for_along_its_path_and_links_are_followed() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        for dir in ["empty", "real", "work"] {
            fs::create_dir(top.join(dir)).unwrap();
        }
        symlink("real", top.join("bin")).unwrap();
        fs::copy("/bin/true", top.join("real/tool-1")).unwrap();
        symlink("tool-1", top.join("real/tool")).unwrap();
        let search = format!("PATH={}:{}:/nowhere", top.join("empty").display(), top.join("bin").display());
        let hints = hints(b"tool", &[search.into_bytes()], top.join("work").as_os_str().as_bytes());
        for name in ["empty/tool", "bin", "real/tool", "real/tool-1", "work"] {
            assert!(has(&hints, &top.join(name)), "{name}");
        }
        assert!(!has(&hints, &top.join("bin/tool")) && !has(&hints, Path::new("/nowhere/tool")));
        let loader = hints.iter().any(|hint| hint.windows(3).any(|part| part == b"ld-"));
        let library = hints.iter().any(|hint| hint.windows(7).any(|part| part == b"libc.so"));
        assert!(loader && library, "{}", hints.concat().escape_ascii());
    }

    #[test]
    fn a_script_is_started_by_its_interpreter() {
        let top = tempfile::tempdir().unwrap();
        let script = top.path().join("script");
        fs::write(&script, "#!/usr/bin/env sh\n").unwrap();
        let hints = hints(script.as_os_str().as_bytes(), &[b"PATH=/usr/bin:/bin".to_vec()], b"/");
        assert!(has(&hints, &Path::new("/usr/bin/env").canonicalize().unwrap()));
        assert!(has(&hints, &Path::new("/bin/sh").canonicalize().unwrap()));
    }

    #[test]
    fn a_circle_of_links_ends_and_so_does_what_is_no_program() {
        let top = tempfile::tempdir().unwrap();
        symlink("b", top.path().join("a")).unwrap();
        symlink("a", top.path().join("b")).unwrap();
        fs::write(top.path().join("text"), "\x7fELF is all of it").unwrap();
        for name in ["a", "text", "missing"] {
            let hints = hints(top.path().join(name).as_os_str().as_bytes(), &[], b"/");
            assert!(!hints.is_empty() && hints.len() < 10, "{name}: {}", hints.len());
        }
    }
}
