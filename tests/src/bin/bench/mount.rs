//! Group `mount`: files through our mount and through sshfs, from one server folder on loopback. Each pass is on a
//! fresh mount, so that no client cache is warm; it is connected, as sshfs is when it has mounted, and the server's
//! page cache is warm for both. Beside them is what a FUSE file system that does nothing takes, the most that can be
//! reached; and what is done a second time is beside the disk itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::machine::{Done, Machine};

use crate::peers::Sshd;
use crate::{Row, is_wanted, null, timed};

const SMALL_FILES: usize = 5000;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What is done in the folder, and how it is counted.
struct Case {
    name: &'static str,
    /// A shell script.
    work: &'static str,
    count: Count,
}

#[derive(Clone, Copy)]
enum Count {
    Milliseconds,
    /// Of a GiB.
    MibPerSecond,
}

const CASES: [Case; 9] = [
    Case { name: "cat 5000 files of 4 KiB, cold", work: "cat small/* >/dev/null", count: Count::Milliseconds },
    Case { name: "ls -lR of them, cold", work: "ls -lR small >/dev/null", count: Count::Milliseconds },
    Case { name: "find, looking at each, cold", work: "find small -size +1M", count: Count::Milliseconds },
    Case {
        name: "read 1 GiB in sequence, cold",
        work: "dd if=big of=/dev/null bs=1M status=none",
        count: Count::MibPerSecond,
    },
    Case {
        name: "write 1 GiB in sequence, with fsync, in memory",
        work: "dd if=/dev/zero of=memory/written bs=1M count=1024 conv=fsync status=none",
        count: Count::MibPerSecond,
    },
    Case {
        name: "10000 random reads of 4 KiB of 1 GiB",
        work: "/usr/bin/python3 -c 'import os,random; random.seed(1); f=os.open(\"big\",0); \
               [os.pread(f,4096,random.randrange(262144)*4096) for _ in range(10000)]'",
        count: Count::Milliseconds,
    },
    Case {
        name: "10000 random reads of 4 KiB of 256 MiB",
        work: "/usr/bin/python3 -c 'import os,random; random.seed(1); f=os.open(\"middle\",0); \
               [os.pread(f,4096,random.randrange(65536)*4096) for _ in range(10000)]'",
        count: Count::Milliseconds,
    },
    MAKE,
    REMOVE,
];

const MAKE: Case = Case {
    name: "make 2000 small files, in memory",
    work: "mkdir memory/made && \
           /usr/bin/python3 -c 'for i in range(2000): open(f\"memory/made/{i}\",\"w\").write(\"x\"*100)'",
    count: Count::Milliseconds,
};
const REMOVE: Case = Case { name: "remove them", work: "rm -r memory/made", count: Count::Milliseconds };

/// What is done a second time through one mount.
const AGAIN: [Case; 3] = [
    Case { name: "ls -lR of the 5000 files again", work: "ls -lR small >/dev/null", count: Count::Milliseconds },
    Case { name: "find, looking at each, again", work: "find small -size +1M", count: Count::Milliseconds },
    Case { name: "cat of them again", work: "cat small/* >/dev/null", count: Count::Milliseconds },
];

/// What is done in a tree of source files, where the one that does nothing has nothing to show.
const TREES: [Case; 2] = [
    Case { name: "git status of 5000 files, cold", work: "git -C repo status >/dev/null", count: Count::Milliseconds },
    Case {
        name: "untar 5000 files, in memory",
        work: "mkdir memory/repo && tar xf repo.tar -C memory/repo",
        count: Count::Milliseconds,
    },
];

/// Times each of something is measured.
const TIMES: usize = 3;

