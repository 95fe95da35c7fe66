//! What the namespace of somebody's command names, reached from this node.
//!
//! Made by the node, asked by the job's task for each command ([`cpuserver::Travel`]). What is this node's own is used
//! in place. Another node is dialled from here, with this node's own key and a grant of the caller's, which the
//! caller's agent signs when it is needed; where that does not come about, and for whatever is no node, the tree is
//! relayed: the caller reaches it. Nothing that a text names is run here, and nothing of this machine is opened for it
//! but what this node exports.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cpuserver::{Owners, Trees};
use dashmap::DashMap;
use fileserver::Exports;
use ns::{Dialer, Grid, Lazy, Names};
use p9::client::{self, Client, Dial, Resume};
use p9::transport::{self, Io, tls};
use p9::{Errno, Handle, How, Name, NodeRef, Reply, Tree, Want, Who, synth};
use tokio::io::AsyncWriteExt;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::dial::MOUNT_TIMEOUT;
use crate::error::Error;
use crate::grant;
use crate::known::{Known, Node};
use crate::servers::{at, node_of};

/// How long the caller is waited for until it has signed a grant: a person may be asked.
const SIGNED: Duration = Duration::from_secs(65);
/// How long a node is waited for that is dialled.
const REACHED: Duration = Duration::from_secs(12);

/// Reaches them for all commands of this node.
pub struct Abroad {
    me: tls::Identity,
    exports: Arc<Exports>,
}

impl Abroad {
    /// For the node that is `me` and exports `exports`.
    pub fn new(me: tls::Identity, exports: Arc<Exports>) -> Self {
        Self { me, exports }
    }
}

impl cpuserver::Travel for Abroad {
    fn trees(&self, nodes: &str, caller: Client, owner: (u32, u32)) -> Result<Arc<dyn Trees>, String> {
        let known = Known::parse(Path::new("nodes"), nodes).map_err(|err| err.to_string())?;
        let (me, exports, nodes) = (self.me.clone(), self.exports.clone(), known.nodes().to_vec());
        let (slots, grants, own) = (DashMap::new(), DashMap::new(), OnceLock::new());
        let (how, why) = (DashMap::new(), DashMap::new());
        let inner = Inner { me, exports, nodes, caller, owner, own, slots, grants, how, why };
        Ok(Arc::new(There(Arc::new(inner))))
    }
}

/// A grant, and until when it is good.
type Good = (String, u64);

/// The trees of one command. A clone is the same.
#[derive(Clone)]
struct There(Arc<Inner>);

struct Inner {
    me: tls::Identity,
    exports: Arc<Exports>,
    /// The nodes that the caller knows.
    nodes: Vec<Node>,
    caller: Client,
    /// Who the job sees itself as.
    owner: (u32, u32),
    /// This node, as it is seen from elsewhere.
    own: OnceLock<NodeRef>,
    slots: DashMap<String, Arc<Mutex<Slot>>>,
    /// The grants for them, and until when each is good.
    grants: DashMap<String, Arc<Mutex<Option<Good>>>>,
    /// How each that was reached was.
    how: DashMap<String, String>,
    /// Why each that could not be reached could not.
    why: DashMap<String, String>,
}

#[derive(Default)]
struct Slot {
    /// The root that is used, and its connection if that is this node's own.
    live: Option<(Option<Client>, NodeRef)>,
    /// Why it is not dialled from here.
    refused: Option<String>,
}

impl There {
    /// The node that `server` names.
    fn find(&self, server: &str) -> Option<&Node> {
        let name = node_of(server)?;
        let is = |node: &&Node| node.name.as_str() == name || node.address.to_string() == name;
        self.0.nodes.iter().find(is)
    }

    fn is_me(&self, node: &Node) -> bool {
        node.key.is(&self.0.me.spki)
    }

    /// This node's exports, as another node's are seen.
    fn own_root(&self) -> NodeRef {
        let made = || self.shown(synth::dir([("fs", self.0.exports.node_for(&Who::owner()))]), own_ids());
        self.0.own.get_or_init(made).clone()
    }

    /// `root`, where what is its server's own, whose ids are `own`, is the job's own.
    fn shown(&self, root: NodeRef, own: (u32, u32)) -> NodeRef {
        Owners { own, shown: self.0.owner }.show(root)
    }

    async fn node_root(&self, node: &Node) -> Result<NodeRef, Errno> {
        let name = node.name.as_str();
        if self.is_me(node) {
            return Ok(self.own_root());
        }
        let slot = self.0.slots.entry(name.to_string()).or_default().clone();
        let mut now = slot.lock().await;
        if let Some((client, root)) = &now.live
            && client.as_ref().is_none_or(|client| !client.is_closed())
        {
            return Ok(root.clone());
        }
        if now.refused.is_none() {
            match self.direct(node).await {
                Ok((client, root)) => {
                    let said = format!("{name}: dialled from here, {}, with a grant", node.address);
                    self.0.how.insert(name.into(), said);
                    now.live = Some((Some(client), root.clone()));
                    return Ok(root);
                }
                Err(reason) => {
                    tracing::info!("{name} is relayed by the caller: {reason}");
                    now.refused = Some(reason);
                }
            }
        }
        let reason = now.refused.as_deref().unwrap_or_default();
        let root = self.relayed(name).await.map_err(|errno| self.failed(name, errno, reason))?;
        self.0.how.insert(name.into(), format!("{name}: relayed by the caller, since from here: {reason}"));
        now.live = Some((None, root.clone()));
        Ok(root)
    }

