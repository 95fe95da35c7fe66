//! `slashn down`: stops the node.

use std::process::ExitCode;

use crate::Context;

use crate::error::{Error, Result};

/// Runs the command.
pub fn run(_context: &Context) -> Result<ExitCode> {
    Err(Error::new("down", "this build", "does not have it"))
}
