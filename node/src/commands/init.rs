//! `slashn init`: makes the home, or completes one that is half made, and says what it did.

use std::process::ExitCode;

use serde::Serialize;

use crate::cli::Init;
use crate::error::{At, Result};
use crate::home::init::{Made, Wishes, init};
use crate::{Context, output};

/// Runs the command.
pub fn run(context: &Context, typed: &Init) -> Result<ExitCode> {
    let user = context.environment.var("USER").map_or("me".into(), |user| user.to_string_lossy().into_owned());
    let wishes = Wishes { name: typed.name.clone(), identity: typed.identity.clone(), user };
    let made = init(&context.home, &wishes, context.agent())?;
    context.note_home()?;
    if context.json {
        output::line(serde_json::to_string(&Summary::of(&made)).at("print", "what was made")?)?;
    } else {
        output::line(text(&made))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Summary<'a> {
    home: String,
    name: &'a str,
    user: String,
    node: String,
    made: &'a [&'static str],
}

impl<'a> Summary<'a> {
    fn of(made: &'a Made) -> Self {
        Self {
            home: made.home.path().display().to_string(),
            name: made.name.as_str(),
            user: made.user.fingerprint(),
            node: made.node.fingerprint(),
            made: &made.files,
        }
    }
}

fn text(made: &Made) -> String {
    let home = made.home.path().display();
    let first = match &made.files[..] {
        [] => format!("{home} was made already"),
        files => format!("made {} in {home}", files.join(", ")),
    };
    format!(
        "{first}\nuser {} {}\nnode {} {}",
        made.user.fingerprint(),
        made.user.comment(),
        made.node.fingerprint(),
        made.name
    )
}
