//! How a command ended, or why nobody can say: what a session's `wait` and `status` tell, read with nom.

use nom::branch::alt;
use nom::bytes::complete::tag;
use nom::character::complete::{char, i32 as number, not_line_ending, u8 as byte};
use nom::combinator::{map, opt};
use nom::sequence::{delimited, preceded};
use nom::{IResult, Parser};
use p9::Errno;

use crate::launch::Exit;

/// The step before which a node knows nothing of a command.
pub(super) const CLONE: &str = "cpu";
/// The step by which it runs.
pub(super) const EXEC: &str = "exec";

/// How a command ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ended {
    /// By itself or by a signal.
    pub exit: Exit,
    /// What it used, as the node says it: `real`, `user`, `sys` (seconds), `maxrss` (KiB), and so on, each followed by
    /// a number.
    pub used: String,
    /// The limit that ended it or some of it, in words.
    pub limit: Option<String>,
}

/// Why [`super::run`] has no exit status to give.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command was never started; `code` is what a shell would exit with: 127 not found, 126 not executable, 255
    /// anything else.
    #[error("{reason}")]
    NeverStarted {
        /// 127, 126 or 255.
        code: u8,
        /// The step, the thing, the reason.
        reason: String,
    },
    /// It ran, and the node does not know how it would have ended.
    #[error("{reason}")]
    LostThere {
        /// The step, the thing, the reason.
        reason: String,
    },
    /// The node refused something before the command was started.
    #[error("{step}: {errno}")]
    Refused {
        /// What was asked.
        step: &'static str,
        /// Its answer.
        errno: Errno,
    },
    /// The connection was lost: the command may have ended or not, and its session ends.
    #[error("the connection was lost: {step}: {errno}")]
    Lost {
        /// What was waited for.
        step: &'static str,
        /// What was answered instead.
        errno: Errno,
    },
    /// The caller's tree could not be brought.
    #[error("the caller's tree: {0}")]
    Serve(String),
    /// The caller's own stream failed: a pipe that nobody reads, a full disk.
    #[error("{stream}: {error}")]
    Stream {
        /// `stdin`, `stdout` or `stderr`.
        stream: &'static str,
        /// Why.
        error: std::io::Error,
    },
    /// A signal ended the attempt before the command ran.
    #[error("ended by signal {0} before the command ran")]
    Interrupted(i32),
    /// The node answered something that means nothing.
    #[error("{0}: the node's answer means nothing here")]
    Garbled(&'static str),
}

impl Error {
    /// What `rcpu` exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NeverStarted { code, .. } => *code,
            Self::Interrupted(signal) => 128u8.saturating_add(u8::try_from(*signal).unwrap_or(0)),
            _ => 255,
        }
    }

    /// Whether it is certain that nothing of the command ever ran, for a reason that another node may not have.
    pub fn never_ran(&self) -> bool {
        match self {
            Self::NeverStarted { code, .. } => *code == 255,
            Self::Refused { .. } | Self::Serve(_) => true,
            Self::Lost { step, .. } => *step == CLONE,
            _ => false,
        }
    }

    /// Whether the node was lost, or never reached, before it said that the command runs.
    pub fn was_lost_before(&self) -> bool {
        matches!(self, Self::Lost { step: CLONE | EXEC, .. })
    }

    /// What the program is for, if it could not be run because the node is of another architecture: the words of
    /// [`crate::launch::Error::Foreign`], which an older node says in the same way.
    pub fn is_for(&self) -> Option<&str> {
        let Self::NeverStarted { code: 126, reason } = self else { return None };
        let (_, rest) = reason.split_once(": it is for ")?;
        rest.split_once(", and this node is ").map(|(architecture, _)| architecture)
    }

    /// What `errno` of `step` means for a command that `runs`, or does not yet.
    pub(super) fn of(step: &'static str, errno: Errno, runs: bool) -> Self {
        if runs || super::is_loss(errno) { Self::Lost { step, errno } } else { Self::Refused { step, errno } }
    }
}

