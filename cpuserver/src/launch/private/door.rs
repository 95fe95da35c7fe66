//! A door to the namespace of one command of `slashn run`, for others that are to have the same.
//!
//! Opened by the server of that namespace, in a thread of its own. Whoever comes is handed the namespaces, enters them,
//! and goes on in a mount namespace of its own: a copy, with the same FUSE mount in it. It is never a command's own
//! that is handed out, so whatever commands make of theirs is not in others'. When nobody has come for a while the door
//! closes: from then on the namespace ends with the last command that is in a copy of it. Invariant: who is handed a
//! namespace is a process of the same user.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::sockopt::{Timeout, set_socket_timeout, socket_peercred};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::super::{Error, message, sys};
use super::{Client, Refused, own_number};

/// How long the other side may be silent.
const SILENT: Duration = Duration::from_secs(10);
/// How many come by one door: what each leaves behind stays until the namespace ends.
const MOST: usize = 1024;

/// The namespaces that are handed out.
#[derive(Debug)]
pub struct Inside {
    pub(super) mounts: OwnedFd,
    /// None for root, who needs none.
    pub(super) user: Option<OwnedFd>,
}

struct State {
    /// None once it is closed.
    inside: Option<Inside>,
    came: usize,
    /// Of those, how many have not begun.
    coming: usize,
}

/// The door. It closes when it is dropped.
pub struct Door {
    state: Arc<Mutex<State>>,
    path: PathBuf,
    /// The socket's inode: by now another's may be at the path.
    socket: u64,
}

/// To whoever comes. With it: the mount namespace, and the user namespace if there is one.
#[derive(Deserialize, Serialize)]
struct Welcome;

/// To whoever came: it may begin.
#[derive(Deserialize, Serialize)]
struct Settled;

impl Door {
    /// Opens the door to `inside` at `path` until nobody has come for `idle_time`. `settle` is told of each that comes,
    /// by the number of its mount namespace, before that begins. Errors: `AlreadyExists` where another is open.
    pub fn open(
        path: &Path, inside: Inside, idle_time: Duration,
        settle: impl Fn(u64) -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        if is_open(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let fresh = path.with_extension(std::process::id().to_string());
        bind(&listener, &SocketAddrUnix::new(&fresh)?)?;
        listen(&listener, 64)?;
        let socket = fs::symlink_metadata(&fresh)?.ino();
        fs::rename(&fresh, path)?;
        let state = Arc::new(Mutex::new(State { inside: Some(inside), came: 0, coming: 0 }));
        let door = Self { state: state.clone(), path: path.to_owned(), socket };
        let at_door = Self { state, path: path.to_owned(), socket };
        let settle = Arc::new(settle);
        std::thread::Builder::new().name("door".into()).spawn(move || {
            while let Some(comer) = next(&listener, idle_time) {
                if at_door.state.lock().inside.is_none() {
                    break;
                }
                let (state, settle) = (at_door.state.clone(), settle.clone());
                let welcomed = move || {
                    if let Err(err) = welcome(&state, &comer, &*settle) {
                        tracing::debug!("one who came for the same namespace went: {err}");
                    }
                };
                if let Err(err) = std::thread::Builder::new().spawn(welcomed) {
                    tracing::warn!("no thread for who comes: {err}");
                }
            }
            at_door.close();
        })?;
        Ok(door)
    }

    /// Closes it for good, unless somebody is coming, or who has come makes `in_use` true; says whether it did.
    pub fn close_unless(&self, in_use: impl FnOnce() -> bool) -> bool {
        let inside = {
            let mut state = self.state.lock();
            // Whoever comes meanwhile waits for the lock.
            if state.coming > 0 || in_use() {
                return false;
            }
            state.inside.take()
        };
        self.close();
        drop(inside);
        true
    }

    /// Closes it: nobody comes any more.
    pub fn close(&self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|at| at.ino() == self.socket) {
            let _ = fs::remove_file(&self.path);
        }
        // Where nobody is inside the namespace ends with this, and the server with it.
        let inside = self.state.lock().inside.take();
        drop(inside);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.close();
    }
}

/// The next who comes, if one does within `idle_time`.
fn next(listener: &OwnedFd, idle_time: Duration) -> Option<OwnedFd> {
    let limit = Timespec { tv_sec: i64::try_from(idle_time.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&limit)) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return None,
        }
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(comer) => return Some(comer),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            Err(_) => return None,
        }
    }
}

fn welcome(state: &Mutex<State>, comer: &OwnedFd, settle: &dyn Fn(u64) -> io::Result<()>) -> io::Result<()> {
    if socket_peercred(comer)?.uid != rustix::process::geteuid() {
        return Ok(());
    }
    set_socket_timeout(comer, Timeout::Recv, Some(SILENT))?;
    {
        let mut state = state.lock();
        if state.came == MOST {
            return Ok(());
        }
        let State { inside: Some(inside), came, coming } = &mut *state else { return Ok(()) };
        message::send(comer, &Welcome, &inside.fds())?;
        (*came, *coming) = (*came + 1, *coming + 1);
    }
    let settled = match message::receive::<Client>(comer) {
        Ok(Some((client, _))) => settle(client.namespace).map(|()| true),
        // It only looked whether the door is open.
        Ok(None) => Ok(false),
        Err(err) => Err(err),
    };
    {
        let mut state = state.lock();
        state.coming -= 1;
        state.came -= usize::from(!matches!(settled, Ok(true)));
    }
    if settled? { message::send(comer, &Settled, &[]) } else { Ok(()) }
}

