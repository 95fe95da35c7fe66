//! Dialling the nodes that I know: TLS with my key, and the key that known_nodes has for them.
//!
//! Used by the mount, the agent and `rcpu`, each in its own runtime. The file is read at each use, so that `slashn add`
//! takes effect at once. Handshakes run where blocking is allowed, since an ssh-agent may ask a person. What is
//! attached is a session: a connection that is lost is made again. In a command on a node whose caller lends it its
//! nodes it is the caller who dials ([`crate::within`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use p9::client::{self, Client, Dial, Resume};
use p9::transport::{self, Io, tls};
use p9::{FileKind, NodeRef, Qid, Tree, Who};
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::error::{At, Error, Result};
use crate::home::Home;
use crate::keys::{Key, SecretKey};
use crate::known::{self, Known, Node};
use crate::{pipe, within};

/// How long a node is asked to keep what a command has there whose connection was lost. What a command that was killed
/// had ends so much later; a node that has not noticed the loss keeps it anyway.
pub const LINGER: Duration = Duration::from_secs(5);
/// How long a mount waits for a node that was lost, and has it keep what is open there, unless its user says otherwise.
pub const MOUNT_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a node may be away before what is asked of it is refused at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// What it takes to reach the nodes that I know.
#[derive(Clone)]
pub struct Dialer(Way, Option<ByAgent>);

/// The agent by whose connections nodes are reached, and how long one that was lost may be away.
#[derive(Clone)]
struct ByAgent {
    socket: PathBuf,
    away: Duration,
}

#[derive(Clone)]
enum Way {
    /// By my own key.
    Own(Arc<Own>),
    /// By the caller of the command that this is part of, who knows these.
    Lent(Arc<Known>),
}

/// My key, and where the nodes are that I know.
struct Own {
    known_nodes: PathBuf,
    me: tls::Identity,
    key: Key,
}

impl Dialer {
    /// With the user's key of `home`; `agent` is the socket of the ssh-agent, if there is one.
    pub fn open(home: &Home, agent: Option<&Path>) -> Result<Self> {
        if home.is_lent() {
            return Ok(Self(Way::Lent(Arc::new(home.known()?)), None));
        }
        let secret = home.user_key(agent)?;
        home.known()?;
        let (known_nodes, me) = (home.known_nodes(), secret.identity());
        Ok(Self(Way::Own(Arc::new(Own { known_nodes, me, key: secret.key })), None))
    }

    /// The same by the connections that the agent has which answers at `socket`. What a command has at a node that is
    /// lost is kept for as long as `away`: if the command is killed, the agent says so.
    pub fn by_agent(&self, socket: &Path, away: Duration) -> Self {
        Self(self.0.clone(), Some(ByAgent { socket: socket.into(), away }))
    }

    /// Whether the nodes are those of a caller, which it dials.
    pub fn is_lent(&self) -> bool {
        matches!(self.0, Way::Lent(_))
    }

    /// How long a node is asked to keep what a command has there, and how long what is asked meanwhile waits.
    fn patience(&self, linger: Duration) -> (Duration, Duration) {
        self.1.as_ref().map_or((linger, PATIENCE), |agent| (agent.away, agent.away))
    }

    /// The names of the nodes that I know now; none while the file cannot be read, which is logged.
    pub fn names(&self) -> Vec<String> {
        match self.known() {
            Ok(known) => known.nodes().iter().map(|node| node.name.as_str().to_string()).collect(),
            Err(err) => {
                tracing::warn!("{err}");
                Vec::new()
            }
        }
    }

    /// The nodes that I know now.
    pub fn nodes(&self) -> Result<Vec<Node>> {
        Ok(self.known()?.nodes().to_vec())
    }

    /// The node called `name`, or at the address `name`. Errors: I know none.
    pub fn find(&self, name: &str) -> Result<Node> {
        let known = self.known()?;
        let at = |node: &&Node| node.address.to_string() == name;
        known.find(name).or_else(|| known.nodes().iter().find(at)).cloned().ok_or_else(|| {
            let names: Vec<&str> = known.nodes().iter().map(|node| node.name.as_str()).collect();
            let reason = match names.is_empty() {
                true => "no node of that name is known; none is".to_string(),
                false => format!("no node of that name is known; these are: {}", names.join(", ")),
            };
            Error::new("find the node", name, reason).remedy(format!("slashn add {name} ADDR:PORT"))
        })
    }

