//! `slashn agent`: serves the user's tree to the nodes that run commands for the user.

use std::process::ExitCode;

use crate::Context;
use crate::cli::Agent;
use crate::error::{Error, Result};

/// Runs the command.
pub fn run(_context: &Context, _typed: &Agent) -> Result<ExitCode> {
    Err(Error::new("agent", "this build", "does not have it"))
}
