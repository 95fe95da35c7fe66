//! Going to the background: a copy of this program that says on its stdout when it is ready.
//!
//! Called by the commands that start something and return (`up --daemon`, `mount`, and `rcpu` for the agent), before
//! any runtime. Nothing is forked: the copy is executed anew, in a session of its own, its stderr in the home's
//! `run/log`, so that what it says later is not lost.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{At, Error, Result};

/// Runs `slashn ARGS...` in the background and returns the one line that it prints when it is ready. When it ends
/// without one, its last words are the error.
pub fn start(home: &Path, step: &str, args: &[OsString]) -> Result<String> {
    let program = slashn()?;
    let log = home.join("run/log");
    let open = || OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(&log);
    let file = open().at(step, log.display())?;
    let before = file.metadata().at(step, log.display())?.len();
    let mut command = Command::new(&program);
    command.args(args).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(file);
    // A process group of its own: ^C at the terminal is not for it.
    command.process_group(0);
    let mut child = command.spawn().at(step, program.display())?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).take(4096).read_line(&mut line).at(step, program.display())?;
    }
    if line.ends_with('\n') {
        return Ok(line.trim_end().to_string());
    }
    let status = child.wait().at(step, program.display())?;
    let mut said = Vec::new();
    let mut log_file = open().at(step, log.display())?;
    let _ = std::io::Seek::seek(&mut log_file, std::io::SeekFrom::Start(before));
    let _ = log_file.take(1 << 16).read_to_end(&mut said);
    let said = String::from_utf8_lossy(&said);
    match said.lines().rev().find_map(|line| line.strip_prefix("slashn: ")) {
        Some(error) => Err(Error::told(error)),
        None => Err(Error::new(step, program.display(), format!("it ended with {status}"))
            .remedy(format!("cat {}", log.display()))),
    }
}

/// The `slashn` binary that belongs to this program: itself, or its neighbour.
fn slashn() -> Result<std::path::PathBuf> {
    let me = std::env::current_exe().at("find the program", "/proc/self/exe")?;
    let neighbour = me.with_file_name("slashn");
    if neighbour.exists() {
        Ok(neighbour)
    } else {
        Err(Error::new("find the program", neighbour.display(), "it is not there"))
    }
}
