//! `slashn launcher`: the process that starts jobs; it is started by `slashn up` alone.

use std::process::ExitCode;

use crate::error::{Error, Result};

/// Runs the launcher on descriptor 3.
pub fn run() -> Result<ExitCode> {
    Err(Error::new("launcher", "this build", "does not have it"))
}