    /// Notes why `server` could not be reached, and gives the errno.
    fn failed(&self, server: &str, errno: Errno, direct: &str) -> Errno {
        let direct = if direct.is_empty() { String::new() } else { format!("; dialled from here: {direct}") };
        let why = match errno {
            Errno::ENOENT => format!("the caller names no such server, or lends nothing of it{direct}"),
            errno => format!("by way of the caller: {errno}{direct}"),
        };
        self.0.why.insert(server.into(), why);
        errno
    }

    /// The root of what `server` names, as the caller reaches it.
    async fn relayed(&self, server: &str) -> Result<NodeRef, Errno> {
        let root = self.0.caller.attach(&Who::owner(), format!("#relay {server}").as_bytes()).await?;
        self.mapped(root).await
    }

    /// `root` with the owners of what it shows mapped: its own, or its exports', are the job's.
    async fn mapped(&self, root: NodeRef) -> Result<NodeRef, Errno> {
        let exports = async {
            let reached = root.walk(&[Name::new(b"fs")?], Want::ATTR).await?.reached()?;
            reached.attr.ok_or(Errno::ENOENT)
        };
        let attr = match exports.await {
            Ok(attr) => attr,
            Err(_) => root.attr().await?,
        };
        Ok(self.shown(root, (attr.uid, attr.gid)))
    }

    /// A connection to `node` from here, and its root. Errors: why there is none, in words.
    async fn direct(&self, node: &Node) -> Result<(Client, NodeRef), String> {
        let first = self.connect(node).await?;
        // The command may be over by then.
        let (there, again) = (Arc::downgrade(&self.0), node.clone());
        let dial: Dial = Arc::new(move || {
            let (there, again) = (there.clone(), again.clone());
            Box::pin(async move {
                let there = There(there.upgrade().ok_or(io::ErrorKind::NotFound)?);
                there.connect(&again).await.map_err(io::Error::other)
            })
        });
        let resume = Resume { bulk: Some(dial.clone()), dial, linger: MOUNT_TIMEOUT, patience: MOUNT_TIMEOUT };
        let attached = async {
            let client = Client::resuming(first, client::Options::default(), resume).await;
            let client = client.map_err(|err| format!("it does not honour the grant, or ends: {err}"))?;
            let root = client.attach(&Who::owner(), b"").await.map_err(|errno| format!("attach: {errno}"))?;
            let root = self.mapped(root).await.map_err(|errno| format!("look at it: {errno}"))?;
            Ok((client, root))
        };
        timeout(REACHED, attached).await.unwrap_or_else(|_| Err("it does not answer".into()))
    }

    async fn connect(&self, node: &Node) -> Result<Io, String> {
        let grant = self.grant(node).await?;
        let shaken = async {
            let tcp = transport::tcp(&node.address).await?;
            let expected = node.key.clone();
            let welcome = Arc::new(move |spki: &[u8]| expected.is(spki));
            let config = tls::client_config_by_grant(&self.0.me, welcome).map_err(io::Error::other)?;
            let (mut io, _) = tls::connect(tcp, config).await?;
            io.write_all(&grant::said(&grant)).await?;
            io.flush().await?;
            Ok(Box::new(io) as Io)
        };
        let said = shaken.await.map_err(|err: io::Error| Error::new("connect", &node.address, err).to_string());
        said.map_err(|said| said.trim_start_matches("connect: ").to_string())
    }

    /// The caller's grant for `node`: the one that is good for a while still, or another.
    async fn grant(&self, node: &Node) -> Result<String, String> {
        let made = self.0.grants.entry(node.name.to_string()).or_default().clone();
        let mut made = made.lock().await;
        if let Some((grant, until)) = &*made
            && *until > grant::until(Duration::from_secs(60))
        {
            return Ok(grant.clone());
        }
        let signed = async {
            let file = self.0.caller.attach(&Who::owner(), format!("#grant {}", node.name).as_bytes()).await?;
            let handle = file.open(How::READ).await?;
            let text = read(&handle).await?;
            handle.close().await.map(|()| text)
        };
        let signed = timeout(SIGNED, signed).await.unwrap_or(Err(Errno::ETIMEDOUT));
        let text = signed.map_err(|errno| format!("the caller grants nothing there: {errno}"))?;
        let grant = String::from_utf8(text).map_err(|_| "the caller's grant is no text")?;
        *made = Some((grant.clone(), grant::end(&grant)?));
        Ok(grant)
    }

