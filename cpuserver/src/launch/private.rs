//! A private namespace on this machine, for the command that this very process then becomes.
//!
//! ```text
//! slashn run       one thread: starts the server, enters namespaces of its own, assembles them, becomes the command
//!   server         an orphan, in the machine's namespaces: serves the FUSE file system on the descriptor that it is sent,
//!                  as long as somebody is in that namespace
//! ```
//!
//! So the command has the pid, the terminal, the parent and the signals that `slashn run` had. One that is to have the
//! same namespace as another enters that one's ([`door`]). Called by `main` of `slashn run` ([`door::enter`],
//! [`Server::start`], [`enter`], [`Entered::assemble`]) and by that of its server ([`Client::accept`]).
//! Invariant: the server holds no namespace of the command's, so that the kernel ends the mount with its last process.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, statx};
use rustix::mount::{MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, mount_remount, move_mount, unmount};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{getgid, getuid};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

pub mod door;

pub use door::Door;

use door::Inside;

use super::root::{clone_tree, failed, mounted};
use super::sys::{self, Side};
use super::{Error, JobSpec, message, mounter};

/// Where the FUSE file system is while the root is being assembled.
const AT: &str = "/.slashn";
/// The most that a plan may be.
const PLAN: u64 = 64 << 20;

/// What the root is assembled of.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Plan {
    /// The whole root is what the server shows; else it is this machine's.
    pub whole: bool,
    /// What is put over it, in this order.
    pub mounts: Vec<PlannedMount>,
}

/// One mount over the root.
#[derive(Debug, Deserialize, Serialize)]
pub struct PlannedMount {
    /// Where.
    pub at: PathBuf,
    /// This file or directory of this machine; else what the server shows at that place.
    pub local: Option<PathBuf>,
    /// There is no such place, which is one name in the root: a directory is made, or a file.
    pub make: Option<bool>,
}

/// What the server says first: the plan, or why there is none.
type Said = Result<Plan, String>;

/// Whoever is to be served.
#[derive(Debug, Deserialize, Serialize)]
pub struct Client {
    /// Its mount namespace, as /proc/PID/ns/mnt numbers it.
    namespace: u64,
    /// The FUSE file system, as the kernel's tables of mounts number it, of whoever had it made.
    device: String,
}

impl Client {
    /// Waits for the descriptor on standard input, and what [`door::inhabited`] knows the file system by; none if
    /// whoever was to send it is gone. It blocks.
    pub fn accept() -> io::Result<Option<(OwnedFd, String)>> {
        let Some((client, fds)) = message::receive::<Self>(io::stdin())? else { return Ok(None) };
        Ok(fds.into_iter().next().map(|fuse| (fuse, client.device)))
    }

    /// Waits until it has its namespace: the number of that, as /proc/PID/ns/mnt has it, and what others may be handed;
    /// none if it is gone. It blocks.
    pub fn settled() -> io::Result<Option<(u64, Option<Inside>)>> {
        let Some((client, fds)) = message::receive::<Self>(io::stdin())? else { return Ok(None) };
        let mut fds = fds.into_iter();
        let inside = fds.next().map(|mounts| Inside { mounts, user: fds.next() });
        Ok(Some((client.namespace, inside)))
    }

    /// Tells one that has settled that it may begin.
    pub fn begin() -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(b"\n")?;
        out.flush()
    }

    /// Tells the plan, or why there is none, on standard output.
    pub fn tell(said: &Said) -> io::Result<()> {
        let text = serde_json::to_vec(said)?;
        let mut out = io::stdout().lock();
        out.write_all(&text)?;
        out.write_all(b"\n")?;
        out.flush()
    }
}

/// The server, as the one who is served has it.
pub struct Server {
    socket: OwnedFd,
    said: PipeReader,
}

