//! `slashn status`: is the node up, who is connected, what is mounted, what runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde::Serialize;

use crate::commands::{agent, runtime};
use crate::error::{At, Result};
use crate::{Context, control, output};

/// What there is to tell.
#[derive(Serialize)]
struct Status {
    /// The node's own words, a line each; nothing when none is up.
    node: Vec<String>,
    /// Where the grid is mounted.
    mounts: Vec<String>,
    /// The agent's own words.
    agent: Vec<String>,
}

/// Runs the command.
pub fn run(context: &Context) -> Result<ExitCode> {
    let home = context.open_home()?;
    let run = home.run()?;
    let status = runtime()?.block_on(async {
        let mut mounts = Vec::new();
        for socket in mount_sockets(&run)? {
            mounts.extend(said(&socket, "dir").await?);
        }
        let mut agent = Vec::new();
        for socket in sockets(&run, agent::SOCKET)? {
            agent.extend(said(&socket, "status").await?);
        }
        let node = said(&run.join("node"), "status").await?;
        Ok(Status { node, mounts, agent })
    })?;
    if context.json {
        output::line(serde_json::to_string_pretty(&status).at("print", "the status")?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = Vec::new();
    match status.node.is_empty() {
        true => lines.push("node: not up".to_string()),
        false => lines.extend(status.node.iter().map(|line| format!("node: {line}"))),
    }
    lines.extend(status.mounts.iter().map(|dir| format!("mount: {dir}")));
    lines.extend(status.agent.iter().map(|line| format!("agent: {line}")));
    output::line(lines.join("\n"))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn mount_sockets(run: &Path) -> Result<Vec<PathBuf>> {
    sockets(run, "mount-")
}

/// The sockets in `run` whose names begin with `begin`.
pub(super) fn sockets(run: &Path, begin: &str) -> Result<Vec<PathBuf>> {
    let mut sockets = Vec::new();
    for entry in std::fs::read_dir(run).at("read", run.display())? {
        let path = entry.at("read", run.display())?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(begin)) {
            sockets.push(path);
        }
    }
    sockets.sort();
    Ok(sockets)
}

/// The lines of the file `file` of what answers at `socket`; none if nothing does, and then what a killed process left
/// there is removed.
pub(super) async fn said(socket: &Path, file: &str) -> Result<Vec<String>> {
    let Some(root) = control::connect(socket).await? else {
        let _ = std::fs::remove_file(socket);
        return Ok(Vec::new());
    };
    let text = control::read(&root, file).await.at("ask", socket.display())?;
    Ok(String::from_utf8_lossy(&text).lines().map(str::to_string).collect())
}
