//! `rcpu`: runs a command on a node.

use std::process::ExitCode;

use crate::Context;
use crate::cli::Rcpu;
use crate::error::{Error, Result};

/// Runs the command.
pub fn run(_context: &Context, _typed: &Rcpu) -> Result<ExitCode> {
    Err(Error::new("rcpu", "this build", "does not have it"))
}