pub(crate) fn run() -> Vec<Row> {
    let mut machine = Machine::bare();
    let files = machine.at("files-alpha");
    let plain = format!("unix!{}", machine.at("plain").display());
    machine.node_with("alpha", &["--plain", &plain]);
    make_files(&machine, &files);
    let _memory = Memory::mount(&files.join("memory"));
    let sshd = Sshd::start(&machine.at("sshd"));
    let null = machine.at("null");
    let (cases, tree_cases, again_cases) = (wanted(&CASES), wanted(&TREES), wanted(&AGAIN));
    let (mut ours, mut peer, mut nothing) = (per(&cases), per(&cases), per(&cases));
    let (mut trees, mut peers_trees) = (per(&tree_cases), per(&tree_cases));
    let (mut again, mut single, mut local) = (per(&again_cases), per(&again_cases), per(&again_cases));
    let bound_cases = bound(&plain, &files);
    let mut bound: Vec<_> = bound_cases.iter().map(|_| (Vec::new(), Vec::new())).collect();
    for _ in 0..TIMES {
        for (case, all) in cases.iter().zip(&mut ours) {
            all.push(through_us(&mut machine, &[], case.work));
        }
        for (case, all) in cases.iter().zip(&mut peer) {
            all.push(through_sshfs(&machine, &sshd, &files, case.work));
        }
        for (case, all) in cases.iter().zip(&mut nothing) {
            all.push(through_nothing(&machine, &null, case));
        }
        for ((case, ours), peer) in tree_cases.iter().zip(&mut trees).zip(&mut peers_trees) {
            ours.push(through_us(&mut machine, &[], case.work));
            let _ = fs::remove_dir_all(files.join("memory/repo"));
            peer.push(through_sshfs(&machine, &sshd, &files, case.work));
            let _ = fs::remove_dir_all(files.join("memory/repo"));
        }
        for (case, ours) in again_cases.iter().zip(&mut single) {
            ours.push(through_a_single_writer(&mut machine, case.work));
        }
        for ((case, ours), local) in again_cases.iter().zip(&mut again).zip(&mut local) {
            ours.push(through_us(&mut machine, &[case.work], case.work));
            local.push(timed(&machine, &files, case.work));
        }
        for (bound, (ours, beside)) in bound_cases.iter().zip(&mut bound) {
            ours.push(through_bound(&mut machine, bound));
            beside.push(match bound.beside {
                "null" => through_nothing(&machine, &null, &bound.case),
                _ => timed(&machine, &files, bound.case.work),
            });
        }
    }
    let mut rows = Vec::new();
    for (((case, ours), peer), nothing) in cases.iter().zip(ours).zip(peer).zip(nothing) {
        let ours = median(ours);
        rows.push(case.row(ours, ("sshfs", median(peer))));
        rows.push(case.row(ours, ("null", median(nothing))));
    }
    rows.extend(
        tree_cases
            .iter()
            .zip(trees)
            .zip(peers_trees)
            .map(|((case, ours), peer)| case.row(median(ours), ("sshfs", median(peer)))),
    );
    for (((case, ours), single), disk) in again_cases.iter().zip(again).zip(single).zip(local) {
        let disk = ("disk", median(disk));
        rows.push(case.row(median(ours), disk));
        let row = case.row(median(single), disk);
        rows.push(Row { case: format!("{}, a single writer", row.case), ..row });
    }
    let measured = bound_cases.iter().zip(bound);
    rows.extend(
        measured.map(|(Bound { case, beside, .. }, (ours, peer))| case.row(median(ours), (beside, median(peer)))),
    );
    rows
}

fn make_files(machine: &Machine, files: &Path) {
    let small = files.join("small");
    fs::create_dir(&small).expect("a folder of small files");
    for i in 0..SMALL_FILES {
        fs::write(small.join(format!("{i:05}")), [b'x'; 4096]).expect("a small file");
    }
    for (name, size) in [("big", GIB), ("middle", GIB / 4)] {
        machine.run("sh", &["-c", &format!("head -c {size} /dev/zero >{}", files.join(name).display())]);
    }
    for i in 0..100 {
        let dir = files.join(format!("repo/src/{i}"));
        fs::create_dir_all(&dir).expect("a folder of sources");
        (0..SMALL_FILES / 100).for_each(|i| {
            fs::write(dir.join(format!("{i}.c")), vec![b'x'; 2 << 10]).expect("a source file");
        });
    }
    let commit = "git init -q . && git add . && git -c user.name=me -c user.email=me@here commit -qm all";
    machine.run("sh", &["-c", &format!("cd {} && {commit} && tar cf ../repo.tar src", files.join("repo").display())]);
}

/// What is done in a tree that is bound in a mount.
struct Bound {
    case: Case,
    /// What is bound, and where the folder is below it.
    spec: String,
    below: &'static str,
    beside: &'static str,
}

