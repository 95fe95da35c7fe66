//! How the tests say what to run, and what they see of it.

use std::future::Future;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use cpuserver::launch::{Error, Exit, Job, JobMount, JobSpec, Launcher, Usage};
use rustix::process::{getegid, geteuid};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::root;

/// More than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// What `argv` is run with unless a test changes it: this process's own ids, /proc, /sys, /dev and a private /run.
pub(crate) fn spec(argv: &[&str]) -> JobSpec {
    let root = geteuid().is_root();
    JobSpec {
        sockets: Vec::new(),
        files: Vec::new(),
        argv: argv.iter().map(|arg| arg.as_bytes().to_vec()).collect(),
        env: vec![b"PATH=/usr/bin:/bin".to_vec()],
        cwd: b"/".to_vec(),
        umask: 0o022,
        inner_uid: geteuid().as_raw(),
        inner_gid: getegid().as_raw(),
        user_ns: !root,
        own_pids: true,
        hostname: None,
        mounts: vec![
            JobMount::Proc,
            JobMount::Sys,
            JobMount::Dev,
            JobMount::Tmpfs { at: "/run".into(), size_mb: 16, mode: 0o755 },
        ],
        rlimits: Vec::new(),
        processors: None,
        nice: 0,
        pty: false,
    }
}

/// The same for a shell script.
pub(crate) fn script(text: &str) -> JobSpec {
    spec(&["sh", "-c", text])
}

/// A job that was started, and the near ends of its streams.
pub(crate) struct Started {
    pub(crate) job: Job,
    /// Its root, once it is served.
    pub(crate) mount: Option<mount::Mount>,
    pub(crate) stdin: std::fs::File,
    pub(crate) stdout: JoinHandle<String>,
    pub(crate) stderr: JoinHandle<String>,
}

/// What there is to see of a job that is over.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) exit: Result<Exit, Error>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) usage: Usage,
    pub(crate) notes: Vec<String>,
}

/// Runs `test` with a runtime, for a bounded time.
pub(crate) fn within<F: Future>(test: impl FnOnce(Launcher) -> F) -> F::Output {
    let launcher = Launcher::start().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let end = runtime.block_on(async { tokio::time::timeout(PATIENCE, test(launcher)).await });
    runtime.shutdown_timeout(Duration::from_secs(1));
    end.expect("it did not end in time")
}

/// Starts a job whose root is not served yet.
pub(crate) async fn unserved(launcher: &Launcher, spec: &JobSpec) -> Result<Started, Error> {
    let (far_in, near_in) = std::io::pipe().unwrap();
    let (near_out, far_out) = std::io::pipe().unwrap();
    let (near_err, far_err) = std::io::pipe().unwrap();
    let job = launcher.start_job(spec, [far_in.into(), far_out.into(), far_err.into()]).await?;
    let stdin = std::fs::File::from(OwnedFd::from(near_in));
    Ok(Started { job, mount: None, stdin, stdout: text(near_out), stderr: text(near_err) })
}

/// Starts a job.
pub(crate) async fn start(launcher: &Launcher, spec: &JobSpec) -> Result<Started, Error> {
    let mut started = unserved(launcher, spec).await?;
    started.mount = Some(root::serve(started.job.take_fuse().unwrap()).await);
    Ok(started)
}

/// All of a stream, once nobody holds its other end.
fn text(mut from: impl Read + Send + 'static) -> JoinHandle<String> {
    spawn_blocking(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        String::from_utf8(bytes).unwrap()
    })
}

impl Started {
    /// Waits for the program and everything it left behind.
    pub(crate) async fn over(self) -> Seen {
        let Self { mut job, mount, stdin, stdout, stderr } = self;
        drop(stdin);
        let exit = job.wait().await;
        let (usage, notes) = (job.usage(), job.notes().to_vec());
        job.gone().await;
        let (stdout, stderr) = (stdout.await.unwrap(), stderr.await.unwrap());
        if let Some(mount) = mount {
            mount.ended().await; // by itself: nobody holds the root any more
        }
        Seen { exit, stdout, stderr, usage, notes }
    }
}

/// Runs a job from start to end.
pub(crate) fn run(spec: &JobSpec) -> Seen {
    within(async |launcher| start(&launcher, spec).await.unwrap().over().await)
}

/// What a script prints that must succeed.
pub(crate) fn output(spec: &JobSpec) -> String {
    let seen = run(spec);
    assert_eq!(seen.exit, Ok(Exit::Code(0)), "{seen:?}");
    seen.stdout
}

/// A directory that the tests' user and every job can see.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

/// Makes the file `name` in `dir` with `mode`.
pub(crate) fn file(dir: &Path, name: &str, text: &str, mode: u32) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(name);
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}
