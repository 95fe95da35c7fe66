//! What a namespace of mine may name as a server: `#grid`, nodes that I know, and dial strings.
//!
//! Used by the mount and by `slashn run`, in their runtimes. `tls!host!port` is a known node, too, by its address;
//! `tcp!` and `unix!` speak 9P in the clear; `local!path` is a directory or file of this machine; `exec!command` a
//! program, `ssh!host` another machine's files. A server is reached once for all who use it, and again when it was
//! lost: a program is started when something in it is first looked at, and anew when it has died, but not more often
//! than it is worth. Texts of others never come here: a node that runs a command for somebody knows none of these.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use fileserver::{Disk, DiskOptions};
use ns::{Dialer, Grid, Lazy, Names, Namespace};
use p9::client::{self, Client};
use p9::dial::Address;
use p9::{Entry, Errno, Handle, How, Name, NodeRef, Reply, Tree, Walk, Want, Who, transport};
use tokio::sync::Mutex;

use crate::grid::Nodes;
use crate::program::{self, Refused, Started, refused};

/// So often within so long a server is reached; beyond that whoever uses it is refused.
const TRIES: (usize, Duration) = (5, Duration::from_secs(10));

/// Reaches them. A clone is the same.
#[derive(Clone)]
pub struct Servers(Arc<Inner>);

struct Inner {
    nodes: Arc<Nodes>,
    /// Who I am to servers that go by what they are told.
    who: Who,
    /// How local files are served.
    local: DiskOptions,
    slots: DashMap<String, Arc<Mutex<Slot>>>,
    /// Why each that could not be reached could not.
    why: DashMap<String, String>,
}

#[derive(Default)]
struct Slot {
    live: Option<Started>,
    tries: VecDeque<Instant>,
    failed: Option<(Instant, Errno)>,
}

/// What is said of a node that I do not know.
pub const UNKNOWN: &str = "no node of that name is known";

