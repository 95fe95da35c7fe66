//! `slashn up`: makes this machine a node, until SIGTERM, SIGINT or `slashn down`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use cpuserver::launch::Launcher;
use cpuserver::{Cpu, CpuLimits, CpuOptions};
use fileserver::{Export, Exports, caller};
use p9::dial::Address;
use p9::{Reply, Rights, TreeRef, Who, synth};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Notify;

use crate::cli::Up;
use crate::commands::export::absolute;
use crate::commands::{Stopped, runtime_of, stopped};
use crate::control::Control;
use crate::error::{At, Error, Result};
use crate::home::Home;
use crate::root::OwnTrees;
use crate::serve::Node;
use crate::travel::Abroad;
use crate::watch::Watch;
use crate::{Context, cache, daemon, output, root};

/// 9front's port for 9P over TLS.
const LISTEN: &str = "[::]:17020";

/// Runs the command.
pub fn run(context: &Context, typed: &Up) -> Result<ExitCode> {
    let home = context.open_home()?;
    if typed.daemon {
        home.run()?;
        output::line(daemon::start(home.path(), "up", &arguments(context, typed))?)?;
        return Ok(ExitCode::SUCCESS);
    }
    mount::tune_allocator();
    let lock = home.lock()?;
    // Before there are threads: the launcher dies with the one that started it.
    let launcher = Launcher::start().at("up", "the process that starts commands")?;
    let runtime = runtime_of(2)?;
    let served = runtime.block_on(serve(context, &home, typed, launcher));
    // What is still open has had its chance; the kernel takes the rest.
    runtime.shutdown_timeout(Duration::from_secs(2));
    drop(lock);
    served.map(|()| ExitCode::SUCCESS)
}

/// The command line of the copy in the background.
fn arguments(context: &Context, typed: &Up) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["--home".into(), context.home.clone().into(), "up".into()];
    for _ in 0..context.verbose {
        all.push("-v".into());
    }
    let mut add = |flag: &str, value: OsString| all.extend([flag.into(), value]);
    typed.listen.iter().for_each(|listen| add("--listen", listen.into()));
    typed.plain.iter().for_each(|plain| add("--plain", plain.into()));
    add("--disk-cache", typed.disk_cache.to_string().into());
    for export in &typed.export {
        let path = std::path::absolute(&export.path).unwrap_or_else(|_| export.path.clone());
        add("--export", Export { path, ..export.clone() }.to_string().into());
    }
    all
}

/// How long clients wait for a node that was ended by a signal: whoever sent that may be about to start it anew.
const AGAIN: Duration = Duration::from_secs(10);

/// Serves until it is told to stop.
async fn serve(context: &Context, home: &Home, typed: &Up, launcher: Launcher) -> Result<()> {
    let (config, run) = (home.config()?, home.run()?);
    let mut exports = config.exports.clone();
    for export in &typed.export {
        exports.retain(|other| other.name != export.name);
        exports.push(absolute(export)?);
    }
    let key = home.secret("qid")?;
    let secrets = context.user_home().map(|of_user| caller::secrets(&of_user, context.homes())).unwrap_or_default();
    let exports = Exports::hiding(exports, key, secrets).at("export", "a directory")?;
    let tmp = run.join("tmp");
    // Left by a node that was killed: its jobs are gone.
    let _ = std::fs::remove_dir_all(&tmp);
    std::fs::create_dir(&tmp).at("up", tmp.display())?;
    let cpu = Cpu::new(CpuOptions {
        launcher,
        node_name: config.name.as_str().to_string(),
        runtime: tokio::runtime::Handle::current(),
        own: Arc::new(OwnTrees(exports.clone())),
        travel: Some(Arc::new(Abroad::new(home.node_key()?.identity(), exports.clone()))),
        tmp: tmp.clone(),
        env: Vec::new(),
        drivers: config.drivers.clone(),
        qid_key: key,
        disk: cache::open(home, typed.disk_cache),
        limits: CpuLimits::default(),
    });
    let authorized = Arc::new(home.authorized()?);
    for refused in &authorized.lines().refused {
        output::note(format_args!("{}:{}: {}", authorized.path().display(), refused.line, refused.reason));
    }
    let secret = home.node_key()?;
    let tree = root::tree(exports.clone(), cpu.clone());
    let node = Node::new(&secret.identity(), authorized, tree, cpu.clone())?;

    let stop = Arc::new(Notify::new());
    let mut tasks = tokio::task::JoinSet::new();
    let mut addresses = Vec::new();
    let default = [LISTEN.to_string()];
    for listen in if typed.listen.is_empty() { &default[..] } else { &typed.listen[..] } {
        let listener = bind(listen).await?;
        addresses.push(listener.local_addr().at("listen", listen)?);
        tasks.spawn(node.clone().listen(listener));
    }
    for plain in &typed.plain {
        listen_plain(plain, &node, &exports, &mut tasks).await?;
    }
    let watch = Watch::new(home.path()).at("watch", home.path().display())?;
    let rechecking = node.clone();
    tasks.spawn(async move {
        if let Err(err) = rechecking.recheck(watch).await {
            tracing::error!("the home cannot be watched any more: {err}");
        }
    });
    let (name, fingerprint) = (config.name.as_str(), secret.key.fingerprint());
    let ready = ready_line(name, &addresses, &fingerprint);
    let control = Control::serve(&run.join("node"), control(&ready, &node, &cpu, &stop))?;
    output::line(&ready)?;
    let stopped = stopped(&stop).await?;
    tracing::info!("stopping");
    drop(control);
    tasks.shutdown().await;
    cpu.end_all();
    let until = tokio::time::Instant::now() + Duration::from_secs(5);
    while cpu.counts().1 > 0 && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    node.leave(if stopped == Stopped::Signal { AGAIN } else { Duration::ZERO }).await;
    let _ = std::fs::remove_dir_all(&tmp);
    Ok(())
}

