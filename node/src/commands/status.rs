//! `slashn status`: says what is up, connected, mounted and running.

use std::process::ExitCode;

use crate::Context;

use crate::error::{Error, Result};

/// Runs the command.
pub fn run(_context: &Context) -> Result<ExitCode> {
    Err(Error::new("status", "this build", "does not have it"))
}
