//! My display, for a program on a node: `rcpu -X`. The X display is a frame buffer of Xvfb(1), whose pixels are compared;
//! the Wayland display is weston(1)'s without a screen, whose own tool takes the picture.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tests::as_both;
use tests::machine::{Done, Machine, Text, binaries, until};

as_both! {
    a_program_there_shows_on_my_display_and_has_another_cookie
    a_program_there_shows_on_my_wayland_display
}

/// The true cookie of the display.
const COOKIE: &str = "5ca1ab1e5ca1ab1e5ca1ab1e5ca1ab1e";
/// A program with a window.
const LOGO: [&str; 7] = ["xlogo", "-geometry", "200x150+20+30", "-bg", "#2060a0", "-fg", "#f0e010"];

/// A display without a screen.
struct Display {
    server: Child,
    name: String,
    authority: PathBuf,
    pixels: PathBuf,
}

impl Display {
    fn start(machine: &Machine) -> Self {
        let (authority, pixels) = (machine.at("home/authority"), machine.at("pixels"));
        machine.run("mkdir", &[&pixels]);
        let add = |display: &str| {
            let file = authority.to_str().unwrap();
            machine.run("xauth", &["-q", "-f", file, "add", display, "MIT-MAGIC-COOKIE-1", COOKIE]);
        };
        add("unix:0");
        let mut server = machine.command("Xvfb");
        server.args(["-displayfd", "1", "-screen", "0", "320x240x24", "-nolisten", "tcp", "-noreset", "-fbdir"]);
        server.arg(&pixels).arg("-auth").arg(&authority).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = server.spawn().unwrap();
        let mut number = String::new();
        BufReader::new(server.stdout.as_mut().unwrap()).read_line(&mut number).unwrap();
        let name = format!(":{}", number.trim());
        add(&format!("unix{name}"));
        Self { server, name, authority, pixels: pixels.join("Xvfb_screen0") }
    }

    /// What is to be seen: an image as xwd(1) makes it.
    fn shot(&self) -> Vec<u8> {
        fs::read(&self.pixels).unwrap()
    }

    fn on(&self, mut command: Command) -> Command {
        command.env("DISPLAY", &self.name).env("XAUTHORITY", &self.authority);
        command
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        // It removes its socket and its lock.
        let _ = Command::new("kill").arg(self.server.id().to_string()).status();
        let _ = self.server.wait();
    }
}

/// How many pixels of `image` have this color.
fn count(image: &[u8], color: [u8; 3]) -> usize {
    let [red, green, blue] = color;
    image.chunks(4).filter(|pixel| pixel[..3] == [blue, green, red]).count()
}

fn a_program_there_shows_on_my_display_and_has_another_cookie(mut machine: Machine) {
    machine.node("alpha");
    let display = Display::start(&machine);
    let empty = display.shot();
    // What it looks like when it runs here.
    let mut here = display.on(machine.command(LOGO[0])).args(&LOGO[1..]).spawn().unwrap();
    until("it is drawn here", || count(&display.shot(), [0xf0, 0xe0, 0x10]) > 2000);
    let mut drawn = display.shot();
    until("it is all there", || std::mem::replace(&mut drawn, display.shot()) == drawn);
    here.kill().unwrap();
    here.wait().unwrap();
    until("it is gone", || display.shot() == empty);
    for way in [&["-X"][..], &["--forward", "x11"]] {
        let mut there = display.on(machine.rcpu(&[way, &["alpha"], &LOGO].concat()));
        let there = there.stderr(Stdio::piped()).spawn().unwrap();
        until("it looks the same from there", || display.shot() == drawn);
        let _ = Command::new("kill").arg(there.id().to_string()).status();
        let ended = there.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(128 + 15));
        assert!(!ended.errors().contains("rcpu") && !ended.errors().contains("slashn"), "{}", ended.errors());
        until("it is gone", || display.shot() == empty);
    }
    let rcpu = |args: &[&str]| display.on(machine.rcpu(args));
    let listed = rcpu(&["-X", "alpha", "sh", "-c", "xauth -q list; echo $DISPLAY"]).succeeds().text();
    assert!(listed.contains("MIT-MAGIC-COOKIE-1") && !listed.contains(COOKIE), "{listed}");
    assert!(!listed.ends_with(&format!("\n{}\n", display.name)), "{listed}");
    let other = rcpu(&["-X", "alpha", "sh", "-c", "XAUTHORITY=/dev/null xlogo"]).exits(1).errors();
    assert!(other.contains("another cookie than it was given"), "{other}");
    let unset = rcpu(&["alpha", "sh", "-c", "echo ${DISPLAY-unset} ${XAUTHORITY-unset}"]).succeeds().text();
    assert_eq!(unset, "unset unset\n");
    machine.rcpu(&["-X", "alpha", "true"]).exits(255).complains(&["rcpu: lend: x11: $DISPLAY is not set"]);
    // One that is not there any more.
    drop(display);
    let gone = machine.rcpu(&["-X", "alpha", "true"]).env("DISPLAY", ":59998").exits(255);
    gone.complains(&["rcpu: lend: x11: unix!/tmp/.X11-unix/X59998: No such file or directory"]);
}

