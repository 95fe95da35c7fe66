//! What can be typed after `rcpu`: where a command runs, with what, and what becomes of its output.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use fileserver::caller::Expose;

use super::Global;
use crate::commands::rcpu::{Forward, Lend, Requirements, Where};
use crate::error::{Error, Result};

/// Run a command on a node as if it were here: my files, directory, environment, terminal, exit status.
///
/// The exit status is the command's; 128+N if signal N ended it; 255 if the connection was lost or it never started,
/// with the reason on standard error.
///
/// On several nodes (alpha,beta; -a with -n; -A) it runs at the same time, each line of its output has the node's name
/// before it, how each ended is said at the end, and the exit status is the worst. ^C goes to all; a second ^C kills
/// them. They read nothing, unless --copy-stdin has all of them read all of standard input.
///
/// --each runs the command once for each line of standard input that is not empty, which replaces each {} in it or is
/// its last argument, on whichever of the nodes has most room. What certainly never started is tried on another node.
#[derive(Debug, Parser)]
#[command(
    name = "rcpu",
    version,
    override_usage = "rcpu [OPTIONS] NODE [--] [COMMAND]...\n       \
        rcpu [OPTIONS] {NODE,NODE... | -a REQUIREMENTS [-n N] | -A} [--each] [--] COMMAND..."
)]
pub struct Rcpu {
    /// What every command takes.
    #[command(flatten)]
    pub global: Global,
    /// With a terminal, also when standard input is none
    #[arg(short = 't', overrides_with = "no_tty")]
    pub tty: bool,
    /// Without a terminal
    #[arg(short = 'T')]
    pub no_tty: bool,
    /// Print NODE/SESSION once it runs, and leave it running: `slashn ps`, `attach`, `wait`, `kill`. My files are still
    /// served from here: `slashn agent --stop` ends it
    #[arg(short = 'd', conflicts_with = "tty")]
    pub detach: bool,
    /// On the least busy node that is all of REQUIREMENTS, words like arch=x86_64, cores>=4, load<0.5, mem>=2G (that
    /// are available), name!=pi; '' for any node
    #[arg(short = 'a', value_name = "REQUIREMENTS")]
    pub any: Option<Requirements>,
    /// On N such nodes; without it, --each takes all of them
    #[arg(short = 'n', value_name = "N", requires = "any", value_parser = clap::value_parser!(u32).range(1..))]
    pub count: Option<u32>,
    /// On all nodes that I know
    #[arg(short = 'A', conflicts_with = "any")]
    pub all: bool,
    /// Once for each line of standard input, {} being the line
    #[arg(long, conflicts_with_all = ["tty", "detach"])]
    pub each: bool,
    /// What is between NULs, not lines (find -print0)
    #[arg(short = '0', long, requires = "each")]
    pub null: bool,
    /// At most N at once [default: with --each as many as the nodes have cores, else all]
    #[arg(short = 'j', long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub jobs: Option<u32>,
    /// Print the output of each as a whole, in the order of the nodes or lines
    #[arg(short = 'k', long)]
    pub keep_order: bool,
    /// Keep the output in DIR/NODE/stdout, stderr and status, with --each in DIR/NUMBER-OF-THE-LINE/...
    #[arg(long, value_name = "DIR", conflicts_with = "keep_order")]
    pub output_dir: Option<PathBuf>,
    /// The node's name before each line of the output, or not [default: yes on several nodes, no with --each]
    #[arg(long, value_name = "yes|no", num_args = 0..=1, default_missing_value = "yes", require_equals = true)]
    pub label: Option<YesNo>,
    /// All of standard input for each of several nodes, as fast as the slowest takes it
    #[arg(long, conflicts_with = "each")]
    pub copy_stdin: bool,
    /// Do not say at the end how things went, but for what failed
    #[arg(short, long)]
    pub quiet: bool,
    /// A namespace file instead of /etc/slashn/namespace and the home's, for what is not the node's: see `slashn man
    /// ns`
    #[arg(long, value_name = "FILE")]
    pub ns: Option<PathBuf>,
    /// Whose programs it runs: mine, or the node's own, with my home and directory where they are [default: mine, or
    /// the node's where it cannot run mine, which is said then]
    #[arg(long, value_name = "caller|node")]
    pub root: Option<RootOf>,
    /// While it runs, what connects to PORT here (of BIND, else of localhost) is connected by the node to HOST:PORT; a
    /// path is a unix socket
    #[arg(short = 'L', value_name = "[BIND:]PORT:HOST:PORT")]
    pub forward: Vec<Forward>,
    /// While it runs, what connects to PORT there (of BIND, else of localhost) is connected to HOST:PORT from here; a
    /// path is a unix socket, where the command sees it
    #[arg(short = 'R', value_name = "[BIND:]PORT:HOST:PORT")]
    pub back: Vec<Forward>,
    /// My ssh-agent is its own while it runs: --forward agent
    #[arg(short = 'S')]
    pub agent: bool,
    /// My display is its own while it runs: --forward x11, or wayland (by waypipe), or both
    #[arg(short = 'X')]
    pub x11: bool,
    /// Lend it something of mine while it runs: agent (my ssh-agent), x11 and wayland (my display), rcpu (my nodes and my key to
    /// reach them, for slashn and rcpu there; a node that I trust `all` has that unless no-rcpu is said), a unix socket
    /// by its PATH, which is the same there, L:... and R:... as -L and -R
    #[arg(long = "forward", value_name = "WHAT")]
    pub lend: Vec<Lend>,
    /// Let the node reach this too, whatever its trust level hides; of another node an export, /n/NODE/fs/EXPORT
    #[arg(long, value_name = "PATH[:ro]")]
    pub expose: Vec<Expose>,
    /// Set a variable of its environment, or send one that is not sent by itself
    #[arg(short = 'e', value_name = "VAR[=VALUE]")]
    pub env: Vec<OsString>,
    /// How long the link to its node may be cut until it is given up; meanwhile all that it does there waits
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub away: u64,
    /// Bound it: cpus=1.5, memory=2G, processes=100, time=60s, io=50 (100 is usual) for it and all that it starts, or
    /// what setrlimit(2) knows, in lower case, for each process (nofile=1024)
    #[arg(long, value_name = "NAME=VALUE", value_delimiter = ',')]
    pub limit: Vec<Limit>,
    /// Its working directory [default: mine]
    #[arg(short = 'C', value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The node, a name from `slashn nodes`, unless -a or -A says which; the command and its arguments [default: my
    /// shell, on a terminal]
    #[arg(value_name = "NODE COMMAND", trailing_var_arg = true)]
    pub words: Vec<OsString>,
}