impl Server {
    /// Starts this program with `args`, as nobody's child, in a session of its own, with `log` as its standard error.
    /// This process has one thread.
    pub fn start(args: &[OsString], log: File) -> io::Result<Self> {
        let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let (said, says) = io::pipe()?;
        match sys::fork(0)? {
            Side::Child => {
                let _ = rustix::process::setsid();
                let mut command = Command::new("/proc/self/exe");
                command.args(args).current_dir("/").stdin(theirs).stdout(says).stderr(Stdio::from(log));
                // What is forked again is nobody's child once this process has ended, which it does here.
                let begun = match sys::fork(0) {
                    Ok(Side::Child) => Err(command.exec()),
                    forked => forked.map(drop),
                };
                sys::exit(i32::from(begun.is_err()))
            }
            Side::Parent { .. } => sys::wait(0).map(drop)?,
        }
        Ok(Self { socket, said })
    }

    /// Waits for what the server says. Errors: why there is no namespace.
    fn plan(&mut self) -> Result<Plan, String> {
        let mut text = Vec::new();
        let read = BufReader::new((&mut self.said).take(PLAN)).read_until(b'\n', &mut text);
        read.map_err(|err| err.to_string())?;
        let silent = |_| "the server of the namespace ended without a word".to_string();
        serde_json::from_slice::<Said>(&text).map_err(silent)?
    }

    /// Tells it what this process is in now, and waits until it knows.
    fn settle(&mut self, client: &Client, inside: Option<&Inside>) -> Result<(), Error> {
        let fds = inside.map(Inside::fds).unwrap_or_default();
        let told = message::send(&self.socket, client, &fds);
        told.and_then(|()| self.said.read_exact(&mut [0])).map_err(Error::setup("the server of the namespace"))
    }
}

/// Why a command did not get its namespace.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Namespaces or mounts.
    #[error("{0}")]
    Launch(#[from] Error),
    /// The namespace itself, in the server's words.
    #[error("{0}")]
    Namespace(String),
}

/// This process in namespaces of its own, in which everything is as before.
pub struct Entered {
    root: OwnedFd,
    server: Server,
    client: Client,
    /// In a user namespace of its own, too.
    user_ns: bool,
}

/// Enters a mount namespace of its own, and unless this is root a user namespace, and has `server` serve what is to be
/// mounted there. This process has one thread.
pub fn enter(server: Server) -> Result<Entered, Refused> {
    let (inner_uid, inner_gid) = (getuid().as_raw(), getgid().as_raw());
    let user_ns = !rustix::process::geteuid().is_root();
    let spec = JobSpec { inner_uid, inner_gid, user_ns, ..JobSpec::default() };
    mounter::namespaces(&spec, UnshareFlags::NEWNS)?;
    let (fuse, root) = mounter::fuse_root(&spec)?;
    // It is not asked for this: nobody serves it yet.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let known = statx(&root, "", flags, StatxFlags::empty()).map_err(Error::setup("the FUSE file system"))?;
    let device = format!("{}:{}", known.stx_dev_major, known.stx_dev_minor);
    let client = Client { namespace: own_number()?, device };
    let sent = message::send(&server.socket, &client, &[fuse.as_fd()]);
    sent.map_err(Error::setup("the server of the namespace"))?;
    Ok(Entered { root, server, client, user_ns })
}

/// The number of this process's mount namespace.
fn own_number() -> Result<u64, Error> {
    Ok(fs::metadata("/proc/self/ns/mnt").map_err(Error::setup("namespace"))?.ino())
}

/// Goes to the directory of the same name as the one in which this process was.
fn stay(here: &Path) -> Result<(), Error> {
    let cwd = |errno| Error::Cwd { path: here.display().to_string(), reason: super::Os::from(errno) };
    rustix::process::chdir(here).map_err(cwd)
}

impl Entered {
    /// Makes the root what the server says, and stays in the directory of the same name. If `shared`, others may have
    /// the same.
    pub fn assemble(mut self, shared: bool) -> Result<(), Refused> {
        let here = std::env::current_dir().map_err(Error::setup("working directory"))?;
        let plan = self.server.plan().map_err(Refused::Namespace)?;
        self.put(&plan)?;
        // What is handed out is what was made, and this process goes on in a copy. Where a root has no /proc there is
        // none.
        let inside = if shared { Inside::here(self.user_ns).ok() } else { None };
        if inside.is_some() {
            sys::unshare(UnshareFlags::NEWNS).map_err(Error::setup("unshare"))?;
            self.client.namespace = own_number()?;
        }
        self.server.settle(&self.client, inside.as_ref())?;
        stay(&here)?;
        Ok(())
    }

