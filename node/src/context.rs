//! What every command is given: the home, the environment, and how to print.
//!
//! Made once, in `main`, which alone reads the environment; everything else gets it from here.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use crate::cli::Global;
use crate::error::{At, Error, Result};
use crate::home::Home;
use crate::homes;

/// The environment, as it was when the program started.
#[derive(Clone, Debug)]
pub struct Environment(Vec<(OsString, OsString)>);

impl Environment {
    /// The environment that holds `variables` (`std::env::vars_os()` in `main`).
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        Self(variables.into_iter().collect())
    }

    /// The value of `name`; an empty value counts as none.
    pub fn var(&self, name: &str) -> Option<&OsStr> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_os_str()).filter(|value| !value.is_empty())
    }

    /// Everything in it, in order.
    pub fn vars(&self) -> &[(OsString, OsString)] {
        &self.0
    }
}

/// What every command is given.
#[derive(Clone, Debug)]
pub struct Context {
    /// Where the home is, or would be: absolute.
    pub home: PathBuf,
    /// The environment.
    pub environment: Environment,
    /// Print lists as JSON.
    pub json: bool,
    /// How often `-v` was given.
    pub verbose: u8,
}

impl Context {
    /// What was typed and what the environment says, put together. The home is `--home`, else `$SLASHN_HOME`, else,
    /// for root where it exists, `/etc/slashn`, else `$XDG_CONFIG_HOME/slashn`, else `~/.config/slashn`.
    pub fn new(typed: &Global, environment: Environment) -> Result<Self> {
        let home = home_path(typed, &environment)
            .ok_or_else(|| Error::new("find the home", "$HOME", "is not set").remedy("slashn --home DIR ..."))?;
        let home = std::path::absolute(&home).map_err(|error| Error::new("find the home", home.display(), error))?;
        Ok(Self { home, environment, json: typed.json, verbose: typed.verbose })
    }

    /// Opens the home, and notes that it is one.
    pub fn open_home(&self) -> Result<Home> {
        let home = Home::open(&self.home)?;
        if let Err(err) = self.note_home() {
            tracing::warn!("{err}: to the nodes that run commands for you it may look like any other directory");
        }
        Ok(home)
    }

    /// The same, for what needs no more than the nodes that I know: in a command on a node whose caller lends it those,
    /// the caller's.
    pub fn home_or_lent(&self) -> Result<Home> {
        match Home::lent() {
            Some(lent) if !self.home.exists() => Ok(lent),
            _ => self.open_home(),
        }
    }

    /// Notes that the home is one: see [`homes`].
    pub fn note_home(&self) -> Result<()> {
        let Some(user_home) = self.user_home() else { return Ok(()) };
        homes::note(&user_home, &self.home).at("note the home", self.home.display())
    }

    /// All homes of slashn that the user has, this one first.
    pub fn homes(&self) -> Vec<PathBuf> {
        let others = self.user_home().map(|user_home| homes::all(&user_home)).unwrap_or_default();
        std::iter::once(self.home.clone()).chain(others).collect()
    }

    /// The socket of the ssh-agent, `$SSH_AUTH_SOCK`.
    pub fn agent(&self) -> Option<&Path> {
        self.environment.var("SSH_AUTH_SOCK").map(Path::new)
    }

    /// What the user is called by servers that go by what they are told: `$USER`, else `none`.
    pub fn user(&self) -> String {
        self.environment.var("USER").map_or_else(|| "none".into(), |name| name.to_string_lossy().into_owned())
    }

    /// The directory of the user: `$HOME`, else what passwd(5) says.
    pub fn user_home(&self) -> Option<PathBuf> {
        self.environment.var("HOME").map(PathBuf::from).or_else(std::env::home_dir)
    }
}

fn home_path(typed: &Global, environment: &Environment) -> Option<PathBuf> {
    let named = |name| environment.var(name).map(PathBuf::from);
    let for_root = || {
        let path = PathBuf::from("/etc/slashn");
        (rustix::process::geteuid().is_root() && path.exists()).then_some(path)
    };
    typed
        .home
        .clone()
        .or_else(|| named("SLASHN_HOME"))
        .or_else(for_root)
        .or_else(|| named("XDG_CONFIG_HOME").map(|config| config.join("slashn")))
        .or_else(|| named("HOME").map(|home| home.join(".config/slashn")))
}
