//! The commands, one file each. A command gets the [`Context`] and what was typed, prints its result, and gives the
//! exit status; whoever needs a runtime makes one, after what must run before there are threads.

pub mod agent;
pub mod allow;
pub mod doctor;
pub mod down;
pub mod export;
pub mod init;
pub mod launcher;
pub mod mount;
pub mod nodes;
pub mod ns;
pub mod rcpu;
pub mod shell;
pub mod status;
pub mod unmount;
pub mod up;

use std::process::ExitCode;

use crate::Context;
use crate::cli::Command;
use crate::error::Result;

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
        Command::Init(typed) => init::run(context, &typed),
        Command::Export(typed) => export::export(context, &typed),
        Command::Unexport(typed) => export::unexport(context, &typed),
        Command::Exports => export::exports(context),
        Command::Allow(typed) => allow::allow(context, &typed),
        Command::Deny(typed) => allow::deny(context, &typed),
        Command::Allowed => allow::allowed(context),
        Command::Add(typed) => nodes::add(context, &typed),
        Command::Remove(typed) => nodes::remove(context, &typed),
        Command::Nodes => nodes::nodes(context),
        Command::Doctor => doctor::run(context),
        Command::Completions(typed) => shell::completions(&typed),
        Command::Man(typed) => shell::man(&typed),
    }
}
