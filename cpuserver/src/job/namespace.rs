//! The namespace that a job's root shows, from the session's namespace file.
//!
//! The file names trees by server: `caller` is what the caller serves; `#...` are this node's; what else it names is
//! another's ([`crate::travel`]). Those that only the kernel can mount (`#proc`, `#sys`, `#dev`, `#run`) become empty
//! directories here, and mounts over them inside the job; `#host/PATH` binds a file or directory of the node over the
//! caller's, where both have it. Called by the job's task; nothing here runs or opens what the text names besides those
//! trees.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ns::Namespace;
use ns::text::{Line, PEER_LINES};
use p9::client::Client;
use p9::dial::Address;
use p9::{Errno, NodeRef, Reply, Tree, Who, synth};

use super::tmp::Tmp;
use crate::Cpu;
use crate::launch::JobMount;
use crate::owned::Owners;
use crate::session::{Failure, Session, Spec};
use crate::travel::{Trees, is_abroad};

/// The namespace of a session whose `ns` is empty: this node's own root.
const NODE: &str = "mount '#root' /\nmount '#proc' /proc\nmount '#sys' /sys\nmount '#dev' /dev\nmount '#run' /run\n";

/// What a job's root is made of.
pub(crate) struct Root {
    /// The namespace's root.
    pub(crate) node: NodeRef,
    /// What is mounted over it inside the job, in this order.
    pub(crate) mounts: Vec<JobMount>,
    /// Whether what is at `/` is the caller's.
    pub(crate) is_callers: bool,
    /// The private /tmp, if the namespace has one: it goes when the job is over.
    pub(crate) tmp: Option<Tmp>,
}

/// The namespace that `session` asks for, with its variables replaced, and before each line that another server is
/// named in how that was reached; as what it was given if that cannot be read.
pub(crate) fn text(session: &Session) -> String {
    let (spec, trees, mut text) = (session.spec(), session.trees(), String::new());
    let Ok(lines) = lines(&spec) else { return spec.ns };
    for line in lines {
        let how = server(&line).and_then(|server| Some(trees.as_ref()?.how(server)));
        how.into_iter().flatten().for_each(|how| text += &format!("# {how}\n"));
        text += &format!("{line}\n");
    }
    text
}

/// The line of the namespace of `session` by which `path` is sought: the first of those that put something nearest to
/// it.
pub(crate) fn sought(session: &Session, path: &str) -> Option<String> {
    let lines = lines(&session.spec()).ok()?;
    let depth = |line: &Line| match line {
        Line::Mount { old, .. } | Line::Bind { old, .. } if Path::new(path).starts_with(old) => {
            Some(Path::new(old).components().count())
        }
        _ => None,
    };
    let deepest = lines.iter().filter_map(depth).max()?;
    lines.iter().find(|line| depth(line) == Some(deepest)).map(Line::to_string)
}

fn lines(spec: &Spec) -> Result<Vec<Line>, Failure> {
    let text = if spec.ns.is_empty() { NODE } else { &spec.ns };
    ns::text::parse(text, PEER_LINES, &|name| variable(&spec.env, name)).map_err(|err| fail("namespace", &err))
}

/// Makes the root that `spec` asks for.
pub(crate) async fn root(cpu: &Cpu, session: &Session, spec: &Spec, owners: Owners) -> Result<Root, Failure> {
    let lines = lines(spec)?;
    let mut mounts: Vec<JobMount> = lines.iter().filter_map(kernel_mount).collect();
    let lines: Vec<Line> = lines.into_iter().filter(|line| host(line).is_none()).collect();

    let names = |is: &dyn Fn(&str) -> bool| lines.iter().filter_map(server).any(is);
    let called =
        if names(&|server| server == "caller" || is_abroad(server)) { Some(caller(cpu, session).await?) } else { None };
    if let (Some(travel), Some((client, _))) = (&cpu.options.travel, &called) {
        let trees = travel.trees(&spec.nodes, client.clone(), owners.shown).map_err(|err| fail("nodes", &err))?;
        session.set_trees(trees);
    }
    let tmp = if lines.iter().any(|line| server(line) == Some("#tmp")) { Some(private_tmp(cpu).await?) } else { None };
    let (abroad, caller) = (session.trees(), called.map(|(_, root)| root));
    let trees = Known { cpu, caller, abroad: abroad.clone(), tmp: tmp.as_ref(), owners };
    let variable = |name: &str| variable(&spec.env, name);
    let build = ns::Build { dialer: &trees, variable: &variable, most: PEER_LINES };
    let namespace = build
        .build(&lines)
        .await
        .map_err(|err| fail("namespace", &format_args!("{err}; try: {}", err.error.remedy())))?;
    let (kernels, sockets) = (mounts.iter().map(JobMount::at).collect::<Vec<_>>(), spec.listen.iter().filter_map(path));
    let placed = super::sockets::place(&namespace, sockets, &kernels, owners.shown).await;
    placed.map_err(|err| fail("listen", &err))?;
    if let Some(abroad) = abroad {
        mounts.extend(local(&namespace, &lines, &*abroad).await);
    }
    let node = namespace.attach(&Who::owner(), b"/").await.map_err(|errno| fail("namespace: /", &errno))?;
    let is_callers = |line: &Line| matches!(line, Line::Mount { server, old, .. } if server == "caller" && old == "/");
    Ok(Root { node, mounts, is_callers: lines.iter().any(is_callers), tmp })
}

/// Where `address` is, if that is a path.
fn path(address: &Address) -> Option<&PathBuf> {
    match address {
        Address::Unix(path) => Some(path),
        Address::Tcp(_) | Address::Tls(_) => None,
    }
}

