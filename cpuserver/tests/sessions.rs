//! Sessions as files, through 9P: whose they are, how long they live, what may be written to them. No command is
//! started that runs: for those see `jobs.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cpuserver::client::{self, Request, Stdio};
use cpuserver::launch::Launcher;
use cpuserver::serve_back::{self, ServeBackError};
use cpuserver::{Cpu, CpuLimits, CpuOptions};
use p9::client::Client;
use p9::server::{self, Limits};
use p9::{Errno, Handle, How, Name, NodeRef, Reply, Rights, Tree, Want, Who, synth};

const PATIENCE: Duration = Duration::from_secs(30);

/// A node without trees of its own.
struct NoTrees;

impl ns::Dialer for NoTrees {
    fn dial<'a>(&'a self, _server: &'a str, _spec: &'a str) -> Reply<'a, NodeRef> {
        Errno::ENOENT.into()
    }
}

/// A service whose launcher never answers: what gets as far as that does not get further.
fn cpu() -> Arc<Cpu> {
    let limits = CpuLimits { sessions: 3, caller: Duration::from_millis(50), ..CpuLimits::default() };
    Cpu::new(CpuOptions {
        launcher: Launcher::start_with(Path::new("/bin/cat"), &[] as &[&str]).unwrap(),
        node_name: "beta".into(),
        runtime: tokio::runtime::Handle::current(),
        own: Arc::new(NoTrees),
        travel: None,
        tmp: std::env::temp_dir(),
        env: Vec::new(),
        drivers: Vec::new(),
        qid_key: [7; 32],
        disk: None,
        limits,
    })
}

fn who(key: &str) -> Who {
    Who { key: key.into(), ..Who::owner() }
}

/// The root of the node, as `who` sees it over a connection of its own.
async fn node(cpu: &Arc<Cpu>, who: Who) -> (Client, NodeRef) {
    let cpu = cpu.clone();
    let tree = synth::tree_for(move |who| {
        let entries = cpu.node_for(who).map(|node| ("cpu", node));
        Ok(synth::dir(entries))
    });
    let (near, far) = tokio::io::duplex(1 << 16);
    let peer = Arc::new(who.clone());
    tokio::spawn(async move { server::serve(far, tree, peer, Limits::default()).await });
    let client = Client::connect(near, p9::client::Options::default()).await.unwrap();
    let root = client.attach(&who, b"/").await.unwrap();
    (client, root)
}

async fn open(node: &NodeRef, path: &str, how: How) -> Result<Handle, Errno> {
    let names = Name::split(path.as_bytes())?;
    Ok(node.open_at(&names, how, Want::default()).await?.handle)
}

async fn text(node: &NodeRef, path: &str) -> Result<String, Errno> {
    let read = open(node, path, How::READ).await?.read(0, 1 << 16).await?;
    Ok(String::from_utf8(read.to_vec()).unwrap())
}

async fn put(node: &NodeRef, path: &str, text: &str) -> Result<(), Errno> {
    let file = open(node, path, How::WRITE).await?;
    file.write(0, text.to_owned().into()).await?;
    file.close().await
}

async fn names(node: &NodeRef, path: &str) -> Vec<String> {
    let Handle::Dir(dir) = open(node, path, How::READ).await.unwrap() else { panic!("{path} is a directory") };
    let mut names = Vec::new();
    dir.list(0, &mut |entry| {
        names.push(entry.name.to_string());
        std::ops::ControlFlow::Continue(())
    })
    .await
    .unwrap();
    names.sort();
    names
}

/// Opens a clone file: the session's number, and what keeps it.
async fn session(node: &NodeRef) -> (String, Handle) {
    let clone = open(node, "cpu/clone", How::RDWR).await.unwrap();
    let number = String::from_utf8(clone.read(0, 64).await.unwrap().to_vec()).unwrap();
    (number.trim_end().to_owned(), clone)
}

