//! My display, for a program on a node: `rcpu -X`. The display is a frame buffer of Xvfb(1), whose pixels are compared.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tests::as_both;
use tests::machine::{Done, Machine, Text, until};

as_both! {
    a_program_there_shows_on_my_display_and_has_another_cookie
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