/// What a server's name says.
enum Kind<'a> {
    Grid,
    Node(String),
    Plain(Address),
    Local(&'a Path),
    Exec(&'a str),
    Ssh(&'a str),
}

/// The name or address of the node that `server` names; nothing, if it names something else.
pub fn node_of(server: &str) -> Option<String> {
    match Kind::of(server) {
        Ok(Kind::Node(name)) if !name.starts_with('#') => Some(name),
        _ => None,
    }
}

impl<'a> Kind<'a> {
    fn of(server: &'a str) -> Result<Self, Refused> {
        let bad = |reason: String| (Errno::EINVAL, reason);
        let Some((kind, rest)) = server.split_once('!') else {
            return Ok(if server == "#grid" { Self::Grid } else { Self::Node(server.into()) });
        };
        match kind {
            "tls" | "tcp" | "unix" => match server.parse().map_err(|err| bad(format!("{err}")))? {
                Address::Tls(to) => Ok(Self::Node(to.to_string())),
                plain => Ok(Self::Plain(plain)),
            },
            _ if rest.is_empty() => Err(bad(format!("nothing follows {kind}!"))),
            "local" => Ok(Self::Local(Path::new(rest))),
            "exec" => Ok(Self::Exec(rest)),
            "ssh" => Ok(Self::Ssh(rest)),
            _ => Err(bad(format!("{kind}! is none of tls! tcp! unix! local! exec! ssh!"))),
        }
    }
}

impl Servers {
    /// With the nodes `nodes`; as `who` to those that go by what they are told; local files as `local` says.
    pub fn new(nodes: Arc<Nodes>, who: Who, local: DiskOptions) -> Self {
        Self(Arc::new(Inner { nodes, who, local, slots: DashMap::new(), why: DashMap::new() }))
    }

    /// The same for somebody who waits for it: programs are started at once, so that what is wrong with one is told.
    pub fn eager(&self) -> Arc<dyn Dialer> {
        Arc::new(Eager(self.clone()))
    }

    /// The text of `namespace`; before a line whose server could not be reached when it was used last, why.
    pub fn text(&self, namespace: &Namespace) -> String {
        let mut text = String::new();
        for line in namespace.lines() {
            let why = line.server().and_then(|(server, _)| Some((self.0.why.get(&server)?.clone(), server)));
            if let Some((why, server)) = why {
                text += &format!("# {server}: {why}\n").replace(|c: char| c.is_control() && c != '\n', "?");
            }
            text += &format!("{line}\n");
        }
        text
    }

    /// Lets go of servers but those that `is_named`: they end when what is open of them is closed.
    pub fn keep(&self, is_named: impl Fn(&str) -> bool) {
        self.0.slots.retain(|server, _| is_named(server));
    }

    /// Notes why `server` could not be reached, and says it.
    fn refused(&self, server: &str, (errno, why): Refused) -> Errno {
        tracing::warn!("{server}: {why}");
        self.0.why.insert(server.into(), why);
        errno
    }

    /// The root of a server that is neither a node nor local.
    async fn other(&self, server: &str, kind: Kind<'_>) -> Result<NodeRef, Errno> {
        let asked = Instant::now();
        let slot = self.0.slots.entry(server.to_string()).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some((client, root)) = &slot.live
            && !client.is_closed()
        {
            return Ok(root.clone());
        }
        slot.live = None;
        if let Some((when, errno)) = slot.failed
            && when > asked
        {
            return Err(errno);
        }
        while slot.tries.front().is_some_and(|when| when.elapsed() > TRIES.1) {
            slot.tries.pop_front();
        }
        if slot.tries.len() == TRIES.0 {
            let why = format!("it was tried {} times within {} s; wait a little", TRIES.0, TRIES.1.as_secs());
            return Err(self.refused(server, (Errno::EIO, why)));
        }
        slot.tries.push_back(asked);
        match self.reach_anew(kind).await {
            Ok(live) => {
                self.0.why.remove(server);
                let root = live.1.clone();
                slot.live = Some(live);
                Ok(root)
            }
            Err(err) => {
                let errno = self.refused(server, err);
                slot.failed = Some((Instant::now(), errno));
                Err(errno)
            }
        }
    }

    async fn reach_anew(&self, kind: Kind<'_>) -> Result<Started, Refused> {
        let who = &self.0.who;
        let address = match kind {
            Kind::Exec(command) => return program::exec(command, who).await,
            Kind::Ssh(host) => return program::ssh(host, who).await,
            Kind::Plain(address) => address,
            Kind::Grid | Kind::Node(_) | Kind::Local(_) => return Err((Errno::EINVAL, "that is not dialled".into())),
        };
        let attached = async {
            let io: transport::Io = match &address {
                Address::Unix(path) => Box::new(transport::unix(path).await.map_err(refused)?),
                Address::Tcp(to) | Address::Tls(to) => Box::new(transport::tcp(to).await.map_err(refused)?),
            };
            let client = Client::connect(io, client::Options::default()).await;
            let client = client.map_err(|err| (Errno::EPROTO, format!("it does not speak 9P: {err}")))?;
            let root = client.attach(who, b"").await;
            root.map(|root| (client, root)).map_err(|errno| (errno, format!("it lets nobody attach: {errno}")))
        };
        let limit = transport::CONNECT * 2;
        let late = |_| Err((Errno::ETIMEDOUT, format!("it does not answer within {} s", limit.as_secs())));
        tokio::time::timeout(limit, attached).await.unwrap_or_else(late)
    }

    /// A file of this machine.
    async fn local(&self, path: &Path) -> Result<NodeRef, Refused> {
        let (path, options) = (path.to_path_buf(), self.0.local.clone());
        if !path.is_absolute() {
            return Err((Errno::EINVAL, "a local path begins with /".into()));
        }
        let opened = p9::cancel::blocking(move || {
            let path = std::fs::canonicalize(path)?;
            // A file is one of its directory.
            let (dir, file) = match path.parent() {
                Some(parent) if !path.is_dir() => (parent, path.file_name().unwrap_or_default().as_bytes().to_vec()),
                _ => (&*path, Vec::new()),
            };
            Ok((Disk::open(dir, options).map_err(|err| err.to_string()), file))
        });
        let say = |errno: Errno| (errno, errno.to_string());
        let (disk, file) = opened.await.map_err(say)?;
        disk.map_err(|err| (Errno::EIO, err))?.attach(&Who::owner(), &file).await.map_err(say)
    }

    async fn dial_now(&self, server: &str, spec: &str, eager: bool) -> Result<NodeRef, Errno> {
        let kind = Kind::of(server).map_err(|refused| self.refused(server, refused))?;
        let lazy = || Lazy::node(Arc::new(self.clone()), server, spec);
        match kind {
            Kind::Grid => self.at(server, Grid::new(self.0.nodes.clone()), spec).await,
            Kind::Local(path) => match self.local(path).await {
                Ok(root) => self.at(server, root, spec).await,
                Err(err) => Err(self.refused(server, err)),
            },
            Kind::Exec(_) | Kind::Ssh(_) if !eager => lazy(),
            // What is no directory is what it is as long as it lasts.
            _ => match self.at(server, self.reach_now(server).await?, spec).await? {
                node if node.qid().kind != p9::FileKind::Dir => Ok(node),
                _ => lazy(),
            },
        }
    }

    /// The file `spec` of what `server` serves under `root`.
    async fn at(&self, server: &str, root: NodeRef, spec: &str) -> Result<NodeRef, Errno> {
        at(root, spec).await.map_err(|refused| self.refused(server, refused))
    }

    async fn reach_now(&self, server: &str) -> Result<NodeRef, Errno> {
        match Kind::of(server).map_err(|refused| self.refused(server, refused))? {
            Kind::Node(name) => {
                let reached = self.0.nodes.reach(&name).await;
                reached.map_err(|errno| match errno {
                    Errno::ENOENT => self.refused(server, (errno, UNKNOWN.into())),
                    errno => self.refused(server, (errno, errno.to_string())),
                })
            }
            kind => self.other(server, kind).await,
        }
    }
}

/// The file `spec` of what is served under `root`. Errors: why there is none, and what there is.
pub(crate) async fn at(root: NodeRef, spec: &str) -> Result<NodeRef, Refused> {
    let say = |errno: Errno| (errno, format!("{spec}: {errno}"));
    let names = Name::split(spec.as_bytes()).map_err(say)?;
    if names.is_empty() {
        return Ok(root);
    }
    let (far, errno) = match root.walk(&names, Want::default()).await {
        Ok(Walk { end: Ok(reached), .. }) => return Ok(reached.node),
        Ok(Walk { qids, end: Err(errno) }) => (qids.len().min(names.len()), errno),
        Err(errno) => (0, errno),
    };
    let dir = match far {
        0 => Ok(root),
        far => root.walk(&names[..far], Want::default()).await.and_then(Walk::reached).map(|reached| reached.node),
    };
    let there = match dir {
        Ok(dir) if errno == Errno::ENOENT => some_names(&dir).await.unwrap_or_default(),
        _ => String::new(),
    };
    Err((errno, format!("{spec}: {errno}{there}")))
}

/// How many names of a directory are said.
const SOME: usize = 12;

/// What `dir` has, in words that follow an error.
async fn some_names(dir: &NodeRef) -> Result<String, Errno> {
    let Handle::Dir(open) = dir.open(How::READ).await? else { return Ok(String::new()) };
    let mut names = Vec::new();
    let mut each = |entry: Entry<'_>| {
        names.push(entry.name.to_string().replace(char::is_control, "?"));
        if names.len() > SOME { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    open.list(0, &mut each).await?;
    let more = if names.len() > SOME { ", ..." } else { "" };
    names.truncate(SOME);
    names.sort();
    Ok(if names.is_empty() { String::new() } else { format!("; there is {}{more}", names.join(", ")) })
}

impl Names for Servers {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }

    fn reach<'a>(&'a self, name: &'a str) -> Reply<'a, NodeRef> {
        Reply::later(self.reach_now(name))
    }
}

impl Dialer for Servers {
    fn dial<'a>(&'a self, server: &'a str, spec: &'a str) -> Reply<'a, NodeRef> {
        Reply::later(self.dial_now(server, spec, false))
    }

    fn why(&self, server: &str) -> Option<String> {
        self.0.why.remove(server).map(|(_, why)| why)
    }
}

/// See [`Servers::eager`].
struct Eager(Servers);

impl Dialer for Eager {
    fn dial<'a>(&'a self, server: &'a str, spec: &'a str) -> Reply<'a, NodeRef> {
        Reply::later(self.0.dial_now(server, spec, true))
    }

    fn why(&self, server: &str) -> Option<String> {
        self.0.why(server)
    }
}
