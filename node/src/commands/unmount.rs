//! `slashn unmount`: unmounts the grid.

use std::process::ExitCode;

use crate::Context;
use crate::cli::Unmount;
use crate::error::{Error, Result};

/// Runs the command.
pub fn run(_context: &Context, _typed: &Unmount) -> Result<ExitCode> {
    Err(Error::new("unmount", "this build", "does not have it"))
}
