//! The control groups of one job: what bounds all of its processes together, see cgroups(7).
//!
//! Made by the job's task when its `limits` say so, before init goes on: init is put in, and all others descend from
//! it. Each limit is kept by whatever this machine has, the unified hierarchy or the older ones; where this process may
//! make no groups, by what setrlimit(2) and sched_setaffinity(2) can do, or not at all. Which, is told in the session's
//! `stats`. Invariant: no group outlives its job.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::session::Limits;

/// Where groups of a job may be made: a directory for each controller.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hierarchies {
    /// The group of the unified hierarchy that this process is in, and its top, where root may make some.
    unified: Vec<PathBuf>,
    /// Controller, and the directory in its hierarchy that this process is in.
    older: Vec<(String, PathBuf)>,
}

/// What the names of groups begin with; the pid of this process follows, then the session's number.
const NAME: &str = "slashn-job-";

/// What keeps one limit.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum By {
    Unified,
    Older,
    EachProcess,
    Nothing,
}

/// The groups of one job; dropping it removes them.
#[derive(Debug, Default)]
pub(crate) struct Group {
    made: Vec<PathBuf>,
    /// The one that bounds memory.
    memory: Option<PathBuf>,
    /// What bounds each process, where no group does.
    pub(crate) of_each: Vec<(i32, u64, u64)>,
    /// On how many processors it may run, where no group says how much of them.
    pub(crate) processors: Option<usize>,
    told: String,
}

impl Hierarchies {
    /// Those that this process is in.
    pub(crate) fn of_this_process() -> Self {
        let read = |file: &str| fs::read_to_string(format!("/proc/self/{file}")).unwrap_or_default();
        let all = Self::parse(&read("mountinfo"), &read("cgroup"));
        all.sweep();
        all
    }

