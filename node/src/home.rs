//! The home: the directory that holds who I am, whom I let in, and whom I know.
//!
//! Opened by every command ([`Home::open`]), made by `slashn init` ([`init`]). Opening checks that the home is whole
//! and that nobody else can see its keys or change its lists; what is wrong is named, with the command that mends it.
//! Whoever edits a file of it holds [`Home::edit`]; whoever serves from it holds [`Home::lock`].

pub mod init;

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::authorized::Authorized;
use crate::config::Config;
use crate::error::{At, Error, Result};
use crate::files::{self, Guard};
use crate::keys::{self, Key, SecretKey};
use crate::known::Known;
use crate::within;

/// A home that is whole.
#[derive(Clone, Debug)]
pub struct Home {
    path: PathBuf,
    /// It is where a command on a node has what its caller lends it, and holds no key.
    is_lent: bool,
}

impl Home {
    /// The home at `path`. Errors: it is not there, not whole, or open to others.
    pub fn open(path: &Path) -> Result<Self> {
        const STEP: &str = "open the home";
        let here = || format!("slashn --home {} init", path.display());
        if !path.exists() {
            let none = || Error::new(STEP, path.display(), "there is none yet").remedy(here());
            return Err(within::no_home(path).unwrap_or_else(none));
        }
        files::check_dir(STEP, path)?;
        let home = Self { path: path.into(), is_lent: false };
        for file in [home.grid(), home.node_key_path(), home.authorized_keys()] {
            if !file.exists() {
                return Err(Error::new(STEP, file.display(), "is missing: the home is half made").remedy(here()));
            }
        }
        if home.config()?.identity.is_none() && !home.user_key_path().exists() {
            let file = home.user_key_path();
            return Err(Error::new(STEP, file.display(), "is missing: the home is half made").remedy(here()));
        }
        Ok(home)
    }

    /// What stands for it in a command on a node whose caller lends it its nodes.
    pub fn lent() -> Option<Self> {
        within::caller().map(|_| Self { path: within::DIRECTORY.into(), is_lent: true })
    }

    /// Whether it is [`Home::lent`].
    pub fn is_lent(&self) -> bool {
        self.is_lent
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `grid.toml`
    pub fn grid(&self) -> PathBuf {
        self.path.join("grid.toml")
    }

    /// `id_ed25519`: the user's own key, unless grid.toml names another.
    pub fn user_key_path(&self) -> PathBuf {
        self.path.join("id_ed25519")
    }

    /// `node_ed25519`
    pub fn node_key_path(&self) -> PathBuf {
        self.path.join("node_ed25519")
    }

    /// `authorized_keys`
    pub fn authorized_keys(&self) -> PathBuf {
        self.path.join("authorized_keys")
    }

    /// `known_nodes`
    pub fn known_nodes(&self) -> PathBuf {
        self.path.join("known_nodes")
    }

    /// What grid.toml says.
    pub fn config(&self) -> Result<Config> {
        Config::parse(&self.grid(), &files::read("read", &self.grid(), Guard::Unwritable)?)
    }

    /// Who may come in.
    pub fn authorized(&self) -> Result<Authorized> {
        Authorized::open(&self.authorized_keys())
    }

    /// Whom I know.
    pub fn known(&self) -> Result<Known> {
        if self.is_lent {
            return Known::parse(Path::new(within::CALLER), &within::nodes()?);
        }
        Known::open(&self.known_nodes())
    }

    /// The node's key. Errors: unreadable, garbled, or the same as the user's, which would let whoever breaks the node
    /// act as the user elsewhere.
    pub fn node_key(&self) -> Result<SecretKey> {
        let path = self.node_key_path();
        let Some(secret) = keys::file::read(&path)? else {
            let reason = "has a passphrase: a node starts by itself, so its key has none";
            return Err(Error::new("read the node's key", path.display(), reason));
        };
        self.check_apart(&secret.key)?;
        Ok(secret)
    }

    /// The user's key: the home's own, or the one that grid.toml names. `agent` is the socket of the ssh-agent.
    /// Blocks, and may ask the agent.
    pub fn user_key(&self, agent: Option<&Path>) -> Result<SecretKey> {
        let config = self.config()?;
        let secret = match config.identity.as_deref() {
            None => user_file(&self.user_key_path(), agent)?,
            Some("agent") => agent_key(agent, config.agent_key.as_deref())?,
            Some(path) => user_file(&self.path.join(path), agent)?,
        };
        let node = keys::public_half(&self.node_key_path())?;
        if node.is_some_and(|node| node == secret.key) {
            return Err(self.same_key());
        }
        Ok(secret)
    }

    fn check_apart(&self, node: &Key) -> Result<()> {
        let config = self.config()?;
        let same = match config.identity.as_deref() {
            Some("agent") => config.agent_key.is_some_and(|user| user == node.fingerprint()),
            named => {
                let path = named.map_or_else(|| self.user_key_path(), |path| self.path.join(path));
                // A user's key that cannot be read is the business of whoever needs it.
                keys::public_half(&path).ok().flatten().is_some_and(|user| user == *node)
            }
        };
        if same { Err(self.same_key()) } else { Ok(()) }
    }

    fn same_key(&self) -> Error {
        let path = self.node_key_path();
        let mend = format!("rm {} && slashn --home {} init", path.display(), self.path.display());
        Error::new("read the node's key", path.display(), "is the user's key; a node needs one of its own").remedy(mend)
    }

    /// 32 secret bytes that are this home's own and stay the same, a different set for each `purpose`.
    pub fn secret(&self, purpose: &str) -> Result<[u8; 32]> {
        if self.is_lent {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret).at("make a secret", purpose)?;
            return Ok(secret);
        }
        let key = files::read("read the node's key", &self.node_key_path(), Guard::Private)?;
        Ok(blake3::derive_key(&format!("slashn home: {purpose}"), key.as_bytes()))
    }

