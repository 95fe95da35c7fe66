//! The `9p` command: one file of one server, without a mount.

use std::process::ExitCode;

use clap::Parser;
use node::cli::Nine;
use node::context::{Context, Environment};
use node::{commands, output};

fn main() -> ExitCode {
    let typed = Nine::parse();
    match typed.dump {
        true => output::messages_to_stderr(),
        false => output::log_to_stderr(typed.global.verbose),
    }
    let outcome = Context::new(&typed.global, Environment::new(std::env::vars_os()))
        .and_then(|context| commands::nine::run(&context, &typed));
    output::report("9p", outcome)
}
