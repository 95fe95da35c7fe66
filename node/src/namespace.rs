//! Namespace files: which is read when none is named, and what their variables stand for.
//!
//! Read by `slashn mount`, `slashn run` and `rcpu`, to all of which they mean the same: what a command sees, from `/`
//! on, where the user's own machine is; the grid is at `/n`, and `slashn mount` shows that part.
//! `/etc/slashn/namespace`, or what is shipped where there is none, is followed by the home's `namespace`, which may
//! add to it or begin anew with `clear`. A file that is named comes instead of both, after the grid; one that says
//! itself what is at `/` is the whole.

use std::io::Read;
use std::path::{Component, Path, PathBuf};

use fileserver::caller::Trust;
use ns::text::{self, Flags, Line, MAX_BYTES, OWN_LINES};

use crate::config::TreePath;
use crate::dial::Dialer;
use crate::error::{At, Error, Result};
use crate::known::Node;
use crate::{Context, servers};

/// What is read where there is no `/etc/slashn/namespace`.
const SHIPPED: &str = include_str!("../namespace");
const OF_ALL: &str = "/etc/slashn/namespace";
const STEP: &str = "read the namespace";

/// Where the grid is: what `$n` stands for.
pub const N: &str = "/n";

/// The line that puts this machine's own root at `/`.
pub fn here() -> Line {
    let flags = Flags { create: true, ..Flags::default() };
    Line::Mount { flags, server: "local!/".into(), old: "/".into(), spec: String::new() }
}

fn grid() -> Line {
    Line::Mount { flags: Flags::default(), server: "#grid".into(), old: N.into(), spec: String::new() }
}

/// Lines, and where each is written: `FILE:LINE`.
#[derive(Clone)]
pub struct Written {
    /// The lines.
    pub lines: Vec<Line>,
    origins: Vec<String>,
}

impl Written {
    /// What a user is told who wrote what could not be done.
    pub fn refused(&self, step: &str, failed: &ns::Failed) -> Error {
        let origin = self.origins.get(failed.index).map_or("the namespace", String::as_str);
        refused(step, origin, &failed.error)
    }

    /// The same, and at `at` what a mount shows there whose namespace is `text`.
    pub fn with_mount(mut self, context: &Context, at: &Path, text: &str) -> Result<Self> {
        let name = format!("the namespace of {}", at.display());
        let (lines, origins) = parsed(context, &name, text.as_bytes())?;
        let there = |path: &str| {
            let rest = Path::new(path).strip_prefix(N).ok()?;
            let all = if rest.as_os_str().is_empty() { at.to_path_buf() } else { at.join(rest) };
            all.into_os_string().into_string().ok()
        };
        for (line, origin) in lines.into_iter().zip(origins) {
            let Some(old) = there(line.old()) else { continue };
            let moved = match line {
                Line::Mount { flags, server, spec, .. } => Line::Mount { flags, server, old, spec },
                Line::Bind { flags, new, .. } => Line::Bind { flags, new: there(&new).unwrap_or(new), old },
                _ => continue,
            };
            self.lines.push(moved);
            self.origins.push(origin);
        }
        Ok(self)
    }

    /// Checks that `dialer` knows the nodes that must be there. Errors: it does not; what a user is told.
    pub fn check_nodes(&self, step: &str, dialer: &Dialer) -> Result<()> {
        for (index, line) in self.lines.iter().enumerate() {
            if line.flags().quiet {
                continue;
            }
            let server = match line {
                Line::Mount { server, .. } => Some(server.clone()),
                Line::Bind { new, .. } => self.in_grid(index, new),
                _ => None,
            };
            let is_unknown = |server: &String| {
                servers::node_of(server).is_some_and(|name| name != "caller" && dialer.find(&name).is_err())
            };
            if let Some(server) = server.filter(is_unknown) {
                let why = servers::UNKNOWN.to_string();
                let error = ns::Error::Dial { server, errno: p9::Errno::ENOENT, why };
                return Err(self.refused(step, &ns::Failed { index, line: line.clone(), error }));
            }
        }
        Ok(())
    }

