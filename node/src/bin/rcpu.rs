//! The `rcpu` command: runs a command on a node as if it were here.

use std::process::ExitCode;

use clap::Parser;
use node::cli::Rcpu;
use node::context::{Context, Environment};
use node::{commands, output};

fn main() -> ExitCode {
    let typed = Rcpu::parse();
    output::log_to_stderr(typed.global.verbose);
    let outcome = Context::new(&typed.global, Environment::new(std::env::vars_os()))
        // Status 1 could be the command's own: what never started is 255.
        .map_err(|error| error.status(255))
        .and_then(|context| commands::rcpu::run(&context, &typed));
    output::report("rcpu", outcome)
}
