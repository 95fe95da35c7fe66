//! What can be typed: every command of `slashn`, `rcpu` and `9p`.
//!
//! Parsed in `main`; wrong usage ends there with status 2. Here is what was typed, not what it means: the commands
//! find that out. Other people's scripts depend on these names, so they change only with a deprecation.

mod rcpu;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use fileserver::Export;
use fileserver::caller::Trust;
use p9::dial::HostPort;
use p9::who::Only;

use crate::authorized::parse_only;
use crate::commands::sessions::SessionName;
use crate::config::{NodeName, TreePath};
use crate::error::{Error, Result};
use crate::keys::check_fingerprint;

pub use rcpu::{Limit, Rcpu, RootOf, YesNo};

/// What every command takes.
#[derive(Args, Clone, Debug, Default)]
pub struct Global {
    /// The home: keys, what is exported, whom I know [default: $SLASHN_HOME, else ~/.config/slashn]
    #[arg(long, global = true, value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// Say on standard error what is done; twice, in detail
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Print lists as JSON
    #[arg(long, global = true)]
    pub json: bool,
}

/// Every machine you own, mounted at /n.
#[derive(Debug, Parser)]
#[command(name = "slashn", version, arg_required_else_help = true)]
pub struct Slashn {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands of `slashn`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the home: keys, authorized_keys with my own key, grid.toml
    Init(Init),
    /// Make this machine a node; prints `ready NAME ADDR:PORT SHA256:FINGERPRINT` when it is one
    Up(Up),
    /// Stop the node
    Down,
    /// Export a directory under a name
    Export(ExportArgs),
    /// Export it no longer
    Unexport(Unexport),
    /// What is exported
    Exports,
    /// Let a key in: to everything and to run commands as you, or only to some exports
    Allow(Allow),
    /// Let a key in no longer, and end its connections
    Deny(Deny),
    /// Who may come in, and to what
    Allowed,
    /// Is it up, who is connected, what is mounted, what runs
    Status,
    /// Check what slashn needs here, and say how to mend it
    Doctor,
    /// Remember a node, and trust its key
    Add(Add),
    /// Forget a node
    Remove(Remove),
    /// The nodes I know
    Nodes,
    /// Mount the grid; returns when it can be used
    Mount(Mount),
    /// Unmount the grid, also when nodes are dead
    Unmount(Unmount),
    /// Run a command in a namespace of its own, here
    ///
    /// Run a command in a namespace of its own: this machine's files, with what a namespace file adds; the grid at /n.
    ///
    /// Its children share the namespace, which ends with the last of them; nobody else sees it. `mount SERVER /` in
    /// FILE makes another root. The exit status is the command's; 126 or 127 if it cannot be run, 255 if there is no
    /// such namespace.
    Run(Run),
    /// Show something at another place of a mount, too
    ///
    /// Show what is at NEW at OLD, too: instead of what is there, or as a union with it.
    ///
    /// Both are paths in a mount: as they are seen there, or as `slashn ns` prints them, where the mount shows what is
    /// at /n; NEW may be of this machine. NEW may also be a server: a node's name, tls!HOST!PORT, tcp!HOST!PORT,
    /// unix!PATH, local!PATH, exec!COMMAND, ssh!HOST. What is open stays what it was.
    Bind(Bind),
    /// Take away what was bound, or mounted, at a place of a mount
    ///
    /// Take away what was bound or mounted at OLD: all of it, or NEW alone.
    Unbind(Unbind),
    /// Print a namespace as the text that rebuilds it
    ///
    /// The text is a namespace file, as Plan 9's namespace(6): what /etc/slashn/namespace and the file `namespace` of
    /// the home are, which `slashn mount`, `slashn run` and `rcpu` read, and what their --ns FILE reads instead. Paths
    /// are those that a command sees, from / on, where this machine's root is; the nodes I know are at /n, and a mount
    /// shows what is at /n. A file that mounts or binds something at / itself is the whole namespace. A line is one of:
    ///
    /// `mount [-abcCmqw] SERVER OLD [SPEC]`: what SERVER serves, or SPEC of it, at OLD. SERVER is '#grid' (the nodes I
    /// know), a node's name, tls!HOST!PORT, tcp!HOST!PORT, unix!PATH, local!PATH, exec!COMMAND or ssh!HOST.
    ///
    /// `import [-abcCmqw] SERVER [SPEC] OLD`: the same.
    ///
    /// `bind [-abcCmqw] NEW OLD`: what is at NEW now, at OLD too.
    ///
    /// `unmount [-q] [NEW] OLD`: all that is mounted or bound at OLD no longer, or NEW alone.
    ///
    /// `cd DIR`: paths that do not begin with / are seen from there.
    ///
    /// `clear`: begin again, with this machine's root alone.
    ///
    /// `. [-q] FILE`: the lines of FILE; with -q none, if there is no such file.
    ///
    /// Flags: -a after what is at OLD, -b before it, both making a union, else in its place; -c new files may be made
    /// in it; -m directories of one name, in this and others of the union that say so, are one; -w the same, and what
    /// is removed from those behind it is marked in it and not there any more; -q go on if it cannot be done; -C may be
    /// cached, as it is anyway. 'In quotes' anything stands for itself; $name is a variable of the environment, or
    /// home, user, sysname, n (/n). A line that begins with # is a comment.
    Ns(Ns),
    /// My commands, on all nodes that I know
    ///
    /// My commands that run, on all nodes that I know: what each is called, its state, for how long, the command.
    Ps(Ps),
    /// How busy my nodes are, and what of mine runs there, until `q`
    ///
    /// How busy my nodes are (load of 1, 5 and 15 minutes, cores, memory) and what of mine runs there, drawn anew every
    /// two seconds until `q` or ^C. Where the output is no terminal, once.
    Top(Top),
    /// Send a signal to commands of mine
    ///
    /// Send a signal to commands of mine: TERM, or another by its name or number (`-KILL`, `-9`, `-s HUP`).
    Kill(Kill),
    /// Wait until a command of mine has ended, and end as it did
    ///
    /// Wait until a command of mine has ended. The exit status is its own, as that of `rcpu`.
    Wait(Wait),
    /// See what a command of mine writes, until it ends
    ///
    /// See what a command of mine writes, from the oldest that its node has (the last MiB, seen or not), until it ends.
    /// The exit status is its own, as that of `rcpu`, and signals go to it; but a terminal that is closed leaves it
    /// running, and so does `~.` typed there at the beginning of a line.
    Attach(Attach),
    /// Print the completions of a shell
    Completions(Completions),
    /// Print the manual page of slashn, of one of its commands, or of rcpu
    Man(Man),
    /// The process that starts jobs
    #[command(hide = true)]
    Launcher,
    /// The process that serves the namespace of a command of `slashn run`
    #[command(hide = true)]
    Private(Run),
    /// This machine's files, on standard input and output: what `ssh!HOST` in a namespace runs there
    #[command(hide = true)]
    Stdio,
    /// The process that serves my tree to the nodes that run my commands
    #[command(hide = true)]
    Agent(Agent),
}

