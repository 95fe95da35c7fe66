//! A session on another node, seen from here: its files, opened as they are needed.

use std::fmt::Display;
use std::time::Duration;

use bytes::Bytes;
use p9::client::stream_at;
use p9::{Errno, Handle, How, Name, NodeRef, Want};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::streams::write_all;
use super::{Error, Event, Request, outcome};
use crate::cpu::random_hex;
use crate::session::list_text;
use crate::signals;

/// How long a node may take to hear of a signal.
const HEARD: Duration = Duration::from_secs(5);

/// The most that is read of a file that is one short text.
const TEXT: u32 = 64 << 10;

/// A session of ours; one that was made by this lives while this does.
pub(super) struct Remote {
    node: NodeRef,
    /// What it is called: the name that was chosen for it, or its number.
    name: String,
    /// Its clone file, or `ctl`: writing is the same.
    ctl: Handle,
}

impl Remote {
    /// Makes a session on the node whose root is `node`, whose answer may still be to come.
    pub(super) async fn open(node: NodeRef) -> Result<Self, Error> {
        let secret = random_hex().map_err(|errno| Error::of(outcome::CLONE, errno, false))?;
        let name = format!("+{secret}");
        let ctl = stream(&node, &name, "clone", How::RDWR).await;
        Ok(Self { ctl: ctl.map_err(|errno| Error::of(outcome::CLONE, errno, false))?, node, name })
    }

    /// The session called `session`, which somebody made. Errors: `ENOENT` for none of mine.
    pub(super) async fn of(node: NodeRef, session: impl Display) -> Result<Self, Error> {
        let session = session.to_string();
        let names = [name("cpu")?, name(&session)?, name("ctl")?];
        let opened = node.open_at(&names, How::WRITE, Want::default()).await;
        let ctl = opened.map_err(|errno| Error::of("the session", errno, false))?.handle;
        Ok(Self { node, name: session, ctl })
    }

    /// What the session is called.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What the connection that brings our tree must say: of a session that was made by this.
    pub(super) fn nonce(&self) -> &str {
        self.name.trim_start_matches('+')
    }

    /// The session's number, which its clone file tells.
    pub(super) async fn number(&self) -> Result<u64, Error> {
        let said = self.ctl.read(0, TEXT).await.map_err(|errno| Error::of(outcome::CLONE, errno, true))?;
        let number = std::str::from_utf8(&said).ok().and_then(|text| text.trim_end().parse().ok());
        number.ok_or(Error::Garbled(outcome::CLONE))
    }

    /// The session's file `file`, opened: what goes wrong with that may be told by its first use. Errors carry `file`
    /// as the step.
    pub(super) async fn file(&self, file: &'static str, how: How) -> Result<Handle, Error> {
        stream(&self.node, &self.name, file, how).await.map_err(|errno| Error::of(file, errno, false))
    }

    /// What the short file `file` says.
    async fn text(&self, file: &'static str) -> Result<String, Error> {
        let text = self.file(file, How::READ).await?.read(0, TEXT).await;
        let text = text.map_err(|errno| Error::of(file, errno, false))?;
        String::from_utf8(text.to_vec()).map_err(|_| Error::Garbled(file))
    }

    /// Says what to run, and returns once it runs.
    pub(super) async fn exec(&self, command: &Request) -> Result<(), Error> {
        if command.is_large() {
            self.put("env", list_text(&command.env)).await?;
            self.put("args", list_text(&command.argv)).await?;
        }
        match self.say(command.to_ctl(&["exec"])).await {
            Ok(()) => Ok(()),
            // It was never sent.
            Err(errno @ Errno::EHOSTUNREACH) => Err(Error::Lost { step: outcome::CLONE, errno }),
            // The errno says that it failed, the status why.
            Err(errno) => {
                let status = self.text("status").await.unwrap_or_default();
                Err(outcome::failure(&status).unwrap_or_else(|| Error::of(outcome::EXEC, errno, false)))
            }
        }
    }

    /// Has the command outlive this session's clone file, with nothing more to read.
    pub(super) async fn detach(&self) -> Result<(), Error> {
        self.say("eof\ndetach\n").await.map_err(|errno| Error::of("detach", errno, true))
    }

    /// Says ctl commands, all in one message.
    async fn say(&self, text: impl Into<Bytes>) -> Result<(), Errno> {
        let text = text.into();
        let length = text.len();
        match self.ctl.write(0, text).await {
            Ok(written) if (written.count as usize) < length => Err(Errno::EMSGSIZE),
            said => said.map(|_| ()),
        }
    }

    /// Writes the session's file `file`, in as many messages as it takes.
    async fn put(&self, file: &'static str, text: Bytes) -> Result<(), Error> {
        let handle = self.file(file, How { truncate: true, ..How::WRITE }).await?;
        let written = async {
            write_all(&handle, 0, text).await?;
            handle.close().await
        };
        written.await.map_err(|errno| Error::of(file, errno, false))
    }

    /// Forwards what happens here until there is a reason not to go on. `runs` says whether the command runs yet.
    pub(super) async fn forward(&self, mut events: mpsc::Receiver<Event>, runs: watch::Receiver<bool>) -> Error {
        while let Some(event) = events.recv().await {
            let text = match event {
                Event::Winsize(rows, cols) => format!("winsize {rows} {cols}\n"),
                Event::Signal(signal) if !*runs.borrow() && ends_a_program(signal) => {
                    return Error::Interrupted(signal);
                }
                Event::Signal(signal) => format!("kill {}\n", signals::name(signal)),
            };
            match timeout(HEARD, self.say(text)).await {
                Ok(Ok(())) => {}
                // A command that has just ended cannot be signalled; a node that is lost is noticed by whoever waits.
                Ok(Err(errno)) => tracing::debug!(?event, %errno, "not forwarded"),
                // Whoever waits for a node that is away is to be able to leave.
                Err(_) if matches!(event, Event::Signal(signal) if ends_a_program(signal)) => {
                    return Error::Lost { step: "kill", errno: Errno::ETIMEDOUT };
                }
                Err(_) => tracing::debug!(?event, "not forwarded in time"),
            }
        }
        std::future::pending().await
    }

    /// Sends a signal. Errors: `ESRCH` if the command does not run.
    pub(super) async fn kill(&self, signal: i32) -> Result<(), Error> {
        let said = self.say(format!("kill {}\n", signals::name(signal))).await;
        said.map_err(|errno| Error::of("kill", errno, false))
    }
}

/// The file `file` of the session called `session`.
async fn stream(node: &NodeRef, session: &str, file: &str, how: How) -> Result<Handle, Errno> {
    let names = [Name::new(b"cpu")?, Name::new(session.as_bytes())?, Name::new(file.as_bytes())?];
    stream_at(node, &names, how).await
}

fn ends_a_program(signal: i32) -> bool {
    matches!(signal, libc::SIGHUP | libc::SIGINT | libc::SIGQUIT | libc::SIGTERM)
}

fn name(text: &str) -> Result<Name<'_>, Error> {
    Name::new(text.as_bytes()).map_err(|errno| Error::of("a name", errno, false))
}
