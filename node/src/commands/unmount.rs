//! `slashn unmount`: the mount goes, whatever its nodes do.

use std::process::ExitCode;
use std::time::Duration;

use crate::cli::Unmount;
use crate::commands::{mount, runtime};
use crate::error::{At, Error, Result};
use crate::{Context, control, output};

/// How long the mount's own process is given; then the mount is taken from it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs the command.
pub fn run(context: &Context, typed: &Unmount) -> Result<ExitCode> {
    let home = context.open_home()?;
    let at = mount::default_place(context, typed.dir.as_deref())?;
    let socket = mount::socket(&home, &at)?;
    let runtime = runtime()?;
    let told = runtime.block_on(async {
        let asked = async {
            let Some(root) = control::connect(&socket).await? else { return Ok(false) };
            // Its answer may be lost as it ends.
            let _ = control::write(&root, "ctl", "unmount").await;
            // A connection that is cut off as it begins is no end yet.
            while !matches!(control::connect(&socket).await, Ok(None)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok::<_, Error>(true)
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Ok(told)) => told,
            Ok(Err(error)) => {
                output::note(error);
                true
            }
            Err(_) => true,
        }
    });
    runtime.shutdown_background();
    let there = ::mount::is_mounted(&at, None);
    if !there && !told {
        let error = Error::new("unmount", at.display(), "no grid is mounted there");
        return Err(error.remedy("slashn status, which says where one is"));
    }
    if there {
        ::mount::unmount(&at).at("unmount", at.display())?;
    }
    let _ = std::fs::remove_file(&socket);
    Ok(ExitCode::SUCCESS)
}
