//! What a command writes, reads, and echoes on a terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

use super::{Ends, least};
use crate::peers::words;
use crate::{Row, is_wanted, timed};

const GIB: u64 = 1 << 30;
/// How often the streams are measured: the best counts, which nothing else has slowed.
const TIMES: usize = 3;
/// Keys whose echo is waited for.
const KEYS: usize = 2000;

pub(super) fn run() -> Vec<Row> {
    if !CASES.into_iter().any(is_wanted) {
        return Vec::new();
    }
    let ends = Ends::new();
    let mut rows = Vec::new();
    if is_wanted(CASES[0]) {
        rows.extend(ends.stream(CASES[0], "head -c SIZE /dev/zero", " | cat >/dev/null", ""));
    }
    if is_wanted(CASES[1]) {
        rows.extend(ends.stream(CASES[1], "sh -c 'cat >/dev/null'", "", "head -c SIZE /dev/zero | "));
    }
    if is_wanted(CASES[2]) {
        rows.extend(ends.echo());
    }
    rows
}

const CASES: [&str; 3] = ["stdout of a command, 1 GiB", "stdin of a command, 1 GiB", "echo of a key"];

impl Ends {
    /// The shell command `there`, on the node, with `before` and `after` it here.
    fn stream(&self, case: &'static str, there: &str, after: &str, before: &str) -> [Row; 2] {
        let by = |way: &str, there: &str| {
            let work = format!("{before}{way}{there}{after}").replace("SIZE", &GIB.to_string());
            let ms = (0..TIMES).map(|_| timed(&self.machine, Path::new("/"), &work)).fold(f64::INFINITY, f64::min);
            GIB as f64 / 1e6 / (ms / 1e3)
        };
        let ssh = words(&self.sshd.ssh(self.sshd.port));
        let ssh = format!("{ssh} -c aes128-gcm@openssh.com ");
        let ours = by("rcpu beta ", there);
        let (ssh, pipe) = (by(&ssh, &format!("\"{there}\"")), by("", there));
        let row =
            |peer| Row { group: "rcpu", case: case.into(), ours, peer: Some(peer), unit: "MB/s", more_is_better: true };
        [row(("ssh gcm", ssh)), row(("pipe", pipe))]
    }

    /// How long a key takes that is typed into a terminal and echoed by the one of the command.
    fn echo(&self) -> Vec<Row> {
        let there = "stty -icanon min 1; echo ready; exec cat >/dev/null";
        let ours = typed(self.machine.rcpu(&["-t", "beta", "sh", "-c", there]));
        let ssh = typed({
            let mut ssh = self.sshd.ssh(self.sshd.port);
            // The options first: what comes after the host is the command.
            let args: Vec<_> = ssh.get_args().map(ToOwned::to_owned).collect();
            ssh = Command::new("ssh");
            ssh.arg("-tt").args(args).arg(there);
            ssh
        });
        let bare = typed({
            let mut sh = self.machine.command("sh");
            sh.args(["-c", there]);
            sh
        });
        let mut rows = Vec::new();
        for (name, part) in [("p50", 50), ("p99", 99)] {
            let at = |times: &[Duration]| times[times.len() * part / 100].as_secs_f64() * 1e3;
            let case = format!("{}, {name}", CASES[2]);
            rows.push(least(case.clone(), at(&ours), ("ssh", at(&ssh)), "ms"));
            rows.push(least(
                format!("{case}, more than a bare terminal's"),
                at(&ours) - at(&bare),
                ("promised", 0.5),
                "ms",
            ));
        }
        rows
    }
}

/// The times that keys take which are typed into a terminal in which `command` runs that says `ready`, sorted.
fn typed(mut command: Command) -> Vec<Duration> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).expect("a terminal");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("a terminal's other side");
    let slave = File::from(ioctl_tiocgptpeer(&master, flags).expect("a terminal's other side"));
    let stdio = || Stdio::from(slave.try_clone().expect("a descriptor"));
    let mut child = command.stdin(stdio()).stdout(stdio()).stderr(stdio()).spawn().expect("a command in a terminal");
    drop((command, slave));
    let mut terminal = File::from(master);
    let mut said = Vec::new();
    while !said.ends_with(b"ready\r\n") {
        let mut byte = [0];
        terminal.read_exact(&mut byte).unwrap_or_else(|err| panic!("{err}: {}", String::from_utf8_lossy(&said)));
        said.push(byte[0]);
    }
    let mut times: Vec<Duration> = (0..KEYS)
        .map(|_| {
            let (start, mut echo) = (Instant::now(), [0]);
            terminal.write_all(b"x").and_then(|()| terminal.read_exact(&mut echo)).expect("an echo");
            assert_eq!(&echo, b"x");
            start.elapsed()
        })
        .collect();
    times.sort();
    let _ = child.kill();
    let _ = child.wait();
    times
}
