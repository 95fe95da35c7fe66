//! What the commands print: results on standard output, the one error and the log on standard error.
//!
//! Called by the commands and by both `main`s. A reader of our standard output that went away (`| head`) is no
//! error: the command ends quietly, as others do.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::error::{At, Error, Result};

/// Writes `text` and a line end to standard output, and flushes. Errors: what write(2) answers, but for `EPIPE`.
pub fn line(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.at("print", "standard output"),
    }
}

/// A line for the user that is no result, on standard error: `NAME: TEXT`.
pub fn note(text: impl Display) {
    // Nobody is left to be told when this fails.
    let _ = writeln!(io::stderr(), "slashn: {text}");
}

/// Prints a list: with `json` as one JSON array, else one row a line as `text` makes it.
pub fn list<T: serde::Serialize>(json: bool, rows: &[T], text: impl Fn(&T) -> String) -> Result<()> {
    if json {
        return line(serde_json::to_string_pretty(rows).at("print", "the list")?);
    }
    let lines: Vec<_> = rows.iter().map(text).collect();
    if lines.is_empty() { Ok(()) } else { line(lines.join("\n")) }
}

/// The exit status of `outcome`; an error is printed as the one line `PROGRAM: ERROR`.
pub fn report(program: &str, outcome: Result<ExitCode>) -> ExitCode {
    outcome.unwrap_or_else(|error: Error| {
        let _ = writeln!(io::stderr(), "{program}: {error}");
        ExitCode::from(error.exit_status())
    })
}

/// Logs the 9P messages to standard error, and nothing else of them: `-> ` is asked, `<- ` is answered.
pub fn messages_to_stderr() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new("warn,p9::trace=trace"))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_level(false)
        .without_time()
        .try_init();
}

/// Logs to standard error: warnings; with `-v` what happens, with `-vv` everything and the 9P messages.
pub fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug,p9::trace=trace",
    };
    // A log that is set up already, as in a test, stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(level))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(verbose > 1)
        .try_init();
}
