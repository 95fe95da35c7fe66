//! Starts commands, each in namespaces of its own with a FUSE file system as its root.
//!
//! The daemon has threads, and a process with threads can neither fork safely nor be a parent that the kernel tells of
//! its death by `PR_SET_PDEATHSIG` (prctl(2)). So it starts, once, a process of one thread, and asks that one for each
//! job:
//!
//! ```text
//! daemon      serves the FUSE root; stays in the host's namespaces, so that it never touches its own mount
//! watcher     `slashn launcher`: one thread; outlives the launcher, and kills what has lost its mounter
//! launcher    its child: forks for each job, reaps, dies with the daemon (its socket ends)
//!   mounter   unshares, opens /dev/fuse, mounts, clones init, hands the descriptors to the daemon, outlives init
//!     init    pid 1 of the job: kernel mounts, pivot, forks the program, reaps, reports, forwards signals
//!       program
//! ```
//!
//! Called by the session's task ([`Launcher::start_job`]) and by `main` of the launcher ([`main`]).
//! Invariant: when init, the launcher or the daemon dies, so does every process of the job.

mod children;
mod dev;
mod emulator;
mod error;
mod found;
mod init;
mod interpreter;
mod job;
mod launcher;
mod level;
mod message;
mod mounter;
pub mod private;
mod process;
mod program;
mod root;
mod sys;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use emulator::architectures;
pub use error::{Error, Os};
pub use interpreter::{architecture, interpreter};
pub use job::Job;
pub use launcher::Launcher;
pub use level::{level, levels};
pub use process::{main, run};

/// What to run, as whom, and what the kernel mounts over the FUSE root. Bytes are as execve(2) takes them, without
/// the terminating zero.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct JobSpec {
    /// The command; the first is looked up in the `PATH` of `env`, inside the job, unless it has a slash.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment: `NAME=VALUE` each.
    pub env: Vec<Vec<u8>>,
    /// Where it starts, inside the job.
    pub cwd: Vec<u8>,
    /// umask(2).
    pub umask: u32,
    /// Its user, as it sees it.
    pub inner_uid: u32,
    /// Its group, as it sees it. It is in no other, but in a user namespace those of this process stay, unnamed.
    pub inner_gid: u32,
    /// Make a user namespace in which `inner_uid` and `inner_gid` are this process's own ids, and no others exist.
    /// Needed by anyone but root. Without, the program runs as *this machine's* user `inner_uid`: root only.
    pub user_ns: bool,
    /// A pid namespace, and a /proc of its own. Where the kernel refuses a new /proc (many containers), the job is
    /// started without ([`Job::own_pids`] says so), and its processes are found by descent when it ends.
    pub own_pids: bool,
    /// The host name that the job sees, in a namespace of its own; none: this machine's.
    pub hostname: Option<String>,
    /// What is mounted over the FUSE root, in this order.
    pub mounts: Vec<JobMount>,
    /// Sockets that listen when it starts, at these paths inside the job: [`Job::take_sockets`].
    pub sockets: Vec<PathBuf>,
    /// Small files that it finds, and what is in each: in places that `mounts` make for it alone.
    pub files: Vec<(PathBuf, Vec<u8>)>,
    /// (resource of setrlimit(2), soft, hard), `u64::MAX` for no limit; a hard limit above this process's own is cut
    /// to it.
    pub rlimits: Vec<(i32, u64, u64)>,
    /// On how many processors it may run at once; none: as many as this process.
    pub processors: Option<usize>,
    /// Added to the niceness, see nice(2).
    pub nice: i32,
    /// Standard input is the slave side of a pseudo-terminal, which becomes the controlling terminal.
    pub pty: bool,
}

/// Something that the kernel mounts over the job's root. The mount point is there already (the namespace makes
/// missing ones up), or lies in a `Dev` or `Tmpfs` mounted before it: then it is made.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub enum JobMount {
    /// /proc: the job's own processes; this machine's where there is no pid namespace.
    Proc,
    /// /sys: this machine's with all that is mounted below, read-only.
    Sys,
    /// /dev: null, zero, full, random, urandom, tty, a pts of its own, shm, and the usual links.
    Dev,
    /// An empty memory file system.
    Tmpfs {
        /// Where, inside the job.
        at: PathBuf,
        /// Its bound, in MiB.
        size_mb: u64,
        /// Permissions of its root directory.
        mode: u32,
    },
    /// A file or directory of this machine (with all that is mounted below), nosuid. Passed over, and noted in
    /// [`Job::notes`], if it or the place for it is missing.
    Bind {
        /// On this machine; links are followed.
        from: PathBuf,
        /// Where, inside the job; links are followed there.
        at: PathBuf,
        /// Nothing below can be changed through it.
        read_only: bool,
    },
}

impl JobMount {
    /// Where it is, inside the job.
    pub fn at(&self) -> &Path {
        match self {
            Self::Proc => Path::new("/proc"),
            Self::Sys => Path::new("/sys"),
            Self::Dev => Path::new("/dev"),
            Self::Tmpfs { at, .. } | Self::Bind { at, .. } => at,
        }
    }
}

/// How a program ended, see wait(2).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Exit {
    /// By exit(2), with this status.
    Code(u8),
    /// By a signal.
    Signal {
        /// Its number on this machine.
        number: i32,
        /// A core was dumped.
        core: bool,
    },
}

impl From<Exit> for std::process::ExitCode {
    /// As a shell says it: 128+N for signal N.
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Code(code) => code.into(),
            Exit::Signal { number, .. } => 128u8.saturating_add(u8::try_from(number).unwrap_or(u8::MAX)).into(),
        }
    }
}

/// What a job used: the program and all its descendants that were waited for, see getrusage(2).
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Usage {
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
    /// The largest resident set of any one process, in KiB.
    pub max_rss_kib: u64,
    /// Page faults that had to wait for a read.
    pub major_faults: u64,
    /// Bytes that went through read(2) and the like, pipes and terminals counted; 0 where the kernel does not count.
    pub read: u64,
    /// Bytes that went through write(2) and the like.
    pub written: u64,
    /// The most memory that all of it had at once, in KiB, where a control group counts that.
    pub peak_kib: Option<u64>,
}