/// What `wait` said: how the command ended, or why nobody can say.
pub(super) fn ended(text: &str) -> Result<Ended, Error> {
    let (rest, exit) = first_line(text).map_err(|_| Error::Garbled("wait"))?;
    if let Exit::Code(code) = exit
        && let Some(error) = unknown(rest, code)
    {
        return Err(error);
    }
    let mut lines = rest.lines();
    let used = lines.next().unwrap_or_default().to_owned();
    let limit = lines.find_map(|line| line.strip_prefix("limit: ")).map(str::to_owned);
    Ok(Ended { exit, used, limit })
}

/// Why a command never started or was lost, if that is what `status` says.
pub(super) fn failure(status: &str) -> Option<Error> {
    let parsed: IResult<&str, _> = (preceded(tag("exit "), byte), char(' ')).parse(status);
    let (rest, (code, _)) = parsed.ok()?;
    unknown(rest, code)
}

fn first_line(input: &str) -> IResult<&str, Exit> {
    let code = map(delimited(tag("exit "), byte, char('\n')), Exit::Code);
    let core = map(opt(tag(" core")), |core| core.is_some());
    let signal =
        map(delimited(tag("signal "), (number, core), char('\n')), |(number, core)| Exit::Signal { number, core });
    alt((code, signal)).parse(input)
}

fn unknown(text: &str, code: u8) -> Option<Error> {
    let reason = |input| map(not_line_ending, str::to_owned).parse(input);
    let never = map(preceded(tag("never started: "), reason), |reason| Error::NeverStarted { code, reason });
    let lost = map(preceded(tag("lost: "), reason), |reason| Error::LostThere { reason });
    let parsed: IResult<&str, _> = alt((never, lost)).parse(text);
    parsed.ok().map(|(_, error)| error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_is_told_from_every_other() {
        let used = "real 0.1 user 0.0 sys 0.0 maxrss 1";
        for (line, exit) in [
            ("exit 7", Exit::Code(7)),
            ("signal 9", Exit::Signal { number: 9, core: false }),
            ("signal 6 core", Exit::Signal { number: 6, core: true }),
        ] {
            let told = ended(&format!("{line}\n{used}\n")).unwrap();
            assert_eq!(told, Ended { exit, used: used.into(), limit: None });
        }
        let limit = ended("signal 9\nreal 1\nlimit: out of memory\n").unwrap().limit;
        assert_eq!(limit.as_deref(), Some("out of memory"));
        let never = ended("exit 127\nnever started: foo: not found\n").unwrap_err();
        assert_eq!((never.exit_code(), never.to_string().as_str()), (127, "foo: not found"));
        let lost = ended("exit 255\nlost: launcher: it has ended\n").unwrap_err();
        assert_eq!((lost.exit_code(), lost.to_string().as_str()), (255, "launcher: it has ended"));
        assert!(!lost.never_ran() && !never.never_ran());
        let foreign = crate::launch::Error::Foreign {
            program: "/bin/a".into(),
            architecture: "aarch64".into(),
            own: "x86_64".into(),
        };
        let told = ended(&format!("exit 126\nnever started: {foreign}; try: x\n")).unwrap_err();
        assert_eq!((told.is_for(), never.is_for()), (Some("aarch64"), None));
        assert!(ended("exit 255\nnever started: root: no\n").unwrap_err().never_ran());
        assert!(matches!(ended("exit\n"), Err(Error::Garbled(_))));
        assert!(matches!(ended("exit 256\n"), Err(Error::Garbled(_))));
    }

    #[test]
    fn a_status_tells_why_a_command_never_started() {
        assert_eq!(failure("exit 126 never started: a: no\n").unwrap().exit_code(), 126);
        assert!(matches!(failure("exit 255 lost: a: no\n"), Some(Error::LostThere { .. })));
        assert!(failure("exit 126\n").is_none());
        assert!(failure("new\n").is_none());
    }
}
