//! Files that are on no disk: made when opened, commanded by writes, streams.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use p9::{Errno, Reply, Stream, Written, synth};
use tokio::sync::Notify;

use super::*;

#[test]
fn what_claims_to_be_empty_is_read_whole_and_anew() {
    let count = AtomicU32::new(0);
    let file = synth::file(move || Ok(format!("opened {}\n", count.fetch_add(1, Ordering::SeqCst)).into()));
    let shown = Shown::new(synth::dir([("f", file)]));
    assert_eq!(fs::read_to_string(shown.path("f")).unwrap(), "opened 0\n");
    assert_eq!(fs::read_to_string(shown.path("f")).unwrap(), "opened 1\n");
    let output = Command::new("tail").arg("-c4").arg(shown.path("f")).output().unwrap();
    assert_eq!(output.stdout, b"d 2\n");
    let denied = OpenOptions::new().write(true).open(shown.path("f")).unwrap_err();
    assert_eq!(denied.raw_os_error(), Some(libc::EACCES));
}

#[test]
fn a_command_that_fails_tells_whoever_wrote_it() {
    let said = Arc::new(Mutex::new(Vec::new()));
    let heard = said.clone();
    let ctl = synth::ctl(move |command: Bytes| {
        heard.lock().unwrap().push(command.clone());
        if command == "boom" { Errno::ENOSPC.into() } else { Reply::ok(()) }
    });
    let shown = Shown::new(synth::dir([("ctl", ctl)]));
    let sh = |script: &str| Command::new("sh").args(["-c", script]).current_dir(&*shown).output().unwrap();
    assert!(sh("echo go > ctl; echo on >> ctl").status.success());
    assert!(!sh("echo boom > ctl").status.success());
    assert_eq!(fs::write(shown.path("ctl"), "boom").unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(*said.lock().unwrap(), ["go", "on", "boom", "boom"]);
}

#[test]
fn a_value_is_set_and_read_back() {
    let value = Arc::new(Mutex::new(Bytes::from_static(b"first\n")));
    let (get, set) = (value.clone(), value.clone());
    let file = synth::value(
        move || Ok(get.lock().unwrap().clone()),
        move |text| {
            *set.lock().unwrap() = text;
            Ok(())
        },
    );
    let shown = Shown::new(synth::dir([("v", file)]));
    assert_eq!(fs::read_to_string(shown.path("v")).unwrap(), "first\n");
    fs::write(shown.path("v"), "second\n").unwrap();
    assert_eq!(fs::read_to_string(shown.path("v")).unwrap(), "second\n");
}

/// Gives the bytes of `text` at their offsets, a few at a time, and notes what is written and where.
struct Lines {
    text: &'static [u8],
    written: Arc<Mutex<Vec<(u64, Bytes)>>>,
    closed: Arc<AtomicU32>,
}

impl Stream for Lines {
    fn read(&self, offset: u64, count: u32) -> Reply<'_, Bytes> {
        let rest = &self.text[(offset as usize).min(self.text.len())..];
        Reply::ok(Bytes::from_static(&rest[..rest.len().min(count as usize).min(5)]))
    }

    fn write(&self, offset: u64, data: Bytes) -> Reply<'_, Written> {
        self.written.lock().unwrap().push((offset, data.clone()));
        Reply::ok(Written::count(data.len()))
    }

    fn close(&self) -> Reply<'_, ()> {
        self.closed.fetch_add(1, Ordering::SeqCst);
        Reply::ok(())
    }
}

#[test]
fn a_stream_is_asked_for_each_byte_once_and_closed_once() {
    let (written, closed) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicU32::new(0)));
    let (puts, closes) = (written.clone(), closed.clone());
    let file = synth::stream(0o666, move |_| {
        let (written, closed) = (puts.clone(), closes.clone());
        Reply::ok(Arc::new(Lines { text: b"one\ntwo\nthree\n", written, closed }))
    });
    let shown = Shown::new(synth::dir([("s", file)]));
    assert_eq!(fs::read_to_string(shown.path("s")).unwrap(), "one\ntwo\nthree\n");
    // A shell reads byte by byte, in two processes, with one descriptor.
    let script = "exec 3<s; read a <&3; (read b <&3; echo $b); read c <&3; echo $a $c";
    let output = Command::new("sh").args(["-c", script]).current_dir(&*shown).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "two\none three\n");
    let mut file = OpenOptions::new().write(true).open(shown.path("s")).unwrap();
    file.write_all(b"ab").unwrap();
    file.write_all(b"cde").unwrap();
    assert_eq!(file.write_at(b"x", 9).unwrap_err().raw_os_error(), Some(libc::ESPIPE));
    drop(file);
    assert_eq!(*written.lock().unwrap(), [(0, Bytes::from("ab")), (2, Bytes::from("cde"))]);
    until("all three were closed", || closed.load(Ordering::SeqCst) == 3);
}

