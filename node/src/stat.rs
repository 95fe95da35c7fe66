//! `/stat`: what a node is and how busy it is, one line of numbers a file, for scripts.
//!
//! Each file is read from /proc when it is opened; a source that this kernel lacks is `EIO` for that file alone.

use std::fs;

use bytes::Bytes;
use p9::{Errno, NodeRef, synth};

/// The directory `/stat`.
pub fn dir() -> NodeRef {
    synth::dir([
        ("arch", synth::file(|| line(std::env::consts::ARCH))),
        ("cores", synth::file(|| line(&std::thread::available_parallelism()?.to_string()))),
        ("load", synth::file(|| first_fields("/proc/loadavg", 3))),
        ("memory", synth::file(memory)),
        ("pressure", synth::file(pressure)),
        ("running", synth::file(running)),
        ("runs", synth::file(runs)),
        ("uptime", synth::file(|| first_fields("/proc/uptime", 1))),
        ("version", synth::file(|| line(env!("CARGO_PKG_VERSION")))),
    ])
}

/// The architectures whose programs run here, this machine's and its levels first.
fn runs() -> Result<Bytes, Errno> {
    let (all, levels) = (cpuserver::launch::architectures(), cpuserver::launch::levels());
    let all: Vec<&str> = all.iter().take(1).chain(levels).chain(all.iter().skip(1)).copied().collect();
    line(&all.join(" "))
}

fn line(text: &str) -> Result<Bytes, Errno> {
    Ok(format!("{text}\n").into())
}

fn first_fields(path: &str, count: usize) -> Result<Bytes, Errno> {
    let text = fs::read_to_string(path)?;
    let fields: Vec<&str> = text.split_whitespace().take(count).collect();
    line(&fields.join(" "))
}

/// How many tasks run or want to, but for whoever asks this.
fn running() -> Result<Bytes, Errno> {
    let text = fs::read_to_string("/proc/stat")?;
    let count = text.lines().find_map(|line| line.strip_prefix("procs_running ")?.trim().parse::<u64>().ok());
    line(&count.ok_or(Errno::EIO)?.saturating_sub(1).to_string())
}

/// Total and available bytes.
fn memory() -> Result<Bytes, Errno> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let kib = |field: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(field))?;
        rest.trim().trim_end_matches(" kB").parse::<u64>().ok()
    };
    let (Some(total), Some(available)) = (kib("MemTotal:"), kib("MemAvailable:")) else { return Err(Errno::EIO) };
    line(&format!("{} {}", total * 1024, available * 1024))
}

/// The share of the last 10 seconds in which some task waited for cpu, memory and I/O, in percent (PSI).
fn pressure() -> Result<Bytes, Errno> {
    let mut shares = Vec::new();
    for resource in ["cpu", "memory", "io"] {
        let text = fs::read_to_string(format!("/proc/pressure/{resource}"))?;
        let share = text.split_whitespace().find_map(|field| field.strip_prefix("avg10="));
        shares.push(share.ok_or(Errno::EIO)?.to_string());
    }
    line(&shares.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_two_numbers_and_the_first_is_not_smaller() {
        let text = String::from_utf8(memory().unwrap().to_vec()).unwrap();
        let numbers: Vec<u64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
        assert!(numbers.len() == 2 && numbers[0] >= numbers[1], "{text}");
    }
}
