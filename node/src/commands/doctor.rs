//! `slashn doctor`: checks what slashn needs of this machine and of the home, and says how to mend what is wrong.
//!
//! Each check is a function that gives one line, and none changes anything. Exit status 1 if one says `bad`; what
//! `warn` says costs only some features.

mod machine;
mod userns;

use std::fmt::Display;
use std::process::ExitCode;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::home::Home;
use crate::{Context, output};

/// Runs the command.
pub fn run(context: &Context) -> Result<ExitCode> {
    let mut checks = vec![
        machine::fuse(),
        machine::fusermount(context),
        userns::check(),
        machine::descriptors(),
        machine::proc_mount(),
    ];
    match context.open_home() {
        Ok(home) => checks.extend(of_home(context, &home)),
        Err(error) => checks.push(Check::bad("home", error)),
    }
    output::list(context.json, &checks, |check| {
        format!("{:<4} {}: {}", check.verdict.word(), check.what, check.finding)
    })?;
    let bad = checks.iter().any(|check| check.verdict == Verdict::Bad);
    Ok(if bad { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn of_home(context: &Context, home: &Home) -> Vec<Check> {
    let judge = |what, found: Result<String>| match found {
        Ok(finding) => Check::ok(what, finding),
        Err(error) => Check::bad(what, error),
    };
    vec![
        Check::ok("home", home.path().display()),
        judge("node key", home.node_key().map(|secret| secret.key.fingerprint())),
        judge("user key", home.user_key(context.agent()).map(|secret| secret.key.fingerprint())),
        authorized(home),
        judge("known_nodes", home.known().map(|known| format!("{} nodes", known.nodes().len()))),
        exports(home),
        machine::clock(home),
        machine::port(home),
    ]
}

fn authorized(home: &Home) -> Check {
    const WHAT: &str = "authorized_keys";
    match home.authorized() {
        Err(error) => Check::bad(WHAT, error),
        Ok(authorized) => {
            let lines = authorized.lines();
            match &lines.refused[..] {
                [] => Check::ok(WHAT, format_args!("{} keys", lines.entries.len())),
                [first, more @ ..] => {
                    let place = format!("{}:{}", authorized.path().display(), first.line);
                    let others = if more.is_empty() { String::new() } else { format!(" (and {} more)", more.len()) };
                    Check::warn(WHAT, Error::new("refused", place, format_args!("{}{others}", first.reason)))
                }
            }
        }
    }
}

fn exports(home: &Home) -> Check {
    const WHAT: &str = "exports";
    let exports = match home.config() {
        Ok(config) => config.exports,
        Err(error) => return Check::bad(WHAT, error),
    };
    match exports.iter().find(|export| !export.path.is_dir()) {
        None => Check::ok(WHAT, exports.len()),
        Some(gone) => {
            let error = Error::new(&gone.name, gone.path.display(), "is no directory");
            Check::bad(WHAT, error.remedy(format!("slashn unexport {}", gone.name)))
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Check {
    what: &'static str,
    verdict: Verdict,
    finding: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Bad,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
}

impl Check {
    fn ok(what: &'static str, finding: impl Display) -> Self {
        Self { what, verdict: Verdict::Ok, finding: finding.to_string() }
    }

    fn warn(what: &'static str, finding: impl Display) -> Self {
        Self { what, verdict: Verdict::Warn, finding: finding.to_string() }
    }

    fn bad(what: &'static str, finding: impl Display) -> Self {
        Self { what, verdict: Verdict::Bad, finding: finding.to_string() }
    }

    /// Something is wrong, and this mends it.
    fn mend(what: &'static str, finding: impl Display, remedy: impl Display) -> Self {
        Self::bad(what, format_args!("{finding}; try: {remedy}"))
    }
}