/// Waits until `what` is so.
async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let wait = async {
        while !so().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_session_lives_while_its_clone_file_is_open() {
    let cpu = cpu();
    let (_client, node) = node(&cpu, Who::owner()).await;
    assert_eq!(names(&node, "cpu").await, ["clone", "connect"]);
    let (n, clone) = session(&node).await;
    assert_eq!(names(&node, "cpu").await, [n.as_str(), "clone", "connect"]);
    let files = "accept args clone ctl cwd env limits listen nodes nonce ns pid stats status stderr stdin stdout wait";
    assert_eq!(names(&node, &format!("cpu/{n}")).await.join(" "), files);
    let waiting = open(&node, &format!("cpu/{n}/wait"), How::READ).await.unwrap();
    let waited = waiting.read(0, 100);
    clone.close().await.unwrap();
    drop(clone);
    assert_eq!(tokio::time::timeout(PATIENCE, waited).await.unwrap(), Err(Errno::ESTALE));
    assert_eq!(names(&node, "cpu").await, ["clone", "connect"]);
    assert_eq!(text(&node, &format!("cpu/{n}/status")).await, Err(Errno::ENOENT));
}

#[tokio::test]
async fn a_session_goes_with_the_connection_that_holds_it() {
    let cpu = cpu();
    let (client, node) = node(&cpu, Who::owner()).await;
    let held = session(&node).await;
    assert_eq!(cpu.counts(), (1, 0));
    drop((held, node, client));
    until("the session is gone", async || cpu.counts() == (0, 0)).await;
}

#[tokio::test]
async fn a_session_may_have_a_name_that_its_caller_chose_and_then_nobody_waits_for_its_number() {
    let cpu = cpu();
    let (_alice, alice) = node(&cpu, who("SHA256:alice")).await;
    let (_bob, bob) = node(&cpu, who("SHA256:bob")).await;
    let name = format!("cpu/+{}", "0a".repeat(16));
    let clone = open(&alice, &format!("{name}/clone"), How::RDWR).await.unwrap();
    let number = String::from_utf8(clone.read(0, 64).await.unwrap().to_vec()).unwrap();
    assert_eq!(names(&alice, "cpu").await, [number.trim_end(), "clone", "connect"]);
    assert_eq!(text(&alice, &format!("{name}/nonce")).await.unwrap().trim_end(), "0a".repeat(16));
    assert_eq!(text(&bob, &format!("{name}/status")).await, Err(Errno::ENOENT));
    for wrong in ["+", "+0a", &format!("+{}", "0A".repeat(16)), &format!("+{}", "0g".repeat(16))] {
        assert_eq!(text(&alice, &format!("cpu/{wrong}/status")).await, Err(Errno::ENOENT), "{wrong}");
    }
    drop(clone);
    until("the session is gone", async || cpu.counts() == (0, 0)).await;
    assert_eq!(text(&alice, &format!("{name}/status")).await, Err(Errno::ENOENT), "a name is used once");
    // One that nobody holds lasts no longer than whoever means it takes.
    let name = format!("cpu/+{}", "0b".repeat(16));
    assert_eq!(text(&alice, &format!("{name}/status")).await.unwrap(), "new\n");
    until("the session is gone again", async || cpu.counts() == (0, 0)).await;
}

#[tokio::test]
async fn each_peer_sees_its_own_sessions_alone() {
    let cpu = cpu();
    let (_alice, alice) = node(&cpu, who("SHA256:alice")).await;
    let (_bob, bob) = node(&cpu, who("SHA256:bob")).await;
    let (n, _held) = session(&alice).await;
    assert_eq!(text(&alice, &format!("cpu/{n}/status")).await.unwrap(), "new\n");
    assert_eq!(names(&bob, "cpu").await, ["clone", "connect"]);
    assert_eq!(text(&bob, &format!("cpu/{n}/status")).await, Err(Errno::ENOENT));
    // The same peer sees it over another connection.
    let (_again, again) = node_again(&cpu).await;
    assert_eq!(names(&again, "cpu").await, [n.as_str(), "clone", "connect"]);
}

async fn node_again(cpu: &Arc<Cpu>) -> (Client, NodeRef) {
    node(cpu, who("SHA256:alice")).await
}

#[tokio::test]
async fn a_peer_that_may_not_run_commands_sees_no_cpu() {
    let cpu = cpu();
    let guest = Who { rights: Rights::Only(Arc::new([])), ..who("SHA256:guest") };
    assert!(cpu.node_for(&guest).is_none());
    let (_client, node) = node(&cpu, guest).await;
    assert_eq!(text(&node, "cpu/clone").await, Err(Errno::ENOENT));
}

#[tokio::test]
async fn a_peer_has_so_many_sessions_and_no_more() {
    let cpu = cpu();
    let (_alice, alice) = node(&cpu, who("SHA256:alice")).await;
    let (_bob, bob) = node(&cpu, who("SHA256:bob")).await;
    let held = [session(&alice).await, session(&alice).await, session(&alice).await];
    assert_eq!(open(&alice, "cpu/clone", How::READ).await.map(drop), Err(Errno::EMFILE));
    session(&bob).await;
    drop(held);
    until("there is room again", async || open(&alice, "cpu/clone", How::READ).await.is_ok()).await;
}

#[tokio::test]
async fn what_is_asked_for_reads_back_and_is_checked_when_it_is_written() {
    let cpu = cpu();
    let (_client, node) = node(&cpu, Who::owner()).await;
    let (n, clone) = session(&node).await;
    let file = |name: &str| format!("cpu/{n}/{name}");
    put(&node, &file("args"), "uname -n\n").await.unwrap();
    assert_eq!(text(&node, &file("args")).await.unwrap(), "uname\0-n\0");
    put(&node, &file("env"), "A=1\0B=2\0").await.unwrap();
    put(&node, &file("cwd"), "/tmp\n").await.unwrap();
    put(&node, &file("limits"), "nofile 64 128\n").await.unwrap();
    put(&node, &file("ns"), "mount '#root' /\n").await.unwrap();
    for (name, wrong) in [("cwd", "tmp\n"), ("limits", "nofile\n"), ("ns", "mount\n"), ("args", "'\n")] {
        assert_eq!(put(&node, &file(name), wrong).await, Err(Errno::EINVAL), "{name}");
    }
    // The clone file takes what ctl takes.
    clone.write(0, "cwd /usr\numask 077\n".into()).await.unwrap();
    assert_eq!(text(&node, &file("cwd")).await.unwrap(), "/usr\n");
    assert_eq!(text(&node, &file("env")).await.unwrap(), "A=1\0B=2\0");
    assert_eq!(put(&node, &file("ctl"), "migrate gpu1\n").await, Err(Errno::EOPNOTSUPP));
    assert_eq!(put(&node, &file("ctl"), "kill TERM\n").await, Err(Errno::ESRCH));
    assert_eq!(text(&node, &file("pid")).await, Err(Errno::ESRCH));
    assert_eq!(text(&node, &file("stdin")).await, Err(Errno::EACCES));
    assert_eq!(text(&node, &file("nonce")).await.unwrap().trim_end().len(), 32);
}

#[tokio::test]
async fn nothing_is_started_without_a_command_or_twice_or_changed_after_it() {
    let cpu = cpu();
    let (_client, node) = node(&cpu, Who::owner()).await;
    let (n, clone) = session(&node).await;
    assert_eq!(clone.write(0, "exec\n".into()).await.map(drop), Err(Errno::EINVAL));
    clone.write(0, "args true\nstart\n".into()).await.unwrap();
    assert_eq!(clone.write(0, "exec\n".into()).await.map(drop), Err(Errno::EBUSY));
    assert_eq!(put(&node, &format!("cpu/{n}/args"), "false\n").await, Err(Errno::EBUSY));
}

#[tokio::test]
async fn a_caller_whose_tree_does_not_come_is_told_so() {
    let cpu = cpu();
    let (_client, node) = node(&cpu, Who::owner()).await;
    let (n, clone) = session(&node).await;
    let asked = "args true\nns 'mount caller /'\nexec\n";
    assert_eq!(clone.write(0, asked.into()).await.map(drop), Err(Errno::EIO));
    let reason = "never started: the caller's tree: it did not come";
    assert!(text(&node, &format!("cpu/{n}/status")).await.unwrap().starts_with(&format!("exit 255 {reason}")));
    let wait = text(&node, &format!("cpu/{n}/wait")).await.unwrap();
    assert!(wait.starts_with(&format!("exit 255\n{reason}")), "{wait}");
    assert_eq!(text(&node, &format!("cpu/{n}/stdout")).await.unwrap(), "");
}

#[tokio::test]
async fn the_library_tells_why_a_command_never_started_and_ends_its_session() {
    let cpu = cpu();
    let (_client, node) = node(&cpu, Who::owner()).await;
    let command = Request { argv: vec![b"true".to_vec()], ns: "mount caller /\n".into(), ..Request::default() };
    let stdio = Stdio {
        stdin: Box::new(tokio::io::empty()),
        stdout: Box::new(tokio::io::sink()),
        stderr: Box::new(tokio::io::sink()),
    };
    let (_events, no_events) = tokio::sync::mpsc::channel(1);
    let run = client::run(node, async |_, _| std::future::pending().await, command, stdio, no_events);
    let error = tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap_err();
    assert_eq!(error.exit_code(), 255);
    assert!(error.to_string().starts_with("the caller's tree: it did not come"), "{error}");
    until("the session is gone", async || cpu.counts() == (0, 0)).await;
}

#[tokio::test]
async fn a_tree_is_taken_from_the_sessions_owner_with_its_nonce_once() {
    let cpu = cpu();
    let (alice, bob) = (who("SHA256:alice"), who("SHA256:bob"));
    let (_client, node) = node(&cpu, alice.clone()).await;
    let (n, _clone) = session(&node).await;
    let nonce = text(&node, &format!("cpu/{n}/nonce")).await.unwrap().trim_end().to_owned();
    let id: u64 = n.parse().unwrap();
    let bring = async |line: &str, who: &Who| {
        let (near, far) = tokio::io::duplex(1 << 16);
        let tree = synth::tree(synth::dir([]));
        let serving = tokio::spawn(server::serve(near, tree, Arc::new(Who::owner()), Limits::default()));
        let brought = cpu.serve_back(line, Box::new(far), who);
        let brought = tokio::time::timeout(PATIENCE, brought).await.expect("a connection that is refused ends");
        serving.abort();
        brought
    };
    let line = serve_back::line(id, &nonce);
    for (wrong, who) in [
        (serve_back::line(id, &"0".repeat(32)), &alice),
        (serve_back::line(id + 1, &nonce), &alice),
        (line.clone(), &bob),
        (line.clone(), &Who { rights: Rights::Only(Arc::new([])), ..alice.clone() }),
    ] {
        assert!(matches!(bring(&wrong, who).await, Err(ServeBackError::Refused(_))), "{wrong}");
    }
    assert!(matches!(bring("version", &alice).await, Err(ServeBackError::Line)));
    let used = async || text(&node, &format!("cpu/{n}/nonce")).await == Ok("\n".into());
    tokio::select! {
        brought = bring(&line, &alice) => panic!("it lasts as long as the connection, but {brought:?}"),
        () = until("the nonce is used", used) => {}
    }
    assert!(matches!(bring(&line, &alice).await, Err(ServeBackError::Refused(_))));
}
