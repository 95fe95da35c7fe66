//! An export of a real node, mounted once or twice, and the programs that are run in it: what others wrote, and ours
//! under `tests/programs`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tokio::runtime::Runtime;

use crate::link::Proxy;
use crate::machine::{Done, Machine};

/// Not one that belongs to whoever runs the tests: an ordinary user has to be able to run it.
const PYTHON: &str = "/usr/bin/python3";

/// Starts a node and mounts the grid. Gives its export's place.
pub fn once(machine: &mut Machine) -> PathBuf {
    machine.node("beta");
    machine.mount().join("beta/fs/files")
}

/// Starts a node and mounts the grid twice: two clients of one export. Gives both places.
pub fn twice(machine: &mut Machine) -> [PathBuf; 2] {
    let one = once(machine);
    [one, machine.mount_as("m", &[]).join("beta/fs/files")]
}

/// Starts the node beta, which is reached through a link that can be cut.
pub fn behind_a_link() -> (Machine, Proxy, Runtime) {
    behind_a_link_with(&[])
}

/// The same, with more arguments for `slashn up`.
pub fn behind_a_link_with(more: &[&str]) -> (Machine, Proxy, Runtime) {
    let mut machine = Machine::root();
    let address = machine.node_with("beta", more);
    let runtime = Runtime::new().expect("a runtime");
    let proxy = runtime.block_on(Proxy::start(address.parse().expect("an address"), Duration::ZERO)).expect("a proxy");
    moves(&machine, &address, &proxy.address.to_string());
    (machine, proxy, runtime)
}

/// The node that is known to be at `from` is known to be at `to` from now on.
pub fn moves(machine: &Machine, from: &str, to: &str) {
    let known = machine.at("me/known_nodes");
    let text = std::fs::read_to_string(&known).expect("the nodes that I know");
    assert!(text.contains(from));
    std::fs::write(known, text.replace(from, to)).expect("to write them");
}

/// The Python program `tests/programs/NAME.py`; what it says is read as soon as it is said.
pub fn python(machine: &Machine, name: &str) -> Command {
    let mut command = machine.command(PYTHON);
    command.arg("-u").arg(copied(machine, &format!("programs/{name}.py")));
    command
}

/// Copies a program's text from this crate to the folder `work`, where every user can read it.
fn copied(machine: &Machine, file: &str) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let name = file.rsplit('/').next().unwrap_or(file);
    let there = machine.at("work").join(name);
    // Another that runs may still be reading it.
    if there.exists() {
        return there;
    }
    let text = std::fs::read_to_string(&from).expect("the program's text");
    machine.write(name, &text)
}

/// A shell script that ends at the first failure, with `$1` and so on.
pub fn script(machine: &Machine, text: &str) -> Command {
    let mut command = machine.command("sh");
    command.args(["-ec", text, "sh"]);
    command
}

/// The program whose cases `tests/v9fs/guest.c` holds, compiled.
pub fn guest(machine: &Machine) -> PathBuf {
    let program = machine.at("work/guest");
    let source = copied(machine, "v9fs/guest.c");
    machine.command("gcc").arg("-o").args([&program, &source]).succeeds();
    program
}

/// Puts the shell scripts of `docs/DOCUMENT`, as they stand there, into the folder `work`, each called by the first
/// word of its first comment. Gives the document's text and how many there are.
pub fn documented(machine: &Machine, document: &str) -> (String, usize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(document);
    let text = std::fs::read_to_string(path).expect("the document");
    let scripts: Vec<&str> = text.split("```sh\n# ").skip(1).filter_map(|part| part.split("```").next()).collect();
    for script in &scripts {
        machine.write(script.split_whitespace().next().expect("its name"), format!("# {script}"));
    }
    let count = scripts.len();
    (text, count)
}

/// `sh SCRIPT ARGS...`, in the grid `n`.
pub fn in_grid(machine: &Machine, n: &Path, args: &[&str]) -> Command {
    let mut command = machine.command("sh");
    command.args(args).env("N", n);
    command
}
