//! Programs that speak 9P on their standard input and output: `exec!COMMAND`, and `ssh!HOST`, by ssh(1).
//!
//! Started by [`crate::servers`], in the mount's runtime. A program is its own process group, which ends with the
//! connection, and whose standard error is the home's log. Whatever it says or does not say, it costs a bounded wait.

use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use p9::client::{self, Client};
use p9::server;
use p9::transport;
use p9::{Errno, NodeRef, Tree, Who};
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::oneshot;

/// How long a program may take to agree on a version and give its root.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a program that has failed may take to end and to say why.
const MOMENT: Duration = Duration::from_millis(200);
/// How long ssh may take to connect, and to copy this program.
const COPIED: Duration = Duration::from_secs(60);

/// Why there is no server: what a program that looks is told, and in words.
pub type Refused = (Errno, String);

/// A client of a program, and the program's root. The program ends with the last that uses either.
pub type Started = (Client, NodeRef);

/// A process group, and what it says first. Dropping it kills it.
struct Program(Child, Said);

/// The first of what a program prints, for whoever is told that it is no server.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

/// So much of it is told, in bytes.
const TOLD: usize = 200;

impl Said {
    fn hear(&self, bytes: &[u8]) {
        let mut said = self.0.lock();
        let more = bytes.len().min(TOLD - said.len());
        said.extend_from_slice(&bytes[..more]);
    }

    /// Hears all of `stderr`, and passes it on to this process's own, which is the log.
    async fn log(self, mut stderr: ChildStderr) {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = stderr.read(&mut bytes).await {
            self.hear(&bytes[..count]);
            if tokio::io::stderr().write_all(&bytes[..count]).await.is_err() {
                return;
            }
        }
    }

    /// What was said, in words that follow an error.
    fn told(&self) -> String {
        let text = String::from_utf8_lossy(&self.0.lock()).trim().replace('\n', " ");
        let text = text.replace(|c: char| c.is_control() || c == char::REPLACEMENT_CHARACTER, "?");
        if text.chars().any(char::is_alphanumeric) { format!("; it said: {text}") } else { String::new() }
    }
}