/// What others need to know to use this node.
fn ready_line(name: &str, addresses: &[SocketAddr], fingerprint: &str) -> String {
    let address = addresses.first().map(SocketAddr::to_string).unwrap_or_default();
    format!("ready {name} {address} {fingerprint}")
}

async fn bind(listen: &str) -> Result<TcpListener> {
    TcpListener::bind(listen).await.map_err(|err| {
        let error = Error::new("listen", listen, &err);
        match err.kind() {
            std::io::ErrorKind::AddrInUse => error.remedy("slashn up --listen ADDR:0, which picks a free port"),
            _ => error,
        }
    })
}

/// Listens where anybody who can connect may come in: processes of this user to everything, others to exports alone.
async fn listen_plain(
    plain: &str, node: &Arc<Node>, exports: &Exports, tasks: &mut tokio::task::JoinSet<()>,
) -> Result<()> {
    let address: Address = plain.parse().at("listen", plain)?;
    let node = node.clone();
    let only = exports.list().map(|export| p9::who::Only { export: export.name.clone(), read_only: export.read_only });
    let anybody =
        Arc::new(Who { user: "anybody".into(), uid: None, rights: Rights::Only(only.collect()), ..Who::owner() });
    match address {
        Address::Unix(path) => {
            let bound = bind_unix(&path).at("listen", plain)?;
            output::note(format_args!("{plain}: every process of this user may come in there"));
            tasks.spawn(async move {
                while let Ok((stream, _)) = bound.listener.accept().await {
                    let ours = rustix::process::geteuid().as_raw();
                    if stream.peer_cred().is_ok_and(|peer| peer.uid() == ours) {
                        node.run(stream, Arc::new(Who::owner()), Vec::new(), "unix".into());
                    }
                }
            });
        }
        Address::Tcp(to) => {
            let listener = bind(&to.to_string()).await?;
            output::note(format_args!("{plain}: anybody who can connect there reaches the exports, unencrypted"));
            tasks.spawn(async move {
                while let Ok((stream, peer)) = listener.accept().await {
                    if p9::transport::tune(&stream).is_ok() {
                        node.run(stream, anybody.clone(), Vec::new(), peer.to_string());
                    }
                }
            });
        }
        Address::Tls(_) => {
            return Err(Error::new("listen", plain, "that is not plain").remedy("slashn up --listen ADDR:PORT"));
        }
    }
    Ok(())
}

/// A socket that is removed again when nobody listens there any more.
struct Bound {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Bound {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn bind_unix(path: &Path) -> std::io::Result<Bound> {
    use std::io::ErrorKind;
    use std::os::unix::fs::FileTypeExt;
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused = || {
        let tried = std::os::unix::net::UnixStream::connect(path);
        tried.is_err_and(|err| err.kind() == ErrorKind::ConnectionRefused)
    };
    // Left by a node that was killed: nothing answers there. Anything else is not ours to remove.
    if is_socket && refused() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path).map_err(|err| match err.kind() {
        ErrorKind::AddrInUse if !is_socket => std::io::Error::other("there is a file, and it is no socket"),
        ErrorKind::AddrInUse => std::io::Error::other("another process listens there"),
        _ => err,
    })?;
    Ok(Bound { listener, path: path.to_path_buf() })
}

/// The files by which a running node is asked and told: `status`, `jobs` (what runs, as JSON), and `ctl` (which knows
/// `down`).
fn control(ready: &str, node: &Arc<Node>, cpu: &Arc<Cpu>, stop: &Arc<Notify>) -> TreeRef {
    let (ready, node, cpu, stop) = (ready.to_string(), node.clone(), cpu.clone(), stop.clone());
    let running = cpu.clone();
    synth::tree(synth::dir([
        (
            "status",
            synth::file(move || {
                let (sessions, running) = cpu.counts();
                let mut text = format!("{ready}\nsessions {sessions} running {running}\n");
                node.connections().iter().for_each(|line| text += &format!("connection {line}\n"));
                Ok(text.into())
            }),
        ),
        ("jobs", synth::file(move || Ok(serde_json::to_vec(&running.jobs()).map_err(|_| p9::Errno::EIO)?.into()))),
        (
            "ctl",
            synth::ctl(move |command| match &command[..] {
                b"down" => {
                    stop.notify_one();
                    Reply::ok(())
                }
                _ => p9::Errno::EINVAL.into(),
            }),
        ),
    ]))
}
