//! The peers: a real sshd on loopback with a key of its own, and sshfs on it.

use std::ffi::OsStr;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use tests::machine::{Done, PATIENCE};

/// A running sshd that lets root in by one key, to an empty home: what this machine's shells read there is not measured.
pub(crate) struct Sshd {
    dir: PathBuf,
    pub(crate) port: u16,
    daemon: Child,
}

impl Sshd {
    /// Starts one that keeps its files in `dir`.
    pub(crate) fn start(dir: &Path) -> Self {
        fs::create_dir_all(dir).expect("a folder for sshd");
        fs::create_dir_all("/run/sshd").expect("/run/sshd");
        for key in ["host", "user"] {
            let file = dir.join(key);
            Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(file).succeeds();
        }
        fs::copy(dir.join("user.pub"), dir.join("authorized")).expect("authorized keys");
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("its address").port();
        drop(free);
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\nStrictModes no\n\
             PidFile none\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n\
             MaxStartups 1000\nMaxSessions 1000\nSetEnv HOME={0}\n",
            dir.display()
        );
        fs::write(dir.join("config"), config).expect("sshd's config");
        let daemon = Command::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(dir.join("config"))
            .stderr(Stdio::null())
            .spawn()
            .expect("sshd");
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < until, "sshd does not listen");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Self { dir: dir.to_path_buf(), port, daemon }
    }

    /// The options that ssh and sshfs need for it.
    pub(crate) fn options(&self) -> Vec<String> {
        let options = ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"];
        let mut all: Vec<String> = options.iter().flat_map(|o| ["-o".to_string(), o.to_string()]).collect();
        all.extend(["-o".into(), format!("IdentityFile={}", self.dir.join("user").display()), "-F".into()]);
        all.push("/dev/null".into());
        all
    }

    /// `ssh root@127.0.0.1`, to which a command is added.
    pub(crate) fn ssh(&self, port: u16) -> Command {
        let mut command = Command::new("ssh");
        command.args(self.options()).args(["-p", &port.to_string(), "root@127.0.0.1"]).stdin(Stdio::null());
        command
    }

    /// A connection that is kept for the commands that follow.
    pub(crate) fn master(&self) -> Master<'_> {
        let master = Master { sshd: self, socket: self.dir.join("master") };
        let mut command = Command::new("ssh");
        command.args(["-fMN", "-S"]).arg(&master.socket).args(words_of(&self.ssh(self.port)).skip(1));
        let started = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(started.expect("ssh").success(), "ssh keeps a connection");
        master
    }

    /// Mounts `dir` by sshfs at `at`.
    pub(crate) fn mount(&self, dir: &Path, at: &Path) -> Sshfs {
        self.mount_by(self.port, dir, at)
    }

    /// The same by way of `port`, where something in front of it listens.
    pub(crate) fn mount_by(&self, port: u16, dir: &Path, at: &Path) -> Sshfs {
        fs::create_dir_all(at).expect("a mount point");
        let from = format!("root@127.0.0.1:{}", dir.display());
        let mut command = Command::new("sshfs");
        command.args(self.options()).args(["-p", &port.to_string(), &from]).arg(at).stdin(Stdio::null());
        assert!(command.status().expect("sshfs").success(), "sshfs mounts {}", at.display());
        Sshfs(at.to_path_buf())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// A connection of ssh that its commands share, ended when dropped.
pub(crate) struct Master<'a> {
    sshd: &'a Sshd,
    socket: PathBuf,
}

impl Master<'_> {
    /// `ssh root@127.0.0.1` by that connection, to which a command is added.
    pub(crate) fn ssh(&self) -> Command {
        let mut command = Command::new("ssh");
        command.arg("-S").arg(&self.socket).args(words_of(&self.sshd.ssh(self.sshd.port)).skip(1));
        command.stdin(Stdio::null());
        command
    }
}

impl Drop for Master<'_> {
    fn drop(&mut self) {
        let _ = self.ssh().args(["-O", "exit"]).stderr(Stdio::null()).status();
    }
}

/// `command`, as a shell takes it.
pub(crate) fn words(command: &Command) -> String {
    let words: Vec<_> = words_of(command).map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

fn words_of(command: &Command) -> impl Iterator<Item = &OsStr> {
    std::iter::once(command.get_program()).chain(command.get_args())
}

/// A mount by sshfs, unmounted when dropped.
pub(crate) struct Sshfs(PathBuf);

impl Drop for Sshfs {
    fn drop(&mut self) {
        let _ = Command::new("fusermount3").arg("-u").arg(&self.0).status();
    }
}
