//! What is to be run: the contents of `args`, `env`, `cwd`, `ns`, `nodes` and `limits`, and what ctl commands add.
//!
//! Read and written by the session's files, taken whole by the job's task at `exec`. Every part was checked when it
//! was written, so that the error reaches the writer.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use p9::Errno;
use p9::dial::Address;

use super::Limits;
use crate::ctl::Ctl;
use crate::words;

/// The most places where connections are taken, and files that the command finds; and the bytes of all those.
const FOUND: usize = 64;
const FILE_BYTES: usize = 64 << 10;

/// What is to be run.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// The command and its arguments.
    pub(crate) args: Vec<Vec<u8>>,
    /// `NAME=VALUE` each.
    pub(crate) env: Vec<Vec<u8>>,
    /// Where connections are taken for the caller.
    pub(crate) listen: Vec<Address>,
    /// Small files that it finds, and what is in each.
    pub(crate) files: Vec<(PathBuf, Vec<u8>)>,
    /// Where it starts; empty means `/`.
    pub(crate) cwd: Vec<u8>,
    /// The namespace file; empty means this node's own root.
    pub(crate) ns: String,
    /// The nodes that the caller knows, for that file: lines of known_nodes.
    pub(crate) nodes: String,
    pub(crate) limits: Limits,
    pub(crate) umask: u32,
    /// Who it sees itself as: uid, gid; by default who this node runs as.
    pub(crate) user: Option<(u32, u32)>,
    pub(crate) nice: i32,
    /// Whether it gets a terminal.
    pub(crate) pty: bool,
    /// Rows and columns of the terminal.
    pub(crate) winsize: Option<(u16, u16)>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            args: Vec::new(),
            env: Vec::new(),
            listen: Vec::new(),
            files: Vec::new(),
            cwd: Vec::new(),
            ns: String::new(),
            nodes: String::new(),
            limits: Limits::default(),
            umask: 0o22,
            user: None,
            nice: 0,
            pty: false,
            winsize: None,
        }
    }
}

