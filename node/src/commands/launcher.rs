//! `slashn launcher`: the process of one thread that starts commands for a node. The node starts it, nobody else.

use std::process::ExitCode;

use crate::error::Result;

/// Runs the command, until the node's end of its socket closes.
pub fn run() -> Result<ExitCode> {
    Ok(cpuserver::launch::main())
}