/// A connection without TLS, `plain`, beside what the kernel alone takes; and the folder `files` of this machine, beside
/// itself.
fn bound(plain: &str, files: &Path) -> Vec<Bound> {
    let local = format!("local!{}", files.display());
    let [.., read, _, random, _, _, _] = CASES;
    let mut all = vec![
        Bound {
            case: Case { name: "read 1 GiB, plain", ..read },
            spec: plain.into(),
            below: "fs/files",
            beside: "null",
        },
        Bound { case: Case { name: "read 1 GiB, local", ..read }, spec: local.clone(), below: "", beside: "disk" },
        Bound { case: Case { name: "10000 random reads, local", ..random }, spec: local, below: "", beside: "disk" },
    ];
    all.retain(|bound| is_wanted(bound.case.name));
    all
}

fn wanted(cases: &[Case]) -> Vec<&Case> {
    cases.iter().filter(|case| is_wanted(case.name)).collect()
}

/// Room for what is measured of each case.
fn per(cases: &[&Case]) -> Vec<Vec<f64>> {
    cases.iter().map(|_| Vec::new()).collect()
}

impl Case {
    /// What was measured, both in milliseconds.
    fn row(&self, ours: f64, (name, peer): (&'static str, f64)) -> Row {
        let (figure, unit, more_is_better): (fn(f64) -> f64, _, _) = match self.count {
            Count::Milliseconds => (|ms| ms, "ms", false),
            Count::MibPerSecond => (|ms| GIB as f64 / MIB as f64 / (ms / 1e3), "MiB/s", true),
        };
        let peer = Some((name, figure(peer)));
        Row { group: "mount", case: self.name.into(), ours: figure(ours), peer, unit, more_is_better }
    }
}

/// A file system in memory, gone when dropped: ext4 looks long for the number of a new file where many were removed in
/// the minutes before, which is neither's doing.
struct Memory(PathBuf);

impl Memory {
    fn mount(at: &Path) -> Self {
        fs::create_dir(at).expect("a mount point");
        Command::new("mount").args(["-t", "tmpfs", "memory"]).arg(at).succeeds();
        Self(at.to_path_buf())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// Through a fresh mount of ours, where `before` was done.
fn through_us(machine: &mut Machine, before: &[&str], work: &str) -> f64 {
    // Nothing is warm, on disk neither.
    let n = machine.mount_as("n", &["--disk-cache", "0"]);
    let at = n.join("alpha/fs/files");
    ["true"].iter().chain(before).for_each(|before| _ = timed(machine, &at, before));
    let ms = timed(machine, &at, work);
    machine.slashn(&["unmount", &n.display().to_string()]).succeeds();
    ms
}

/// A second time through a mount that alone changes the files.
fn through_a_single_writer(machine: &mut Machine, work: &str) -> f64 {
    let n = machine.mount_as("single", &["--disk-cache", "0", "--single-writer", "alpha/fs/files"]);
    timed(machine, &n, work);
    let ms = timed(machine, &n, work);
    machine.slashn(&["unmount", &n.display().to_string()]).succeeds();
    ms
}

/// Through a fresh mount of ours in which something is bound.
fn through_bound(machine: &mut Machine, Bound { case, spec, below, .. }: &Bound) -> f64 {
    let n = machine.mount_as("bound", &["--disk-cache", "0"]);
    let at = n.join("there");
    machine.slashn(&["bind", spec, &at.display().to_string()]).succeeds();
    let at = at.join(below);
    timed(machine, &at, "true");
    let ms = timed(machine, &at, case.work);
    machine.slashn(&["unmount", &n.display().to_string()]).succeeds();
    ms
}

fn through_sshfs(machine: &Machine, sshd: &Sshd, files: &Path, work: &str) -> f64 {
    let at = machine.at("sshfs");
    let _mounted = sshd.mount(files, &at);
    timed(machine, &at, work)
}

fn through_nothing(machine: &Machine, at: &Path, case: &Case) -> f64 {
    let _mounted = null::mount(at, SMALL_FILES, GIB);
    // It has nothing but what it is mounted with.
    if case.work == REMOVE.work {
        timed(machine, at, MAKE.work);
    }
    timed(machine, at, case.work)
}
