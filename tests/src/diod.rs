//! diod, a 9P2000.L server that others wrote, run as a program of its own for our client.
//!
//! It serves one directory to whoever connects to a unix socket, without authentication.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use p9::client::{Client, Options};
use p9::{NodeRef, Tree, Who};

use crate::machine::PATIENCE;

/// A running diod. It ends when dropped.
pub struct Diod {
    daemon: Child,
    socket: PathBuf,
    export: PathBuf,
}

impl Diod {
    /// Serves the directory `export`, with the socket and the log in `dir`.
    pub fn serve(export: &Path, dir: &Path) -> Self {
        let socket = dir.join("diod.sock");
        let log = std::fs::File::create(dir.join("diod.log")).expect("diod's log");
        let daemon = Command::new("/usr/sbin/diod")
            .args(["--foreground", "--no-auth", "--no-userdb", "--config-file", "/dev/null", "--logdest", "stderr"])
            .arg("--listen")
            .arg(&socket)
            .arg("--export")
            .arg(export)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("diod does not start: apt-get install diod");
        let mut diod = Self { daemon, socket, export: export.to_path_buf() };
        let until = Instant::now() + PATIENCE;
        while std::os::unix::net::UnixStream::connect(&diod.socket).is_err() {
            let ended = diod.daemon.try_wait().expect("wait");
            let log = || std::fs::read_to_string(dir.join("diod.log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < until, "diod does not listen: {ended:?}\n{}", log());
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        diod
    }

    /// A connection of our client.
    pub async fn client(&self) -> Client {
        let stream = p9::transport::unix(&self.socket).await.expect("diod's socket");
        Client::connect(stream, Options::default()).await.expect("a version that both speak")
    }

    /// The root of what it serves, through a connection of its own.
    pub async fn root(&self) -> NodeRef {
        let aname = self.export.to_str().expect("a readable path").as_bytes();
        self.client().await.attach(&Who::owner(), aname).await.expect("diod lets root in")
    }
}

impl Drop for Diod {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
