//! A namespace that travels: what a command's namespace names, reached from the node that runs it.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::ControlFlow;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use node::grant::{self, Grant};
use node::keys::{self, SecretKey};
use p9::client::{self, Client};
use p9::transport::tls;
use p9::who::Only;
use p9::{Handle, How, Name, New, NodeRef, Tree, Want, What, Who};
use tests::as_both;
use tests::link::Proxy;
use tests::machine::{Done, Machine, PATIENCE, Text};
use tokio::io::AsyncWriteExt;
use tokio::runtime::Runtime;

as_both! {
    what_is_on_the_node_or_on_another_does_not_pass_through_the_caller
    a_node_that_cannot_be_reached_from_there_is_relayed
    what_executes_or_is_the_callers_is_relayed_by_the_caller
    what_a_node_is_lent_depends_on_trust_and_on_what_is_named
    a_grant_lets_in_its_holder_alone_to_what_it_says_and_until_it_is_over
}

/// Bytes of a large file.
const LARGE: u64 = 16 << 20;
/// The most that may pass through the caller while it is read.
const LITTLE: u64 = 1 << 20;

/// A grid of which I know beta by way of a proxy that counts.
fn counted(machine: &mut Machine, large: u64) -> (Runtime, Proxy) {
    let address = machine.node("beta");
    machine.node("gamma");
    for node in ["beta", "gamma"] {
        let make = format!("head -c {large} /dev/urandom >../files-{node}/large; echo {node} >../files-{node}/small");
        machine.run("sh", &["-c", &make]);
    }
    // To be read by /n, whatever it is called.
    trusts(machine, "all");
    let runtime = Runtime::new().unwrap();
    let proxy = runtime.block_on(Proxy::start(address.parse().unwrap(), Duration::ZERO)).unwrap();
    known_at(machine, "beta", proxy.address);
    (runtime, proxy)
}

/// From now on I know the node `name` at `address`.
fn known_at(machine: &Machine, name: &str, address: SocketAddr) {
    let known = fs::read_to_string(machine.at("me/known_nodes")).unwrap();
    let line = known.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
    let fields: Vec<&str> = line.split(' ').collect();
    let moved = known.replace(line, &format!("{name} {address} {}", fields[2..].join(" ")));
    fs::write(machine.at("me/known_nodes"), moved).unwrap();
}

/// From now on I trust every node as far as `level`.
fn trusts(machine: &Machine, level: &str) {
    let known = fs::read_to_string(machine.at("me/known_nodes")).unwrap();
    let mut fields: Vec<Vec<&str>> = known.lines().map(|line| line.split(' ').collect()).collect();
    fields.iter_mut().for_each(|line| line[2] = level);
    let lines: String = fields.iter().map(|line| line.join(" ") + "\n").collect();
    fs::write(machine.at("me/known_nodes"), lines).unwrap();
}

/// `rcpu beta sh -c SCRIPT`, where `ns` is the namespace file if it says anything.
fn beta(machine: &Machine, ns: &str, script: &str) -> std::process::Command {
    if ns.is_empty() {
        return machine.rcpu(&["beta", "sh", "-c", script]);
    }
    machine.write("ns", ns);
    machine.rcpu(&["--ns", "ns", "beta", "sh", "-c", script])
}

fn reads_large(machine: &mut Machine, large: u64) -> (Runtime, Proxy) {
    let (runtime, proxy) = counted(machine, large);
    let ns = "mount '#grid' /n\nmount beta /b fs/files\nmount gamma /c fs/files\nbind /n/beta/fs/files /bound\n";
    let read = |files: &str| {
        let before = proxy.carried();
        let counted = beta(machine, ns, &format!("cat {files} | wc -c")).succeeds().text();
        (counted.trim().parse::<u64>().unwrap(), proxy.carried() - before)
    };
    // The programs come from here, and stay there when they are old enough.
    let small = "/n/gamma/fs/files/small /n/beta/fs/files/small";
    read(small);
    let (_, programs) = read(small);
    for files in ["/n/beta/fs/files/large", "/b/large", "/bound/large", "/n/gamma/fs/files/large", "/c/large"] {
        let (counted, through) = read(files);
        assert_eq!(counted, large, "{files}");
        assert!(
            through < LITTLE + programs,
            "{files}: {through} bytes passed through the caller, {programs} for a start"
        );
    }
    // What the caller alone has passes through it, so it is counted.
    machine.run("sh", &["-c", &format!("head -c {LARGE} /dev/urandom >mine")]);
    let (counted, through) = read("mine");
    assert!(counted == LARGE && through > LARGE);
    (runtime, proxy)
}