    /// The node of the grid in which `new` is, which line `index` binds, if nothing but the grid can be there.
    fn in_grid(&self, index: usize, new: &str) -> Option<String> {
        let name = Path::new(new).strip_prefix(N).ok()?.components().next()?.as_os_str().to_str()?;
        let (before, at) = (&self.lines[..index], Path::new(N).join(name));
        let is_grid = |line: &Line| matches!(line, Line::Mount { server, old, spec, .. } if server == "#grid" && old == N && spec.is_empty());
        // Where paths are seen from elsewhere, or something else is put there, it is for the namespace to say.
        let is_plain = |line: &Line| match line {
            Line::Mount { old, .. } | Line::Bind { old, .. } => {
                let old = Path::new(old);
                is_grid(line) || line == &here() || old.is_absolute() && !old.starts_with(&at) && old != Path::new(N)
            }
            _ => false,
        };
        (before.iter().any(is_grid) && before.iter().all(is_plain)).then(|| name.to_string())
    }

    /// `reason`, which a node gives for not making this namespace, with the place of the line that it names.
    pub fn placed(&self, reason: &str) -> Option<String> {
        let mut all = self.lines.iter().zip(&self.origins);
        all.find_map(|(line, origin)| {
            let rest = reason.strip_prefix(&format!("namespace: {line}: "))?;
            Some(format!("{origin}: {rest}"))
        })
    }

    /// The same with the lines of the files that it includes, as far as those are this machine's, in their places: what
    /// they name is named by the namespace. Errors: such a file is none.
    pub fn with_included(self, context: &Context) -> Result<Self> {
        let whole = Self { lines: Vec::new(), origins: Vec::new() };
        if self.lines.first() != Some(&here()) {
            return Ok(self);
        }
        let mut including = Including { context, cwd: "/".into(), covered: Vec::new(), whole };
        including.add(self, 0)?;
        Ok(including.whole)
    }
}

/// A namespace on its way to what [`Written::with_included`] gives.
struct Including<'a> {
    context: &'a Context,
    cwd: String,
    /// Where something was put over this machine's root.
    covered: Vec<PathBuf>,
    whole: Written,
}

impl Including<'_> {
    fn add(&mut self, written: Written, depth: usize) -> Result<()> {
        for (line, origin) in written.lines.into_iter().zip(written.origins) {
            match &line {
                Line::Cd { dir } => self.cwd = ns::clean(&self.cwd, dir),
                Line::Mount { old, .. } | Line::Bind { old, .. } if line != here() => {
                    self.covered.push(ns::clean(&self.cwd, old).into());
                }
                Line::Include { path, quiet } => {
                    let path = PathBuf::from(ns::clean(&self.cwd, path));
                    let mine = !self.covered.iter().any(|covered| path.starts_with(covered));
                    if mine && depth == ns::MAX_INCLUDED {
                        let error = ns::Error::Depth(path.display().to_string());
                        return Err(Error::new(STEP, origin, error).remedy(format!("cat {}", path.display())));
                    }
                    if mine {
                        match read(&path)? {
                            Some(text) => {
                                let (lines, origins) = parsed(self.context, &path.display(), &text)?;
                                self.add(Written { lines, origins }, depth + 1)?;
                            }
                            None if *quiet => {}
                            None => {
                                let (path, errno) = (path.display().to_string(), p9::Errno::ENOENT);
                                return Err(refused(STEP, origin, &ns::Error::Path { path, errno }));
                            }
                        }
                        continue;
                    }
                }
                _ => {}
            }
            if self.whole.lines.len() == OWN_LINES {
                return Err(Error::new(STEP, origin, ns::Error::Full(OWN_LINES)));
            }
            self.whole.lines.push(line);
            self.whole.origins.push(origin);
        }
        Ok(())
    }
}

/// The namespace that `file` says, or else those that are read when none is named.
pub fn lines(context: &Context, file: Option<&Path>) -> Result<Written> {
    let (mut lines, mut origins) = read_lines(context, file)?;
    // What is there without any file stays.
    let cleared = lines.iter().rposition(|line| *line == Line::Clear);
    if let Some(last) = cleared {
        lines.drain(..=last);
        origins.drain(..=last);
    }
    let is_whole = |line: &Line| {
        let puts = matches!(line, Line::Mount { old, .. } | Line::Bind { old, .. } if old == "/");
        puts && !line.flags().union()
    };
    if !lines.iter().any(is_whole) {
        let grid = (file.is_some() && cleared.is_none()).then(grid);
        let base: Vec<Line> = std::iter::once(here()).chain(grid).collect();
        origins.splice(0..0, base.iter().map(|_| "the namespace".to_string()));
        lines.splice(0..0, base);
    }
    Ok(Written { lines, origins })
}

