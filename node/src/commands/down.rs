//! `slashn down`: stops the node of this home.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::commands::runtime;
use crate::error::{At, Error, Result};
use crate::{Context, control};

/// How long a node may take to end what it has open.
const PATIENCE: Duration = Duration::from_secs(15);

/// Runs the command. Returns when the node has ended.
pub fn run(context: &Context) -> Result<ExitCode> {
    let home = context.open_home()?;
    let path = home.run()?.join("node");
    let Some(pid) = home.holder()? else {
        let _ = std::fs::remove_file(&path);
        let remedy = format!("slashn --home {} up", home.path().display());
        return Err(Error::new("down", home.path().display(), "no node runs from this home").remedy(remedy));
    };
    runtime()?.block_on(async {
        match control::connect(&path).await? {
            Some(root) => {
                // Its answer may be lost as it ends; whether it does is seen below.
                let _ = control::write(&root, "ctl", "down").await;
                Ok(())
            }
            // It has not made its socket yet, or is on its way out: the signal means the same.
            None => {
                let pid = rustix::process::Pid::from_raw(pid as i32);
                let pid = pid.ok_or_else(|| Error::new("down", home.path().display(), "the lock names no process"))?;
                rustix::process::kill_process(pid, rustix::process::Signal::TERM).at("down", pid.as_raw_nonzero())
            }
        }
    })?;
    let until = Instant::now() + PATIENCE;
    while home.holder()?.is_some() {
        if Instant::now() > until {
            let reason = format!("it has not ended within {PATIENCE:?}");
            return Err(Error::new("down", format_args!("process {pid}"), reason).remedy(format!("kill -9 {pid}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(ExitCode::SUCCESS)
}
