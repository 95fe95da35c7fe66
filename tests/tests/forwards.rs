//! Sockets of the node, from here, and of here, from a command on the node: `rcpu -L`, `-R`, `--forward`.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use tests::as_both;
use tests::machine::{Done, Machine, Text};

as_both! {
    what_connects_here_is_connected_there_both_ways
    a_forward_that_cannot_be_is_told
    what_connects_there_is_connected_here_both_ways
    a_socket_of_mine_is_at_the_same_path_there
    my_ssh_agent_is_the_commands_own_while_it_runs
    what_is_lent_ends_with_the_command
    a_socket_of_a_command_is_made_in_no_directory_of_mine
    what_is_lent_has_somebody_here_who_answers
}

/// A server on this machine, which is also the node's: it answers everything, in capitals, once there is no more. Gives
/// its port.
fn shouting() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut text = String::new();
                stream.read_to_string(&mut text).unwrap();
                stream.write_all(text.to_uppercase().as_bytes()).unwrap();
            });
        }
    });
    port
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn what_connects_here_is_connected_there_both_ways(mut machine: Machine) {
    machine.node("alpha");
    let (there, here, socket) = (shouting(), free_port(), machine.at("work/socket"));
    let tcp = format!("127.0.0.1:{here}:127.0.0.1:{there}");
    let unix = format!("{}:localhost:{there}", socket.display());
    let nobody = format!("{}2:localhost:{}", socket.display(), free_port());
    let args = ["-L", &tcp, "-L", &unix, "-L", &nobody, "alpha", "sh", "-c", "echo ready; read end"];
    let mut child = machine.rcpu(&args);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let text = "some words\n".repeat(50_000);
    let mut answers = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(("127.0.0.1", here)).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        answers.push(stream);
    }
    for mut stream in answers {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer == text.to_uppercase(), "{} bytes of {}", answer.len(), text.len());
    }
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(b"by a file").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "BY A FILE");
    // Where nobody listens the connection ends, and that is said.
    let mut refused = UnixStream::connect(format!("{}2", socket.display())).unwrap();
    assert_eq!(refused.read(&mut [0; 1]).unwrap(), 0);
    drop(child.stdin.take());
    let ended = child.wait_with_output().unwrap();
    assert!(
        ended.errors().starts_with("slashn: connect: tcp!localhost!") && ended.errors().contains("refused"),
        "{}",
        ended.errors()
    );
    assert!(!socket.exists(), "the socket file is left");
}

fn a_forward_that_cannot_be_is_told(mut machine: Machine) {
    machine.node("alpha");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listening = TcpListener::bind(taken).unwrap();
    let forward = format!("127.0.0.1:{}:localhost:1", taken.port());
    let error = machine.rcpu(&["-L", &forward, "alpha", "true"]).exits(255).errors();
    assert!(error.contains(&format!("rcpu: listen: 127.0.0.1:{}: Address already in use", taken.port())), "{error}");
    drop(listening);
    machine.write("there", "");
    let file = machine.at("work/there").display().to_string();
    let error = machine.rcpu(&["-L", &format!("{file}:localhost:1"), "alpha", "true"]).exits(255);
    error.complains(&["rcpu: listen: ", &file, "Address", "rm "]);
    assert!(machine.rcpu(&["-L", "nonsense", "alpha", "true"]).exits(2).errors().contains("[BIND:]PORT:HOST:PORT"));
    machine.rcpu(&["-L", "1:localhost:1", "-A", "true"]).exits(2).complains(&["-L: it is for one command"]);
}

/// A python program for the far end: connects to the socket that its arguments name, says its input, and prints what is
/// answered once it has said that there is no more.
const ASK: &str = "import socket, sys
kind, at = sys.argv[1:]
s = socket.socket(socket.AF_UNIX if kind == 'unix' else socket.AF_INET)
s.connect(at if kind == 'unix' else ('localhost', int(at)))
text = sys.stdin.buffer.read()
import threading
threading.Thread(target=lambda: (s.sendall(text), s.shutdown(socket.SHUT_WR))).start()
while True:
    got = s.recv(65536)
    if not got: break
    sys.stdout.buffer.write(got)