/// The namespace of a command elsewhere that is run from within a `slashn run` whose own is `text`: what that has in the
/// grid, and from elsewhere; the rest is seen from there in the files themselves, unions with what is there, too.
pub fn from_within(context: &Context, text: &str) -> Result<Written> {
    let (lines, origins) = parsed(context, &"the namespace of slashn run", text.as_bytes())?;
    let mut whole = Written { lines: vec![here()], origins: vec!["the namespace".to_string()] };
    let mut carried = vec![PathBuf::from(N)];
    for (line, origin) in lines.into_iter().zip(origins) {
        let is_carried = |path: &str| carried.iter().any(|at| Path::new(path).starts_with(at));
        let old = PathBuf::from(line.old());
        let comes = match &line {
            Line::Mount { server, .. } => !server.starts_with("local!") && old != Path::new("/"),
            Line::Bind { new, .. } => is_carried(new),
            _ => false,
        };
        if is_carried(line.old()) || comes && !line.flags().union() {
            carried.push(old);
            whole.lines.push(line);
            whole.origins.push(origin);
        }
    }
    Ok(whole)
}

/// The namespace of a mount that shows `tree` and nothing else.
pub fn only(tree: &TreePath) -> Written {
    let TreePath { node, spec } = tree;
    let flags = Flags { create: true, ..Flags::default() };
    let mount = Line::Mount { flags, server: node.to_string(), old: N.into(), spec: spec.clone() };
    Written { lines: vec![here(), mount], origins: vec![tree.to_string(); 2] }
}

fn read_lines(context: &Context, file: Option<&Path>) -> Result<(Vec<Line>, Vec<String>)> {
    let parsed = |name: &dyn std::fmt::Display, text: &[u8]| parsed(context, name, text);
    if let Some(file) = file {
        let missing = || Error::new(STEP, file.display(), p9::Errno::ENOENT).remedy("slashn ns DIR >FILE");
        let text = read(file)?.ok_or_else(missing)?;
        return parsed(&file.display(), &text);
    }
    let of_home = context.home.join("namespace");
    let of_all = PathBuf::from(OF_ALL);
    let (mut lines, mut origins) = match read(&of_all)? {
        Some(text) => parsed(&OF_ALL, &text)?,
        None => parsed(&"what is shipped", SHIPPED.as_bytes())?,
    };
    if of_home != of_all
        && let Some(text) = read(&of_home)?
    {
        let (more, places) = parsed(&of_home.display(), &text)?;
        lines.extend(more);
        origins.extend(places);
    }
    Ok((lines, origins))
}

/// The lines of the file `name`, which says `text`, and where each is.
fn parsed(context: &Context, name: &dyn std::fmt::Display, text: &[u8]) -> Result<(Vec<Line>, Vec<String>)> {
    let variable = |name: &str| variable(context, name);
    let lines = text::checked(text).and_then(|text| text::parse_numbered(text, OWN_LINES, &variable));
    let placed = |lines: Vec<(usize, Line)>| -> (Vec<Line>, Vec<String>) {
        lines.into_iter().map(|(number, line)| (line, format!("{name}:{number}"))).unzip()
    };
    lines.map(placed).map_err(|err| Error::new(STEP, name, &err).remedy(format!("sed -n {}p {name}", err.line)))
}

/// The namespace of a command that another node runs, and what goes with its text.
pub struct Carried {
    /// The lines, which mean the same wherever they are read.
    pub text: String,
    /// The nodes that they name, for who has to dial them: lines as in known_nodes.
    pub nodes: String,
    /// The servers that they name, each with what is attached to there.
    pub servers: Vec<(String, String)>,
    /// Whether the command has a /run of its own.
    pub run: bool,
}