/// `slashn init`
#[derive(Args, Debug)]
pub struct Init {
    /// The name of this node [default: the host's name]
    #[arg(long)]
    pub name: Option<NodeName>,
    /// The user's key: an OpenSSH private key, a .pub whose private key is in the ssh-agent, or `agent`
    #[arg(long, value_name = "PATH|agent")]
    pub identity: Option<String>,
}

/// `slashn up`
#[derive(Args, Debug)]
pub struct Up {
    /// Where to listen, 9P over TLS; port 0 picks one [default: `[::]:17020`]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Vec<String>,
    /// Export this too, until it is down
    #[arg(long, value_name = "NAME=PATH[:ro]")]
    pub export: Vec<Export>,
    /// Return when it is ready, and serve in the background
    #[arg(long)]
    pub daemon: bool,
    /// Serve 9P here without encryption or keys: unix!PATH or tcp!127.0.0.1!564
    #[arg(long, value_name = "DIAL")]
    pub plain: Vec<String>,
    /// What is kept in the home at most of the files that commands read of their callers, for the next ones; 0: nothing
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(..=1 << 20))]
    pub disk_cache: u64,
}

/// `slashn export`
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// The name that others see, the directory, and `:ro` if nobody may change it
    #[arg(value_name = "NAME=PATH[:ro]")]
    pub export: Export,
}