    /// The file `spec` of what `server` serves under `root`.
    async fn at(&self, server: &str, root: NodeRef, spec: &str) -> Result<NodeRef, Errno> {
        at(root, spec).await.map_err(|(errno, why)| {
            self.0.why.insert(server.into(), why);
            errno
        })
    }

    async fn dial_now(&self, server: &str, spec: &str) -> Result<NodeRef, Errno> {
        if server == "#grid" {
            return self.at(server, Grid::new(Arc::new(self.clone())), spec).await;
        }
        if let Some(node) = self.find(server) {
            if self.is_me(node) {
                return self.at(server, self.node_root(node).await?, spec).await;
            }
            let found = self.at(server, self.node_root(node).await?, spec).await?;
            return match found.qid().kind {
                p9::FileKind::Dir => Lazy::node(Arc::new(self.clone()), node.name.as_str(), spec),
                _ => Ok(found),
            };
        }
        let lazy = || Lazy::node(Arc::new(self.clone()), server, spec);
        // A program is started when something in it is looked at.
        if ["exec!", "ssh!"].iter().any(|kind| server.starts_with(kind)) {
            return lazy();
        }
        match self.at(server, self.other_root(server).await?, spec).await? {
            found if found.qid().kind == p9::FileKind::Dir => lazy(),
            found => Ok(found),
        }
    }

    /// The root of what is no node.
    async fn other_root(&self, server: &str) -> Result<NodeRef, Errno> {
        let slot = self.0.slots.entry(server.to_string()).or_default().clone();
        let mut now = slot.lock().await;
        if let Some((_, root)) = &now.live {
            return Ok(root.clone());
        }
        let root = self.relayed(server).await.map_err(|errno| self.failed(server, errno, ""))?;
        self.0.how.insert(server.into(), format!("{server}: relayed by the caller"));
        now.live = Some((None, root.clone()));
        Ok(root)
    }
}

/// Who this node runs as.
fn own_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// All of a grant's file.
async fn read(handle: &Handle) -> Result<Vec<u8>, Errno> {
    let mut all = Vec::new();
    while all.len() <= grant::MAX_BYTES {
        let piece = handle.read(all.len() as u64, 1 << 14).await?;
        if piece.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&piece);
    }
    Err(Errno::EFBIG)
}

impl Names for There {
    fn names(&self) -> Vec<String> {
        self.0.nodes.iter().map(|node| node.name.to_string()).collect()
    }

    fn reach<'a>(&'a self, name: &'a str) -> Reply<'a, NodeRef> {
        Reply::later(async move {
            match self.find(name) {
                Some(node) => self.node_root(node).await,
                None => self.other_root(name).await,
            }
        })
    }
}

impl Dialer for There {
    fn dial<'a>(&'a self, server: &'a str, spec: &'a str) -> Reply<'a, NodeRef> {
        Reply::later(self.dial_now(server, spec))
    }

    fn why(&self, server: &str) -> Option<String> {
        self.0.why.remove(server).map(|(_, why)| why)
    }
}

impl Trees for There {
    fn how(&self, server: &str) -> Vec<String> {
        let node = self.find(server).map(|node| node.name.to_string());
        let named = node.as_deref().unwrap_or(server);
        let is_meant = |name: &str| if server == "#grid" { self.find(name).is_some() } else { name == named };
        let known = self.0.how.iter().filter(|how| is_meant(how.key()));
        let mine = self.0.nodes.iter().filter(|node| self.is_me(node) && is_meant(node.name.as_str()));
        let mine = mine.map(|node| format!("{}: this node", node.name));
        let mut how: Vec<String> = known.map(|how| how.value().replace(char::is_control, "?")).chain(mine).collect();
        how.sort();
        how
    }

    fn own(&self, server: &str) -> Vec<PathBuf> {
        let exports = || self.0.exports.list().map(|export| PathBuf::from(&export.name));
        let below = |above: PathBuf| exports().map(move |export| above.join(export));
        match server {
            "#fs" => exports().collect(),
            "#grid" => {
                let mine = self.0.nodes.iter().filter(|node| self.is_me(node));
                mine.flat_map(|node| below(Path::new(node.name.as_str()).join("fs"))).collect()
            }
            _ if self.find(server).is_some_and(|node| self.is_me(node)) => below("fs".into()).collect(),
            _ => Vec::new(),
        }
    }

    fn may_bind(&self, dir: &Path) -> bool {
        // What is mounted in it is shown by rules that the kernel does not know.
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut points = table.lines().filter_map(|line| line.split(' ').nth(4));
        let apart =
            !table.is_empty() && points.all(|point| Path::new(point) == dir || !Path::new(point).starts_with(dir));
        apart && self.0.exports.list().any(|export| dir.starts_with(&export.path))
    }
}