/// `NAME=VALUE` of `rcpu --limit`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Limit(String);

impl Limit {
    /// The line of a session's file `limits`.
    pub fn line(&self) -> String {
        format!("{}\n", self.0)
    }
}

impl std::str::FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let line = text.replacen('=', " ", 1);
        if text.contains('=') && cpuserver::client::is_limit(&line) {
            return Ok(Self(line));
        }
        Err(match text.split('=').next().unwrap_or_default() {
            "cpus" => "cpus is a number of processors, such as 1.5",
            "memory" => "memory is a number of bytes, or with K, M, G or T, such as 2G",
            "processes" => "processes is a number, such as 100",
            "time" => "time is a number of seconds, or with m, h or d, such as 90 or 2h",
            "io" => "io is a weight from 1 to 1000, of which 100 is usual",
            "as" | "core" | "cpu" | "data" | "fsize" | "memlock" | "nofile" | "nproc" | "stack" => {
                "it is a number, or unlimited, as setrlimit(2) counts it"
            }
            _ => "it is cpus=N, memory=SIZE, processes=N, time=SECONDS, io=WEIGHT, or nofile=N and the like",
        }
        .into())
    }
}

/// `caller` or `node`
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
#[allow(missing_docs, reason = "they are what they are called")]
pub enum RootOf {
    Caller,
    Node,
}

/// `yes` or `no`
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
#[allow(missing_docs, reason = "they are what they are called")]
pub enum YesNo {
    Yes,
    No,
}

impl Rcpu {
    /// Where to run, and what; no words are my shell. Errors: that makes no sense.
    pub fn parsed(&self) -> Result<(Where, Vec<OsString>)> {
        let usage = |thing: &str, reason: &str| Error::new("run", thing, reason).status(2).remedy("rcpu --help");
        let (place, mut rest) = match (&self.any, self.all) {
            (Some(wanted), _) => {
                let count = self.count.or_else(|| (!self.each).then_some(1));
                (Where::Fitting(wanted.clone(), count.map(|count| count as usize)), &self.words[..])
            }
            (None, true) => (Where::All, &self.words[..]),
            (None, false) => {
                let (first, rest) = self.words.split_first().ok_or_else(|| usage("NODE", "which node?"))?;
                (Where::Named(names(first).map_err(|reason| usage(&first.to_string_lossy(), reason))?), rest)
            }
        };
        if rest.first().is_some_and(|word| word == "--") {
            rest = &rest[1..];
        } else if let Some(option) = rest.first().filter(|word| word.as_encoded_bytes().starts_with(b"-"))
            && matches!(place, Where::Named(_))
        {
            let (option, node) = (option.to_string_lossy(), self.words[0].to_string_lossy());
            let reason = format!("options go before the node: {option} ... {node}");
            return Err(usage(&option, &reason).remedy(format!("rcpu {option} ... {node}; or {node} -- {option}")));
        }
        if rest.is_empty() && (self.each || self.detach || !self.is_for_one()) {
            return Err(usage("COMMAND", "which command?"));
        }
        if self.locals().next().is_some() && (self.detach || !self.is_for_one()) {
            return Err(usage("-L", "it is for one command that is not left alone"));
        }
        let lent = self.agent || self.x11 || self.remotes().next().is_some();
        let named = self.lend.iter().any(|lend| !matches!(lend, Lend::Local(_) | Lend::Rcpu(false)));
        if self.detach && (lent || named) {
            return Err(usage("--forward", "a command that is left alone has nobody here to lend it anything"));
        }
        if self.tty && !self.is_for_one() {
            return Err(usage("-t", "there is one terminal, and there are several nodes"));
        }
        Ok((place, rest.to_vec()))
    }