/// What of `namespace` the kernel binds: directories of this machine, which then are as fast as any.
async fn local(namespace: &Namespace, lines: &[Line], abroad: &dyn Trees) -> Vec<JobMount> {
    let mut all: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let mut bind = |at: PathBuf, local: Option<OwnedFd>| {
        let from = local.and_then(|fd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok());
        all.extend(from.filter(|from| at != Path::new("/") && abroad.may_bind(from)).map(|from| (at, from)));
    };
    namespace.places().into_iter().for_each(|place| bind(place.path, place.local));
    for line in lines {
        let Line::Mount { server, old, spec, .. } = line else { continue };
        for dir in abroad.own(server) {
            let Ok(below) = dir.strip_prefix(spec.trim_matches('/')) else { continue };
            let at = Path::new(old).join(below);
            let found = namespace.walk(&at.to_string_lossy()).await;
            bind(at, found.ok().and_then(|node| node.local()));
        }
    }
    all.into_iter().map(|(at, from)| JobMount::Bind { from, at, read_only: false }).collect()
}

async fn caller(cpu: &Cpu, session: &Session) -> Result<(Client, NodeRef), Failure> {
    let patience = cpu.options.limits.caller;
    match tokio::time::timeout(patience, session.caller()).await {
        Ok(tree) => tree.map_err(|errno| fail("the caller's tree", &errno)),
        Err(_) => Err(fail("the caller's tree", &format!("it did not come within {} s", patience.as_secs()))),
    }
}

async fn private_tmp(cpu: &Cpu) -> Result<Tmp, Failure> {
    let parent = cpu.options.tmp.clone();
    let shown = parent.display().to_string();
    let made = p9::cancel::blocking(move || Tmp::create(&parent)).await;
    made.map_err(|errno| {
        let remedy = format!("df -h {shown}; df -i {shown}, on {}", cpu.options.node_name);
        fail(&format!("a private /tmp in {shown}"), &format!("{errno}; try: {remedy}"))
    })
}

/// The trees that a namespace file may name.
struct Known<'a> {
    cpu: &'a Cpu,
    caller: Option<NodeRef>,
    abroad: Option<Arc<dyn Trees>>,
    tmp: Option<&'a Tmp>,
    owners: Owners,
}

impl ns::Dialer for Known<'_> {
    fn dial<'a>(&'a self, server: &'a str, spec: &'a str) -> Reply<'a, NodeRef> {
        match server {
            "caller" => Reply::later(async move {
                let root = self.caller.clone().ok_or(Errno::ENOENT)?;
                beneath(root, spec).await
            }),
            "#tmp" => self.own(self.tmp.map(|tmp| self.cpu.disk(&tmp.path()))),
            "#root" => self.own(Some(self.cpu.own_root())),
            "#proc" | "#sys" | "#dev" | "#run" => Reply::ok(synth::dir([])),
            server if is_abroad(server) => match &self.abroad {
                Some(abroad) => abroad.dial(server, spec),
                None => Errno::ENOENT.into(),
            },
            _ => self.cpu.options.own.dial(server, spec).map(|node| self.owners.show(node)),
        }
    }

    fn why(&self, server: &str) -> Option<String> {
        self.abroad.as_ref().and_then(|abroad| abroad.why(server))
    }
}

impl Known<'_> {
    fn own(&self, tree: Option<Result<p9::TreeRef, fileserver::Error>>) -> Reply<'_, NodeRef> {
        Reply::later(async move {
            let tree = tree.ok_or(Errno::ENOENT)?.map_err(|error| {
                tracing::warn!(%error, "a tree of this node could not be opened for a job");
                Errno::EIO
            })?;
            Ok(self.owners.show(tree.attach(&Who::owner(), b"/").await?))
        })
    }
}

/// The file at `path` below `root`.
async fn beneath(root: NodeRef, path: &str) -> Result<NodeRef, Errno> {
    let names = p9::Name::split(path.as_bytes())?;
    if names.is_empty() {
        return Ok(root);
    }
    Ok(root.walk(&names, p9::Want::default()).await?.reached()?.node)
}

/// What `line` mounts, if it is a mount.
fn server(line: &Line) -> Option<&str> {
    match line {
        Line::Mount { server, .. } => Some(server),
        _ => None,
    }
}

/// The path on this node that `line` binds into the job.
fn host(line: &Line) -> Option<&str> {
    server(line)?.strip_prefix("#host").filter(|path| path.starts_with('/'))
}

/// What the kernel has to mount for `line`.
fn kernel_mount(line: &Line) -> Option<JobMount> {
    let Line::Mount { server, old, .. } = line else { return None };
    match server.as_str() {
        "#proc" => Some(JobMount::Proc),
        "#sys" => Some(JobMount::Sys),
        "#dev" => Some(JobMount::Dev),
        "#run" => Some(JobMount::Tmpfs { at: PathBuf::from(old), size_mb: 64, mode: 0o755 }),
        _ => {
            let from = PathBuf::from(host(line)?);
            from.exists().then(|| JobMount::Bind { from, at: PathBuf::from(old), read_only: true })
        }
    }
}

/// What `$name` stands for in the namespace file: what it does in the command's environment; `$n` is /n.
fn variable(env: &[Vec<u8>], name: &str) -> Option<String> {
    if name == "n" {
        return Some("/n".into());
    }
    let value = |item: &Vec<u8>| item.strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
    env.iter().find_map(value).and_then(|value| String::from_utf8(value).ok())
}

fn fail(step: &str, reason: &dyn std::fmt::Display) -> Failure {
    Failure { code: 255, errno: Errno::EIO, reason: format!("{step}: {reason}"), ran: false }
}
