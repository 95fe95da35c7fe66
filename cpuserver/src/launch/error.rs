//! Why a job did not start, or its end is not known.
//!
//! Made in the launcher, the mounter, init or the program, whichever failed; travels to the daemon as a message; shown
//! to the user. Invariant: it names the step, the thing and the reason, and [`Error::remedy`] what can be done.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A Linux error number that can travel; printed in words.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Os(pub i32);

impl fmt::Display for Os {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        p9::Errno::from_code(self.0).fmt(f)
    }
}

impl From<rustix::io::Errno> for Os {
    fn from(errno: rustix::io::Errno) -> Self {
        Self(errno.raw_os_error())
    }
}

impl From<std::io::Error> for Os {
    fn from(error: std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

/// Why a job did not start, or its end is not known. Names inside the job are shown with invalid UTF-8 replaced.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such program in the job: exit status 127.
    #[error("{program}: not found")]
    NotFound {
        /// As it was asked for.
        program: String,
    },
    /// It is there and cannot be run: exit status 126.
    #[error("{program}: cannot be executed: {reason}")]
    NotExecutable {
        /// The path that was found.
        program: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It is there, for another architecture than this machine's, of which there is no emulator either: exit status
    /// 126.
    #[error("{program}: it is for {architecture}, and this node is {own}")]
    Foreign {
        /// The path that was found.
        program: String,
        /// What it is for.
        architecture: String,
        /// This machine's.
        own: String,
    },
    /// It is there, and the interpreter that its `#!` line or ELF header names is not: exit status 126.
    #[error("{program}: its interpreter {missing} is missing")]
    Interpreter {
        /// The path that was found.
        program: String,
        /// What it needs.
        missing: String,
    },
    /// The directory to start in is not to be had in the job.
    #[error("working directory: {path}: {reason}")]
    Cwd {
        /// As it was asked for.
        path: String,
        /// What chdir(2) said.
        reason: Os,
    },
    /// The kernel refuses a user namespace.
    #[error("user namespace: {step}: {reason}")]
    UserNamespace {
        /// Which call failed.
        step: String,
        /// What it said.
        reason: Os,
        /// What this machine's settings say about it, or what to try.
        remedy: String,
    },
    /// /dev/fuse cannot be opened.
    #[error("/dev/fuse: {reason}")]
    Fuse {
        /// What open(2) said.
        reason: Os,
    },
    /// The kernel refuses a /proc for a new pid namespace, as in most containers.
    #[error("a /proc of its own: {reason}")]
    OwnProc {
        /// What it said.
        reason: Os,
    },
    /// Something could not be mounted in the job.
    #[error("mount: {at}: {step}: {reason}")]
    Mount {
        /// Where in the job.
        at: String,
        /// Which step failed.
        step: String,
        /// What the kernel said.
        reason: Os,
    },
    /// A socket, or a small file, could not be made in the job.
    #[error("listen: {at}: {reason}")]
    Listen {
        /// Where in the job.
        at: String,
        /// What the kernel said.
        reason: Os,
    },
    /// Another step between the request and the program.
    #[error("{step}: {reason}")]
    Setup {
        /// Which.
        step: String,
        /// What the kernel said.
        reason: Os,
    },
    /// The request makes no sense.
    #[error("request: {what}")]
    Request {
        /// What is wrong with it.
        what: String,
    },
    /// The launcher ended, and with it every job.
    #[error("launcher: it has ended, and every command of this node")]
    LauncherGone,
}

impl Error {
    /// The exit status that a shell gives for it: 127, 126, or 255 for what is not about the program itself.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotFound { .. } => 127,
            Self::NotExecutable { .. } | Self::Foreign { .. } | Self::Interpreter { .. } => 126,
            _ => 255,
        }
    }

    /// What an administrator or the user can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NotFound { program } if program.contains('/') => Some(format!("ls -l {program}")),
            Self::NotFound { program } => Some(format!("command -v {program}")),
            Self::NotExecutable { program, reason } if reason.contains("no execute bit") => {
                Some(format!("chmod +x {program}"))
            }
            Self::NotExecutable { reason, .. } if reason.contains("Argument list too long") => {
                Some("fewer arguments (xargs), a smaller environment; one string has 128 KiB at most".into())
            }
            Self::NotExecutable { program, .. } => Some(format!("file {program}")),
            Self::Foreign { architecture, .. } => Some(format!(
                "rcpu --root node, for a program that the node has, too; rcpu -a 'runs={architecture}'; or install \
                 qemu-user-static on the node"
            )),
            Self::Interpreter { missing, .. } => Some(format!("install {missing} where the command's files are from")),
            Self::Listen { .. } => Some("a path in /run, which is the command's own".into()),
            Self::Cwd { .. } => Some("rcpu -C DIR, or --expose PATH; rcpu -v says what the node can reach".into()),
            Self::UserNamespace { remedy, .. } => Some(remedy.clone()),
            Self::Fuse { reason: Os(libc::EACCES | libc::EPERM) } => Some("chmod 666 /dev/fuse, on the node".into()),
            Self::Fuse { reason: Os(libc::ENOENT | libc::ENODEV) } => Some("modprobe fuse, on the node".into()),
            Self::Setup { reason: Os(libc::EAGAIN), .. } => {
                Some("ps -e, on the node: it has as many processes as it may have (ulimit -u; pids.max)".into())
            }
            Self::Setup { reason: Os(libc::ENOMEM), .. } => Some("free -m, on the node".into()),
            Self::Setup { reason: Os(libc::EMFILE | libc::ENFILE), .. } => Some("ulimit -n, on the node".into()),
            Self::LauncherGone => Some("run it again: another is started for it".into()),
            _ => None,
        }
    }

    pub(crate) fn setup<E: Into<Os>>(step: &str) -> impl FnOnce(E) -> Self {
        let step = step.to_owned();
        move |reason| Self::Setup { step, reason: reason.into() }
    }
}
