//! `slashn mount`: mounts the grid.

use std::process::ExitCode;

use crate::Context;
use crate::cli::Mount;
use crate::error::{Error, Result};

/// Runs the command.
pub fn run(_context: &Context, _typed: &Mount) -> Result<ExitCode> {
    Err(Error::new("mount", "this build", "does not have it"))
}
