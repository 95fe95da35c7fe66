//! `slashn up`: makes this machine a node.

use std::process::ExitCode;

use crate::Context;
use crate::cli::Up;
use crate::error::{Error, Result};

/// Runs the command.
pub fn run(_context: &Context, _typed: &Up) -> Result<ExitCode> {
    Err(Error::new("up", "this build", "does not have it"))
}
