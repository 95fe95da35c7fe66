//! `slashn agent`: serves the user's tree to the nodes that run commands for the user. `rcpu` starts it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use p9::NodeRef;

use crate::agent::{Agent, mount_namespace};
use crate::cli;
use crate::commands::ns::run_root;
use crate::commands::status::sockets;
use crate::commands::{runtime, stopped};
use crate::control::{self, Control};
use crate::dial::Dialer;
use crate::error::{Error, Result};
use crate::{Context, output};

/// Where in `run/` it answers; what answers in another mount namespace has that added to the name.
pub const SOCKET: &str = "agent";

/// How long one stays that has nothing to do; one of another mount namespace would keep that alive.
const IDLE: (Duration, Duration) = (Duration::from_secs(600), Duration::from_secs(5));

/// Where in `run` the agent answers that sees what this process does, and its files, if it runs.
pub(super) async fn find(run: &Path) -> Result<(PathBuf, Option<NodeRef>)> {
    let here = mount_namespace();
    for name in [SOCKET.to_string(), format!("{SOCKET}-{}", here.replace(|c: char| !c.is_ascii_digit(), ""))] {
        let socket = run.join(name);
        let Some(root) = control::connect(&socket).await? else { return Ok((socket, None)) };
        // One that does not tell is of an older version, which knew of no others.
        if control::read(&root, "sees").await.is_ok_and(|sees| sees != here.as_bytes()) {
            continue;
        }
        return Ok((socket, Some(root)));
    }
    Err(Error::new("find the agent", run.display(), "what answers there is another").remedy("slashn agent --stop"))
}

/// Runs the command: the agent until it is idle or told to stop, or with `--stop` tells all of this home that run.
pub fn run(context: &Context, typed: &cli::Agent) -> Result<ExitCode> {
    let home = context.home_or_lent()?;
    let run = home.run()?;
    let runtime = runtime()?;
    if typed.stop {
        runtime.block_on(async {
            for socket in sockets(&run, SOCKET)? {
                stop(&socket).await?;
            }
            // Nor is a namespace kept in which no command is, nor what a killed server has left.
            for socket in sockets(&run, super::run::SOCKET)? {
                if let Some(root) = control::connect(&socket).await? {
                    let _ = control::write(&root, "ctl", "close").await;
                }
            }
            super::run::sweep(&run).await
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    mount::tune_allocator();
    let dialer = Dialer::open(&home, context.agent())?;
    let within = runtime.block_on(run_root(&home, std::process::id()))?.is_some();
    let agent = Agent::new(dialer, context.clone(), home.secret("qid")?, within)?;
    let served = runtime.block_on(async {
        // Of several that are started at the same moment one serves; the others find it here.
        let turn = home.turn(SOCKET)?;
        let (path, None) = find(&run).await? else { return output::line("ready") };
        let idle = if path.ends_with(SOCKET) { IDLE.0 } else { IDLE.1 };
        let control = Control::serve_and(&path, agent.tree(), Some(agent.pipes()))?;
        drop(turn);
        output::line("ready")?;
        let never = tokio::sync::Notify::new();
        tokio::select! {
            () = agent.ended(idle) => {}
            signalled = stopped(&never) => drop(signalled?),
        }
        agent.end_commands().await;
        drop(control);
        Ok(())
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    served.map(|()| ExitCode::SUCCESS)
}

/// Tells the agent that answers at `socket`, if one does, to stop, and waits until it has.
async fn stop(socket: &Path) -> Result<()> {
    let Some(root) = control::connect(socket).await? else { return Ok(()) };
    let told = control::read(&root, "status").await.unwrap_or_default();
    let told = String::from_utf8_lossy(&told).into_owned();
    if let Some(count) = told.trim().strip_prefix("serving ").filter(|count| *count != "0") {
        output::note(format_args!("commands that it serves, which end now: {count}"));
    }
    // Its answer may be lost as it ends: it answers no more once it has.
    let _ = control::write(&root, "ctl", "stop").await;
    drop(root);
    // One that is just ending may take a connection and drop it.
    while !matches!(control::connect(socket).await, Ok(None)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
