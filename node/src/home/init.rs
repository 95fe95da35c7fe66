//! Making a home, or completing one that is half made.
//!
//! Called by `slashn init`. What is there already is checked and kept, never overwritten; grid.toml comes last, so that
//! a home with one has everything else. Running it again with the same wishes changes nothing.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::{Home, agent_key, edit_lock, user_file};
use crate::config::{Config, NodeName};
use crate::error::{At, Error, Result};
use crate::files;
use crate::keys::{self, Key};

const STEP: &str = "make the home";

/// What a home is to be like.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// The node's name, if the user gave one.
    pub name: Option<NodeName>,
    /// Where the user's key is: `agent`, or a path; `None` is a key of the home's own.
    pub identity: Option<String>,
    /// What the user is called here: for the comment of a new key.
    pub user: String,
}

/// What [`init`] gives.
#[derive(Debug)]
pub struct Made {
    /// The home.
    pub home: Home,
    /// Its name.
    pub name: NodeName,
    /// The user's key.
    pub user: Key,
    /// The node's key.
    pub node: Key,
    /// The files that were not there before, by their names.
    pub files: Vec<&'static str>,
}

/// Makes the home at `path`, or completes it. `agent` is the socket of the ssh-agent.
pub fn init(path: &Path, wishes: &Wishes, agent: Option<&Path>) -> Result<Made> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).at(STEP, path.display())?;
    files::check_dir(STEP, path)?;
    let _one_at_a_time = edit_lock(path)?;
    let home = Home { path: path.into(), is_lent: false };
    check_not_anothers(&home)?;
    let config = if home.grid().exists() { Some(home.config()?) } else { None };
    if let Some(config) = &config {
        check_same(&home, config, wishes)?;
    }
    let name = config.as_ref().map(|c| c.name.clone()).or_else(|| wishes.name.clone()).unwrap_or_else(host_name);
    let identity = match &config {
        Some(config) => config.identity.clone(),
        None => wishes.identity.as_deref().map(absolute).transpose()?,
    };

    let mut made = Vec::new();
    let chosen = config.as_ref().and_then(|c| c.agent_key.as_deref());
    let user = match identity.as_deref() {
        None => own_key(&home.user_key_path(), &format!("{}@{name}", wishes.user), "id_ed25519", &mut made)?,
        Some("agent") => agent_key(agent, chosen)?.key,
        Some(file) => user_file(&path.join(file), agent)?.key,
    };
    let node = own_key(&home.node_key_path(), name.as_str(), "node_ed25519", &mut made)?;
    if node == user {
        return Err(home.same_key());
    }
    let lists = [
        ("authorized_keys", home.authorized_keys(), authorized_text(&user)),
        ("known_nodes", home.known_nodes(), KNOWN_TEXT.to_owned()),
        ("grid.toml", home.grid(), {
            let agent_key = (identity.as_deref() == Some("agent")).then(|| user.fingerprint());
            Config::fresh(&name, identity.as_deref(), agent_key.as_deref())
        }),
    ];
    home.run()?;
    for (name, path, text) in lists {
        if !path.exists() {
            files::create(STEP, &path, &text, 0o600)?;
            made.push(name);
        }
    }
    Ok(Made { home, name, user, node, files: made })
}

fn authorized_text(user: &Key) -> String {
    format!(
        "# Who may come in; edit with `slashn allow` and `slashn deny`, or by hand.\n\
         # A key without only=\"EXPORT[:ro],...\" may run commands as you.\n{user}\n"
    )
}

const KNOWN_TEXT: &str = "# The nodes I trust: NAME ADDR:PORT TRUST KEY; see `slashn add`.\n";

/// The key in the file `path`, made if it is not there.
fn own_key(path: &Path, comment: &str, name: &'static str, made: &mut Vec<&'static str>) -> Result<Key> {
    if !path.exists() {
        made.push(name);
        return keys::file::generate(path, comment);
    }
    let key = keys::public_half(path)?.ok_or_else(|| Error::new(STEP, path.display(), "has a passphrase"))?;
    let public = keys::file::public_path(path);
    if !public.exists() {
        keys::file::write_public(path, &key)?;
    }
    Ok(key)
}

/// A directory with other things in it and nothing of a home is no place to make one.
fn check_not_anothers(home: &Home) -> Result<()> {
    let (mut ours, mut others) = (false, false);
    for entry in std::fs::read_dir(&home.path).at(STEP, home.path.display())? {
        let name = entry.at(STEP, home.path.display())?.file_name();
        match name.to_str() {
            Some("grid.toml" | "id_ed25519" | "node_ed25519" | "authorized_keys" | "known_nodes") => ours = true,
            // Where it is left by a crash while the first file was written.
            Some("run" | ".id_ed25519.part" | ".node_ed25519.part") => {}
            _ => others = true,
        }
    }
    if others && !ours {
        let reason = "has other files in it: it is no home of slashn";
        return Err(Error::new(STEP, home.path.display(), reason).remedy("slashn --home DIR init"));
    }
    Ok(())
}

fn check_same(home: &Home, config: &Config, wishes: &Wishes) -> Result<()> {
    let differs = |what, is: &str, wanted: &str| {
        let reason = format!("the home is made already, and its {what} is {is}, not {wanted}");
        Err(Error::new(STEP, home.grid().display(), reason))
    };
    match &wishes.name {
        Some(name) if *name != config.name => return differs("name", config.name.as_str(), name.as_str()),
        _ => {}
    }
    match wishes.identity.as_deref().map(absolute).transpose()? {
        Some(wanted) if config.identity.as_deref() != Some(&wanted) => {
            differs("identity", config.identity.as_deref().unwrap_or("id_ed25519"), &wanted)
        }
        _ => Ok(()),
    }
}

/// `identity` as grid.toml keeps it: the same from whatever directory it is used.
fn absolute(identity: &str) -> Result<String> {
    if identity == "agent" {
        return Ok(identity.into());
    }
    let path = std::path::absolute(PathBuf::from(identity)).at("find the identity", identity)?;
    path.into_os_string().into_string().map_err(|path| Error::new("find the identity", path.display(), "is not UTF-8"))
}

/// This host's name, as far as it can be a node's.
fn host_name() -> NodeName {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let short: String = host.trim().chars().take_while(|&c| c != '.').take(64).collect();
    let word = short.replace(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_', "-");
    word.trim_start_matches('-').parse().unwrap_or_else(|_| NodeName::fallback())
}