    /// The user's key, which signs, where it is at hand. It may block: see [`SecretKey`].
    pub fn secret(&self) -> Option<SecretKey> {
        match &self.0 {
            Way::Own(own) => Some(SecretKey { key: own.key.clone(), signer: own.me.key.clone() }),
            Way::Lent(_) => None,
        }
    }

    /// The peer as whom the node called `name` is served.
    pub fn who(&self, node: &Node) -> Arc<Who> {
        let (key, user) = (node.key.fingerprint().into(), node.name.as_str().into());
        Arc::new(Who { key, user, uid: None, ..Who::owner() })
    }

    /// A connection to `node`, whose key has been proven.
    pub async fn connect(&self, node: &Node) -> Result<Io> {
        let Way::Own(own) = &self.0 else { return Ok(Box::new(within::dial(node.name.as_str()).await?)) };
        let tcp = transport::tcp(&node.address).await.map_err(|err| {
            let reason = match err.kind() {
                io::ErrorKind::ConnectionRefused => "nothing listens there".to_string(),
                _ => err.to_string(),
            };
            let thing = format!("{} at {}", node.name, node.address);
            Error::new("connect", thing, reason).remedy(format!("slashn up, on {}", node.name))
        })?;
        match shake(&own.me, tcp, node).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(err) if tls::is_stranger(&err) => {
                let reason = format!("{} shows another key than known_nodes has for it", node.address);
                let remedy =
                    format!("slashn remove {0}; slashn add {0} {1}, if it was set up anew", node.name, node.address);
                Err(Error::new("connect", &node.name, reason).remedy(remedy))
            }
            Err(err) => Err(self.refused(node, &err).unwrap_or_else(|| {
                let thing = format!("{} at {}", node.name, node.address);
                Error::new("connect", thing, err).remedy(format!("slashn status, on {}", node.name))
            })),
        }
    }

    /// A connection to `node`, by the agent where there is one that can.
    async fn reach(&self, node: &Node) -> Result<Io> {
        if let Some(ByAgent { socket, .. }) = &self.1 {
            match pipe::dial(socket, node.name.as_str()).await {
                Ok(io) => return Ok(Box::new(io)),
                Err(err) if err.kind() == io::ErrorKind::NotConnected => return Err(Error::told(&err.to_string())),
                Err(err) => tracing::debug!("the agent is not reached: {err}"),
            }
        }
        self.connect(node).await
    }

    /// One more connection to the node called `name`, as it is known then. Errors: those of the stream; `NotFound` for
    /// one that is not known any more, `PermissionDenied` for one that has another key.
    pub async fn connect_again(&self, name: &str) -> io::Result<Io> {
        let node = self.find(name).map_err(|err| io::Error::new(io::ErrorKind::NotFound, err.to_string()))?;
        let Way::Own(own) = &self.0 else {
            return Ok(Box::new(within::dial(node.name.as_str()).await.map_err(io::Error::other)?));
        };
        let tcp = transport::tcp(&node.address).await?;
        match shake(&own.me, tcp, &node).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(err) if tls::is_stranger(&err) => Err(io::Error::new(io::ErrorKind::PermissionDenied, err)),
            Err(err) => Err(err),
        }
    }

    /// The same, by the agent where there is one that can.
    async fn reach_again(&self, name: &str) -> io::Result<Io> {
        if let Some(ByAgent { socket, .. }) = &self.1
            && let Ok(io) = pipe::dial(socket, name).await
        {
            return Ok(Box::new(io));
        }
        self.connect_again(name).await
    }

    /// How to get back to a session at `node`; what is asked when that has been away for `patience` is refused at once.
    fn resume(&self, node: &Node, linger: Duration, patience: Duration) -> Resume {
        let (dialer, name) = (self.clone(), node.name.to_string());
        let dial: Dial = Arc::new(move || {
            let (dialer, name) = (dialer.clone(), name.clone());
            Box::pin(async move { dialer.reach_again(&name).await })
        });
        // What is much goes straight there, also where all else goes by the agent.
        let (dialer, name) = (Self(self.0.clone(), None), node.name.to_string());
        let bulk: Dial = Arc::new(move || {
            let (dialer, name) = (dialer.clone(), name.clone());
            Box::pin(async move { dialer.connect_again(&name).await })
        });
        Resume { bulk: Some(bulk), dial, linger, patience }
    }

    /// A client of `node`, and its root. A session that the node keeps for `linger` when the connection is lost.
    pub async fn attach(&self, node: &Node, linger: Duration) -> Result<(Client, NodeRef)> {
        let (linger, patience) = self.patience(linger);
        self.attach_for(node, linger, patience).await
    }

    /// The same, once the node has proven its key: what it says then is not waited for, and whether it lets me in is
    /// told by what is asked of it first.
    pub async fn attach_at_once(&self, node: &Node, linger: Duration) -> Result<(Client, NodeRef)> {
        let stream = self.reach(node).await?;
        let (linger, patience) = self.patience(linger);
        let client = Client::assuming(stream, client::Options::default(), self.resume(node, linger, patience));
        let top = Qid { kind: FileKind::Dir, version: 0, path: 0 };
        let root = client.attach_to(&Who::owner(), b"", top).await.at("attach", &node.name)?;
        Ok((client, root))
    }

    /// The same for a mount, whose users wait for the node as long as that keeps the session.
    pub async fn attach_patiently(&self, node: &Node, timeout: Duration) -> Result<(Client, NodeRef)> {
        self.attach_for(node, timeout, timeout).await
    }

    async fn attach_for(&self, node: &Node, linger: Duration, patience: Duration) -> Result<(Client, NodeRef)> {
        let stream = self.reach(node).await?;
        let connected = Client::resuming(stream, client::Options::default(), self.resume(node, linger, patience));
        let client = connected.await.map_err(|err| {
            let io = match &err {
                client::Error::Io(io) | client::Error::Frame(p9::server::Error::Io(io)) => self.refused(node, io),
                _ => None,
            };
            io.unwrap_or_else(|| Error::new("connect", &node.name, err))
        })?;
        let root = client.attach(&Who::owner(), b"").await.at("attach", &node.name)?;
        Ok((client, root))
    }

    /// Whether the node called `name` may come back by itself: it is known, with the key that it shows, and lets me in
    /// as far as can be seen.
    pub async fn may_come_back(&self, name: &str) -> bool {
        let is_over = |err: &io::Error| {
            let gone = matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
            gone || tls::is_refusal(err)
        };
        match self.connect_again(name).await {
            // Whether a key is let in is told with the first answer.
            Ok(stream) => match Client::connect(stream, client::Options::default()).await {
                Err(client::Error::Io(err) | client::Error::Frame(p9::server::Error::Io(err))) => !is_over(&err),
                _ => true,
            },
            Err(err) => !is_over(&err),
        }
    }

    fn known(&self) -> Result<Known> {
        match &self.0 {
            Way::Own(own) => Known::parse(&own.known_nodes, &known::read(&own.known_nodes)?),
            Way::Lent(known) => Ok(Known::clone(known)),
        }
    }

    /// The error for a node that does not let me in, if that is what `err` means.
    fn refused(&self, node: &Node, err: &io::Error) -> Option<Error> {
        let Way::Own(own) = &self.0 else { return None };
        let remedy = format!("slashn allow '{}', on {}", own.key.bare_line(), node.name);
        let refused = || Error::new("connect", &node.name, "it does not let this key in").remedy(remedy);
        tls::is_refusal(err).then(refused)
    }
}

/// The handshake with `node` on `tcp`, as `me`.
async fn shake(me: &tls::Identity, tcp: TcpStream, node: &Node) -> io::Result<TlsStream<TcpStream>> {
    let expected = node.key.clone();
    let config = tls::client_config(me, Arc::new(move |spki: &[u8]| expected.is(spki)));
    let config = config.map_err(io::Error::other)?;
    let runtime = tokio::runtime::Handle::current();
    let shaken = tokio::task::spawn_blocking(move || runtime.block_on(tls::connect(tcp, config)));
    shaken.await.unwrap_or_else(|err| Err(io::Error::other(err))).map(|(stream, _)| stream)
}