";

fn what_connects_there_is_connected_here_both_ways(mut machine: Machine) {
    machine.node("alpha");
    machine.write("ask.py", ASK);
    let (here, there) = (shouting(), free_port());
    let text = "some words\n".repeat(50_000);
    let input = machine.write("input", &text);
    let tcp = format!("{there}:localhost:{here}");
    let socket = format!("/tmp/there.sock:localhost:{here}");
    let long = format!("{}/{}/s", machine.at("work").display(), "long".repeat(20));
    machine.run("mkdir", &["-p", std::path::Path::new(&long).parent().unwrap().to_str().unwrap()]);
    let far = format!("{long}:localhost:{here}");
    let deep = "cd ${1%/*} && exec python3 ../ask.py unix s";
    for (forward, command) in [
        (&tcp, vec!["python3", "ask.py", "tcp", &there.to_string()]),
        (&socket, vec!["python3", "ask.py", "unix", "/tmp/there.sock"]),
        (&far, vec!["sh", "-c", deep, "-", &long]),
    ] {
        for way in [vec!["-R".to_owned(), forward.clone()], vec!["--forward".to_owned(), format!("R:{forward}")]] {
            let way: Vec<&str> = way.iter().map(String::as_str).collect();
            let args = [&way[..], &["alpha"], &command[..]].concat();
            let ended = machine.rcpu(&args).stdin(std::fs::File::open(&input).unwrap()).succeeds();
            assert!(ended.text() == text.to_uppercase(), "{forward}: {} bytes {}", ended.text().len(), ended.errors());
        }
    }
    // Where nobody listens the connection ends, and that is said.
    let nobody = format!("/run/x:localhost:{}", free_port());
    let ended = machine.rcpu(&["-R", &nobody, "alpha", "python3", "ask.py", "unix", "/run/x"]).done();
    assert!(ended.errors().contains("slashn: connect: tcp!localhost!"), "{}", ended.errors());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let refused = machine.rcpu(&["-R", &format!("127.0.0.1:{port}:localhost:1"), "alpha", "true"]).exits(255);
    refused.complains(&["rcpu: run: alpha: listen: 127.0.0.1:", "Address already in use"]);
    let refused = machine.rcpu(&["-R", "/etc/passwd:localhost:1", "alpha", "true"]).exits(255);
    refused.complains(&["rcpu: run: alpha: listen: /etc/passwd: Address already in use"]);
}

fn a_socket_of_mine_is_at_the_same_path_there(mut machine: Machine) {
    machine.node("alpha");
    machine.write("ask.py", ASK);
    let input = machine.write("input", "words");
    let path = machine.at("work/mine.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            stream.write_all(text.to_uppercase().as_bytes()).unwrap();
        }
    });
    let path = path.display().to_string();
    let ask = ["alpha", "python3", "ask.py", "unix", &path];
    let input = || std::fs::File::open(&input).unwrap();
    assert!(!machine.rcpu(&ask).stdin(input()).done().status.success());
    let lent = machine.rcpu(&[&["--forward", &path], &ask[..]].concat()).stdin(input()).succeeds();
    assert_eq!(lent.text(), "WORDS");
    assert!(std::path::Path::new(&path).exists(), "the socket was removed");
}

fn my_ssh_agent_is_the_commands_own_while_it_runs(mut machine: Machine) {
    machine.node("alpha");
    let script = "ssh-keygen -q -t ed25519 -N '' -f key -C lent && eval $(ssh-agent -a $PWD/agent) >/dev/null && \
                  ssh-add -q key && rcpu -S alpha sh -c 'ssh-add -l; ssh-add -T key.pub; echo $SSH_AUTH_SOCK' && \
                  rcpu alpha sh -c 'echo $SSH_AUTH_SOCK; ssh-add -l 2>&1'; ssh-agent -k >/dev/null";
    let ended = machine.command("sh").args(["-c", script]).done();
    let lines: Vec<String> = ended.text().lines().map(str::to_owned).collect();
    assert!(
        lines[0].contains(" lent (ED25519)") && lines[1] == "/run/slashn/ssh-agent",
        "{lines:?} {}",
        ended.errors()
    );
    assert!(lines[2].is_empty() && lines[3].contains("Could not open a connection"), "{lines:?}");
    machine.rcpu(&["-S", "alpha", "true"]).exits(255).complains(&["rcpu: lend: agent: $SSH_AUTH_SOCK is not set"]);
}

