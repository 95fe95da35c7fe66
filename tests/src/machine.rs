//! A grid of real binaries: homes in a temporary folder, nodes on loopback, a mount, all of one user.
//!
//! [`Machine::root`] runs everything as root, [`Machine::ordinary`] as a user without any privilege, to whom /dev/fuse
//! is open, as it is on users' distributions. Either is in a mount namespace of its own, so that a test which is killed
//! leaves no mount behind. Dropping a machine takes it down and fails the test if a mount, a process or a file is left.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The uid and gid of the ordinary user: no account is needed for it.
const ORDINARY: u32 = 54_321;

/// Longer than anything may take on a loaded machine; a wait that reaches it fails the test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// One user's homes and nodes.
pub struct Machine {
    top: Option<TempDir>,
    uid: u32,
    /// Holds the mount namespace.
    namespace: Option<Child>,
    nodes: Vec<String>,
    /// Homes besides mine from which commands are run.
    homes: Vec<String>,
    mounts: Vec<PathBuf>,
    /// Small disks.
    disks: Vec<PathBuf>,
}

impl Machine {
    /// A machine used by root.
    pub fn root() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test mounts and makes namespaces: run it as root");
        Self::new(0, true)
    }

    /// A machine used by root in the mount namespace of this process: for benchmarks, whose commands start with nothing
    /// in between.
    pub fn bare() -> Self {
        Self::new(0, false)
    }

    /// A machine used by an ordinary user.
    pub fn ordinary() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test becomes an ordinary user: run it as root");
        Self::new(ORDINARY, true)
    }

    fn new(uid: u32, apart: bool) -> Self {
        let top = tempfile::Builder::new().prefix("slashn-test.").tempdir().expect("a temporary folder");
        std::os::unix::fs::chown(top.path(), Some(uid), Some(uid)).expect("chown");
        let namespace = apart.then(|| namespace(top.path(), uid != 0));
        let (nodes, homes, mounts, disks) = (Vec::new(), vec!["me".into()], Vec::new(), Vec::new());
        let machine = Self { top: Some(top), uid, namespace, nodes, homes, mounts, disks };
        for folder in ["home", "work"] {
            machine.run("mkdir", &[machine.at(folder)]);
        }
        machine.slashn(&["init", "--name", "me"]).succeeds();
        machine
    }

    /// `name` in the machine's temporary folder.
    pub fn at(&self, name: &str) -> PathBuf {
        self.top.as_ref().expect("the machine is up").path().join(name)
    }

    /// A command as the machine's user, in the folder `work`.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let work = Some(self.at("work")).filter(|work| work.exists());
        let mut command = match &self.namespace {
            None => Command::new(program.as_ref()),
            Some(holder) => {
                let mut command = Command::new("nsenter");
                command.args(["--target", &holder.id().to_string(), "--mount"]);
                command.args(work.as_ref().map(|work| format!("--wd={}", work.display())));
                let id = self.uid.to_string();
                if self.uid != 0 {
                    command.args(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"]);
                }
                command.arg(program.as_ref());
                command
            }
        };
        if let Some(work) = work {
            command.current_dir(work);
        }
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env_clear()
            .env("PATH", format!("{}:{path}", binaries().display()))
            .env("HOME", self.at("home"))
            .env("SLASHN_HOME", self.at("me"))
            .env("LANG", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }

    /// Runs `program` and fails the test unless it succeeds.
    pub fn run<A: AsRef<std::ffi::OsStr>>(&self, program: &str, args: &[A]) -> Output {
        self.command(program).args(args).succeeds()
    }

    /// `slashn` with these arguments.
    pub fn slashn(&self, args: &[&str]) -> Command {
        let mut command = self.command(binaries().join("slashn"));
        command.args(args);
        command
    }

    /// `rcpu` with these arguments.
    pub fn rcpu(&self, args: &[&str]) -> Command {
        let mut command = self.command(binaries().join("rcpu"));
        command.args(args);
        command
    }

    /// With the nodes alpha and beta.
    #[must_use]
    pub fn with_two_nodes(mut self) -> Self {
        self.node("alpha");
        self.node("beta");
        self
    }

    /// Makes and starts a node that exports the folder `files-NAME`, trusts me and is known to me. Gives its address.
    pub fn node(&mut self, name: &str) -> String {
        self.node_with(name, &[])
    }

    /// The same, with more arguments for `slashn up`.
    pub fn node_with(&mut self, name: &str, more: &[&str]) -> String {
        let home = self.at(name).display().to_string();
        let files = self.at(&format!("files-{name}"));
        self.run("mkdir", &[Path::new("-p"), &files]);
        self.slashn(&["--home", &home, "init", "--name", name]).succeeds();
        let key = fs::read_to_string(self.at("me/id_ed25519.pub")).expect("my public key");
        self.slashn(&["--home", &home, "allow", key.trim()]).succeeds();
        self.takes_down(name);
        let ready = self.up(name, "127.0.0.1:0", more);
        let fields: Vec<&str> = ready.split_whitespace().collect();
        let ["ready", says, address, fingerprint] = fields[..] else { panic!("not a ready line: {ready:?}") };
        assert_eq!(says, name);
        self.slashn(&["add", name, address, "--key", fingerprint]).succeeds();
        address.to_string()
    }

    /// Starts the node `name`, which was made before, at `address`. Gives what it says.
    pub fn up(&self, name: &str, address: &str, more: &[&str]) -> String {
        let home = self.at(name).display().to_string();
        let export = format!("files={}", self.at(&format!("files-{name}")).display());
        let args = ["--home", &home, "up", "--daemon", "--listen", address, "--export", &export];
        self.slashn(&args).args(more).succeeds().text()
    }

    /// Takes down what runs from the home `name`, too, in the end.
    pub fn takes_down(&mut self, name: &str) {
        self.nodes.push(name.to_string());
    }

    /// Makes the home of somebody else, who knows the nodes that I know. Gives its path.
    pub fn somebody(&mut self, name: &str) -> String {
        let home = self.at(name).display().to_string();
        self.slashn(&["--home", &home, "init", "--name", name]).succeeds();
        self.run("cp", &[self.at("me/known_nodes"), self.at(name).join("known_nodes")]);
        self.homes.push(name.to_string());
        home
    }

    /// Mounts the grid and gives the place.
    pub fn mount(&mut self) -> PathBuf {
        self.mount_as("n", &[])
    }

    /// Mounts the grid at the folder `name`, with more arguments for `slashn mount`. Gives the place.
    pub fn mount_as(&mut self, name: &str, more: &[&str]) -> PathBuf {
        let at = self.at(name);
        // What is dead there cannot be looked at.
        if !self.mounts.contains(&at) {
            self.run("mkdir", &["-p", at.to_str().expect("a readable path")]);
        }
        self.slashn(&["mount", &at.display().to_string()]).args(more).succeeds();
        self.mounts.push(at.clone());
        at
    }

    /// Mounts an empty disk of `size` bytes, where at most `files` more can be made, at the folder `name`. Gives the
    /// place.
    pub fn small_disk(&mut self, name: &str, size: u64, files: u64) -> PathBuf {
        let (at, id) = (self.at(name), self.uid);
        self.run("mkdir", &["-p", at.to_str().expect("a readable path")]);
        let options = format!("size={size},nr_inodes={},mode=700,uid={id},gid={id}", files + 1);
        let mount = ["mount", "-t", "tmpfs", "-o", &options, "small"];
        self.as_root(&mount).arg(&at).succeeds();
        self.disks.push(at.clone());
        at
    }

    /// A command as root in the machine's mount namespace.
    pub fn as_root(&self, command: &[&str]) -> Command {
        let holder = self.namespace.as_ref().expect("the machine has a mount namespace of its own");
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--target", &holder.id().to_string(), "--mount"]).args(command);
        nsenter
    }

    /// A file in the folder `work`.
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.at("work").join(name);
        fs::write(&path, text).expect("a file in the work folder");
        std::os::unix::fs::chown(&path, Some(self.uid), Some(self.uid)).expect("chown");
        path
    }

    /// The command lines of processes that belong to this machine.
    pub fn processes(&self) -> Vec<String> {
        let top = self.at("").display().to_string();
        let own = self.namespace.as_ref().map(|holder| holder.id().to_string());
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
            let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let environ = String::from_utf8_lossy(&read("environ")).into_owned();
            let ours = line.contains(&top) || environ.contains(&top);
            if pid.parse::<u32>().is_ok_and(|pid| pid != std::process::id()) && ours && Some(&pid) != own.as_ref() {
                found.push(format!("{pid} {line}"));
            }
        }
        found
    }

    /// Kills the processes of this machine whose command line holds `part`, and waits until they are gone.
    pub fn kill(&self, part: &str) {
        let found: Vec<String> = self.processes().into_iter().filter(|line| line.contains(part)).collect();
        assert!(!found.is_empty(), "nobody runs {part}");
        for line in &found {
            let pid = line.split(' ').next().unwrap_or_default();
            let _ = Command::new("kill").args(["-9", pid]).status();
            // What is left for its parent to look at has no thread and nothing open any more.
            let ended = || {
                let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
                let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                threads <= 1 && !["R", "S", "D", "T"].iter().any(|state| stat.contains(&format!(") {state} ")))
            };
            let until = Instant::now() + PATIENCE;
            while !ended() {
                assert!(Instant::now() < until, "{line} does not end");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }

    fn take_down(&mut self) -> Vec<String> {
        for at in std::mem::take(&mut self.mounts) {
            let _ = self.slashn(&["unmount", &at.display().to_string()]).output();
        }
        for home in std::mem::take(&mut self.homes) {
            let home = self.at(&home).display().to_string();
            let _ = self.slashn(&["--home", &home, "agent", "--stop"]).output();
        }
        for name in std::mem::take(&mut self.nodes) {
            let home = self.at(&name).display().to_string();
            let _ = self.slashn(&["--home", &home, "down"]).output();
        }
        let until = Instant::now() + Duration::from_secs(20);
        while !self.processes().is_empty() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut left = self.processes();
        for at in std::mem::take(&mut self.disks) {
            let _ = self.as_root(&["umount", "--lazy"]).arg(at).output();
        }
        let holder = self.namespace.as_ref().map_or(std::process::id(), Child::id);
        let mounts = fs::read_to_string(format!("/proc/{holder}/mountinfo")).unwrap_or_default();
        let top = format!(" {}", self.at("").display());
        left.extend(mounts.lines().filter(|line| line.contains(&top)).map(str::to_string));
        if let Some(mut holder) = self.namespace.take() {
            let _ = holder.kill();
            let _ = holder.wait();
        }
        left
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.top.is_none() {
            return;
        }
        let left = self.take_down();
        if std::thread::panicking() {
            eprintln!("left behind: {left:#?}");
            for log in fs::read_dir(self.at("")).into_iter().flatten().flatten().map(|e| e.path().join("run/log")) {
                if let Ok(text) = fs::read_to_string(&log) {
                    eprintln!("--- {}\n{text}", log.display());
                }
            }
        } else {
            assert!(left.is_empty(), "left behind: {left:#?}");
        }
        if let Some(top) = self.top.take() {
            let path = top.path().to_path_buf();
            let removed = top.close();
            assert!(removed.is_ok() || std::thread::panicking(), "{}: {removed:?}", path.display());
        }
    }
}

/// A process that holds a mount namespace, one in which /dev/fuse is open to all if it is to be. It ends with this
/// process, however that ends: its standard input does.
fn namespace(top: &Path, open_fuse: bool) -> Child {
    let made = top.join("namespace");
    // What stands in /mnt is on a file system of its own, and gone with the namespace. fusermount3 wants a user's name.
    let arrange = format!(
        "mount -t tmpfs -o mode=755,dev fuse /mnt && mknod -m 666 /mnt/fuse c 10 229 && cp /etc/passwd /mnt/passwd && \
         echo 'ordinary:x:{ORDINARY}:{ORDINARY}::/:/bin/sh' >>/mnt/passwd && mount --bind /mnt/fuse /dev/fuse && \
         mount --bind /mnt/passwd /etc/passwd && umount -l /mnt && "
    );
    let arrange = if open_fuse { arrange } else { String::new() };
    let script = format!("{arrange} : >{} && exec cat", made.display());
    let mut holder = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("unshare");
    let until = Instant::now() + PATIENCE;
    while !made.exists() {
        if let Some(status) = holder.try_wait().expect("wait") {
            let mut text = String::new();
            let _ = holder.stderr.take().map(|mut stderr| stderr.read_to_string(&mut text));
            panic!("no mount namespace: {status}: {text}");
        }
        assert!(Instant::now() < until, "no mount namespace");
        std::thread::sleep(Duration::from_millis(5));
    }
    let _ = fs::remove_file(&made);
    holder
}

/// Runs each test as both kinds of user: each is a function that gets the [`Machine`].
#[macro_export]
macro_rules! as_both {
    ($($(#[$doc:meta])* $name:ident)*) => {
        mod as_root { $(#[test] fn $name() { super::$name($crate::machine::Machine::root()) })* }
        mod as_an_ordinary_user { $(#[test] fn $name() { super::$name($crate::machine::Machine::ordinary()) })* }
    };
}

/// Asks until `condition` holds. Fails the test after [`PATIENCE`].
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let limit = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < limit, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Where this build's binaries are: beside this program, or above it, where tests are.
pub fn binaries() -> PathBuf {
    let me = std::env::current_exe().expect("the path of this program");
    let built = |dir: &&Path| {
        let is_program = |path: PathBuf| fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o111 != 0);
        ["slashn", "rcpu", "9p"].iter().all(|name| is_program(dir.join(name)))
    };
    let found = me.ancestors().skip(1).take(2).find(built);
    found.expect("slashn, rcpu and 9p are not built: cargo build --workspace").to_path_buf()
}

/// What a command did, with a bound on how long it may take.
pub trait Done {
    /// Runs it to its end. Fails the test after [`PATIENCE`].
    fn done(&mut self) -> Output {
        self.done_within(PATIENCE)
    }
    /// The same, where more time than that may go by.
    fn done_within(&mut self, limit: Duration) -> Output;
    /// Runs it, and fails the test unless it exits with 0.
    fn succeeds(&mut self) -> Output;
    /// Runs it, and fails the test unless it exits with `status`.
    fn exits(&mut self, status: i32) -> Output;
}

impl Done for Command {
    fn done_within(&mut self, limit: Duration) -> Output {
        let child = self.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.unwrap_or_else(|err| panic!("{self:?}: {err}"));
        let (pid, (sender, receiver)) = (child.id(), std::sync::mpsc::channel());
        std::thread::spawn(move || sender.send(child.wait_with_output()));
        match receiver.recv_timeout(limit) {
            Ok(output) => output.expect("its output"),
            Err(_) => {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
                panic!("{self:?} did not end within {limit:?}");
            }
        }
    }

    fn succeeds(&mut self) -> Output {
        self.exits(0)
    }

    fn exits(&mut self, status: i32) -> Output {
        let output = self.done();
        let all = format!("stdout: {}\nstderr: {}", output.text(), output.errors());
        assert_eq!(output.status.code(), Some(status), "{self:?}: {}\n{all}", output.status);
        output
    }
}

/// A command's output as text.
pub trait Text {
    /// Its stdout.
    fn text(&self) -> String;
    /// Its stderr.
    fn errors(&self) -> String;
    /// Fails the test unless its stderr is one line that names each of `parts` and a remedy, and its stdout is empty.
    fn complains(&self, parts: &[&str]);
}

impl Text for Output {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    #[track_caller]
    fn complains(&self, parts: &[&str]) {
        let error = self.errors();
        assert_eq!(self.text(), "", "{error}");
        assert!(error.ends_with('\n') && error.lines().count() == 1, "not one line: {error}");
        for part in parts.iter().chain(&["; try: "]) {
            assert!(error.contains(part), "{part:?} is not in: {error}");
        }
    }
}