fn what_is_on_the_node_or_on_another_does_not_pass_through_the_caller(mut machine: Machine) {
    let _proxy = reads_large(&mut machine, LARGE);
    // This node's own is the kernel's.
    let mounts = beta(&machine, "", "grep ' /n/beta/fs/files ' /proc/self/mountinfo; stat -c %U /n/*/fs/files/small");
    let (me, said) = (machine.run("id", &["-un"]).text(), mounts.succeeds_text());
    assert!(said.contains("/files-beta /n/beta/fs/files "), "{said}");
    assert!(said.ends_with(&format!("{me}{me}")), "{said}");
}

#[test]
#[ignore = "a gigabyte twice over: ./check --full"]
fn a_gigabyte_does_not_pass_through_the_caller() {
    reads_large(&mut Machine::root(), 1 << 30);
}

trait SucceedsText {
    fn succeeds_text(self) -> String;
}

impl SucceedsText for std::process::Command {
    fn succeeds_text(mut self) -> String {
        self.succeeds().text()
    }
}

/// A command on beta that says a line of `script` and then waits.
fn started(machine: &Machine, ns: &str, script: &str) -> (Child, String) {
    let mut command = beta(machine, ns, &format!("{script}; read line"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    (child, line)
}

fn goes(mut child: Child) {
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
}

/// The namespace of the command that runs on beta, as beta tells it.
fn told(machine: &Machine) -> String {
    let inside = machine.processes().into_iter().find(|line| line.split(' ').nth(1) == Some("sh")).unwrap();
    let pid = inside.split(' ').next().unwrap().to_string();
    let beta = machine.at("beta").display().to_string();
    machine.slashn(&["--home", &beta, "ns", &pid]).succeeds().text()
}

/// Something in front of a node that lets nobody through who comes with a grant.
struct Wall {
    address: SocketAddr,
    turned_away: Arc<AtomicU64>,
}

impl Wall {
    fn before(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, turned_away) = (listener.local_addr().unwrap(), Arc::<AtomicU64>::default());
        let count = turned_away.clone();
        std::thread::spawn(move || {
            for near in listener.incoming() {
                let (mut near, count) = (near.unwrap(), count.clone());
                std::thread::spawn(move || {
                    let mut hello = [0; 4096];
                    let length = near.read(&mut hello).unwrap_or(0);
                    if hello[..length].windows(8).any(|part| part == b"9p-grant") {
                        count.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    let Ok(mut far) = TcpStream::connect(to) else { return };
                    far.write_all(&hello[..length]).unwrap();
                    let (mut back, mut there) = (far.try_clone().unwrap(), near.try_clone().unwrap());
                    std::thread::spawn(move || std::io::copy(&mut back, &mut there));
                    let _ = std::io::copy(&mut near, &mut far);
                    let _ = far.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        Self { address, turned_away }
    }
}

fn a_node_that_cannot_be_reached_from_there_is_relayed(mut machine: Machine) {
    let (_runtime, proxy) = counted(&mut machine, LARGE);
    let known = fs::read_to_string(machine.at("me/known_nodes")).unwrap();
    let gamma = known.lines().find(|line| line.starts_with("gamma ")).unwrap().split(' ').nth(1).unwrap().to_string();
    let wall = Wall::before(gamma.parse().unwrap());
    known_at(&machine, "gamma", wall.address);
    let before = proxy.carried();
    let (child, line) = started(&machine, "", "cat /n/gamma/fs/files/large | wc -c; cat /n/beta/fs/files/small");
    assert_eq!(line.trim(), LARGE.to_string());
    assert!(proxy.carried() - before > LARGE);
    assert_eq!(wall.turned_away.load(Ordering::SeqCst), 1);
    let text = told(&machine);
    assert!(text.contains("\n# gamma: relayed by the caller, since from here: "), "{text}");
    assert!(text.contains("\nmount '#grid' /n\n"), "{text}");
    goes(child);
    // Where nothing is in between, it is dialled.
    known_at(&machine, "gamma", gamma.parse().unwrap());
    let (child, _) = started(&machine, "", "cat /n/gamma/fs/files/small; cat /n/beta/fs/files/small");
    let text = told(&machine);
    assert!(
        text.contains(&format!("\n# beta: this node\n# gamma: dialled from here, {gamma}, with a grant\n")),
        "{text}"
    );
    // The text, notes and all, makes the same namespace.
    let again = beta(&machine, &text, "cat /n/gamma/fs/files/small").succeeds_text();
    assert_eq!(again, "gamma\n");
    goes(child);
}

fn what_executes_or_is_the_callers_is_relayed_by_the_caller(mut machine: Machine) {
    machine.node("beta");
    machine.run("mkdir", &["mine", "../home/.ssh"]);
    machine.write("mine/f", "mine\n");
    machine.run("sh", &["-c", "echo secret >../home/.ssh/id_x"]);
    let hello = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/hello.py");
    let (work, home) = (machine.at("work"), machine.at("home"));
    let ns = format!(
        "mount 'exec!/usr/bin/python3 {hello}' /hello\nmount local!{0}/mine /m\nmount local!{0}/mine/f /f\n",
        work.display()
    );
    machine.run("sh", &["-c", "> f"]);
    let (child, line) = started(&machine, &ns, "cat /hello/self/pid");
    // It runs here, for the caller's agent: once.
    let ours = |part: &str| machine.processes().into_iter().filter(|line| line.contains(part)).collect::<Vec<_>>();
    let programs = ours("/usr/bin/python3 ");
    assert!(programs.len() == 1 && programs[0].starts_with(&format!("{} ", line.trim())), "{line} {programs:?}");
    let agent = ours(" agent");
    let parent = fs::read_to_string(format!("/proc/{}/status", line.trim())).unwrap();
    let parent = parent.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_string();
    assert!(agent[0].starts_with(&format!("{parent} ")), "{parent} {agent:?}");
    let text = told(&machine);
    assert!(text.contains(": relayed by the caller\nmount 'exec!"), "{text}");
    goes(child);
    let read = "cat /hello/hello /m/f /f; echo more >>/m/f";
    assert_eq!(beta(&machine, &ns, read).succeeds_text(), "hello, world\nmine\nmine\n");
    assert_eq!(fs::read_to_string(work.join("mine/f")).unwrap(), "mine\nmore\n");
    // What it may not reach by its own name it does not reach by another.
    let hidden = format!("mount -q local!{0}/.ssh /s\nmount local!{0} /h\n", home.display());
    let tried = "cat /s/id_x /h/.ssh/id_x 2>&1 | grep -c 'No such file'";
    assert_eq!(beta(&machine, &hidden, tried).succeeds_text(), "2\n");
    let error = beta(&machine, "mount local!/no/such /x\n", "true").exits(255);
    error.complains(&["run: beta: ", "mount local!/no/such: "]);
}

fn what_a_node_is_lent_depends_on_trust_and_on_what_is_named(mut machine: Machine) {
    machine.node("beta");
    let home = format!("home={}", machine.at("home").display());
    machine.node_with("gamma", &["--export", "root=/", "--export", &home]);
    machine.run("sh", &["-c", "echo gamma >../files-gamma/small; mkdir ../home/.ssh; echo secret >../home/.ssh/id_x"]);
    machine.run("sh", &["-c", "echo mine >../home/f"]);
    let n = machine.mount();
    let trusts = |level: &str| trusts(&machine, level);
    let named = "mount '#grid' /n\nmount -c gamma /g fs/files\n";
    let tried = "cat /n/gamma/fs/files/small; ls /n/gamma; touch /n/gamma/fs/files/made && rm /n/gamma/fs/files/made";
    // Of the grid, what each node exports as `home`: to be read.
    let of_home =
        "ls /n/gamma /n/gamma/fs; cat /n/gamma/fs/home/f; cat /n/gamma/fs/files/small; touch /n/gamma/fs/home/f";
    let error = beta(&machine, "", of_home).exits(1);
    assert_eq!(error.text(), "/n/gamma:\nfs\n\n/n/gamma/fs:\nhome\nmine\n");
    let errors = error.errors();
    assert!(errors.contains("small: No such file") && errors.contains("Read-only file system"), "{errors}");
    // What is exposed by its name, and what the namespace binds or mounts.
    let exposed = |what: &str, script: &str| machine.rcpu(&["--expose", what, "-v", "beta", "sh", "-c", script]);
    let done = exposed("/n/gamma/fs/files:ro", "cat /n/gamma/fs/files/small; touch /n/gamma/fs/files/small").exits(1);
    assert_eq!(done.text(), "gamma\n");
    let errors = done.errors();
    for said in
        ["lent   the export home of every node, to be read", "lent   gamma fs/files, to be read", "Read-only file"]
    {
        assert!(errors.contains(said), "{errors}");
    }
    exposed("/n/gamma/fs/files", "touch /n/gamma/fs/files/made && rm /n/gamma/fs/files/made").succeeds();
    for wrong in ["/n/gamma", "/n/gamma/fs/files/small", "/n/gamma/cpu/clone", "/n/nobody/fs/files"] {
        exposed(wrong, "true").exits(255).complains(&[wrong.split('/').nth(2).unwrap()]);
    }
    let bound = "mount '#grid' /n\nbind /n/gamma/fs/files /b\n";
    assert_eq!(beta(&machine, bound, "cat /b/small; ls /n/gamma/fs").succeeds_text(), "gamma\nfiles\nhome\n");
    trusts("all");
    // But for keys, and what else is hidden of the caller, too.
    let secret = format!("{}/.ssh/id_x", machine.at("home").display().to_string().trim_start_matches('/'));
    let there = format!(
        "cat /n/gamma/fs/files/small; cat /n/gamma/fs/root/{secret} 2>&1 | grep -o 'No such file'; ls -d /n/gamma/fs/root/etc"
    );
    assert_eq!(beta(&machine, "", &there).succeeds_text(), "gamma\nNo such file\n/n/gamma/fs/root/etc\n");
    assert_eq!(machine.run("cat", &[n.join("gamma/fs/root").join(&secret)]).text(), "secret\n");
    assert_eq!(beta(&machine, "", tried).succeeds_text(), "gamma\nfs\n");
    trusts("cwd");
    let error = beta(&machine, "", tried).exits(1).errors();
    assert!(error.contains("/n/gamma/fs/files/small: "), "{error}");
    // What is mounted by its name is lent, whatever the trust: that and no more.
    assert_eq!(beta(&machine, named, "cat /g/small; touch /g/made && rm /g/made").succeeds_text(), "gamma\n");
    let error = beta(&machine, "mount gamma /g cpu\n", "true").exits(255);
    error.complains(&["run: beta: ", "mount gamma: "]);
    let error = beta(&machine, "mount nobody /g\n", "true").exits(255);
    error.complains(&["run: ", "ns:1: mount nobody: no node of that name is known; try: slashn nodes"]);
    assert_eq!(beta(&machine, "mount -q nobody /g\n", "echo ran").succeeds_text(), "ran\n");
}

/// The key in the file `path` of a home.
fn key(machine: &Machine, path: &str) -> SecretKey {
    // A copy that is mine: another's key is not read.
    let copy = tempfile::NamedTempFile::new().unwrap();
    fs::write(&copy, fs::read(machine.at(path)).unwrap()).unwrap();
    keys::file::read(copy.path()).unwrap().unwrap()
}

/// What gamma, which listens at `address`, shows to `holder` with `grant`; and the connection.
async fn shown(address: &str, holder: &SecretKey, grant: &str) -> Result<(Vec<String>, Client, NodeRef), String> {
    let config = tls::client_config_by_grant(&holder.identity(), Arc::new(|_: &[u8]| true)).unwrap();
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut io, _) = tls::connect(tcp, config).await.unwrap();
    io.write_all(&grant::said(grant)).await.unwrap();
    io.flush().await.unwrap();
    let client = Client::connect(io, client::Options::default()).await.map_err(|err| err.to_string())?;
    let root = client.attach(&Who::owner(), b"").await.map_err(|err| err.to_string())?;
    let Handle::Dir(dir) = root.open(How::READ).await.unwrap() else { panic!("no directory") };
    let mut names = Vec::new();
    let mut each = |entry: p9::Entry<'_>| {
        names.push(entry.name.to_string());
        ControlFlow::Continue(())
    };
    dir.list(0, &mut each).await.unwrap();
    Ok((names, client, root))
}

fn a_grant_lets_in_its_holder_alone_to_what_it_says_and_until_it_is_over(mut machine: Machine) {
    let address = machine.node("gamma");
    machine.node("beta");
    machine.run("sh", &["-c", "echo gamma >../files-gamma/small"]);
    let (me, beta, gamma) =
        (key(&machine, "me/id_ed25519"), key(&machine, "beta/node_ed25519"), key(&machine, "gamma/node_ed25519"));
    let only = |export: &str, read_only| vec![Only { export: export.into(), read_only }];
    let granted = Grant {
        holder: beta.key.fingerprint(),
        audience: gamma.key.fingerprint(),
        only: only("files", true),
        session: "beta/1".into(),
        until: grant::until(Duration::from_secs(600)),
    };
    let signed = granted.sign(&me).unwrap();
    Runtime::new().unwrap().block_on(async {
        let shown = |holder: SecretKey, grant: String| {
            let address = address.clone();
            async move { shown(&address, &holder, &grant).await }
        };
        let (names, client, root) = shown(beta.clone(), signed.clone()).await.unwrap();
        assert_eq!(names, ["fs"]);
        let path = ["fs", "files", "made"].map(|name| Name::new(name.as_bytes()).unwrap());
        let dir = root.walk(&path[..2], Want::default()).await.unwrap().reached().unwrap().node;
        assert_eq!(
            dir.create(path[2], New { what: What::File(How::WRITE), mode: 0o644, owner: None }).await.err(),
            Some(p9::Errno::EROFS)
        );
        let made = |grant: Grant| grant.sign(&me).unwrap();
        let other = key(&machine, "me/node_ed25519");
        for (holder, grant) in [
            // Forged: by nobody whom gamma knows, or changed; used by another; for another; over; widened.
            (&beta, granted.sign(&beta).unwrap()),
            (&beta, signed.replace(":ro", "")),
            (&other, signed.clone()),
            (&me, signed.clone()),
            (&beta, made(Grant { audience: beta.key.fingerprint(), ..granted.clone() })),
            (&beta, made(Grant { until: grant::now(), ..granted.clone() })),
            (&beta, signed.clone() + &made(Grant { only: only("files", false), ..granted.clone() })),
            (&beta, String::new()),
            (&beta, "x".repeat(grant::MAX_BYTES + 1)),
        ] {
            let said = shown(holder.clone(), grant.clone()).await.err();
            assert!(said.is_some(), "{grant}");
        }
        // Narrowed by its holder for another, it is that one's.
        let narrow = Grant { holder: other.key.fingerprint(), ..granted.clone() }.narrow(&signed, &beta).unwrap();
        assert_eq!(shown(other.clone(), narrow).await.unwrap().0, ["fs"]);
        // Its time over, the connection ends; and so it does when its signer is let in no longer.
        let short = made(Grant { until: grant::until(Duration::from_secs(2)), ..granted.clone() });
        let (_, brief, _) = shown(beta.clone(), short).await.unwrap();
        tokio::time::timeout(PATIENCE, brief.closed()).await.unwrap();
        assert!(!client.is_closed());
        let home = machine.at("gamma").display().to_string();
        machine.slashn(&["--home", &home, "deny", &me.key.fingerprint()]).succeeds();
        tokio::time::timeout(PATIENCE, client.closed()).await.unwrap();
        assert!(shown(beta.clone(), signed.clone()).await.is_err());
    });
}
