//! The `slashn` command: parses what was typed, runs one command, prints its error.

use std::process::ExitCode;

use clap::Parser;
use node::cli::{Command, Slashn};
use node::context::{Context, Environment};
use node::{commands, output};

fn main() -> ExitCode {
    let typed = Slashn::parse();
    if matches!(typed.command, Command::Launcher) {
        // It is started with an empty environment, and needs no home.
        return output::report("slashn", commands::launcher::run());
    }
    output::log_to_stderr(typed.global.verbose);
    let outcome = Context::new(&typed.global, Environment::new(std::env::vars_os()))
        .and_then(|context| commands::run(&context, typed.command));
    output::report("slashn", outcome)
}
