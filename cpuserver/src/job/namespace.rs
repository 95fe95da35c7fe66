//! The namespace that a job's root shows, from the session's namespace file.
//!
//! The file names trees by server: `caller` is what the caller serves; `#...` are this node's. Those that only the
//! kernel can mount (`#proc`, `#sys`, `#dev`, `#run`) become empty directories here, and mounts over them inside the
//! job; `#host/PATH` binds a file or directory of the node over the caller's, where both have it. Called by the job's
//! task; nothing here runs or opens what the text names besides those trees.

use std::path::PathBuf;

use ns::text::{Line, PEER_LINES};
use p9::{Errno, NodeRef, Reply, Tree, Who, synth};

use super::tmp::Tmp;
use crate::Cpu;
use crate::launch::JobMount;
use crate::owned::Owners;
use crate::session::{Failure, Session, Spec};

/// The namespace of a session whose `ns` is empty: this node's own root.
const NODE: &str = "mount '#root' /\nmount '#proc' /proc\nmount '#sys' /sys\nmount '#dev' /dev\nmount '#run' /run\n";

/// What a job's root is made of.
pub(crate) struct Root {
    /// The namespace's root.
    pub(crate) node: NodeRef,
    /// What is mounted over it inside the job, in this order.
    pub(crate) mounts: Vec<JobMount>,
    /// The private /tmp, if the namespace has one: it goes when the job is over.
    pub(crate) tmp: Option<Tmp>,
}

/// The namespace that `spec` asks for, with its variables replaced: as what it was given if that cannot be read.
pub(crate) fn text(spec: &Spec) -> String {
    let whole = |lines: Vec<Line>| lines.iter().map(|line| format!("{line}\n")).collect();
    lines(spec).map_or_else(|_| spec.ns.clone(), whole)
}

fn lines(spec: &Spec) -> Result<Vec<Line>, Failure> {
    let text = if spec.ns.is_empty() { NODE } else { &spec.ns };
    ns::text::parse(text, PEER_LINES, &|name| variable(&spec.env, name)).map_err(|err| fail("namespace", &err))
}

/// Makes the root that `spec` asks for.
pub(crate) async fn root(cpu: &Cpu, session: &Session, spec: &Spec, owners: Owners) -> Result<Root, Failure> {
    let lines = lines(spec)?;
    let mounts = lines.iter().filter_map(kernel_mount).collect();
    let lines: Vec<Line> = lines.into_iter().filter(|line| host(line).is_none()).collect();

    let caller =
        if lines.iter().any(|line| server(line) == Some("caller")) { Some(caller(cpu, session).await?) } else { None };
    let tmp = if lines.iter().any(|line| server(line) == Some("#tmp")) { Some(private_tmp(cpu).await?) } else { None };
    let trees = Trees { cpu, caller, tmp: tmp.as_ref(), owners };
    let variable = |name: &str| variable(&spec.env, name);
    let build = ns::Build { dialer: &trees, variable: &variable, most: PEER_LINES };
    let namespace = build.build(&lines).await.map_err(|err| fail("namespace", &err))?;
    let node = namespace.attach(&Who::owner(), b"/").await.map_err(|errno| fail("namespace: /", &errno))?;
    Ok(Root { node, mounts, tmp })
}

async fn caller(cpu: &Cpu, session: &Session) -> Result<NodeRef, Failure> {
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
struct Trees<'a> {
    cpu: &'a Cpu,
    caller: Option<NodeRef>,
    tmp: Option<&'a Tmp>,
    owners: Owners,
}

impl ns::Dialer for Trees<'_> {
    fn dial<'a>(&'a self, server: &'a str, spec: &'a str) -> Reply<'a, NodeRef> {
        match server {
            "caller" => Reply::later(async move {
                let root = self.caller.clone().ok_or(Errno::ENOENT)?;
                beneath(root, spec).await
            }),
            "#tmp" => self.own(self.tmp.map(|tmp| self.cpu.disk(&tmp.path()))),
            "#root" => self.own(Some(self.cpu.own_root())),
            "#proc" | "#sys" | "#dev" | "#run" => Reply::ok(synth::dir([])),
            _ => self.cpu.options.own.dial(server, spec).map(|node| self.owners.show(node)),
        }
    }
}

impl Trees<'_> {
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

/// What `$name` stands for in the namespace file: what it does in the command's environment.
fn variable(env: &[Vec<u8>], name: &str) -> Option<String> {
    let value = |item: &Vec<u8>| item.strip_prefix(name.as_bytes())?.strip_prefix(b"=").map(<[u8]>::to_vec);
    env.iter().find_map(value).and_then(|value| String::from_utf8(value).ok())
}

fn fail(step: &str, reason: &dyn std::fmt::Display) -> Failure {
    Failure { code: 255, errno: Errno::EIO, reason: format!("{step}: {reason}"), ran: false }
}