    /// Removes the groups of nodes that were killed: nobody else will.
    fn sweep(&self) {
        for top in self.unified.iter().chain(self.older.iter().map(|(_, top)| top)) {
            for entry in fs::read_dir(top).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let maker = name.to_str().and_then(|name| name.strip_prefix(NAME)?.split_once('-'));
                if maker.is_some_and(|(pid, _)| !Path::new("/proc").join(pid).exists()) {
                    // One in which a process is left stays.
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }

    /// From the texts of proc(5): `mountinfo` and `cgroup`.
    fn parse(mounts: &str, groups: &str) -> Self {
        let mut all = Self::default();
        for line in mounts.lines() {
            let Some((fields, rest)) = line.split_once(" - ") else { continue };
            let fields: Vec<&str> = fields.split(' ').collect();
            let rest: Vec<&str> = rest.split(' ').collect();
            let ([_, _, _, root, at, ..], [kind, _, options]) = (&fields[..], &rest[..]) else { continue };
            let own = |wanted: &str| {
                let group = groups.lines().find_map(|line| {
                    let (_, line) = line.split_once(':')?;
                    let (controllers, path) = line.split_once(':')?;
                    controllers.split(',').any(|one| one == wanted).then_some(path)
                })?;
                let below = Path::new(group).strip_prefix(root).ok()?;
                Some(Path::new(at).join(below))
            };
            match *kind {
                "cgroup2" => {
                    all.unified.extend(own(""));
                    all.unified.push(at.into());
                }
                "cgroup" => {
                    let controllers = options.split(',').filter(|one| ["cpu", "memory", "pids", "blkio"].contains(one));
                    let found = controllers.filter_map(|one| Some((one.to_owned(), own(one)?)));
                    all.older.extend(found.collect::<Vec<_>>());
                }
                _ => {}
            }
        }
        all
    }

    /// A directory for `controller`, with the file that says that it is there.
    fn at(&self, controller: &str, name: &str) -> Option<(By, PathBuf)> {
        let unified = match controller {
            "blkio" => "io",
            other => other,
        };
        if let Some(top) = self.unified.iter().find(|top| offers(top, unified)) {
            return Some((By::Unified, top.join(name)));
        }
        let (_, top) = self.older.iter().find(|(one, _)| one == controller)?;
        Some((By::Older, top.join(name)))
    }
}

/// Whether groups in `top`, of the unified hierarchy, can be bounded by `controller`: it is passed on already, or can
/// be because nothing but the top of all is in the way.
fn offers(top: &Path, controller: &str) -> bool {
    let has = |file: &str| {
        let text = fs::read_to_string(top.join(file)).unwrap_or_default();
        text.split_whitespace().any(|one| one == controller)
    };
    has("cgroup.subtree_control")
        || has("cgroup.controllers") && fs::write(top.join("cgroup.subtree_control"), format!("+{controller}")).is_ok()
}

impl Group {
    /// Groups for the session `id` that keep `limits`, as far as that can be had.
    pub(crate) fn make(hierarchies: &Hierarchies, id: u64, limits: &Limits) -> Self {
        let mut group = Self::default();
        let name = &format!("{NAME}{}-{id}", std::process::id());
        if let Some(cpus) = limits.cpus {
            const PERIOD_US: f64 = 100_000.0;
            let quota = (cpus * PERIOD_US).max(1000.0) as u64;
            let by = group.keep(hierarchies, name, "cpu", &|by| match by {
                By::Unified => vec![("cpu.max", format!("{quota} {PERIOD_US}"))],
                _ => vec![("cpu.cfs_period_us", PERIOD_US.to_string()), ("cpu.cfs_quota_us", quota.to_string())],
            });
            if by == By::Nothing {
                group.processors = Some((cpus.ceil() as usize).max(1));
            }
            group.tell("cpus", if by == By::Nothing { By::EachProcess } else { by });
        }
        if let Some(bytes) = limits.memory {
            let by = group.keep(hierarchies, name, "memory", &|by| match by {
                // What is swapped out counts, or it is no bound.
                By::Unified => vec![("memory.max", bytes.to_string()), ("?memory.swap.max", "0".into())],
                _ => vec![
                    ("memory.limit_in_bytes", bytes.to_string()),
                    ("?memory.memsw.limit_in_bytes", bytes.to_string()),
                ],
            });
            group.of_each_unless(by, libc::RLIMIT_AS as i32, bytes);
            group.tell("memory", if by == By::Nothing { By::EachProcess } else { by });
        }
        if let Some(count) = limits.processes {
            // Init is one.
            let by = group.keep(hierarchies, name, "pids", &|_| vec![("pids.max", (count + 1).to_string())]);
            group.of_each_unless(by, libc::RLIMIT_NPROC as i32, count + 1);
            group.tell("processes", if by == By::Nothing { By::EachProcess } else { by });
        }
        if let Some(weight) = limits.io {
            let by = group.keep(hierarchies, name, "blkio", &|by| match by {
                By::Unified => vec![("io.weight", format!("default {weight}"))],
                _ => vec![("blkio.bfq.weight", weight.to_string())],
            });
            group.tell("io", by);
        }
        group
    }

    /// Has the controller keep what `files` say; a name after `?` may be missing.
    fn keep(
        &mut self, hierarchies: &Hierarchies, name: &str, controller: &str,
        files: &dyn Fn(By) -> Vec<(&'static str, String)>,
    ) -> By {
        let Some((by, at)) = hierarchies.at(controller, name) else { return By::Nothing };
        let kept = self.directory(&at).and_then(|()| {
            files(by).iter().try_for_each(|(file, text)| match file.strip_prefix('?') {
                Some(file) => fs::write(at.join(file), text).or(Ok(())),
                None => fs::write(at.join(file), text),
            })
        });
        match kept {
            Ok(()) => {
                if controller == "memory" {
                    self.memory = Some(at);
                }
                by
            }
            Err(error) => {
                tracing::debug!(at = %at.display(), %error, "a limit is not kept by a group");
                By::Nothing
            }
        }
    }

    fn directory(&mut self, at: &Path) -> io::Result<()> {
        if !self.made.iter().any(|made| made == at) {
            fs::create_dir(at)?;
            self.made.push(at.to_owned());
        }
        Ok(())
    }

    fn of_each_unless(&mut self, by: By, resource: i32, most: u64) {
        if by == By::Nothing {
            self.of_each.push((resource, most, most));
        }
    }

    fn tell(&mut self, limit: &str, by: By) {
        let by = match by {
            By::Unified => "cgroup-v2",
            By::Older => "cgroup-v1",
            By::EachProcess => "each-process",
            By::Nothing => "nothing",
        };
        let _ = write!(self.told, " {limit} {by}");
    }

    /// What keeps which limit: ` LIMIT BY` for each.
    pub(crate) fn told(&self) -> &str {
        &self.told
    }

    /// Puts the process `pid` in, and thus what will descend from it.
    pub(crate) fn adopt(&self, pid: i32) -> io::Result<()> {
        self.made.iter().try_for_each(|at| fs::write(at.join("cgroup.procs"), pid.to_string()))
    }

    /// How many of its processes the kernel has killed because there was no more memory for them.
    pub(crate) fn killed_for_memory(&self) -> u64 {
        let of = |file: &str| {
            let text = fs::read_to_string(self.memory.as_ref()?.join(file)).ok()?;
            text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
        };
        of("memory.events").or_else(|| of("memory.oom_control")).unwrap_or_default()
    }

    /// The most memory that all of it had at once, in bytes, where a group counts that.
    pub(crate) fn peak(&self) -> Option<u64> {
        let of = |file: &str| fs::read_to_string(self.memory.as_ref()?.join(file)).ok()?.trim().parse().ok();
        of("memory.peak").or_else(|| of("memory.max_usage_in_bytes"))
    }
}

impl Drop for Group {
    /// It may block for a moment: a process that has just ended may still be on its way out.
    fn drop(&mut self) {
        const MOMENT: Duration = Duration::from_millis(5);
        const MOMENTS: usize = 400;
        for at in &self.made {
            let mut tries = 0;
            while let Err(error) = fs::remove_dir(at)
                && error.kind() != io::ErrorKind::NotFound
            {
                tries += 1;
                if tries == MOMENTS {
                    tracing::warn!(at = %at.display(), %error, "a job's control group could not be removed");
                    break;
                }
                std::thread::sleep(MOMENT);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchies_are_found_where_they_are_mounted() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 /docker/7 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let groups = "4:memory:/docker/7/a\n1:cpuacct,cpu:/b\n0::/user.slice\n";
        let all = Hierarchies::parse(mounts, groups);
        let older = [("cpu", "/sys/fs/cgroup/cpu,cpuacct/b"), ("memory", "/sys/fs/cgroup/memory/a")];
        assert_eq!(all.older, older.map(|(one, at)| (one.to_owned(), PathBuf::from(at))));
        assert_eq!(all.unified, ["/sys/fs/cgroup/unified/user.slice", "/sys/fs/cgroup/unified"].map(PathBuf::from));
    }

    #[test]
    fn the_unified_hierarchy_is_told_in_its_own_files() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("cgroup.subtree_control"), "cpu memory\n").unwrap();
        fs::write(top.path().join("cgroup.controllers"), "cpu memory pids\n").unwrap();
        let hierarchies = Hierarchies { unified: vec![top.path().into()], older: Vec::new() };
        let limits = Limits::parse(b"cpus 1.5\nmemory 1M\nprocesses 9\nio 7\n").unwrap();
        let group = Group::make(&hierarchies, 7, &limits);
        assert_eq!(group.told(), " cpus cgroup-v2 memory cgroup-v2 processes cgroup-v2 io nothing");
        let job = top.path().join(format!("{NAME}{}-7", std::process::id()));
        let read = |file: &str| fs::read_to_string(job.join(file)).unwrap();
        assert_eq!(read("cpu.max"), "150000 100000");
        assert_eq!((read("memory.max"), read("pids.max")), ("1048576".into(), "10".into()));
        assert_eq!(read("../cgroup.subtree_control"), "+pids");
        group.adopt(77).unwrap();
        assert_eq!(read("cgroup.procs"), "77");
        fs::write(job.join("memory.events"), "oom 3\noom_kill 2\n").unwrap();
        assert_eq!(group.killed_for_memory(), 2);
        // These files are no control files, with which a group is removed.
        fs::remove_dir_all(&job).unwrap();
    }

    #[test]
    fn without_groups_each_process_is_bounded() {
        let limits = Limits::parse(b"cpus 1.5\nmemory 1M\nprocesses 9\nio 7\n").unwrap();
        let group = Group::make(&Hierarchies::default(), 7, &limits);
        assert_eq!(group.told(), " cpus each-process memory each-process processes each-process io nothing");
        assert_eq!(group.processors, Some(2));
        assert_eq!(group.of_each.len(), 2);
        assert_eq!((group.killed_for_memory(), group.peak()), (0, None));
    }
}