    fn put(&self, plan: &Plan) -> Result<(), Error> {
        // All that is this machine's, while it is in sight.
        let local = |mount: &PlannedMount| {
            let tree = |path: &PathBuf| clone_tree(path).map_err(|errno| failed(path, "bind", errno));
            mount.local.as_ref().map(tree).transpose()
        };
        let locals = plan.mounts.iter().map(local).collect::<Result<Vec<_>, _>>()?;
        if plan.whole {
            let own = ["/proc", "/sys", "/dev"].map(|path| (path, clone_tree(Path::new(path))));
            super::root::pivot(self.root.try_clone().map_err(Error::setup("root"))?)?;
            for (path, tree) in own {
                if let Ok(tree) = tree {
                    // Where it shows no such directory there is none.
                    let _ = attach(&tree, Path::new(path));
                }
            }
        } else {
            self.machines_root()?;
        }
        for (mount, local) in plan.mounts.iter().zip(locals) {
            let put = |err: io::Error| {
                failed(&mount.at, "mount", rustix::io::Errno::from_io_error(&err).unwrap_or(rustix::io::Errno::IO))
            };
            if let Some(dir) = mount.make {
                make(&mount.at, dir).map_err(put)?;
            }
            let tree = match local {
                Some(tree) => tree,
                None => {
                    let shown = Path::new(AT).join(mount.at.strip_prefix("/").unwrap_or(&mount.at));
                    clone_tree(&shown).map_err(|errno| failed(&mount.at, "what is served", errno))?
                }
            };
            attach(&tree, &mount.at).map_err(put)?;
        }
        if !plan.whole {
            let done = |errno| failed(Path::new("/"), "root", errno);
            unmount(AT, UnmountFlags::DETACH).map_err(done)?;
            rustix::fs::rmdir(AT).map_err(done)?;
            // What is made in it would be seen nowhere else.
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::BIND;
            mount_remount("/", flags, "").map_err(done)?;
        }
        Ok(())
    }

    /// Makes a root in which names can be made, of what is in this machine's.
    fn machines_root(&self) -> Result<(), Error> {
        let errno = |err: &io::Error| rustix::io::Errno::from_io_error(err).unwrap_or(rustix::io::Errno::IO);
        let read = |err: io::Error| failed(Path::new("/"), "read", errno(&err));
        let mut entries = Vec::new();
        for entry in fs::read_dir("/").map_err(read)? {
            let entry = entry.map_err(read)?;
            let (kind, path) = (entry.file_type().map_err(read)?, entry.path());
            let link = kind.is_symlink().then(|| fs::read_link(&path)).transpose().map_err(read)?;
            let tree = if link.is_none() { clone_tree(&path).ok() } else { None };
            entries.push((path, kind.is_dir(), link, tree));
        }
        let options = [("source", "slashn".to_owned()), ("mode", "755".to_owned()), ("size", "16m".to_owned())];
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let root = mounted("tmpfs", &options, flags).map_err(|errno| failed(Path::new("/"), "tmpfs", errno))?;
        super::root::pivot(root)?;
        for (path, dir, link, tree) in entries {
            let put = |err: io::Error| failed(&path, "mount", errno(&err));
            match (link, tree) {
                (Some(link), _) => std::os::unix::fs::symlink(link, &path).map_err(put)?,
                (None, Some(tree)) => {
                    make(&path, dir).map_err(put)?;
                    attach(&tree, &path).map_err(put)?;
                }
                // What may not be bound is not there.
                (None, None) => {}
            }
        }
        let served = |err: io::Error| failed(Path::new(AT), "mount", errno(&err));
        make(Path::new(AT), true).map_err(served)?;
        attach(&self.root, Path::new(AT)).map_err(served)
    }
}

fn make(at: &Path, dir: bool) -> io::Result<()> {
    let made = if dir { fs::create_dir(at) } else { File::create_new(at).map(drop) };
    match made {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn attach(tree: &OwnedFd, at: &Path) -> io::Result<()> {
    let place = rustix::fs::openat(CWD, at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", &place, "", flags)?)
}