/// A Wayland display without a screen.
struct Weston {
    server: Child,
    dir: PathBuf,
}

impl Weston {
    fn start(machine: &Machine) -> Self {
        let dir = machine.at("work/wayland");
        machine.run("mkdir", &["-p", "-m", "700", dir.to_str().unwrap()]);
        let ini = "[core]\nidle-time=0\n[shell]\npanel-position=none\nbackground-color=0xff204060\n\
                   startup-animation=none\nclose-animation=none\n";
        let mut server = machine.command("weston");
        // The tool that takes pictures is let in only where all may look at it.
        server.args(["--backend=headless-backend.so", "--width=320", "--height=240", "--use-pixman", "--debug"]);
        server.arg("--socket=display").arg(format!("--config={}", machine.write("weston.ini", ini).display()));
        server.env("XDG_RUNTIME_DIR", &dir).stdout(Stdio::null()).stderr(Stdio::null());
        let weston = Self { server: server.spawn().unwrap(), dir };
        until("the display is there", || weston.on(machine.command("wayland-info")).output().unwrap().status.success());
        // After the filter of its line, the first pixel of the background.
        until("it is drawn", || pixels(&machine.write("shot.png", weston.shot(machine)))[1..4] == [0x20, 0x40, 0x60]);
        weston
    }

    fn on(&self, mut command: Command) -> Command {
        command.env("WAYLAND_DISPLAY", "display").env("XDG_RUNTIME_DIR", &self.dir).env_remove("DISPLAY");
        command
    }

    /// What is to be seen: an image as png(5).
    fn shot(&self, machine: &Machine) -> Vec<u8> {
        machine.run("mkdir", &["-p", "shots"]);
        self.on(machine.command("sh")).args(["-c", "cd shots && rm -f * && weston-screenshooter"]).succeeds();
        let files: Vec<_> = fs::read_dir(machine.at("work/shots")).unwrap().collect();
        fs::read(files.into_iter().next().unwrap().unwrap().path()).unwrap()
    }
}

/// What a file as png(5) holds, unpacked.
fn pixels(file: &Path) -> Vec<u8> {
    const UNPACK: &str = "import struct, sys, zlib\nb, at, all = open(sys.argv[1], 'rb').read(), 8, b''\n\
        while at < len(b):\n n, kind = struct.unpack('>I4s', b[at:at + 8])\n \
        all += b[at + 8:at + 8 + n] if kind == b'IDAT' else b''\n at += 12 + n\n\
        sys.stdout.buffer.write(zlib.decompress(all))\n";
    Command::new("python3").args(["-c", UNPACK]).arg(file).succeeds().stdout
}

impl Drop for Weston {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.server.id().to_string()).status();
        let _ = self.server.wait();
    }
}

