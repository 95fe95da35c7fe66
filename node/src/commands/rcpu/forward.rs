//! `rcpu -L`: what connects here is connected to a socket that the node can reach, while the command runs.
//!
//! Listens before the command starts, so that whoever is to connect can rely on it; each connection has a task of its
//! own, and all end with the runtime. A socket file that was made is removed.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use cpuserver::client;
use p9::NodeRef;
use p9::dial::{Address, HostPort};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::error::{At, Error, Result};
use crate::output;

/// `[BIND:]PORT:HOST:PORT`, where each end may be a path instead, as ssh(1) has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Forward {
    listens: Address,
    connects: Address,
}

impl FromStr for Forward {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const USAGE: &str = "it is [BIND:]PORT:HOST:PORT, where a path may be instead of BIND:PORT or HOST:PORT";
        let parts = parts(text);
        let port = |text: &str| text.parse().map_err(|_| USAGE);
        let tcp = |host: &str, number: &str| {
            let host = host.trim_start_matches('[').trim_end_matches(']');
            if host.is_empty() {
                Err(USAGE)
            } else {
                Ok(Address::Tcp(HostPort { host: host.into(), port: port(number)? }))
            }
        };
        let is_path = |text: &str| text.contains('/');
        let (listens, connects) = match parts[..] {
            [here, there] if is_path(here) && is_path(there) => {
                (Address::Unix(here.into()), Address::Unix(there.into()))
            }
            [here, host, number] if is_path(here) => (Address::Unix(here.into()), tcp(host, number)?),
            [number, there] if is_path(there) => (tcp("localhost", number)?, Address::Unix(there.into())),
            [bind, number, there] if is_path(there) => (tcp(bind, number)?, Address::Unix(there.into())),
            [number, host, to] => (tcp("localhost", number)?, tcp(host, to)?),
            [bind, number, host, to] => (tcp(bind, number)?, tcp(host, to)?),
            _ => return Err(USAGE),
        };
        Ok(Self { listens, connects })
    }
}

/// What is between colons outside of brackets.
fn parts(text: &str) -> Vec<&str> {
    let mut within = false;
    text.split(|c| {
        within = (within || c == '[') && c != ']';
        c == ':' && !within
    })
    .collect()
}

impl Forward {
    /// Where it listens.
    pub(super) fn listens(&self) -> Address {
        self.listens.clone()
    }

    /// What it leads to.
    pub(super) fn connects(&self) -> Address {
        self.connects.clone()
    }
}

/// A socket file, which goes with this.
pub(super) struct Made(PathBuf);

impl Drop for Made {
    fn drop(&mut self) {
        // Somebody may have removed it.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Listens for `forward`, and carries what connects to the node whose root is `root`, until the runtime ends. Gives the
/// socket file that it made, if it made one. Call it on the runtime. Errors: it cannot listen.
pub(super) async fn listen(forward: &Forward, root: NodeRef) -> Result<Option<Made>> {
    const STEP: &str = "listen";
    let there = forward.connects.to_string();
    match &forward.listens {
        Address::Tcp(at) | Address::Tls(at) => {
            let listener = TcpListener::bind((at.host.as_str(), at.port)).await;
            let listener = listener.at(STEP, format_args!("{}:{}", at.host, at.port))?;
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    carry(stream, root.clone(), there.clone());
                }
            });
            Ok(None)
        }
        Address::Unix(path) => {
            let listener = bind(path)?;
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    carry(stream, root.clone(), there.clone());
                }
            });
            Ok(Some(Made(path.clone())))
        }
    }
}

/// A socket at `path` that this user alone can connect to.
fn bind(path: &Path) -> Result<UnixListener> {
    use rustix::fs::Mode;
    let before = rustix::process::umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener.map_err(|err| {
        let error = Error::new("listen", path.display(), &err);
        if err.kind() == std::io::ErrorKind::AddrInUse { error.remedy(format!("rm {}", path.display())) } else { error }
    })
}

fn carry(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, root: NodeRef, there: String) {
    tokio::spawn(async move {
        if let Err(errno) = client::forward(root, &there, stream).await {
            output::note(Error::new("connect", there, errno));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_is_what_ssh_takes() {
        let dials = |text: &str| {
            text.parse::<Forward>().map(|forward| (forward.listens.to_string(), forward.connects.to_string()))
        };
        for (text, here, there) in [
            ("8080:db:5432", "tcp!localhost!8080", "tcp!db!5432"),
            ("0.0.0.0:8080:db:5432", "tcp!0.0.0.0!8080", "tcp!db!5432"),
            ("[::1]:8080:[fe80::2]:5432", "tcp!::1!8080", "tcp!fe80::2!5432"),
            ("/tmp/s:db:5432", "unix!/tmp/s", "tcp!db!5432"),
            ("8080:/run/s", "tcp!localhost!8080", "unix!/run/s"),
            ("::1:/run/s", "", ""),
            ("127.0.0.1:8080:/run/s", "tcp!127.0.0.1!8080", "unix!/run/s"),
            ("./s:/run/s", "unix!./s", "unix!/run/s"),
            ("8080", "", ""),
            ("8080:db", "", ""),
            ("x:db:1", "", ""),
            ("1:db:70000", "", ""),
        ] {
            match dials(text) {
                Ok(both) => assert_eq!(both, (here.to_owned(), there.to_owned()), "{text}"),
                Err(_) => assert_eq!((here, there), ("", ""), "{text}"),
            }
        }
    }
}
