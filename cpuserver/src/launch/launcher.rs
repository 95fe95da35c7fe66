//! The daemon's side of the launcher: starting it, and asking it for jobs.
//!
//! Made once by the node's `main`, before or after the runtime; cloned into whatever starts jobs. Invariant: the
//! launcher process holds nothing of the daemon but its end of one socket, and ends when that does.

use std::ffi::{OsStr, OsString};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::message::{self, Start};
use super::{Error, Job, JobSpec};

/// How long the launcher may take over a step that asks nobody else.
const PATIENCE: Duration = Duration::from_secs(10);

/// The launcher process; it ends when the last clone is dropped, and every job with it. One that ended before is
/// followed by another, at the next job.
#[derive(Clone, Debug)]
pub struct Launcher(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    program: PathBuf,
    args: Vec<OsString>,
    /// Our end of the latest launcher's socket.
    socket: Mutex<Arc<OwnedFd>>,
    /// The kernel refused a job a /proc of its own: no use to ask again.
    shared_pids: AtomicBool,
}

impl Launcher {
    /// Starts this very program again as `slashn launcher`, whose `main` must call [`super::main`].
    pub fn start() -> Result<Self, Error> {
        Self::start_with(Path::new("/proc/self/exe"), &["launcher"])
    }

    /// Starts `program` with `args`, which must call [`super::main`]. It gets an empty environment, its socket as
    /// standard input, and this process's standard error.
    pub fn start_with<A: AsRef<OsStr>>(program: &Path, args: &[A]) -> Result<Self, Error> {
        let args: Vec<OsString> = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
        let (socket, child) = spawn(program, &args)?;
        let (socket, shared_pids) = (Mutex::new(Arc::new(socket)), AtomicBool::new(false));
        let launcher = Self(Arc::new(Shared { program: program.to_owned(), args, socket, shared_pids }));
        launcher.attend(child)?;
        Ok(launcher)
    }

    /// Waits for `child` on a thread of its own, and logs an end that nobody asked for.
    fn attend(&self, mut child: Child) -> Result<(), Error> {
        let shared = Arc::downgrade(&self.0);
        let wait = move || {
            let ended = child.wait();
            if shared.strong_count() > 0 {
                let status = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                tracing::error!(status, "the launcher ended, and all its commands; the next command starts another");
            }
        };
        let started = std::thread::Builder::new().name("launcher-wait".into()).spawn(wait);
        started.map(drop).map_err(Error::setup("launcher: thread"))
    }

    /// Starts another launcher, unless somebody did since `dead` was the latest; gives its socket.
    fn restart(&self, dead: &Arc<OwnedFd>) -> Result<Arc<OwnedFd>, Error> {
        let mut latest = self.0.socket.lock();
        if Arc::ptr_eq(&latest, dead) {
            let (socket, child) = spawn(&self.0.program, &self.0.args)?;
            *latest = Arc::new(socket);
            self.attend(child)?;
        }
        Ok(latest.clone())
    }

    /// Starts the job that `spec` tells of. `stdio` is its standard input, output and error.
    ///
    /// It is on its way when this returns: it needs its root served ([`Job::take_fuse`]) to get any further.
    pub async fn start_job(&self, spec: &JobSpec, stdio: [OwnedFd; 3]) -> Result<Job, Error> {
        if spec.own_pids && self.0.shared_pids.load(Ordering::Relaxed) {
            return self.start_once(&JobSpec { own_pids: false, ..spec.clone() }, &stdio).await;
        }
        match self.start_once(spec, &stdio).await {
            Err(Error::OwnProc { reason }) => {
                tracing::warn!(%reason, "no pid namespaces for jobs: the kernel refuses a new /proc");
                self.0.shared_pids.store(true, Ordering::Relaxed);
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
        let mut socket = self.0.socket.lock().clone();
        let mut restarted = false;
        // It reads at once unless the machine is very busy, hence no readiness but a short wait.
        while let Err(error) = message::send(&*socket, &Start, &fds) {
            match error.kind() {
                io::ErrorKind::WouldBlock => tokio::time::sleep(Duration::from_millis(2)).await,
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset if !restarted => {
                    socket = self.restart(&socket)?;
                    restarted = true;
                }
                io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => return Err(Error::LauncherGone),
                _ => return Err(Error::setup("launcher: request")(error)),
            }
        }
        Ok(())
    }
}

/// Starts a launcher: our end of its socket, and the process, which ends soon after that does.
fn spawn(program: &Path, args: &[OsString]) -> Result<(OwnedFd, Child), Error> {
    use std::os::unix::process::CommandExt;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .map_err(Error::setup("launcher: socket"))?;
    rustix::io::ioctl_fionbio(&ours, true).map_err(Error::setup("launcher: socket"))?;
    let mut command = Command::new(program);
    command.arg0("slashn").args(args).env_clear().current_dir("/").stdin(Stdio::from(theirs)).stdout(Stdio::null());
    let child = command.spawn().map_err(Error::setup("launcher: start"))?;
    Ok((ours, child))
}

/// Refuses what execve(2) cannot take.
fn check(spec: &JobSpec) -> Result<(), Error> {
    let wrong = |what: &str| Err(Error::Request { what: what.to_owned() });
    match spec.argv.first() {
        None => return wrong("no program is named"),
        // What a shell says of it; the PATH would find a directory.
        Some(name) if name.is_empty() => return Err(Error::NotFound { program: "''".into() }),
        Some(_) => {}
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
