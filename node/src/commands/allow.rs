//! `slashn allow`, `deny`, `allowed`: who may come in.
//!
//! They edit authorized_keys; a node that is up looks at the file at each handshake, and ends the connections of a key
//! that is gone from it.

use std::process::ExitCode;

use p9::who::{Only, Rights};
use serde::Serialize;

use crate::authorized::{self, Entry};
use crate::cli::{Allow, Deny};
use crate::error::{Error, Result};
use crate::files::{self, Guard};
use crate::home::Home;
use crate::keys::Key;
use crate::{Context, output};

/// Lets a key in.
pub fn allow(context: &Context, typed: &Allow) -> Result<ExitCode> {
    let key = authorized::key_to_allow(&typed.key)?;
    let rights = if typed.only.is_empty() { Rights::All } else { Rights::Only(typed.only.as_slice().into()) };
    let home = context.open_home()?;
    check(&home, &key, &typed.only)?;
    let _one_at_a_time = home.edit()?;
    let path = home.authorized_keys();
    let text = files::read("read who may come in", &path, Guard::Unwritable)?;
    files::replace("let the key in", &path, &authorized::with(&text, &key, &rights), 0o600)?;
    let (fingerprint, comment) = (key.fingerprint(), key.comment());
    output::line(match &rights {
        Rights::All => format!("allowed {fingerprint} {comment}: everything; this key may run commands as you"),
        Rights::Only(list) => {
            format!("allowed {fingerprint} {comment}: only {}, no commands", authorized::only_text(list))
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses what cannot be meant: a node's own key as a user's, an export both to change and not. An export that there
/// is not yet may come.
fn check(home: &Home, key: &Key, only: &[Only]) -> Result<()> {
    const STEP: &str = "allow";
    if home.node_key()?.key.fingerprint() == key.fingerprint() {
        let reason = "it is this node's own key, and a user's is another";
        return Err(Error::new(STEP, key.fingerprint(), reason).remedy("slashn allow \"$(cat id_ed25519.pub)\""));
    }
    let config = home.config()?;
    for wanted in only {
        if only.iter().any(|other| other.export == wanted.export && other.read_only != wanted.read_only) {
            let reason = "it is asked for both with :ro and without";
            return Err(Error::new(STEP, &wanted.export, reason)
                .remedy(format!("--only {}:ro", wanted.export))
                .status(2));
        }
        if !config.exports.iter().any(|export| export.name == wanted.export) {
            let name = &wanted.export;
            output::note(format_args!(
                "{STEP}: {name}: nothing is exported by that name yet; try: slashn export {name}=PATH"
            ));
        }
    }
    Ok(())
}

/// Lets a key in no longer.
pub fn deny(context: &Context, typed: &Deny) -> Result<ExitCode> {
    let home = context.open_home()?;
    let _one_at_a_time = home.edit()?;
    let path = home.authorized_keys();
    let text = files::read("read who may come in", &path, Guard::Unwritable)?;
    let (text, gone) = authorized::without(&text, |key| key.fingerprint() == typed.fingerprint);
    if gone == 0 {
        let reason = format!("no key of {} has this fingerprint", path.display());
        return Err(Error::new("deny", &typed.fingerprint, reason).remedy("slashn allowed"));
    }
    files::replace("deny", &path, &text, 0o600)?;
    output::line(format_args!("denied {}", typed.fingerprint))?;
    Ok(ExitCode::SUCCESS)
}

/// Prints who may come in, and to what; on standard error, the lines that let nobody in.
pub fn allowed(context: &Context) -> Result<ExitCode> {
    let home = context.open_home()?;
    let authorized = home.authorized()?;
    let lines = authorized.lines();
    let rows: Vec<_> = lines.entries.iter().map(Row::of).collect();
    output::list(context.json, &rows, |row| {
        let rights = row.only.as_ref().map_or("all".into(), |only| format!("only {}", only.join(",")));
        format!("{} {rights} {}", row.fingerprint, row.comment).trim_end().to_owned()
    })?;
    for refused in &lines.refused {
        let path = authorized.path().display();
        output::note(format_args!(
            "read who may come in: {path}:{}: {}: it lets nobody in",
            refused.line, refused.reason
        ));
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct Row<'a> {
    fingerprint: String,
    kind: String,
    comment: &'a str,
    /// Whether the key may run commands.
    commands: bool,
    /// The exports that it may reach, `NAME[:ro]`; nothing means all.
    only: Option<Vec<String>>,
    line: usize,
}

impl<'a> Row<'a> {
    fn of(entry: &'a Entry) -> Self {
        let only = match &entry.rights {
            Rights::All => None,
            Rights::Only(list) => Some(authorized::only_text(list).split(',').map(str::to_owned).collect()),
        };
        Row {
            fingerprint: entry.key.fingerprint(),
            kind: entry.key.kind(),
            comment: entry.key.comment(),
            commands: entry.rights.may_run(),
            only,
            line: entry.line,
        }
    }
}
