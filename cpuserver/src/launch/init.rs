//! Init: the first process of a job, and pid 1 of its pid namespace.
//!
//! It mounts, changes the root, forks the program, and then waits: for children to reap, for signals to pass on, for
//! the daemon to go. It never execs, so nothing here may touch the job's root once the program runs. Invariant: when
//! it ends, for whatever reason, the job ends.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{DumpableBehavior, Signal, set_dumpable_behavior, set_parent_process_death_signal};

use super::emulator::Emulators;
use super::message::{self, Command, Event};
use super::sys::{self, Side};
use super::{Error, Exit, JobSpec, Usage, found, program, root};

/// Init's life. `ready` is told when all is done that needs nobody to serve `root`.
pub(super) fn run(spec: &JobSpec, socket: &OwnedFd, root: OwnedFd, stdio: [OwnedFd; 3], ready: PipeWriter) -> ! {
    match start(spec, socket, root, stdio, ready) {
        Ok(init) => init.watch(socket),
        Err(error) => {
            let _ = message::send(socket, &Event::Failed(error), &[]);
            sys::exit(1)
        }
    }
}

/// Init, once it has a child.
struct Init {
    program: i32,
    own_pids: bool,
    children_signal: OwnedFd,
    /// Ends when the program runs; before, it tells why it does not.
    verdict: Option<PipeReader>,
    notes: Vec<String>,
    /// /proc/self/io, opened while the machine's /proc is in sight.
    io: Option<File>,
}

fn start(
    spec: &JobSpec, socket: &OwnedFd, root: OwnedFd, stdio: [OwnedFd; 3], mut ready: PipeWriter,
) -> Result<Init, Error> {
    die_with_mounter(&ready);
    let emulators = Emulators::of_this_machine();
    let io = File::open("/proc/self/io").ok();
    let children_signal = sys::children_signal().map_err(Error::setup("signals"))?;
    let mut notes = Vec::new();
    let mounts = root::prepare(spec, &stdio[0], &mut notes)?;
    ready.write_all(&[1]).map_err(Error::setup("mounter"))?;
    drop(ready);

    root::pivot(root)?;
    let ours = root::attach(mounts, &mut notes)?;
    found::make(spec, &ours, socket)?;
    // Its memory and descriptors are not for the program to see.
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);

    let (verdict, report) = std::io::pipe().map_err(Error::setup("pipe"))?;
    match sys::fork(0).map_err(Error::setup("fork"))? {
        Side::Child => program::run(spec, stdio, &emulators, report),
        Side::Parent { pid, .. } => {
            Ok(Init { program: pid, own_pids: spec.own_pids, children_signal, verdict: Some(verdict), notes, io })
        }
    }
}

/// The kernel kills this process when the mounter ends. Did it end before? Then nobody reads `ready`. (getppid(2) says
/// 0 here whatever happens: the parent is in another pid namespace.)
fn die_with_mounter(ready: &PipeWriter) {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let mut fds = [PollFd::new(ready, PollFlags::empty())];
    if poll(&mut fds, Some(&Default::default())).is_ok_and(|n| n > 0) {
        sys::exit(1);
    }
}

impl Init {
    /// Waits until the program has ended or the daemon is gone.
    fn watch(mut self, socket: &OwnedFd) -> ! {
        loop {
            let mut fds = vec![PollFd::new(socket, PollFlags::IN), PollFd::new(&self.children_signal, PollFlags::IN)];
            fds.extend(self.verdict.as_ref().map(|verdict| PollFd::new(verdict, PollFlags::IN)));
            if poll(&mut fds, None).is_err() {
                continue;
            }
            let happened: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            // The verdict first: a program that never ran has ended, too.
            if happened.get(2) == Some(&true) {
                self.heed(socket);
            }
            if happened[1] {
                self.reap(socket);
            }
            if happened[0] {
                self.obey(socket);
            }
        }
    }

    /// Takes in whether the program runs.
    fn heed(&mut self, socket: &OwnedFd) {
        let mut text = Vec::new();
        let read = self.verdict.take().map(|mut verdict| verdict.read_to_end(&mut text));
        if matches!(read, Some(Ok(0))) {
            let notes = std::mem::take(&mut self.notes);
            let _ = message::send(socket, &Event::Running { notes }, &[]);
            return;
        }
        let error = serde_json::from_slice(&text).unwrap_or_else(|error| Error::Request { what: error.to_string() });
        let _ = message::send(socket, &Event::Failed(error), &[]);
        sys::exit(0)
    }

    /// Waits for every child that has ended.
    fn reap(&mut self, socket: &OwnedFd) {
        let _ = rustix::io::read(&self.children_signal, &mut [0; 128]);
        while let Ok(Some(child)) = sys::wait(libc::WNOHANG) {
            if child.pid == self.program {
                if self.verdict.is_some() {
                    self.heed(socket);
                }
                self.report(socket, child.exit);
            }
        }
    }

    /// Tells how the program ended, and ends. What is left is killed: by the kernel, as this process is pid 1, or by
    /// the mounter.
    fn report(&self, socket: &OwnedFd, exit: Exit) -> ! {
        let (read, written) = self.bytes().unwrap_or_default();
        let usage = Usage { read, written, ..sys::children_usage() };
        let _ = message::send(socket, &Event::Exited { exit, usage }, &[]);
        sys::exit(0)
    }

    /// What this process and those that it has waited for have read and written: proc_pid_io(5).
    fn bytes(&self) -> Option<(u64, u64)> {
        let mut text = vec![0; 1024];
        let got = self.io.as_ref()?.read_at(&mut text, 0).ok()?;
        let text = String::from_utf8_lossy(&text[..got]).into_owned();
        let of = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Some((of("rchar:")?, of("wchar:")?))
    }

    /// Does what the daemon asks for.
    fn obey(&self, socket: &OwnedFd) {
        match message::receive::<Command>(socket.as_fd()) {
            Ok(Some((Command::Signal(libc::SIGKILL), _))) if self.own_pids => drop(sys::kill(-1, libc::SIGKILL)),
            Ok(Some((Command::Signal(number), _))) => drop(sys::kill(-self.program, number)),
            Ok(None) => sys::exit(0),
            Err(_) => {}
        }
    }
}
