//! What is to be run, and how it is said to a session: one text of ctl commands.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::session::Limits;
use crate::travel::is_abroad;
use crate::words::quote;

/// The most that arguments and environment have together when they are said in the one message with the rest: every
/// server takes a message that is a little larger.
const CTL_MAX: usize = 60 << 10;

/// A command and what it runs with.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The program, looked up in the `PATH` of `env` where it has no slash, and its arguments.
    pub argv: Vec<Vec<u8>>,
    /// `NAME=VALUE` each; see [`environment`].
    pub env: Vec<Vec<u8>>,
    /// Where it starts, as the command's namespace has it.
    pub cwd: Vec<u8>,
    /// Permission bits that new files do not get.
    pub umask: u32,
    /// The uid and gid that the command sees itself as: the caller's. `None`: whoever the node runs as.
    pub user: Option<(u32, u32)>,
    /// The namespace file; see [`default_ns`]. Empty: the node's own root.
    pub ns: String,
    /// The nodes that it may name, and that are in its `#grid`: lines as in known_nodes.
    pub nodes: String,
    /// The rows and columns of a terminal for it; without, it gets pipes.
    pub terminal: Option<(u16, u16)>,
    /// Added to its niceness.
    pub nice: i32,
    /// What bounds it: lines as the session's file `limits` takes them.
    pub limits: String,
    /// Where it finds its caller: addresses as the session's file `listen` takes them.
    pub listen: Vec<String>,
    /// Small files that it finds, at paths in its own /run, and what is in each.
    pub files: Vec<(String, Vec<u8>)>,
}

impl Request {
    /// Whether the namespace has something of the caller's.
    pub(super) fn needs_caller(&self) -> bool {
        let lines = ns::text::parse(&self.ns, ns::text::PEER_LINES, &|_| Some("/".into())).unwrap_or_default();
        let is_callers = |server: &str| server == "caller" || is_abroad(server);
        lines.iter().any(|line| matches!(line, ns::text::Line::Mount { server, .. } if is_callers(server)))
    }

    /// Whether the arguments and the environment are too much for one message: they are then said to their own files.
    pub(super) fn is_large(&self) -> bool {
        let bytes = |list: &[Vec<u8>]| list.iter().map(|item| item.len() + 1).sum::<usize>();
        bytes(&self.argv) + bytes(&self.env) > CTL_MAX
    }

    /// The ctl commands that say all this, but for what [`Request::is_large`], and after that `verbs`.
    pub(super) fn to_ctl(&self, verbs: &[&str]) -> Vec<u8> {
        let mut text = Vec::new();
        let mut say = |verb: &str, words: &[&[u8]]| {
            text.extend_from_slice(verb.as_bytes());
            for word in words {
                text.push(b' ');
                quote(word, &mut text);
            }
            text.push(b'\n');
        };
        let number = |n: u32| n.to_string().into_bytes();
        if let Some((uid, gid)) = self.user {
            say("user", &[&number(uid), &number(gid)]);
        }
        say("umask", &[format!("{:o}", self.umask).as_bytes()]);
        if self.nice != 0 {
            say("nice", &[self.nice.to_string().as_bytes()]);
        }
        if !self.limits.is_empty() {
            say("limits", &[self.limits.as_bytes()]);
        }
        if let Some((rows, cols)) = self.terminal {
            say("pty", &[]);
            say("winsize", &[&number(rows.into()), &number(cols.into())]);
        }
        if !self.listen.is_empty() {
            say("listen", &self.listen.iter().map(String::as_bytes).collect::<Vec<_>>());
        }
        self.files.iter().for_each(|(path, text)| say("give", &[path.as_bytes(), text]));
        say("cwd", &[&self.cwd]);
        say("ns", &[self.ns.as_bytes()]);
        if !self.nodes.is_empty() {
            say("nodes", &[self.nodes.as_bytes()]);
        }
        if !self.is_large() {
            say("env", &self.env.iter().map(Vec::as_slice).collect::<Vec<_>>());
            say("args", &self.argv.iter().map(Vec::as_slice).collect::<Vec<_>>());
        }
        verbs.iter().for_each(|verb| say(verb, &[]));
        text
    }
}

/// Whether the variable `name` stays at home unless it is forwarded: it names a socket or a display of the caller's.
fn stays(name: &[u8]) -> bool {
    name.starts_with(b"DBUS_")
        || matches!(name, b"SSH_AUTH_SOCK" | b"DISPLAY" | b"WAYLAND_DISPLAY" | b"XAUTHORITY" | b"XDG_RUNTIME_DIR")
}

/// The environment of a command: `all` of the caller's without what means nothing elsewhere (`SSH_AUTH_SOCK`,
/// `DISPLAY`, `WAYLAND_DISPLAY`, `XAUTHORITY`, `DBUS_*`, `XDG_RUNTIME_DIR`), and with `chosen`: `NAME=VALUE` sets a
/// variable, `NAME` alone forwards it after all.
pub fn environment(all: impl IntoIterator<Item = (OsString, OsString)>, chosen: &[OsString]) -> Vec<Vec<u8>> {
    let chosen = || chosen.iter().map(|item| item.as_bytes());
    let set = || chosen().filter_map(|item| item.iter().position(|&byte| byte == b'=').map(|end| &item[..end]));
    let mut env: Vec<Vec<u8>> = all
        .into_iter()
        .map(|(name, value)| (name.into_vec(), value.into_vec()))
        .filter(|(name, _)| !set().any(|set| set == name) && (!stays(name) || chosen().any(|item| item == name)))
        .map(|(name, value)| [&name[..], b"=", &value].concat())
        .collect();
    env.extend(chosen().filter(|item| item.contains(&b'=')).map(<[u8]>::to_vec));
    env
}

