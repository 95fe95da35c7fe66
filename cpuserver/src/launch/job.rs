//! A job as the daemon holds it.
//!
//! Owned by the session's task, which serves its root, waits for it and signals it. Every wait may be dropped and
//! begun again. Invariant: dropping the job kills all its processes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::message::{self, Command, Event};
use super::{Error, Exit, Usage, sys};

/// A job; its processes die when it is dropped.
#[derive(Debug)]
pub struct Job {
    /// The descriptor to serve the job's root on: mounted, and waiting for FUSE_INIT's answer. Take it.
    pub fuse: Option<OwnedFd>,
    init: i32,
    pidfd: OwnedFd,
    socket: AsyncFd<OwnedFd>,
    own_pids: bool,
    running: bool,
    outcome: Option<Result<Exit, Error>>,
    usage: Usage,
    notes: Vec<String>,
    sockets: Vec<OwnedFd>,
    gone: bool,
}

impl Job {
    /// Waits for the first event on `socket`.
    pub(crate) async fn started(socket: OwnedFd, own_pids: bool) -> Result<Self, Error> {
        rustix::io::ioctl_fionbio(&socket, true).map_err(Error::setup("job socket"))?;
        let socket = sys::readable(socket).map_err(Error::setup("job socket"))?;
        match next(&socket).await? {
            (Event::Started { init }, fds) => {
                let mut fds = fds.into_iter();
                let (Some(fuse), Some(pidfd)) = (fds.next(), fds.next()) else {
                    return Err(Error::Request { what: "the launcher sent no descriptors".into() });
                };
                Ok(Self {
                    fuse: Some(fuse),
                    init,
                    pidfd,
                    socket,
                    own_pids,
                    running: false,
                    outcome: None,
                    usage: Usage::default(),
                    notes: Vec::new(),
                    sockets: Vec::new(),
                    gone: false,
                })
            }
            (Event::Failed(error), _) => Err(error),
            (event, _) => Err(Error::Request { what: format!("the launcher answered {event:?}") }),
        }
    }

    /// The FUSE descriptor, once.
    pub fn take_fuse(&mut self) -> Option<OwnedFd> {
        self.fuse.take()
    }

    /// The sockets of [`JobSpec::sockets`](super::JobSpec::sockets), listening; all there once [`Job::running`]
    /// returned.
    pub fn take_sockets(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.sockets)
    }

    /// The pid of the job's init, as this process sees it: all others descend from it.
    pub fn init(&self) -> i32 {
        self.init
    }

    /// The job has a pid namespace, so that nothing of it can outlive its init.
    pub fn own_pids(&self) -> bool {
        self.own_pids
    }

    /// What was passed over on the way, a line each; known once [`Job::running`] returned.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// What the program used; known once [`Job::wait`] returned.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Returns when the program runs (execve(2) succeeded), or has ended already. Errors: why it never will.
    pub async fn running(&mut self) -> Result<(), Error> {
        while !self.running && self.outcome.is_none() {
            self.step().await?;
        }
        match &self.outcome {
            Some(Err(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Returns how the program ended. What it left behind is being killed then, see [`Job::gone`].
    pub async fn wait(&mut self) -> Result<Exit, Error> {
        loop {
            if let Some(outcome) = &self.outcome {
                return outcome.clone();
            }
            self.step().await?;
        }
    }

    /// Returns when no process of the job is left.
    pub async fn gone(&mut self) {
        while !self.gone && self.step().await.is_ok() {}
    }

    /// Sends signal `number` to the program's process group, or SIGKILL to every process of the job. Before the
    /// program runs any signal but 0 ends the job. Errors: `ESRCH` if it has ended.
    pub fn kill(&self, number: i32) -> io::Result<()> {
        if self.outcome.is_some() {
            return Err(rustix::io::Errno::SRCH.into());
        }
        match (self.running, number) {
            (true, _) => message::send(&self.socket, &Command::Signal(number), &[]),
            (false, 0) => Ok(()),
            (false, _) => Ok(pidfd_send_signal(&self.pidfd, Signal::KILL)?),
        }
    }

    /// Takes in one event.
    async fn step(&mut self) -> Result<(), Error> {
        let event = match next(&self.socket).await {
            Ok((event, fds)) => {
                self.sockets.extend(fds);
                event
            }
            Err(error) => {
                self.gone = true;
                self.outcome.get_or_insert(Err(error.clone()));
                return Err(error);
            }
        };
        match event {
            Event::Started { .. } | Event::Listening => {}
            Event::Running { notes } => (self.running, self.notes) = (true, notes),
            Event::Failed(error) => drop(self.outcome.get_or_insert(Err(error))),
            Event::Exited { exit, usage } => {
                self.outcome.get_or_insert(Ok(exit));
                self.usage = usage;
            }
            Event::Gone { exit, usage } => {
                if self.outcome.is_none() {
                    (self.outcome, self.usage) = (Some(Ok(exit)), usage);
                }
                self.gone = true;
            }
        }
        Ok(())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.gone {
            let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        }
    }
}

async fn next<S: AsFd + AsRawFd>(socket: &AsyncFd<S>) -> Result<(Event, Vec<OwnedFd>), Error> {
    let got = socket.async_io(Interest::READABLE, |socket| message::receive(socket)).await;
    got.map_err(Error::setup("job socket"))?.ok_or(Error::LauncherGone)
}