/// `slashn unexport`
#[derive(Args, Debug)]
pub struct Unexport {
    /// The name that others see
    pub name: String,
}

/// `slashn allow`
#[derive(Args, Debug)]
pub struct Allow {
    /// The public key, as a line of a .pub file
    #[arg(value_name = "KEY LINE")]
    pub key: String,
    /// Only this export, and no commands
    #[arg(long, value_name = "EXPORT[:ro]", value_parser = only)]
    pub only: Vec<Only>,
}

/// `slashn deny`
#[derive(Args, Debug)]
pub struct Deny {
    /// The key's fingerprint, as `slashn allowed` prints it
    #[arg(value_name = "SHA256:FINGERPRINT", value_parser = fingerprint)]
    pub fingerprint: String,
}

/// `slashn add`
#[derive(Args, Debug)]
pub struct Add {
    /// What to call the node: its name under /n
    pub name: NodeName,
    /// Where it listens
    #[arg(value_name = "ADDR:PORT")]
    pub address: HostPort,
    /// The fingerprint of its key, as `slashn up` printed it there
    #[arg(long, value_name = "SHA256:FINGERPRINT", value_parser = fingerprint)]
    pub key: Option<String>,
    /// How much of this machine its commands for me may reach: cwd, home or all
    #[arg(long, default_value_t, value_name = "cwd|home|all")]
    pub trust: Trust,
}

/// `slashn remove`
#[derive(Args, Debug)]
pub struct Remove {
    /// The node
    pub name: NodeName,
}

/// `slashn mount`
#[derive(Args, Debug)]
pub struct Mount {
    /// Where [default: /n if I may write it, else ~/n]
    pub dir: Option<PathBuf>,
    /// A namespace file instead of /etc/slashn/namespace and the home's: see `slashn man ns`
    #[arg(long, value_name = "FILE")]
    pub ns: Option<PathBuf>,
    /// How long programs wait for a node that was lost, before they are told that it cannot be reached
    #[arg(long, value_name = "SECONDS", default_value_t = crate::dial::MOUNT_TIMEOUT.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// For every user of this machine, each with the rights that owner, group and mode give: as root, or where
    /// /etc/fuse.conf says user_allow_other
    #[arg(long)]
    pub all_users: bool,
    /// Not the grid but this one tree of it, as beta/fs/files: plain files that nobody changes but through this mount.
    /// Files are then opened, closed and locked without asking, and what is written is there when write(2) returns
    #[arg(long, value_name = "NODE/fs/TREE", conflicts_with = "ns")]
    pub single_writer: Option<TreePath>,
    /// What is kept in memory at most of what was read, is read ahead, or is on its way
    #[arg(long, value_name = "MIB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(16..=65_536))]
    pub cache: u64,
    /// What is kept in the home at most of what was read, for the next mount; 0: nothing
    #[arg(long, value_name = "MIB", default_value_t = 1024, value_parser = clap::value_parser!(u64).range(..=1 << 20))]
    pub disk_cache: u64,
    /// Stay, and end when it is unmounted
    #[arg(long)]
    pub foreground: bool,
}

/// `slashn unmount`
#[derive(Args, Debug)]
pub struct Unmount {
    /// Where [default: as `slashn mount`]
    pub dir: Option<PathBuf>,
}