/// Whether `line` is one that bounds a command: see [`Request::limits`].
pub fn is_limit(line: &str) -> bool {
    !line.trim().is_empty() && !line.contains('\n') && Limits::parse(line.as_bytes()).is_ok()
}

/// What a job has of the node whatever its root is: what is the kernel's, and the node's exports.
fn of_the_node(node_name: &str) -> String {
    format!(
        "mount '#proc' /proc\nmount '#sys' /sys\nmount '#dev' /dev\nmount '#run' /run\nmount '#fs' /n/{node_name}/fs\n"
    )
}

/// The default namespace: the caller's root, and from the node called `node_name` what is tied to it. New files in /tmp
/// are made on the node and go with the session; the caller's are seen behind them.
pub fn default_ns(node_name: &str) -> String {
    let mut text = String::from("mount -c caller /\nmount -bc '#tmp' /tmp\n") + &of_the_node(node_name);
    for path in ["/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/lib/modules"] {
        text += &format!("mount '#host{path}' {path}\n");
    }
    text + "mount caller /mnt/term\n"
}

/// The namespace of `--root node`: the software of the node called `node_name`, and the caller's directories `mine`
/// (its home and where it works), each at its own path; but for what the node may not see.
pub fn node_root_ns(node_name: &str, mine: &[&str]) -> String {
    let mut text = String::from("mount '#root' /\n") + &of_the_node(node_name) + "mount caller /mnt/term\n";
    for path in mine {
        let (from, to) = (quoted(&format!("/mnt/term{path}")), quoted(path));
        text += &format!("bind -cq {from} {to}\n");
    }
    text
}

fn quoted(word: &str) -> String {
    let mut text = Vec::new();
    quote(word.as_bytes(), &mut text);
    String::from_utf8(text).unwrap_or_else(|_| word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::Ctl;

    #[test]
    fn a_command_reads_back_as_it_was_said() {
        let command = Request {
            argv: vec![b"sh".to_vec(), b"-c".to_vec(), b"echo 'a b'\nexit 7".to_vec(), b"".to_vec()],
            env: vec![b"A=it's".to_vec(), b"B=\xff".to_vec()],
            cwd: b"/a b".to_vec(),
            umask: 0o27,
            user: Some((1000, 100)),
            ns: default_ns("beta"),
            nodes: "alpha h:1 home KEY 'x'\n".into(),
            terminal: Some((24, 80)),
            nice: 5,
            limits: "time 5\n".into(),
            listen: vec!["unix!/run/slashn/a b".into()],
            files: vec![("/run/slashn/f".into(), b"\x01\x00'".to_vec())],
        };
        let said = Ctl::parse(&command.to_ctl(&["exec"])).unwrap();
        let expected = [
            Ctl::User(1000, 100),
            Ctl::Umask(0o27),
            Ctl::Nice(5),
            Ctl::Limits(b"time 5\n".to_vec()),
            Ctl::Pty,
            Ctl::Winsize(24, 80),
            Ctl::Listen(vec![b"unix!/run/slashn/a b".to_vec()]),
            Ctl::Give(b"/run/slashn/f".to_vec(), b"\x01\x00'".to_vec()),
            Ctl::Cwd(command.cwd.clone()),
            Ctl::Ns(command.ns.clone().into_bytes()),
            Ctl::Nodes(command.nodes.clone().into_bytes()),
            Ctl::Env(command.env.clone()),
            Ctl::Args(command.argv.clone()),
            Ctl::Exec,
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn what_names_a_socket_or_a_display_stays_at_home_unless_forwarded() {
        let all = ["HOME", "DISPLAY", "SSH_AUTH_SOCK", "DBUS_SESSION_BUS_ADDRESS", "XDG_RUNTIME_DIR", "LANG"]
            .map(|name| (OsString::from(name), OsString::from("x")));
        let env = environment(all, &["DISPLAY".into(), "LANG=C".into(), "NEW=1".into()]);
        assert_eq!(env, ["HOME=x", "DISPLAY=x", "LANG=C", "NEW=1"].map(|item| item.as_bytes().to_vec()));
    }

    #[test]
    fn the_namespaces_parse_and_say_whether_they_need_the_caller() {
        let needs = |ns: String| Request { ns, ..Request::default() }.needs_caller();
        assert!(needs(default_ns("beta")));
        assert!(needs(node_root_ns("beta", &["/home/u", "/a b"])));
        assert!(needs("mount '#root' /\nmount '#grid' /n\n".into()) && needs("mount gpu1 /x\n".into()));
        assert!(!needs(String::new()) && !needs("mount '#root' /\n".into()));
        assert!(ns::text::parse(&node_root_ns("beta", &["/a b", "/it's"]), ns::text::PEER_LINES, &|_| None).is_ok());
    }
}
