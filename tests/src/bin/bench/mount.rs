//! Group `mount`: files through our mount and through sshfs, from one server folder on loopback. Each pass is on a
//! fresh mount, so that no client cache is warm; the server's page cache is warm for both.

use std::fs;
use std::path::Path;

use tests::machine::{Done, Machine};

use crate::peers::Sshd;
use crate::{Row, machine, median_ms};

const SMALL_FILES: usize = 5000;
const GIB: u64 = 1 << 30;

pub(crate) fn run() -> Vec<Row> {
    let mut machine = machine(&["alpha"]);
    let files = machine.at("files-alpha");
    let small = files.join("small");
    fs::create_dir(&small).expect("a folder of small files");
    for i in 0..SMALL_FILES {
        fs::write(small.join(format!("{i:05}")), [b'x'; 4096]).expect("a small file");
    }
    machine.run("sh", &["-c", &format!("head -c {GIB} /dev/zero >{}", files.join("big").display())]);
    let sshd = Sshd::start(&machine.at("sshd"));
    let cat_small = "cat small/* >/dev/null";
    let read_big = "dd if=big of=/dev/null bs=1M status=none";
    let (mut ours, mut peer) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for _ in 0..3 {
        for (i, work) in [cat_small, read_big].into_iter().enumerate() {
            ours[i].push(through_us(&mut machine, work));
            peer[i].push(through_sshfs(&machine, &sshd, &files, work));
        }
    }
    let mib_s = |ms: f64| GIB as f64 / f64::from(1 << 20) / (ms / 1e3);
    let [our_small, our_big] = ours.map(median);
    let [peer_small, peer_big] = peer.map(median);
    vec![
        Row {
            group: "mount",
            case: format!("cat {SMALL_FILES} files of 4 KiB, cold"),
            ours: our_small,
            peer: Some(("sshfs", peer_small)),
            unit: "ms",
            more_is_better: false,
        },
        Row {
            group: "mount",
            case: "read 1 GiB in sequence, cold".into(),
            ours: mib_s(our_big),
            peer: Some(("sshfs", mib_s(peer_big))),
            unit: "MiB/s",
            more_is_better: true,
        },
    ]
}

fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn timed(machine: &Machine, at: &Path, work: &str) -> f64 {
    let script = format!("cd {} && {work}", at.display());
    median_ms(1, || {
        machine.command("sh").args(["-c", &script]).succeeds();
    })
}

fn through_us(machine: &mut Machine, work: &str) -> f64 {
    let n = machine.mount();
    let ms = timed(machine, &n.join("alpha/fs/files"), work);
    machine.slashn(&["unmount", &n.display().to_string()]).succeeds();
    ms
}

fn through_sshfs(machine: &Machine, sshd: &Sshd, files: &Path, work: &str) -> f64 {
    let at = machine.at("sshfs");
    let _mounted = sshd.mount(files, &at);
    timed(machine, &at, work)
}
