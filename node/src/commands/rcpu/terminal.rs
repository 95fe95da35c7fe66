//! The caller's terminal: whether the command gets one, its size, and raw mode while it runs.

use std::io::{self, IsTerminal, stdin, stdout};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::cli::Rcpu;

/// Says whether the command gets a terminal.
pub(super) struct Terminal;

impl Terminal {
    /// As it was asked for; else when stdin and stdout are terminals.
    pub(super) fn wanted(typed: &Rcpu) -> bool {
        typed.tty || (!typed.no_tty && stdin().is_terminal() && stdout().is_terminal())
    }
}

/// The terminal's rows and columns, if stdin is one.
pub(in crate::commands) fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdin()).ok()?;
    Some((size.ws_row, size.ws_col))
}

/// The columns of the terminal that standard error is.
pub(super) fn width() -> Option<u16> {
    tcgetwinsize(io::stderr()).ok().map(|size| size.ws_col).filter(|columns| *columns > 0)
}

/// Raw mode, until it is dropped: every key is the command's.
pub(in crate::commands) struct Raw(Option<Termios>);

impl Raw {
    /// Enters it, if stdin is a terminal.
    pub(in crate::commands) fn enter() -> io::Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Self(None));
        }
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Drain, &raw)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Nothing better can be done with a terminal that is gone.
            let _ = tcsetattr(stdin(), OptionalActions::Flush, before);
        }
    }
}
