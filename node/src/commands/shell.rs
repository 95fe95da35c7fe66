//! `slashn completions` and `slashn man`: what a shell and man(1) want to know, made from the command line itself.

use std::process::ExitCode;

use clap::{Command, CommandFactory};

use crate::cli::{Completions, Man, Nine, Rcpu, Slashn};
use crate::error::{At, Error, Result};
use crate::output;

/// Prints the completions of `slashn`, `rcpu` and `9p`.
pub fn completions(typed: &Completions) -> Result<ExitCode> {
    let mut text = Vec::new();
    for (name, mut command) in [("slashn", Slashn::command()), ("rcpu", Rcpu::command()), ("9p", Nine::command())] {
        clap_complete::generate(typed.shell, &mut command, name, &mut text);
    }
    output::line(String::from_utf8_lossy(&text).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a manual page, in roff.
pub fn man(typed: &Man) -> Result<ExitCode> {
    let mut page = Vec::new();
    clap_mangen::Man::new(described(typed.command.as_deref())?).render(&mut page).at("print", "the manual page")?;
    output::line(String::from_utf8_lossy(&page).trim_end())?;
    Ok(ExitCode::SUCCESS)
}

fn described(name: Option<&str>) -> Result<Command> {
    let mut slashn = Slashn::command();
    slashn.build();
    match name {
        None | Some("slashn") => Ok(slashn),
        Some("rcpu") => Ok(Rcpu::command()),
        Some("9p") => Ok(Nine::command()),
        Some(name) => {
            let found = slashn.find_subcommand(name).cloned();
            found.ok_or_else(|| Error::new("man", name, "there is no such command").remedy("slashn --help"))
        }
    }
}
