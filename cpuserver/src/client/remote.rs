//! A session on another node, seen from here: its files, opened as they are needed.

use std::time::Duration;

use bytes::Bytes;
use p9::{Errno, Handle, How, Name, NodeRef, Want};
use tokio::sync::{mpsc, watch};

use super::streams::write_all;
use super::{Error, Event, Request, outcome};
use crate::session::list_text;
use crate::signals;

/// The most that is read of a file that is one short text.
const TEXT: u32 = 64 << 10;

/// A session of ours; one that was made by this lives while this does.
pub(super) struct Remote {
    node: NodeRef,
    id: u64,
    /// The clone file, of which reading gave the number, or `ctl`: writing is the same.
    ctl: Handle,
}

impl Remote {
    /// Makes a session on the node whose root is `node`.
    pub(super) async fn open(node: NodeRef) -> Result<Self, Error> {
        let refused = |errno| Error::of(outcome::CLONE, errno, false);
        let names = [name("cpu")?, name("clone")?];
        let want = Want { data: 64, ..Want::default() };
        let opened = node.open_at(&names, How::RDWR, want).await.map_err(refused)?;
        let first = match opened.first {
            Some(first) => first,
            None => opened.handle.read(0, 64).await.map_err(refused)?,
        };
        let id = std::str::from_utf8(&first).ok().and_then(|text| text.lines().next()?.parse().ok());
        let id = id.ok_or(Error::Garbled(outcome::CLONE))?;
        Ok(Self { node, id, ctl: opened.handle })
    }

    /// The session numbered `id`, which somebody made. Errors: `ENOENT` for none of mine.
    pub(super) async fn of(node: NodeRef, id: u64) -> Result<Self, Error> {
        let number = id.to_string();
        let names = [name("cpu")?, name(&number)?, name("ctl")?];
        let opened = node.open_at(&names, How::WRITE, Want::default()).await;
        let ctl = opened.map_err(|errno| Error::of("the session", errno, false))?.handle;
        Ok(Self { node, id, ctl })
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The session's file `file`, opened. Errors carry `file` as the step.
    pub(super) async fn file(&self, file: &'static str, how: How) -> Result<Handle, Error> {
        self.open_file(file, how, 0).await.map(|opened| opened.handle)
    }

    async fn open_file(&self, file: &'static str, how: How, data: u32) -> Result<p9::Opened, Error> {
        let id = self.id.to_string();
        let names = [name("cpu")?, name(&id)?, name(file)?];
        let opened = self.node.open_at(&names, how, Want { data, ..Want::default() }).await;
        opened.map_err(|errno| Error::of(file, errno, false))
    }

    /// What the short file `file` says.
    async fn text(&self, file: &'static str) -> Result<String, Error> {
        let opened = self.open_file(file, How::READ, TEXT).await?;
        let text = match opened.first {
            Some(first) => first,
            None => opened.handle.read(0, TEXT).await.map_err(|errno| Error::of(file, errno, false))?,
        };
        String::from_utf8(text.to_vec()).map_err(|_| Error::Garbled(file))
    }

    /// What the connection that brings our tree must say.
    pub(super) async fn nonce(&self) -> Result<String, Error> {
        self.text("nonce").await.map(|text| text.trim_end().to_owned())
    }

    /// Says what to run, and returns once it runs.
    pub(super) async fn exec(&self, command: &Request) -> Result<(), Error> {
        if command.is_large() {
            self.put("env", list_text(&command.env)).await?;
            self.put("args", list_text(&command.argv)).await?;
        }
        match self.say(command.to_ctl(&["exec"])).await {
            Ok(()) => Ok(()),
            // The errno says that it failed, the status why.
            Err(errno) => {
                let status = self.text("status").await.unwrap_or_default();
                Err(outcome::failure(&status).unwrap_or_else(|| Error::of("exec", errno, false)))
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
            // A command that has just ended cannot be signalled; a node that is lost is noticed by whoever waits.
            if let Err(errno) = self.say(text).await {
                tracing::debug!(?event, %errno, "not forwarded");
            }
        }
        std::future::pending().await
    }

    /// Sends a signal. Errors: `ESRCH` if the command does not run.
    pub(super) async fn kill(&self, signal: i32) -> Result<(), Error> {
        let said = self.say(format!("kill {}\n", signals::name(signal))).await;
        said.map_err(|errno| Error::of("kill", errno, false))
    }

    /// Ends the session, unless it was detached.
    pub(super) async fn close(&self) {
        const PATIENCE: Duration = Duration::from_secs(1);
        // A node that does not answer ends it when the connection goes.
        let _ = tokio::time::timeout(PATIENCE, self.ctl.close()).await;
    }
}

fn ends_a_program(signal: i32) -> bool {
    matches!(signal, libc::SIGHUP | libc::SIGINT | libc::SIGQUIT | libc::SIGTERM)
}

fn name(text: &str) -> Result<Name<'_>, Error> {
    Name::new(text.as_bytes()).map_err(|errno| Error::of("a name", errno, false))
}
