//! What a user is told when a command fails: the step, the thing it failed on, the reason, and what to try.
//!
//! Made by every module of this crate; printed once, by [`crate::output::report`], as one line. Its text never spans
//! lines, whatever a library's message held.

use std::fmt::{self, Display};

/// Why a command failed, as one line: `STEP: THING: REASON; try: COMMAND`.
#[derive(Debug)]
pub struct Error {
    step: String,
    thing: String,
    reason: String,
    remedy: Option<String>,
    status: u8,
}

/// What a command gives.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// The step that failed, the thing that it failed on, and why. The exit status is 1.
    pub fn new(step: impl Display, thing: impl Display, reason: impl Display) -> Self {
        let (thing, mut reason) = (one_line(thing), one_line(reason));
        // The number that std adds.
        if let Some(at) = reason.rfind(" (os error ").filter(|_| reason.ends_with(')')) {
            reason.truncate(at);
        }
        let remedy = usual_remedy(&thing, &reason);
        Self { step: one_line(step), thing, reason, remedy, status: 1 }
    }

    /// What another process of ours said, as one line: `STEP: THING: REASON; try: COMMAND`.
    pub fn told(line: &str) -> Self {
        let mut parts = line.splitn(3, ": ");
        let mut part = || parts.next().unwrap_or_default();
        Self::with_remedy(part(), part(), part())
    }

    /// The same where `reason` may end with `; try: COMMAND`.
    pub fn with_remedy(step: impl Display, thing: impl Display, reason: &str) -> Self {
        match reason.rsplit_once("; try: ") {
            Some((reason, command)) => Self::new(step, thing, reason).remedy(command),
            None => Self::new(step, thing, reason),
        }
    }

    /// With the command that mends it, as the user would type it.
    #[must_use]
    pub fn remedy(self, command: impl Display) -> Self {
        Self { remedy: Some(one_line(command)), ..self }
    }

    /// With another exit status than 1.
    #[must_use]
    pub fn status(self, status: u8) -> Self {
        Self { status, ..self }
    }

    /// The exit status that this error means.
    pub fn exit_status(&self) -> u8 {
        self.status
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.step, self.thing, self.reason)?;
        match &self.remedy {
            Some(command) => write!(f, "; try: {command}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// Names the step and the thing for an error of a library.
pub trait At<T> {
    /// The error as [`Error::new`] makes it, the library's message being the reason.
    fn at(self, step: impl Display, thing: impl Display) -> Result<T>;
}

impl<T, E: Display> At<T> for Result<T, E> {
    fn at(self, step: impl Display, thing: impl Display) -> Result<T> {
        self.map_err(|reason| Error::new(step, thing, reason))
    }
}

/// What helps against errors that any step may meet, unless it says something better.
fn usual_remedy(thing: &str, reason: &str) -> Option<String> {
    let says = |text: &str| reason.contains(text);
    if says("No space left on device") {
        let at = if thing.starts_with('/') { format!(" {thing}") } else { String::new() };
        Some(format!("df -h{at}; df -i{at}"))
    } else if says("Disk quota exceeded") {
        Some("quota".into())
    } else if says("Too many open files") {
        Some("ulimit -n 65536".into())
    } else {
        None
    }
}

/// `text` with its line breaks gone and other control characters escaped, so that a hostile name or message can
/// neither fake a second line nor drive the terminal.
fn one_line(text: impl Display) -> String {
    let text = text.to_string();
    let mut line = String::with_capacity(text.len());
    for c in text.trim().chars() {
        match c {
            '\n' if line.ends_with(' ') => {}
            '\n' => line.push(' '),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_that_names_step_thing_reason_and_remedy() {
        let error = Error::new("open", "/a\x1b[2J", "it is\nbroken\n").remedy("mend it");
        assert_eq!(error.to_string(), "open: /a\\u{1b}[2J: it is broken; try: mend it");
        assert_eq!(error.exit_status(), 1);
        assert_eq!(Error::told(&error.to_string()).to_string(), error.to_string());
    }

    #[test]
    fn a_full_disk_is_told_with_where_to_look() {
        let error = Error::new("make", "/a", std::io::Error::from_raw_os_error(28));
        assert!(error.to_string().ends_with(": No space left on device; try: df -h /a; df -i /a"), "{error}");
    }
}
