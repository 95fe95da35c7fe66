//! The commands, one file each. A command gets the [`Context`] and what was typed, prints its result, and gives the
//! exit status; whoever needs a runtime makes one, after what must run before there are threads.

pub mod agent;
pub mod down;
pub mod launcher;
pub mod mount;
pub mod ns;
pub mod rcpu;
pub mod status;
pub mod unmount;
pub mod up;

use std::process::ExitCode;

use crate::Context;
use crate::cli::Command;
use crate::error::{Error, Result};

/// Runs `command`.
pub fn run(context: &Context, command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(typed) => up::run(context, &typed),
        Command::Down => down::run(context),
        Command::Status => status::run(context),
        Command::Mount(typed) => mount::run(context, &typed),
        Command::Unmount(typed) => unmount::run(context, &typed),
        Command::Ns(typed) => ns::run(context, &typed),
        Command::Launcher => launcher::run(),
        Command::Agent(typed) => agent::run(context, &typed),
        other => Err(Error::new("run", format!("{other:?}"), "is not built yet")),
    }
}
