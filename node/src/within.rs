//! A command that a node runs, from within: how slashn and rcpu know that they are in one, and reach its caller.
//!
//! The node puts the namespace of each command in a file of its /run ([`namespace`]). The caller's home and keys are
//! not seen there. Where the caller lends its nodes (`rcpu --forward rcpu`, `rcpu/lend.rs`), a socket leads back to the
//! `rcpu` that runs the command: one line says what is wanted, `nodes` (the lines of known_nodes) or `dial NAME` (one
//! line says how that went, and then it is a connection to that node, which the caller has made with its key).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::error::{At, Error, Result};
use crate::namespace::host_name;

/// Where a command finds what is for it.
pub const DIRECTORY: &str = "/run/slashn";
/// The socket that leads to the caller, in there.
pub const CALLER: &str = "/run/slashn/caller";

/// The most that a line has, in bytes; and all nodes.
const LINE: usize = 4096;
const NODES: u64 = 8 << 20;
/// How long the caller may take for its nodes, and to dial one: a person may be asked for a key.
const TELLS: Duration = Duration::from_secs(10);
const DIALS: Duration = Duration::from_secs(70);

/// The namespace of the command that this process is part of, if it is in one.
pub fn namespace() -> Option<String> {
    std::fs::read_to_string(Path::new(DIRECTORY).join("ns")).ok()
}

/// Where the caller can be reached, if it lends its nodes.
pub fn caller() -> Option<PathBuf> {
    Some(PathBuf::from(CALLER)).filter(|caller| caller.exists())
}

/// What to say of `home`, which is not there: in a command that is no wonder.
pub fn no_home(home: &Path) -> Option<Error> {
    namespace()?;
    let node = host_name().unwrap_or_else(|| "a node".into());
    let reason = format!("it is the caller's, and hidden from a command on {node}, as all keys are");
    let remedy = format!("rcpu --forward rcpu {node} ..., where the command was run from, to lend it your nodes");
    Some(Error::new("open the home", home.display(), reason).remedy(remedy))
}

/// The nodes that the caller knows: lines of known_nodes. It blocks.
pub fn nodes() -> Result<String> {
    let ask = || -> io::Result<String> {
        let mut stream = StdUnixStream::connect(CALLER)?;
        stream.set_read_timeout(Some(TELLS))?;
        stream.write_all(b"nodes\n")?;
        let mut text = String::new();
        stream.take(NODES).read_to_string(&mut text)?;
        Ok(text)
    };
    ask().at("ask the caller for its nodes", CALLER)
}

/// A connection to the node `name`, which the caller dials.
pub async fn dial(name: &str) -> Result<UnixStream> {
    let asked = async {
        let mut stream = UnixStream::connect(CALLER).await?;
        stream.write_all(format!("dial {name}\n").as_bytes()).await?;
        let said = line(&mut stream).await?;
        Ok::<_, io::Error>((stream, said))
    };
    let late = |_| Err(io::Error::new(io::ErrorKind::TimedOut, "the caller does not answer"));
    let (stream, said) = timeout(DIALS, asked).await.unwrap_or_else(late).at("have the caller connect", name)?;
    match said.strip_prefix("error ") {
        Some(error) => Err(Error::told(error)),
        None => Ok(stream),
    }
}

/// One line, byte by byte: what follows is for others. Errors: it is too long, or no text.
pub async fn line(io: &mut (impl AsyncRead + Unpin)) -> io::Result<String> {
    let mut line = Vec::new();
    while line.len() < LINE {
        match io.read_u8().await? {
            b'\n' => return String::from_utf8(line).map_err(io::Error::other),
            byte => line.push(byte),
        }
    }
    Err(io::Error::other("the line is too long"))
}
