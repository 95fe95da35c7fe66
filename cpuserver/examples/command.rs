//! Runs a command on a node, without `rcpu`: with the node's own root, and what it writes in capitals.
//!
//! ```text
//! slashn up --plain 'unix!/tmp/node'
//! cargo run -p cpuserver --example command -- /tmp/node sh -c 'uname -n; cat' </etc/hostname
//! ```

use std::error::Error;
use std::path::Path;

use cpuserver::{Command, Host, Stdio};
use p9::client::{Client, Options};
use p9::{Tree, Who, transport};
use tokio::io::AsyncReadExt;

/// Runs `words` on the node that listens at `socket`, with `input` to read; gives its status and its output, shouted.
pub async fn run(
    socket: &Path, words: &[String], input: Stdio,
) -> Result<(std::process::ExitCode, String), Box<dyn Error>> {
    let client = Client::connect(transport::unix(socket).await?, Options::default()).await?;
    let host = Host::new(client.attach(&Who::owner(), b"").await?);
    let (program, args) = words.split_first().ok_or("which command?")?;
    let command = Command::new(program).args(args).env("PATH", "/usr/bin:/bin").current_dir("/").limits("time 1h\n");
    let mut child = command.stdin(input).stdout(Stdio::piped()).spawn(&host).await?;
    let mut text = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut text).await?;
    }
    Ok((child.wait().await?.exit.into(), text.to_uppercase()))
}

#[tokio::main]
#[allow(clippy::print_stdout, reason = "it is what it is for")]
#[allow(dead_code, reason = "a test has a main of its own")]
async fn main() -> Result<std::process::ExitCode, Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let socket = words.next().ok_or("usage: command SOCKET COMMAND...")?;
    let (status, text) = run(Path::new(&socket), &words.collect::<Vec<_>>(), Stdio::inherit()).await?;
    print!("{text}");
    Ok(status)
}