    /// The directory `run`, for sockets and state of what is running; made if it is missing.
    pub fn run(&self) -> Result<PathBuf> {
        let run = self.path.join("run");
        match DirBuilder::new().mode(0o700).create(&run) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error).at("make", run.display())?,
            _ => files::check_dir("open", &run)?,
        }
        Ok(run)
    }

    /// Held while a node serves from this home. Errors: one does already.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.run()?.join("lock");
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .at("lock the home", path.display())?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = (&file).take(32).read_to_string(&mut pid);
                let reason = format!("a node runs from it already (process {})", pid.trim());
                let remedy = format!("slashn --home {} down", self.path.display());
                return Err(Error::new("lock the home", self.path.display(), reason).remedy(remedy));
            }
            locked => locked.at("lock the home", path.display())?,
        }
        let said = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
        said.at("lock the home", path.display())?;
        Ok(Lock { _file: file })
    }

    /// Waits for its turn to look who serves `name` in `run/`, and to serve it; it lasts until what it gives is
    /// dropped, and should be short.
    pub fn turn(&self, name: &str) -> Result<File> {
        let path = self.run()?.join(format!("{name}.turn"));
        let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open.at("lock the home", path.display())?;
        flock(&file, FlockOperation::LockExclusive).at("lock the home", path.display())?;
        Ok(file)
    }

    /// The process that holds [`Home::lock`], if any does.
    pub fn holder(&self) -> Result<Option<u32>> {
        let path = self.path.join("run/lock");
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.at("read", path.display())?,
        };
        if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
            return Ok(None);
        }
        let mut pid = String::new();
        file.take(32).read_to_string(&mut pid).at("read", path.display())?;
        Ok(pid.trim().parse().ok())
    }

    /// Held while a file of the home is changed, so that there is one writer. Waits for another to finish.
    pub fn edit(&self) -> Result<Lock> {
        edit_lock(&self.path)
    }
}

/// A lock on the home; dropped, it is free.
#[derive(Debug)]
#[must_use = "dropping it unlocks"]
pub struct Lock {
    _file: File,
}

fn edit_lock(dir: &Path) -> Result<Lock> {
    let file = File::open(dir).at("lock the home", dir.display())?;
    flock(&file, FlockOperation::LockExclusive).at("lock the home", dir.display())?;
    Ok(Lock { _file: file })
}

/// The key in the file `path`: private, or public with the private half in the agent.
fn user_file(path: &Path, agent: Option<&Path>) -> Result<SecretKey> {
    if path.extension().is_some_and(|e| e == "pub") {
        return agent_holds(agent, keys::file::read_public(path)?);
    }
    if let Some(secret) = keys::file::read(path)? {
        return Ok(secret);
    }
    let public = keys::file::public_path(path);
    let key = keys::file::read_public(&public)?;
    agent_holds(agent, key).map_err(|_| {
        Error::new("read the user's key", path.display(), "has a passphrase and is in no ssh-agent")
            .remedy(format!("ssh-add {}", path.display()))
    })
}

/// The agent's key with this fingerprint; without one, its first that can be used.
fn agent_key(agent: Option<&Path>, fingerprint: Option<&str>) -> Result<SecretKey> {
    let socket = agent_socket(agent)?;
    let mut held = keys::agent::keys(socket)?.into_iter();
    let found = held.find(|key| fingerprint.is_none_or(|wanted| key.fingerprint() == wanted));
    let missing = || {
        let what = fingerprint.map_or("no ed25519 or P-256 key".into(), |wanted| format!("no key {wanted}"));
        Error::new("ask the ssh-agent", socket.display(), format_args!("it holds {what}")).remedy("ssh-add")
    };
    keys::agent::secret(socket, found.ok_or_else(missing)?)
}

fn agent_holds(agent: Option<&Path>, key: Key) -> Result<SecretKey> {
    let held = agent_key(agent, Some(&key.fingerprint()))?;
    Ok(SecretKey { key, ..held })
}

fn agent_socket(agent: Option<&Path>) -> Result<&Path> {
    agent.ok_or_else(|| {
        Error::new("ask the ssh-agent", "$SSH_AUTH_SOCK", "is not set").remedy("eval $(ssh-agent) && ssh-add")
    })
}
