//! The daemon's side of the launcher: starting it, and asking it for jobs.
//!
//! Made once by the node's `main`, before or after the runtime; cloned into whatever starts jobs. Invariant: the
//! launcher process holds nothing of the daemon but its end of one socket, and ends when that does.

use std::ffi::OsStr;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::message::{self, Start};
use super::{Error, Job, JobSpec};

/// How long the launcher may take over a step that asks nobody else.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running launcher process; it ends when the last clone is dropped, and every job with it.
#[derive(Clone, Debug)]
pub struct Launcher {
    socket: Arc<OwnedFd>,
    /// The kernel refused a job a /proc of its own: no use to ask again.
    shared_pids: Arc<AtomicBool>,
}

impl Launcher {
    /// Starts this very program again as `slashn launcher`, whose `main` must call [`super::main`].
    pub fn start() -> Result<Self, Error> {
        Self::start_with(Path::new("/proc/self/exe"), &["launcher"])
    }

    /// Starts `program` with `args`, which must call [`super::main`]. It gets an empty environment, its socket as
    /// standard input, and this process's standard error.
    pub fn start_with<A: AsRef<OsStr>>(program: &Path, args: &[A]) -> Result<Self, Error> {
        use std::os::unix::process::CommandExt;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(Error::setup("launcher: socket"))?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(Error::setup("launcher: socket"))?;
        let mut command = Command::new(program);
        command.arg0("slashn").args(args).env_clear().current_dir("/").stdin(Stdio::from(theirs)).stdout(Stdio::null());
        // A process of ours that nobody waits for: it ends with us, or as soon as we close the socket.
        let mut child = command.spawn().map_err(Error::setup("launcher: start"))?;
        std::thread::Builder::new()
            .name("launcher-wait".into())
            .spawn(move || child.wait())
            .map_err(Error::setup("launcher: thread"))?;
        Ok(Self { socket: Arc::new(ours), shared_pids: Arc::default() })
    }

    /// Starts the job that `spec` tells of. `stdio` is its standard input, output and error.
    ///
    /// It is on its way when this returns: it needs its root served ([`Job::take_fuse`]) to get any further.
    pub async fn start_job(&self, spec: &JobSpec, stdio: [OwnedFd; 3]) -> Result<Job, Error> {
        if spec.own_pids && self.shared_pids.load(Ordering::Relaxed) {
            return self.start_once(&JobSpec { own_pids: false, ..spec.clone() }, &stdio).await;
        }
        match self.start_once(spec, &stdio).await {
            Err(Error::OwnProc { reason }) => {
                tracing::warn!(%reason, "no pid namespaces for jobs: the kernel refuses a new /proc");
                self.shared_pids.store(true, Ordering::Relaxed);
                self.start_once(&JobSpec { own_pids: false, ..spec.clone() }, &stdio).await
            }
            started => started,
        }
    }

    async fn start_once(&self, spec: &JobSpec, stdio: &[OwnedFd; 3]) -> Result<Job, Error> {
        check(spec)?;
        let spec_fd = sealed(spec)?;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(Error::setup("job socket"))?;
        let started = async {
            self.ask([spec_fd, theirs], stdio).await?;
            Job::started(ours, spec.own_pids).await
        };
        let timed_out = |_| Error::Setup { step: "launcher".into(), reason: super::Os(libc::ETIMEDOUT) };
        tokio::time::timeout(PATIENCE, started).await.map_err(timed_out)?
    }

    /// Hands the launcher `job` (its spec and its socket), which are closed here, and its streams.
    async fn ask(&self, job: [OwnedFd; 2], [stdin, stdout, stderr]: &[OwnedFd; 3]) -> Result<(), Error> {
        let fds = [job[0].as_fd(), job[1].as_fd(), stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        // It reads at once unless the machine is very busy, hence no readiness but a short wait.
        while let Err(error) = message::send(&*self.socket, &Start, &fds) {
            match error.kind() {
                io::ErrorKind::WouldBlock => tokio::time::sleep(Duration::from_millis(2)).await,
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => return Err(Error::LauncherGone),
                _ => return Err(Error::setup("launcher: request")(error)),
            }
        }
        Ok(())
    }
}

/// Refuses what execve(2) cannot take.
fn check(spec: &JobSpec) -> Result<(), Error> {
    let wrong = |what: &str| Err(Error::Request { what: what.to_owned() });
    if spec.argv.first().is_none_or(Vec::is_empty) {
        return wrong("no program is named");
    }
    let mut words = spec.argv.iter().chain(&spec.env).chain([&spec.cwd]);
    if words.any(|word| word.contains(&0)) {
        return wrong("a zero byte in args, env or cwd");
    }
    if spec.env.iter().any(|item| !item.contains(&b'=')) {
        return wrong("env: an entry without `=`");
    }
    Ok(())
}

/// `spec` in a file of memory that nobody can change any more.
fn sealed(spec: &JobSpec) -> Result<OwnedFd, Error> {
    let write = || -> io::Result<OwnedFd> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = std::fs::File::from(rustix::fs::memfd_create("job", flags)?);
        file.write_all(&serde_json::to_vec(spec)?)?;
        file.seek(SeekFrom::Start(0))?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        Ok(file.into())
    };
    write().map_err(|error| match error.raw_os_error() {
        Some(_) => Error::setup("job spec")(error),
        None => Error::Request { what: error.to_string() },
    })
}