    /// Whether it is for one node, and thus as if it were here.
    pub fn is_for_one(&self) -> bool {
        let several = self.words.first().is_some_and(|word| word.as_encoded_bytes().contains(&b','));
        !self.each && if self.any.is_some() { self.count.is_none_or(|count| count == 1) } else { !self.all && !several }
    }

    /// What is to listen here.
    pub fn locals(&self) -> impl Iterator<Item = &Forward> {
        self.forward.iter().chain(self.lend.iter().filter_map(|lend| match lend {
            Lend::Local(forward) => Some(forward),
            _ => None,
        }))
    }

    /// What is to listen there.
    pub fn remotes(&self) -> impl Iterator<Item = &Forward> {
        self.back.iter().chain(self.lend.iter().filter_map(|lend| match lend {
            Lend::Remote(forward) => Some(forward),
            _ => None,
        }))
    }

    /// Whether the node's name is before each line; `usual` unless that was said.
    pub fn labels(&self, usual: bool) -> bool {
        self.label.map_or(usual, |label| label == YesNo::Yes)
    }
}

/// The nodes of `NODE,NODE...`.
fn names(word: &std::ffi::OsStr) -> Result<Vec<String>, &'static str> {
    let text = word.to_str().ok_or("that is no name of a node")?;
    let names: Vec<String> = text.split(',').map(str::to_owned).collect();
    match names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
        Some(_) => Err("a node is there twice"),
        None if names.iter().any(String::is_empty) => Err("which node?"),
        None => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_rcpu_runs_is_what_was_named_or_all_or_what_fits() {
        let parsed = |words: &[&str]| {
            let typed = Rcpu::try_parse_from([&["rcpu"], words].concat()).unwrap();
            typed.parsed().map(|(place, command)| (place, command, typed.is_for_one()))
        };
        let named = |names: &[&str]| Where::Named(names.iter().map(|&name| name.to_owned()).collect());
        let one: &[OsString] = &["w".into(), "-h".into()];
        assert_eq!(parsed(&["beta", "w", "-h"]).unwrap(), (named(&["beta"]), one.to_vec(), true));
        assert_eq!(parsed(&["a,b", "--", "w", "-h"]).unwrap(), (named(&["a", "b"]), one.to_vec(), false));
        assert_eq!(parsed(&["-A", "--", "w", "-h"]).unwrap(), (Where::All, one.to_vec(), false));
        let any = |count| Where::Fitting(Requirements::default(), count);
        assert_eq!(parsed(&["-a", "", "w", "-h"]).unwrap(), (any(Some(1)), one.to_vec(), true));
        assert_eq!(parsed(&["-a", "", "-n", "3", "w", "-h"]).unwrap(), (any(Some(3)), one.to_vec(), false));
        assert_eq!(parsed(&["-a", "", "--each", "w", "-h"]).unwrap(), (any(None), one.to_vec(), false));
        assert_eq!(parsed(&["-A", "-j2", "-C/tmp", "w", "-h"]).unwrap(), (Where::All, one.to_vec(), false));
        assert_eq!(parsed(&["beta"]).unwrap(), (named(&["beta"]), Vec::new(), true));
        for wrong in [&[][..], &[""], &["a,b"], &["-A"], &["a,a", "w"], &["a,,b", "w"], &["-t", "a,b", "w"]] {
            assert_eq!(parsed(wrong).unwrap_err().exit_status(), 2, "{wrong:?}");
        }
        for wrong in [&["-n", "2", "w"][..], &["-A", "-a", "", "w"], &["-a", "gpus>1", "w"], &["-0", "a", "w"]] {
            assert!(Rcpu::try_parse_from([&["rcpu"], wrong].concat()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_limit_that_is_none_is_told_what_it_would_be() {
        let said = |limit: &str| limit.parse::<Limit>().unwrap_err();
        assert_eq!("memory=2G".parse::<Limit>().unwrap().line(), "memory 2G\n");
        assert!(said("memory=lots").contains("2G") && said("time").contains("seconds"));
        assert!(said("nofile=x").contains("unlimited") && said("gpus=1").contains("cpus=N"));
    }

    #[test]
    fn flags_after_the_command_of_rcpu_are_the_commands() {
        let typed = Rcpu::try_parse_from(["rcpu", "-T", "beta", "ls", "-t", "--home", "x"]).unwrap();
        assert_eq!(typed.parsed().unwrap().1, ["ls", "-t", "--home", "x"]);
        assert!(!typed.tty && typed.global.home.is_none());
        let typed = Rcpu::try_parse_from(["rcpu", "beta", "--", "sh", "-c", "exit 7"]).unwrap();
        assert_eq!(typed.parsed().unwrap().1, ["sh", "-c", "exit 7"]);
    }
}
