//! `slashn agent`: serves the user's tree to the nodes that run commands for the user. `rcpu` starts it.

use std::process::ExitCode;
use std::time::Duration;

use crate::agent::Agent;
use crate::cli;
use crate::commands::{runtime, stopped};
use crate::control::{self, Control};
use crate::dial::Dialer;
use crate::error::Result;
use crate::{Context, output};

/// Where in `run/` it answers.
pub const SOCKET: &str = "agent";

/// Runs the command: the agent until it is idle or told to stop, or with `--stop` tells the one that runs.
pub fn run(context: &Context, typed: &cli::Agent) -> Result<ExitCode> {
    let home = context.open_home()?;
    let path = home.run()?.join(SOCKET);
    let runtime = runtime()?;
    if typed.stop {
        runtime.block_on(async {
            match control::connect(&path).await? {
                Some(root) => {
                    let told = control::read(&root, "status").await.unwrap_or_default();
                    let told = String::from_utf8_lossy(&told).into_owned();
                    if let Some(count) = told.trim().strip_prefix("serving ").filter(|count| *count != "0") {
                        output::note(format_args!("commands that it serves, which end now: {count}"));
                    }
                    // Its answer may be lost as it ends: it answers no more once it has.
                    let _ = control::write(&root, "ctl", "stop").await;
                    drop(root);
                    while control::connect(&path).await?.is_some() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    Ok(())
                }
                None => Ok(()),
            }
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let dialer = Dialer::open(&home, context.agent())?;
    let agent = Agent::new(dialer, context.clone(), home.secret("qid")?)?;
    let served = runtime.block_on(async {
        // Of several that are started at the same moment one serves; the others find it here.
        let turn = home.turn(SOCKET)?;
        if control::connect(&path).await?.is_some() {
            return output::line("ready");
        }
        let control = Control::serve(&path, agent.tree())?;
        drop(turn);
        output::line("ready")?;
        let never = tokio::sync::Notify::new();
        tokio::select! {
            () = agent.ended() => {}
            signalled = stopped(&never) => signalled?,
        }
        drop(control);
        Ok(())
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    served.map(|()| ExitCode::SUCCESS)
}
