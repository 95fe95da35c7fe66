//! Group `wan`: the same work over a slow link, by a proxy in front of our node and of sshd.
//!
//! What is waited for one after another is told in round trips: the time over the slow link less the time without it,
//! by the round-trip time of the link. Each pass is on a fresh mount.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tests::link::{Link, Proxy};
use tests::machine::{Done, Machine};
use tokio::runtime::Runtime;

use crate::peers::Sshd;
use crate::{Row, is_wanted, timed};

/// Round-trip times.
const LINKS_MS: [u64; 2] = [20, 50];
const MIB: u64 = 1 << 20;
/// What is read in sequence, and the bytes a second that the link carries meanwhile: a gigabit.
const BIG_MIB: u64 = 192;
const GIGABIT: u64 = 125_000_000;
/// How long the link is cut in the midst of a read.
const CUT: Duration = Duration::from_secs(1);
/// Directories of a tree that is listed.
const DIRS: u64 = 64;

/// What is done in the folder, and how it is told.
struct Case {
    name: &'static str,
    /// A shell script.
    work: &'static str,
    told: Told,
}

enum Told {
    /// As round trips of ours.
    Trips,
    /// As milliseconds, beside sshfs.
    Beside,
}

const CASES: [Case; 6] = [
    Case { name: "cat 1000 files of 1 KiB, cold: round trips", work: "cat many/* >/dev/null", told: Told::Trips },
    Case { name: "ls -lR of 64 folders, cold: round trips", work: "ls -lR dirs >/dev/null", told: Told::Trips },
    Case { name: "ls -lR of 64 folders, cold", work: "ls -lR dirs >/dev/null", told: Told::Beside },
    Case {
        name: "tar of 1000 files in 50 folders, cold",
        work: "tar cf - repo/src | cat >/dev/null",
        told: Told::Beside,
    },
    Case { name: "git status of 1000 files, cold", work: "git -C repo status >/dev/null", told: Told::Beside },
    Case {
        name: "a program that looks for 2000 missing files, cold",
        work: "/usr/bin/python3 -c 'import os; [os.path.exists(f\"repo/src/{d}/{i}.so\") for d in range(10) for i in range(200)]'",
        told: Told::Beside,
    },
];

impl Case {
    /// What the row is called of this case over `link`.
    fn over(&self, link: Link) -> String {
        let uneven = if link.jitter.is_zero() { "" } else { " and up to twice that" };
        format!("{} ms{uneven}: {}", (link.delay * 2).as_millis(), self.name)
    }
}

/// Our node and sshd, each directly and behind a slow link.
struct Ends {
    // Before the machine, which sees to it that nothing is left behind.
    sshd: Sshd,
    machine: Machine,
    runtime: Runtime,
    address: SocketAddr,
    /// The node's line in known_nodes.
    known: String,
}

pub(crate) fn run() -> Vec<Row> {
    let mut machine = Machine::bare();
    let address: SocketAddr =
        machine.node_with("alpha", &["--export", "root=/:ro"]).parse().expect("the node's address");
    make_files(&machine, &machine.at("files-alpha"));
    let sshd = Sshd::start(&machine.at("sshd"));
    let known = fs::read_to_string(machine.at("me/known_nodes")).expect("the nodes I know");
    let mut ends = Ends { machine, sshd, runtime: Runtime::new().expect("a runtime"), address, known };
    let mut rows = Vec::new();
    for ms in LINKS_MS {
        let link = Link::of(Duration::from_millis(ms / 2));
        rows.extend(CASES.iter().filter(|case| is_wanted(&case.over(link))).map(|case| ends.case(case, link)));
        if is_wanted("gcc") {
            rows.push(ends.compiles(ms));
        }
        let write = format!("dd if=/dev/zero of=written bs=1M count={BIG_MIB} conv=fsync status=none; rm written");
        for (name, work) in [("read", "dd if=big of=/dev/null bs=1M status=none"), ("write", &write)] {
            if is_wanted(name) {
                rows.push(ends.sequence(ms, name, work));
            }
        }
    }
    let delay = Duration::from_millis(LINKS_MS[0] / 2);
    let uneven = Link { jitter: delay, ..Link::of(delay) };
    let tar = CASES.iter().filter(|case| case.name.starts_with("tar") && is_wanted(&case.over(uneven)));
    rows.extend(tar.map(|case| ends.case(case, uneven)));
    if is_wanted("cut") {
        rows.push(ends.cut(delay));
    }
    rows
}

fn make_files(machine: &Machine, files: &Path) {
    let includes =
        ["stdio", "stdlib", "string", "unistd", "math"].map(|name| format!("#include <{name}.h>\n")).concat();
    let one = format!("{includes}int main(void) {{ return printf(\"%f\\n\", sqrt(strlen(getenv(\"HOME\")))) < 0; }}\n");
    fs::write(files.join("one.c"), one).expect("a C file");
    let fill = |dir: std::path::PathBuf, count: u64, size: usize| {
        fs::create_dir_all(&dir).expect("a folder");
        for i in 0..count {
            fs::write(dir.join(format!("{i:04}.c")), vec![b'x'; size]).expect("a small file");
        }
    };
    fill(files.join("many"), 1000, 1 << 10);
    (0..DIRS).for_each(|i| fill(files.join(format!("dirs/{i}")), 8, 100));
    (0..50).for_each(|i| fill(files.join(format!("repo/src/{i}")), 20, 2 << 10));
    let commit = "git init -q . && git add . && git -c user.name=me -c user.email=me@here commit -qm all";
    machine.run("sh", &["-c", &format!("cd {} && {commit}", files.join("repo").display())]);
    machine.run("sh", &["-c", &format!("head -c {} /dev/zero >{}", BIG_MIB * MIB, files.join("big").display())]);
}