/// The namespace of a command on `node`: that which is `written`, where this machine's root is what every command has
/// there; or, where `mine` are given, the node's own root with these directories of mine in it.
pub fn carried(dialer: &Dialer, written: Written, node: &Node, mine: Option<&[&str]>) -> Result<Carried> {
    let mut all = written.lines;
    if all.first() == Some(&here()) {
        let base = match mine {
            Some(mine) => cpuserver::client::node_root_ns(node.name.as_str(), mine),
            None => cpuserver::client::default_ns(node.name.as_str()),
        };
        let base = text::parse(&base, OWN_LINES, &|_| None).at(STEP, "what every command has")?;
        all.splice(0..1, base);
    }
    // The caller's own tree, and the node's, are nobody else's.
    let is_lent = |server: &str| server == "#grid" || !(server.starts_with('#') || server == "caller");
    let servers = all.iter().filter_map(Line::server).filter(|(server, _)| is_lent(server));
    // An export that is bound out of the grid is named, too.
    let is_grid = |line: &Line| matches!(line, Line::Mount { server, old, .. } if server == "#grid" && old == N);
    let bound = all.iter().filter(|_| all.iter().any(is_grid)).filter_map(|line| match line {
        Line::Bind { new, .. } => export_at(Path::new(new))?.ok(),
        _ => None,
    });
    let servers: Vec<(String, String)> =
        servers.chain(bound.map(|(node, export)| (node, format!("fs/{export}")))).collect();
    let grid = servers.iter().any(|(server, _)| server == "#grid");
    let named: Vec<String> = servers.iter().filter_map(|(server, _)| servers::node_of(server)).collect();
    let is_named = |known: &&Node| {
        grid || named.iter().any(|name| known.name.as_str() == name || known.address.to_string() == *name)
    };
    let known = dialer.nodes()?;
    // How far I trust one is nobody else's business.
    let told = |known: &Node| format!("{}\n", Node { trust: Trust::Cwd, ..known.clone() });
    let nodes = known.iter().filter(is_named).map(told).collect();
    let text = all.iter().map(|line| format!("{line}\n")).collect();
    let run = |line: &Line| matches!(line, Line::Mount { server, old, .. } if server == "#run" && old == "/run");
    let run = all.iter().any(run);
    Ok(Carried { text, nodes, servers, run })
}

/// What is said of a path in the grid where an export is wanted.
pub const NO_EXPORT: &str = "of another node that is an export, /n/NODE/fs/EXPORT";

/// The node and the export that `path` leads to, if it is in the grid. Errors: it is in none.
pub fn export_at(path: &Path) -> Option<std::result::Result<(String, String), &'static str>> {
    let text = |part: Component<'_>| part.as_os_str().to_str().map(str::to_owned);
    let parts: Option<Vec<String>> = path.strip_prefix(N).ok()?.components().map(text).collect();
    Some(match parts.as_deref() {
        Some([node, fs, export, ..]) if fs == "fs" => Ok((node.clone(), export.clone())),
        _ => Err(NO_EXPORT),
    })
}

/// The file at `path`, or a little more of it than may be; `None` if there is none.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let unread =
        |err: std::io::Error| Error::new(STEP, path.display(), err).remedy(format!("ls -ld {}", path.display()));
    // A pipe is waited for, as by any program.
    let file = match std::fs::File::open(path) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        open => open.map_err(unread)?,
    };
    let mut text = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut text).map_err(unread)?;
    Ok(Some(text))
}

/// What a user is told of a namespace that could not be made.
pub fn refused(step: &str, thing: impl std::fmt::Display, err: &ns::Error) -> Error {
    Error::new(step, thing, err).remedy(err.remedy())
}

/// What `$name` stands for: what it does in the environment, or what Plan 9 calls it.
pub fn variable(context: &Context, name: &str) -> Option<String> {
    let of = |name: &str| context.environment.var(name).map(|value| value.to_string_lossy().into_owned());
    if name == "n" {
        return Some(N.into());
    }
    of(name).or_else(|| match name {
        "home" => context.user_home().map(|home| home.to_string_lossy().into_owned()),
        "user" => of("USER").or_else(|| of("LOGNAME")),
        "sysname" => host_name(),
        _ => None,
    })
}

/// What this machine is called, or who is in a command on a node: the node.
pub fn host_name() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/hostname").ok().map(|name| name.trim().to_string())
}
