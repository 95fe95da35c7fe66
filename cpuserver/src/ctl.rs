//! What may be written to a session's `ctl`: one command a line, parsed whole before anything is done.
//!
//! Called by the session for each write, in the task that answers it. A command that is not known (or not yet) is
//! `EOPNOTSUPP`, one that is known but wrong `EINVAL`. Besides the commands that every user types there are those that
//! fill the session's files (`args`, `env`, `cwd`, `ns`, `nodes`), so that a client says a whole command in one write.

use p9::Errno;

use crate::{signals, words};

/// One command.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Ctl {
    /// `exec`: run the command; answered once it runs, or could not be started.
    Exec,
    /// `start`: the same, answered at once.
    Start,
    /// `kill SIGNAL`: by name or number, to the command's process group.
    Kill(i32),
    /// `winsize ROWS COLS`.
    Winsize(u16, u16),
    /// `detach`: live on without the open clone file.
    Detach,
    /// `nice N`.
    Nice(i32),
    /// `pty`: stdin, stdout and stderr are a terminal.
    Pty,
    /// `eof`: the input ends here.
    Eof,
    /// `user UID GID`: who the command sees itself as.
    User(u32, u32),
    /// `limits TEXT`: one word, quoted.
    Limits(Vec<u8>),
    /// `umask OCTAL`.
    Umask(u32),
    /// `args WORD...`
    Args(Vec<Vec<u8>>),
    /// `env NAME=VALUE...`
    Env(Vec<Vec<u8>>),
    /// `cwd PATH`
    Cwd(Vec<u8>),
    /// `ns TEXT`: one word, quoted.
    Ns(Vec<u8>),
    /// `nodes TEXT`: one word, quoted.
    Nodes(Vec<u8>),
    /// `listen ADDRESS...`: where connections are taken for the caller.
    Listen(Vec<Vec<u8>>),
    /// `give PATH TEXT`: a small file that the command finds.
    Give(Vec<u8>, Vec<u8>),
}

impl Ctl {
    /// The commands of one write.
    pub(crate) fn parse(text: &[u8]) -> Result<Vec<Self>, Errno> {
        let lines = words::lines(text).ok_or(Errno::EINVAL)?;
        lines.into_iter().map(Self::of_words).collect()
    }

    fn of_words(mut words: Vec<Vec<u8>>) -> Result<Self, Errno> {
        let rest = words.split_off(1);
        let arguments: Vec<&[u8]> = rest.iter().map(Vec::as_slice).collect();
        match (words[0].as_slice(), arguments.as_slice()) {
            (b"exec", []) => Ok(Self::Exec),
            (b"start", []) => Ok(Self::Start),
            (b"kill", [signal]) => signals::number(signal).map(Self::Kill).ok_or(Errno::EINVAL),
            (b"winsize", [rows, cols]) => Ok(Self::Winsize(number(rows)?, number(cols)?)),
            (b"detach", []) => Ok(Self::Detach),
            (b"nice", [nice]) => number(nice).map(Self::Nice),
            (b"pty", []) => Ok(Self::Pty),
            (b"eof", []) => Ok(Self::Eof),
            (b"user", [uid, gid]) => Ok(Self::User(number(uid)?, number(gid)?)),
            (b"limits", [text]) => Ok(Self::Limits(text.to_vec())),
            (b"umask", [mask]) => octal(mask).map(Self::Umask),
            (b"cwd", [path]) => Ok(Self::Cwd(path.to_vec())),
            (b"ns", [text]) => Ok(Self::Ns(text.to_vec())),
            (b"nodes", [text]) => Ok(Self::Nodes(text.to_vec())),
            (b"args", [_, ..]) => Ok(Self::Args(rest)),
            (b"env", _) => Ok(Self::Env(rest)),
            (b"listen", _) => Ok(Self::Listen(rest)),
            (b"give", [path, text]) => Ok(Self::Give(path.to_vec(), text.to_vec())),
            (
                b"exec" | b"start" | b"kill" | b"winsize" | b"detach" | b"nice" | b"pty" | b"eof" | b"user" | b"limits"
                | b"umask" | b"cwd" | b"ns" | b"nodes" | b"args" | b"give",
                _,
            ) => Err(Errno::EINVAL),
            _ => Err(Errno::EOPNOTSUPP),
        }
    }
}

fn number<T: std::str::FromStr>(word: &[u8]) -> Result<T, Errno> {
    std::str::from_utf8(word).ok().and_then(|text| text.parse().ok()).ok_or(Errno::EINVAL)
}

fn octal(word: &[u8]) -> Result<u32, Errno> {
    let text = std::str::from_utf8(word).map_err(|_| Errno::EINVAL)?;
    u32::from_str_radix(text, 8).ok().filter(|&mask| mask <= 0o777).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_is_read() {
        for (text, command) in [
            ("exec\n", Ctl::Exec),
            ("start", Ctl::Start),
            ("kill TERM", Ctl::Kill(libc::SIGTERM)),
            ("kill SIGUSR1", Ctl::Kill(libc::SIGUSR1)),
            ("kill 9", Ctl::Kill(9)),
            ("winsize 24 80", Ctl::Winsize(24, 80)),
            ("detach", Ctl::Detach),
            ("nice -5", Ctl::Nice(-5)),
            ("pty", Ctl::Pty),
            ("eof", Ctl::Eof),
            ("user 1000 100", Ctl::User(1000, 100)),
            ("limits 'time 5'", Ctl::Limits(b"time 5".to_vec())),
            ("umask 022", Ctl::Umask(0o22)),
            ("cwd '/a b'", Ctl::Cwd(b"/a b".to_vec())),
            ("ns 'mount caller /\nbind /a /b'", Ctl::Ns(b"mount caller /\nbind /a /b".to_vec())),
            ("nodes 'a h:1 home K'", Ctl::Nodes(b"a h:1 home K".to_vec())),
            ("args sh -c 'exit 7'", Ctl::Args(vec![b"sh".to_vec(), b"-c".to_vec(), b"exit 7".to_vec()])),
            ("env A=1", Ctl::Env(vec![b"A=1".to_vec()])),
            ("listen unix!/run/s", Ctl::Listen(vec![b"unix!/run/s".to_vec()])),
            ("give /run/f 'a b'", Ctl::Give(b"/run/f".to_vec(), b"a b".to_vec())),
        ] {
            assert_eq!(Ctl::parse(text.as_bytes()), Ok(vec![command]), "{text}");
        }
    }

    #[test]
    fn one_write_may_say_everything() {
        let commands = Ctl::parse(b"args true\ncwd /\n\nexec\n").unwrap();
        assert_eq!(commands, [Ctl::Args(vec![b"true".to_vec()]), Ctl::Cwd(b"/".to_vec()), Ctl::Exec]);
    }

    #[test]
    fn what_is_not_known_is_not_offered_and_what_is_wrong_is_invalid() {
        for text in ["migrate gpu1", "freeze", "EXEC"] {
            assert_eq!(Ctl::parse(text.as_bytes()), Err(Errno::EOPNOTSUPP), "{text}");
        }
        for text in [
            "kill",
            "kill NOSUCH",
            "kill 0",
            "kill 65",
            "winsize 1",
            "winsize -1 2",
            "umask 9",
            "exec now",
            "cwd '/",
            "give /a",
        ] {
            assert_eq!(Ctl::parse(text.as_bytes()), Err(Errno::EINVAL), "{text}");
        }
    }
}
