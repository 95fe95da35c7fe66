//! What of a node is tied to its drivers is the node's in a command that has its caller's root: a library that stands
//! for one, which the caller has, too, in another version.

#![allow(clippy::unwrap_used, reason = "it is a test: a failure here is the test's")]

use std::fs;

use tests::as_both;
use tests::machine::{Done, Machine, Text};

as_both! {
    a_library_of_the_nodes_driver_is_loaded_there_and_the_callers_here
}

/// By which the loader seeks it.
const SONAME: &str = "-Wl,-soname,libfakecard.so.1";

fn a_library_of_the_nodes_driver_is_loaded_there_and_the_callers_here(mut machine: Machine) {
    let address = machine.node("alpha");
    let library = |folder: &str, version: &str| {
        machine.write("version.c", format!("const char *version(void) {{ return \"{version}\"; }}\n"));
        let made = machine.at(folder).join("libfakecard.so.1");
        machine.run("mkdir", &["-p", machine.at(folder).to_str().unwrap()]);
        machine.run("gcc", &["-shared", "-fPIC", SONAME, "-o", made.to_str().unwrap(), "version.c"]);
        made.display().to_string()
    };
    let (mine, _) = (library("work/lib", "the caller's"), library("drivers", "the node's"));
    machine.write("main.c", "#include <stdio.h>\nconst char *version(void);\nint main(void) { puts(version()); }\n");
    machine.run("gcc", &["-o", "main", "main.c", &mine]);
    let run = |node: Option<&str>, path: &str| {
        let mut command = node.map_or_else(|| machine.command("./main"), |node| machine.rcpu(&[node, "./main"]));
        command.env("LD_LIBRARY_PATH", path).succeeds().text()
    };
    let lib = machine.at("work/lib").display().to_string();
    assert_eq!(run(None, &lib), "the caller's\n");
    assert_eq!(run(Some("alpha"), &lib), "the caller's\n");
    // The node says which of its libraries these are.
    let home = machine.at("alpha").display().to_string();
    machine.slashn(&["--home", &home, "down"]).succeeds();
    let grid = machine.at("alpha/grid.toml");
    let named = format!("drivers = [\"{}/libfakecard.so*\"]\n", machine.at("drivers").display());
    let text = fs::read_to_string(&grid).unwrap();
    fs::write(&grid, named + &text).unwrap();
    machine.up("alpha", &address, &[]);
    assert_eq!(run(Some("alpha"), &lib), "the node's\n");
    let path = machine.rcpu(&["alpha", "sh", "-c", "echo $LD_LIBRARY_PATH; ls /run/slashn/drivers"]).succeeds().text();
    assert_eq!(path, "/run/slashn/drivers\nlibfakecard.so.1\n");
    // Which has the node's root has them where they are.
    let own = machine.rcpu(&["--root", "node", "alpha", "sh", "-c", "echo ${LD_LIBRARY_PATH-unset}"]).succeeds();
    assert_eq!(own.text(), "unset\n");
}