/// `slashn run`
#[derive(Args, Debug)]
pub struct Run {
    /// A namespace file instead of /etc/slashn/namespace and the home's: see `slashn man ns`
    #[arg(long, value_name = "FILE")]
    pub ns: Option<PathBuf>,
    /// A mount for this command alone, and not the one of commands that have the same namespace
    #[arg(long)]
    pub alone: bool,
    /// Where others that are to have the same namespace come in
    #[arg(long, hide = true)]
    pub door: Option<PathBuf>,
    /// The command and its arguments [default: my shell]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<OsString>,
}

/// `slashn bind`
#[derive(Args, Debug)]
pub struct Bind {
    /// After what is there
    #[arg(short)]
    pub after: bool,
    /// Before what is there
    #[arg(short, conflicts_with = "after")]
    pub before: bool,
    /// New files are made in it
    #[arg(short)]
    pub create: bool,
    /// Its contents may be cached
    #[arg(short = 'C')]
    pub cache: bool,
    /// Directories of one name, in it and in what else was bound so, are one
    #[arg(short)]
    pub merge: bool,
    /// The same, and what is removed from others behind it is marked in it, as `.wh.NAME`, and not there any more
    #[arg(short = 'w')]
    pub marks: bool,
    /// Say nothing if it cannot be done
    #[arg(short)]
    pub quiet: bool,
    /// What
    pub new: String,
    /// Where
    pub old: String,
    /// What is changed [default: within `slashn run` that command's namespace; else the mount that OLD is in, or else
    /// that of `slashn mount`]
    #[arg(long = "mount", value_name = "DIR")]
    pub mount: Option<PathBuf>,
}

/// `slashn unbind`
#[derive(Args, Debug)]
pub struct Unbind {
    /// What, if not all of it, and where
    #[arg(required = true, num_args = 1..=2, value_names = ["NEW", "OLD"])]
    pub paths: Vec<String>,
    /// What is changed [default: within `slashn run` that command's namespace; else the mount that OLD is in, or else
    /// that of `slashn mount`]
    #[arg(long = "mount", value_name = "DIR")]
    pub mount: Option<PathBuf>,
}

/// `slashn ns`
#[derive(Args, Debug)]
pub struct Ns {
    /// A mount point, or a process in a namespace [default: as `slashn mount`]
    #[arg(value_name = "DIR|PID")]
    pub of: Option<OsString>,
}

/// `slashn ps`
#[derive(Args, Debug)]
pub struct Ps {
    /// Those too that have ended, as long as their nodes know them
    #[arg(short = 'A')]
    pub all: bool,
    /// Only on these nodes
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
}

/// `slashn top`
#[derive(Args, Debug)]
pub struct Top {
    /// Seconds until it is drawn anew
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    pub delay: f64,
    /// Only these nodes
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
}

/// A time that a person can watch.
fn seconds(text: &str) -> std::result::Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    seconds.ok_or_else(|| "it is a number of seconds, from 0.1 to 3600".into())
}

/// `slashn kill`
#[derive(Args, Debug)]
pub struct Kill {
    /// Which signal [default: TERM]
    #[arg(short, value_name = "SIG")]
    pub signal: Option<String>,
    /// The commands, as `slashn ps` prints them
    #[arg(required = true, value_name = "[-SIG] NODE/SESSION", allow_hyphen_values = true)]
    pub words: Vec<String>,
}

impl Kill {
    /// The signal, and to which commands. Errors: one of them is none.
    pub fn parsed(&self) -> Result<(i32, Vec<SessionName>)> {
        const STEP: &str = "kill";
        let (first, rest) = self.words.split_first().map_or((None, &[][..]), |(first, rest)| (Some(first), rest));
        let dashed = first.and_then(|word| word.strip_prefix('-'));
        let (word, names) = match (&self.signal, dashed) {
            (Some(signal), _) => (signal.as_str(), &self.words[..]),
            (None, Some(word)) => (word, rest),
            (None, None) => ("TERM", &self.words[..]),
        };
        let signal = cpuserver::client::signal_number(word.to_uppercase().as_bytes());
        let usage = |thing: &str, reason: &str| Error::new(STEP, thing, reason).status(2).remedy("slashn kill --help");
        let signal = signal.ok_or_else(|| usage(word, "there is no such signal"))?;
        if names.is_empty() {
            return Err(usage(&format!("-{word}"), "which command?"));
        }
        let parsed = |name: &String| name.parse().map_err(|reason: String| usage(name, &reason));
        Ok((signal, names.iter().map(parsed).collect::<Result<_>>()?))
    }
}