impl Program {
    /// Starts `command`. Gives its standard output and input, too.
    fn start(mut command: Command) -> Result<(Self, ChildStdout, ChildStdin), Refused> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.kill_on_drop(true).spawn().map_err(refused)?;
        let said = Said::default();
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(said.clone().log(stderr));
        }
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        match (stdout, stdin) {
            (Some(stdout), Some(stdin)) => Ok((Self(child, said), stdout, stdin)),
            _ => Err((Errno::EIO, "it has no standard input and output".into())),
        }
    }

    fn kill(&self) {
        // Once it was waited for it has no number that could be another's by now.
        if let Some(group) = self.0.id().and_then(|id| Pid::from_raw(id as i32)) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Returns when it has ended by itself, which it has a moment for.
    async fn ended(&mut self) -> Option<String> {
        let ended = tokio::time::timeout(MOMENT, self.0.wait()).await;
        ended.ok()?.ok().map(|status| status.to_string())
    }

    /// What it has printed, which may be on its way still.
    async fn said(&mut self) -> String {
        let until = Instant::now() + MOMENT;
        // Others hold it until all of it was heard.
        while Arc::strong_count(&self.1.0) > 1 && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.1.told()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What an error of this machine's means.
pub fn refused(err: std::io::Error) -> Refused {
    let why = err.to_string();
    (err.into(), why)
}

/// Starts `command`, one command and its arguments as a shell reads them, and attaches to it as `who`.
pub async fn exec(command: &str, who: &Who) -> Result<Started, Refused> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", &format!("exec {command}")]);
    let (program, stdout, stdin) = Program::start(shell)?;
    speak(program, BufReader::new(stdout), stdin, who).await
}

/// Starts this program on `host`, where it serves the files there, and attaches to it.
pub async fn ssh(host: &str, who: &Who) -> Result<Started, Refused> {
    if host.is_empty() || host.starts_with('-') {
        return Err((Errno::EINVAL, "that is no host".into()));
    }
    let read = || {
        let own = std::fs::read("/proc/self/exe")?;
        let script = script(&own);
        Ok((own, script))
    };
    let read = tokio::task::spawn_blocking(read).await.unwrap_or_else(|err| Err(std::io::Error::other(err)));
    let (own, script) = read.map_err(refused)?;
    let mut ssh = Command::new("ssh");
    ssh.args(["-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "--", host, &script]);
    let (mut program, stdout, mut stdin) = Program::start(ssh)?;
    let mut stdout = BufReader::new(stdout);
    let copied = async {
        if line(&mut stdout).await? == "want" {
            tracing::info!("{host}: this program is copied there, {} bytes", own.len());
            stdin.write_all(&own).await?;
            stdin.flush().await?;
            line(&mut stdout).await?;
        }
        Ok::<(), std::io::Error>(())
    };
    match tokio::time::timeout(COPIED, copied).await {
        Ok(Ok(())) => speak(program, stdout, stdin, who).await,
        Ok(Err(err)) => {
            let ended = program.ended().await.unwrap_or_else(|| err.to_string());
            let said = program.said().await;
            Err((Errno::EHOSTUNREACH, format!("ssh {host}: {ended}{said}; try: ssh {host} true")))
        }
        Err(_) => Err((Errno::ETIMEDOUT, format!("ssh {host}: nothing within {COPIED:?}; try: ssh {host} true"))),
    }
}

/// What a shell there does: it says `have` or `want`, reads this program if it has to, says `have`, and becomes it.
fn script(own: &[u8]) -> String {
    let (hash, length) = (blake3::hash(own).to_hex(), own.len());
    format!(
        "umask 077; d=${{XDG_CACHE_HOME:-$HOME/.cache}}/slashn; f=$d/{hash}; if [ ! -x \"$f\" ]; then mkdir -p \"$d\" || \
         exit; echo want; head -c {length} >\"$f.$$\" && chmod 700 \"$f.$$\" && mv \"$f.$$\" \"$f\" || exit; fi; \
         echo have; exec \"$f\" stdio"
    )
}

/// The next line, of a few bytes.
async fn line(from: &mut BufReader<ChildStdout>) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut few = AsyncReadExt::take(from, 80);
    few.read_until(b'\n', &mut line).await?;
    match line.strip_suffix(b"\n") {
        Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
        None => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A stream that says when nobody uses it any more.
struct Used<S> {
    io: S,
    /// Hears what comes.
    said: Said,
    _by: oneshot::Sender<()>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Used<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        self.said.hear(&buf.filled()[before..]);
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Used<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        match Pin::new(&mut self.io).poll_write(cx, buf) {
            // Its end comes after the last of what it says.
            Poll::Ready(Err(err)) if err.kind() == std::io::ErrorKind::BrokenPipe => Poll::Ready(Ok(buf.len())),
            written => written,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Agrees with `program` on a version, and attaches.
async fn speak(
    mut program: Program, stdout: BufReader<ChildStdout>, stdin: ChildStdin, who: &Who,
) -> Result<Started, Refused> {
    let (used, unused) = oneshot::channel();
    let io = Used { io: transport::pair(stdout, stdin), said: program.1.clone(), _by: used };
    let agreed = tokio::time::timeout(ANSWER, async {
        let client = Client::connect(io, client::Options::default()).await?;
        let root = client.attach(who, b"").await;
        Ok::<_, client::Error>((client, root))
    });
    match agreed.await {
        Err(_) => {
            let said = program.1.told();
            Err((Errno::ETIMEDOUT, format!("it does not answer within {} s{said}", ANSWER.as_secs())))
        }
        Ok(Ok((client, Ok(root)))) => {
            tokio::spawn(async move {
                let _ = unused.await;
                drop(program);
            });
            Ok((client, root))
        }
        Ok(Ok((_, Err(errno)))) => Err((errno, format!("it lets nobody attach: {errno}"))),
        Ok(Err(client::Error::Io(_) | client::Error::Frame(server::Error::Io(_)))) => {
            let ended = program.ended().await.unwrap_or_else(|| "it hung up".into());
            Err((Errno::EIO, format!("{ended}, before it answered{}", program.said().await)))
        }
        Ok(Err(err)) => Err((Errno::EPROTO, format!("it does not speak 9P: {err}{}", program.said().await))),
    }
}
