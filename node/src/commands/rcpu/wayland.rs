//! `rcpu -X` and `--forward wayland`: my Wayland display, for a command on a node.
//!
//! What a Wayland client shows it hands over as descriptors of memory, which no connection carries. waypipe(1) copies
//! what is in them: one of it runs here as long as `rcpu` does, and one there beside the program, as part of its
//! command. The program there is the caller's, as all are, so that it need not be installed on the node.

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use p9::dial::Address;
use p9::transport::Io;
use rustix::process::{Signal, set_parent_process_death_signal};
use tempfile::TempDir;

use super::lend;
use crate::context::Environment;
use crate::error::{At, Error, Result};

/// What copies what is shown.
const PROGRAM: &str = "waypipe";
/// Where it leads here, on the node.
pub(super) const SOCKET: &str = "/run/slashn/waypipe";
/// The display, on the node.
pub(super) const DISPLAY: &str = "/run/slashn/wayland-0";
/// Runs its third argument and what follows beside the display `$1`, which is there by then and leads to the socket
/// `$2`. What shows it is no child of the program's, has a session of its own, so that no signal for the program ends
/// it, and goes when the program does, as all does that a command started.
const BESIDE: &str = r#"d=$1 s=$2 up=$1.up; shift 2
for p in waypipe mkfifo setsid; do command -v $p >/dev/null || { echo "rcpu: show: $p is not installed there" >&2; exec "$@"; }; done
mkfifo "$up" && {
( { setsid waypipe --no-gpu --socket "$s" --display "$d" server -- sh -c 'echo >"$0"; exec sleep infinity' "$up" ||
echo >"$up"; } </dev/null >/dev/null 2>&1 & )
read -r _ <"$up"; rm "$up"; }; exec "$@""#;
/// How long it may take here until it listens.
const LISTENS: Duration = Duration::from_secs(10);

/// How the directories are called that its socket is in: with the number of its process after that.
const PREFIX: &str = "slashn-wayland.";

/// Removes what those have left in `top` that were killed.
fn clean(top: &Path) {
    let me = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(top).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('.').next()?.parse::<u32>().ok());
        let is_mine = entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == me);
        if process.is_some_and(|process| is_mine && !Path::new(&format!("/proc/{process}")).exists()) {
            // Another may be at it, too.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// The one that runs here. Dropping it ends it.
pub(super) struct Proxy {
    child: Child,
    dir: TempDir,
}

impl Proxy {
    /// Starts it. Errors: it is not installed, or cannot be started.
    pub(super) fn start() -> Result<Self> {
        let top = std::env::temp_dir();
        clean(&top);
        // Nobody else may show anything here.
        let mut builder = tempfile::Builder::new();
        let builder = builder.permissions(PermissionsExt::from_mode(0o700));
        let prefix = format!("{PREFIX}{}.", std::process::id());
        let dir = builder.prefix(&prefix).tempdir_in(top).at("lend", "wayland")?;
        let mut command = Command::new(PROGRAM);
        command.args(["--no-gpu", "--socket"]).arg(dir.path().join("socket")).arg("client");
        // It says how connections end, too, which is nobody's business.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        // SAFETY: what it does in the child is one system call.
        unsafe {
            // It goes with this process, however that ends.
            command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::TERM))?));
        }
        let child = command.spawn().map_err(|err| match err.kind() {
            std::io::ErrorKind::NotFound => is_missing(),
            _ => Error::new("lend", "wayland", format!("{PROGRAM}: {err}")),
        })?;
        Ok(Self { child, dir })
    }

    /// Where it listens, or soon will.
    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Its connections are over, and so are those that it started for them. An error means that it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection to the proxy that listens at `socket`, or is about to.
pub(super) async fn connect(socket: &Path) -> std::io::Result<Io> {
    let begun = tokio::time::Instant::now();
    loop {
        match lend::connect(&Address::Unix(socket.to_path_buf())).await {
            Err(err) if is_early(&err) && begun.elapsed() < LISTENS => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            answer => return answer,
        }
    }
}

fn is_early(err: &std::io::Error) -> bool {
    matches!(err.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
}

/// `argv`, beside a display.
pub(super) fn beside(argv: &[OsString]) -> Vec<OsString> {
    let head = ["sh", "-c", BESIDE, "rcpu", DISPLAY, SOCKET].map(OsString::from);
    head.into_iter().chain(argv.iter().cloned()).collect()
}

/// Whether it is installed here.
pub(super) fn is_installed(environment: &Environment) -> bool {
    let path = environment.var("PATH").unwrap_or_default();
    std::env::split_paths(path).any(|dir| dir.join(PROGRAM).is_file())
}

/// Where the display is that `environment` names. Errors: it names none.
pub(super) fn address(environment: &Environment) -> Result<Address> {
    let unset = |name: &str| {
        let remedy = format!("{name}=... rcpu --forward wayland ..., as a program on the display has it");
        Error::new("lend", "wayland", format!("${name} is not set")).remedy(remedy)
    };
    let name = Path::new(environment.var("WAYLAND_DISPLAY").ok_or_else(|| unset("WAYLAND_DISPLAY"))?);
    if name.is_absolute() {
        return Ok(Address::Unix(name.to_path_buf()));
    }
    let dir = environment.var("XDG_RUNTIME_DIR").ok_or_else(|| unset("XDG_RUNTIME_DIR"))?;
    Ok(Address::Unix(Path::new(dir).join(name)))
}

fn is_missing() -> Error {
    Error::new("lend", "wayland", format!("{PROGRAM} is not installed")).remedy(format!("apt-get install {PROGRAM}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_display_is_a_path_or_a_name_in_the_users_directory() {
        let at = |vars: &[(&str, &str)]| {
            let environment = Environment::new(vars.iter().map(|(name, value)| (name.into(), value.into())));
            address(&environment).map(|at| at.to_string()).map_err(|err| err.to_string())
        };
        let user = ("XDG_RUNTIME_DIR", "/run/user/7");
        assert_eq!(at(&[("WAYLAND_DISPLAY", "wayland-1"), user]).unwrap(), "unix!/run/user/7/wayland-1");
        assert_eq!(at(&[("WAYLAND_DISPLAY", "/tmp/w")]).unwrap(), "unix!/tmp/w");
        assert!(at(&[user]).unwrap_err().contains("$WAYLAND_DISPLAY is not set"));
        assert!(at(&[("WAYLAND_DISPLAY", "wayland-1")]).unwrap_err().contains("$XDG_RUNTIME_DIR is not set"));
    }
}
