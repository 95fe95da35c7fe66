//! Signal names, as kill(1) takes them, and their numbers on this machine.
//!
//! Between machines a signal travels by name, since architectures number some of them differently. Used by the ctl
//! parser, by the `rcpu` library, and by whoever reads what a user typed.

macro_rules! signals {
    ($($name:ident)*) => {
        const TABLE: &[(&str, i32)] = &[$((stringify!($name), libc::$name)),*];
    };
}

signals! {
    SIGHUP SIGINT SIGQUIT SIGILL SIGTRAP SIGABRT SIGBUS SIGFPE SIGKILL SIGUSR1 SIGSEGV SIGUSR2 SIGPIPE SIGALRM SIGTERM
    SIGCHLD SIGCONT SIGSTOP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGXCPU SIGXFSZ SIGVTALRM SIGPROF SIGWINCH SIGIO SIGPWR SIGSYS
}

/// The number of the signal that `word` names, with or without `SIG`, or numbers (1 to 64).
pub fn number(word: &[u8]) -> Option<i32> {
    let word = std::str::from_utf8(word).ok()?;
    if let Ok(number) = word.parse() {
        return (1..=64).contains(&number).then_some(number);
    }
    let bare = word.strip_prefix("SIG").unwrap_or(word);
    TABLE.iter().find(|(name, _)| name.strip_prefix("SIG") == Some(bare)).map(|&(_, number)| number)
}

/// How to write the signal `number` so that another machine understands it.
pub(crate) fn name(number: i32) -> String {
    match TABLE.iter().find(|&&(_, known)| known == number) {
        Some((name, _)) => name.trim_start_matches("SIG").to_owned(),
        None => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_and_its_number_are_one() {
        for &(full, signal) in TABLE {
            assert_eq!(number(full.as_bytes()), Some(signal));
            assert_eq!(number(name(signal).as_bytes()), Some(signal));
        }
        assert_eq!(name(40), "40");
        assert_eq!(number(b"TERMINATE"), None);
    }
}