/// `slashn wait`
#[derive(Args, Debug)]
pub struct Wait {
    /// The command, as `slashn ps` and `rcpu -d` print it
    #[arg(value_name = "NODE/SESSION")]
    pub session: SessionName,
}

/// `slashn attach`
#[derive(Args, Debug)]
pub struct Attach {
    /// The command, as `slashn ps` and `rcpu -d` print it
    #[arg(value_name = "NODE/SESSION")]
    pub session: SessionName,
}

/// `slashn completions`
#[derive(Args, Debug)]
pub struct Completions {
    /// The shell
    pub shell: clap_complete::Shell,
}

/// `slashn man`
#[derive(Args, Debug)]
pub struct Man {
    /// A command of slashn, `rcpu` or `9p`
    pub command: Option<String>,
}

/// `slashn agent`
#[derive(Args, Debug)]
pub struct Agent {
    /// Stop the one that runs
    #[arg(long)]
    pub stop: bool,
}

/// One file of one 9P server, without a mount.
///
/// The server is -a ADDR: unix!PATH, tcp!HOST!PORT, tls!HOST!PORT, or the name of a node that I know. Without -a, PATH
/// begins with that name: `9p ls alpha/fs`.
#[derive(Debug, Parser)]
#[command(name = "9p", version, arg_required_else_help = true)]
pub struct Nine {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// The server: unix!PATH, tcp!HOST!PORT, tls!HOST!PORT, or a node's name
    #[arg(short = 'a', value_name = "ADDR")]
    pub address: Option<String>,
    /// What to attach to there
    #[arg(short = 'A', value_name = "ANAME", default_value = "")]
    pub aname: OsString,
    /// Print the 9P messages on standard error
    #[arg(short = 'D')]
    pub dump: bool,
    /// What to do
    #[command(subcommand)]
    pub action: NineAction,
}

/// What `9p` does with a file.
#[derive(Debug, Subcommand)]
pub enum NineAction {
    /// List directories
    Ls {
        /// With mode, links, owner, group, size and time of change
        #[arg(short)]
        long: bool,
        /// A directory itself, not what is in it
        #[arg(short)]
        directory: bool,
        /// Files and directories
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<OsString>,
    },
    /// Print a file, as long as it goes on
    Read {
        /// The file
        path: OsString,
    },
    /// Write standard input to a file; a regular file is cut to that, or made
    Write {
        /// Add to the file's end instead
        #[arg(long)]
        append: bool,
        /// Line by line, each in one message, as control files want it
        #[arg(short)]
        lines: bool,
        /// The file
        path: OsString,
    },
    /// All that is known of files
    Stat {
        /// The files
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<OsString>,
    },
    /// Remove files, and directories that are empty
    Rm {
        /// The files
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<OsString>,
    },
    /// Make directories
    Mkdir {
        /// The directories
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<OsString>,
    },
    /// Talk to a file: standard input goes in, what it says comes out, until it ends
    Con {
        /// The file
        path: OsString,
    },
}

fn fingerprint(text: &str) -> Result<String, String> {
    check_fingerprint(text).map(|()| text.to_owned())
}

fn only(text: &str) -> Result<Only, String> {
    match &parse_only(text)?[..] {
        [one] => Ok(one.clone()),
        _ => Err("it is one export; give --only again for another".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_lines_are_consistent() {
        Slashn::command().debug_assert();
        Rcpu::command().debug_assert();
        Nine::command().debug_assert();
    }
}