/// Which of the mount namespaces `numbers` have processes of this user in them that see the file system `device`: a
/// number may be another's by now.
pub fn inhabited(numbers: &HashSet<u64>, device: &str) -> HashSet<u64> {
    let mounted = format!(" {device} ");
    let inside = |process: PathBuf| {
        let number = fs::metadata(process.join("ns/mnt")).ok()?.ino();
        let mounts = numbers.contains(&number).then(|| fs::read_to_string(process.join("mountinfo")).ok())??;
        mounts.contains(&mounted).then_some(number)
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|process| inside(process.path())).collect()
}

/// Whether somebody is at the door at `path`.
fn is_open(path: &Path) -> bool {
    let Ok(address) = SocketAddrUnix::new(path) else { return false };
    let comer = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    comer.is_ok_and(|comer| connect(&comer, &address).is_ok())
}

/// Goes through the door at `path`, if one is open there, and stays in the directory of the same name. This process has
/// one thread. Errors: it cannot go on where it is.
pub fn enter(path: &Path) -> Result<bool, Refused> {
    let Some((comer, inside)) = knock(path) else { return Ok(false) };
    let here = std::env::current_dir().map_err(Error::setup("working directory"))?;
    let into = |fd: &OwnedFd, kind| {
        move_into_link_name_space(fd.as_fd(), Some(kind)).map_err(Error::setup("enter the namespace"))
    };
    if let Some(user) = &inside.user {
        into(user, LinkNameSpaceType::User)?;
    }
    into(&inside.mounts, LinkNameSpaceType::Mount)?;
    sys::unshare(UnshareFlags::NEWNS).map_err(Error::setup("unshare"))?;
    let client = Client { namespace: own_number()?, device: String::new() };
    let settled = message::send(&comer, &client, &[]).and_then(|()| message::receive::<Settled>(&comer));
    let settled = settled.and_then(|settled| settled.ok_or_else(|| io::ErrorKind::UnexpectedEof.into()));
    settled.map_err(Error::setup("the server of the namespace"))?;
    super::stay(&here)?;
    Ok(true)
}

/// Asks at the door at `path` for what is inside.
fn knock(path: &Path) -> Option<(OwnedFd, Inside)> {
    let comer = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).ok()?;
    set_socket_timeout(&comer, Timeout::Recv, Some(SILENT)).ok()?;
    connect(&comer, &SocketAddrUnix::new(path).ok()?).ok()?;
    let (Welcome, fds) = message::receive(&comer).ok()??;
    let mut fds = fds.into_iter();
    Some((comer, Inside { mounts: fds.next()?, user: fds.next() }))
}

impl Inside {
    pub(super) fn fds(&self) -> Vec<BorrowedFd<'_>> {
        std::iter::once(self.mounts.as_fd()).chain(self.user.iter().map(AsFd::as_fd)).collect()
    }

    /// The namespaces that this process is in: the user namespace, too, if it is one that was made for this.
    pub(super) fn here(user_ns: bool) -> io::Result<Self> {
        let open = |kind: &str| fs::File::open(format!("/proc/self/ns/{kind}")).map(OwnedFd::from);
        Ok(Self { mounts: open("mnt")?, user: if user_ns { Some(open("user")?) } else { None } })
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read};

    use super::*;

    /// A door in `dir`; what is read of the pipe ends once nothing is handed out any more.
    fn door(dir: &Path, idle_time: Duration) -> (Door, PathBuf, PipeReader) {
        let (held, holds) = io::pipe().unwrap();
        let path = dir.join("door");
        let inside = Inside { mounts: holds.into(), user: None };
        (Door::open(&path, inside, idle_time, |_| Ok(())).unwrap(), path, held)
    }

    #[test]
    fn what_nobody_comes_for_is_let_go_and_the_door_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let (_door, path, mut held) = door(dir.path(), Duration::ZERO);
        assert_eq!(held.read(&mut [0]).unwrap(), 0);
        assert!(!path.exists() && knock(&path).is_none());
    }

    #[test]
    fn a_door_by_which_somebody_comes_is_not_closed_for_those_who_want_to_be_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (door, path, mut held) = door(dir.path(), Duration::from_secs(600));
        let (comer, inside) = knock(&path).unwrap();
        assert!(!door.close_unless(|| false) && path.exists());
        let mine = own_number().unwrap();
        message::send(&comer, &Client { namespace: mine, device: String::new() }, &[]).unwrap();
        let (Settled, _) = message::receive(&comer).unwrap().unwrap();
        // Now it is for the server to say.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let device = mounts.split(' ').nth(2).unwrap();
        let numbers = HashSet::from([mine, 1]);
        assert_eq!(inhabited(&numbers, "0:0"), HashSet::new());
        assert!(!door.close_unless(|| inhabited(&numbers, device) == HashSet::from([mine])) && path.exists());
        drop(inside);
        assert!(door.close_unless(|| false));
        assert_eq!(held.read(&mut [0]).unwrap(), 0);
        assert!(knock(&path).is_none());
    }

    #[test]
    fn a_door_by_which_nobody_came_is_closed_and_the_next_at_its_place_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (first, path, mut held) = door(dir.path(), Duration::from_secs(600));
        assert!(first.close_unless(|| false) && !path.exists());
        assert_eq!(held.read(&mut [0]).unwrap(), 0);
        let (second, path, _held) = door(dir.path(), Duration::from_secs(600));
        drop(first);
        assert!(knock(&path).is_some());
        // One at a time, and who only looks has not come.
        let (_, holds) = io::pipe().unwrap();
        let third = Inside { mounts: holds.into(), user: None };
        let third = Door::open(&path, third, Duration::from_secs(600), |_| Ok(()));
        assert_eq!(third.err().map(|err| err.kind()), Some(io::ErrorKind::AlreadyExists));
        while second.state.lock().coming > 0 {
            std::thread::yield_now();
        }
        assert!(second.close_unless(|| false));
    }
}
