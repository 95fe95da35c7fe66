//! What bounds a command: the lines of the file `limits`.
//!
//! `cpus 1.5`, `memory 2G`, `processes 100`, `time 60` (seconds), `io 50` (a weight, of which 100 is usual) bound the
//! command with all its descendants; the names of setrlimit(2) in lower case, with a soft and a hard limit, each of its
//! processes. Parsed when they are written, so that the error reaches the writer.

use std::time::Duration;

use p9::Errno;

use crate::words;

/// What bounds a command.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    /// Processors at once, as many as are busy.
    pub(crate) cpus: Option<f64>,
    /// Bytes.
    pub(crate) memory: Option<u64>,
    pub(crate) processes: Option<u64>,
    /// How long it may run.
    pub(crate) time: Option<Duration>,
    /// How much of a disk that is contended it gets, beside those that have 100: 1 to 1000.
    pub(crate) io: Option<u64>,
    /// Resource, soft and hard limit: setrlimit(2).
    pub(crate) of_each: Vec<(i32, u64, u64)>,
}

impl Limits {
    /// The limits that `text` tells. Errors: `EINVAL`.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, Errno> {
        let mut limits = Self::default();
        for line in words::lines(text).ok_or(Errno::EINVAL)? {
            let line: Option<Vec<&str>> = line.iter().map(|word| std::str::from_utf8(word).ok()).collect();
            limits.set(&line.ok_or(Errno::EINVAL)?).ok_or(Errno::EINVAL)?;
        }
        Ok(limits)
    }

    /// Whether any of them bounds the command with all its descendants, as control groups do.
    pub(crate) fn bound_the_whole(&self) -> bool {
        self.cpus.is_some() || self.memory.is_some() || self.processes.is_some() || self.io.is_some()
    }

    fn set(&mut self, line: &[&str]) -> Option<()> {
        match *line {
            ["cpus", n] => self.cpus = Some(n.parse().ok().filter(|n: &f64| (0.01..=65_536.0).contains(n))?),
            ["memory", n] => self.memory = Some(bytes(n).filter(|n| *n > 0)?),
            ["processes", n] => self.processes = Some(n.parse().ok().filter(|n| *n > 0)?),
            ["time", n] => self.time = Some(seconds(n)?),
            ["io", n] => self.io = Some(n.parse().ok().filter(|n| (1..=1000).contains(n))?),
            [name, soft] => self.of_each.push(of_each(name, soft, soft)?),
            [name, soft, hard] => self.of_each.push(of_each(name, soft, hard)?),
            _ => return None,
        }
        Some(())
    }

    /// The text that [`Limits::parse`] reads.
    pub(crate) fn text(&self) -> String {
        let amount = |n: u64| if n == libc::RLIM_INFINITY { "unlimited".to_owned() } else { n.to_string() };
        let whole = [
            self.cpus.map(|n| format!("cpus {n}\n")),
            self.memory.map(|n| format!("memory {n}\n")),
            self.processes.map(|n| format!("processes {n}\n")),
            self.time.map(|n| format!("time {}\n", n.as_secs_f64())),
            self.io.map(|n| format!("io {n}\n")),
        ];
        let line = |&(resource, soft, hard): &(i32, u64, u64)| {
            let name = OF_EACH.iter().find(|&&(_, known)| known == resource).map_or("", |&(name, _)| name);
            format!("{name} {} {}\n", amount(soft), amount(hard))
        };
        whole.into_iter().flatten().chain(self.of_each.iter().map(line)).collect()
    }
}

const OF_EACH: &[(&str, i32)] = &[
    ("as", libc::RLIMIT_AS as i32),
    ("core", libc::RLIMIT_CORE as i32),
    ("cpu", libc::RLIMIT_CPU as i32),
    ("data", libc::RLIMIT_DATA as i32),
    ("fsize", libc::RLIMIT_FSIZE as i32),
    ("memlock", libc::RLIMIT_MEMLOCK as i32),
    ("nofile", libc::RLIMIT_NOFILE as i32),
    ("nproc", libc::RLIMIT_NPROC as i32),
    ("stack", libc::RLIMIT_STACK as i32),
];

fn of_each(name: &str, soft: &str, hard: &str) -> Option<(i32, u64, u64)> {
    let &(_, resource) = OF_EACH.iter().find(|(known, _)| *known == name)?;
    let amount = |word: &str| if word == "unlimited" { Some(libc::RLIM_INFINITY) } else { word.parse().ok() };
    let (soft, hard) = (amount(soft)?, amount(hard)?);
    (soft <= hard).then_some((resource, soft, hard))
}

/// Bytes, with K, M, G or T for powers of 1024.
fn bytes(word: &str) -> Option<u64> {
    let shift = match word.as_bytes().last()?.to_ascii_uppercase() {
        b'K' => 10,
        b'M' => 20,
        b'G' => 30,
        b'T' => 40,
        _ => 0,
    };
    let digits = if shift == 0 { word } else { &word[..word.len() - 1] };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Seconds, with m, h or d for minutes, hours and days.
fn seconds(word: &str) -> Option<Duration> {
    let unit: f64 = match word.as_bytes().last()? {
        b'm' => 60.0,
        b'h' => 3600.0,
        b'd' => 86_400.0,
        b's' => 1.0,
        _ => 0.0,
    };
    let digits = if unit == 0.0 { word } else { &word[..word.len() - 1] };
    let seconds = digits.parse::<f64>().ok()? * unit.max(1.0);
    const MOST: f64 = 1e9;
    (seconds > 0.0 && seconds <= MOST).then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_they_are_printed() {
        let said = "cpus 1.5\nmemory 2G\nprocesses 100\ntime 2m\nio 50\nnofile 1024 4096\ncore 0\nas unlimited\n";
        let limits = Limits::parse(said.as_bytes()).unwrap();
        let printed = "cpus 1.5\nmemory 2147483648\nprocesses 100\ntime 120\nio 50\nnofile 1024 4096\ncore 0 0\n\
                       as unlimited unlimited\n";
        assert_eq!(limits.text(), printed);
        assert_eq!(Limits::parse(printed.as_bytes()).unwrap(), limits);
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        for wrong in [
            "nofile",
            "files 1",
            "nofile 2 1",
            "nofile x",
            "nofile -1",
            "cpus 0",
            "cpus nan",
            "memory 0",
            "memory 1X",
            "memory 99999999999T",
            "processes 0",
            "processes 1 2",
            "time 0",
            "time -1",
            "time inf",
            "io 0",
            "io 1001",
            "time é",
        ] {
            assert_eq!(Limits::parse(wrong.as_bytes()), Err(Errno::EINVAL), "{wrong}");
        }
    }
}