impl Spec {
    /// Changes what the ctl command `part` says. Errors: `EINVAL` for what is wrong, and for what is no part of this.
    pub(crate) fn apply(&mut self, part: Ctl) -> Result<(), Errno> {
        match part {
            Ctl::Args(args) => self.args = args,
            Ctl::Env(env) => self.set_variables(env)?,
            Ctl::Cwd(cwd) => self.set_cwd(&cwd)?,
            Ctl::Ns(text) => self.set_ns(&text)?,
            Ctl::Nodes(text) => self.set_nodes(&text)?,
            Ctl::User(uid, gid) => self.user = Some((uid, gid)),
            Ctl::Limits(text) => self.set_limits(&text)?,
            Ctl::Listen(addresses) => self.set_listen(&addresses)?,
            Ctl::Give(path, text) => self.give(&path, text)?,
            Ctl::Umask(umask) => self.umask = umask,
            Ctl::Nice(nice) => self.nice = nice,
            Ctl::Pty => self.pty = true,
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    /// Sets the command, as the file `args` has it: see [`list`].
    pub(crate) fn set_args(&mut self, text: &[u8]) -> Result<(), Errno> {
        self.args = list(text)?;
        Ok(())
    }

    /// Sets the environment, as the file `env` has it.
    pub(crate) fn set_env(&mut self, text: &[u8]) -> Result<(), Errno> {
        self.set_variables(list(text)?)
    }

    /// Sets the environment. Errors: `EINVAL` for what is not `NAME=VALUE`.
    fn set_variables(&mut self, env: Vec<Vec<u8>>) -> Result<(), Errno> {
        if env.iter().any(|variable| !variable.contains(&b'=')) {
            return Err(Errno::EINVAL);
        }
        self.env = env;
        Ok(())
    }

    /// Sets the namespace file. Errors: `EINVAL` if it does not parse.
    pub(crate) fn set_ns(&mut self, text: &[u8]) -> Result<(), Errno> {
        let text = std::str::from_utf8(text).map_err(|_| Errno::EINVAL)?;
        // What a variable stands for is known at exec.
        ns::text::parse(text, ns::text::PEER_LINES, &|_| Some("/".into())).map_err(|_| Errno::EINVAL)?;
        self.ns = text.to_owned();
        Ok(())
    }

    /// Sets the nodes that the caller knows. Errors: `EINVAL` for no text.
    pub(crate) fn set_nodes(&mut self, text: &[u8]) -> Result<(), Errno> {
        self.nodes = std::str::from_utf8(text).map_err(|_| Errno::EINVAL)?.to_owned();
        Ok(())
    }

    /// Sets where connections are taken. Errors: `EINVAL` for what is no `tcp!HOST!PORT` and no `unix!PATH`, that path
    /// being absolute; `E2BIG` for more than there may be.
    pub(crate) fn set_listen(&mut self, addresses: &[Vec<u8>]) -> Result<(), Errno> {
        if addresses.len() > FOUND {
            return Err(Errno::E2BIG);
        }
        self.listen = addresses.iter().map(|text| listened(text)).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// The same, as the file `listen` has it: one a line.
    pub(crate) fn set_listen_text(&mut self, text: &[u8]) -> Result<(), Errno> {
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        self.set_listen(&lines.map(<[u8]>::to_vec).collect::<Vec<_>>())
    }

    /// One more file that the command finds. Errors: `EINVAL` for a path that is not absolute and plain, `E2BIG` for
    /// more than there may be.
    fn give(&mut self, path: &[u8], text: Vec<u8>) -> Result<(), Errno> {
        let bytes: usize = self.files.iter().map(|(_, text)| text.len()).sum();
        if self.files.len() == FOUND || bytes + text.len() > FILE_BYTES {
            return Err(Errno::E2BIG);
        }
        self.files.push((plain(Path::new(OsStr::from_bytes(path)))?, text));
        Ok(())
    }

    /// Sets the directory to start in, as the file `cwd` has it: one newline at its end does not count.
    pub(crate) fn set_cwd(&mut self, text: &[u8]) -> Result<(), Errno> {
        let path = text.strip_suffix(b"\n").unwrap_or(text);
        if path.contains(&0) || !(path.is_empty() || path.starts_with(b"/")) {
            return Err(Errno::EINVAL);
        }
        self.cwd = path.to_vec();
        Ok(())
    }

    /// Sets the limits, as the file `limits` has them.
    pub(crate) fn set_limits(&mut self, text: &[u8]) -> Result<(), Errno> {
        self.limits = Limits::parse(text)?;
        Ok(())
    }
}

/// Where a command, or who reads `accept`, says to listen.
pub(crate) fn listened(text: &[u8]) -> Result<Address, Errno> {
    let text = std::str::from_utf8(text.trim_ascii()).map_err(|_| Errno::EINVAL)?;
    match text.parse().map_err(|_| Errno::EINVAL)? {
        Address::Unix(path) => plain(&path).map(Address::Unix),
        Address::Tcp(at) => Ok(Address::Tcp(at)),
        Address::Tls(_) => Err(Errno::EINVAL),
    }
}

/// `path`, if it is absolute and says the way without going back.
fn plain(path: &Path) -> Result<PathBuf, Errno> {
    let straight = path.components().all(|part| part != std::path::Component::ParentDir);
    let is_plain = path.is_absolute() && straight && path.file_name().is_some();
    if is_plain && !path.as_os_str().as_bytes().contains(&0) {
        Ok(path.components().collect())
    } else {
        Err(Errno::EINVAL)
    }
}

/// A list as the files `args` and `env` take it: each item ended by NUL; or, for those who use echo, one line of
/// words (see [`words`]). A text with neither NUL nor newline is one item. Errors: `EINVAL`.
fn list(text: &[u8]) -> Result<Vec<Vec<u8>>, Errno> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    if !text.contains(&0) && text.ends_with(b"\n") {
        return Ok(words::lines(text).ok_or(Errno::EINVAL)?.concat());
    }
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    Ok(text.split(|&byte| byte == 0).map(<[u8]>::to_vec).collect())
}

/// The list as [`list`] reads it.
pub(crate) fn list_text(list: &[Vec<u8>]) -> Bytes {
    list.iter().flat_map(|item| item.iter().copied().chain([0])).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_is_nul_separated_or_a_line_of_words() {
        let words = |items: &[&str]| items.iter().map(|item| item.as_bytes().to_vec()).collect::<Vec<_>>();
        assert_eq!(list(b"").unwrap(), words(&[]));
        assert_eq!(list(b"uname -n\n").unwrap(), words(&["uname", "-n"]));
        assert_eq!(list(b"sh -c 'exit 7'\n").unwrap(), words(&["sh", "-c", "exit 7"]));
        assert_eq!(list(b"one item").unwrap(), words(&["one item"]));
        assert_eq!(list(b"sh\0-c\0exit 7\n").unwrap(), words(&["sh", "-c", "exit 7\n"]));
        assert_eq!(list(b"sh\0\0").unwrap(), words(&["sh", ""]));
        assert_eq!(list(b"sh -c 'exit\n"), Err(Errno::EINVAL));
    }

    #[test]
    fn a_directory_to_start_in_is_absolute() {
        let mut spec = Spec::default();
        spec.set_cwd(b"/home/u\n").unwrap();
        assert_eq!(spec.cwd, b"/home/u");
        assert_eq!(spec.set_cwd(b"home"), Err(Errno::EINVAL));
    }

    #[test]
    fn where_to_listen_is_a_port_or_an_absolute_path_and_bounded() {
        let mut spec = Spec::default();
        spec.set_listen_text(b"tcp!127.0.0.1!0\nunix!/run//s\n").unwrap();
        assert_eq!(spec.listen.iter().map(Address::to_string).collect::<Vec<_>>(), ["tcp!127.0.0.1!0", "unix!/run/s"]);
        for bad in ["unix!s", "unix!/a/../b", "unix!/", "tls!h!1", "127.0.0.1:1", "tcp!h", "unix!/a\0b"] {
            assert_eq!(spec.set_listen(&[bad.as_bytes().to_vec()]), Err(Errno::EINVAL), "{bad}");
        }
        assert_eq!(spec.set_listen(&vec![b"unix!/a".to_vec(); FOUND + 1]), Err(Errno::E2BIG));
        assert_eq!(spec.give(b"f", Vec::new()), Err(Errno::EINVAL));
        assert_eq!(spec.give(b"/run/f", vec![0; FILE_BYTES + 1]), Err(Errno::E2BIG));
        spec.give(b"/run/f", vec![0; FILE_BYTES]).unwrap();
        assert_eq!(spec.give(b"/run/g", vec![0]), Err(Errno::E2BIG));
    }

    proptest! {
        #[test]
        fn what_a_list_prints_reads_back(items in prop::collection::vec(prop::collection::vec(1..=255u8, 0..9), 0..5)) {
            prop_assert_eq!(list(&list_text(&items)).unwrap(), items);
        }
    }
}