fn a_program_there_shows_on_my_wayland_display(mut machine: Machine) {
    machine.node("alpha");
    let weston = Weston::start(&machine);
    let empty = weston.shot(&machine);
    // It has a window that is larger than the display, which is always at the same place.
    machine.write("image.png", &empty);
    const IMAGE: [&str; 2] = ["weston-image", "image.png"];
    let mut here = weston.on(machine.command(IMAGE[0])).arg(IMAGE[1]).spawn().unwrap();
    until("it is drawn here", || weston.shot(&machine) != empty);
    let mut drawn = weston.shot(&machine);
    until("it is all there", || std::mem::replace(&mut drawn, weston.shot(&machine)) == drawn);
    here.kill().unwrap();
    here.wait().unwrap();
    until("it is gone", || weston.shot(&machine) == empty);
    for way in [&["-X"][..], &["--forward", "wayland"]] {
        let mut there = weston.on(machine.rcpu(&[way, &["alpha"], &IMAGE].concat()));
        let there = there.stderr(Stdio::piped()).spawn().unwrap();
        until("it looks the same from there", || weston.shot(&machine) == drawn);
        let _ = Command::new("kill").arg(there.id().to_string()).status();
        let ended = there.wait_with_output().unwrap();
        assert_eq!(ended.status.code(), Some(128 + 15), "{}", ended.errors());
        until("it is gone", || weston.shot(&machine) == empty);
    }
    let rcpu = |args: &[&str]| weston.on(machine.rcpu(args));
    // What runs beside it has to do with neither its streams nor its end.
    let script = "echo $WAYLAND_DISPLAY; cat; wayland-info | grep -c wl_compositor; kill -9 $$";
    let ended = rcpu(&["-X", "alpha", "sh", "-c", script]).stdin(Stdio::null()).output().unwrap();
    assert_eq!((ended.status.code(), ended.text().as_str()), (Some(128 + 9), "/run/slashn/wayland-0\n1\n"));
    let waits = "import os\ntry: os.wait()\nexcept ChildProcessError: print('no child')";
    assert_eq!(rcpu(&["-X", "alpha", "python3", "-c", waits]).succeeds().text(), "no child\n");
    let missing = rcpu(&["-X", "alpha", "nonesuch"]).exits(127).errors();
    assert!(missing.starts_with("rcpu: ") && missing.contains("nonesuch: not found"), "{missing}");
    // One that is killed leaves a directory, which was for nobody else and which the next removes.
    let mut killed = weston.on(machine.command("sh"));
    killed.args(["-c", "umask 0; exec \"$0\" -X alpha sh -c 'echo; sleep 1000'"]).arg(binaries().join("rcpu"));
    let mut killed = killed.stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(killed.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    let all = fs::read_dir(std::env::temp_dir()).unwrap().map(Result::unwrap);
    let named = format!("slashn-wayland.{}.", killed.id());
    let mut left = all.filter(|entry| entry.file_name().to_string_lossy().starts_with(&named));
    let left = left.next().unwrap();
    assert_eq!(left.metadata().unwrap().mode() & 0o7777, 0o700);
    killed.kill().unwrap();
    killed.wait().unwrap();
    rcpu(&["-X", "alpha", "true"]).succeeds();
    assert!(!left.path().exists());
    until("nothing of it is left", || !machine.processes().iter().any(|line| line.contains("waypipe")));
    let unset = rcpu(&["alpha", "sh", "-c", "echo ${WAYLAND_DISPLAY-unset}"]).succeeds().text();
    assert_eq!(unset, "unset\n");
    let mut without = weston.on(machine.command("env"));
    without.arg("PATH=/none").arg(binaries().join("rcpu")).args(["--forward", "wayland", "alpha", "true"]);
    let missing = without.exits(255);
    missing.complains(&["rcpu: lend: wayland: waypipe is not installed; try: apt-get install waypipe"]);
    drop(weston);
    let gone = machine.rcpu(&["--forward", "wayland", "alpha", "true"]).env("WAYLAND_DISPLAY", "/none").exits(255);
    gone.complains(&["rcpu: lend: wayland: unix!/none: No such file or directory"]);
}
