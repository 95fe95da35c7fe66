//! The `rcpu` library: a command on another node, as if it were local.
//!
//! [`run`] is called once per command by the `rcpu` binary (or anything else), in one task. It uses nothing but the
//! files under /cpu, so whatever it does can be done with cat and echo. It chooses the session's name, so nothing that
//! it says waits for an answer: all of it goes out together, up to the first reads of the streams and of how the
//! command ends; the caller's tree is brought meanwhile by whoever `serve` asks. It installs no signal handler and
//! reads no environment: signals and window sizes come in as [`Event`]s.

mod forward;
mod hints;
mod outcome;
mod remote;
mod request;
mod streams;

use std::fmt::Display;
use std::future::Future;
use std::pin::pin;

use p9::{Errno, NodeRef};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

pub use crate::launch::Exit;
pub use crate::signals::number as signal_number;
pub use forward::{Accept, Taken, forward};
pub use hints::hints;
pub use outcome::{Ended, Error};
pub use request::{Request, default_ns, environment, is_limit, node_root_ns};

use crate::inherited;
use remote::Remote;

/// The caller's ends of the command's streams. On a terminal nothing comes on `stderr`.
pub struct Stdio {
    /// What the command reads.
    pub stdin: Box<dyn AsyncRead + Send + Unpin>,
    /// Where its output goes.
    pub stdout: Box<dyn AsyncWrite + Send + Unpin>,
    /// Where its errors go.
    pub stderr: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Stdio {
    /// This process's own.
    pub fn inherit() -> Self {
        Self { stdin: inherited::input(), stdout: inherited::output(), stderr: inherited::error() }
    }
}

/// What happens to the caller while the command runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Event {
    /// A signal for the command, by its number here.
    Signal(i32),
    /// The terminal has these rows and columns now.
    Winsize(u16, u16),
}

/// Runs `command` on the node whose root is `node`, and returns how it ended.
///
/// `serve` gets the session's name and nonce, and is to see to it that a connection which begins with
/// [`crate::serve_back::line`] brings the caller's tree to that node; its error ends the command. It may end early or
/// last. A command whose namespace does not mention the caller needs none, and `serve` is not called.
///
/// A signal that would end a program (`HUP`, `INT`, `QUIT`, `TERM`), arriving before the command runs, ends the
/// attempt. When the future is dropped, the session and the command end.
pub async fn run<F>(
    node: NodeRef, serve: impl FnOnce(String, String) -> F, command: Request, stdio: Stdio,
    events: mpsc::Receiver<Event>,
) -> Result<Ended, Error>
where
    F: Future<Output = Result<(), String>>,
{
    run_and_tell(node, serve, command, &[], stdio, events, &tokio::sync::watch::Sender::new(false)).await
}

/// The same; `accepts` takes what connects there to the caller, and `running` says when the command runs.
#[allow(clippy::too_many_arguments, reason = "it is what `Command` gathers")]
pub(crate) async fn run_and_tell<F>(
    node: NodeRef, serve: impl FnOnce(String, String) -> F, command: Request, accepts: &[Accept], stdio: Stdio,
    events: mpsc::Receiver<Event>, running: &tokio::sync::watch::Sender<bool>,
) -> Result<Ended, Error>
where
    F: Future<Output = Result<(), String>>,
{
    let remote = Remote::open(node).await?;
    let runs = running.subscribe();
    let work = async {
        let exec = async {
            remote.exec(&command).await?;
            running.send_replace(true);
            Ok(())
        };
        let ((), exit) = tokio::try_join!(exec, streams::pump(&remote, stdio, running))?;
        Ok(exit)
    };
    let serving = async {
        if command.needs_caller() {
            serve(remote.name().to_owned(), remote.nonce().to_owned()).await.map_err(Error::Serve)?;
        }
        Ok(())
    };
    let (mut work, mut serving) = (pin!(work), pin!(serving));
    let mut signalling = pin!(remote.forward(events, runs));
    let mut taking = pin!(forward::take_all(&remote, accepts, running.subscribe()));
    tokio::select! {
        ended = &mut work => ended,
        ended = async {
            match (&mut serving).await {
                Err(err) => err,
                Ok(()) => std::future::pending().await,
            }
        } => Err(ended),
        err = &mut signalling => Err(err),
        never = &mut taking => match never {},
    }
}

/// Starts `command` and leaves it running: gives the session's number. Arguments and errors as for [`run`]; the
/// command reads nothing, and the last of what it writes stays in the session until someone reads it ([`attach`]).
/// A signal that ends the attempt leaves nothing running.
pub async fn start_detached<F>(
    node: NodeRef, serve: impl FnOnce(String, String) -> F, command: Request, events: mpsc::Receiver<Event>,
) -> Result<u64, Error>
where
    F: Future<Output = Result<(), String>>,
{
    let remote = Remote::open(node).await?;
    let serving = async {
        if command.needs_caller() {
            serve(remote.name().to_owned(), remote.nonce().to_owned()).await.map_err(Error::Serve)?;
        }
        Ok(())
    };
    let starting = async {
        tokio::try_join!(serving, remote.exec(&command))?;
        // Not before it runs: whoever ends this until then ends the command, too.
        remote.detach().await?;
        remote.number().await
    };
    let (_running, runs) = tokio::sync::watch::channel(false);
    tokio::select! {
        started = starting => started,
        err = remote.forward(events, runs) => {
            let _ = remote.kill(libc::SIGKILL).await;
            Err(err)
        }
    }
}

/// Takes part in the command of the session `id` on the node whose root is `node`: what it writes that nobody has read
/// yet, and from then on, what it reads, and how it ends. It goes on when this is dropped. Errors: [`Error::Refused`]
/// with `ENOENT` for no session of mine; those of [`run`].
pub async fn attach(node: NodeRef, id: u64, stdio: Stdio, events: mpsc::Receiver<Event>) -> Result<Ended, Error> {
    let remote = Remote::of(node, id).await?;
    let (running, runs) = tokio::sync::watch::channel(true);
    tokio::select! {
        ended = streams::pump(&remote, stdio, &running) => ended,
        err = remote.forward(events, runs) => Err(err),
    }
}

/// How the command of the session `id` ends, once it has. Errors: as for [`attach`].
pub async fn wait(node: NodeRef, id: u64) -> Result<Ended, Error> {
    let remote = Remote::of(node, id).await?;
    streams::ended(&remote, || true).await
}

/// Sends the signal `number` to the command of the session called `session`: by its number, or as it was named. Errors:
/// as for [`attach`]; `ESRCH` if it does not run.
pub async fn kill(node: NodeRef, session: impl Display, number: i32) -> Result<(), Error> {
    let remote = Remote::of(node, session).await?;
    remote.kill(number).await
}

/// The errors that say that a node or the way to it is gone, rather than what it answered.
fn is_loss(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EIO
            | Errno::ENOTCONN
            | Errno::ECONNRESET
            | Errno::EPIPE
            | Errno::EHOSTUNREACH
            | Errno::ETIMEDOUT
            | Errno::EPROTO
            | Errno::ESTALE
    )
}
