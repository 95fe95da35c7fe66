//! `slashn export`, `unexport`, `exports`: which directories others may reach, by name. They edit grid.toml.

use std::process::ExitCode;

use fileserver::Export;
use serde::Serialize;

use crate::cli::{ExportArgs, Unexport};
use crate::config;
use crate::error::{At, Error, Result};
use crate::files::{self, Guard};
use crate::home::Home;
use crate::{Context, output};

/// Exports a directory.
pub fn export(context: &Context, typed: &ExportArgs) -> Result<ExitCode> {
    let home = context.open_home()?;
    let export = absolute(&typed.export)?;
    let _one_at_a_time = home.edit()?;
    let grid = home.grid();
    let text = config::with_export(&grid, &files::read("read", &grid, Guard::Unwritable)?, &export)?;
    files::replace("export", &grid, &text, 0o600)?;
    output::line(format_args!("exported {export}"))?;
    say_when(&home)
}

/// Exports it no longer.
pub fn unexport(context: &Context, typed: &Unexport) -> Result<ExitCode> {
    let home = context.open_home()?;
    let _one_at_a_time = home.edit()?;
    let grid = home.grid();
    let text = files::read("read", &grid, Guard::Unwritable)?;
    let Some(text) = config::without_export(&grid, &text, &typed.name)? else {
        let reason = format!("{} exports nothing of this name", grid.display());
        return Err(Error::new("unexport", &typed.name, reason).remedy("slashn exports"));
    };
    files::replace("unexport", &grid, &text, 0o600)?;
    output::line(format_args!("unexported {}", typed.name))?;
    say_when(&home)
}

/// Prints what is exported.
pub fn exports(context: &Context) -> Result<ExitCode> {
    let exports = context.open_home()?.config()?.exports;
    let rows: Vec<_> = exports.iter().map(Row::of).collect();
    output::list(context.json, &rows, |row| {
        format!("{} {}{}", row.name, row.path, if row.read_only { " read-only" } else { "" })
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The export, by an absolute path of a directory that is there.
pub fn absolute(export: &Export) -> Result<Export> {
    let shown = export.path.display();
    let path = std::fs::canonicalize(&export.path).at("export", &shown)?;
    if !path.is_dir() {
        return Err(Error::new("export", &shown, "is not a directory"));
    }
    if path.to_str().is_none() {
        return Err(Error::new("export", &shown, "its path is not UTF-8, as grid.toml is"));
    }
    Ok(Export { path, ..export.clone() })
}

fn say_when(home: &Home) -> Result<ExitCode> {
    if home.holder()?.is_some() {
        output::note("a node is up: it takes this up when it starts again");
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Row<'a> {
    name: &'a str,
    path: String,
    read_only: bool,
}

impl<'a> Row<'a> {
    fn of(export: &'a Export) -> Self {
        Self { name: &export.name, path: export.path.display().to_string(), read_only: export.read_only }
    }
}