/// Is ready when it is told so.
#[derive(Default)]
struct Bell {
    rung: Notify,
    ready: Mutex<bool>,
}

struct Listener(Arc<Bell>);

impl Stream for Listener {
    fn poll(&self, events: u32) -> Reply<'_, u32> {
        Reply::later(async move {
            loop {
                let rung = self.0.rung.notified();
                if *self.0.ready.lock().unwrap() {
                    return Ok(events & libc::POLLIN as u32);
                }
                rung.await;
            }
        })
    }

    fn read(&self, _: u64, _: u32) -> Reply<'_, Bytes> {
        Reply::ok(Bytes::from_static(b"rung"))
    }
}

#[test]
fn a_poll_waits_for_the_stream() {
    let bell = Arc::new(Bell::default());
    let ringer = bell.clone();
    let file = synth::stream(0o444, move |_| Reply::ok(Arc::new(Listener(bell.clone()))));
    let shown = Shown::new(synth::dir([("bell", file)]));
    let file = File::open(shown.path("bell")).unwrap();
    let poll = |timeout: i64| {
        let mut fds = [rustix::event::PollFd::new(&file, rustix::event::PollFlags::IN)];
        let timeout = rustix::time::Timespec { tv_sec: timeout, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&timeout)).unwrap()
    };
    assert_eq!(poll(0), 0);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| poll(PATIENCE.as_secs() as i64));
        *ringer.ready.lock().unwrap() = true;
        ringer.rung.notify_waiters();
        assert_eq!(waits.join().unwrap(), 1);
    });
    let mut text = [0; 4];
    (&file).read_exact(&mut text).unwrap();
    assert_eq!(&text, b"rung");
}

/// Takes what is written, and knows only when it is asked that there was no room for it.
struct Deferred(Arc<Mutex<Vec<&'static str>>>);

impl Stream for Deferred {
    fn seekable(&self) -> bool {
        true
    }

    fn read(&self, _: u64, _: u32) -> Reply<'_, Bytes> {
        Reply::ok(Bytes::new())
    }

    fn write(&self, _: u64, data: Bytes) -> Reply<'_, Written> {
        self.0.lock().unwrap().push("write");
        Reply::ok(Written::count(data.len()))
    }

    fn flush(&self) -> Reply<'_, ()> {
        self.0.lock().unwrap().push("flush");
        Reply::later(async {
            tokio::task::yield_now().await;
            Err(Errno::ENOSPC)
        })
    }

    fn close(&self) -> Reply<'_, ()> {
        self.0.lock().unwrap().push("close");
        Reply::ok(())
    }
}

/// Closes a file that was not written, one that was read, and both descriptors of one that was written.
const CLOSES: &str = "import os
os.close(os.open('f', os.O_WRONLY))
fd = os.open('f', os.O_RDONLY); os.read(fd, 10); os.close(fd)
fd = os.open('f', os.O_WRONLY); other = os.dup(fd)
os.write(fd, b'x'); os.write(fd, b'y')
try: os.close(fd)
except OSError as error: print(error.errno)
os.close(other)
";

fn close_tells(show: impl FnOnce(NodeRef) -> Shown) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = asked.clone();
    let file = synth::stream(0o666, move |_| Reply::ok(Arc::new(Deferred(seen.clone()))));
    let shown = show(synth::dir([("f", file)]));
    let output = Command::new("python3").args(["-c", CLOSES]).current_dir(&*shown).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((&*out, &*err), (&*format!("{}\n", libc::ENOSPC), ""));
    let closed = || asked.lock().unwrap().iter().filter(|what| **what == "close").count();
    until("all three were closed", || closed() == 3);
    let asked = asked.lock().unwrap().clone();
    let asked: Vec<_> = asked.into_iter().filter(|what| *what != "close").collect();
    assert_eq!(asked, ["write", "write", "flush"], "nobody is asked without need");
}

#[test]
fn close_tells_what_was_not_known_before() {
    close_tells(Shown::new);
}

#[test]
fn close_tells_what_a_server_did_not_know_before() {
    close_tells(|root| Shown::far(synth::tree(root)));
}
