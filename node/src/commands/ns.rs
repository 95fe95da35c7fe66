//! `slashn ns`: prints a namespace.

use std::process::ExitCode;

use crate::Context;
use crate::cli::Ns;
use crate::error::{Error, Result};

/// Runs the command.
pub fn run(_context: &Context, _typed: &Ns) -> Result<ExitCode> {
    Err(Error::new("ns", "this build", "does not have it"))
}