impl Ends {
    /// A proxy in front of `to`.
    fn slow(&self, to: SocketAddr, link: Link) -> Proxy {
        self.runtime.block_on(Proxy::over(to, link)).expect("a proxy")
    }

    /// Makes `far` the name of the node behind `proxy`.
    fn knows(&self, proxy: &Proxy) {
        let far = self.known.replace(&self.address.to_string(), &proxy.address.to_string()).replace("alpha", "far");
        fs::write(self.machine.at("me/known_nodes"), format!("{}{far}", self.known)).expect("a second way to it");
    }

    /// The work through our mount, in the files of `node`, in milliseconds.
    fn through_us(&mut self, node: &str, work: &str) -> f64 {
        self.through_us_after(node, &[], work)
    }

    /// The same where `before` was done.
    fn through_us_after(&mut self, node: &str, before: &[&str], work: &str) -> f64 {
        // Nothing is warm, on disk neither.
        let n = self.machine.mount_as("n", &["--disk-cache", "0"]);
        let at = n.join(node).join("fs/files");
        // Connected, as a mount that has been used is.
        self.machine.command("ls").arg(n.join(node)).succeeds();
        before.iter().for_each(|before| _ = timed(&self.machine, &at, before));
        let ms = timed(&self.machine, &at, work);
        self.machine.slashn(&["unmount", &n.display().to_string()]).succeeds();
        ms
    }

    fn through_sshfs(&self, port: u16, work: &str) -> f64 {
        let at = self.machine.at("sshfs");
        let _mounted = self.sshd.mount_by(port, &self.machine.at("files-alpha"), &at);
        timed(&self.machine, &at, work)
    }

    fn case(&mut self, case: &Case, link: Link) -> Row {
        let far = self.slow(self.address, link);
        self.knows(&far);
        let ours = self.through_us("far", case.work);
        let (name, group, more_is_better) = (case.over(link), "wan", false);
        match case.told {
            Told::Trips => {
                let near = self.through_us("alpha", case.work);
                let trips = (ours - near) / (link.delay * 2).as_secs_f64() / 1e3;
                Row { group, case: name, ours: trips, peer: None, unit: "trips", more_is_better }
            }
            Told::Beside => {
                let far = self.slow(([127, 0, 0, 1], self.sshd.port).into(), link);
                let peer = Some(("sshfs", self.through_sshfs(far.address.port(), case.work)));
                Row { group, case: name, ours, peer, unit: "ms", more_is_better }
            }
        }
    }

    /// One C file with the compiler and the headers over there, a second time, beside those of this machine.
    fn compiles(&mut self, ms: u64) -> Row {
        let far = self.slow(self.address, Link::of(Duration::from_millis(ms / 2)));
        self.knows(&far);
        let out = self.machine.at("work/one.o");
        let compile = |root: &str| format!("{root}/usr/bin/gcc --sysroot={root}/ -O1 -c one.c -o {}", out.display());
        let (there, here) = (compile("../root"), compile(""));
        let ours = self.through_us_after("far", &[&there], &there);
        let files = self.machine.at("files-alpha");
        timed(&self.machine, &files, &here);
        let local = timed(&self.machine, &files, &here);
        Row {
            group: "wan",
            case: format!("{ms} ms: gcc of one file by the compiler over there, again"),
            ours,
            peer: Some(("local", local)),
            unit: "ms",
            more_is_better: false,
        }
    }

    /// Reading or writing in sequence over a link of a gigabit, beside what that carries.
    fn sequence(&mut self, ms: u64, name: &str, work: &str) -> Row {
        let far = self.slow(self.address, Link { rate: Some(GIGABIT), ..Link::of(Duration::from_millis(ms / 2)) });
        self.knows(&far);
        let took = self.through_us("far", work);
        Row {
            group: "wan",
            case: format!("{ms} ms: {name} {BIG_MIB} MiB in sequence, of a gigabit"),
            ours: (BIG_MIB * MIB) as f64 / 1e6 / (took / 1e3),
            peer: Some(("link", GIGABIT as f64 / 1e6)),
            unit: "MB/s",
            more_is_better: true,
        }
    }

    /// Reading in sequence over a link of a gigabit that is cut for a while in the midst, beside one that is not.
    fn cut(&mut self, delay: Duration) -> Row {
        let work = format!("cat big | cmp -n {} - /dev/zero", BIG_MIB * MIB);
        let far = self.slow(self.address, Link { rate: Some(GIGABIT), ..Link::of(delay) });
        self.knows(&far);
        let whole = self.through_us("far", &work);
        let before = far.carried();
        let cut = std::thread::scope(|scope| {
            scope.spawn(|| {
                while far.carried() - before < BIG_MIB * MIB / 2 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                far.shut();
                std::thread::sleep(CUT);
                far.open();
            });
            self.through_us("far", &work)
        });
        Row {
            group: "wan",
            case: format!("{} ms: read {BIG_MIB} MiB, cut for {CUT:?} in the midst", (delay * 2).as_millis()),
            ours: cut,
            peer: Some(("uncut", whole)),
            unit: "ms",
            more_is_better: false,
        }
    }
}
