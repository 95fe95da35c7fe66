//! Sockets of the node, from here: `rcpu -L`.

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