fn what_is_lent_ends_with_the_command(mut machine: Machine) {
    machine.node("alpha");
    let (port, here) = (free_port(), shouting());
    let forward = format!("127.0.0.1:{port}:localhost:{here}");
    let mut child = machine.rcpu(&["-R", &forward, "alpha", "sh", "-c", "echo ready; read end"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let mut open = TcpStream::connect(("127.0.0.1", port)).unwrap();
    open.write_all(b"never ended").unwrap();
    drop(child.stdin.take());
    assert!(child.wait_with_output().unwrap().errors().is_empty());
    // The connection is broken off, and nothing listens any more.
    let _ = open.read(&mut [0; 1]);
    tests::machine::until("nothing listens", || TcpStream::connect(("127.0.0.1", port)).is_err());
}

fn a_socket_of_a_command_is_made_in_no_directory_of_mine(mut machine: Machine) {
    machine.node("alpha");
    machine.write("ask.py", ASK);
    machine.run("mkdir", &["real"]);
    machine.run("ln", &["-s", "real", "link"]);
    let (here, input) = (shouting(), machine.write("input", "words"));
    let names = || {
        let all = [machine.at("work"), machine.at("work/real")].map(|dir| std::fs::read_dir(dir).unwrap());
        all.into_iter().flatten().map(|entry| entry.unwrap().path()).collect::<std::collections::BTreeSet<_>>()
    };
    let before = names();
    let absolute = machine.at("work/s").display().to_string();
    let new = machine.at("work/new/dir/s").display().to_string();
    for path in [absolute.as_str(), "./s", "real/s", "link/s", &new, "/usr/s"] {
        let forward = format!("{path}:localhost:{here}");
        let mut child = machine.rcpu(&["-R", &forward, "alpha", "python3", "ask.py", "unix", path]);
        let child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&std::fs::read(&input).unwrap()).unwrap();
        // It reads all of its input once it is connected.
        drop(stdin);
        let mut answer = String::new();
        child.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
        assert_eq!(names(), before, "{path}");
        let ended = child.wait_with_output().unwrap();
        assert_eq!((answer.as_str(), ended.errors().as_str()), ("WORDS", ""), "{path}");
        assert_eq!(names(), before, "{path}");
    }
    // One that is killed leaves nothing either.
    let forward = format!("{absolute}:localhost:{here}");
    let script = format!("test -S {absolute} && stat -c %F-%a {absolute} && exec cat");
    let mut child = machine.rcpu(&["-R", &forward, "alpha", "sh", "-c", &script]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "socket-600\n");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(names(), before);
}

fn what_is_lent_has_somebody_here_who_answers(mut machine: Machine) {
    machine.node("alpha");
    let path = machine.at("work/none.sock");
    let text = path.display().to_string();
    let lends = |path: &str| machine.rcpu(&["--forward", path, "alpha", "touch", "ran"]).exits(255);
    lends(&text).complains(&["rcpu: lend: ", &text, "No such file or directory", "ss -lx"]);
    assert!(!path.exists(), "a socket was made");
    let directory = machine.at("work").display().to_string();
    lends(&directory).complains(&["rcpu: lend: ", &directory, "is no socket"]);
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    lends(&text).complains(&["rcpu: lend: ", &text, "Connection refused"]);
    let agent = machine.rcpu(&["-S", "alpha", "touch", "ran"]).env("SSH_AUTH_SOCK", &path).exits(255);
    agent.complains(&["rcpu: lend: agent: ", &text, "Connection refused"]);
    assert!(!machine.at("work/ran").exists(), "the command ran");
}
