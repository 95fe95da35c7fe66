//! `rcpu -X` and `--forward wayland`: my Wayland display, for a command on a node.
//!
//! What a Wayland client shows it hands over as descriptors of memory, which no connection carries. waypipe(1) copies
//! what is in them: one of it runs here as long as `rcpu` does, and one there beside the program, as part of its
//! command. The program there is the caller's, as all are, so that it need not be installed on the node.

use std::ffi::OsString;
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
/// Runs the arguments beside the display, which is there by then. It has a session of its own, so that no signal for
/// the program ends it, and goes when the program does, as all does that a command started.
const BESIDE: &str = r#"d=$0; up=$d.up; mkfifo "$up" && {
{ setsid waypipe --no-gpu --socket "$1" --display "$d" server -- sh -c 'echo >"$0"; exec sleep infinity' "$up" || echo >"$up"
} </dev/null >/dev/null & read -r _ <"$up"; rm "$up"; }; shift; exec "$@""#;
/// How long it may take here until it listens.
const LISTENS: Duration = Duration::from_secs(10);

/// The one that runs here. Dropping it ends it.
pub(super) struct Proxy {
    child: Child,
    dir: TempDir,
}

impl Proxy {
    /// Starts it. Errors: it is not installed, or cannot be started.
    pub(super) fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("slashn-wayland.").tempdir().at("lend", "wayland")?;
        let mut command = Command::new(PROGRAM);
        command.args(["--no-gpu", "--socket"]).arg(dir.path().join("socket")).arg("client");
        command.stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
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
    let head = ["sh", "-c", BESIDE, DISPLAY, SOCKET].map(OsString::from);
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
