//! The commands, one file each. A command gets the [`Context`] and what was typed, prints its result, and gives the
//! exit status; whoever needs a runtime makes one, after what must run before there are threads.

pub mod agent;
pub mod allow;
pub mod bind;
pub mod doctor;
pub mod down;
mod escape;
pub mod export;
pub mod init;
pub mod launcher;
pub mod mount;
pub mod nine;
pub mod nodes;
pub mod ns;
pub mod rcpu;
pub mod run;
pub mod sessions;
pub mod shell;
pub mod status;
pub mod stdio;
pub mod top;
pub mod unmount;
pub mod up;

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::Context;
use crate::cli::Command;
use crate::error::{At, Result};

/// The runtime of a command that talks to others. One thread moves everything: handing small messages from thread to
/// thread would cost more than it gains, and what blocks has a pool of its own.
fn runtime() -> Result<tokio::runtime::Runtime> {
    runtime_of(1)
}

/// A runtime in which all goes on in the thread that waits for something: for one command, whose parts would else wake
/// one another from thread to thread.
fn runtime_of_one() -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_current_thread().max_blocking_threads(64).enable_all().build();
    built.at("start", "the runtime")
}

/// A runtime with `threads` threads.
fn runtime_of(threads: usize) -> Result<tokio::runtime::Runtime> {
    let built = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .max_blocking_threads(64)
        .enable_all()
        .build();
    built.at("start", "the runtime")
}

/// Returns when the process is told to end, by SIGTERM, SIGINT, or `stop`.
async fn stopped(stop: &Notify) -> Result<Stopped> {
    let listen = |kind| signal(kind).at("listen for", "signals");
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    Ok(tokio::select! {
        _ = term.recv() => Stopped::Signal,
        _ = int.recv() => Stopped::Signal,
        () = stop.notified() => Stopped::Told,
    })
}

/// What ended a daemon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stopped {
    /// SIGTERM or SIGINT.
    Signal,
    /// A command.
    Told,
}

/// Runs `command`.
pub fn run(context: &Context, command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(typed) => up::run(context, &typed),
        Command::Down => down::run(context),
        Command::Status => status::run(context),
        Command::Mount(typed) => mount::run(context, &typed),
        Command::Unmount(typed) => unmount::run(context, &typed),
        Command::Run(typed) => run::run(context, &typed),
        Command::Private(typed) => run::serve(context, &typed),
        Command::Bind(typed) => bind::bind(context, &typed),
        Command::Unbind(typed) => bind::unbind(context, &typed),
        Command::Ns(typed) => ns::run(context, &typed),
        Command::Ps(typed) => sessions::ps(context, &typed),
        Command::Kill(typed) => sessions::kill(context, &typed),
        Command::Wait(typed) => sessions::wait(context, &typed),
        Command::Attach(typed) => sessions::attach(context, &typed),
        Command::Top(typed) => top::run(context, &typed),
        Command::Launcher => launcher::run(),
        Command::Stdio => stdio::run(context),
        Command::Agent(typed) => agent::run(context, &typed),
        Command::Init(typed) => init::run(context, &typed),
        Command::Export(typed) => export::export(context, &typed),
        Command::Unexport(typed) => export::unexport(context, &typed),
        Command::Exports => export::exports(context),
        Command::Allow(typed) => allow::allow(context, &typed),
        Command::Deny(typed) => allow::deny(context, &typed),
        Command::Allowed => allow::allowed(context),
        Command::Add(typed) => nodes::add(context, &typed),
        Command::Remove(typed) => nodes::remove(context, &typed),
        Command::Nodes => nodes::nodes(context),
        Command::Doctor => doctor::run(context),
        Command::Completions(typed) => shell::completions(&typed),
        Command::Man(typed) => shell::man(&typed),
    }
}
